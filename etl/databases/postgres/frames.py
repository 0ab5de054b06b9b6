"""Rows that nobody looks at, as COPY's binary bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from etl.databases.sql import quote
from etl.databases.ways import fit, way
from etl.rows import Column, Frames, Kind, Type

HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
"""What COPY's binary form begins with, without flags and extensions: PostgreSQL, "COPY"."""
TRAILER = b"\xff\xff"

FORM = "PostgreSQL binary"
_PIECE_BYTES = 256 << 10

# Their binary form is the same in every server, and holds no number of a type that another
# database would know under another number.
_KINDS: frozenset[Kind] = frozenset(
    {
        *("bool", "int16", "int32", "int64", "float32", "float64", "numeric", "text", "bytes"),
        *("date", "time", "timestamp", "timestamptz", "interval", "uuid", "json"),
    }
)


def unfit_column(columns: Sequence[Column]) -> Column | None:
    """The first column whose binary form another database may not understand."""
    return next((column for column in columns if column.type.kind not in _KINDS), None)


_WIDER: Mapping[Kind, Mapping[Kind, str]] = {
    "int16": {"int32": "integer", "int64": "bigint"},
    "int32": {"int64": "bigint"},
}
_VARYING = "character varying"
UNFIT = "etl_unfit"
"""What the server's error says where a value of a range does not fit its column exactly."""


def fitted(source: Column, target: Type) -> str | None:
    """The SQL that reads a column in the binary form that a column of another type takes.

    It is the column's quoted name where the form is the same and the target holds every value.
    A value that the target would round or cut makes the server fail, with ``UNFIT`` in its error.
    None where there is no such SQL.
    """
    name, own = quote(source.name), source.type
    if own == target:
        return name
    if own.kind not in _KINDS or own.dialect != target.dialect:
        return None
    if own.kind != target.kind:
        wider = _WIDER.get(own.kind, {}).get(target.kind)
        return f"{name}::{wider}" if wider else None
    if own.kind == "json":
        return None  # json and jsonb differ
    how = way(own, target)
    if fit(own, target).way == "as it is" or (own.kind == "numeric" and how == "pass"):
        return name  # of a numeric, the server refuses what is too large
    if how == "convert" and own.kind == "numeric" and target.scale is not None:
        exact = f"scale({name}) > {target.scale} AND {name} <> round({name}, {target.scale})"
        return f"CASE WHEN {exact} THEN ('{UNFIT} ' || {name})::numeric ELSE {name} END"
    # The length of a char(n) is not what is sent of it.
    varying = "character varying"
    if (
        how == "convert"
        and own.name.startswith(("text", varying))
        and target.name.startswith(varying)
    ):
        # Bytes are counted sooner than characters.
        long = f"octet_length({name}) > {target.length} AND char_length({name}) > {target.length}"
        return f"CASE WHEN {long} THEN ('{UNFIT} ' || {name})::integer::text ELSE {name} END"
    return None


def pieces_of(rows: Frames) -> Iterator[bytes]:
    """The bytes of frames in pieces that a connection takes well: neither many nor large."""
    waiting: list[bytes | memoryview[int]] = []
    size = 0
    for piece in rows.pieces:
        for start in range(0, len(piece), _PIECE_BYTES):
            part = piece[start : start + _PIECE_BYTES]
            if size + len(part) > _PIECE_BYTES:
                yield b"".join(waiting)
                waiting, size = [], 0
            waiting.append(part)
            size += len(part)
    if waiting:
        yield b"".join(waiting)


def rows_of(pieces: Sequence[bytearray]) -> Sequence[memoryview[int]]:
    """What COPY sent, without its header and trailer."""
    views = [memoryview(piece) for piece in pieces]
    views[0] = views[0][len(HEADER) :]
    views[-1] = views[-1][: -len(TRAILER)]
    return views
