"""Rows of any kind as the values that SQLite stores, for the columns of one table.

SQLite changes a value that does not fit its column's affinity without a word: text that looks
like a number becomes one, digits beyond a float's are dropped, NaN becomes NULL. So whatever
SQLite would change is converted here, exactly, or refused with the column's name. Whole columns
at a time: where all values have a class that is stored as it is, they are not looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from itertools import groupby
from math import copysign
from operator import attrgetter, itemgetter, ne
from typing import Any, TypeAlias, cast
from uuid import UUID

from etl.databases.build import Misfit
from etl.databases.given import kind_of, layout_of, names_of
from etl.databases.sqlite.build import duration_text
from etl.databases.sqlite.schema import Affinity, TableColumn, affinity_of, declared_kind
from etl.databases.types import FILES, NULL, unescape, unhex
from etl.errors import DataError, SchemaMismatchError
from etl.rows import Column, Kind, Layout, Row, TextRows, Type, ValueRows, WideLine, split_lines

SLICE = 2_000
"""Rows of one call: SQLite cannot be interrupted between the short statements within it."""

Fields: TypeAlias = tuple[Any, ...]
_Values: TypeAlias = Sequence[Any]
_Convert: TypeAlias = Callable[[Any], Any]
_Bind: TypeAlias = Callable[[_Values], _Values]
_NONE = type(None)
_BITS = 63


# -- single values ---------------------------------------------------------------------------

_NUMBER = re.compile(r"\s*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?\s*", re.ASCII)
_WHOLE = re.compile(r"\s*[+-]?\d{1,19}\s*", re.ASCII)


def _number(text: str, affinity: Affinity) -> int | float:
    """The number that a text means, if SQLite holds that very number."""
    if affinity != "real" and _WHOLE.fullmatch(text):
        whole = int(text)
        if -(1 << _BITS) <= whole < 1 << _BITS:
            return whole
    number = float(text)
    if Decimal(repr(number)) != Decimal(text.strip()):
        raise Misfit(
            "a column of this affinity would not keep all its digits; declare the column TEXT"
        )
    return number


def _decimal(value: Decimal, affinity: Affinity) -> Any:
    if affinity in {"text", "blob"}:
        return str(value)
    if not value.is_finite():
        raise Misfit("it is not finite; a column declared TEXT would keep it")
    return _number(str(value), affinity)


def _text(value: str, affinity: Affinity) -> Any:
    if affinity in {"text", "blob"} or _NUMBER.fullmatch(value) is None:
        return value
    number = _number(value, affinity)
    # SQLite keeps 0.0 as the integer 0 where the affinity is not REAL, and there without its sign.
    whole = isinstance(number, float) and number.is_integer()
    if repr(number) != value or (whole and (affinity != "real" or value.startswith("-0"))):
        raise Misfit(
            "the text looks like a number, and a column of this affinity would store it as one, in"
            " another form; declare the column TEXT, or convert it in a function"
        )
    return number


def _int(value: int, affinity: Affinity) -> int | str:
    if affinity == "text":
        return str(int(value))  # SQLite would write the same digits, but takes 64 bits only
    if not -(1 << _BITS) <= value < 1 << _BITS:
        raise Misfit("the integer does not fit into 64 bits; declare the column TEXT")
    if affinity == "real" and float(value) != value:
        raise Misfit("a REAL column would not keep all digits of the integer")
    return int(value)


def _float(value: float, affinity: Affinity) -> Any:
    if value != value:
        raise Misfit("it is NaN, which SQLite would store as NULL")
    if value == 0 and affinity not in {"text", "blob"} and copysign(1, value) < 0:
        raise Misfit(
            "it is -0.0, and a column of this affinity keeps no sign of a zero; add 0.0 to it, or"
            " declare the column TEXT or without a type"
        )
    # SQLite itself would keep 15 digits of it in a TEXT column.
    return float.__repr__(value) if affinity == "text" else float(value)


def _moment(value: datetime, affinity: Affinity) -> str:
    """Aware: in UTC with ``+00:00``, which sorts by time and SQLite's functions understand."""
    if value.tzinfo is not UTC and value.utcoffset() is not None:
        value = value.astimezone(UTC)
    return value.isoformat(" ")


