"""What SQLite can be given of a PostgreSQL table: keys, plain indexes, literal defaults."""

from __future__ import annotations

import re
from collections.abc import Sequence

from etl.databases.definition import ColumnDefinition, ForeignKey, TableDefinition
from etl.databases.sql import quote, quote_all
from etl.rows import Kind, Shape

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?", re.ASCII)
_LITERAL = re.compile(r"('(?:[^']|'')*')::.+", re.DOTALL)
_NUMBERS: frozenset[Kind] = frozenset({"int16", "int32", "int64", "float32", "float64"})
_ACTION = re.compile(r"ON (?:UPDATE|DELETE) (?:CASCADE|SET NULL|SET DEFAULT|RESTRICT)(?! \()")


def lines_of(source: TableDefinition, shape: Shape) -> tuple[dict[str, str], list[str], list[str]]:
    """What CREATE TABLE gets beside the columns' names and types.

    Returns:
        A clause by column, table constraints, and what cannot be carried.
    """
    notes = [f"not carried: {what}" for what in source.left_out]
    kinds: dict[str, Kind] = {column.name: column.type.kind for column in shape.columns}
    clauses: dict[str, str] = {}
    for column in source.columns:
        if column.name in kinds:
            clause = _clause(column, kinds[column.name], source, notes)
            if clause:
                clauses[column.name] = clause
    constraints = [
        f"UNIQUE ({quote_all(index.columns)})"
        for index in source.indexes
        if index.constraint == "unique" and index.columns and not index.remark
    ]
    constraints += [_foreign_key(key, notes) for key in source.foreign_keys if key.is_plain]
    notes += [
        f"not carried: the foreign key {key.name!r} to {key.table!r}, which rows may break"
        for key in source.foreign_keys
        if not key.is_plain
    ]
    notes += [f"not carried: the constraint {check.name!r}: {check.sql}" for check in source.checks]
    if source.comment is not None or any(c.comment is not None for c in source.columns):
        notes.append("not carried: comments, which SQLite has not")
    return clauses, constraints, notes


def indexes_of(
    source: TableDefinition, notes: list[str]
) -> list[tuple[str, tuple[str, ...], bool]]:
    """The indexes that SQLite can have: name, columns, whether unique."""
    found: list[tuple[str, tuple[str, ...], bool]] = []
    for index in source.indexes:
        plain = index.columns and not index.remark
        if plain and index.constraint is None:
            found.append((index.name, index.columns, index.unique))
        elif not plain and index.constraint != "primary":
            remark = index.remark or "expressions"
            notes.append(f"not carried: the index {index.name!r} ({remark})")
        elif index.constraint == "primary" and index.remark:
            notes.append(f"not carried: {index.remark} of the primary key")
    return found


def _clause(column: ColumnDefinition, kind: Kind, source: TableDefinition, notes: list[str]) -> str:
    if column.generated is not None:
        notes.append(f"not carried: what computes {column.name!r} (the copy has its values)")
    if column.collation is not None:
        notes.append(f"not carried: the collation of {column.name!r}: {column.collation}")
    if column.sequence is not None or column.identity is not None:
        primary = source.primary_key
        numbered = kind in {"int16", "int32", "int64"}
        if primary is None or primary.columns != (column.name,) or not numbered:
            notes.append(f"not carried: the sequence of {column.name!r}")
        return ""  # SQLite numbers an INTEGER PRIMARY KEY by itself
    if column.default is None:
        return ""
    literal = _literal(column.default, kind)
    if literal is None:
        notes.append(f"not carried: the default of {column.name!r}: {column.default}")
        return ""
    return f"DEFAULT {literal}"


def _literal(default: str, kind: Kind) -> str | None:
    """A PostgreSQL default as SQLite's, where it is a constant that is kept the same."""
    text = default.strip("()") if _NUMBER.fullmatch(default.strip("()")) else default
    if text.upper() in {"TRUE", "FALSE"}:
        return "1" if text.upper() == "TRUE" else "0"
    if re.match(r"NULL(?:::|$)", text):
        return "NULL"
    if _NUMBER.fullmatch(text):
        # An exact number is kept as text, in a column for texts.
        return text if kind in _NUMBERS else f"'{text}'" if kind == "numeric" else None
    found = _LITERAL.fullmatch(text)
    if found is None:
        return None
    inner = found[1][1:-1]
    if kind in _NUMBERS:
        return inner if _NUMBER.fullmatch(inner) else None
    if kind in {"text", "uuid", "date", "json", "other", "numeric"}:
        return found[1]
    return None


def _foreign_key(key: ForeignKey, notes: list[str]) -> str:
    actions = _ACTION.findall(key.rest)
    if "DEFERRABLE" in key.rest and "NOT DEFERRABLE" not in key.rest:
        actions.append(
            "DEFERRABLE INITIALLY DEFERRED"
            if "INITIALLY DEFERRED" in key.rest
            else "DEFERRABLE INITIALLY IMMEDIATE"
        )
    if "MATCH FULL" in key.rest or re.search(r"SET (?:NULL|DEFAULT) \(", key.rest):
        notes.append(f"not carried: part of the foreign key {key.name!r}: {key.rest}")
    columns = f" ({quote_all(key.references)})" if key.references else ""
    text = f"FOREIGN KEY ({quote_all(key.columns)}) REFERENCES {quote(key.table)}{columns}"
    return " ".join([text, *actions])


def create_index(name: str, table: str, columns: Sequence[str], *, unique: bool) -> str:
    """The statement that makes a plain index."""
    word = "UNIQUE INDEX" if unique else "INDEX"
    return f"CREATE {word} {quote(name)} ON {quote(table)} ({quote_all(columns)})"
