"""What may go into a SQLite column, and how: decided for types, before the first row is read.

SQLite itself takes everything and changes what its column's affinity can change. So most of it is
a matter of the value, and :mod:`etl.databases.sqlite.bind` looks at each that may be changed. Only
a STRICT table refuses whole types.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from etl.databases.sqlite.schema import Affinity, TableColumn, affinity_of
from etl.rows import Column, Kind, Type
from etl.verdict import Fit, Verdict, spelled

_EXACT = Fit(way="as it is", grade="exact")
_AS_TEXT = Fit(way="as text", grade="exact")
_CONVERTED = Fit(way="converted", grade="exact")
_WIDENED = Fit(way="converted", grade="widened")
_CHECKED = Fit(way="converted", grade="checked")
_REFUSED = Fit(way="converted", grade="refused")

_INTS: Final[frozenset[Kind]] = frozenset({"int16", "int32", "int64"})
_FLOATS: Final[frozenset[Kind]] = frozenset({"float32", "float64"})
_NO_NUMBERS: Final[frozenset[Kind]] = frozenset(
    {"date", "time", "timestamp", "timestamptz", "uuid", "interval"}
)
_STRICT: Mapping[Affinity, frozenset[Kind]] = {
    "integer": frozenset({"bool", *_INTS, *_FLOATS, "numeric", "text", "dynamic", "json"}),
    "real": frozenset({"bool", *_INTS, *_FLOATS, "numeric", "text", "dynamic", "json"}),
    "blob": frozenset({"bytes", "dynamic"}),
}
"""What a column of a STRICT table may hold at all; one of texts: everything but bytes."""


def fit(source: Type, target: TableColumn) -> Fit:
    """How values of one column get into a SQLite column."""
    if target.is_exact and not _is_possible(source.kind, target.affinity):
        return _REFUSED
    if source.dialect == "sqlite":
        same = affinity_of(source.name) == target.affinity
        free = target.affinity == "blob" and not target.is_exact
        return _EXACT if (same and not target.is_exact) or free else _CHECKED
    if source.dialect != "postgresql":
        return _CHECKED
    match target.affinity:
        case "text":
            return _of_texts(source.kind)
        case "blob":
            if source.kind in _FLOATS:
                return _CHECKED  # NaN
            return _WIDENED if source.kind in {"bool", *_INTS} else _of_texts(source.kind)
        case affinity:
            return _of_numbers(source.kind, affinity)


def _is_possible(kind: Kind, affinity: Affinity) -> bool:
    return kind in _STRICT[affinity] if affinity in _STRICT else kind != "bytes"


def _of_texts(kind: Kind) -> Fit:
    return _CONVERTED if kind in {"bytes", "timestamptz"} else _AS_TEXT


def _of_numbers(kind: Kind, affinity: Affinity) -> Fit:
    if kind in _NO_NUMBERS or kind == "bytes":
        return _of_texts(kind)  # no text of theirs looks like a number
    if kind in _INTS:
        return _WIDENED if affinity != "real" or kind != "int64" else _CHECKED
    return _WIDENED if kind == "bool" else _CHECKED


def verdicts_of(
    columns: Sequence[Column], table: Mapping[str, TableColumn], allows: Callable[[str], bool]
) -> list[Verdict]:
    """What becomes of each column.

    Args:
        table: The column that each is written into, by the name of the rows' column.
        allows: Whether the values of a column may be bent.
    """
    found: list[Verdict] = []
    for column in columns:
        target = table.get(column.name)
        if target is None or target.generated:
            continue
        verdict = fit(column.type, target)
        found.append(
            Verdict(
                column=column.name,
                source=spelled(column.type),
                target=target.declared or "a column without a type",
                fit=verdict,
                allowed=verdict.may_bend and allows(column.name),
            )
        )
    return found
