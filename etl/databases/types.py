"""Column types: which kind they are, and PostgreSQL's COPY text.

Nothing is bent in silence. A value goes into a column exactly, or it is refused with the
column's name. :mod:`etl.databases.ways` decides that for whole columns before the first row is
read; ``encode_column`` checks what only the values can tell.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import Any, NoReturn, TypeAlias, cast
from uuid import UUID

from etl.errors import DataError
from etl.rows import Column, Kind, Type

NULL = "\\N"
"""How COPY text spells NULL."""

FILES = frozenset({"csv", "json"})
"""The dialects of columns of files, whose values are for the target's column to take or refuse."""

Decoder: TypeAlias = Callable[[str], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnumType(Type):
    """A PostgreSQL enum with its labels in order, so that another database can be given it."""

    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LooseColumn(Column):
    """A column whose values may be bent, because somebody asked for it by name."""


_KINDS: dict[str, Kind] = {
    "bool": "bool",
    "int2": "int16",
    "int4": "int32",
    "int8": "int64",
    "float4": "float32",
    "float8": "float64",
    "numeric": "numeric",
    "text": "text",
    "varchar": "text",
    "bpchar": "text",
    "bytea": "bytes",
    "date": "date",
    "time": "time",
    "timestamp": "timestamp",
    "timestamptz": "timestamptz",
    "interval": "interval",
    "uuid": "uuid",
    "json": "json",
    "jsonb": "json",
}

_DECLARED: dict[Kind, str] = {
    "bool": "boolean",
    "int16": "smallint",
    "int32": "integer",
    "int64": "bigint",
    "float32": "real",
    "float64": "double precision",
    "numeric": "numeric",
    "text": "text",
    "bytes": "bytea",
    "date": "date",
    "time": "time without time zone",
    "timestamp": "timestamp without time zone",
    "timestamptz": "timestamp with time zone",
    "interval": "interval",
    "uuid": "uuid",
    "json": "jsonb",
    "dynamic": "text",
    "other": "text",
}

_INTS: dict[Kind, int] = {"int16": 15, "int32": 31, "int64": 63}
_TIMES: frozenset[Kind] = frozenset({"time", "timestamp", "timestamptz"})


def postgres_type(
    *,
    name: str,
    base: str | None,
    typmod: int = -1,
    labels: Sequence[str] | None = None,
) -> Type:
    """The type of a PostgreSQL column.

    Args:
        name: As ``format_type`` spells it, with its schema where it is not a built-in type.
        base: ``pg_type.typname`` of a built-in type (of a domain: of what it is based on);
            None for a type of the user's.
        typmod: The modifier: numeric(15,2), varchar(10), timestamp(3).
        labels: Those of an enum.
    """
    if labels is not None:
        return EnumType(kind="other", name=name, dialect="postgresql", labels=tuple(labels))
    kind = _KINDS.get(base, "other") if base is not None else "other"
    precision = scale = length = None
    if typmod >= 0 and kind == "numeric":
        # The layout of numeric's modifier: 16 bits of precision, 11 of signed scale, plus 4.
        precision = (typmod - 4) >> 16
        scale = (((typmod - 4) & 0x7FF) ^ 1024) - 1024
    elif typmod >= 0 and kind == "text":
        length = typmod - 4
    elif typmod >= 0 and kind in _TIMES:
        scale = typmod
    return Type(
        kind=kind,
        name=name,
        dialect="postgresql",
        precision=precision,
        scale=scale,
        length=length,
    )


def declare_postgres(type: Type) -> str:
    """How PostgreSQL spells a column of this type.

    A bounded type of another dialect becomes its unbounded kind: SQLite, for one, does not
    enforce ``VARCHAR(10)``. JSON of SQLite, MySQL and files is text, and ``json`` keeps that text;
    ``jsonb`` would order its keys and drop double ones.
    """
    if type.dialect == "postgresql":
        return type.name
    # "<" is in the names of Arrow's lists, structs and maps.
    is_text = type.dialect in {"sqlite", "mysql", "json", "csv"} or "<" in type.name
    return "json" if type.kind == "json" and is_text else _DECLARED[type.kind]


def declared_type(type: Type) -> Type:
    """The type of a PostgreSQL column that is made for one of another database."""
    if type.dialect == "postgresql":
        return type
    kind: Kind = "text" if type.kind in {"dynamic", "other"} else type.kind
    return Type(kind=kind, name=declare_postgres(type), dialect="postgresql")


def is_padded(type: Type) -> bool:
    """Whether spaces at the end mean nothing in a PostgreSQL type."""
    return type.kind == "text" and type.name.startswith(("character(", "bpchar"))


# --- COPY text to Python -------------------------------------------------------------------

_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_UNESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def _unescaped(match: re.Match[str]) -> str:
    return _UNESCAPES.get(match[1], match[1])


def unescape(field: str) -> str:
    """The text of a COPY field that is not NULL."""
    return _ESCAPED.sub(_unescaped, field) if "\\" in field else field


_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
_SPECIAL = re.compile(r"[\\\n\r\t]")


def _escaped(match: re.Match[str]) -> str:
    return _ESCAPES[match[0]]


def escape(text: str) -> str:
    """A text as a COPY field."""
    return _SPECIAL.sub(_escaped, text)


_HEX_PIECE = 1 << 20


def unhex(field: str) -> bytes:
    """A bytea field: ``\\\\x`` and hex digits, its backslash doubled."""
    if len(field) <= _HEX_PIECE:
        return bytes.fromhex(field[3:])
    found = bytearray((len(field) - 3) // 2)  # by pieces: the digits of 50 MB are not copied
    for start in range(3, len(field), _HEX_PIECE):
        piece = bytes.fromhex(field[start : start + _HEX_PIECE])
        at = (start - 3) // 2
        found[at : at + len(piece)] = piece
    return bytes(found)


def _read_bool(field: str) -> bool:
    return field == "t"


def _read_time(field: str) -> time:
    if field.startswith("24"):
        raise ValueError("24:00:00")  # newer Pythons would take it for midnight before
    return time.fromisoformat(field)


def _read_json(field: str) -> Any:
    return json.loads(unescape(field), parse_float=Decimal)


_real = struct.Struct("<f")


def _read_float32(field: str) -> float:
    return cast("float", _real.unpack(_real.pack(float(field)))[0])


_INTERVAL = re.compile(
    r"(?:(-?\d+) days?)?\s?(?:([+-]?)(\d+):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?", re.ASCII
)


def _read_interval(field: str) -> timedelta:
    match = _INTERVAL.fullmatch(field)
    if match is None or not field:
        raise ValueError("months, or infinite")
    days, sign, hours, minutes, seconds, fraction = match.groups()
    clock = timedelta(
        hours=int(hours or 0),
        minutes=int(minutes or 0),
        seconds=int(seconds or 0),
        microseconds=int((fraction or "").ljust(6, "0")),
    )
    return timedelta(days=int(days or 0)) + (-clock if sign == "-" else clock)


_READERS: dict[Kind, Decoder] = {
    "bool": _read_bool,
    "int16": int,
    "int32": int,
    "int64": int,
    "float32": _read_float32,
    "float64": float,
    "numeric": Decimal,
    "bytes": unhex,
    "date": date.fromisoformat,
    "time": _read_time,
    "timestamp": datetime.fromisoformat,
    "timestamptz": datetime.fromisoformat,
    "interval": _read_interval,
    "uuid": UUID,
    "json": _read_json,
}
_ALWAYS_READABLE: frozenset[Kind] = frozenset(
    {"bool", "int16", "int32", "int64", "float32", "float64", "numeric", "bytes", "uuid"}
)
_UNREADABLE: dict[Kind, str] = {
    "date": "a date outside the years 1 to 9999, or infinite,",
    "time": "the end of a day (hour 24),",
    "timestamp": "a timestamp outside the years 1 to 9999, or infinite,",
    "timestamptz": "a timestamp outside the years 1 to 9999, or infinite,",
    "interval": "an interval with months or years, or an infinite one,",
    "json": "a JSON value that Python's parser refuses",
}


def text_decoder(type: Type, *, nullable: bool, column: str = "") -> Decoder:
    """From a raw COPY field of a PostgreSQL column to its Python value; NULL becomes None.

    ``numeric`` becomes ``Decimal``, ``timestamptz`` an aware and ``timestamp`` a naive
    ``datetime``, ``json`` Python objects with ``Decimal`` for fractions, and a type that Python
    has no match for the server's text of it.

    Raises:
        DataError: By the decoder: Python cannot hold the value. It names the column.
    """
    read = _READERS.get(type.kind)
    if read is None:
        return _text_or_null if nullable else unescape
    if type.kind not in _ALWAYS_READABLE:
        read = _guarded(read, type, column)
    return _or_null(read) if nullable else read


def same(value: Any) -> Any:
    """The decoder of values that need no decoding; writers skip it."""
    return value


def plain_reader(type: Type) -> Decoder:
    """A decoder for fields without a backslash, without an error that names the column.

    Such a field is not NULL, and its text is not escaped.

    Raises:
        Exception: By the decoder, anything: what it is, :func:`text_decoder` tells.
    """
    return _READERS.get(type.kind, str)


def _text_or_null(field: str) -> str | None:
    if "\\" in field:
        return None if field == NULL else _ESCAPED.sub(_unescaped, field)
    return field


def _or_null(read: Decoder) -> Decoder:
    def decode(field: str) -> Any:
        return None if field == NULL else read(field)

    return decode


def _guarded(read: Decoder, type: Type, column: str) -> Decoder:
    def decode(field: str) -> Any:
        try:
            return read(field)
        except (ValueError, OverflowError, RecursionError) as error:
            raise DataError(
                f"column {column!r} ({type.name}) holds {_UNREADABLE[type.kind]} which Python"
                " cannot hold; leave the column untouched and it is copied as it is, or turn it"
                " into text in the source",
                column=column,
                reason=f"it is {_UNREADABLE[type.kind]} which Python cannot hold",
            ) from error

    return decode


# --- Python to COPY text -------------------------------------------------------------------

_Writer: TypeAlias = Callable[[Sequence[Any], Column], list[str]]
_NONE = type(None)


def encode_column(values: Sequence[Any], column: Column) -> list[str]:
    """The values of one column as COPY fields for a PostgreSQL column; None becomes NULL.

    Works on whole columns: a few passes in C for the usual case, and a closer look only where
    something stands out.

    Raises:
        DataError: A value has the wrong type, or does not fit without being changed. It names
            the column and the row's number in ``values``, never the value.
    """
    if isinstance(column, LooseColumn):
        return [NULL if value is None else _loosely(value, column) for value in values]
    if isinstance(values, Numerals):
        return _numeral_fields(values, column)
    if isinstance(values, Verbatim) and (column.nullable or None not in values):
        return [NULL if value is None else value for value in values]
    kinds = set(map(type, values))
    write = _WRITERS[column.type.kind]
    if _NONE not in kinds:
        return write(values, column) if values else []
    if not column.nullable:
        row = next(i for i, value in enumerate(values) if value is None)
        raise DataError(
            f"column {column.name!r} does not allow NULL, and row {row + 1} of the batch has"
            " None there",
            column=column.name,
            row=row,
            reason="NULL is not allowed",
        )
    present = [value for value in values if value is not None]
    if not present:
        return [NULL] * len(values)
    try:
        fields = iter(write(present, column))
    except DataError as error:
        if error.row is None:
            raise
        places = [i for i, value in enumerate(values) if value is not None]
        raise _refusal(column, str(error.__cause__), places[error.row]) from error.__cause__
    return [NULL if value is None else next(fields) for value in values]


def _loosely(value: Any, column: Column) -> str:
    """A value as it is, for the server to make of it what it will; numbers rounded, texts cut."""
    type = column.type
    if type.kind in _INTS and isinstance(value, float | Decimal | str):
        number = Decimal(value) if _is_numeral(value) else None
        text = str(value) if number is None else f"{number:.0f}"
    elif isinstance(value, datetime) and type.kind != "timestamptz":
        text = str(value if value.tzinfo is None else value.astimezone(UTC).replace(tzinfo=None))
    elif type.kind == "text":
        text = _as_text(value, 0, column)[: type.length]
    elif isinstance(value, str | int | float | Decimal | date | time) and not isinstance(
        value, bool | Enum
    ):
        text = str(value)
    else:
        return _WRITERS[type.kind]([value], column)[0]
    return _escape_all([text], column)[0]


def _is_numeral(value: float | Decimal | str) -> bool:
    if isinstance(value, str):
        return re.fullmatch(_NUMERAL, value) is not None and value[-1] not in "Ny"
    return math.isfinite(value)


def _refusal(column: Column, why: str, row: int) -> DataError:
    return DataError(
        f"column {column.name!r} ({column.type.name}) cannot take the value in row {row + 1} of"
        f" the batch: {why}",
        column=column.name,
        row=row,
        reason=f"it cannot go into {column.type.name}: {why}",
    )


def _refuse(column: Column, why: str, row: int) -> NoReturn:
    # The reason alone is the cause, so that a caller who renumbers rows can say it again.
    raise _refusal(column, why, row) from ValueError(why)


def _only(values: Sequence[Any], column: Column, *allowed: type, hint: str = "") -> set[type]:
    """The values' types, each of which must be one of ``allowed`` (subclasses too, but for bool
    and datetime, which are not numbers and dates here)."""
    found = set(map(type, values))
    for kind in found.difference(allowed):
        good = issubclass(kind, allowed) and not (
            (issubclass(kind, bool) and bool not in allowed)
            or (issubclass(kind, datetime) and datetime not in allowed)
        )
        if not good:
            row = next(i for i, value in enumerate(values) if type(value) is kind)
            wanted = " or ".join(one.__name__ for one in allowed)
            _refuse(column, f"it is {_a(kind.__name__)}, not {_a(wanted)}{hint}", row)
    return found


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


def _first(values: Sequence[Any], bad: Callable[[Any], bool]) -> int:
    return next(i for i, value in enumerate(values) if bad(value))


def _write_bool(values: Sequence[Any], column: Column) -> list[str]:
    _only(values, column, bool)
    return ["t" if value else "f" for value in values]


def _write_int(values: Sequence[Any], column: Column) -> list[str]:
    found = _only(
        values, column, int, Decimal, hint="; round it or convert it, for example with int()"
    )  # fmt: skip
    if found != {int}:
        values = [_whole(value, i, column) for i, value in enumerate(values)]
    bound = 1 << _INTS[column.type.kind]
    if max(values) >= bound or min(values) < -bound:
        _refuse(column, "it is out of range", _first(values, lambda v: not -bound <= v < bound))
    return list(map(str, values))


def _whole(value: Any, row: int, column: Column) -> int:
    if isinstance(value, Decimal) and (not value.is_finite() or value != int(value)):
        _refuse(column, "it has a fraction, or is not finite", row)
    return int(value)


def _write_float(values: Sequence[Any], column: Column) -> list[str]:
    found = _only(values, column, float, int, Decimal)
    if found != {float}:
        values = [_as_float(value, i, column) for i, value in enumerate(values)]
    if column.type.kind == "float32":
        for i, value in enumerate(values):
            try:
                kept = _real.unpack(_real.pack(value))[0]
            except OverflowError:
                _refuse(column, "it is out of range", i)
            if kept != value and value == value and _single_text(kept) != value:
                _refuse(column, "a real has not so many digits; round it in a function", i)
    return list(map(float.__repr__, values))


def _single_text(kept: float) -> float:
    """What the shortest digits of a ``real`` mean as a double: 0.1, where it is 0.10000000149...

    The server writes a real so. A double that means these digits is given back by them.
    """
    for digits in range(1, 10):
        text = f"{kept:.{digits}g}"
        try:
            if _real.unpack(_real.pack(float(text)))[0] == kept:
                return float(text)
        except OverflowError:
            pass  # fewer digits round the greatest number up
    return kept


def _as_float(value: Any, row: int, column: Column) -> float:
    if isinstance(value, float):
        return value
    try:
        result = float(value)
    except OverflowError:
        _refuse(column, "it is out of range", row)
    # A fraction is kept when its shortest text is: Decimal("0.1") is 0.1, not 0.1000000000000000055
    same = result == value if isinstance(value, int) else _decimal_is(value, result)
    if not same:
        _refuse(column, "it has more digits than a floating-point number; use float()", row)
    return result


def _decimal_is(value: Decimal, result: float) -> bool:
    return value.is_nan() or Decimal(repr(result)) == value


def _write_numeric(values: Sequence[Any], column: Column) -> list[str]:
    found = _only(values, column, Decimal, int, float)
    if found == {Decimal} or found == {int}:
        texts = list(map(str, values))
    else:
        texts = [repr(value) if isinstance(value, float) else str(value) for value in values]
        for i, text in enumerate(texts) if "-0.0" in texts else ():
            if text == "-0.0" and isinstance(values[i], float):
                _refuse(column, "it is -0.0, and a numeric has no sign of zero; add 0.0 to it", i)
    joined = "\n".join(texts)
    if "s" in joined or "N" in joined:
        # sNaN and NaN with a sign or a payload are all the server's one NaN.
        texts = [
            "NaN" if isinstance(value, Decimal) and value.is_nan() else text
            for value, text in zip(values, texts, strict=True)
        ]
    scale = column.type.scale
    if scale is not None and (
        "E" in joined or "e" in joined or scale < 0 or _is_too_fine(joined, scale)
    ):
        for i, text in enumerate(texts):
            number = Decimal(text)
            if number.is_finite() and not _fits_scale(number, scale):
                _refuse(
                    column,
                    f"it has more than {max(scale, 0)} digits after the point; round it in a"
                    " function",
                    i,
                )
    return texts


def _is_too_fine(joined: str, scale: int) -> bool:
    # Texts of values that were rounded have no more digits at all, which is found sooner.
    return bool(_longer(scale).search(joined) and _too_fine(scale).search(joined))


@cache
def _longer(scale: int) -> re.Pattern[str]:
    return re.compile(rf"\.\d{{{scale + 1}}}", re.ASCII)


@cache
def _too_fine(scale: int) -> re.Pattern[str]:
    return re.compile(rf"\.\d{{{scale}}}\d*[1-9]", re.ASCII)


def _fits_scale(number: Decimal, scale: int) -> bool:
    digits, exponent = number.as_tuple()[1:]
    assert isinstance(exponent, int)  # a finite number's
    extra = -exponent - scale
    return extra <= 0 or not any(digits[-extra:]) if extra < len(digits) else not any(digits)


_UNSAFE = "\\\n\r\t\0"


def _write_text(values: Sequence[Any], column: Column) -> list[str]:
    found = _only(values, column, str, UUID, Enum, hint="; make it text in a function")
    texts: Sequence[str] = values
    if found != {str}:
        texts = [_as_text(value, i, column) for i, value in enumerate(values)]
    length = column.type.length
    if length is not None and max(map(len, texts)) > length:
        row = _first(texts, lambda text: len(text) > length)
        _refuse(column, f"it is longer than {length} characters", row)
    if is_padded(column.type) and length is not None:
        for i, text in enumerate(texts):
            # A text that fills the column comes back as it is: as it came from such a column.
            if text.endswith(" ") and len(text) != length:
                _refuse(column, "the column does not keep the spaces at its end", i)
    return _escape_all(texts, column)


def _as_text(value: Any, row: int, column: Column) -> str:
    if isinstance(value, Enum):
        value = value.value
        if not isinstance(value, str):
            _refuse(column, "it is an Enum whose value is not text", row)
    return value if isinstance(value, str) else str(value)


def _escape_all(texts: Sequence[str], column: Column) -> list[str]:
    joined = "".join(texts)
    # Five scans in C take a tenth of the time of one for a set of characters.
    if not any(one in joined for one in _UNSAFE):
        return list(texts)
    for i, text in enumerate(texts):
        if "\x00" in text:
            _refuse(column, "it holds a NUL character, which PostgreSQL cannot store", i)
    return [escape(text) for text in texts]


def _write_bytes(values: Sequence[Any], column: Column) -> list[str]:
    _only(values, column, bytes, bytearray, memoryview)
    return ["\\\\x" + value.hex() for value in values]


_ISO_DATE = r"\d{4}-\d\d-\d\d"
# The server would take 23:59:60 and hour 24 of a day for the next minute and day.
_ISO_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,6})?)?"
_ISO_FORMS: dict[Kind, str] = {
    "date": _ISO_DATE,
    "time": rf"{_ISO_TIME}|24:00:00",
    "timestamp": rf"{_ISO_DATE}(?:[ T]{_ISO_TIME})?",
    "timestamptz": rf"{_ISO_DATE}[ T]{_ISO_TIME}(?:Z|[+-]\d\d(?::?\d\d)?)",
}
_ISO = {kind: re.compile(form, re.ASCII) for kind, form in _ISO_FORMS.items()}
_ISO_WANTED: dict[Kind, str] = {
    "date": "written as 2020-01-31",
    "time": "written as 12:30:00",
    "timestamp": "written as 2020-01-31 12:30:00, without a zone",
    "timestamptz": "written as 2020-01-31 12:30:00+00, with a zone",
}


