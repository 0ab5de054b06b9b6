"""The kind of a column of texts: the narrowest one that gives each of them back as it was.

``007`` stays text, as does a time with an offset: what a kind would not keep decides against it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, TypeAlias

from etl.rows import Kind

_LONGEST_NUMBER = 1_000
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_DECIMAL = re.compile(r"(?!-0(?:\.0*)?\Z)-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?")
_FLOAT = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,3})?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_STAMP = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[ T]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]{1,6})?"
    r"(Z|\+00(?::00)?)?"
)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _is_integer(text: str) -> bool:
    return _INTEGER.fullmatch(text) is not None and (
        len(text) < 19 or (len(text) < 21 and -(1 << 63) <= int(text) < 1 << 63)
    )


def _is_decimal(text: str) -> bool:
    return len(text) <= _LONGEST_NUMBER and _DECIMAL.fullmatch(text) is not None


def _is_float(text: str) -> bool:
    if len(text) > _LONGEST_NUMBER or _FLOAT.fullmatch(text) is None:
        return False
    try:
        return Decimal(repr(float(text))) == Decimal(text)
    except InvalidOperation:
        return False


def _is_bool(text: str) -> bool:
    return text in {"true", "false"}


def _is_date(text: str) -> bool:
    if _DATE.fullmatch(text) is None:
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _is_stamp(text: str, *, zone: bool) -> bool:
    found = _STAMP.fullmatch(text)
    if found is None or (found[3] is not None) is not zone:
        return False
    try:
        datetime.fromisoformat(f"{found[1]} {found[2]}")
    except ValueError:
        return False
    return True


_Tests: TypeAlias = "tuple[tuple[Kind, Callable[[str], bool]], ...]"
_MOMENTS: _Tests = (
    ("date", _is_date),
    ("timestamp", lambda text: _is_stamp(text, zone=False)),
    ("timestamptz", lambda text: _is_stamp(text, zone=True)),
    ("uuid", lambda text: _UUID.fullmatch(text) is not None),
)
_TESTS: _Tests = (
    ("int64", _is_integer),
    ("numeric", _is_decimal),
    ("float64", _is_float),
    ("bool", _is_bool),
    *_MOMENTS,
)


class ColumnKinds:
    """What each column of a file may be, after all the rows that were looked at."""

    def __init__(self, width: int, tests: _Tests = _TESTS) -> None:
        self._left = [list(tests) for _ in range(width)]
        self._seen = [False] * width

    def look_at(self, rows: Sequence[Sequence[str | None]]) -> None:
        """Rule out what the texts of some rows are not."""
        if not rows:
            return
        for place, values in enumerate(zip(*rows, strict=True)):
            if not self._left[place]:
                continue
            texts = {text for text in values if text is not None}
            self._seen[place] = self._seen[place] or bool(texts)
            self._left[place] = [one for one in self._left[place] if all(map(one[1], texts))]

    @property
    def kinds(self) -> list[Kind]:
        """The kind of each column; text where there is no value."""
        return [
            left[0][0] if left and seen else "text"
            for left, seen in zip(self._left, self._seen, strict=True)
        ]


_NOT_FINITE = frozenset({"NaN", "Infinity", "-Infinity"})


class JsonKinds:
    """What each key of a file of JSON lines may be: JSON itself tells numbers from texts.

    What has values of several kinds, or arrays and objects, is ``json``.
    """

    def __init__(self) -> None:
        self._classes: dict[str, set[type[Any]]] = {}
        self._texts: dict[str, ColumnKinds] = {}
        self._wide: set[str] = set()
        self._odd: set[str] = set()  # keys with what JSON has no number for, which is text there

    @property
    def names(self) -> tuple[str, ...]:
        """The keys, in the order in which they came."""
        return tuple(self._classes)

    def look_at(self, objects: Sequence[Mapping[str, Any]]) -> None:
        """Note what some objects hold."""
        values: dict[str, list[Any]] = {name: [] for name in self._classes}
        for one in objects:
            for name, value in one.items():
                try:
                    values[name].append(value)
                except KeyError:
                    values[name] = [value]
        for name, found in values.items():
            if any(value.__class__ is str and value in _NOT_FINITE for value in found):
                self._odd.add(name)
                found = [value for value in found if value not in _NOT_FINITE]
            classes = set(map(type, found)) - {type(None)}
            known = self._classes.setdefault(name, set())
            known |= classes
            if known == {str}:
                texts = self._texts.setdefault(name, ColumnKinds(1, _MOMENTS))
                texts.look_at([(text,) for text in found])
            elif int in classes and name not in self._wide:
                whole = [value for value in found if value.__class__ is int]
                if max(whole) >= 1 << 63 or min(whole) < -(1 << 63):
                    self._wide.add(name)

    @property
    def kinds(self) -> list[Kind]:
        """The kind of each key; text where there is no value."""
        return [self._kind(name) for name in self._classes]

    def _kind(self, name: str) -> Kind:
        classes = self._classes[name]
        is_odd = name in self._odd
        if not classes:
            return "text"
        if classes <= {int, Decimal, float}:
            is_int = classes == {int} and name not in self._wide and not is_odd
            return "int64" if is_int else "numeric"
        if classes == {str}:
            return "text" if is_odd else self._texts[name].kinds[0]
        return "bool" if classes == {bool} and not is_odd else "json"
