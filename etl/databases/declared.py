"""Steps that are declared instead of programmed, so that the source database can do them.

``where``, ``select``, ``rename`` and ``cast`` become part of the source's SELECT: no row that they
drop and no column that they leave out ever reaches Python.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from etl.databases.sql import literal, quote
from etl.errors import ConfigError, SchemaMismatchError


@dataclass(frozen=True, slots=True)
class Where:
    """Keep the rows for which a SQL condition over the table's own columns is true."""

    condition: str
    equal: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        same = (f"{name} = {_shown(value)}" for name, value in self.equal)
        return "where " + " and ".join((*([self.condition] if self.condition else []), *same))


@dataclass(frozen=True, slots=True)
class Select:
    """Keep some columns, and make new ones from SQL expressions over the table's own columns."""

    columns: tuple[str, ...]
    expressions: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        made = (f"{name} = {sql}" for name, sql in self.expressions)
        return "select " + ", ".join((*self.columns, *made))


@dataclass(frozen=True, slots=True)
class Rename:
    """Give columns other names: pairs of the new and the present one."""

    names: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return "rename " + ", ".join(f"{old} to {new}" for new, old in self.names)


@dataclass(frozen=True, slots=True)
class Cast:
    """Turn columns into other types of the source database."""

    types: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return "cast " + ", ".join(f"{name} to {kind}" for name, kind in self.types)


Declared: TypeAlias = Where | Select | Rename | Cast


@dataclass(frozen=True, slots=True)
class Output:
    """One column of the result.

    Attributes:
        sql: What makes it.
        column: The column of the table that it is, unchanged; None for anything else.
    """

    name: str
    sql: str
    column: str | None


@dataclass(frozen=True, slots=True)
class Projection:
    """What declared steps make of a table or query: the columns, the conditions.

    Attributes:
        hidden: Columns of the order that the result lacks, under names of our own.
        order: What each column of the order is called in the result.
        quote: How the dialect spells a name.
    """

    outputs: tuple[Output, ...]
    hidden: tuple[Output, ...]
    order: Mapping[str, str]
    conditions: tuple[str, ...]
    quote: Callable[[str], str] = quote

    def sql(self, origin: str) -> str:
        """The SELECT over what stands after FROM."""
        wanted = ", ".join(f"{one.sql} AS {self.quote(one.name)}" for one in self.all)
        text = f"SELECT {wanted} FROM {origin}"  # noqa: S608  quoted names and the user's own SQL
        if self.conditions:
            # A line end closes a comment at the end of a condition.
            text += " WHERE " + " AND ".join(f"({one}\n)" for one in self.conditions)
        return text

    @property
    def all(self) -> tuple[Output, ...]:
        """The result's columns, then the hidden ones."""
        return (*self.outputs, *self.hidden)


def project(
    steps: Sequence[Declared],
    columns: Sequence[str],
    order: Sequence[str],
    label: str,
    *,
    quote: Callable[[str], str] = quote,
    literal: Callable[[object], str] = literal,
) -> Projection:
    """Apply declared steps, in order, to the columns of a table or query.

    Args:
        order: Columns that order the read; they stay readable whatever is selected.
        quote: How the dialect spells a name.
        literal: How it spells a constant.

    Raises:
        SchemaMismatchError: A step names a column that is not there.
        ConfigError: Two columns of the result have one name.
    """
    outputs = [Output(name, quote(name), name) for name in columns]
    conditions: list[str] = []
    for step in steps:
        match step:
            case Where(condition, equal):
                conditions += [condition] if condition else []
                for name, value in equal:
                    _need(name, columns, label, "where()")
                    conditions.append(
                        f"{quote(name)} IS NULL"
                        if value is None
                        else f"{quote(name)} = {literal(value)}"
                    )
            case Select(chosen, expressions):
                by_name = {one.name: one for one in outputs}
                for name in chosen:
                    _need(name, tuple(by_name), label, "select()")
                outputs = [by_name[name] for name in chosen]
                outputs += [Output(name, f"({sql}\n)", None) for name, sql in expressions]
            case Rename(pairs):
                new_of = {old: new for new, old in pairs}
                for old in new_of:
                    _need(old, [one.name for one in outputs], label, "rename()")
                outputs = [replace(one, name=new_of.get(one.name, one.name)) for one in outputs]
            case Cast(types):
                kind_of = dict(types)
                for name in kind_of:
                    _need(name, [one.name for one in outputs], label, "cast()")
                outputs = [
                    Output(one.name, f"CAST({one.sql} AS {kind_of[one.name]}\n)", None)
                    if one.name in kind_of
                    else one
                    for one in outputs
                ]
    names = [one.name for one in outputs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(
            f"{label}: two columns of the result are called {twice!r}; give one of them another"
            " name. Nothing was moved"
        )
    called = {one.column: one.name for one in outputs if one.column is not None}
    hidden = tuple(
        Output(_free(f"etl_order_{i}", names), quote(name), name)
        for i, name in enumerate(order)
        if name not in called
    )
    called.update({one.column: one.name for one in hidden if one.column is not None})
    return Projection(
        outputs=tuple(outputs),
        hidden=hidden,
        order={name: called[name] for name in order},
        conditions=tuple(conditions),
        quote=quote,
    )


def _need(name: str, columns: Sequence[str], label: str, step: str) -> None:
    if name not in columns:
        raise SchemaMismatchError(
            f"{label}: {step} names the column {name!r}, which is not there; there are"
            f" {', '.join(columns)}. Nothing was moved"
        )


def _shown(value: object) -> str:
    return "NULL" if value is None else literal(value)


def _free(name: str, taken: Sequence[str]) -> str:
    while name in taken:
        name += "_"
    return name
