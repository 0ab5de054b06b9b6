"""From SQLite's values to the fields of a user's dataclass, a page at a time.

Works on whole columns: a few passes in C check the classes of the values, and Python looks at
single values only in columns that need converting.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, TypeAlias
from uuid import UUID

from etl.databases.build import Fields, Misfit, fail, fields_of, misfit, of_enum, uuid_of
from etl.errors import DataError

_Convert: TypeAlias = Callable[[Any], Any]
_NONE = type(None)


def _int(value: Any) -> int:
    return value if type(value) is int else fail(f"it is {_class(value)}, not an integer")


def _float(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is not int:
        fail(f"it is {_class(value)}, not a number")
    number = float(value)
    return number if number == value else fail("the integer has more digits than a float keeps")


def _str(value: Any) -> str:
    return value if type(value) is str else fail(f"it is {_class(value)}, not text")


def _bytes(value: Any) -> bytes:
    return value if type(value) is bytes else fail(f"it is {_class(value)}, not a blob")


def _bool(value: Any) -> bool:
    return value == 1 if type(value) is int and value in {0, 1} else fail("it is not 0 or 1")


_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)


def _decimal(value: Any) -> Decimal:
    if type(value) is int:
        return Decimal(value)
    if type(value) is float:
        return Decimal(repr(value))  # the shortest text that means this number
    if type(value) is str and _NUMBER.fullmatch(value):
        try:
            return Decimal(value.strip())
        except InvalidOperation:
            fail("it has an exponent that Decimal cannot hold")
    fail("it is not a number, and not the text of one")


def _read(parse: Callable[[str], Any], what: str) -> _Convert:
    def convert(value: Any) -> Any:
        try:
            return parse(_str(value))
        except ValueError:
            fail(f"the text is not {what}")

    return convert


def _datetime(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


_DURATION = re.compile(r"P(-?\d+)DT(\d+)\.(\d{6})S", re.ASCII)


def _timedelta(text: str) -> timedelta:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(text)
    days, seconds, micros = map(int, match.groups())
    try:
        return timedelta(days=days, seconds=seconds, microseconds=micros)
    except OverflowError:
        raise ValueError(text) from None


def duration_text(value: timedelta) -> str:
    """A timedelta as exact text, ISO 8601: days (may be negative), then seconds of a day."""
    return f"P{value.days}DT{value.seconds}.{value.microseconds:06d}S"


def _json(kind: type[Any]) -> _Convert:
    def convert(value: Any) -> Any:
        try:
            found = json.loads(_str(value))
        except (ValueError, RecursionError):
            fail("the text is not JSON")
        return found if isinstance(found, kind) else fail(f"the JSON is not a {kind.__name__}")

    return convert


_PARSE: Mapping[Any, tuple[Callable[[str], Any], str]] = {
    date: (date.fromisoformat, "a date in ISO form"),
    datetime: (_datetime, "a time stamp in ISO form"),
    time: (time.fromisoformat, "a time in ISO form"),
    timedelta: (_timedelta, "a duration like P1DT3600.000000S"),
    UUID: (uuid_of, "a UUID"),
}
"""From a text, where a ``ValueError`` says that it is none."""

_CONVERT: Mapping[Any, _Convert] = {
    int: _int,
    float: _float,
    str: _str,
    bytes: _bytes,
    bool: _bool,
    Decimal: _decimal,
    **{kind: _read(parse, what) for kind, (parse, what) in _PARSE.items()},
    dict: _json(dict),
    list: _json(list),
}


def _class(value: Any) -> str:
    names: dict[Any, str] = {
        _NONE: "NULL",
        int: "an integer",
        float: "a real",
        str: "text",
        bytes: "a blob",
    }
    return names.get(type(value), type(value).__name__)


class Builder:
    """Makes instances of a dataclass from pages of rows.

    An ISO text with an offset or ``Z`` becomes an aware ``datetime``. One without is taken as
    UTC, as SQLite's own date functions do, and becomes aware too.

    Args:
        row: The dataclass; its fields are the first columns of the rows, in order.
        names: The columns of the rows; those after the fields are keys only.
        key: Which columns identify a row, for messages.
    """

    def __init__(
        self, row: type[Any], *, names: Sequence[str], key: Sequence[int], label: str
    ) -> None:
        self._row = row
        self._names = names
        self._key = key
        self._label = label
        fields, by_name = fields_of(row)
        self._columns: list[tuple[type[Any] | None, _Convert, bool]] = []
        self._parse: list[Callable[[str], Any] | None] = []
        for field in fields:
            convert = _CONVERT.get(field.kind) or of_enum(field.kind)
            # A column whose values all have this class goes as it is.
            as_is = field.kind if field.kind in {int, float, str, bytes} else None
            self._columns.append((as_is, convert, field.nullable))
            self._parse.append(_PARSE[field.kind][0] if field.kind in _PARSE else None)
        self._by_name = [field.name for field in fields] if by_name else None

    def __call__(self, rows: list[Fields]) -> list[Any]:
        """The instances. Raises DataError, naming the column and the row's key."""
        if not rows:
            return []
        columns: list[Sequence[Any]] = []
        for number, values in enumerate(zip(*rows, strict=True)):
            if number == len(self._columns):
                break
            columns.append(self._convert(number, values, rows))
        if self._by_name is not None:
            names = self._by_name
            make = self._row
            return [
                make(**dict(zip(names, values, strict=True)))
                for values in zip(*columns, strict=True)
            ]
        return list(map(self._row, *columns))

    def _convert(self, number: int, values: Sequence[Any], rows: list[Fields]) -> Sequence[Any]:
        as_is, convert, nullable = self._columns[number]
        found = set(map(type, values))
        if found == {as_is} or (nullable and found <= {as_is, _NONE}):
            return values
        try:
            parse = self._parse[number]
            if parse is not None and found == {str}:
                return list(map(parse, values))
            if _NONE not in found:
                return list(map(convert, values))
            if nullable:
                return [None if value is None else convert(value) for value in values]
        except (Misfit, ValueError):
            pass
        raise self._refusal(number, rows)

    def _refusal(self, number: int, rows: list[Fields]) -> DataError:
        """The error for the first row that does not fit."""
        _, convert, nullable = self._columns[number]
        name = self._names[number]
        why, bad = "it does not fit", rows[0]
        for bad in rows:
            value = bad[number]
            try:
                if value is not None or not nullable:
                    convert(value)
            except Misfit as error:
                why = str(error)
                break
        key = [f"{self._names[i]}={bad[i]!r}" for i in self._key]
        return misfit(self._row, name, key, self._label, why)