def _json(value: Any, affinity: Affinity) -> Any:
    try:
        return _text(_json_text(value), affinity)
    except (TypeError, ValueError, RecursionError) as error:
        raise Misfit(f"it is not JSON ({type(error).__name__})") from None


def _json_text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except TypeError:
        return _json_slowly(value)


def _json_slowly(value: object) -> str:
    """JSON with exact decimals, which the json module cannot write."""
    if isinstance(value, Decimal) and value.is_finite():
        return str(value)
    if isinstance(value, dict):
        items = cast("dict[object, object]", value).items()
        if not all(isinstance(key, str) for key, _ in items):
            raise TypeError("a key that is not text")
        return "{" + ", ".join(f"{_json_text(k)}: {_json_slowly(v)}" for k, v in items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_json_slowly, cast("Sequence[object]", value))) + "]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _enum(value: Enum, affinity: Affinity) -> Any:
    if not isinstance(value.value, str):
        raise Misfit("it is an Enum whose value is not text")
    return _text(value.value, affinity)


_CONVERT: tuple[tuple[type[Any], Callable[[Any, Affinity], Any]], ...] = (
    (bool, lambda value, _: int(value)),
    (Enum, _enum),
    (int, _int),
    (float, _float),
    (str, lambda value, affinity: _text(str(value), affinity)),
    (bytes, lambda value, _: bytes(value)),
    (bytearray, lambda value, _: bytes(value)),
    (memoryview, lambda value, _: bytes(value)),
    (Decimal, _decimal),
    (datetime, _moment),
    (date, lambda value, _: value.isoformat()),
    (time, lambda value, _: value.isoformat()),
    (timedelta, lambda value, _: duration_text(value)),
    (UUID, lambda value, _: str(value)),
    (dict, _json),
    (list, _json),
    (tuple, _json),
)
"""What is tried in turn: a subclass stands before its base."""


def _converter(kind: type[Any]) -> Callable[[Any, Affinity], Any] | None:
    return next((convert for base, convert in _CONVERT if issubclass(kind, base)), None)


# -- whole columns ---------------------------------------------------------------------------

_AS_IS: Mapping[Affinity, frozenset[type[Any]]] = {
    "blob": frozenset({int, str, bytes, _NONE}),
    "text": frozenset({str, bytes, _NONE}),
    "integer": frozenset({int, bytes, _NONE}),
    "numeric": frozenset({int, bytes, _NONE}),
    "real": frozenset({bytes, _NONE}),
}
"""Classes that a column of an affinity stores as they are. Integers of more than 64 bits are
refused by the driver, and found then."""


def bind_values(values: _Values, column: TableColumn) -> _Values:
    """Python's and SQLite's own values for a column.

    Raises:
        Misfit: By way of the caller, which names the row.
    """
    affinity = column.affinity
    kinds = set(map(type, values))
    if column.is_loose:
        return [_loosely(value) for value in values]
    _refuse_null(values, column)
    as_is = _AS_IS[affinity]
    if kinds <= as_is:
        return values
    # NaN alone differs from itself.
    if affinity != "text" and kinds <= as_is | {float} and not any(map(ne, values, values)):
        if affinity == "blob" or 0.0 not in values:
            return values
    converters = {kind: _converter(kind) for kind in kinds - {_NONE}}
    for kind, convert in converters.items():
        if convert is None:
            raise Misfit(f"SQLite stores no {kind.__name__}; convert it in a function")
    known = cast("dict[type[Any], Callable[[Any, Affinity], Any]]", converters)
    if len(known) == 1:
        (convert,) = known.values()
        return [None if value is None else convert(value, affinity) for value in values]
    return [None if value is None else known[type(value)](value, affinity) for value in values]


