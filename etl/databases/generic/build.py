"""From a generic dialect's values to Python's: decoders of a field, and a user's dataclass."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from etl.databases.build import Misfit, fail, fields_of, misfit, of_enum, uuid_of
from etl.databases.types import Decoder, same
from etl.errors import DataError
from etl.rows import Column, Kind

_LONG_TIME = re.compile(r"(-?)(\d{2,3}):(\d\d):(\d\d)(?:\.(\d{1,6}))?", re.ASCII)


def _duration(text: str) -> timedelta:
    found = _LONG_TIME.fullmatch(text)
    if found is None:
        raise ValueError(text)
    sign, hours, minutes, seconds, fraction = found.groups()
    span = timedelta(
        hours=int(hours),
        minutes=int(minutes),
        seconds=int(seconds),
        microseconds=int((fraction or "").ljust(6, "0")),
    )
    return -span if sign else span


def _of_time(text: str) -> time | timedelta:
    """A time of day; what is none (838 hours) is a duration."""
    span = _duration(text)
    return time.fromisoformat(text) if timedelta(0) <= span < timedelta(days=1) else span


_READERS: Mapping[Kind, tuple[Callable[[str], Any], str]] = {
    "date": (date.fromisoformat, "a date that Python cannot hold (a zero date?)"),
    "timestamp": (datetime.fromisoformat, "a time stamp that Python cannot hold (a zero date?)"),
    "timestamptz": (datetime.fromisoformat, "a time stamp that Python cannot hold (a zero date?)"),
    "time": (_of_time, "a time that Python cannot hold"),
    "uuid": (UUID, "no UUID"),
    "json": (lambda text: json.loads(text, parse_float=Decimal), "no JSON"),
}


def decoder(column: Column) -> Decoder:
    """From a raw value to Python's; None stays None.

    Raises:
        DataError: By the decoder: Python cannot hold the value. It names the column.
    """
    kind, name = column.type.kind, column.name
    if kind == "bool" or (kind == "dynamic" and column.type.name.lower() == "tinyint(1)"):
        return _flag
    if kind == "numeric" and column.type.scale == 0 and column.type.name.startswith("bigint"):
        return lambda value: int(value) if isinstance(value, Decimal) else value
    if kind == "dynamic":
        return lambda value: int(value) if isinstance(value, Decimal) else value
    found = _READERS.get(kind)
    if found is None:
        return same
    read, what = found

    def decode(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return read(value)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"column {name!r} ({column.type.name}) holds {what}; leave the column untouched and"
                " it is copied as it is, or turn it into text in the source",
                column=name,
                reason=f"it is {what}",
            ) from error

    return decode


def _flag(value: Any) -> Any:
    return bool(value) if isinstance(value, int) and value in {0, 1} else value


def _only(*kinds: type[Any]) -> Callable[[Any], Any]:
    wanted = " or ".join(kind.__name__ for kind in kinds)

    def convert(value: Any) -> Any:
        if any(type(value) is kind for kind in kinds):
            return value
        fail(f"it is {type(value).__name__}, not {wanted}")

    return convert


def _int(value: Any) -> int:
    if type(value) is bool or not isinstance(value, int | Decimal) or value != int(value):
        fail(f"it is {type(value).__name__}, not an integer")
    return int(value)


def _float(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is not int or float(value) != value:
        fail("it is no number that a float keeps")
    return float(value)


def _decimal(value: Any) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        fail(f"it is {type(value).__name__}, not a number")
    return Decimal(repr(value)) if isinstance(value, float) else Decimal(value)


def _bool(value: Any) -> bool:
    return bool(value) if value in (0, 1) else fail("it is not 0 or 1")


def _parsed(kind: type[Any], read: Callable[[str], Any], what: str) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if type(value) is kind:
            return value
        if not isinstance(value, str):
            fail(f"it is {type(value).__name__}, not {what}")
        try:
            found = read(value)
        except (ValueError, RecursionError):
            fail(f"the text is not {what}")
        return found if isinstance(found, kind) else fail(f"it is not {what}")

    return convert


_CONVERT: Mapping[Any, Callable[[Any], Any]] = {
    int: _int,
    float: _float,
    str: _only(str),
    bytes: _only(bytes),
    bool: _bool,
    Decimal: _decimal,
    date: _parsed(date, date.fromisoformat, "a date"),
    datetime: _parsed(datetime, datetime.fromisoformat, "a time stamp"),
    time: _parsed(time, _of_time, "a time of day"),
    timedelta: _parsed(timedelta, _duration, "a duration"),
    UUID: _parsed(UUID, uuid_of, "a UUID"),
    dict: _parsed(dict, json.loads, "a JSON object"),
    list: _parsed(list, json.loads, "a JSON array"),
}


class Builder:
    """Makes instances of a dataclass from rows of raw values.

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
        fields, self._by_name = fields_of(row)
        self._fields = [field.name for field in fields]
        self._columns = [
            (_CONVERT.get(field.kind) or of_enum(field.kind), field.nullable) for field in fields
        ]

    def __call__(self, rows: Sequence[Sequence[Any]]) -> list[Any]:
        """The instances. Raises DataError, naming the column and the row's key."""
        return [self._one(row) for row in rows]

    def _one(self, row: Sequence[Any]) -> Any:
        values: list[Any] = []
        for number, (convert, nullable) in enumerate(self._columns):
            value = row[number]
            try:
                if value is None:
                    values.append(None if nullable else fail("it is NULL"))
                else:
                    values.append(convert(value))
            except (Misfit, ArithmeticError) as error:
                key = [f"{self._names[i]}={row[i]!r}" for i in self._key]
                name = self._names[number]
                raise misfit(self._row, name, key, self._label, str(error)) from None
        if self._by_name:
            return self._row(**dict(zip(self._fields, values, strict=True)))
        return self._row(*values)
