"""Rows of any kind as the values that a generic dialect's driver takes, for the columns of a table.

Servers change a value that does not fit without a word: digits are rounded, spaces cut, labels
taken for numbers. So whatever would be changed is refused here, with the column's name and the
row's place. Whole columns at a time: where all values have a class that is stored as it is, they
are not looked at one by one.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import groupby
from operator import attrgetter
from typing import Any, TypeAlias, cast
from uuid import UUID

from etl.databases.build import Misfit, uuid_of
from etl.databases.generic.table import TableColumn
from etl.databases.given import field_names, kind_of, tuple_names
from etl.databases.texts import from_text
from etl.databases.types import FILES, NULL, JsonText, unescape, unhex
from etl.errors import DataError, SchemaMismatchError
from etl.rows import Kind, Layout, Row, TextRows, Type, ValueRows, place_of, split_lines

_Values: TypeAlias = Sequence[Any]
_NONE = type(None)
_INTS: frozenset[Kind] = frozenset({"int16", "int32", "int64"})
_NUMBERS: frozenset[Kind] = frozenset({*_INTS, "float32", "float64", "numeric"})


# -- whether a column may take another's values ------------------------------------------------

_ACCEPTED: Mapping[Kind, frozenset[Kind]] = {
    "bool": frozenset({"bool"}),
    "float32": frozenset({*_INTS, "float32", "numeric"}),
    "float64": _NUMBERS,
    "numeric": _NUMBERS,
    "text": frozenset({"text", "uuid", "other", "json", "interval"}),
    "bytes": frozenset({"bytes"}),
    "date": frozenset({"date", "text"}),
    "time": frozenset({"time", "text"}),
    "timestamp": frozenset({"timestamp", "date", "text"}),
    "timestamptz": frozenset({"timestamptz", "text"}),
    "uuid": frozenset({"uuid", "text"}),
    "json": frozenset({"json"}),
    "interval": frozenset({"interval"}),
    "other": frozenset({"other", "text"}),
}


def accepts(source: Type, target: TableColumn) -> bool:
    """Whether values of a kind can be right for a column; each is still checked."""
    kind = target.type.kind
    if source.kind == "dynamic" or source.dialect in FILES:
        return True
    if source.dialect == target.type.dialect and source.name == target.type.name:
        return True
    if kind in _INTS or kind == "dynamic":
        is_flag = source.kind == "bool" and target.base in {"tinyint", "bit"}
        whole = source.kind == "numeric" and (
            source.scale in {None, 0} or source.dialect == "python"
        )
        return source.kind in _INTS or is_flag or whole
    if source.dialect == "python" and (source.kind, kind) in {
        ("timestamptz", "timestamp"),
        ("text", "json"),
        ("float64", "float32"),
        ("interval", "time"),
    }:
        return True
    return source.kind in _ACCEPTED.get(kind, ())


# -- what a source's own form means ------------------------------------------------------------


def _of_copy_text(source: Type) -> Callable[[str], Any]:
    """From a field of PostgreSQL's COPY text, which is not NULL."""
    match source.kind:
        case "bytes":
            return unhex
        case "int16" | "int32" | "int64":
            return int
        case "float32" | "float64":
            return float
        case "bool":
            return lambda field: field == "t"
        case "numeric":
            return Decimal
        case "json":
            return lambda field: JsonText(unescape(field))
        case _:
            return unescape


_NUMERAL = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*", re.ASCII)


def _of_database(source: Type, target: TableColumn) -> Callable[[_Values], _Values] | None:
    """How the values that another database's driver gives are meant."""
    kind = target.type.kind
    if kind == "json":
        return lambda values: [JsonText(v) if v.__class__ is str else v for v in values]
    if source.dialect == "sqlite" and (kind == "numeric" or kind in _INTS):
        # SQLite has no exact decimals: they are kept as texts there.
        return _numbers
    return None


