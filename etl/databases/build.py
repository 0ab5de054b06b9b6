"""What it takes to make a user's dataclass of a row, whatever the database's values are."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from enum import Enum
from typing import Any, NoReturn, Protocol, TypeVar, get_origin
from uuid import UUID

from etl.batch import Reject
from etl.errors import ConfigError, DataError, is_about_a_row
from etl.rows import Row, hints_of, strip_optional
from etl.stages import ENTERS_ALL, READ_STEP, reject_of

T = TypeVar("T")
Fields = tuple[Any, ...]


class Misfit(Exception):
    """A value that does not fit; its text says why, without the value."""


def fail(why: str) -> NoReturn:
    """Say why a value does not fit."""
    raise Misfit(why)


_LIKE_UUID = re.compile(r"(?:urn:)?(?:uuid:)?[-{}0-9a-fA-F]+")


def uuid_of(text: str) -> UUID:
    """The UUID that a text is.

    ``UUID`` itself reads past a space, a sign, an underscore or ``0x``: as another UUID.

    Raises:
        ValueError: It is none.
    """
    if _LIKE_UUID.fullmatch(text) is None:
        raise ValueError(text)
    return UUID(text)


def of_enum(kind: type[Enum]) -> Callable[[Any], Any]:
    """From a value to the member of an Enum that has it."""

    def convert(value: Any) -> Any:
        try:
            return kind(value)
        except ValueError:
            fail(f"it is no value of {kind.__name__}")

    return convert


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a dataclass: its class, without its parameters, and whether None fits."""

    name: str
    kind: Any
    nullable: bool


def fields_of(row: type[Any]) -> tuple[list[Field], bool]:
    """The fields of a dataclass, and whether they must be given by name.

    Raises:
        ConfigError: One of them cannot be given.
    """
    hints = hints_of(row)
    fields = [field for field in dataclass_fields(row) if field.init]
    if len(fields) < len(dataclass_fields(row)):
        raise ConfigError(f"{row.__name__}: a field with init=False cannot be read from a row")
    found: list[Field] = []
    for field in fields:
        hint, nullable = strip_optional(hints[field.name])
        found.append(Field(field.name, get_origin(hint) or hint, nullable))
    return found, any(field.kw_only for field in fields)


class Build(Protocol):
    """Makes instances of a dataclass from rows.

    Raises:
        DataError: One does not fit; it names the column and the row's key.
    """

    def __call__(self, rows: list[Fields], /) -> list[Any]: ...


class MakesBuild(Protocol):
    """Makes a :class:`Build`: the class that a dialect has for that."""

    def __call__(
        self, row: type[Any], *, names: Sequence[str], key: Sequence[int], label: str
    ) -> Build: ...


def misfit(row: type[Any], column: str, key: Sequence[str], label: str, why: str) -> DataError:
    """The error for a value that does not fit its field.

    Args:
        key: What identifies the row, part by part.
    """
    which = f"the row with {', '.join(key)}" if key else "a row"
    return DataError(
        f"{label}: column {column!r} of {which} does not fit {row.__name__}.{column}: {why}",
        column=column,
        reason=why,
    )


def sift(
    build: Callable[[list[T]], list[Any]],
    rows: list[T],
    as_read: Callable[[T], Row],
    *,
    sets_aside: bool,
) -> tuple[list[Any], tuple[Reject, ...]]:
    """The dataclass's instances, and the rows that it cannot hold.

    Args:
        as_read: From a row of the database's to the row as it is set aside.
        sets_aside: Rows may be; else the first that does not fit ends the read.
    """
    try:
        return build(rows), ()
    except Exception as error:
        if not sets_aside or not is_about_a_row(error):
            raise
    items: list[Any] = []
    rejects: list[Reject] = []
    for number, row in enumerate(rows):
        try:
            items += build([row])
        except Exception as error:
            if not is_about_a_row(error):
                raise
            rejects.append(reject_of(error, as_read(row), number, READ_STEP, ENTERS_ALL))
    return items, tuple(rejects)


def build_row(make: MakesBuild, row: type[Any], fields: Row) -> Any:
    """See :meth:`etl.databases.database.Driver.build_row`."""
    names = [field.name for field in dataclass_fields(row)]
    missing = [name for name in names if name not in fields]
    if missing:
        raise DataError(
            f"{row.__name__} has fields that the stored row lacks: {', '.join(missing)}",
            reason=f"{row.__name__} has a field that the stored row lacks",
        )
    build = make(row, names=names, key=(), label="a stored row")
    return build([tuple(fields[name] for name in names)])[0]
