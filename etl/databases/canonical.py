"""The form in which two databases compare a column: what the copy would store is equal.

Two columns agree on a form; each dialect then knows how to bring its values into it. Between
columns of one type the form keeps everything that the database holds as different: ``1.0`` and
``1.00`` of a ``numeric``, the spaces at the end of a text, the sign of a zero. Where the types
differ, the form is that of the copy's result: 1.50 in a text column of SQLite is not 1.5, but 1.5
in a column ``numeric(9,2)`` of PostgreSQL is 1.50.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, TypeAlias, cast

from etl.databases.types import is_padded
from etl.databases.ways import way
from etl.rows import Column, Kind, Type

Form: TypeAlias = Literal[
    "plain",  # the database's text, without tabs and backslashes
    "text",  # the database's text
    "padded",  # a text without the spaces at its end: character(n)
    "number",  # a number's digits, without zeros at the end
    "wide",  # a number as double precision, in PostgreSQL's text
    "double",  # the eight bytes of a double precision
    "unsigned",  # the same, where SQLite drops the sign of a zero
    "exact",  # those of the number that a real stands for; no sign of a zero
    "single",  # the four bytes of a real
    "integer",  # SQLite's integers
    "bool",  # SQLite's 0 and 1
    "flag",  # t and f, where SQLite has texts
    "bytes",  # a hash of them
    "instant",  # a timestamptz as etl writes it into SQLite
    "date",  # dates and times that SQLite has as texts of any ISO form
    "time",
    "timestamp",
    "timestamptz",
    "uuid",
    "jsonb",
    "value",  # SQLite's own values, class and all
    "loose",  # SQLite's values in columns of different affinity
]

ESCAPED: frozenset[Form] = frozenset({"text", "padded", "jsonb", "value", "loose"})
"""Forms whose text may hold a tab or a backslash."""

ODD = "\0"
"""Begins the text of a value that the other side cannot have: no text of PostgreSQL holds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A table as one side has it.

    Attributes:
        name: As it was asked for.
        label: For messages.
        affinities: SQLite's affinity of each column, by name; empty for the others.
    """

    name: str
    label: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    affinities: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Two columns that are compared, and in which form."""

    names: tuple[str, str]
    form: Form


_PLAIN: frozenset[Kind] = frozenset(
    {
        *("bool", "int16", "int32", "int64", "float32", "float64", "numeric", "date", "time"),
        *("timestamp", "timestamptz", "interval", "uuid"),
    }
)
_INTS: frozenset[Kind] = frozenset({"int16", "int32", "int64"})
_FLOATS: frozenset[Kind] = frozenset({"float32", "float64"})
_MOMENTS: dict[Kind, Form] = {
    "date": "date",
    "time": "time",
    "timestamp": "timestamp",
    "timestamptz": "timestamptz",
}


def form_of(source: Described, target: Described, names: tuple[str, str]) -> Form | None:
    """The form for a pair of columns; None where no copy gets one into the other exactly."""
    one = next(c.type for c in source.columns if c.name == names[0])
    other = next(c.type for c in target.columns if c.name == names[1])
    match one.dialect, other.dialect:
        case ("mysql", _) | (_, "mysql"):
            return _with_mysql(one, other)
        case "sqlite", "sqlite":
            same = source.affinities[names[0]] == target.affinities[names[1]]
            return "value" if same else "loose"
        case "sqlite", _:
            return _from_sqlite(other) if way(one, other) != "refuse" else None
        case _, "sqlite":
            return _to_sqlite(one, target.affinities[names[1]])
        case _:
            return _between_postgres(one, other) if way(one, other) != "refuse" else None


