"""The positions of a keyset read: JSON that keeps the class of each SQLite value.

SQLite orders values by class first, so a position must give back the very value. Integers and
texts stand for themselves. Where a key holds a real or a blob, the position ends with one more
text that names the class of each value before it: ``i`` integer, ``t`` text, ``r`` real (as a
hexadecimal float, exact), ``b`` blob (as hexadecimal digits).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etl.batch import Position
from etl.errors import ConfigError

_CLASSES = {int: "i", str: "t", float: "r", bytes: "b"}


def to_position(values: Sequence[Any]) -> Position:
    """The position of the row with these key values; none of them is NULL."""
    if all(type(value) is int or type(value) is str for value in values):
        return tuple(values)
    classes = "".join(_CLASSES[type(value)] for value in values)
    return (*map(_encode, values), classes)


def _encode(value: Any) -> int | str:
    if isinstance(value, float):
        return value.hex()
    return value.hex() if isinstance(value, bytes) else value


def from_position(position: Position, count: int, *, where: str) -> tuple[Any, ...]:
    """The key values of a position.

    Raises:
        ConfigError: It is not a position of this read.
    """
    try:
        if len(position) == count and all(type(value) in {int, str} for value in position):
            return position
        if len(position) == count + 1 and len(position[-1]) == count:
            return tuple(map(_decode, position[:-1], position[-1]))
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise ConfigError(
        f"{where}: the saved position does not belong to this read, which has another key."
        " Nothing was moved; reset the state to read from the beginning"
    )


def _decode(value: Any, kind: str) -> Any:
    match kind:
        case "r":
            return float.fromhex(value)
        case "b":
            return bytes.fromhex(value)
        case "i" if type(value) is int:
            return value
        case "t" if type(value) is str:
            return value
        case _:
            raise ValueError(kind)
