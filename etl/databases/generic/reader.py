"""Reads a table or query of a generic dialect, in key order, at one instant where it has such.

One streamed statement serves a whole read. A connection whose read was cut is closed and never
used again: the rest of its rows would have to be read first.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from decimal import Decimal
from sys import getsizeof
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncResult

from etl.batch import Batch, Position, Reject
from etl.connector import Emit, Reader, RunInfo
from etl.databases.build import sift
from etl.databases.database import ReadSpec
from etl.databases.declared import project
from etl.databases.generic.build import Builder, decoder
from etl.databases.generic.connect import LONG_S, Connection, connect, make_engine
from etl.databases.generic.dialect import Dialect
from etl.databases.generic.horizon import Horizon, check_rights, find_horizon
from etl.databases.generic.keys import beyond, from_position, to_position
from etl.databases.generic.mysql.types import LARGE
from etl.databases.generic.table import Table, TableColumn, missing_column
from etl.databases.sql import listed, split_name
from etl.databases.types import same
from etl.databases.url import Url
from etl.engine.supervise import finish
from etl.errors import DataError, SchemaMismatchError
from etl.rows import Column, Layout, Row, Shape, ValueRows, shape_of

Fields = tuple[Any, ...]

_SMALL = 512
_WIDE = 16
"""Rows of one fetch, of a table whose values are small and of one in which a value may be large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How a read is ordered.

    Attributes:
        columns: Those that order it, the cursor first; empty: as the rows come.
        is_unique: An index makes sure of it; else the read watches for doubles.
    """

    columns: tuple[TableColumn, ...] = ()
    is_unique: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)


@asynccontextmanager
async def open_reader(url: Url, spec: ReadSpec, info: RunInfo) -> AsyncGenerator[Reader[Any], None]:
    """Open a table or query for one run; see :class:`etl.databases.database.Driver`."""
    engine = make_engine(url)
    reader = GenericReader(engine, url, spec, info)
    try:
        await reader.open()
        yield reader
    finally:
        await finish(reader.close())
        await finish(engine.dispose())


class GenericReader:
    """See :class:`etl.connector.Reader`.

    Values are raw: numbers, texts and bytes as the driver gives them; dates and times as the
    server's own texts, which the layout's decoders read.
    """

    def __init__(self, engine: AsyncEngine, url: Url, spec: ReadSpec, info: RunInfo) -> None:
        self.notes: list[str] = []
        self.shape: Shape | None = None
        self.resumable = True
        self._engine = engine
        self._url = url
        self._spec = spec
        self._info = info
        self._where = f"{url.name}, {spec.label}"
        self._connection: Connection | None = None
        self._planned: Table | None = None
        self._base = ""  # what stands after FROM, before declared steps
        self._from = ""
        self._order = Order()
        self._columns: tuple[TableColumn, ...] = ()  # what is selected
        self._hidden = 0  # columns at the end that order the read and are not handed on
        self._layout = Layout((), (), is_text=False)
        self._large = frozenset[int]()  # places of integers that may exceed 64 bits with a sign

    @property
    def ordered_by(self) -> Sequence[str]:
        """See :class:`etl.connector.Ordered`."""
        return [f"{column.name} {column.declared}" for column in self._order.columns]

    # -- opening -----------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, look at the columns, and check what the order of the read needs.

        Raises:
            ConfigError: Not reachable with this address and user.
            SchemaMismatchError: No such table or column, or a key that does not order the rows.
        """
        connection = await self._connected()
        dialect = connection.dialect
        table = await self._find(connection)
        self._planned = table
        self._order = _order_of(table, self._spec, self._where, dialect)
        self.resumable = bool(self._order.columns)
        key = self._spec.key or table.key
        self._from = self._base
        columns = table.columns
        if self._spec.steps:
            columns, key = await self._project(connection, table, key)
        order = ", ".join(self._terms(dialect))
        self._from = self._spec.limited(self._from, order)
        self._columns = self._selected(columns)
        await self._refuse_nulls(connection)
        await connection.rollback()
        shown = self._columns[: len(self._columns) - self._hidden]
        self._set_layout(shown)
        row = self._spec.row
        if row is not None:
            names = {field.name for field in dataclass_fields(row)}
            self.shape = shape_of(row, key if set(key) <= names else ())
        else:
            kept = key if set(key) <= {column.name for column in shown} else ()
            self.shape = Shape(
                columns=tuple(
                    replace(column, nullable=column.nullable and column.name not in key)
                    for column in self._layout.columns
                ),
                key=kept,
            )
        self._large = frozenset(
            place
            for place, column in enumerate(self._columns)
            if column.type.kind == "dynamic" or column.type.name.startswith(("bigint", "bit(64"))
        )
        await self._take_notes(connection)

    def _set_layout(self, columns: Sequence[TableColumn]) -> None:
        shown = [column.column for column in columns]
        self._layout = Layout(shown, list(map(decoder, shown)), is_text=False)

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()

    async def profile(self) -> Shape:
        """The shape with the types that the stored values have; see ``Profiler``."""
        assert self.shape is not None
        if self._spec.row is None:
            connection = await self._connected()
            dynamic = [c for c in self._columns if c.type.kind == "dynamic"]
            found = await connection.dialect.profile(connection, dynamic, self._from)
            await connection.rollback()
            self._columns = tuple(
                replace(c, type=found[c.name]) if c.name in found else c for c in self._columns
            )
            self._set_layout(self._columns[: len(self._columns) - self._hidden])
            types = {column.name: column.type for column in self._layout.columns}
            self.shape = replace(
                self.shape,
                columns=tuple(replace(c, type=types[c.name]) for c in self.shape.columns),
            )
        return self.shape

    async def _connected(self) -> Connection:
        """The connection; a new one after a read that was cut."""
        if self._connection is None or not self._connection.is_open:
            await self.close()
            self._connection = await connect(self._engine, self._url, "source")
        return self._connection

    async def _find(self, connection: Connection) -> Table:
        dialect = connection.dialect
        if self._spec.query is not None:
            self._base = f"({self._spec.query}\n) AS {dialect.quote('etl_query')}"
            columns = await dialect.describe_query(connection, self._base)
            if not connection.is_open:
                await self._connected()
            return Table(name="query", schema=None, type="query", columns=columns)
        schema, name = split_name(self._spec.table or "")
        table = await dialect.find_table(connection, schema, name)
        if table is None:
            there = [one for one, _ in await dialect.table_names(connection)]
            raise SchemaMismatchError(
                f"{self._url.name} has no table {name!r}; it has {listed(there)}"
            )
        if not table.columns:
            raise SchemaMismatchError(
                f"{self._where}: the {table.type} shows no columns to this user: what a view is"
                " made of is gone, or may not be seen"
            )
        self._base = dialect.qualify(schema, name)
        return table

    async def _project(
        self, connection: Connection, table: Table, key: tuple[str, ...]
    ) -> tuple[tuple[TableColumn, ...], tuple[str, ...]]:
        """The columns that declared steps make of the table's; what its key is called there."""
        dialect = connection.dialect
        done = project(
            self._spec.steps,
            table.names,
            self._order.names,
            self._where,
            quote=dialect.quote,
            literal=dialect.literal,
        )
        self._from = f"({done.sql(self._base)}\n) AS {dialect.quote('etl_rows')}"
        before = {column.name: column for column in table.columns}
        made: dict[str, TableColumn] = {}
        if any(one.column is None for one in done.all):
            described = await dialect.describe_query(connection, self._from)
            made = {column.name: column for column in described}
        columns = tuple(
            replace(before[one.column], name=one.name) if one.column else made[one.name]
            for one in done.all
        )
        by_name = {column.name: column for column in columns}
        self._order = replace(
            self._order,
            columns=tuple(by_name[done.order[name]] for name in self._order.names),
        )
        self._hidden = len(done.hidden)
        kept = {one.column: one.name for one in done.outputs}
        return columns, tuple(kept[name] for name in key) if kept.keys() >= set(key) else ()

    def _selected(self, columns: tuple[TableColumn, ...]) -> tuple[TableColumn, ...]:
        """The columns to read: a dataclass's fields, then what else the key needs."""
        row = self._spec.row
        if row is None:
            return columns
        by_name = {column.name: column for column in columns}
        names = [field.name for field in dataclass_fields(row)]
        for name in names:
            if name not in by_name:
                table = Table(name="", schema=None, type="query", columns=columns)
                raise missing_column(self._where, name, table, f", which {row.__name__} asks for")
        beside = [column for column in self._order.columns if column.name not in names]
        self._hidden = len(beside)
        return (*(by_name[name] for name in names), *beside)

    async def _refuse_nulls(self, connection: Connection) -> None:
        """NULL compares with nothing, so such rows would be passed over in silence."""
        for column in self._order.columns:
            if not column.nullable:
                continue
            name = connection.dialect.quote(column.name)
            count = await connection.value(
                f"SELECT COUNT(*) FROM {self._from} WHERE {name} IS NULL",  # noqa: S608
                timeout_s=LONG_S,
            )
            if count:
                what = "cursor" if column.name in self._spec.cursor else "key"
                raise SchemaMismatchError(
                    f"{self._where}: the {what} column {column.name!r} is NULL in {count} rows,"
                    " which the read would never see. Fill them in, or read a query that leaves"
                    " them out"
                )

    async def _take_notes(self, connection: Connection) -> None:
        if not self._order.columns:
            self.notes.append(
                f"{self._where} has no primary key: an unfinished read starts again from the"
                " beginning; name unique columns (--key, key=) to make it resumable"
            )
        if self._spec.cursor:
            lead = self._order.columns[0]
            await check_rights(connection, lead, self._spec.settle, self._where)
            await connection.rollback()

    # -- reading -----------------------------------------------------------------------------

    async def pump(self, after: Position | None, until: Position | None, emit: Emit[Any]) -> None:
        """Emit the batches after a position; see the protocol."""
        connection = await self._connected()
        try:
            horizon = Horizon()
            if self._spec.cursor and until is None:  # else an earlier run has found it final
                lead = self._order.columns[0]
                dialect = connection.dialect
                horizon = await find_horizon(
                    connection,
                    lead,
                    self._from,
                    self._spec.settle,
                    self._where,
                    term=self._terms(dialect)[0],
                    after=self._bound(dialect, after)[0] if after is not None else None,
                    is_table=self._order.is_unique,
                )
                await connection.rollback()
                if horizon.note is not None and horizon.note not in self.notes:
                    self.notes.append(horizon.note)
                if horizon.is_empty:
                    return
            await connection.dialect.open_snapshot(connection)
            await self._refuse_changes(connection)
            await self._read(connection, after, until, horizon, emit)
            await connection.rollback()
        except BaseException:
            connection.is_open = False
            await finish(connection.close())
            raise

    async def _refuse_changes(self, connection: Connection) -> None:
        """Refuse columns that are other ones now, in the transaction of the read."""
        planned = self._planned
        if planned is None or planned.type == "query":
            return
        now = await connection.dialect.find_table(connection, planned.schema, planned.name)
        have = {} if now is None else {c.name: c.declared for c in now.columns}
        for column in planned.columns:
            if have.get(column.name) != column.declared:
                raise SchemaMismatchError(
                    f"{self._where}: the column {column.name!r} was changed or dropped since the"
                    " run began. The rows so far are in; run again"
                )

    async def _read(
        self,
        connection: Connection,
        after: Position | None,
        until: Position | None,
        horizon: Horizon,
        emit: Emit[Any],
    ) -> None:
        sql, parameters = self._statement(connection.dialect, after, until, horizon)
        pages = _Pages(
            self._info, is_wide=any(c.base in LARGE or not c.base for c in self._columns)
        )
        place = _Place(self, from_position(after, self._order.columns, self._where)
                       if after and self._order.columns else None)  # fmt: skip
        async with connection.stream(sql, parameters) as result:
            while await self._hand_on(connection, result, pages, place, emit):
                pass

    async def _hand_on(
        self,
        connection: Connection,
        result: AsyncResult[Any],
        pages: _Pages,
        place: _Place,
        emit: Emit[Any],
    ) -> bool:
        """Fetch a batch and emit it; whether there may be more.

        A function of its own, so that nothing holds the last rows while the next are fetched.
        """
        rows, nbytes, is_end = await pages.fetch(connection, result)
        if rows:
            tuples = self._raw(rows)
            position = place.moved(tuples)
            items, rejects = self._made(tuples, nbytes)
            await emit(Batch(items, position=position, rejects=rejects, nbytes=nbytes))
        return not is_end

    def _raw(self, rows: Sequence[Sequence[Any]]) -> list[Fields]:
        """The driver's rows as plain tuples; integers beyond 64 bits with a sign as decimals."""
        found = [tuple(row) for row in rows]
        for place in self._large:
            if any(type(row[place]) is int and row[place] >> 63 > 0 for row in found):
                found = [(*row[:place], _wide(row[place]), *row[place + 1 :]) for row in found]
        return found

    def _made(self, tuples: list[Fields], nbytes: int) -> tuple[Sequence[Any], tuple[Reject, ...]]:
        """The rows as they are handed on, and those that a dataclass cannot hold."""
        row = self._spec.row
        if row is None:
            shown = [t[: -self._hidden] for t in tuples] if self._hidden else tuples
            return ValueRows(self._layout, shown, nbytes), ()
        names = [column.name for column in self._columns]
        key = [names.index(name) for name in self._order.names]
        build = Builder(row, names=names, key=key, label=self._where)
        return sift(build, tuples, self._fields, sets_aside=self._info.sets_aside)

    def _fields(self, values: Fields) -> Row:
        """A row as it was read."""
        columns: Sequence[Column] = self._layout.columns
        layout = Layout(columns, [same for _ in columns], is_text=False)
        return layout.row(values[: len(columns)])

    def _terms(self, dialect: Dialect) -> list[str]:
        order = self._order
        return [dialect.order_by(column, is_unique=order.is_unique) for column in order.columns]

    def _bound(self, dialect: Dialect, position: Position) -> Fields:
        order = self._order
        values = from_position(position, order.columns, self._where)
        return tuple(
            dialect.bound_key(column, value, is_unique=order.is_unique)
            for column, value in zip(order.columns, values, strict=True)
        )

    def _statement(
        self, dialect: Dialect, after: Position | None, until: Position | None, horizon: Horizon
    ) -> tuple[str, Mapping[str, Any]]:
        """The SELECT, and its parameters. Keyset: it starts after the last key."""
        terms = self._terms(dialect)
        conditions: list[str] = []
        parameters: dict[str, Any] = {}

        def mark(value: Any) -> str:
            name = f"etl_{len(parameters)}"
            parameters[name] = value
            return f":{name}"

        for operator, position in ((">", after), ("<", until)):
            if position is not None and terms:
                marks = [mark(value) for value in self._bound(dialect, position)]
                conditions.append(beyond(terms, marks, operator))
        if horizon.upper is not None:
            value = horizon.upper
            conditions.append(f"{terms[0]} {horizon.below} {mark(value)}")
        wanted = ", ".join(
            f"{dialect.read_as(column)} AS {dialect.quote(f'c{number}')}"
            for number, column in enumerate(self._columns)
        )
        sql = f"SELECT {wanted} FROM {self._from}"  # noqa: S608  quoted names
        if conditions:
            sql += f" WHERE {' AND '.join(conditions)}"
        if terms:
            sql += f" ORDER BY {', '.join(terms)}"
        return sql, parameters

    async def order(self, positions: Sequence[Position]) -> Sequence[Position]:
        """See the protocol."""
        connection = await self._connected()
        dialect, order = connection.dialect, self._order
        parameters: dict[str, Any] = {}
        selects: list[str] = []
        for number, position in enumerate(positions):
            parts: list[str] = []
            for column, value in zip(order.columns, self._bound(dialect, position), strict=True):
                name = f"etl_{len(parameters)}"
                parameters[name] = value
                at = len(parts)
                term = dialect.sorts(column, f":{name}", is_unique=order.is_unique)
                parts.append(f"{term} AS k{at}")
            selects.append(f"SELECT {', '.join(parts)}, {number} AS n")
        keys = ", ".join(f"k{at}" for at in range(len(order.columns)))
        rows = await connection.fetch(
            f"SELECT n FROM ({' UNION ALL '.join(selects)}) AS etl_positions ORDER BY {keys}, n",  # noqa: S608
            parameters,
        )
        await connection.rollback()
        return [positions[int(row[0])] for row in rows]

    async def chunks(self, *, most: int, least_rows: int) -> Sequence[Position]:
        """See the protocol. One pass over the keys, from bound to bound."""
        connection = await self._connected()
        order = self._order
        if not (order.columns and order.is_unique and connection.dialect.has_limit):
            return ()  # else the rows are watched, in one piece, for keys that are double
        await connection.dialect.open_snapshot(connection)
        sql = f"SELECT COUNT(*) FROM {self._from}"  # noqa: S608
        count = int(await connection.value(sql, timeout_s=LONG_S))
        number = min(most, count // least_rows)
        bounds: list[Position] = []
        for at in range(number if number > 1 else 0):
            rows = count * (at + 1) // number - count * at // number
            bounds.append(await self._key_after(connection, bounds[-1] if bounds else None, rows))
        await connection.rollback()
        return bounds

    async def _key_after(
        self, connection: Connection, after: Position | None, rows: int
    ) -> Position:
        """The key so many rows after another one."""
        dialect, terms = connection.dialect, self._terms(connection.dialect)
        parameters: dict[str, Any] = {}
        where = ""
        if after is not None:
            values = self._bound(dialect, after)
            parameters = {f"etl_{number}": value for number, value in enumerate(values)}
            marks = [f":{name}" for name in parameters]
            where = f" WHERE {beyond(terms, marks, '>')}"
        wanted = ", ".join(map(dialect.read_as, self._order.columns))
        sql = f"SELECT {wanted} FROM {self._from}{where}"  # noqa: S608  quoted names
        sql += f" ORDER BY {', '.join(terms)} LIMIT 1 OFFSET {rows - 1:d}"
        (key,) = await connection.fetch(sql, parameters, timeout_s=LONG_S)
        return to_position([_wide(value) for value in key], self._where)

    # -- what a place asks -------------------------------------------------------------------

    @property
    def key_places(self) -> list[int]:
        """Where the columns that order the read stand in a row."""
        names = [column.name for column in self._columns]
        return [names.index(name) for name in self._order.names]

    @property
    def watches(self) -> bool:
        """Whether keys may be double."""
        return bool(self._order.columns) and not self._order.is_unique

    @property
    def where(self) -> str:
        return self._where


class _Place:
    """Where a read stands: the key of the last row, and how many were given."""

    def __init__(self, reader: GenericReader, last: Fields | None) -> None:
        self._places = reader.key_places
        self._watches = reader.watches
        self._where = reader.where
        self._last = last
        self._given = 0

    def moved(self, rows: Sequence[Fields]) -> Position:
        """The position after some more rows.

        Raises:
            DataError: A key is NULL or double.
        """
        self._given += len(rows)
        if not self._places:
            return (self._given,)
        if self._watches:
            for row in rows:
                key = tuple(row[place] for place in self._places)
                if key == self._last:
                    raise DataError(
                        f"{self._where}: two rows have the same key, so the read could not continue"
                        " between them; name a key that is unique"
                    )
                to_position(key, self._where)  # refuses NULL
                self._last = key
        return to_position([rows[-1][place] for place in self._places], self._where)


class _Pages:
    """Cuts the rows of a result into batches by their size.

    The driver gives some rows at a time: fewer where rows are large, one where they are huge.
    """

    def __init__(self, info: RunInfo, *, is_wide: bool) -> None:
        self._info = info
        self._is_wide = is_wide
        self._most = _WIDE if is_wide else _SMALL

    async def fetch(
        self, connection: Connection, result: AsyncResult[Any]
    ) -> tuple[list[Sequence[Any]], int, bool]:
        """The next batch, its size, and whether the result is at its end."""
        rows: list[Sequence[Any]] = []
        nbytes = 0
        while nbytes < self._info.batch_bytes and len(rows) < self._info.batch_rows:
            count = min(self._most, self._info.batch_rows - len(rows))
            some = await connection.fetch_some(result, count)
            size = self._weigh(some)
            rows += some
            nbytes += size
            if len(some) < count:
                return rows, nbytes, True
        return rows, nbytes, False

    def _weigh(self, rows: Sequence[Sequence[Any]]) -> int:
        if not rows:
            return 0
        if not self._is_wide:
            sample = rows[::16]
            size = sum(sum(map(getsizeof, row)) + 56 + 8 * len(row) for row in sample)
            size = size * len(rows) // len(sample)
            self._most = max(16, min(_SMALL, self._info.batch_bytes * len(rows) // max(size, 1)))
            return size
        sizes = [sum(map(getsizeof, row)) + 56 + 8 * len(row) for row in rows]
        largest = max(sizes)
        self._most = max(1, min(64, self._info.batch_bytes // (8 * largest)))
        return sum(sizes)


def _wide(value: Any) -> Any:
    return Decimal(value) if type(value) is int and value >> 63 > 0 else value


def _order_of(table: Table, spec: ReadSpec, where: str, dialect: Dialect) -> Order:
    """What orders the read.

    Raises:
        SchemaMismatchError: A column is missing, a key is not unique, or a cursor cannot be one.
    """
    for name in (*spec.key, *spec.cursor):
        column = table.column(name)
        if column is None:
            raise missing_column(where, name, table)
        if name in spec.cursor and column.type.kind in {"float32", "float64"}:
            raise SchemaMismatchError(
                f"{where}: the cursor column {name!r} is {column.declared}; floating-point numbers"
                " do not order exactly. Use an integer, a time or a text column"
            )
    key = spec.key or table.key
    if table.type != "table":
        if spec.cursor and not spec.key:
            raise SchemaMismatchError(
                f"{where}: a view says nothing of a key; name the unique columns with key="
            )
    elif spec.cursor and not key:
        index = next((i for i in table.indexes if i.unique and set(i.columns) <= set(spec.cursor)
                      and i.columns), None)  # fmt: skip
        if index is None:
            raise SchemaMismatchError(
                f"{where} has no primary key, so rows with equal cursors could be missed; name"
                " unique columns after the cursor, or as the key (--key, key=)"
            )
        key = index.columns
    elif key and not table.is_unique(key):
        names = ", ".join(map(dialect.quote, key))
        raise SchemaMismatchError(
            f"{where}: no unique index makes sure that key ({', '.join(key)}) is unique; make one:"
            f" CREATE UNIQUE INDEX ... ON {dialect.qualify(table.schema, table.name)} ({names})"
        )
    names_in_order = (*spec.cursor, *(name for name in key if name not in spec.cursor))
    columns = [table.column(name) for name in names_in_order]
    return Order(
        columns=tuple(column for column in columns if column is not None),
        is_unique=table.type == "table",
    )