def _write_moment(values: Sequence[Any], column: Column) -> list[str]:
    """Dates and times: texts of ISO 8601, and Python's own, whose ``str`` is that."""
    kind = column.type.kind
    match kind:
        case "date":
            found = _only(values, column, date, str)
        case "time":
            found = _only(values, column, time, str)
        case "timestamp":
            found = _only(values, column, datetime, date, str)
        case _:
            found = _only(values, column, datetime, str)
    texts = list(map(str, values))
    if found == {str}:
        if not _ALL_ISO[kind](texts):
            _refuse_text(values, kind, column)
    elif any(issubclass(one, str) and one is not ServerText for one in found):
        _refuse_text(values, kind, column)
    if kind != "date" and found != {str}:
        # The length of their text tells whether all have a zone; only a doubt needs a closer look.
        lengths = set(map(len, texts))
        if not (lengths.isdisjoint(_NAIVE) if kind == "timestamptz" else lengths <= _NAIVE):
            _check_zones(values, kind, column)
    if kind != "date":
        if _digits(column.type) < 6 and _is_too_fine("\n".join(texts), _digits(column.type)):
            _refuse_fraction(texts, column)
    return texts


def _digits(type: Type) -> int:
    """Digits of a second that a time keeps."""
    return 6 if type.scale is None else type.scale