def _of_file(source: Type, target: TableColumn) -> Callable[[_Values], _Values] | None:
    """How the texts of a file are meant; one that looks like no value stays, and is refused."""
    kind = target.type.kind
    if kind == "json" and source.dialect == "json":
        return None  # a text is a value too, and what has members is marked as JSON
    if kind == "dynamic" and target.base == "tinyint":
        # A TINYINT(1) that holds 0 and 1 only is written as the boolean that it is meant for.
        return lambda values: _numbers([_FLAGS.get(v, v) for v in values])
    return _numbers if kind in {"numeric", "dynamic"} else from_text(target.type)


_FLAGS: Mapping[Any, Any] = {"true": True, "false": False}


def _numbers(values: _Values) -> _Values:
    return [
        Decimal(v.strip()) if v.__class__ is str and _NUMERAL.fullmatch(v) else v for v in values
    ]


# -- single values -----------------------------------------------------------------------------


def _int(value: Any, column: TableColumn) -> Any:
    if isinstance(value, bool):
        if column.base not in {"tinyint", "bit"} and column.type.dialect == "mysql":
            raise Misfit("it is a bool, not an integer")
        return int(value)
    if isinstance(value, Decimal):
        if not value.is_finite() or value != int(value):
            raise Misfit("it has a fraction, or is not finite")
        value = int(value)
    if not isinstance(value, int):
        raise Misfit(f"it is {_a(value)}, not an integer; convert it, for example with int()")
    if column.base == "year" and value != 0 and not 1901 <= value <= 2155:
        raise Misfit("a YEAR holds 1901 to 2155")
    return int(value)


def _bool(value: Any, column: TableColumn) -> Any:
    if column.type.dialect != "mysql":
        if isinstance(value, bool):
            return value
        if type(value) is int and value in {0, 1}:
            return bool(value)
    elif isinstance(value, int) and value in {0, 1}:
        return int(value)
    raise Misfit(f"it is {_a(value)}, not a bool")


def _numeric(value: Any, column: TableColumn) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise Misfit(f"it is {_a(value)}, not a number")
    number = Decimal(repr(value)) if isinstance(value, float) else Decimal(value)
    if not number.is_finite():
        raise Misfit("it is not finite")
    scale = column.type.scale
    if scale is not None and not _fits_scale(number, scale):
        raise Misfit(f"it has more than {scale} digits after the point; round it in a function")
    return number


def _fits_scale(number: Decimal, scale: int) -> bool:
    digits, exponent = number.as_tuple()[1:]
    assert isinstance(exponent, int)  # a finite number's
    extra = -exponent - scale
    return extra <= 0 or not any(digits[-extra:]) if extra < len(digits) else not any(digits)


_real = struct.Struct("<f")


def _float(value: Any, column: TableColumn) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise Misfit(f"it is {_a(value)}, not a number")
    if isinstance(value, Decimal) and not value.is_finite():
        raise Misfit("it is not finite")
    try:
        number = float(value)
    except OverflowError:
        raise Misfit("it is out of range") from None
    if not math.isfinite(number):
        if column.type.dialect == "mysql" or not isinstance(value, float):
            raise Misfit("it is infinite or NaN, which MySQL has not")
        return number
    if isinstance(value, int):
        if number != value:
            raise Misfit("it has more digits than a floating-point number; use float()")
    elif isinstance(value, Decimal) and Decimal(repr(number)) != value:
        raise Misfit("it has more digits than a floating-point number; use float()")
    kept = number
    if column.type.kind == "float32":
        kept = _single(number)  # the greatest one's own text, 3.4028235e38, is too great
        if kept == 0 and number != 0:
            raise Misfit("it would become 0")
    digits = column.type.scale
    if digits is not None:
        rounded = round(number, digits)
        if kept != (_single(rounded) if column.type.kind == "float32" else rounded):
            why = f"it has more than {digits} digits after the point"
            raise Misfit(f"{why}; round it in a function")
    return kept


def _single(number: float) -> float:
    """The nearest number of single precision."""
    try:
        return float(_real.unpack(_real.pack(number))[0])
    except OverflowError:
        raise Misfit("it is out of range") from None


