"""The columns of a file that is written: from what is known of the rows, or from their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass, replace
from typing import Any, cast

from etl.databases.sqlite.schema import declared_kind
from etl.databases.types import declare_postgres
from etl.errors import SchemaMismatchError
from etl.rows import Column, Kind, Row, Shape, Type, kind_of_class, shape_of

_NUMBERS: tuple[Kind, ...] = ("int64", "float64", "numeric")


def columns_of_shape(shape: Shape, label: str) -> tuple[Column, ...]:
    """The columns of a file for rows of a shape.

    Raises:
        SchemaMismatchError: None, or one whose values no one kind holds.
    """
    if not shape.columns:
        raise SchemaMismatchError(f"{label}: a file needs a column. Nothing was written")
    return tuple(_typed(column, label) for column in shape.columns)


def columns_of_rows(
    rows: Sequence[Any], names: Sequence[str], known: Sequence[Column] | None, label: str
) -> tuple[Column, ...]:
    """The columns of a file for rows that a function made, as far as these rows tell.

    Args:
        known: Those of a source, where the rows still have them.
    """
    first: Any = rows[0]
    if is_dataclass(first):
        return columns_of_shape(shape_of(cast("type[Any]", type(first))), label)
    found = {column.name: column for column in known or ()}
    columns: list[Column] = []
    for place, name in enumerate(names):
        column = found.get(name)
        if column is None or column.type.kind == "dynamic":
            made = Type(kind=_kind_of(_values(rows, place, name)), name="", dialect="python")
            column = Column(name=name, type=made)
        columns.append(_typed(column, label))
    return tuple(columns)


def _typed(column: Column, label: str) -> Column:
    """The column as PostgreSQL would have it: the lines that are written are its COPY text."""
    type_ = column.type
    if type_.kind == "dynamic":
        raise SchemaMismatchError(
            f"{label}: column {column.name!r}"
            + (f" ({type_.name})" if type_.name else "")
            + " holds values of several kinds in the source (numbers, texts, blobs), which a file"
            " cannot tell apart. Nothing was written; clean the values, or convert them in a"
            " function and give the rows a dataclass"
        )
    if type_.dialect == "sqlite" and type_.name:
        _refuse_other_class(column, label)
    if type_.dialect != "postgresql":
        # A file keeps JSON as it is, of which a jsonb would refuse what it changes.
        name = "json" if type_.kind == "json" else declare_postgres(type_)
        made = Type(kind=type_.kind, name=name, dialect="postgresql")
        if type_.kind == "numeric":  # its digits tell which decimal of a Parquet file it is
            made = replace(made, precision=type_.precision, scale=type_.scale)
        type_ = made
    return replace(column, type=type_, nullable=True)


def _refuse_other_class(column: Column, label: str) -> None:
    """Bytes are written as text, and only a column that is declared for bytes takes them back."""
    declared = declared_kind(column.type.name)
    if (column.type.kind == "bytes") == (declared == "bytes"):
        return
    if "bytes" in {column.type.kind, declared} and column.type.kind in {"bytes", "text"}:
        what, wanted = ("blobs", "BLOB") if column.type.kind == "bytes" else ("texts", "TEXT")
        raise SchemaMismatchError(
            f"{label}: column {column.name!r} ({column.type.name}) holds {what}, and a file would"
            f" not give them back to a column of that type. Nothing was written; declare it"
            f" {wanted}, or convert it in a function"
        )


def _values(rows: Sequence[Any], place: int, name: str) -> list[Any]:
    if isinstance(rows[0], Row):
        return [_raw(row, name) for row in rows]
    if isinstance(rows[0], Mapping):
        return [cast("Mapping[str, Any]", row).get(name) for row in rows]
    return [row[place] for row in rows]  # a NamedTuple


def _raw(row: Row, name: str) -> Any:
    if row.changes is not None and name in row.changes:
        return row.changes[name]
    return row.fields[row.layout.index[name]]


def _kind_of(values: Sequence[Any]) -> Kind:
    kinds: set[Kind] = {kind_of_class(kind) for kind in set(map(type, values)) - {type(None)}}
    if len(kinds) > 1 and kinds <= {*_NUMBERS}:
        return "numeric" if "numeric" in kinds else "float64"
    # Of several, one: the values of the others are refused when they are written.
    return min(kinds) if kinds else "text"