def _refuse_null(values: _Values, column: TableColumn) -> None:
    if column.is_number and None in values:
        raise Misfit("it is NULL, for which SQLite would make up a number")


def _loosely(value: Any) -> Any:
    """A value as it is: SQLite's affinity may make of it what it will."""
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int) and not -(1 << _BITS) <= value < 1 << _BITS:
        return float(value)
    convert = _converter(kind_of(value))
    if convert is None:
        raise Misfit(f"SQLite stores no {kind_of(value).__name__}; convert it in a function")
    return convert(value, "blob")


_WORDS = {"true": 1, "t": 1, "1": 1, "false": 0, "f": 0, "0": 0}
_BYTES = re.compile(r"\\x(?:[0-9a-fA-F]{2})*")


_NOT_FINITE = {"Infinity": float("inf"), "-Infinity": float("-inf")}


def bind_texts(values: _Values, column: TableColumn, *, is_json: bool = False) -> _Values:
    """Texts of a file, and a function's values beside them, for a column.

    A number goes into a number's column as that number, ``\\x`` and hex digits into a BLOB as
    bytes.

    Args:
        is_json: Numbers and booleans come as such: a text that looks like one is none.
    """
    affinity, kind = column.affinity, declared_kind(column.declared)
    if affinity == "text" or (affinity == "blob" and kind != "bytes"):
        return bind_values(values, column)

    def meant(value: Any) -> Any:
        if value.__class__ is not str:
            return value
        if affinity == "blob":
            return bytes.fromhex(value[2:]) if _BYTES.fullmatch(value) else value
        if value in _NOT_FINITE and affinity in {"real", "numeric"}:
            return _NOT_FINITE[value]
        if is_json:
            return value
        if kind == "bool" and value.lower() in _WORDS:
            return _WORDS[value.lower()]
        return _number(value, affinity) if _NUMBER.fullmatch(value) else value

    return bind_values([meant(value) for value in values], column)


def text_binder(source: Type, column: TableColumn) -> _Convert:
    """From one field of COPY text, which is not NULL, to the value for a column.

    PostgreSQL's text stays as it is wherever it is the exact form: numeric, dates, uuid, json,
    intervals and all the rest. Integers, floats, booleans and bytes become SQLite's own. A
    ``timestamptz`` gets its offset in full (``+00:00``), as SQLite's functions want it.
    """
    affinity = column.affinity
    if column.is_loose:
        return _loose_binder(source)
    match source.kind:
        case "bytes":
            return unhex
        case "int16" | "int32" | "int64" if affinity != "text":
            return int if affinity != "real" else lambda field: _int(int(field), affinity)
        case "float32" | "float64" if affinity != "text":
            return lambda field: _float(float(field), affinity)
        case "bool" if affinity != "text":
            return lambda field: 1 if field == "t" else 0
        case "numeric" if affinity not in {"text", "blob"}:
            return lambda field: _decimal(Decimal(field), affinity)
        case "timestamptz":
            return lambda field: f"{field}:00" if field.endswith("+00") else unescape(field)
        case _:
            return lambda field: _text(unescape(field), affinity)


def _loose_binder(source: Type) -> _Convert:
    match source.kind:
        case "bytes":
            return unhex
        case "int16" | "int32" | "int64":
            return int
        case "float32" | "float64":
            return float
        case "bool":
            return lambda field: 1 if field == "t" else 0
        case _:
            return unescape


_UNESCAPED: frozenset[Kind] = frozenset(
    {"bool", "int16", "int32", "int64", "float32", "float64", "numeric", "date", "time", "uuid"}
)


