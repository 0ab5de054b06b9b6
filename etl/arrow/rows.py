"""Rows that are a table of Arrow, and tables of rows of every other kind."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from datetime import date, datetime, time
from decimal import Decimal
from functools import cache
from itertools import groupby
from operator import attrgetter
from typing import Any, cast, overload
from uuid import UUID

from etl.arrow.lines import table_of_lines
from etl.arrow.types import column_of, load, schema_of, values_of
from etl.errors import DataError, StageError
from etl.rows import Column, Layout, Lines, Row, TextRows, ValueRows, WideLine, shape_of


class ArrowRows(ValueRows):
    """Rows as a table of Arrow; Python's values are made of it when somebody looks at a row.

    Attributes:
        table: Never changed.
    """

    __slots__ = ("_tuples", "table")

    def __init__(self, table: Any, where: str) -> None:
        """Make rows.

        Args:
            where: Who made the table, for messages.

        Raises:
            SchemaMismatchError: A column has a type that no column here is.
        """
        self.table = table
        self.layout = _layout(table.schema, where)
        self.nbytes = table.nbytes
        self._tuples: list[tuple[Any, ...]] | None = None

    @property
    def tuples(self) -> list[tuple[Any, ...]]:  # type: ignore[override]
        """The rows as Python's own values.

        Raises:
            DataError: Python has no such value.
        """
        if self._tuples is None:
            columns = [
                values_of(array, column, lambda row: f"row {row + 1} of the batch")
                for array, column in zip(self.table.columns, self.layout.columns, strict=True)
            ]
            self._tuples = list(zip(*columns, strict=True))
        return self._tuples

    def __len__(self) -> int:
        rows: int = self.table.num_rows
        return rows

    @overload
    def __getitem__(self, i: int) -> Row: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[Row]: ...
    def __getitem__(self, i: int | slice) -> Row | Sequence[Row]:
        if isinstance(i, slice):
            start, stop, _ = i.indices(len(self))
            return ArrowRows(self.table.slice(start, max(0, stop - start)), "")
        return self.layout.row(ArrowRows(self.table.slice(range(len(self))[i], 1), "").tuples[0])


def joined_tables(groups: Sequence[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    """The same rows, with neighbours that are tables of one schema as one table."""
    for layout, some in groupby(
        groups, lambda rows: rows.layout if isinstance(rows, ArrowRows) else None
    ):
        if layout is None:
            yield from some
        else:
            tables = [cast("ArrowRows", rows).table for rows in some]
            yield ArrowRows(load().concat_tables(tables), "")


_layouts: dict[tuple[Any, ...], Layout] = {}
_MOST_LAYOUTS = 256


def _layout(schema: Any, where: str) -> Layout:
    """The layout of a schema: one for all tables that have it, because making one takes long."""
    key = tuple((one.name, str(one.type), one.nullable, str(one.metadata)) for one in schema)
    found = _layouts.get(key)
    if found is None:
        columns = [column_of(field, where) for field in schema]
        if len(_layouts) >= _MOST_LAYOUTS:
            _layouts.clear()
        found = _layouts[key] = Layout(columns, [_same for _ in columns], is_text=False)
    return found


def _same(value: Any) -> Any:
    return value


# -- rows to tables --------------------------------------------------------------------------


def table_of(rows: Sequence[Any]) -> Any:
    """The table of some rows, which are not none: of a source, or of a function.

    Raises:
        DataError: Arrow does not hold a value; names the column and the row.
        SchemaMismatchError: A column holds values of several kinds.
        StageError: The rows do not tell the types of their columns.
    """
    if isinstance(rows, ArrowRows):
        return rows.table
    if isinstance(rows, TextRows):
        hidden = rows.lines.hidden if isinstance(rows.lines, Lines) else 0
        return _shown(rows.layout, table_of_lines(_bytes_of(rows), rows.layout.columns, hidden))
    if isinstance(rows, ValueRows):
        return _of_values(rows.layout, list(zip(*rows.tuples, strict=True)))
    kinds: set[type[Any]] = set(map(type, rows))
    if all(issubclass(kind, Row) for kind in kinds):
        return _of_rows(cast("Sequence[Row]", rows))
    kind = kinds.pop()
    if kinds or not is_dataclass(kind):
        names = ", ".join(sorted(one.__name__ for one in {kind, *kinds}))
        raise StageError(
            f"map_arrow got rows of {names}, which do not tell the types of their columns. Let the"
            " step before it return one dataclass, or the row itself"
        )
    columns = shape_of(kind).columns
    fields = [list(map(attrgetter(column.name), rows)) for column in columns]
    return _table(columns, fields)


def _bytes_of(rows: TextRows) -> bytes:
    if isinstance(rows.lines, Lines | WideLine):
        return rows.lines.data
    return ("\n".join(rows.lines) + "\n").encode("utf-8", "surrogateescape")


def _shown(layout: Layout, table: Any) -> Any:
    """The columns in the order in which a row shows them."""
    if layout.shown == layout.columns:
        return table
    places = [layout.index[column.name] for column in layout.shown]
    return table.select(places)


def _of_rows(rows: Sequence[Row]) -> Any:
    """Rows of one layout, some of whose values functions have replaced."""
    layout = rows[0].layout
    if any(row.layout is not layout for row in rows):
        raise StageError(
            "map_arrow got rows of several sources in one batch. Let each source have its own, with"
            " map_arrow before the merge"
        )
    changed = set[str]().union(*(row.changes for row in rows if row.changes))
    if layout.is_text:
        text = "".join("\t".join(row.parts) + "\n" for row in rows)
        data = text.encode("utf-8", "surrogateescape")
        table = _shown(layout, table_of_lines(data, layout.columns))
    else:
        table = _of_values(layout, list(zip(*(row.fields for row in rows), strict=True)))
    for place, column in enumerate(layout.shown):
        if column.name in changed:
            made = _table([column], [[row[column.name] for row in rows]])
            table = table.set_column(place, made.schema.field(0), made.column(0))
    return table


def _of_values(layout: Layout, fields: Sequence[Sequence[Any]]) -> Any:
    values = [
        list(map(decode, column)) for decode, column in zip(layout.decoders, fields, strict=True)
    ]
    return _shown(layout, _table(layout.columns, values))


def _table(columns: Sequence[Column], values: Sequence[Sequence[Any]]) -> Any:
    pa = load()
    schema, _ = schema_of(columns)
    arrays = [
        _array(of_column, column, field.type)
        for of_column, column, field in zip(values, columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _array(values: Sequence[Any], column: Column, type_: Any) -> Any:
    """Python's values as an array of a type; exactly, or not at all."""
    pa = load()
    try:
        return pa.array([_plain(value, pa, type_) for value in values], type_)
    except (ValueError, TypeError, OverflowError):  # pa.ArrowInvalid is a ValueError
        for row, value in enumerate(values):
            try:
                pa.array([_plain(value, pa, type_)], type_)
            except (ValueError, TypeError, OverflowError):
                why = f"Arrow's {type_} does not hold the {type(value).__name__} in it"
                raise DataError(
                    f"column {column.name!r} ({column.type.name}), row {row + 1} of the batch:"
                    f" {why}. Cast the column in the source, or convert it in a function before",
                    column=column.name,
                    row=row,
                    reason=why,
                ) from None
        raise