_NAIVE = frozenset({8, 15, 19, 26})
"""How long Python's text of a time or timestamp without a zone is; one with a zone never is."""


class ServerText(str):
    """PostgreSQL's own text of a date or time, whatever years and hours it has."""

    __slots__ = ()


def _refuse_text(values: Sequence[Any], kind: Kind, column: Column) -> None:
    """Refuse a text that is no ISO date or time, where there is one."""
    for i, value in enumerate(values):
        if type(value) is ServerText or not isinstance(value, str):
            continue
        if _ISO[kind].fullmatch(value) is None:
            _refuse(column, f"it is a text that is not {_ISO_WANTED[kind]}", i)


def _check_zones(values: Sequence[Any], kind: Kind, column: Column) -> None:
    aware = kind == "timestamptz"
    for i, value in enumerate(values):
        if isinstance(value, datetime | time) and (value.utcoffset() is not None) != aware:
            _refuse(
                column,
                "it has no time zone; give it one, for example with .replace(tzinfo=UTC)"
                if aware
                else "it has a time zone, which the column would drop; use .astimezone(...) and"
                " .replace(tzinfo=None)",
                i,
            )


def _refuse_fraction(texts: Sequence[str], column: Column) -> NoReturn:
    digits = _digits(column.type)
    row = _first(texts, lambda text: _too_fine(digits).search(text) is not None)
    _refuse(column, f"the column keeps {digits} digits of a second; round it in a function", row)


