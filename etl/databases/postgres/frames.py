"""Rows that nobody looks at, as COPY's binary bytes: read in ranges of the key.

The bytes of a row do not tell its key, so a range is bounded before it is read: its last key is
the position of its batch. All ranges of a read are of one instant. Within a range the server may
give the rows in any order, which costs it less than a sorted read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass

from etl.batch import Position
from etl.databases.postgres.connect import Connection
from etl.databases.postgres.guard import GROUP_S
from etl.databases.postgres.selection import Selection, set_bounds
from etl.databases.sql import quote
from etl.rows import Column, Frames, Kind

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""What COPY's binary form begins with, without flags and extensions: PostgreSQL, "COPY"."""
TRAILER = b"\xff\xff"

FORM = "PostgreSQL binary"
RANGE_BYTES = 4 << 20
"""The size of table that a range is to cover. A batch of this size is quick to write again."""
_PIECE_BYTES = 256 << 10
_UNKNOWN_WIDTH = 400  # bytes of a row of a table that was never analyzed
_SCATTERED = 0.5
_SMALL_BYTES = 256 << 20
WIDE_BYTES = 1 << 20
"""A row from this size on is not joined with others."""
_WIDE_ON_AVERAGE = 16 << 10

# Their binary form is the same in every server, and holds no number of a type that another
# database would know under another number.
_KINDS: frozenset[Kind] = frozenset(
    {
        *("bool", "int16", "int32", "int64", "float32", "float64", "numeric", "text", "bytes"),
        *("date", "time", "timestamp", "timestamptz", "interval", "uuid", "json"),
    }
)


class TooWideError(Exception):
    """A range turned out far larger than was reckoned; never leaves this package."""

    def __init__(self, after: Position | None) -> None:
        super().__init__()
        self.after = after


def unfit_column(columns: Sequence[Column]) -> Column | None:
    """The first column whose binary form another database may not understand."""
    return next((column for column in columns if column.type.kind not in _KINDS), None)


def pieces_of(groups: Sequence[Frames]) -> Iterator[bytes]:
    """The bytes of frames in pieces that a connection takes well."""
    for rows in groups:
        for piece in rows.pieces:
            for start in range(0, len(piece), _PIECE_BYTES):
                yield bytes(piece[start : start + _PIECE_BYTES])


def rows_of(pieces: Sequence[bytearray]) -> Sequence[bytes | memoryview[int]]:
    """What COPY sent, without its header and trailer; small pieces joined."""
    views = [memoryview(piece) for piece in pieces]
    views[0] = views[0][len(HEADER) :]
    views[-1] = views[-1][: -len(TRAILER)]
    if max(map(len, views)) >= WIDE_BYTES:
        return views
    return [b"".join(views)]