@cache
def _wanted(type_: Any) -> tuple[type[Any], ...] | None:
    """The classes whose values a type takes as they are; None: it is text."""
    types = load().types
    if types.is_boolean(type_):
        return (bool,)
    if types.is_integer(type_):
        return (int,)
    if types.is_floating(type_):
        return (float, int)
    if types.is_decimal(type_):
        return (Decimal, int)
    if types.is_binary(type_):
        return (bytes, bytearray, memoryview)
    if types.is_date(type_):
        return (date,)
    if types.is_time(type_):
        return (time,)
    return (datetime,) if types.is_timestamp(type_) else None


def _plain(value: Any, pa: Any, type_: Any) -> Any:
    """A value for an array of a type.

    Raises:
        TypeError, ValueError: It would not be the same there.
    """
    if value is None:
        return None
    wanted = _wanted(type_)
    if wanted is None:
        return value if type(value) is str else _text(value)
    kind: type[Any] = value.__class__
    if kind is bool and wanted != (bool,):
        raise TypeError("bool")
    if wanted == (bool,) and kind is int and value in {0, 1}:  # SQLite has no other booleans
        return bool(value)
    if not issubclass(kind, wanted) or (wanted == (date,) and issubclass(kind, datetime)):
        raise TypeError(kind.__name__)
    if kind is int and wanted[0] is float and int(float(value)) != value:
        raise ValueError("digits")
    if pa.types.is_float32(type_) and pa.scalar(value, type_).as_py() != value and value == value:
        raise ValueError("digits")
    if isinstance(value, datetime | time) and (value.tzinfo is not None) != (
        getattr(type_, "tz", None) is not None
    ):
        raise ValueError("zone")
    return value


def _text(value: Any) -> str:
    """The text of a value for which Arrow has no exact type."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal | UUID | int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_number)
    raise TypeError(type(value).__name__)


def _number(value: object) -> Any:
    raise TypeError(type(value).__name__)