def _text(value: Any, column: TableColumn) -> Any:
    if isinstance(value, Enum):
        value = value.value
    if isinstance(value, UUID):
        value = str(value)
    if not isinstance(value, str):
        raise Misfit(f"it is {_a(value)}, not a text; make it text in a function")
    _check_text(value, column)
    return str(value)


def _check_text(value: str, column: TableColumn) -> None:
    if not _is_unicode(value):
        raise Misfit("it holds a lone surrogate, which is no character")
    if column.base == "enum":
        if value not in column.labels:
            raise Misfit("it is none of the labels")
        return
    if column.base == "set":
        given = value.split(",") if value else []
        if given != [label for label in column.labels if label in given]:
            raise Misfit("it is not a list of the labels in their order")
        return
    length = column.type.length
    if length is not None and len(value) > length:
        raise Misfit(f"it is longer than {length} characters")
    if column.base == "char" and value.endswith(" ") and column.type.dialect == "mysql":
        raise Misfit("it ends in a space, which a CHAR column drops; use VARCHAR")
    if length is None and column.octets is not None and 4 * len(value) > column.octets:
        if _is_longer(value, column.charset or "", column.octets):
            raise Misfit(f"it is longer than {column.octets} bytes")


_WIDE = {"ucs2": "utf-16-le", "utf16": "utf-16-le", "utf16le": "utf-16-le", "utf32": "utf-32-le"}


def _is_longer(text: str, charset: str, octets: int) -> bool:
    """Whether a column would cut a text without a word.

    In a character set of other bytes than UTF-8's (latin1) the server refuses what is longer by
    anything but spaces at the end.
    """
    is_known = not charset or charset.startswith("utf8") or charset in _WIDE
    if not is_known and not text.endswith(" "):
        return False
    return len(text.encode(_WIDE.get(charset, "utf-8"))) > octets


def _bytes(value: Any, column: TableColumn) -> Any:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise Misfit(f"it is {_a(value)}, not bytes")
    found = bytes(cast("bytes", value))
    if column.octets is not None and len(found) > column.octets:
        raise Misfit(f"it is longer than {column.octets} bytes")
    if column.base == "binary" and len(found) != column.octets:
        raise Misfit(f"a BINARY column fills it up to {column.octets} bytes; use VARBINARY")
    return found


_DAY = r"\d{4}-\d\d-\d\d"
_CLOCK = r"\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?"
_DATE = re.compile(_DAY, re.ASCII)
_TIMESTAMP = re.compile(rf"{_DAY}(?:[ T]{_CLOCK})?", re.ASCII)
_ZONED = re.compile(rf"{_DAY}[ T]{_CLOCK}(?:Z|[+-]\d\d(?::?\d\d)?)", re.ASCII)
_TIME = re.compile(_CLOCK, re.ASCII)
_LONG_TIME = re.compile(r"-?\d{2,3}:\d\d:\d\d(?:\.\d{1,6})?", re.ASCII)


def _date(value: Any, column: TableColumn) -> Any:
    if isinstance(value, str):
        if not _DATE.fullmatch(value):
            raise Misfit("it is a text that is not written as 2020-01-31")
        return _parsed(date.fromisoformat, value) if value[:5] != "0000-" else _zero()
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    raise Misfit(f"it is {_a(value)}, not a date")


def _timestamp(value: Any, column: TableColumn) -> Any:
    if isinstance(value, str):
        if not _TIMESTAMP.fullmatch(value):
            raise Misfit("it is a text that is not written as 2020-01-31 12:30:00, without a zone")
        if value.startswith("0000-"):
            _zero()
        value = _parsed(datetime.fromisoformat, value)
    if isinstance(value, datetime):
        if value.tzinfo is not None:
            raise Misfit(
                "it has a time zone, which the column would drop; use .astimezone(...) and"
                " .replace(tzinfo=None)"
            )
        _check_fraction(value.microsecond, column)
        return value
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day)  # noqa: DTZ001  the column has none
    raise Misfit(f"it is {_a(value)}, not a datetime")


