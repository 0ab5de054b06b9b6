"""What PostgreSQL can be given of a SQLite table: keys, plain indexes, literal defaults."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from etl.databases.definition import (
    ColumnDefinition,
    IndexDefinition,
    SequenceDefinition,
    TableDefinition,
)
from etl.databases.postgres.catalogue import NAME_BYTES
from etl.databases.sql import quote_all
from etl.rows import Kind, Shape

_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_TEXT = re.compile(r"'(?:[^']|'')*'", re.DOTALL)
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_MOMENTS: frozenset[Kind] = frozenset({"date", "time", "timestamp", "timestamptz"})
_NUMERIC: frozenset[Kind] = frozenset({"int16", "int32", "int64", "float32", "float64", "numeric"})


def adapted(
    source: TableDefinition, made: TableDefinition, shape: Shape
) -> tuple[TableDefinition, list[str]]:
    """A table that was planned from a shape, with what a SQLite definition adds.

    Args:
        made: The columns with their PostgreSQL types, and the primary key.

    Returns:
        The table, and what it cannot be given.
    """
    notes = [f"not carried: {what}" for what in source.left_out]
    by_name = {column.name: column for column in source.columns}
    kinds: dict[str, Kind] = {column.name: column.type.kind for column in shape.columns}
    columns: list[ColumnDefinition] = []
    for column in made.columns:
        own = by_name.get(column.name)
        columns.append(column if own is None else _column(column, own, kinds[column.name], notes))
    indexes = [*made.indexes, *_indexes(source, notes)]
    notes += [f"not carried: COLLATE {name}" for name in source.collations]
    product = "SQLite" if source.dialect == "sqlite" else "another database"
    notes += [
        f"not carried: {check.sql} ({product}'s expressions are not PostgreSQL's)"
        for check in source.checks
    ]
    return replace(
        made,
        columns=tuple(columns),
        indexes=tuple(indexes),
        foreign_keys=tuple(
            replace(key, name=key.name or _name(made.name, key.columns, "fkey"))
            for key in source.foreign_keys
        ),
    ), notes


def _column(
    column: ColumnDefinition, own: ColumnDefinition, kind: Kind, notes: list[str]
) -> ColumnDefinition:
    if own.generated is not None:
        notes.append(f"not carried: what computes {own.name!r} (the copy has its values)")
    if own.identity is not None:
        last = own.sequence.last if own.sequence is not None else None
        numbers = SequenceDefinition(schema=None, name="", options="", last=last)
        return replace(column, identity="by default", sequence=numbers)
    if own.default is None:
        return column
    literal = _literal(own.default, kind)
    if literal is None:
        notes.append(f"not carried: the default of {own.name!r}: {own.default}")
        return column
    return replace(column, default=literal)


def _literal(default: str, kind: Kind) -> str | None:
    """A SQLite default as PostgreSQL's, where it is a constant that means the same."""
    text = default.strip()
    while text.startswith("(") and text.endswith(")"):
        text = text[1:-1].strip()
    if text.upper() == "NULL":
        return "NULL"
    if _NUMBER.fullmatch(text):
        if kind == "bool":
            return {"0": "false", "1": "true"}.get(text)
        if kind == "text":  # SQLite writes other numbers as a text in its own way
            return f"'{text}'" if _INTEGER.fullmatch(text) else None
        return text if kind in _NUMERIC else None
    if text.upper() in {"TRUE", "FALSE"}:
        number = "1" if text.upper() == "TRUE" else "0"
        return text.lower() if kind == "bool" else number if kind in _NUMERIC else None
    if kind in _MOMENTS and not text[1:2].isdigit():
        return None  # PostgreSQL's 'now' is no text
    if _TEXT.fullmatch(text) and kind not in {"bool", "bytes", *_NUMERIC}:
        # A literal with a backslash means the same: standard_conforming_strings is on.
        return text
    return None


def _indexes(source: TableDefinition, notes: list[str]) -> list[IndexDefinition]:
    found: list[IndexDefinition] = []
    for index in source.indexes:
        if index.constraint == "primary":
            continue
        name = index.name or _name(source.name, index.columns, "key")
        if index.remark or not index.columns:
            notes.append(f"not carried: the index {name!r} ({index.remark or 'expressions'})")
            continue
        columns = quote_all(index.columns)
        if index.constraint == "unique":
            sql = f"UNIQUE ({columns})"
        else:
            sql = f"USING btree ({columns})"
        found.append(replace(index, name=name, sql=sql))
    return found


def _name(table: str, columns: Sequence[str], suffix: str) -> str:
    text = "_".join([table, *columns])
    room = NAME_BYTES - len(suffix) - 1
    return text.encode()[:room].decode("utf-8", "ignore") + "_" + suffix
