"""Rows as JSON text and back, without losing anything: how ``etl_reject`` keeps them.

A row of a database is kept as its raw fields with the types of its columns, so that values which
Python cannot hold come back as they were. A function's own values are kept with their classes. The
text is ASCII: NUL characters and bytes that are no UTF-8 are escaped in it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from dataclasses import fields as dataclass_fields
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from operator import attrgetter
from typing import Any, TypeAlias
from uuid import UUID
from zoneinfo import ZoneInfo

from etl.connector import NewReject
from etl.databases.types import EnumType, same, text_decoder
from etl.errors import DataError, StageError
from etl.rows import Column, Layout, Row, Type

Json: TypeAlias = Any

_TAG = "$"
_OWN = ("_etl_pipeline_", "__main__")  # how the module of a pipeline's file is called


class CannotStoreError(Exception):
    """A value has no stored form; the text says of which class it is."""


def store_row(row: Any) -> str:
    """A row as text.

    Raises:
        CannotStoreError: It holds a value of a class that cannot be made again.
    """
    try:
        return json.dumps(_stored(row), ensure_ascii=True, separators=(",", ":"))
    except (ValueError, RecursionError) as error:  # a number of many thousand digits, a loop
        raise CannotStoreError(
            f"a value that is too large or deep ({type(error).__name__})"
        ) from error


def store_key(key: Mapping[str, Any] | None) -> str | None:
    """What identifies a row, as JSON for a person."""
    return None if key is None else json.dumps(dict(key), default=str, separators=(",", ":"))


def cannot_store(new: NewReject, error: CannotStoreError) -> StageError:
    """The error for a bad row that cannot be kept. It ends the run: a row is never lost."""
    return StageError(
        f"flow {new.key.flow!r}: {new.reject.step} refused a row ({new.reject.reason}), and the row"
        f" cannot be kept in etl_reject, because it holds {error}. Nothing of its group was written"
        " and the checkpoint did not move; let the steps before return dataclasses or dicts of"
        ' plain values, or use on_error="skip"'
    )


def restore_row(text: str, module: str) -> Any:
    """The row that :func:`store_row` stored.

    Args:
        module: The module of the pipeline's file, which has another name in each process.

    Raises:
        DataError: A class of the row is gone or has changed since.
    """
    try:
        return _Restorer(module).value(json.loads(text))
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"the stored row cannot be made again ({type(error).__name__}): its class has changed"
            " since, or the row was damaged",
            reason="the stored row cannot be made again: its class has changed since",
        ) from error


def readable_row(text: str) -> str:
    """A stored row for a person: what stands in its fields, without the types."""
    try:
        return json.dumps(_shown(json.loads(text)), ensure_ascii=False)
    except (ValueError, LookupError, TypeError):  # not stored by store_row
        return text


def _shown(stored: Json) -> Json:
    kind = _class_of(stored)
    if kind is list:
        return [_shown(one) for one in stored]
    if kind is not dict:
        return stored
    match stored[_TAG]:
        case "row":
            names = [column[0] for column in stored["columns"]]
            fields = dict(zip(names, stored["fields"], strict=True))
            fields |= dict(stored["changes"])
            return {name: _shown(value) for name, value in fields.items()}
        case "dataclass":
            return {name: _shown(value) for name, value in stored["v"].items()}
        case "dict":
            return {str(_shown(key)): _shown(value) for key, value in stored["v"]}
        case "float":
            return str(float.fromhex(stored["v"]))
        case _:
            return _shown(stored["v"])


# --- to JSON --------------------------------------------------------------------------------


def _class_of(value: object) -> Any:
    """Its class, as something whose attributes are not known before."""
    return type(value)


def _stored(value: Any) -> Json:
    kind = _class_of(value)
    if value is None or kind in {bool, int, str}:
        return value
    if kind is list:
        return [_stored(one) for one in value]
    write = _WRITERS.get(kind)
    if write is not None:
        return {_TAG: write[0], "v": write[1](value)}
    if issubclass(kind, Row):
        return _stored_row(value)
    if issubclass(kind, Enum):
        return {_TAG: "enum", "c": _class_name(kind), "v": value.name}
    if is_dataclass(kind):
        return _stored_dataclass(value)
    if _is_named_tuple(kind):
        return {_TAG: "named", "c": _class_name(kind), "v": [_stored(one) for one in value]}
    raise CannotStoreError(f"a value of class {kind.__qualname__}")


def _is_named_tuple(kind: type[object]) -> bool:
    return hasattr(kind, "_fields") and issubclass(kind, tuple)


def _stored_row(row: Row) -> Json:
    layout = row.layout
    changes = row.changes or {}
    fields = dict(zip(layout.names, row.fields, strict=True))
    return {
        _TAG: "row",
        "text": layout.is_text,
        "columns": [_stored_column(column) for column in layout.shown],
        "fields": [_stored(fields[column.name]) for column in layout.shown],
        "changes": [[name, _stored(value)] for name, value in changes.items()],
    }


def _stored_column(column: Column) -> Json:
    kind = column.type
    labels = list(kind.labels) if isinstance(kind, EnumType) else None
    return [
        column.name, column.nullable, kind.kind, kind.name, kind.dialect, kind.precision,
        kind.scale, kind.length, labels,
    ]  # fmt: skip


def _stored_dataclass(value: Any) -> Json:
    kind = _class_of(value)
    fields = dataclass_fields(kind)
    if not all(field.init for field in fields):
        raise CannotStoreError(f"a {kind.__qualname__}, which has a field with init=False")
    held = {field.name: _stored(getattr(value, field.name)) for field in fields}
    return {_TAG: "dataclass", "c": _class_name(kind), "v": held}


def _class_name(kind: type[Any]) -> Json:
    """Where to find a class again."""
    if "<locals>" in kind.__qualname__:
        raise CannotStoreError(f"a {kind.__qualname__}, a class made inside a function")
    module = "" if kind.__module__.startswith(_OWN) else kind.__module__
    return [module, kind.__qualname__]


def _stored_dict(value: dict[Any, Any]) -> Json:
    return [[_stored(key), _stored(one)] for key, one in value.items()]


def _stored_moment(value: datetime | time) -> Json:
    zone = value.tzinfo
    naive = value.replace(tzinfo=None).isoformat()
    return [naive, value.fold, None if zone is None else _stored_zone(zone)]


def _stored_zone(zone: tzinfo) -> Json:
    if isinstance(zone, ZoneInfo) and zone.key:  # one from a file may have none
        return zone.key
    offset = zone.utcoffset(None) if isinstance(zone, timezone) else None
    if offset is None:
        raise CannotStoreError(f"a time in a zone of class {type(zone).__qualname__}")
    return _stored_delta(offset)


def _stored_delta(value: timedelta) -> Json:
    return [value.days, value.seconds, value.microseconds]


_WRITERS: Mapping[type[Any], tuple[str, Callable[[Any], Json]]] = {
    float: ("float", float.hex),
    bytes: ("bytes", bytes.hex),
    bytearray: ("bytearray", bytearray.hex),
    memoryview: ("bytes", lambda value: bytes(value).hex()),
    Decimal: ("decimal", str),
    datetime: ("datetime", _stored_moment),
    date: ("date", date.isoformat),
    time: ("time", _stored_moment),
    timedelta: ("timedelta", _stored_delta),
    UUID: ("uuid", str),
    tuple: ("tuple", lambda value: [_stored(one) for one in value]),
    dict: ("dict", _stored_dict),
    set: ("set", lambda value: [_stored(one) for one in value]),
    frozenset: ("frozenset", lambda value: [_stored(one) for one in value]),
}


# --- and back -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Restorer:
    module: str

    def value(self, stored: Json) -> Any:
        kind = _class_of(stored)
        if kind is list:
            return self.many(stored)
        if kind is not dict:
            return stored
        tag = stored[_TAG]
        match tag:
            case "row":
                return self.row(stored)
            case "enum":
                return self.named(stored)[stored["v"]]
            case "dataclass":
                held = stored["v"].items()
                return self.named(stored)(**{name: self.value(one) for name, one in held})
            case "named":
                return self.named(stored)(*self.many(stored["v"]))
            case "tuple":
                return tuple(self.many(stored["v"]))
            case "set":
                return set(self.many(stored["v"]))
            case "frozenset":
                return frozenset(self.many(stored["v"]))
            case "dict":
                return {self.value(key): self.value(one) for key, one in stored["v"]}
            case _:
                return _READERS[tag](stored["v"])

    def many(self, found: Sequence[Json]) -> list[Any]:
        return [self.value(one) for one in found]

    def named(self, stored: Mapping[str, Any]) -> Any:
        module, name = stored["c"]
        try:
            return attrgetter(name)(importlib.import_module(module or self.module))
        except (ImportError, AttributeError) as error:
            raise DataError(
                f"the class {name} of a stored row is not in the pipeline's code any more",
                reason=f"the class {name} of the stored row is gone",
            ) from error

    def row(self, stored: Mapping[str, Any]) -> Row:
        columns = [_column(one) for one in stored["columns"]]
        is_text = stored["text"]
        decoders = [
            text_decoder(one.type, nullable=one.nullable, column=one.name) if is_text else same
            for one in columns
        ]
        changes = {name: self.value(one) for name, one in stored["changes"]}
        layout = Layout(columns, decoders, is_text=is_text)
        return layout.row(tuple(self.many(stored["fields"])), changes or None)


def _column(stored: Json) -> Column:
    name, nullable, kind, type_name, dialect, precision, scale, length, labels = stored
    type = Type(
        kind=kind,
        name=type_name,
        dialect=dialect,
        precision=precision,
        scale=scale,
        length=length,
    )
    if labels is not None:
        type = EnumType(kind=kind, name=type_name, dialect=dialect, labels=tuple(labels))
    return Column(name=name, type=type, nullable=nullable)


def _moment(parse: Callable[[str], Any]) -> Callable[[Json], Any]:
    def read(stored: Json) -> Any:
        text, fold, zone = stored
        return parse(text).replace(fold=fold, tzinfo=None if zone is None else _zone(zone))

    return read


def _zone(stored: Json) -> tzinfo:
    return ZoneInfo(stored) if isinstance(stored, str) else timezone(_delta(stored))


def _delta(stored: Json) -> timedelta:
    days, seconds, microseconds = stored
    return timedelta(days=days, seconds=seconds, microseconds=microseconds)


_READERS: Mapping[str, Callable[[Json], Any]] = {
    "float": float.fromhex,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "decimal": Decimal,
    "datetime": _moment(datetime.fromisoformat),
    "date": date.fromisoformat,
    "time": _moment(time.fromisoformat),
    "timedelta": _delta,
    "uuid": UUID,
}
