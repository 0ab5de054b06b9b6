"""Reads a table or query of a SQLite file, at one instant, in key order.

One statement serves a whole read. Its cursor stays open between pages, so a connection whose
read was cut is closed and never used again.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from dataclasses import fields as dataclass_fields
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import aiosqlite

from etl.batch import Batch, Position
from etl.connector import Emit, Reader, RunInfo
from etl.databases.build import sift
from etl.databases.database import ReadSpec
from etl.databases.declared import project
from etl.databases.horizon import told_later, told_lower
from etl.databases.sql import fold, listed, qualify, quote
from etl.databases.sqlite.build import Builder
from etl.databases.sqlite.connection import Connection, open_source
from etl.databases.sqlite.horizon import is_mixed, looks_like_seconds, upper_bound
from etl.databases.sqlite.keys import from_position, to_position
from etl.databases.sqlite.lines import Lines
from etl.databases.sqlite.pages import Fields, Joined, Page, PagedConnection, Paging
from etl.databases.sqlite.profile import profiled
from etl.databases.sqlite.schema import (
    Table,
    TableColumn,
    find_table,
    is_bytewise,
    table_name,
    table_names,
)
from etl.databases.types import same, text_decoder
from etl.databases.url import Url
from etl.errors import SchemaMismatchError
from etl.rows import Column, Layout, Row, Shape, TextRows, ValueRows, shape_of
from etl.rows import Lines as TextLines

_VIEW = "etl_query"
_ROWS = "etl_rows"
_PAGE = "etl_page"
_LONG_READ_BYTES = 64 << 20
"""From this size of a file on, somebody may notice that it is being read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """How a read is ordered.

    Attributes:
        columns: Those that order it, the cursor first; empty: as the rows come.
        collations: How each is compared; None: as the column says.
        is_unique: An index makes sure of it; else the read watches for doubles.
        is_bytewise: The columns say ``BINARY`` themselves.
    """

    columns: tuple[str, ...] = ()
    collations: tuple[str | None, ...] = ()
    is_unique: bool = True
    is_bytewise: bool = False

    @property
    def terms(self) -> list[str]:
        """The columns as SQL expressions."""
        if self.is_bytewise and set(self.collations) <= {None, "BINARY"}:
            return list(map(quote, self.columns))
        return self.spelled

    @property
    def spelled(self) -> list[str]:
        """The columns with all that says how they order rows."""
        return [
            quote(column) if collation is None else f"{quote(column)} COLLATE {quote(collation)}"
            for column, collation in zip(self.columns, self.collations, strict=True)
        ]


class _Place:
    """Where a read stands: the key of the last row, and how many were given."""

    def __init__(self, last: Fields | None) -> None:
        self.last = last
        self.given = 0


@dataclass(frozen=True, slots=True)
class _Span:
    """Where a read ends.

    Attributes:
        until: The key of the last row.
        below: What the cursor stays below.
    """

    until: Fields | None = None
    below: Any = None


class _Course:
    """In which form the rows of a read come: lines that SQLite writes, or values.

    A page whose lines are not proven comes as values, and the pages after it as lines again: the
    next one, then (where that is in doubt too) twice as many later, and so on. So one odd value
    costs one page, and a table full of them little more than a read of values.

    Attributes:
        is_exact: Each row is measured.
        most: Rows of the next statement; None: all.
    """

    def __init__(self, plain: Lines | None, strict: Lines | None) -> None:
        self.is_exact = False
        self.most: int | None = None
        self._plain = plain
        self._strict = strict
        self._patience = 1

    @property
    def lines(self) -> Lines | None:
        """How the next statement writes lines; None: its rows are values."""
        return self._plain if self.most is None else None

    def turn(self, paging: Paging) -> None:
        """Decide what comes after a statement that asked to be run again."""
        if paging.is_exact:
            # Pieces of large rows would be in memory more often than the rows themselves.
            self.is_exact = True
            self._plain = self.most = None
        elif paging.doubt is None:
            self.most = None
        elif paging.doubt.escaping_helps:
            self._plain = self._strict
        else:
            self.most = paging.doubtful_rows * self._patience
            self._patience *= 2


@asynccontextmanager
async def open_reader(url: Url, spec: ReadSpec, info: RunInfo) -> AsyncGenerator[Reader[Any], None]:
    """Open a table or query for one run; see :class:`etl.databases.database.Driver`."""
    reader = SqliteReader(url, spec, info)
    try:
        await reader.open()
        yield reader
    finally:
        await reader.close()


