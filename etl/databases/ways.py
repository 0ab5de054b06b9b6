"""What may go into a PostgreSQL column, and how: decided for types, before the first row is read.

Nothing is bent in silence. Where the types alone tell that every value arrives equal, the text of
the source goes as it is. Where only the value can tell, each is checked: here by Python (see
:mod:`etl.databases.types`), or by the server itself, which refuses a text that is no value, or is
asked whether it gives back the text that it was given. What is left would be bent.
"""

from __future__ import annotations

import re
from decimal import Decimal
from functools import cache
from typing import Final, Literal, TypeAlias

from etl.databases.types import (
    FILES,
    Decoder,
    EnumType,
    JsonText,
    ServerText,
    is_padded,
    unescape,
)
from etl.rows import Kind, Type
from etl.verdict import Fit

Way: TypeAlias = Literal["pass", "convert", "refuse"]

_INTS: Final[dict[Kind, int]] = {"int16": 15, "int32": 31, "int64": 63}
_EXACT_INT_BITS: Final[dict[Kind, int]] = {"float32": 24, "float64": 53}
_DIGITS: Final[dict[Kind, int]] = {"int16": 5, "int32": 10, "int64": 19}
_FLOATS: Final[frozenset[Kind]] = frozenset({"float32", "float64"})
_TIMES: Final[frozenset[Kind]] = frozenset({"time", "timestamp", "timestamptz"})
_NUMBERS: Final[frozenset[Kind]] = frozenset({*_INTS, *_FLOATS, "numeric"})
_TEXT_CARRIES: Final[frozenset[Kind]] = frozenset(
    {"date", "time", "timestamp", "timestamptz", "uuid"}
)

_EXACT = Fit(way="as it is", grade="exact")
_WIDENED = Fit(way="as it is", grade="widened")
_IN_TEXT = Fit(way="as text", grade="widened")
_BY_SERVER = Fit(way="as text", grade="checked")
_ASKED = Fit(way="asked", grade="checked")
_CHECKED = Fit(way="converted", grade="checked")
_CONVERTED = Fit(way="converted", grade="exact")
_REFUSED = Fit(way="converted", grade="refused")


def _bent(example: str, becomes: str) -> Fit:
    return Fit(way="as text", grade="lossy", example=example, becomes=becomes)


_STAMP, _ZONED = "'2024-05-06 12:30:00'", "'2024-05-06 12:30:00+02'"
_LOSSY: dict[tuple[Kind, Kind], Fit] = {
    ("timestamptz", "timestamp"): _bent(_ZONED, "'2024-05-06 10:30:00', without its zone"),
    ("timestamptz", "date"): _bent(_ZONED, "'2024-05-06', the day in UTC"),
    ("timestamptz", "time"): _bent(_ZONED, "'10:30:00', without day and zone"),
    ("timestamp", "timestamptz"): _bent(_STAMP, "'2024-05-06 12:30:00+00', as if it were UTC"),
    ("timestamp", "date"): _bent(_STAMP, "'2024-05-06'"),
    ("timestamp", "time"): _bent(_STAMP, "'12:30:00'"),
    ("date", "timestamptz"): _bent("'2024-05-06'", "'2024-05-06 00:00:00+00', as if it were UTC"),
}

_SPELLED: Final = re.compile(
    r"(?:inet|cidr|regclass"
    r"|macaddr8?|tsvector|tsquery|xml|jsonpath|oid|pg_lsn|bit(?: varying)?(?:\(\d+\))?"
    r"|(?:int4|int8|num|date)(?:multi)?range"
    r"|(?:smallint|integer|bigint|numeric|text|uuid|boolean|date|inet|bytea)(?:\[\])+"
    r"|(?:.*\.)?(?:hstore|ltree|geometry|geography)(?:\(.*\))?)"
)
"""Types whose texts mean one value each, however they are spelled, or are refused.

A cast from text to ``regclass`` looks up a name only, where COPY also reads ``-`` and numbers.
"""


