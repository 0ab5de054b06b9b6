"""Which Arrow type holds a column exactly, and which column an Arrow type is.

Arrow has decimals of up to 76 digits, dates and times of the years 1 to 9999 as far as Python can
read them, and no intervals, networks, ranges. What it has no exact type for goes as text, which is;
the field's metadata keep the kind, so that it is one again where etl reads it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, cast

from etl.errors import ConfigError, DataError, SchemaMismatchError
from etl.rows import Column, Kind, Type

KIND = b"etl:kind"
"""In a field's metadata: the kind of a column that went as text."""

_DIGITS = 76
_AS_TEXT: frozenset[Kind] = frozenset({"numeric", "interval", "uuid", "json", "other"})


def load(name: str = "pyarrow") -> Any:
    """A module of pyarrow.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            "Parquet files and map_arrow need pyarrow: install the extra, as in"
            " pip install 'etl[arrow]'"
        ) from error


# -- from columns to Arrow -------------------------------------------------------------------


def schema_of(columns: Sequence[Column]) -> tuple[Any, list[str]]:
    """The Arrow schema for columns; which of them go as text.

    Raises:
        SchemaMismatchError: A column holds values of several kinds.
    """
    pa = load()
    fields: list[Any] = []
    texts: list[str] = []
    for column in columns:
        found = _arrow_type(pa, column)
        metadata = None
        if found is None:
            found = pa.string()
            kind = column.type.kind
            if kind in _AS_TEXT:
                texts.append(f"{column.name!r} ({column.type.name})")
                metadata = {KIND: kind.encode()}
        fields.append(pa.field(column.name, found, metadata=metadata))
    return pa.schema(fields), texts


_TYPED: frozenset[str] = frozenset({"postgresql", "python", "mysql", "generic"})
"""Dialects whose dates, times and decimals are such, and no texts."""
_PLAIN: frozenset[Kind] = frozenset(
    {"bool", "int16", "int32", "int64", "float32", "float64", "bytes"}
)


def _arrow_type(pa: Any, column: Column) -> Any:
    type_ = column.type
    if type_.dialect == "csv" or (type_.dialect not in _TYPED and type_.kind not in _PLAIN):
        if type_.kind == "dynamic" and type_.dialect != "csv":
            raise SchemaMismatchError(
                f"column {column.name!r}"
                + (f" ({type_.name})" if type_.name else "")
                + " holds values of several kinds (numbers, texts, blobs), and a column of Arrow"
                " holds one. Nothing was written; cast it in the source, or leave it out"
            )
        return None
    match type_.kind:
        case "numeric":
            if type_.precision is None or type_.scale is None:
                return None
            # Parquet has no negative scale, and none that exceeds the digits.
            scale = max(type_.scale, 0)
            digits = max(type_.precision - min(type_.scale, 0), scale)
            if digits > _DIGITS:
                return None
            return pa.decimal128(digits, scale) if digits <= 38 else pa.decimal256(digits, scale)
        case "bool":
            return pa.bool_()
        case "int16" | "int32" | "int64" | "float32" | "float64":
            return getattr(pa, type_.kind)()
        case "bytes":
            return pa.binary()
        case "date":
            return pa.date32()
        case "time":
            return pa.time64("us")
        case "timestamp":
            return pa.timestamp("us")
        case "timestamptz":
            return pa.timestamp("us", "UTC")
        case _:
            return None


# -- from Arrow to columns -------------------------------------------------------------------


def column_of(field: Any, where: str) -> Column:
    """The column that an Arrow field is.

    Raises:
        SchemaMismatchError: No column can hold its values.
    """
    pa = load()
    kind = _kind_of(pa, field.type)
    if kind is None:
        raise SchemaMismatchError(
            f"{where}: column {field.name!r} has the Arrow type {field.type}, which has no match"
            " here. Nothing was written; leave the column out, or cast it where it is made"
        )
    if kind != "text":
        # The digits of a decimal: from rows it becomes the same decimal again.
        is_decimal = pa.types.is_decimal(field.type)
        made = Type(
            kind=kind,
            name=str(field.type),
            dialect="python",
            precision=field.type.precision if is_decimal else None,
            scale=field.type.scale if is_decimal else None,
        )
        return Column(name=field.name, type=made)
    metadata: Any = field.metadata or {}
    stored: bytes = metadata.get(KIND, b"")
    text: Kind = "text"
    for one in _AS_TEXT - {"other"}:
        if one.encode() == stored:
            text = one
    # A text means what the target's column makes of it, as in CSV.
    return Column(name=field.name, type=Type(kind=text, name="", dialect="csv"))


def _kind_of(pa: Any, type_: Any) -> Kind | None:
    types = pa.types
    if types.is_dictionary(type_):
        return _kind_of(pa, type_.value_type)
    tests: tuple[tuple[Kind, Callable[[Any], bool]], ...] = (
        ("text", types.is_null),
        ("bool", types.is_boolean),
        ("int64", types.is_integer),
        ("float32", types.is_float16),
        ("float32", types.is_float32),
        ("float64", types.is_float64),
        ("numeric", types.is_decimal),
        ("text", types.is_string),
        ("text", types.is_large_string),
        ("text", types.is_string_view),
        ("bytes", types.is_binary),
        ("bytes", types.is_large_binary),
        ("bytes", types.is_binary_view),
        ("bytes", types.is_fixed_size_binary),
        ("date", types.is_date),
        ("time", types.is_time),
        ("interval", types.is_duration),
        ("json", types.is_nested),
    )
    if types.is_timestamp(type_):
        return "timestamp" if type_.tz is None else "timestamptz"
    if types.is_uint64(type_):
        return "numeric"
    return next((kind for kind, test in tests if test(type_)), None)


def values_of(array: Any, column: Column, place: Callable[[int], str]) -> list[Any]:
    """The values of an Arrow array as Python's own.

    Args:
        place: Where a row stands, for a message.

    Raises:
        DataError: Python has no such value: a part of a microsecond, a year beyond 9999.
    """
    pa = load()
    type_ = array.type
    read: Callable[[Any], list[Any]] = lambda one: one.to_pylist()  # noqa: E731  as a default
    if pa.types.is_temporal(type_) and getattr(type_, "unit", "") == "ns":
        whole = _in_microseconds(pa, type_)
        read = lambda one: one.cast(whole).to_pylist()  # noqa: E731
    elif pa.types.is_nested(type_):
        read = lambda one: [None if v is None else _document(v) for v in one.to_pylist()]  # noqa: E731
    try:
        values = read(array)
    except (ValueError, OverflowError, TypeError):  # pa.ArrowInvalid is a ValueError
        for row in range(len(array)):
            try:
                read(array.slice(row, 1))
            except (ValueError, OverflowError, TypeError):
                raise DataError(
                    f"{place(row)}: column {column.name!r} ({type_}) holds a value that no column"
                    " here keeps exactly (a part of a microsecond, a year beyond 9999; within a"
                    " list, struct or map also NaN, infinity, bytes and durations). Mend it where"
                    " it is made",
                    column=column.name,
                    reason=f"a value of {type_} that no column keeps exactly",
                ) from None
        raise
    if column.type.kind == "numeric" and pa.types.is_integer(type_):
        return [None if value is None else Decimal(value) for value in values]
    if column.type.kind == "timestamptz":
        return [None if value is None else value.astimezone(UTC) for value in values]
    return values


def _in_microseconds(pa: Any, type_: Any) -> Any:
    if pa.types.is_timestamp(type_):
        return pa.timestamp("us", type_.tz)
    return pa.duration("us") if pa.types.is_duration(type_) else pa.time64("us")


def _document(value: Any) -> Any:
    """A list, struct or map as JSON values.

    Raises:
        TypeError: It holds what JSON has not.
    """
    if isinstance(value, dict):
        return {str(k): _document(v) for k, v in cast("dict[object, object]", value).items()}
    if isinstance(value, list | tuple):
        return [_document(one) for one in cast("Sequence[object]", value)]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta | bytes):
        raise TypeError(type(value).__name__)
    if isinstance(value, float):
        json.dumps(value, allow_nan=False)  # ValueError
    return value