class SqliteReader:
    """See :class:`etl.connector.Reader`.

    Values are those that SQLite holds: int, float, str, bytes or None, whatever a column's
    declared type says. ``shape`` calls a column ``dynamic`` where only its values tell what it
    is; ``profile`` looks at them.
    """

    def __init__(self, url: Url, spec: ReadSpec, info: RunInfo) -> None:
        self.notes: list[str] = []
        self.shape: Shape | None = None
        self.resumable = True
        self._url = url
        self._spec = spec
        self._info = info
        self._where = f"{url.name}, {spec.label}"
        self._connection: Connection | None = None
        self._views = {} if spec.query is None else {_VIEW: spec.query}
        self._from = ""
        self._order = Order()
        self._names: tuple[str, ...] = ()
        self._planned: tuple[TableColumn, ...] = ()  # the columns, as the read was planned for
        self._hidden = 0  # columns at the end that order the read and are not handed on
        self._layout = Layout((), (), is_text=False)
        self._targets: tuple[Column, ...] = ()  # columns for which SQLite writes the rows
        self._are_own = False  # the columns are the table's, not those of a view of it
        self._exact: frozenset[str] = frozenset()  # columns for whose class SQLite vouches

    @property
    def ordered_by(self) -> Sequence[str]:
        """See :class:`etl.connector.Ordered`. SQLite's values bring their own types."""
        return self._order.spelled

    # -- opening -----------------------------------------------------------------------------

    async def open(self) -> None:
        """Connect, look at the columns, and check what the order of the read needs.

        Raises:
            ConfigError: No such file, or it cannot be read.
            SchemaMismatchError: No such table or column, or a key that does not order the rows.
        """
        connection = await self._connected(first=True)
        table = await self._find(connection)
        self._planned = table.columns
        order = _order_of(table, self._spec, self._where)
        own = table.type == "table" and await is_bytewise(connection, table.name)
        self._order = replace(order, is_bytewise=own)
        self.resumable = bool(self._order.columns)
        if table.type == "table" and not self._spec.steps:
            self._are_own = True
            self._exact = frozenset(one.name for one in table.columns if one.is_exact)
        await self._refuse_nulls(connection, table)
        key = self._spec.key or table.key
        if self._spec.steps:
            table, key = await self._project(connection, table, key)
        self._from = self._spec.limited(self._from, ", ".join(self._order.terms))
        self._names = self._selected(table)
        shape = _shape(table, key)
        if self._hidden:
            shape = Shape(columns=shape.columns[: -self._hidden], key=shape.key)
        self._layout = Layout(shape.columns, [same for _ in shape.columns], is_text=False)
        row = self._spec.row
        self.shape = shape
        if row is not None:
            fields = {field.name for field in dataclass_fields(row)}
            self.shape = shape_of(row, key if set(key) <= fields else ())
        newest = None
        if self._spec.cursor:
            newest = await self._newest(connection)
            self._refuse_mixed(await self._oldest(connection), newest)
        await self._take_notes(connection, newest)

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.close()

    async def rest(self) -> None:
        """See :class:`etl.connector.Resting`."""
        await self.close()

    async def profile(self) -> Shape:
        """The shape with the kinds that the stored values have: one scan of the source.

        Rows that are read after it know these kinds too.
        """
        assert self.shape is not None
        if self._spec.row is None:
            self.shape = await profiled(await self._connected(), self.shape, self._from)
            columns = self.shape.columns
            self._layout = Layout(columns, [same for _ in columns], is_text=False)
        return self.shape

    async def _connected(self, *, first: bool = False) -> Connection:
        """The connection; a new one after an interrupted read."""
        if self._connection is not None and self._connection.is_open:
            return self._connection
        source = await open_source(self._url.path, self._url.name, PagedConnection)
        self._connection = source.connection
        if first:
            self.notes += source.notes
            if source.journal not in {"wal", "immutable"} and _takes_long(self._url.path):
                self.notes.append(
                    f"{self._url.name} is not in WAL mode: programs that write to it wait while"
                    " it is read"
                )
        for name, select in self._views.items():
            # A view of this connection's own tells the columns' declared types, which a bare
            # query does not. It refuses whatever is not one SELECT.
            await source.connection.execute(f"CREATE TEMP VIEW {quote(name)} AS {select}")
        return source.connection

    async def _find(self, connection: Connection) -> Table:
        if self._spec.query is not None:
            self._from = qualify("temp", _VIEW)
            await connection.fetch(f"SELECT * FROM {self._from} LIMIT 0")  # noqa: S608  a quoted name
            table = await find_table(connection, _VIEW, "temp")
            assert table is not None
            return table
        name = table_name(self._spec.table or "")
        table = await find_table(connection, name)
        if table is None:
            there = await table_names(connection)
            raise SchemaMismatchError(
                f"{self._url.name} has no table {name!r}; it has {listed(there)}"
            )
        self._from = qualify("main", table.name)
        return table

    async def _project(
        self, connection: Connection, table: Table, key: tuple[str, ...]
    ) -> tuple[Table, tuple[str, ...]]:
        """What declared steps make of the table, as a view; what its key is called there."""
        done = project(self._spec.steps, table.names, self._order.columns, self._where)
        self._views[_ROWS] = done.sql(self._from)
        await connection.execute(f"CREATE TEMP VIEW {quote(_ROWS)} AS {self._views[_ROWS]}")
        self._from = qualify("temp", _ROWS)
        view = await find_table(connection, _ROWS, "temp")
        assert view is not None
        before = {column.name: column for column in table.columns}
        columns = tuple(
            column if one.column is None else replace(before[one.column], name=one.name)
            for column, one in zip(view.columns, done.all, strict=True)
        )
        self._order = replace(
            self._order, columns=tuple(done.order[name] for name in self._order.columns)
        )
        self._hidden = len(done.hidden)
        kept = {one.column: one.name for one in done.outputs}
        key = tuple(kept[name] for name in key) if kept.keys() >= set(key) else ()
        return replace(view, columns=columns), key

    def _selected(self, table: Table) -> tuple[str, ...]:
        """The columns to read: a dataclass's fields, then what else the key needs."""
        row = self._spec.row
        if row is None:
            return table.names
        fields = [field.name for field in dataclass_fields(row)]
        missing = [name for name in fields if table.column(name) is None]
        if missing:
            raise SchemaMismatchError(
                f"{self._where} has no column {listed(missing)}, which {row.__name__} asks for;"
                f" it has {listed(table.names)}"
            )
        hidden = [name for name in self._order.columns if name not in fields]
        return (*fields, *hidden)

    async def _refuse_nulls(self, connection: Connection, table: Table) -> None:
        """NULL compares with nothing, so such rows would be passed over in silence."""
        for name in self._order.columns:
            column = table.column(name)
            assert column is not None
            if not column.nullable:
                continue
            nulls = f"FROM {self._from} WHERE {quote(name)} IS NULL"
            if not await connection.fetch(f"SELECT 1 {nulls} LIMIT 1"):
                continue
            count = await connection.value(f"SELECT count(*) {nulls}")
            what = "cursor" if name in self._spec.cursor else "key"
            raise SchemaMismatchError(
                f"{self._where}: the {what} column {name!r} is NULL in {count} rows, which the read"
                f" would never see. Fill them in, or read a query that leaves them out:"
                f" ... WHERE {quote(name)} IS NOT NULL"
            )

    def _refuse_mixed(self, oldest: Any, newest: Any) -> None:
        """Beside times or numbers another value is the greatest, and nothing comes after it."""
        if is_mixed(oldest, newest):
            raise SchemaMismatchError(
                f"{self._where}: the cursor column {self._spec.cursor[0]!r} holds values of several"
                " kinds (numbers and text, or times and other text), and the position after the"
                " greater kind would leave the other out for ever. Nothing was moved; correct them,"
                " or read a query that leaves them out"
            )

    async def _take_notes(self, connection: Connection, newest: Any) -> None:
        cursor = self._spec.cursor
        if not self._order.columns:
            self.notes.append(
                f"{self._where} has no primary key: an unfinished read starts again from the"
                " beginning; name unique columns (--key, key=) to make it resumable"
            )
        if not cursor:
            return
        columns = self._columns(None)
        sql, parameters = self._statement(columns, after=None, span=_Span())
        steps = await connection.fetch(f"EXPLAIN QUERY PLAN {sql}", parameters)
        if any("TEMP B-TREE" in str(step[-1]) for step in steps):
            self.notes.append(
                f"{self._where}: no index serves the cursor, so each run sorts all rows; an index"
                f" on ({', '.join(self._order.columns)}) avoids that"
            )
        if self._spec.settle is None and looks_like_seconds(newest, datetime.now(UTC)):
            self.notes.append(
                f"{self._where}: the cursor {cursor[0]!r} seems to count seconds. Rows that come"
                " later in a second that was read are missed; settle= (etl copy: --settle) leaves"
                " it for the next run"
            )

    # -- reading -----------------------------------------------------------------------------

    async def pump(self, after: Position | None, until: Position | None, emit: Emit[Any]) -> None:
        """Emit the batches after a position, all of one instant; see the protocol.

        Raises:
            DataError: A text that is not UTF-8, or a value that does not fit the dataclass.
            SchemaMismatchError: The cursor holds floating-point numbers.
        """
        connection = await self._connected()
        try:
            await connection.execute("BEGIN")
            await self._refuse_changes(connection)
            await self._read(connection, after, until, emit)
            await connection.execute("COMMIT")
        except BaseException:
            connection.poison()
            await connection.close()
            raise

    async def _refuse_changes(self, connection: Connection) -> None:
        """Refuse columns that are gone or other ones now, in the transaction of the read.

        SQLite would not: a quoted name that is no column is a text with just that value.
        """
        if self._spec.query is not None:
            table = await find_table(connection, _VIEW, "temp")
        else:
            table = await find_table(connection, table_name(self._spec.table or ""))
        now = set(table.columns) if table is not None else set[TableColumn]()
        changed = [column.name for column in self._planned if column not in now]
        if changed:
            raise SchemaMismatchError(
                f"{self._where} was changed after the run had begun to read it: column"
                f" {listed(changed)} is gone, or another one now. The rows so far are in; run"
                " again"
            )

    async def _read(
        self,
        connection: Connection,
        after: Position | None,
        until: Position | None,
        emit: Emit[Any],
    ) -> None:
        order = self._order
        count = len(order.columns)
        start = from_position(after, count, where=self._where) if after and count else None
        stop = from_position(until, count, where=self._where) if until and count else None
        bound = None
        if self._spec.cursor and until is None:  # else an earlier run has found it final
            newest, now = await self._newest(connection), datetime.now(UTC)
            where = f"{self._where}, column {self._spec.cursor[0]!r}"
            bound = upper_bound(newest, now, self._spec.settle, where=where)
            await self._note_outside(connection, newest, start, now)
        place = _Place(start)
        course = _Course(self._lines(is_strict=False), self._lines(is_strict=True))
        span = _Span(stop, bound)
        while True:
            # One instant: the rows after the last one go on as they would have.
            joined = await self._joined(connection, course.lines, place, span)
            paging = self._paging(course, place, joined)
            cast("PagedConnection", connection.raw).paging = paging
            cursor = await self._run(connection, course.lines, place, span, joined)
            while await self._hand_on(connection, cursor, place, emit):
                pass
            cast("PagedConnection", connection.raw).paging = None
            if not paging.must_restart:
                return
            course.turn(paging)

    def write_lines(self, columns: Sequence[Column]) -> None:
        """See :class:`etl.connector.LineWriter`."""
        if self._spec.row is None and len(columns) == len(self._layout.columns):
            self._targets = tuple(columns)

    def _lines(self, *, is_strict: bool) -> Lines | None:
        """How SQLite writes the rows, where that was asked for and is worth it."""
        if not self._targets:
            return None
        lines = Lines(
            self._layout.columns,
            self._targets,
            is_strict=is_strict,
            are_own=self._are_own,
            exact=self._exact,
        )
        return lines if lines.is_worth_it else None

    def _columns(self, lines: Lines | None) -> list[str]:
        """What is selected: the columns, or pieces of lines and the key where it is not in them."""
        if lines is None:
            return list(map(quote, self._names))
        return [*lines.select, *map(quote, self._keys_beside(lines))]

    def _keys_beside(self, lines: Lines) -> tuple[str, ...]:
        """The columns that order the read, where they are wanted beside a line."""
        if self._order.is_unique and lines.can_read(self._order.columns):
            return ()
        return self._order.columns

    async def _hand_on(
        self,
        connection: Connection,
        cursor: aiosqlite.Cursor,
        place: _Place,
        emit: Emit[Any],
    ) -> bool:
        """Fetch some pages and emit them; whether there may be more.

        A function of its own, so that nothing holds the last pages while the next are fetched.
        """

        async def fetch(driver: aiosqlite.Connection) -> list[Page]:
            return cast("list[Page]", await cursor.fetchmany())

        pages = await connection.run(fetch)
        pages.reverse()
        if not pages:
            return False
        while pages:
            page = pages.pop()
            place.given += len(page.rows) + len(page.rejects)
            position: Position = (place.given,)
            if self._order.columns:
                place.last = page.last
                self._refuse_floats(place.last)
                position = to_position(place.last)
            await emit(
                Batch(page.rows, position=position, rejects=page.rejects, nbytes=page.nbytes)
            )
        return True

    async def _joined(
        self, connection: Connection, lines: Lines | None, place: _Place, span: _Span
    ) -> Joined | None:
        """Pages of lines, where each can be found by the key at the end of the last one."""
        if lines is None or not lines.are_text or not self._order.columns:
            return None
        if self._keys_beside(lines):
            return None
        select = ", ".join(lines.select)

        def statement(after: Fields | None, count: int) -> tuple[str, Sequence[Any]]:
            # No name for the line: an ORDER BY could take it for one of the columns.
            sql, parameters = self._statement([select], after=after, span=span)
            page = f"WITH {_PAGE} (line) AS ({sql} LIMIT ?)"
            page += f" SELECT count(*), count(line), group_concat(line, '') FROM {_PAGE}"  # noqa: S608
            return page, [*parameters, count]

        sql, parameters = statement((None,) * len(self._order.columns), 1)
        steps = [row[-1] for row in await connection.fetch(f"EXPLAIN QUERY PLAN {sql}", parameters)]
        if any("TEMP B-TREE" in step for step in steps) or any(
            step.startswith("SCAN") and _PAGE not in step for step in steps
        ):
            return None  # each page would go through all rows
        read = lines.reader_of(self._order.columns)
        layout = self._text_layout()

        def convert(text: bytes, count: int) -> Page:
            data = lines.take(text, count)
            end = str(data[data.rfind(b"\n", 0, -1) + 1 : -1], "utf-8")
            return Page(TextRows(layout, TextLines(data, count)), read(end), len(data))

        return Joined(
            batch_rows=self._info.batch_rows,
            batch_bytes=self._info.batch_bytes,
            statement=statement,
            convert=convert,
            last=place.last,
        )

    def _text_layout(self) -> Layout:
        """Of lines for the target's columns."""
        decoders = [text_decoder(one.type, nullable=one.nullable) for one in self._targets]
        return Layout(self._targets, decoders, is_text=True)

    def _paging(self, course: _Course, place: _Place, joined: Joined | None) -> Paging:
        lines = course.lines
        if lines is None:
            names = self._names
            key = [names.index(name) for name in self._order.columns]
        else:
            beside = self._keys_beside(lines)
            names = (*map(str, range(len(lines.select))), *beside)
            key = list(range(len(lines.select), len(names)))
        return Paging(
            batch_rows=self._info.batch_rows,
            batch_bytes=self._info.batch_bytes,
            names=names,
            key=key,
            convert=self._converter(lines, key),
            is_unique=self._order.is_unique,
            label=self._where,
            last=place.last,
            count=place.given,
            most=course.most,
            is_exact=course.is_exact,
            are_lines=lines is not None,
            joined=joined,
        )

    def _converter(
        self, lines: Lines | None, key: Sequence[int]
    ) -> Callable[[list[Fields], int], Page]:
        """Makes pages of rows, on the connection's thread."""

        def last(rows: list[Fields]) -> Fields:
            return tuple(rows[-1][number] for number in key)

        if lines is not None:
            return self._lines_converter(lines, last if key else None)
        row = self._spec.row
        if row is not None:
            build = Builder(row, names=self._names, key=key, label=self._where)

            def built(rows: list[Fields], nbytes: int) -> Page:
                items, rejects = sift(build, rows, self._fields, sets_aside=self._info.sets_aside)
                return Page(items, last(rows), nbytes, rejects)

            return built
        layout = self._layout
        shown = slice(-self._hidden) if self._hidden else None

        def values(rows: list[Fields], nbytes: int) -> Page:
            seen = rows if shown is None else [row[shown] for row in rows]
            return Page(ValueRows(layout, seen, nbytes), last(rows), nbytes)

        return values

    def _lines_converter(
        self, lines: Lines, last: Callable[[list[Fields]], Fields] | None
    ) -> Callable[[list[Fields], int], Page]:
        layout = self._text_layout()
        read = lines.reader_of(self._order.columns) if last is None else None

        def texts(rows: list[Fields], _: int) -> Page:
            found = TextLines(lines.write(rows), len(rows))
            if last is not None:
                end = last(rows)
            else:
                end = read(found[-1]) if read is not None else ()
            return Page(TextRows(layout, found), end, found.nbytes)

        return texts

    def _fields(self, row: Fields) -> Row:
        """A row as it was read, under the names of the dataclass's fields."""
        known = {fold(column.name): column for column in self._layout.columns}
        columns = [
            replace(known[fold(name)], name=name) for name in self._names if fold(name) in known
        ]
        layout = Layout(columns, [same for _ in columns], is_text=False)
        return layout.row(tuple(row[: len(columns)]))

    async def _run(
        self,
        connection: Connection,
        lines: Lines | None,
        place: _Place,
        span: _Span,
        joined: Joined | None,
    ) -> aiosqlite.Cursor:
        if joined is not None:  # which has statements of its own
            return await connection.run(aiosqlite.Connection.cursor)
        sql, parameters = self._statement(self._columns(lines), after=place.last, span=span)
        if not self._order.columns and place.given:
            sql += f" LIMIT -1 OFFSET {place.given}"

        async def execute(driver: aiosqlite.Connection) -> aiosqlite.Cursor:
            return await driver.execute(sql, parameters)

        return await connection.run(execute)

    def _statement(
        self, columns: Sequence[str], *, after: Fields | None, span: _Span
    ) -> tuple[str, list[Any]]:
        """The SELECT, and its parameters. Keyset: it starts after the last key."""
        terms = self._order.terms
        conditions: list[str] = []
        parameters: list[Any] = []
        for operator, values in ((">", after), ("<=", span.until)):
            if values is not None:
                marks = ", ".join("?" * len(values))
                conditions.append(f"({', '.join(terms)}) {operator} ({marks})")
                parameters += values
        if span.below is not None:
            conditions.append(f"{terms[0]} < ?")
            parameters.append(span.below)
        sql = f"SELECT {', '.join(columns)} FROM {self._from}"  # noqa: S608  quoted names
        if conditions:
            sql += f" WHERE {' AND '.join(conditions)}"
        if terms:
            sql += f" ORDER BY {', '.join(terms)}"
        return sql, parameters

    async def order(self, positions: Sequence[Position]) -> Sequence[Position]:
        """See the protocol.

        The positions stand below the columns of the source, in one UNION: so they are compared
        as those are, by the same collation.
        """
        terms = self._order.terms
        names = [f"etl_{number}" for number in range(len(terms))]
        own = ", ".join(f"{term} AS {name}" for term, name in zip(terms, names, strict=True))
        marks = ", ".join("?" * (len(terms) + 1))
        parameters: list[Any] = []
        for number, position in enumerate(positions):
            parameters += (*from_position(position, len(terms), where=self._where), number)
        sql = (
            f"SELECT etl_n FROM (SELECT {own}, 0 AS etl_n FROM {self._from} WHERE 0"  # noqa: S608
            f" UNION ALL SELECT * FROM (VALUES {', '.join([f'({marks})'] * len(positions))}))"
            f" ORDER BY {', '.join(names)}, etl_n"
        )
        rows = await (await self._connected()).fetch(sql, parameters)
        return [positions[int(row[0])] for row in rows]

    async def chunks(self, *, most: int, least_rows: int) -> Sequence[Position]:
        """See the protocol. One pass over the keys."""
        order = self._order
        if not order.columns or not order.is_unique:
            return ()  # the rows are watched, in one piece, for keys that are double
        connection = await self._connected()
        count: int = await connection.value(f"SELECT count(*) FROM {self._from}")  # noqa: S608
        number = min(most, count // least_rows)
        if number < 2:
            return ()
        ends = [count * (at + 1) // number for at in range(number)]
        keys, terms = ", ".join(map(quote, order.columns)), ", ".join(order.terms)
        rows = await connection.fetch(
            f"SELECT {keys} FROM (SELECT {keys}, row_number() OVER (ORDER BY {terms}) AS etl_r"  # noqa: S608
            f" FROM {self._from}) WHERE etl_r IN ({', '.join('?' * number)}) ORDER BY etl_r",
            ends,
        )
        return [to_position(row) for row in rows]

    async def _newest(self, connection: Connection) -> Any:
        """The greatest value of the cursor."""
        term = self._order.terms[0]
        sql = f"SELECT {term} FROM {self._from} ORDER BY {term} DESC LIMIT 1"  # noqa: S608
        return await connection.value(sql)

    async def _oldest(self, connection: Connection) -> Any:
        """The least value of the cursor."""
        term = self._order.terms[0]
        sql = f"SELECT {term} FROM {self._from} ORDER BY {term} LIMIT 1"  # noqa: S608
        return await connection.value(sql)

    async def _note_outside(
        self, connection: Connection, newest: Any, start: tuple[Any, ...] | None, now: datetime
    ) -> None:
        """Tell of rows that would be taken for copied without a word."""
        name, note = self._spec.cursor[0], None
        if isinstance(newest, str):
            soon = upper_bound(newest, now + timedelta(minutes=1), None, where=self._where)
            if soon is not None and newest > str(soon):
                term = self._order.terms[0]
                later = await connection.value(
                    f"SELECT count(*) FROM {self._from} WHERE {term} > ?",  # noqa: S608
                    (soon,),
                )
                note = told_later(self._where, name, later, ", in UTC")
        elif isinstance(newest, int) and start and isinstance(start[0], int) and newest < start[0]:
            note = told_lower(self._where, name)
        if note is not None and note not in self.notes:
            self.notes.append(note)

    def _refuse_floats(self, key: Fields) -> None:
        for name, value in zip(self._spec.cursor, key, strict=False):
            if isinstance(value, float):
                raise SchemaMismatchError(
                    f"{self._where}: the cursor column {name!r} holds floating-point numbers, which"
                    " do not order exactly; use an integer or text column. The checkpoint stays"
                    " where it is"
                )


def _takes_long(path: str) -> bool:
    return Path(path).stat().st_size > _LONG_READ_BYTES


def _shape(table: Table, key: Sequence[str]) -> Shape:
    """The table's shape with the key of this read, which was checked to hold no NULL."""
    columns = [
        Column(name=c.name, type=c.type, nullable=c.nullable and c.name not in key)
        for c in table.shape.columns
    ]
    return Shape(columns=tuple(columns), key=tuple(key))


def _order_of(table: Table, spec: ReadSpec, where: str) -> Order:
    """What orders the read.

    Raises:
        SchemaMismatchError: A column is missing, a key is not unique, or a cursor cannot be one.
    """
    for name in (*spec.key, *spec.cursor):
        column = table.column(name)
        if column is None or column.name != name:
            raise SchemaMismatchError(
                f"{where} has no column {name!r}; it has {listed(table.names)}"
            )
        if name in spec.cursor and column.affinity == "real":
            raise SchemaMismatchError(
                f"{where}: the cursor column {name!r} is declared {column.declared}; floating-point"
                " numbers do not order exactly. Use an integer or text column"
            )
    if table.type == "view":
        if spec.cursor and not spec.key:
            raise SchemaMismatchError(
                f"{where}: a view says nothing of a key; name the unique columns with key="
            )
        columns = (*spec.cursor, *(n for n in spec.key if n not in spec.cursor))
        return Order(columns=columns, collations=("BINARY",) * len(columns), is_unique=False)
    key = spec.key or table.key
    if spec.cursor and not key:
        index = table.index_within(spec.cursor)
        if index is None:
            raise SchemaMismatchError(
                f"{where} has no primary key, so rows with equal cursors could be missed; name"
                " unique columns after the cursor, or as the key (--key, key=)"
            )
        key = index.columns
    if not key:
        return Order()
    index = table.index_within(key)
    if index is None:
        raise SchemaMismatchError(
            f"{where}: no unique index makes sure that key ({', '.join(key)}) is unique; make one:"
            f" CREATE UNIQUE INDEX ... ON {quote(table.name)} ({', '.join(map(quote, key))})"
        )
    collation_of: dict[str, str] = dict(zip(index.columns, index.collations, strict=True))
    columns = (*spec.cursor, *(name for name in key if name not in spec.cursor))
    return Order(columns=columns, collations=tuple(collation_of.get(name) for name in columns))