def bind_fields(fields: _Values, source: Type, column: TableColumn) -> _Values:
    """Fields of COPY text for a column; see :func:`text_binder`."""
    if column.is_number and NULL in fields:
        _refuse_null([None], column)
    if column.affinity in {"text", "blob"} and _stays_text(source, column.affinity):
        if source.kind in _UNESCAPED or "\\" not in "".join(fields):
            return [None if f == NULL else f for f in fields] if NULL in fields else fields
        return [None if f == NULL else unescape(f) for f in fields]
    convert = text_binder(source, column)
    if NULL in fields:
        return [None if field == NULL else convert(field) for field in fields]
    return list(map(convert, fields))


@dataclass(frozen=True, slots=True)
class _New:
    """A value that a function put in the place of a field."""

    value: Any


def _bind_mixed(fields: _Values, source: Type, column: TableColumn) -> _Values:
    """Fields of COPY text with new values between them."""
    if NULL in fields:
        _refuse_null([None], column)
    convert = text_binder(source, column)
    return [
        bind_values([field.value], column)[0]
        if type(field) is _New
        else None
        if field == NULL
        else convert(field)
        for field in fields
    ]


def _stays_text(source: Type, affinity: Affinity) -> bool:
    match source.kind:
        case "bytes" | "timestamptz":
            return False
        case "int16" | "int32" | "int64" | "float32" | "float64" | "bool":
            return affinity == "text"
        case _:
            return True


# -- rows ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Plan:
    """Where the fields of one layout go, and whether they may go as they are."""

    layout: Layout
    places: tuple[int, ...]
    is_straight: bool  # all fields, in the layout's order, as they are
    passes: bool  # as they are
    is_bare: bool  # fields of COPY text that SQLite itself takes for what they are
    pick: _Convert