@dataclass(frozen=True, slots=True)
class _Table:
    """What is known of a table's size and of its first key column's values."""

    nbytes: int
    rows: int
    correlation: float
    bounds: Sequence[str]

    @property
    def width(self) -> int:
        """Bytes of a row, about."""
        return max(1, self.nbytes // self.rows) if self.rows else _UNKNOWN_WIDTH


_LOOK = """
SELECT pg_catalog.pg_table_size(c.oid) AS nbytes,
    greatest(c.reltuples, 0)::bigint AS rows,
    abs(coalesce(s.correlation, 0))::float8 AS correlation,
    s.histogram_bounds::text::text[] AS bounds
FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_stats AS s
    ON s.schemaname = n.nspname AND s.tablename = c.relname AND s.attname = $2 AND NOT s.inherited
WHERE c.oid = $1::bigint::oid
"""


async def suits(connection: Connection, selection: Selection) -> bool:
    """Whether a read can be cut into ranges, and reading them is not slower than sorting all.

    It is where the rows of a range lie scattered over a large table.
    """
    relation = selection.relation
    if relation is None or relation.kind != "r" or not selection.proven or not selection.order:
        return False
    if selection.origin != relation.qualified or unfit_column(selection.columns) is not None:
        return False
    table = await _look(connection, selection)
    return table.nbytes <= _SMALL_BYTES or table.correlation >= _SCATTERED


async def _look(connection: Connection, selection: Selection) -> _Table:
    assert selection.relation is not None
    row = await connection.fetchrow(_LOOK, selection.relation.oid, selection.leading)
    assert row is not None
    return _Table(row["nbytes"], row["rows"], row["correlation"], row["bounds"] or ())


async def ranges(
    connection: Connection,
    selection: Selection,
    after: Position | None,
    until: Position | None,
    nbytes: int,
) -> AsyncGenerator[tuple[Position | None, Position]]:
    """The ranges of a read, in order: from a key (exclusive) to a key (inclusive).

    In the transaction that is open. Bounds come from the server's statistics where they are fine
    enough; else each is found by stepping over an index.

    Args:
        nbytes: About how much of the table a range is to cover.
    """
    table = await _look(connection, selection)
    end = await _key(connection, selection, after, until, "DESC", 0)
    if end is None:
        return
    step = max(1, nbytes // table.width)
    buckets = len(table.bounds) - 1
    known: list[str] = []
    if buckets > 0 and table.nbytes // buckets <= 2 * nbytes:
        each = max(1, nbytes * buckets // max(1, table.nbytes))
        known = list(table.bounds[each:-1:each])
    while after != end:
        bound = end if table.nbytes <= nbytes else None
        while known and bound is None:
            bound = await _key_up_to(connection, selection, after, end, known.pop(0))
        # Statistics may be missing, or old: the rest is found by stepping.
        if bound is None:
            bound = await _key(connection, selection, after, end, "ASC", step - 1) or end
        yield after, bound
        after = bound


async def has_wide_rows(connection: Connection, selection: Selection) -> bool:
    """Whether ranges are to be weighed from the start, as far as the server knows its rows."""
    table = await _look(connection, selection)
    return table.width >= _WIDE_ON_AVERAGE or (not table.rows and table.nbytes >= WIDE_BYTES)


async def weighed(
    connection: Connection,
    selection: Selection,
    after: Position | None,
    until: Position,
    nbytes: int,
) -> AsyncGenerator[tuple[Position | None, Position]]:
    """A range cut by the true sizes of its rows: a part is one row, or takes at most ``nbytes``."""
    name = "etl_size"
    while name in selection.order:
        name += "_"
    await set_bounds(connection, after, until, None)
    sizes = await connection.fetch(
        f"SELECT {_texts(selection)}, {quote(name)} AS etl_size"  # noqa: S608  quoted names
        f" FROM ({selection.sizes_sql(after, until, name)}) AS etl_keys"
        f" ORDER BY {_order(selection, 'ASC')}",
        timeout=GROUP_S,
    )
    gathered = 0
    last: Position | None = None
    for row in sizes:
        *key, size = row
        if last is not None and gathered + size > nbytes:
            yield after, last
            after, gathered = last, 0
        gathered += size
        last = tuple(key)
    if last is not None:
        yield after, last


async def _key(
    connection: Connection,
    selection: Selection,
    after: Position | None,
    until: Position | None,
    direction: str,
    offset: int,
) -> Position | None:
    """The key of the row at a distance from the first or last one of a range."""
    await set_bounds(connection, after, until, None)
    return _position(
        await connection.fetchrow(
            f"SELECT {_texts(selection)} FROM ({selection.keys_sql(after, until)}) AS etl_keys"  # noqa: S608  quoted names
            f" ORDER BY {_order(selection, direction)} OFFSET {offset:d} LIMIT 1"
        )
    )


async def _key_up_to(
    connection: Connection,
    selection: Selection,
    after: Position | None,
    until: Position,
    value: str,
) -> Position | None:
    """The last key of a range whose first column is at most a value; None where none is."""
    await set_bounds(connection, after, until, value)
    keys = selection.keys_sql(after, until, "<=")
    return _position(
        await connection.fetchrow(
            f"SELECT {_texts(selection)} FROM ({keys}) AS etl_keys"  # noqa: S608  quoted names
            f" ORDER BY {_order(selection, 'DESC')} LIMIT 1"
        )
    )


def _texts(selection: Selection) -> str:
    return ", ".join(f"{quote(name)}::text AS etl_{i}" for i, name in enumerate(selection.order))


def _order(selection: Selection, direction: str) -> str:
    return ", ".join(f"etl_keys.{quote(name)} {direction}" for name in selection.order)


def _position(row: Sequence[str] | None) -> Position | None:
    return None if row is None else tuple(row)