def _timestamptz(value: Any, column: TableColumn) -> Any:
    if isinstance(value, str):
        if not _ZONED.fullmatch(value):
            raise Misfit("it is a text that is not written as 2020-01-31 12:30:00+00, with a zone")
        if value.startswith("0000-"):
            _zero()
        value = _parsed(datetime.fromisoformat, value)
    if not isinstance(value, datetime):
        raise Misfit(f"it is {_a(value)}, not a datetime")
    if value.utcoffset() is None:
        raise Misfit("it has no time zone; give it one, for example with .replace(tzinfo=UTC)")
    _check_fraction(value.microsecond, column)
    if column.type.dialect != "mysql":
        return value
    try:
        return value.astimezone(UTC).replace(tzinfo=None)
    except OverflowError:
        raise Misfit("in UTC it is outside of the years 1 to 9999") from None


def _time(value: Any, column: TableColumn) -> Any:
    if isinstance(value, timedelta):
        _check_fraction(value.microseconds, column)
        if column.type.dialect == "mysql":
            return value
        raise Misfit("it is a duration, not a time of day")
    if isinstance(value, str):
        if not _TIME.fullmatch(value):
            raise Misfit("it is a text that is not written as 12:30:00")
        fraction = value.partition(".")[2]
        _check_fraction(int(fraction.ljust(6, "0")) if fraction else 0, column)
        return value
    if isinstance(value, time):
        if value.tzinfo is not None:
            raise Misfit("it has a time zone, which the column would drop")
        _check_fraction(value.microsecond, column)
        return value
    raise Misfit(f"it is {_a(value)}, not a time")


def _parsed(read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except ValueError:
        raise Misfit("there is no such date or time") from None


def _zero() -> Any:
    raise Misfit("a date in the year 0 is none")


def _check_fraction(microseconds: int, column: TableColumn) -> None:
    digits = column.type.scale
    if digits is not None and digits < 6 and microseconds % 10 ** (6 - digits):
        raise Misfit(f"the column keeps {digits} digits of a second; round it in a function")


def _uuid(value: Any, column: TableColumn) -> Any:
    if isinstance(value, UUID):
        return str(value) if column.type.dialect == "mysql" else value
    if not isinstance(value, str):
        raise Misfit(f"it is {_a(value)}, not a UUID")
    try:
        found = uuid_of(value)
    except ValueError:
        raise Misfit("the text is not a UUID") from None
    return str(found) if column.type.dialect == "mysql" else found


def _json(value: Any, column: TableColumn) -> Any:
    if value.__class__ is JsonText:
        return str(value)
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_exact)
    except (TypeError, ValueError, RecursionError) as error:
        raise Misfit(f"it is not JSON ({type(error).__name__})") from None


def _exact(value: object) -> Any:
    if isinstance(value, Decimal) and value.is_finite() and value == int(value):
        return int(value)
    raise TypeError(type(value).__name__)


def _interval(value: Any, column: TableColumn) -> Any:
    return value


def _a(value: Any) -> str:
    if value.__class__ is JsonText:
        return "JSON"
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


_CONVERT: Mapping[Kind, Callable[[Any, TableColumn], Any]] = {
    "bool": _bool,
    "int16": _int,
    "int32": _int,
    "int64": _int,
    "dynamic": _int,
    "numeric": _numeric,
    "float32": _float,
    "float64": _float,
    "text": _text,
    "other": _text,
    "bytes": _bytes,
    "date": _date,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
    "time": _time,
    "uuid": _uuid,
    "json": _json,
    "interval": _interval,
}
_AS_IS: Mapping[Kind, frozenset[type[Any]]] = {
    "int16": frozenset({int, _NONE}),
    "int32": frozenset({int, _NONE}),
    "int64": frozenset({int, _NONE}),
    "dynamic": frozenset({int, _NONE}),
}
"""Classes whose values the server itself takes or refuses."""


