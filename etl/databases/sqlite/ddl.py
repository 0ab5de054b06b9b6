"""CREATE TABLE for SQLite, from the shape of the rows that will fill it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from etl.databases.sql import fold, quote, quote_all
from etl.errors import SchemaMismatchError
from etl.rows import Column, Kind, Shape, Type

_DECLARED: Mapping[Kind, str] = {
    "bool": "BOOLEAN",
    "int16": "INTEGER",
    "int32": "INTEGER",
    "int64": "INTEGER",
    "float32": "REAL",
    "float64": "REAL",
    "bytes": "BLOB",
}
"""Everything else is TEXT: a column declared DECIMAL or DATE would have the affinity NUMERIC, which
turns what looks like a number into one and drops digits."""

_PLAIN_TYPE = re.compile(
    r"[A-Za-z_][A-Za-z0-9_]*(?: [A-Za-z_][A-Za-z0-9_]*)*(?: ?\( ?[0-9]+ ?(?:, ?[0-9]+ ?)?\))?"
)
_CLAUSES = frozenset(
    "as check collate constraint default generated key not null on primary references unique"
    " autoincrement always".split()
)


def declare(type_: Type) -> str:
    """How a column of this type is declared in SQLite.

    A SQLite type stays as it was written, so the same values have the same affinity.
    """
    if type_.dialect != "sqlite":
        return _DECLARED.get(type_.kind, "TEXT")
    name = type_.name
    words = name.lower().replace("(", " ").split()
    if not name or (_PLAIN_TYPE.fullmatch(name) and _CLAUSES.isdisjoint(words)):
        return name
    return quote(name)  # SQLite takes any quoted name as a type, with the same affinity


def create_table(
    name: str,
    shape: Shape,
    key: Sequence[str],
    *,
    clauses: Mapping[str, str] | None = None,
    constraints: Sequence[str] = (),
) -> str:
    """The statement that makes a table.

    Args:
        clauses: What stands behind a column's type, by column.
        constraints: Of the whole table.

    Raises:
        SchemaMismatchError: Two columns differ in the case of ASCII letters only, which are one
            name to SQLite.
    """
    refuse_doubles(shape.names, f"table {name!r}")
    more = clauses or {}
    lines = [
        f"{_line(column, key)} {more.get(column.name, '')}".rstrip() for column in shape.columns
    ]
    if key:
        lines.append(f"PRIMARY KEY ({quote_all(key)})")
    lines += constraints
    return f"CREATE TABLE {quote(name)} (\n    " + ",\n    ".join(lines) + "\n)"


def add_column(table: str, column: Column) -> str:
    """The statement that adds a column: NULL in the rows that are there, so without NOT NULL."""
    return f"ALTER TABLE {quote(table)} ADD COLUMN {quote(column.name)} {declare(column.type)}"


def create_staging(name: str, columns: Sequence[tuple[str, str]]) -> str:
    """A table without constraints, from names and declared types."""
    lines = [f"{quote(column)} {staged_type(declared)}".rstrip() for column, declared in columns]
    return f"CREATE TABLE {quote(name)} (\n    " + ",\n    ".join(lines) + "\n)"


def staged_type(declared: str) -> str:
    """What a column is declared as in a staging table; its values are turned as in the table."""
    return declare(Type(kind="dynamic", name=declared, dialect="sqlite"))


def _line(column: Column, key: Sequence[str]) -> str:
    required = not column.nullable or column.name in key
    declared = declare(column.type)
    parts = [quote(column.name), declared, "NOT NULL" if required else ""]
    return " ".join(part for part in parts if part)


def refuse_doubles(names: Sequence[str], where: str) -> None:
    """Refuse names that SQLite cannot tell apart."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(fold(name), name)
        if other is not name:
            raise SchemaMismatchError(
                f"{where}: SQLite cannot tell the columns {other!r} and {name!r} apart; rename one"
                " of them in a query or a function"
            )


_SUGGESTED: Mapping[Any, Kind] = {
    bool: "bool",
    int: "int64",
    float: "float64",
    Decimal: "numeric",
    str: "text",
    bytes: "bytes",
    datetime: "timestamptz",
    date: "date",
    time: "time",
    timedelta: "interval",
    UUID: "uuid",
    dict: "json",
    list: "json",
}


def suggest_table(
    name: str, names: Sequence[str], values: Sequence[Any], key: Sequence[str]
) -> str:
    """A CREATE TABLE that would take a row whose types only its values tell."""
    columns = [
        Column(
            name=column,
            type=Type(kind=_SUGGESTED.get(type(value), "text"), name="", dialect="python"),
        )
        for column, value in zip(names, values, strict=True)
    ]
    return create_table(name, Shape(columns=tuple(columns)), key)