def _between_postgres(one: Type, other: Type) -> Form:
    kinds = {one.kind, other.kind}
    if one.kind == "bytes":
        return "bytes"
    if one.name == other.name and one.name.startswith("character("):
        return "padded"  # SQL_ASCII pads to as many bytes, the other encodings to characters
    if one.name == other.name or kinds <= _INTS:
        return "plain" if one.kind in _PLAIN else "text"
    if kinds <= {"numeric", *_INTS}:
        return "number"
    if kinds & _FLOATS:
        if other.kind == "float32" and one.kind == "float64":
            return "single"
        if kinds == {"float32", "numeric"}:
            return "single"  # the number that the shortest digits of a real mean
        return "wide" if len(kinds) > 1 else "plain"
    if kinds == {"date", "timestamp"}:
        return "timestamp"
    if other.name == "jsonb":
        return "jsonb"
    if kinds == {"text"} and (is_padded(one) or is_padded(other)):
        return "padded"
    return "plain" if len(kinds) == 1 and one.kind in _PLAIN else "text"


def _to_sqlite(source: Type, affinity: str) -> Form:
    keeps_text = affinity in {"text", "blob"}
    match source.kind:
        case "bytes":
            return "bytes"
        case "bool":
            return "flag" if affinity == "text" else "bool"
        case "int16" | "int32" | "int64":
            return "plain" if affinity == "text" else "integer"
        case "timestamptz":
            return "instant"
        case "float32" | "float64" if affinity != "text":
            # SQLite keeps a zero as an integer, but where the column has no affinity.
            return "double" if affinity == "blob" else "unsigned"
        case "numeric" if not keeps_text:
            return "number"
        case _:
            return "plain" if source.kind in _PLAIN else "text"


def _from_sqlite(target: Type) -> Form:
    match target.kind:
        case "bytes" | "bool" | "uuid":
            return target.kind
        case "int16" | "int32" | "int64":
            return "integer"
        case "float32":
            return "single"
        case "float64":
            return "double"
        case "numeric":
            return "number"
        case "date" | "time" | "timestamp" | "timestamptz":
            return _MOMENTS[target.kind]
        case "json" if target.name == "jsonb":
            return "jsonb"
        case _:
            return "padded" if is_padded(target) else "text"


def escaped(text: str) -> str:
    """A text as it stands in a row's line."""
    return text.replace("\\", "\\\\").replace("\t", "\\t")


_WHOLE: frozenset[Kind] = frozenset({*_INTS, "numeric", "bool", "dynamic"})
"""Kinds of MySQL's exact numbers; ``dynamic`` are those of which only the values tell more."""


def _with_mysql(one: Type, other: Type) -> Form | None:
    """The form for two columns one of which is MySQL's."""
    mysql, partner = (one, other) if one.dialect == "mysql" else (other, one)
    kind = partner.kind
    is_lite = partner.dialect == "sqlite"
    match mysql.kind:
        case "bytes":
            return "bytes" if is_lite or kind == "bytes" else None
        case found if found in _WHOLE:
            if is_lite:
                return "number"
            if kind == "bool" and partner.dialect != "mysql":
                return "bool"
            if kind in _FLOATS:
                return "exact"
            return "number" if kind in _WHOLE else "text" if kind == "text" else None
        case "float32" | "float64":
            if not is_lite and kind not in {*_FLOATS, *_INTS}:
                return None
            # A real goes through its shortest digits, which mean another number in a double.
            is_bent = one.kind == "float32" and one.dialect != "mysql" and other.kind == "float64"
            return "unsigned" if is_bent else "exact"
        case "date" | "time" | "timestamp" | "timestamptz":
            if is_lite:
                # The server's own text is what is kept there; of any other one it means the same.
                return "text" if one is mysql else _MOMENTS[mysql.kind]
            if kind == mysql.kind:
                return _MOMENTS[kind]
            if {kind, mysql.kind} == {"date", "timestamp"}:
                return "timestamp"
            return "text" if kind == "text" else None
        case "uuid":
            return "uuid" if is_lite or kind in {"uuid", "text"} else None
        case "json":
            # Of what jsonb would make of a text, MySQL knows nothing.
            return None if partner.name == "jsonb" and other is partner else "text"
        case "text":
            if kind == "uuid":
                return "uuid"
            return "padded" if is_padded(partner) and kind == "text" else "text"
        case _:
            return None