def _own(values: _Values, column: TableColumn) -> _Values | None:
    """Values that came from a column of the very type: the server's own texts; None: look."""
    kind = column.type.kind
    if kind == "timestamptz":
        return [None if v is None else v.removesuffix("+00:00") for v in values]
    if kind in {"date", "time", "timestamp", "numeric", "bool"} or column.base in {"geometry"}:
        return values
    return None


# -- whole columns and rows --------------------------------------------------------------------


class Encoder:
    """Turns rows into tuples for an INSERT into some columns of a table.

    Args:
        names: The rows' columns that are written.
        columns: The table's column for each of them.
        bind: The dialect's last word on a value.
    """

    def __init__(
        self,
        label: str,
        names: Sequence[str],
        columns: Sequence[TableColumn],
        bind: Callable[[Any, TableColumn], Any],
    ) -> None:
        self.names = tuple(names)
        self.columns = tuple(columns)
        self._label = label
        self._bind = bind

    def tuples(self, rows: Sequence[Any]) -> list[tuple[Any, ...]]:
        """The values of some rows.

        Raises:
            DataError: A value does not fit its column.
            SchemaMismatchError: Rows of several kinds, or without a column that is written.
        """
        if not len(rows):
            return []
        try:
            return list(zip(*self._encoded(rows), strict=True))
        except DataError as error:
            if error.row is not None and (place := place_of(rows, error.row)):
                raise DataError(
                    f"{place}{error}", column=error.column, row=error.row, reason=error.reason
                ) from error
            raise

    def _encoded(self, rows: Sequence[Any]) -> list[_Values]:
        if isinstance(rows, TextRows):
            fields = list(zip(*split_lines(rows.lines), strict=True))
            return self._of_layout(rows.layout, fields)
        if isinstance(rows, ValueRows):
            return self._of_layout(rows.layout, list(zip(*rows.tuples, strict=True)))
        if isinstance(rows[0], Row):
            return self._of_rows(rows)
        return self._of_objects(rows)

    def _of_rows(self, rows: Sequence[Any]) -> list[_Values]:
        """Row objects, by runs of one layout."""
        if not all(isinstance(row, Row) for row in rows):
            raise self._mixed(rows)
        parts: list[list[_Values]] = []
        first = 0
        for _, run in groupby(rows, key=lambda row: id(row.layout)):
            part = list(run)
            changes: list[Mapping[str, Any]] = [row.changes or {} for row in part]
            columns = list(zip(*(row.fields for row in part), strict=True))
            parts.append(self._of_layout(part[0].layout, columns, changes, first))
            first += len(part)
        if len(parts) == 1:
            return parts[0]
        return [[v for part in parts for v in part[i]] for i in range(len(self.names))]

    def _of_layout(
        self,
        layout: Layout,
        fields: Sequence[_Values],
        changes: Sequence[Mapping[str, Any]] = (),
        first: int = 0,
    ) -> list[_Values]:
        missing = [name for name in self.names if name not in layout.index]
        if missing:
            raise self._missing(missing)
        found: list[_Values] = []
        changed = set[str]().union(*changes) if changes else set[str]()
        for number, name in enumerate(self.names):
            place = layout.index[name]
            source = layout.columns[place].type
            given = fields[place]
            if name in changed:
                decode = layout.decoders[place]
                given = [
                    change[name] if name in change else decode(field)
                    for field, change in zip(given, changes, strict=True)
                ]
                found.append(self._column(number, given, first))
                continue
            found.append(self._of_source(number, given, source, layout.is_text, first))
        return found

    def _of_source(
        self, number: int, given: _Values, source: Type, is_text: bool, first: int
    ) -> _Values:
        column = self.columns[number]
        if is_text:
            read = _of_copy_text(source)
            padded = column.base == "char" and source.name.startswith("character(")
            values: _Values = [
                None if field == NULL else read(field).rstrip(" ") if padded else read(field)
                for field in given
            ]
        elif source.dialect in FILES:
            meant = _of_file(source, column)
            values = given if meant is None else meant(given)
        else:
            if source.dialect == column.type.dialect and source.kind == column.type.kind:
                same_base = source.name.partition("(")[0] == column.type.name.partition("(")[0]
                wider = source.scale == column.type.scale
                if same_base and wider and (own := _own(given, column)) is not None:
                    return self._not_null(number, own, first)
            adapt = _of_database(source, column)
            values = given if adapt is None else adapt(given)
        return self._column(number, values, first)

    def _of_objects(self, rows: Sequence[Any]) -> list[_Values]:
        if len(set(map(type, rows))) > 1:
            raise self._mixed(rows)
        one = rows[0]
        kind = kind_of(one)
        if is_dataclass(kind):
            names = field_names(kind)
            pick: Callable[[Any, str], Any] = lambda row, name: attrgetter(name)(row)  # noqa: E731
        elif tuple_names(kind):
            names = tuple_names(kind)
            pick = getattr
        else:
            names = tuple(one)
            pick = lambda row, name: row[name]  # noqa: E731
            for number, row in enumerate(rows):
                if row.keys() != one.keys():
                    odd = ", ".join(sorted(map(repr, one.keys() ^ row.keys())))
                    raise SchemaMismatchError(
                        f"{self._label} got rows with different columns in one batch: row"
                        f" {number + 1} differs from the first in {odd}. Nothing of it was"
                        " written; give every row the same keys, with None where there is no value"
                    )
        missing = [name for name in self.names if name not in names]
        if missing:
            raise self._missing(missing)
        return [
            self._column(number, [pick(row, name) for row in rows], 0)
            for number, name in enumerate(self.names)
        ]

    def _column(self, number: int, values: _Values, first: int) -> _Values:
        column = self.columns[number]
        self._not_null(number, values, first)
        kinds = set(map(type, values))
        if kinds <= _AS_IS.get(column.type.kind, frozenset()) and column.base != "year":
            return values
        if kinds <= {str, _NONE} and column.type.kind == "text" and _is_short(values, column):
            return values
        convert, bind = _CONVERT[column.type.kind], self._bind
        done: list[Any] = []
        try:
            for value in values:
                # One by one, so that its place is known where one does not fit.
                done.append(  # noqa: PERF401
                    None if value is None else bind(convert(value, column), column)
                )
        except Misfit as misfit:
            raise self._refusal(column, str(misfit), first + len(done)) from None
        except (ValueError, ArithmeticError):
            why = "it is not what its type says"
            raise self._refusal(column, why, first + len(done)) from None
        return done

    def _not_null(self, number: int, values: _Values, first: int) -> _Values:
        column = self.columns[number]
        if not column.nullable and None in values:
            row = next(i for i, value in enumerate(values) if value is None)
            raise self._refusal(column, "NULL is not allowed", first + row)
        return values

    def _refusal(self, column: TableColumn, why: str, row: int) -> DataError:
        return DataError(
            f"{self._label}: column {column.name!r} ({column.type.name}) cannot take the value in"
            f" row {row + 1} of the batch: {why}. Nothing of this group was written",
            column=column.name,
            row=row,
            reason=f"it cannot go into {column.type.name}: {why}",
        )

    def _missing(self, names: Sequence[str]) -> SchemaMismatchError:
        return SchemaMismatchError(
            f"{self._label} got rows without {', '.join(map(repr, names))}, which other rows of the"
            " same flow have. Nothing of this group was written"
        )

    def _mixed(self, rows: Sequence[Any]) -> SchemaMismatchError:
        kinds = ", ".join(sorted({type(row).__name__ for row in rows}))
        return SchemaMismatchError(
            f"{self._label} got rows of several types in one batch ({kinds}). Nothing of it was"
            " written; let the function return one type"
        )


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_short(values: _Values, column: TableColumn) -> bool:
    """Whether texts fit whatever they are: no label, no cut space, room for each."""
    if column.base in {"enum", "set", "char"} or not values:
        return False
    present = [value for value in values if value is not None]
    if not _is_unicode("".join(present)):
        return False
    most = max(map(len, present), default=0)
    length = column.type.length
    if length is not None:
        return most <= length
    return column.octets is None or 4 * most <= column.octets