# As PostgreSQL writes it, so that it means the same when it is read: SQLite and files keep that.
_ANY_INTERVAL = re.compile(
    r"(?=.)(?:[-+]?\d+ years?)?(?: ?[-+]?\d+ mons?)?(?: ?[-+]?\d+ days?)?"
    r"(?: ?[-+]?\d{2,}:[0-5]\d:[0-5]\d(?:\.\d{1,6})?)?|-?infinity",
    re.ASCII,
)


def _write_interval(values: Sequence[Any], column: Column) -> list[str]:
    found = _only(values, column, timedelta, str)
    if column.type.name != "interval" and found != {str}:  # of texts the server is asked
        _refuse(column, "only a plain interval column takes a timedelta exactly", 0)
    if str not in found:
        return list(map(_of_timedelta, values))
    for i, value in enumerate(values):
        if isinstance(value, str) and _ANY_INTERVAL.fullmatch(value) is None:
            _refuse(column, "it is a text that is no interval as PostgreSQL writes it", i)
    return [value if isinstance(value, str) else _of_timedelta(value) for value in values]


def _of_timedelta(value: timedelta) -> str:
    return f"{value.days} days {value.seconds}.{value.microseconds:06d} seconds"


_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _write_uuid(values: Sequence[Any], column: Column) -> list[str]:
    if _only(values, column, UUID, str) != {UUID}:
        for i, value in enumerate(values):
            if isinstance(value, str) and _UUID.fullmatch(value) is None:
                _refuse(column, "it is a text that is not a UUID", i)
    return list(map(str, values))


