"""Where the ranges of the key end in which a table's bytes are read.

The bytes of a row do not tell its key, so a range is bounded before it is read: its last key is
the position of its batch. Ranges are cut from all rows of the table, whatever a condition leaves
of them. Within a range the server may give the rows in any order, which costs it less than a
sorted read.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from json import loads
from typing import Any

from etl.batch import Position
from etl.databases.postgres.connect import Connection
from etl.databases.postgres.frames import unfit_column
from etl.databases.postgres.guard import GROUP_S
from etl.databases.postgres.selection import Range, Selection, set_bounds
from etl.databases.sql import quote

RANGE_BYTES = 4 << 20
"""The size of table that a range is to cover. A batch of this size is quick to write again."""
WIDE_BYTES = 1 << 20
"""A row from this size on is not joined with others."""
_FIRST_SHARES = (8, 4, 2)
"""The first ranges are parts of one, so that the target has something to write soon."""
_UNKNOWN_WIDTH = 400  # bytes of a row of a table that was never analyzed
_SCATTERED = 0.5
_SMALL_BYTES = 256 << 20
_WIDE_ON_AVERAGE = 16 << 10
_FEW = 0.2
"""Where conditions leave a smaller part of a table, an index may find it."""


class StoppedError(Exception):
    """A range cannot be read as it is; never leaves this package.

    Attributes:
        after: Where the range begins.
    """

    def __init__(self, after: Position | None) -> None:
        super().__init__()
        self.after = after


class TooWideError(StoppedError):
    """It turned out far larger than was reckoned."""


class UnfitError(StoppedError):
    """A value of it does not fit its column in the target exactly."""


@dataclass(frozen=True, slots=True)
class Table:
    """What is known of a table's size and of its first key column's values."""

    nbytes: int
    rows: int
    correlation: float
    bounds: Sequence[str]

    @property
    def width(self) -> int:
        """Bytes of a row, about."""
        return max(1, self.nbytes // self.rows) if self.rows else _UNKNOWN_WIDTH

    @property
    def has_wide_rows(self) -> bool:
        """Whether ranges are to be weighed from the start, as far as the server knows its rows."""
        return self.width >= _WIDE_ON_AVERAGE or (not self.rows and self.nbytes >= WIDE_BYTES)

    @property
    def is_scattered(self) -> bool:
        """Whether the rows of a range lie all over a large table: then one sort costs less."""
        return self.nbytes > _SMALL_BYTES and self.correlation < _SCATTERED

    def marks(self, nbytes: int) -> Sequence[str]:
        """Values of the first key column that cut it into ranges; none where they are too few."""
        buckets = len(self.bounds) - 1
        if buckets < 1 or self.nbytes // buckets > 2 * nbytes:
            return ()
        each = max(1, nbytes * buckets // max(1, self.nbytes))
        found: list[str] = []
        at = 0
        for share in _shares():
            at += max(1, each // share)
            if at >= buckets:
                return found
            found.append(self.bounds[at])
        raise AssertionError  # the shares have no end


def _shares() -> Iterator[int]:
    return chain(_FIRST_SHARES, repeat(1))


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


async def suits(connection: Connection, selection: Selection) -> Table | None:
    """What is known of a table whose read can be cut into ranges; None where it cannot.

    Nor where reading them would be slower than one query.
    """
    relation = selection.relation
    if relation is None or relation.kind != "r" or not selection.proven or not selection.order:
        return None
    if selection.is_limited or unfit_column(selection.columns) is not None:
        return None
    # Only an index of the same order finds a range without reading the whole table.
    order = selection.table_order
    if not any(one.ordered and one.columns[: len(order)] == order for one in relation.indexes):
        return None
    (row,) = await connection.fetch_prepared(_LOOK, relation.oid, order[0])
    table = Table(row["nbytes"], row["rows"], row["correlation"], row["bounds"] or ())
    if table.is_scattered:
        return None
    if selection.has_steps and not await _is_plain_scan(connection, selection, table):
        return None
    return table


async def _is_plain_scan(connection: Connection, selection: Selection, table: Table) -> bool:
    """Whether declared steps are something that the server does row by row, for most rows.

    A window, a query within the steps, or what gives several rows for one would be done anew for
    each range; and where the conditions leave few rows, an index may find them.
    """
    rows_sql = selection.rows_sql({c.name: quote(c.name) for c in selection.columns})
    answer: str = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {rows_sql}")
    plan: dict[str, Any] = loads(answer)[0]["Plan"]
    if plan["Node Type"].startswith("Gather"):
        plan = plan["Plans"][0]
        plan["Plan Rows"] *= 1 + plan.get("Workers Planned", 0)
    if plan["Node Type"] not in {"Seq Scan", "Index Only Scan"} or "Plans" in plan:
        return False
    rows: float = plan["Plan Rows"]
    return rows >= _FEW * table.rows


async def ranges(
    connection: Connection,
    selection: Selection,
    table: Table,
    after: Position | None,
    until: Position | None,
    nbytes: int,
) -> AsyncGenerator[Range]:
    """The ranges of a read, in order.

    In the transaction that is open. Bounds come from the server's statistics where they are fine
    enough; else each is found by stepping over an index.

    Args:
        nbytes: About how much of the table a range is to cover.
    """
    keys = selection.of_table()
    end = await _key(connection, keys, after, until, "DESC", 0)
    if end is None:
        return
    if table.nbytes <= nbytes:
        yield Range(after, end)
        return
    for bound in await _marks(connection, keys, after, end, table.marks(nbytes)):
        yield Range(after, bound)
        after = bound
    # Statistics may be missing, or old: the rest is found by stepping.
    step = max(1, nbytes // table.width)
    for share in _shares():
        if after == end:
            return
        rows = max(1, step // share)
        bound = await _key(connection, keys, after, end, "ASC", rows - 1) or end
        yield Range(after, bound)
        after = bound


async def weighed(
    connection: Connection, selection: Selection, whole: Range, nbytes: int
) -> AsyncGenerator[Range]:
    """A range cut by the true sizes of its rows: a part is one row, or takes at most ``nbytes``."""
    name = "etl_size"
    while name in selection.order:
        name += "_"
    after = whole.after
    await set_bounds(connection, after, whole.until, None)
    sizes = await connection.fetch(
        f"SELECT {_texts(selection)}, {quote(name)} AS etl_size"  # noqa: S608  quoted names
        f" FROM ({selection.sizes_sql(after, whole.until, name)}) AS etl_keys"
        f" ORDER BY {_order(selection, 'ASC')}",
        timeout=GROUP_S,
    )
    gathered = 0
    last: Position | None = None
    for row in sizes:
        *key, size = row
        if last is not None and gathered + size > nbytes:
            yield Range(after, last)
            after, gathered = last, 0
        gathered += size
        last = tuple(key)
    yield Range(after, whole.until)


async def _key(
    connection: Connection,
    keys: Selection,
    after: Position | None,
    until: Position | None,
    direction: str,
    offset: int,
) -> Position | None:
    """The key of the row at a distance from the first or last one of a range."""
    await set_bounds(connection, after, until, None)
    found = await connection.fetchrow(
        f"SELECT {_texts(keys)} FROM ({keys.keys_sql(after, until)}) AS etl_keys"  # noqa: S608  quoted names
        f" ORDER BY {_order(keys, direction)} OFFSET {offset:d} LIMIT 1"
    )
    return None if found is None else tuple(found)


async def _marks(
    connection: Connection,
    keys: Selection,
    after: Position | None,
    end: Position,
    values: Sequence[str],
) -> Sequence[Position]:
    """The last keys up to some values of the first column, as far as they lie in a range.

    Each is found by its value alone: with the end of the range as a second bound, the server
    would begin there, and step over all keys between.
    """
    if not values:
        return ()
    await set_bounds(connection, after, end, None)
    lead = f"{quote(keys.order[0])} <= etl_v.etl_value::{keys.casts[0]}"
    nearest = f"{keys.keys_sql(None, None)} WHERE {lead} ORDER BY {_names(keys, 'DESC')} LIMIT 1"
    found = await connection.fetch(
        f"SELECT {_texts(keys)} FROM (SELECT DISTINCT etl_k.* FROM unnest($1::text[])"  # noqa: S608  quoted names
        f" AS etl_v(etl_value), LATERAL ({nearest}) AS etl_k) AS etl_keys"
        f" WHERE {keys.between(after, end)} ORDER BY {_order(keys, 'ASC')}",
        list(values),
        timeout=GROUP_S,
    )
    return [tuple(row) for row in found]


def _texts(selection: Selection) -> str:
    return ", ".join(f"{quote(name)}::text AS etl_{i}" for i, name in enumerate(selection.order))


def _names(selection: Selection, direction: str) -> str:
    return ", ".join(f"{quote(name)} {direction}" for name in selection.order)


def _order(selection: Selection, direction: str) -> str:
    return ", ".join(f"etl_keys.{quote(name)} {direction}" for name in selection.order)