@cache
def fit(source: Type, target: Type) -> Fit:
    """How values of one column get into a PostgreSQL column."""
    if source.dialect == "postgresql":
        return _from_postgres(source, target)
    if target.kind == "interval" and target.name != "interval" and _is_text(source):
        return _ASKED  # it rounds, or leaves fields out
    if not _accepts(source, target):
        return _REFUSED
    if target.kind == "other" and not isinstance(target, EnumType) and not is_citext(target):
        return _BY_SERVER if _SPELLED.fullmatch(target.name) else _ASKED
    if source.dialect != "sqlite":
        return _CHECKED
    same = {
        ("bool", "bool"), ("int64", "int64"), ("float64", "float64"), ("bytes", "bytes"),
    }  # fmt: skip
    if (source.kind, target.kind) in same:
        return _CONVERTED
    if (source.kind, target.kind) == ("int64", "numeric") and target.scale is None:
        return Fit(way="converted", grade="widened")
    return _CHECKED


def way(source: Type, target: Type) -> Way:
    """How values of one column get into a PostgreSQL column of another type.

    ``pass``: PostgreSQL's text of the value goes as it is. ``convert``: through Python, each
    value checked. ``refuse``: there is no exact way; a function must say what is meant.
    """
    found = fit(source, target)
    if found.stops:
        return "refuse"
    if source.dialect != "postgresql" or found.way == "converted":
        return "convert"
    return "pass"


def is_citext(type: Type) -> bool:
    """Whether it is the extension's text without case."""
    return type.name.rpartition(".")[2] == "citext"


def _from_postgres(source: Type, target: Type) -> Fit:
    if source.kind == target.kind:
        return _same_kind(source, target)
    if source.kind in _NUMBERS and target.kind in _NUMBERS:
        return _between_numbers(source, target)
    if (source.kind, target.kind) in _LOSSY:
        return _LOSSY[source.kind, target.kind]
    match source.kind, target.kind:
        case "date", "timestamp":
            return _BY_SERVER  # some years of a date are none of a timestamp
        case "text", "other":
            return _BY_SERVER if isinstance(target, EnumType) or is_citext(target) else _ASKED
        case "text", "json":
            return _CHECKED if target.name == "jsonb" else _BY_SERVER
        case "text", kind if kind in _TEXT_CARRIES or kind in _NUMBERS or kind == "interval":
            return _ASKED
        case (("other" | "uuid" | "json"), "text"):
            # Their text form is the value; a bounded text may be too short for it.
            return _IN_TEXT if _takes_any_text(target) else _CHECKED
        case "other", _ if source.name == "money":
            return _REFUSED  # its text has a sign of currency and commas
        case "other", _:
            return _ASKED if target.kind in {*_NUMBERS, *_TIMES, "interval"} else _REFUSED
        case _:
            return _REFUSED


def _takes_any_text(type: Type) -> bool:
    return type.length is None and not is_padded(type)


def _same_kind(source: Type, target: Type) -> Fit:
    match target.kind:
        case "numeric":
            return _between_numbers(source, target)
        case "text":
            return _between_texts(source, target)
        case "time" | "timestamp" | "timestamptz":
            before, after = digits_of(source), digits_of(target)
            return _CHECKED if before > after else _WIDENED if before < after else _EXACT
        case "interval":
            if target.name == source.name:
                return _EXACT
            return _WIDENED if target.name == "interval" else _ASKED
        case "json":
            if source.name == target.name:
                return _EXACT
            return _CHECKED if target.name == "jsonb" else _IN_TEXT
        case "other":
            if isinstance(source, EnumType) and isinstance(target, EnumType):
                return _EXACT if set(source.labels) <= set(target.labels) else _BY_SERVER
            return _EXACT if source.name == target.name else _ASKED
        case _:
            return _EXACT


def digits_of(type: Type) -> int:
    """Digits of a second that a time keeps."""
    return 6 if type.scale is None else type.scale


def _between_texts(source: Type, target: Type) -> Fit:
    fits = target.length is None or (source.length is not None and source.length <= target.length)
    if is_padded(source) and is_padded(target):
        if not fits:
            return _CHECKED
        return _EXACT if source.length == target.length else _WIDENED
    if is_padded(target):
        return _CHECKED  # spaces at the end would be lost
    if not fits:
        return _CHECKED
    return _EXACT if source.length == target.length and not is_padded(source) else _WIDENED