def _write_json(values: Sequence[Any], column: Column) -> list[str]:
    texts: list[str] = []
    for i, value in enumerate(values):
        try:
            text = _json(value)
            if column.type.name == "jsonb" and (
                value.__class__ is JsonText or _SIGNED_ZERO.search(text)
            ):
                json.loads(text, **_AS_JSONB)
            texts.append(text)
        except _BentError as error:
            _refuse(column, f"jsonb would not keep {error}; a column of type json does", i)
        except (TypeError, ValueError, RecursionError) as error:
            _refuse(column, f"it is not JSON ({type(error).__name__})", i)
    return _escape_all(texts, column)


class _BentError(Exception):
    """JSON that a jsonb would change; its text says what is lost."""


def _no_double_keys(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        raise _BentError("a key that an object has twice")


def _no_signed_zero(text: str) -> None:
    if text[0] == "-" and not text.partition("e")[0].partition("E")[0].strip("-0."):
        raise _BentError("the sign of a zero")


_SIGNED_ZERO = re.compile(r"-0(?:\.0+)?(?:[eE][+-]?\d+)?(?![\d.])", re.ASCII)
_AS_JSONB: dict[str, Any] = {
    "object_pairs_hook": _no_double_keys,
    "parse_int": _no_signed_zero,
    "parse_float": _no_signed_zero,
}

_NUMERAL = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|NaN|-?Infinity"
# A text that begins with a zero too many is rather a code, and a numeric has no sign of zero.
_STORED_NUMERAL = rf"(?!-?0\d|-[0.]+(?:[eE][+-]?\d+)?(?:\n|\Z))(?:{_NUMERAL})"


def from_sqlite(target: Type) -> Callable[[Sequence[Any]], Sequence[Any]] | None:
    """How a column of SQLite values is meant for a PostgreSQL type; None: as it is.

    SQLite has no booleans, decimals or JSON: it keeps them as 0 and 1 and as text. What does not
    look like one stays as it is, and the encoder refuses it.
    """
    return _FROM_SQLITE.get(target.kind)


class Numerals(list[Any]):
    """Texts, and None, each of which is proven to be a number: they go in as they are."""


class Verbatim(list[Any]):
    """Texts, and None, each of which is proven to be in the server's own form of its type.

    The server still refuses one that is no value, as the 30th of February.
    """


def _flags(values: Sequence[Any]) -> Sequence[Any]:
    return [bool(one) if one.__class__ is int and one in {0, 1} else one for one in values]


def numerals(values: Sequence[Any]) -> Sequence[Any]:
    """Texts of a file that are numbers, as these."""
    return _numerals(values, _NUMERAL)


def _stored_numerals(values: Sequence[Any]) -> Sequence[Any]:
    return _numerals(values, _STORED_NUMERAL)


def _numerals(values: Sequence[Any], pattern: str) -> Sequence[Any]:
    if set(map(type, values)) <= _TEXTS and _all_match(pattern)(_present(values)):
        return Numerals(values)
    one = re.compile(pattern, re.ASCII).fullmatch
    return [Decimal(v) if v.__class__ is str and one(v) else v for v in values]


def _json_texts(values: Sequence[Any]) -> Sequence[Any]:
    return [JsonText(value) if value.__class__ is str else value for value in values]


def _present(values: Sequence[Any]) -> Sequence[Any]:
    return [value for value in values if value is not None] if None in values else values


@cache
def _all_match(pattern: str) -> Callable[[Sequence[str]], bool]:
    """Whether every text matches, by one search over all of them."""
    found = re.compile(rf"(?:(?:{pattern})\n)*(?:{pattern})", re.ASCII).fullmatch

    def check(texts: Sequence[str]) -> bool:
        joined = "\n".join(texts)
        return bool(texts) and joined.count("\n") == len(texts) - 1 and found(joined) is not None

    return check


_ALL_ISO = {kind: _all_match(form) for kind, form in _ISO_FORMS.items()}
_TEXTS = frozenset({str, _NONE})
_FROM_SQLITE: dict[Kind, Callable[[Sequence[Any]], Sequence[Any]]] = {
    "bool": _flags,
    "numeric": _stored_numerals,
    "json": _json_texts,
}


def _numeral_fields(values: Numerals, column: Column) -> list[str]:
    joined = "\n".join(_present(values))
    scale = column.type.scale
    if (None in values and not column.nullable) or (
        scale is not None
        and ("e" in joined or "E" in joined or scale < 0 or _is_too_fine(joined, scale))
    ):
        return encode_column([None if v is None else Decimal(v) for v in values], column)
    return [NULL if value is None else value for value in values]


class JsonText(str):
    """JSON that is text already: it goes into a json column as it is, digits and all."""

    __slots__ = ()


def _json(value: Any) -> str:
    if value.__class__ is JsonText:
        return str(value)
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except TypeError:
        return _json_slowly(value)


def _json_slowly(value: object) -> str:
    """JSON with exact decimals, which the json module cannot write."""
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise ValueError("not finite")
        return str(value)
    if isinstance(value, dict):
        items = cast("dict[object, object]", value).items()
        if not all(isinstance(key, str) for key, _ in items):
            raise TypeError("a key that is not text")
        return "{" + ", ".join(f"{_json(k)}: {_json_slowly(v)}" for k, v in items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_json_slowly, cast("Sequence[object]", value))) + "]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _write_other(values: Sequence[Any], column: Column) -> list[str]:
    found = _only(values, column, str, Enum, hint=": PostgreSQL's own text of the value")
    if found != {str}:
        values = [_as_text(value, i, column) for i, value in enumerate(values)]
    return _escape_all(values, column)


_WRITERS: dict[Kind, _Writer] = {
    "bool": _write_bool,
    "int16": _write_int,
    "int32": _write_int,
    "int64": _write_int,
    "float32": _write_float,
    "float64": _write_float,
    "numeric": _write_numeric,
    "text": _write_text,
    "bytes": _write_bytes,
    "date": _write_moment,
    "time": _write_moment,
    "timestamp": _write_moment,
    "timestamptz": _write_moment,
    "interval": _write_interval,
    "uuid": _write_uuid,
    "json": _write_json,
    "dynamic": _write_other,
    "other": _write_other,
}
