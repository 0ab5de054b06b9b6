"""What a text of a file means for a column of PostgreSQL: the value, or a text that it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from etl.databases.types import JsonText, Verbatim, numerals
from etl.rows import Kind, Type

_WORDS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
_WHOLE = re.compile(r"[+-]?[0-9]{1,400}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_SPECIAL = {"NaN": "NaN", "Infinity": "inf", "-Infinity": "-inf"}
_BYTES = re.compile(r"\\x(?:[0-9a-fA-F]{2})*")
# The server would take second 60 and hour 24 of a day for the next minute and day.
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]{1,6})?)?"
_DAY = r"[0-9]{4,7}-[0-9]{2}-[0-9]{2}"
_SERVERS: dict[Kind, re.Pattern[str]] = {
    # What the server itself writes and means one thing only, whatever its settings are.
    "date": re.compile(rf"-?infinity|{_DAY}(?: BC)?"),
    "time": re.compile(rf"{_CLOCK}|24:00:00"),
    "timestamp": re.compile(rf"-?infinity|{_DAY}(?:[ T]{_CLOCK})?(?: BC)?"),
    "timestamptz": re.compile(
        rf"-?infinity|{_DAY}[ T]{_CLOCK}(?:Z|[+-][0-9]{{2}}(?::?[0-9]{{2}}){{0,2}})(?: BC)?"
    ),
    "interval": re.compile(
        r"-?infinity|(?=.)(?:[+-]?[0-9]+ years?)?(?: ?[+-]?[0-9]+ mons?)?(?: ?[+-]?[0-9]+ days?)?"
        r"(?: ?[+-]?[0-9]+:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?)?"
    ),
}


def from_text(target: Type) -> Callable[[Sequence[Any]], Sequence[Any]] | None:
    """How a column of a file's texts is meant for a PostgreSQL type; None: as it is.

    A text that does not look like a value of the type stays a text, and the encoder refuses it.
    """
    match target.kind:
        case "bool":
            return _each(lambda text: _WORDS.get(text.lower(), text))
        case "int16" | "int32" | "int64":
            return _each(lambda text: int(text) if _WHOLE.fullmatch(text) else text)
        case "float32" | "float64":
            return _each(_float)
        case "numeric":
            return numerals
        case "bytes":
            return _each(lambda text: bytes.fromhex(text[2:]) if _BYTES.fullmatch(text) else text)
        case "json":
            return _each(JsonText)
        case "date" | "time" | "timestamp" | "timestamptz" | "interval":
            if target.scale is not None or (
                target.kind == "interval" and target.name not in {"", "interval"}
            ):
                return None
            return _servers(_SERVERS[target.kind])
        case _:
            return None


def from_json(target: Type) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """The same for a file of JSON lines, whose texts are values too where JSON is wanted."""
    return _unchanged if target.kind == "json" else from_text(target) or _unchanged


def _unchanged(values: Sequence[Any]) -> Sequence[Any]:
    return values


def _each(read: Callable[[str], Any]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A text's value; a function's own value, which stands beside them, stays."""

    def convert(values: Sequence[Any]) -> Sequence[Any]:
        return [read(value) if value.__class__ is str else value for value in values]

    return convert


def _float(text: str) -> Any:
    if text in _SPECIAL:
        return float(_SPECIAL[text])
    return Decimal(text) if _NUMBER.fullmatch(text) else text


def _servers(form: re.Pattern[str]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    def convert(values: Sequence[Any]) -> Sequence[Any]:
        proven = all(
            value is None or (value.__class__ is str and form.fullmatch(value)) for value in values
        )
        return Verbatim(values) if proven else values

    return convert