class Binder:
    """Turns rows into tuples for an INSERT into some columns of a table.

    Args:
        names: The rows' columns that are written.
        columns: The table's column for each of them.
    """

    def __init__(self, label: str, names: Sequence[str], columns: Sequence[TableColumn]) -> None:
        self.names = tuple(names)
        self.columns = tuple(columns)
        self._label = label
        self._plans: dict[int, _Plan] = {}

    def tuples(self, rows: Sequence[Any], first: int = 0) -> Iterator[Fields]:
        """The values of a slice of rows, converted when the first is asked for.

        Args:
            first: Its place in the batch, for messages.

        Raises:
            DataError: A value does not fit its column.
            SchemaMismatchError: Rows of several kinds, or without a column that is written.
        """
        layout = layout_of(rows)
        if layout is None:
            yield from self._objects(rows, first)
        elif isinstance(rows, ValueRows):
            plan = self._plan(layout)
            if plan.passes:
                yield from rows.tuples if plan.is_straight else map(plan.pick, rows.tuples)
            else:
                yield from self._values(plan, rows.tuples, first)
        elif isinstance(rows, TextRows):
            yield from self._texts(self._plan(layout), split_lines(rows.lines), first)
        else:
            yield from self._rows(rows, first)

    def bare_lines(self, rows: Sequence[Any]) -> Sequence[str] | None:
        """The lines of rows whose fields SQLite itself takes for what they are; None: it does not.

        Text stays text in a column that keeps it, and the text of an integer becomes that integer
        in a column that keeps integers.
        """
        if not isinstance(rows, TextRows) or isinstance(rows.lines, WideLine):
            return None  # a wide one is not put together again
        return rows.lines if self._plan(rows.layout).is_bare else None

    def refuse_unstorable(self, rows: Sequence[Any], first: int) -> None:
        """Find the value that the driver could not take, and raise DataError for it."""
        for number, values in enumerate(self.tuples(rows, first)):
            for name, value in zip(self.names, values, strict=True):
                if type(value) is int and not -(1 << _BITS) <= value < 1 << _BITS:
                    why = "the integer does not fit into 64 bits"
                elif type(value) is str and not _is_unicode(value):
                    why = "the text holds a lone surrogate, which is no character"
                else:
                    continue
                raise self._refusal(name, why, first + number)

    def _rows(self, rows: Sequence[Row], first: int) -> Iterator[Fields]:
        """Row objects, by runs of one layout."""
        kinds = set(map(type, rows))
        if not all(issubclass(kind, Row) for kind in kinds):
            raise self._mixed(kinds)
        for _, run in groupby(rows, key=lambda row: id(row.layout)):
            part = list(run)
            plan = self._plan(part[0].layout)
            changes = [row.changes for row in part]
            changed = set[str]().union(*filter(None, changes))
            fields = [row.fields for row in part]
            if plan.layout.is_text:
                yield from self._texts(plan, fields, first, changed, changes)
            elif changed or not plan.passes:
                if changed:
                    fields = [
                        _changed(f, c, plan.layout) for f, c in zip(fields, changes, strict=True)
                    ]
                yield from self._values(plan, fields, first)
            else:
                yield from cast("Iterator[Fields]", map(plan.pick, fields))
            first += len(part)

    def _values(self, plan: _Plan, rows: Sequence[_Values], first: int) -> Iterator[Fields]:
        columns = list(zip(*rows, strict=True))
        sources = [plan.layout.columns[place].type for place in plan.places]
        return self._together([columns[place] for place in plan.places], first, sources)

    def _texts(
        self,
        plan: _Plan,
        rows: Sequence[_Values],
        first: int,
        changed: set[str] | None = None,
        changes: Sequence[Mapping[str, Any] | None] = (),
    ) -> Iterator[Fields]:
        columns = list(zip(*rows, strict=True))
        bound: list[_Values] = []
        for number, place in enumerate(plan.places):
            column = self.columns[number]
            source = plan.layout.columns[place].type
            name = self.names[number]
            if not changed or name not in changed:
                bind: _Bind = partial(bind_fields, source=source, column=column)
                bound.append(self._bound(number, columns[place], first, bind))
                continue
            mixed = [
                _New(change[name]) if change is not None and name in change else field
                for field, change in zip(columns[place], changes, strict=True)
            ]
            bind = partial(_bind_mixed, source=source, column=column)
            bound.append(self._bound(number, mixed, first, bind))
        return zip(*bound, strict=True)

    def _objects(self, rows: Sequence[Any], first: int) -> Iterator[Fields]:
        kinds = set(map(type, rows))
        if len(kinds) > 1:
            raise self._mixed(kinds)
        names = names_of(rows, self._label)
        missing = [name for name in self.names if name not in names]
        if missing:
            raise SchemaMismatchError(
                f"{self._label} got rows without {', '.join(map(repr, missing))}, which other rows"
                " of the same flow have. Nothing of this group was written"
            )
        one = rows[0]
        pick: _Convert
        if is_dataclass(one):
            pick = attrgetter(*self.names)
        elif isinstance(one, tuple):
            pick = _getter([names.index(name) for name in self.names])
        else:
            pick = _getter(self.names)
            for number, row in enumerate(rows):
                if row.keys() != one.keys():
                    odd = ", ".join(sorted(map(repr, one.keys() ^ row.keys())))
                    raise SchemaMismatchError(
                        f"{self._label} got rows with different columns in one batch: row"
                        f" {first + number + 1} differs from the first in {odd}. Nothing of it was"
                        " written; give every row the same keys, with None where there is no value"
                    )
        picked = map(pick, rows)
        columns: list[_Values] = (
            [list(picked)] if len(self.names) == 1 else list(zip(*picked, strict=True))
        )
        return self._together(columns, first)

    def _together(
        self, columns: Sequence[_Values], first: int, sources: Sequence[Type] = ()
    ) -> Iterator[Fields]:
        bound: list[_Values] = []
        for number, values in enumerate(columns):
            dialect = sources[number].dialect if sources else ""
            bind: _Bind = partial(bind_values, column=self.columns[number])
            if dialect in FILES:
                is_json = dialect == "json"
                bind = partial(bind_texts, column=self.columns[number], is_json=is_json)
            bound.append(self._bound(number, values, first, bind))
        return zip(*bound, strict=True)

    def _bound(self, number: int, values: _Values, first: int, bind: _Bind) -> _Values:
        """A column's values, bound; where one does not fit, an error that names its row."""
        try:
            return bind(values)
        except (Misfit, ValueError, OverflowError):
            pass
        for row, value in enumerate(values):
            try:
                bind([value])
            except (Misfit, ValueError, OverflowError) as error:
                why = str(error) if isinstance(error, Misfit) else "it is not what its type says"
                raise self._refusal(self.names[number], why, first + row) from None
        raise self._refusal(self.names[number], "a value does not fit", first)

    def _refusal(self, name: str, why: str, row: int) -> DataError:
        column = self.columns[self.names.index(name)]
        declared = f" ({column.declared})" if column.declared else ""
        return DataError(
            f"{self._label}: column {column.name!r}{declared} cannot take the value in row"
            f" {row + 1} of the batch: {why}. Nothing of this group was written",
            column=column.name,
            row=row,
            reason=f"it cannot go into {column.declared or 'the column'}: {why}",
        )

    def _mixed(self, kinds: set[type[Any]]) -> SchemaMismatchError:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        return SchemaMismatchError(
            f"{self._label} got rows of several types in one batch ({names}). Nothing of it was"
            " written; let the function return one type"
        )

    def _plan(self, layout: Layout) -> _Plan:
        plan = self._plans.get(id(layout))
        if plan is not None and plan.layout is layout:
            return plan
        missing = [name for name in self.names if name not in layout.index]
        if missing:
            raise SchemaMismatchError(
                f"{self._label} got rows without {', '.join(map(repr, missing))}, which other rows"
                " of the same flow have. Nothing of this group was written"
            )
        places = tuple(layout.index[name] for name in self.names)
        passes = not layout.is_text and all(
            _stays(layout.columns[place], column)
            for place, column in zip(places, self.columns, strict=True)
        )
        plan = _Plan(
            layout=layout,
            places=places,
            is_straight=passes and places == tuple(range(len(layout.columns))),
            passes=passes,
            is_bare=layout.is_text
            and places == tuple(range(len(layout.columns)))
            and all(map(_is_bare, layout.columns, self.columns)),
            pick=_picker(places),
        )
        self._plans[id(layout)] = plan
        return plan


