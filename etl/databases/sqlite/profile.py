"""What the values of dynamic columns really are, so that a typed table can be made for them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

from etl.databases.sql import quote
from etl.databases.sqlite.connection import Connection
from etl.databases.sqlite.schema import declared_kind
from etl.rows import Column, Kind, Shape

_EXACT_FLOAT = 1 << 53
_TEXT_KIND = "etl_text_kind"


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """How many values of each class a column holds, and what else decides its kind.

    Attributes:
        low: The smallest integer.
        high: The greatest integer.
        kinds: What the texts are, where the declared type asks: ``date``, ``timestamp``, ... and
            ``text`` for those that are nothing else.
    """

    integers: int = 0
    reals: int = 0
    texts: int = 0
    blobs: int = 0
    low: int | None = None
    high: int | None = None
    kinds: frozenset[str] = frozenset()


def kind_of(declared: str, found: Classes) -> Kind:
    """The kind that holds every value of a column exactly; ``dynamic`` where none does."""
    wanted = declared_kind(declared)
    present = (found.integers > 0, found.reals > 0, found.texts > 0, found.blobs > 0)
    match present:
        case (False, False, False, False):
            return wanted
        case (True, False, False, False):
            if wanted == "bool" and found.low in {0, 1} and found.high in {0, 1}:
                return "bool"
            return "numeric" if wanted == "numeric" and "INT" not in declared.upper() else "int64"
        case (_, True, False, False):
            if _is_numeric(declared) or not _fits_float(found):
                return "numeric"
            return "float64"
        case (False, False, True, False):
            return _text_kind(wanted, found.kinds)
        case (False, False, False, True):
            return "bytes"
        case _:
            return "dynamic"


def _is_numeric(declared: str) -> bool:
    return bool(re.match(r"\s*(numeric|decimal)\b", declared, re.IGNORECASE))


def _fits_float(found: Classes) -> bool:
    if found.low is None or found.high is None:
        return True
    return -_EXACT_FLOAT <= found.low and found.high <= _EXACT_FLOAT


def _text_kind(wanted: Kind, kinds: frozenset[str]) -> Kind:
    """What all texts of a column are: a kind that its declared type names, or text."""
    if wanted in _CHECKED and len(kinds) == 1:
        (kind,) = kinds
        family = {"timestamp", "timestamptz", "date"}
        if kind == wanted or {kind, wanted} <= family:
            return kind  # type: ignore[return-value]
    return "text"


_CHECKED: frozenset[Kind] = frozenset({"date", "time", "timestamp", "timestamptz", "uuid", "json"})
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:\.\d{1,6})?)?"
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIME = re.compile(_CLOCK, re.ASCII)
_STAMP = re.compile(rf"(\d{{4}}-\d\d-\d\d)[ T]{_CLOCK}(Z|[+-](?:0\d|1[0-5]):[0-5]\d)?", re.ASCII)
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_UNSTORABLE = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")  # PostgreSQL's jsonb refuses these


def text_kind(value: Any) -> str:
    """What a text is, strictly: ``date``, ``time``, ``timestamp``, ``timestamptz``, ``uuid``,
    ``json`` (an object or array), else ``text``."""
    if not isinstance(value, str):
        return "text"
    try:
        if _DATE.fullmatch(value):
            date.fromisoformat(value)
            return "date"
        stamp = _STAMP.fullmatch(value)
        if stamp:
            datetime.fromisoformat(value)
            return "timestamptz" if stamp[2] else "timestamp"
        if _TIME.fullmatch(value):
            return "time"
        if _UUID.fullmatch(value):
            return "uuid"
        if value[:1] in "{[" and not _UNSTORABLE.search(value):
            json.loads(value, parse_constant=_refuse)
            return "json"
    except (ValueError, RecursionError):
        pass
    return "text"


def _refuse(_: str) -> Any:
    raise ValueError("not JSON")


async def profiled(connection: Connection, shape: Shape, source: str) -> Shape:
    """The shape with every dynamic column's kind settled, by one scan.

    Args:
        source: The table or view as SQL.
    """
    dynamic = [column for column in shape.columns if column.type.kind == "dynamic"]
    if not dynamic:
        return shape
    await connection.create_function(_TEXT_KIND, text_kind)
    parts = [part for column in dynamic for part in _parts(column)]
    # SQLite allows 2,000 result columns.
    values: list[Any] = []
    for at in range(0, len(parts), 1_400):
        sql = f"SELECT {', '.join(parts[at : at + 1_400])} FROM {source}"  # noqa: S608  quoted names
        values += (await connection.fetch(sql))[0]
    kinds = {
        column.name: kind_of(column.type.name, _classes(values[i * 7 : i * 7 + 7]))
        for i, column in enumerate(dynamic)
    }
    return replace(
        shape,
        columns=tuple(
            replace(c, type=replace(c.type, kind=kinds.get(c.name, c.type.kind)))
            for c in shape.columns
        ),
    )


def _parts(column: Column) -> list[str]:
    name = quote(column.name)
    counts = [f"sum(typeof({name}) = '{one}')" for one in ("integer", "real", "text", "blob")]
    integer = f"CASE WHEN typeof({name}) = 'integer' THEN {name} END"
    kinds = "NULL"
    if declared_kind(column.type.name) in _CHECKED:
        text = f"CASE WHEN typeof({name}) = 'text' THEN {_TEXT_KIND}({name}) END"
        kinds = f"group_concat(DISTINCT {text})"
    return [*counts, f"min({integer})", f"max({integer})", kinds]


def _classes(values: Sequence[Any]) -> Classes:
    integers, reals, texts, blobs, low, high, kinds = values
    return Classes(
        integers=integers or 0,
        reals=reals or 0,
        texts=texts or 0,
        blobs=blobs or 0,
        low=low,
        high=high,
        kinds=frozenset(kinds.split(",")) if kinds else frozenset(),
    )
