"""The keys of a read: positions that keep their values exactly, and how SQL compares them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from etl.batch import Position
from etl.databases.generic.table import TableColumn
from etl.errors import ConfigError, DataError


def to_position(values: Sequence[Any], where: str) -> Position:
    """The position of the row with these key values.

    Integers and texts stand for themselves; any other value is an array of its class and its text.

    Raises:
        DataError: NULL, which has no place in an order.
    """
    if all(type(value) is int or type(value) is str for value in values):
        return tuple(values)
    return tuple(_encode(value, where) for value in values)


def _encode(value: Any, where: str) -> Any:
    if value is None:
        raise DataError(f"{where}: the key is NULL in a row; it orders the read")
    if type(value) is int or type(value) is str:
        return value
    for name, (kind, write, _) in _FORMS.items():
        if isinstance(value, kind):
            return [name, write(value)]
    raise DataError(f"{where}: a key of class {type(value).__name__} cannot be kept as a position")


_FORMS: Mapping[str, tuple[type[Any], Callable[[Any], str], Callable[[str], Any]]] = {
    "bool": (bool, str, lambda text: text == "True"),
    "decimal": (Decimal, str, Decimal),
    "float": (float, float.hex, float.fromhex),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "uuid": (UUID, str, UUID),
    "datetime": (datetime, datetime.isoformat, datetime.fromisoformat),
    "date": (date, date.isoformat, date.fromisoformat),
    "time": (time, time.isoformat, time.fromisoformat),
}


def from_position(
    position: Position, columns: Sequence[TableColumn], where: str
) -> tuple[Any, ...]:
    """The key values of a position.

    Raises:
        ConfigError: It is not a position of this read.
    """
    try:
        if len(position) == len(columns):
            return tuple(map(_decode, position))
    except (ValueError, TypeError, KeyError, ArithmeticError):
        pass
    raise ConfigError(
        f"{where}: the saved position does not belong to this read, which has another key."
        " Nothing was moved; reset the state to read from the beginning"
    )


def _decode(value: Any) -> Any:
    if type(value) is int or type(value) is str:
        return value
    name, text = value
    return _FORMS[name][2](text)


def beyond(terms: Sequence[str], marks: Sequence[str], operator: str) -> str:
    """Rows after a key, or (``<``) up to and with it.

    Written out, because servers find no index for a comparison of whole rows.
    """
    ors: list[str] = []
    for at in range(len(terms)):
        same_before = [f"{terms[i]} = {marks[i]}" for i in range(at)]
        is_last = at == len(terms) - 1
        sign = "<=" if operator == "<" and is_last else operator
        ors.append("(" + " AND ".join([*same_before, f"{terms[at]} {sign} {marks[at]}"]) + ")")
    text = " OR ".join(ors)
    if len(terms) == 1:
        return text
    # The first column alone bounds the range of the index.
    return f"({terms[0]} {operator}= {marks[0]} AND ({text}))"