# -- the texts that PostgreSQL makes, from texts that SQLite has ------------------------------

_NUMERAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,6})?", re.ASCII)
_NAMED = {"NaN": "NaN", "Infinity": "Infinity", "-Infinity": "-Infinity"}


def number_text(text: str) -> str:
    """A numeral as PostgreSQL's ``trim_scale(...)::text``."""
    if _NUMERAL.fullmatch(text) is None:
        return _NAMED.get(text, ODD + text)
    plain = _digits(text)
    if "." in plain:
        plain = plain.rstrip("0").rstrip(".")
    return plain


def _digits(text: str) -> str:
    number = Decimal(text)
    plain = format(number, "f")
    return plain.removeprefix("-") if number.is_zero() else plain


_CLOCK = r"(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,6}))?)?"
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIME = re.compile(_CLOCK, re.ASCII)
_STAMP = re.compile(rf"(\d{{4}}-\d\d-\d\d)(?:[ T]{_CLOCK}(Z|[+-]\d\d(?::?\d\d)?)?)?", re.ASCII)


def moment_text(kind: str, text: str) -> str:
    """A date or time in any ISO form as PostgreSQL's text of it."""
    try:
        if kind == "date" and _DATE.fullmatch(text):
            return date.fromisoformat(text).isoformat()
        if kind == "time":
            match = _TIME.fullmatch(text)
            if match is not None:
                return _clock(_since_midnight(match.groups()))
        match = _STAMP.fullmatch(text)
        if match is not None and kind != "time" and (match[6] is not None) == (kind[9:] == "tz"):
            moment = datetime.fromisoformat(match[1])
            if match[2] is not None:
                moment += _since_midnight(match.groups()[1:5])
            moment -= _offset(match[6])
            clock = _clock(moment - datetime.fromisoformat(moment.date().isoformat()))
            return f"{moment.date()} {clock}{'+00' if kind == 'timestamptz' else ''}"
    except (ValueError, OverflowError):
        pass
    return ODD + text


def _since_midnight(groups: tuple[str | None, ...]) -> timedelta:
    hours, minutes, seconds, fraction = groups
    return timedelta(
        hours=int(hours or 0),
        minutes=int(minutes or 0),
        seconds=int(seconds or 0),
        microseconds=int((fraction or "").ljust(6, "0")),
    )


def _clock(time: timedelta) -> str:
    seconds = time.days * 86_400 + time.seconds
    fraction = f".{time.microseconds:06d}".rstrip("0") if time.microseconds else ""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{fraction}"


def _offset(zone: str | None) -> timedelta:
    if zone is None or zone == "Z":
        return timedelta(0)
    digits = zone[1:].replace(":", "").ljust(4, "0")
    offset = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return -offset if zone[0] == "-" else offset


class _Numeral(str):
    """A number in JSON, as it is written."""

    __slots__ = ()


def jsonb_text(text: str) -> str:
    """A JSON text as PostgreSQL's text of the ``jsonb``."""
    try:
        return _json(json.loads(text, parse_float=_Numeral, parse_int=_Numeral, parse_constant=_no))
    except (ValueError, RecursionError):
        return ODD + text


def _no(_: str) -> Any:
    raise ValueError


def _json(value: object) -> str:
    if isinstance(value, _Numeral):
        return _digits(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(_json, cast("list[object]", value))) + "]"
    if isinstance(value, dict):
        # As jsonb orders its keys: the shorter first, then by bytes.
        items = sorted(cast("dict[str, object]", value).items(), key=_place)
        return "{" + ", ".join(f"{_json(k)}: {_json(v)}" for k, v in items) + "}"
    return json.dumps(value, ensure_ascii=False)


def _place(item: tuple[str, object]) -> tuple[int, bytes]:
    name = item[0].encode()
    return len(name), name