def _stays(source: Column, target: TableColumn) -> bool:
    """Whether what a SQLite column holds is stored unchanged: the affinity was applied already."""
    if target.is_number and source.nullable:
        return False
    return source.type.dialect == "sqlite" and (
        target.affinity == "blob" or affinity_of(source.type.name) == target.affinity
    )


def bare_values(lines: Sequence[str]) -> Fields:
    """The values of some lines behind each other, each a text or None; see ``bare_lines``."""
    joined = "\t".join(lines)
    fields = joined.split("\t")
    if "\\" not in joined:
        return tuple(fields)
    return tuple(
        (None if field == NULL else unescape(field)) if "\\" in field else field for field in fields
    )


def _is_bare(source: Column, target: TableColumn) -> bool:
    """Whether SQLite stores the right value when it is given a field's text."""
    if target.is_number and source.nullable:
        return False
    if target.affinity in {"integer", "numeric"}:
        # Digits of at most 64 bits: SQLite makes exactly this integer of them.
        return source.type.kind in {"int16", "int32", "int64"}
    return target.affinity in {"text", "blob"} and _stays_text(source.type, target.affinity)


def _picker(places: Sequence[int]) -> _Convert:
    if len(places) == 1:
        place = places[0]
        return lambda row: (row[place],)
    return _getter(places)


def _getter(keys: Sequence[Any]) -> _Convert:
    """Takes the values of some keys out of a row; a single one comes bare."""
    getter: _Convert = itemgetter(*keys)
    return getter


def _changed(fields: _Values, changes: Mapping[str, Any] | None, layout: Layout) -> _Values:
    if not changes:
        return fields
    copy = [*fields]
    for name, value in changes.items():
        copy[layout.index[name]] = value
    return copy


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