def _between_numbers(source: Type, target: Type) -> Fit:
    if target.kind in _INTS:
        if source.kind in _INTS:
            if source.kind == target.kind:
                return _EXACT
            return _WIDENED if _INTS[source.kind] < _INTS[target.kind] else _BY_SERVER
        return _BY_SERVER if source.kind == "numeric" and source.scale == 0 else _CHECKED
    if target.kind == "numeric":
        return _into_numeric(source, target)
    if source.kind in _INTS:
        return _WIDENED if _INTS[source.kind] <= _EXACT_INT_BITS[target.kind] else _CHECKED
    if source.kind == "float32":
        return Fit(way="converted", grade="widened")
    return _CHECKED


def _into_numeric(source: Type, target: Type) -> Fit:
    if source.kind in _FLOATS:
        return _CHECKED
    if target.scale is None:
        return _EXACT if source.kind == "numeric" and source.scale is None else _WIDENED
    scale = 0 if source.kind in _INTS else source.scale
    whole = _DIGITS.get(source.kind)
    if source.kind == "numeric" and source.precision is not None and source.scale is not None:
        whole = source.precision - source.scale
    if scale is None or scale > target.scale:
        return _CHECKED
    if (source.precision, source.scale) == (target.precision, target.scale):
        return _EXACT
    fits = whole is not None and target.precision is not None
    fits = fits and whole <= target.precision - target.scale  # type: ignore[operator]
    return _WIDENED if fits else _BY_SERVER  # the server refuses what is too large


_ACCEPTED: dict[Kind, frozenset[Kind]] = {
    "bool": frozenset({"bool"}),
    "int16": frozenset({"int16", "int32", "int64"}),
    "int32": frozenset({"int16", "int32", "int64"}),
    "int64": frozenset({"int16", "int32", "int64"}),
    "float32": _NUMBERS,
    "float64": _NUMBERS,
    "numeric": _NUMBERS,
    "text": frozenset({"text", "other", "uuid"}),
    "bytes": frozenset({"bytes"}),
    "date": frozenset({"date"}),
    "time": frozenset({"time"}),
    "timestamp": frozenset({"timestamp", "date"}),
    "timestamptz": frozenset({"timestamptz"}),
    "interval": frozenset({"interval"}),
    "uuid": frozenset({"uuid"}),
    "json": frozenset({"json"}),
    "other": frozenset({"text", "other"}),
}


def _is_text(source: Type) -> bool:
    """Whether a column may hold texts."""
    return source.kind in {"text", "dynamic"} or source.dialect in FILES


def _accepts(source: Type, target: Type) -> bool:
    """Whether Python values of a kind can be right for a column; each is still checked."""
    if source.kind == "dynamic" or source.kind in _ACCEPTED.get(target.kind, ()):
        return True
    if source.dialect in FILES:
        return True  # a text, whatever all of them look like
    if source.dialect == "python":
        # ``datetime`` says nothing of its zone, and ``str`` may be any JSON value's.
        return (source.kind, target.kind) in {("timestamptz", "timestamp"), ("text", "json")} or (
            source.kind == "numeric" and target.kind in _INTS
        )
    return source.kind == "text" and target.kind in _TEXT_CARRIES


# --- fields that go through Python -----------------------------------------------------------


def reader_for(source: Type, target: Type) -> Decoder | None:
    """From a raw COPY field, which may be NULL, to what is encoded for a column of another type.

    None: the column's own decoder does it. Python's values would lose what the server's text has:
    the years before Christ, double keys of JSON, the digits of a ``real``.
    """
    found = _reader(source, target)
    return None if found is None else lambda field: None if field == r"\N" else found(field)


def _reader(source: Type, target: Type) -> Decoder | None:
    if source.kind == target.kind and target.kind in _TIMES:
        return ServerText
    if target.kind == "json":
        return lambda field: JsonText(unescape(field))
    if source.kind in _FLOATS and target.kind in {"numeric", *_INTS}:
        return _digits_of_float
    if target.kind == "text" and is_padded(source):
        return lambda field: unescape(field.rstrip(" "))
    if source.kind != target.kind and target.kind == "text":
        return unescape
    return None


def _digits_of_float(field: str) -> Decimal | float:
    # The server's text has the fewest digits that mean the number; a zero's sign is no digit.
    return -0.0 if field == "-0" else Decimal(field)
