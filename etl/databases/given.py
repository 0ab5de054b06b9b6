"""Rows as a sink is given them: which columns they bring, and what they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from typing import Any, cast

from etl.errors import SchemaMismatchError
from etl.rows import Frames, Layout, Row, TextRows, ValueRows


def kind_of(row: object) -> type[Any]:
    """A row's class."""
    return type(row)


def layout_of(rows: Sequence[Any]) -> Layout | None:
    """The layout of rows that came from a database; None for a function's own."""
    if isinstance(rows, TextRows | ValueRows | Frames):
        return rows.layout
    return rows[0].layout if isinstance(rows[0], Row) else None


def names_of(rows: Sequence[Any], label: str) -> tuple[str, ...]:
    """The column names that rows bring.

    Raises:
        SchemaMismatchError: Rows without names: plain tuples, numbers.
    """
    layout = layout_of(rows)
    if layout is not None:
        return layout.names
    kind = kind_of(rows[0])
    if is_dataclass(kind):
        return field_names(kind)
    if names := tuple_names(kind):
        return names
    if issubclass(kind, Mapping):
        names = tuple(cast("Mapping[str, Any]", rows[0]))
        if all(type(name) is str for name in names):
            return names
    raise SchemaMismatchError(
        f"{label} got a row of type {kind.__name__}, which does not name its columns."
        " Nothing of this batch was written; return a dataclass, a dict, a NamedTuple or the row"
        " itself"
    )


def field_names(kind: type[Any]) -> tuple[str, ...]:
    """The fields of a dataclass."""
    return tuple(field.name for field in dataclass_fields(kind))


def tuple_names(kind: type[Any]) -> tuple[str, ...]:
    """The names of a NamedTuple; none for anything else."""
    if not issubclass(kind, tuple):
        return ()
    return cast("tuple[str, ...]", getattr(cast("Any", kind), "_fields", ()))
