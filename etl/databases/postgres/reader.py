"""Reads a table or query: one COPY for the whole read, its bytes cut into batches of lines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import asdict, replace
from functools import partial
from operator import itemgetter
from typing import Any

import asyncpg

from etl.batch import Batch, Position, Reject
from etl.connector import Commons, Emit, RunInfo
from etl.databases.build import sift
from etl.databases.database import ReadSpec
from etl.databases.postgres.catalogue import fingerprint
from etl.databases.postgres.chunks import find_chunks
from etl.databases.postgres.connect import Connection, close
from etl.databases.postgres.copying import copy_out
from etl.databases.postgres.frames import FORM, UNFIT, fitted, rows_of
from etl.databases.postgres.guard import STALL_S, Watch, guarded
from etl.databases.postgres.horizon import check_rights, find_horizon
from etl.databases.postgres.origin import Origin, Snapshot, open_origin
from etl.databases.postgres.ranges import (
    RANGE_BYTES,
    WIDE_BYTES,
    StoppedError,
    Table,
    TooWideError,
    UnfitError,
    ranges,
    suits,
    weighed,
)
from etl.databases.postgres.selection import (
    Builder,
    Range,
    Selection,
    check_readable,
    layout_of,
    row_builder,
    select,
    set_bounds,
)
from etl.databases.postgres.translate import translating
from etl.databases.sql import literal
from etl.databases.types import NULL, unescape
from etl.databases.url import Url
from etl.engine.supervise import finish
from etl.errors import DataError, SchemaMismatchError
from etl.rows import Column, Frames, Layout, Lines, Shape, TextRows, WideLine

UNCHANGED = "the source was not changed"
_COLUMNS = 4
"""So many times the size of a batch of rows has one of whole columns."""


@asynccontextmanager
async def open_reader(url: Url, spec: ReadSpec, info: RunInfo) -> AsyncGenerator[PostgresReader]:
    """Connect, describe the read, and refuse what cannot be read safely."""
    async with AsyncExitStack() as stack:
        commons = info.commons
        if commons is None:
            commons = await stack.enter_async_context(Commons())
        origin = await commons.get(("postgresql", url), partial(open_origin, url, info))
        connection = await origin.stock.get()
        reader: PostgresReader | None = None
        try:
            with translating("source", spec.label, UNCHANGED):
                selection = await select(connection, spec)
                await check_readable(connection, selection)
                if spec.cursor:
                    await check_rights(connection, selection, spec.settle)
                before = await _fingerprint(connection, selection)
            if selection.relation is not None and not spec.cursor:
                origin.will_read(selection.relation)
            if info.invitation is not None and (snapshot := info.invitation.get("snapshot")):
                origin.join(Snapshot(**snapshot))
            reader = PostgresReader(origin, spec, info, selection, before, connection)
            yield reader
        finally:
            await finish(close(connection) if reader is None else reader.aclose())


async def _fingerprint(connection: Connection, selection: Selection) -> str | None:
    if selection.relation is None:
        return None
    return await fingerprint(connection, selection.relation.qualified)


class PostgresReader:
    """See :class:`etl.connector.Reader`. One connection; a COPY that was cut short closes it."""

    def __init__(
        self,
        origin: Origin,
        spec: ReadSpec,
        info: RunInfo,
        selection: Selection,
        before: str | None,
        connection: Connection,
    ) -> None:
        self._origin = origin
        self._spec = spec
        self._info = info
        self._selection = selection
        self._before = before
        self._connection: Connection | None = connection
        self._notes = list(selection.notes)
        self._layout = layout_of(selection)
        self._build = _builder(spec, selection)
        self._frames_of: Mapping[str, str] = {}  # the SQL of each column, where rows go as frames
        self._frame_layout = self._layout
        self._table: Table | None = None  # as it was when frames were offered
        self._weighs = False
        self._keeps_columns = False
        self._instant = 0  # the number of the last snapshot that was read

    @property
    def at_one_instant(self) -> bool:
        """See :class:`etl.connector.Instant`. What is new is read up to a horizon of its own."""
        return self._info.one_instant and not self._spec.cursor

    async def settle_instant(self) -> None:
        """See :meth:`etl.connector.Instant.settle_instant`."""
        await self._origin.snapshot()

    async def invitation(self) -> Mapping[str, Any]:
        """See :class:`etl.connector.Joinable`: the instant at which it reads."""
        return {"snapshot": asdict(await self._origin.snapshot()) if self.at_one_instant else None}

    @property
    def shape(self) -> Shape:
        return self._selection.shape

    @property
    def resumable(self) -> bool:
        """False for a table without a key: its rows have no order to continue in."""
        return bool(self._selection.order)

    @property
    def ordered_by(self) -> Sequence[str]:
        """See :class:`etl.connector.Ordered`."""
        return self._selection.ordered_by

    @property
    def notes(self) -> Sequence[str]:
        return tuple(self._notes)

    async def offers_frames(self) -> str | None:
        """See :meth:`etl.connector.Framer.offers_frames`."""
        if self._spec.row is not None or self._spec.cursor:
            return None
        connection = await self._connected()
        with translating("source", self._selection.label, UNCHANGED):
            self._table = await suits(connection, self._selection)
            return FORM if self._table is not None else None

    def use_frames(self, columns: Sequence[Column]) -> bool:
        """See :meth:`etl.connector.Framer.use_frames`."""
        types = {column.name: column.type for column in columns}
        own = self._selection.columns
        found = {one.name: sql for one in own if (sql := fitted(one, types[one.name])) is not None}
        if len(found) < len(own):
            return False
        self._frames_of = found
        as_sent = tuple(replace(one, type=types[one.name]) for one in own)
        self._frame_layout = layout_of(replace(self._selection, columns=as_sent))
        return True

    def expect(self, names: Collection[str]) -> None:
        """See :meth:`etl.connector.Expecting.expect`."""
        if self._build is None and not self._keeps_columns:
            columns = self._selection.columns
            ahead = tuple(column.name for column in columns if column.name in names)
            self._selection = replace(self._selection, ahead=ahead)
            self._layout = layout_of(self._selection)

    def keep_columns(self) -> None:
        """See :meth:`etl.connector.Columnar.keep_columns`."""
        self._keeps_columns = True

    async def pump(self, after: Position | None, until: Position | None, emit: Emit[Any]) -> None:
        """See :meth:`etl.connector.Reader.pump`.

        Raises:
            SourceUnavailableError: The server went away, or nothing came for minutes.
            SchemaMismatchError: The table was changed since the reader was opened.
            DataError: A key that only the rows can prove is NULL or double.
        """
        selection = self._selection
        selection.check(after)
        selection.check(until)
        if not selection.order:
            after = until = None  # no order, so no place to continue: the whole table again
        while (stopped := await self._pump(after, until, emit)) is not None:
            after = stopped.after
            if isinstance(stopped, TooWideError):
                self._weighs = True
            else:
                # As text each value is looked at where it is written, and one that does not fit
                # is told with its column.
                self._frames_of = {}

    async def _pump(
        self, after: Position | None, until: Position | None, emit: Emit[Any]
    ) -> StoppedError | None:
        """Read to the end; where frames stop at a range that cannot be read so, say which."""
        connection = await self._connected()
        self._connection = None
        clean = False
        failed: Exception | None = None
        stopped: StoppedError | None = None
        try:
            with translating("source", self._selection.label, UNCHANGED):
                await self._read(connection, after, until, emit)
            clean = True
        except _EmitFailedError as error:
            failed = error.reason
        except StoppedError as error:
            stopped = error
        finally:
            # A connection whose COPY was cut short may get a late cancel: it is not used again.
            if clean:
                self._connection = connection
            else:
                await finish(close(connection))
        if failed is not None:
            raise failed
        return stopped

    async def order(self, positions: Sequence[Position]) -> Sequence[Position]:
        """See :meth:`etl.connector.Reader.order`."""
        selection = self._selection
        for position in positions:
            selection.check(position)
        connection = await self._connected()
        with translating("source", selection.label, UNCHANGED):
            numbers = await connection.fetch(
                selection.order_sql(),
                *([position[i] for position in positions] for i in range(len(selection.order))),
            )
        return [positions[int(row["etl_n"]) - 1] for row in numbers]

    async def chunks(self, *, most: int, least_rows: int) -> Sequence[Position]:
        """See :meth:`etl.connector.Reader.chunks`. A large table is sampled, to be quick."""
        selection = self._selection
        if not selection.proven or not selection.order:
            return ()  # the rows are watched, in one piece, for keys that are NULL or double
        connection = await self._connected()
        with translating("source", selection.label, UNCHANGED):
            # Rows behind the last bound are not read: it must be the highest of that instant.
            await self._begin(connection)
            found = await find_chunks(connection, selection, most=most, least_rows=least_rows)
            await connection.execute("COMMIT")
            return found

    async def _connected(self) -> Connection:
        """The connection; a new one after a read that was cut short."""
        connection = self._connection
        if connection is None or connection.is_closed():
            connection = self._connection = await self._origin.stock.get()
        return connection

    async def _read(
        self,
        connection: Connection,
        after: Position | None,
        until: Position | None,
        emit: Emit[Any],
    ) -> None:
        selection = self._selection
        upper = below = None
        if self._spec.cursor and until is None:  # else an earlier run has found it final
            horizon = await find_horizon(connection, selection, after, self._spec.settle)
            if horizon.note is not None and horizon.note not in self._notes:
                self._notes.append(horizon.note)
            if horizon.upper is None:
                return
            upper, below = horizon.upper, horizon.below
        if not self._frames_of:
            await set_bounds(connection, after, until, upper)
        await self._begin(connection)
        await self._lock(connection)
        if await _fingerprint(connection, selection) != self._before:
            raise SchemaMismatchError(
                f"{selection.label} was changed (ALTER, or dropped and made again) after the run"
                " had begun to read it; the rows so far are in. Run again"
            )
        if self._frames_of:
            await self._read_frames(connection, after, until, emit)
            await connection.execute("COMMIT")
            return
        async with guarded(connection) as watch:
            cutter = _Cutter(
                selection, self._layout, self._build, self._info, watch, emit,
                keeps_lines=self._keeps_columns,
            )  # fmt: skip
            await copy_out(connection, selection.sql(after, until, below), cutter.feed)
            await cutter.end()
        await connection.execute("COMMIT")

    async def _begin(self, connection: Connection) -> None:
        """Begin the transaction of a read."""
        await self._begin_at_instant(connection)
        relation = self._selection.relation
        # In the target a name without its schema may be that of another object. The user's own
        # SQL may leave schemas out itself.
        if relation is not None and relation.names_objects and not self._spec.steps:
            await connection.execute("SET LOCAL search_path = ''")

    async def _begin_at_instant(self, connection: Connection) -> None:
        """Begin a transaction: at the run's instant where it has one, else at one of its own."""
        if not self.at_one_instant:
            # All ranges of frames at one instant, which begins after the lock.
            many = " ISOLATION LEVEL REPEATABLE READ READ ONLY" if self._frames_of else ""
            await connection.execute(f"BEGIN{many}")
            return
        lost: Snapshot | None = None
        while True:
            snapshot = await self._origin.snapshot(lost)
            await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                await connection.execute(f"SET TRANSACTION SNAPSHOT {literal(snapshot.name)}")
                break
            except (asyncpg.UndefinedObjectError, asyncpg.InvalidParameterValueError):
                await connection.execute("ROLLBACK")
                lost = snapshot
        if self._instant != snapshot.number and snapshot.number > 1:
            self._notes.append(
                f"{self._selection.label}: read at a second instant, because the connection that"
                " held the first was lost: sums over it and other tables need not hold. A run with"
                " --full reads everything at one instant again"
            )
        self._instant = snapshot.number

    async def _read_frames(
        self,
        connection: Connection,
        after: Position | None,
        until: Position | None,
        emit: Emit[Any],
    ) -> None:
        selection = self._selection
        nbytes = min(RANGE_BYTES, self._info.most_bytes // 4)
        table = self._table
        assert table is not None  # frames were offered
        self._weighs = self._weighs or table.has_wide_rows
        async with aclosing(ranges(connection, selection, table, after, until, nbytes)) as found:
            async for part in found:
                if not self._weighs:
                    await self._emit_frames(connection, part, emit, 4 * nbytes)
                    continue
                async with aclosing(weighed(connection, selection, part, nbytes)) as parts:
                    async for smaller in parts:
                        await self._emit_frames(connection, smaller, emit, None)

    async def _emit_frames(
        self, connection: Connection, part: Range, emit: Emit[Any], most: int | None
    ) -> None:
        rows = await self._frames(connection, part, most)
        try:
            await emit(Batch(rows, position=part.until, nbytes=rows.nbytes))
        except Exception as error:
            raise _EmitFailedError(error) from error

    async def _frames(self, connection: Connection, part: Range, most: int | None) -> Frames:
        """The rows of a range, as the server sends them.

        Raises:
            TooWideError: They are more bytes than ``most``.
            UnfitError: A value does not fit the target's column.
        """
        await set_bounds(connection, part.after, part.until, None)
        pieces: list[bytearray] = []
        size = 0
        async with guarded(connection) as watch:

            async def take(piece: bytearray) -> None:
                nonlocal size
                size += len(piece)
                if most is not None and size > most:
                    raise TooWideError(part.after)
                pieces.append(piece)
                watch.expect(STALL_S)

            try:
                sql = self._selection.rows_sql(self._frames_of, part)
                status = await copy_out(connection, sql, take, "binary")
            except asyncpg.InvalidTextRepresentationError as error:
                if UNFIT in str(error):
                    raise UnfitError(part.after) from None  # its message has the value
                raise
        count = int(status.rpartition(" ")[2])
        return Frames(self._frame_layout, rows_of(pieces), count)

    async def _lock(self, connection: Connection) -> None:
        """Keep DDL away from the table until the read has ended."""
        relation = self._selection.relation
        if relation is None or not relation.is_table:
            return
        # A user who may read some columns only may not lock the table.
        if await connection.fetchval_prepared(
            "SELECT pg_catalog.has_table_privilege($1::bigint::oid, 'SELECT')", relation.oid
        ):
            await connection.execute(f"LOCK TABLE {relation.qualified} IN ACCESS SHARE MODE")

    async def rest(self) -> None:
        """See :class:`etl.connector.Resting`."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._origin.stock.give_back(connection)

    async def aclose(self) -> None:
        """Close the connection, in bounded time."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await finish(close(connection))


class _EmitFailedError(Exception):
    """Carries an error of ``emit`` past the translation of the driver's errors."""

    def __init__(self, reason: Exception) -> None:
        super().__init__()
        self.reason = reason


class _Cutter:
    """Joins what COPY sends and cuts it into batches.

    A line of COPY text holds no line end of a value (it is written ``\\n``), so a row ends at each
    line end and nowhere else.
    """

    def __init__(
        self,
        selection: Selection,
        layout: Layout,
        build: Builder | None,
        info: RunInfo,
        watch: Watch,
        emit: Emit[Any],
        *,
        keeps_lines: bool,
    ) -> None:
        """Make one.

        Args:
            keeps_lines: Lines stay the bytes that came in, where nothing has to look at each.
        """
        is_watched = bool(selection.order) and not selection.proven
        self._is_raw = keeps_lines and build is None and not is_watched
        self._batch_bytes = info.batch_bytes
        if self._is_raw:
            # Work on columns pays for each batch what a row costs for each row.
            most = max(info.batch_bytes, info.most_bytes // 4)
            self._batch_bytes = min(_COLUMNS * info.batch_bytes, most)
        self._selection = selection
        self._layout = layout
        self._build = build
        self._info = info
        self._watch = watch
        self._emit = emit
        self._pieces: list[bytes] = []
        self._size = 0
        self._count = 0
        self._position: Callable[[str], Position] = _position_of(selection.places)
        self._last: tuple[str, ...] | None = None

    async def feed(self, data: bytes) -> None:
        """Take one piece; emits when enough has come together."""
        if len(data) >= WIDE_BYTES:
            await self._wide(data)
            return
        self._pieces.append(data)
        self._size += len(data)
        if self._size < self._batch_bytes:
            self._watch.expect(STALL_S)
            return
        joined = b"".join(self._pieces)
        end = joined.rfind(b"\n") + 1
        rest = joined[end:]
        self._pieces = [rest] if rest else []
        self._size = len(rest)
        if end:
            self._watch.pause()
            await self._cut(joined[:end] if rest else joined)
        self._watch.expect(STALL_S)

    async def _wide(self, data: bytes) -> None:
        """Take a piece with a large row: that row is not joined with others, nor decoded."""
        self._watch.pause()
        if self._pieces:
            joined = b"".join(self._pieces)
            self._pieces, self._size = [], 0
            if not joined.endswith(b"\n"):  # a piece in the middle of a line
                data, joined = joined + data, b""
            if joined:
                await self._cut(joined)
        start = 0
        while start < len(data):
            end = data.find(b"\n", start)
            if end < 0:
                break
            if end - start >= WIDE_BYTES:
                # All of ``data`` as a rule; a slice of it is a copy.
                is_all = start == 0 and end == len(data) - 1
                await self._send_wide(data if is_all else data[start : end + 1])
            else:
                await self._cut(data[start : end + 1])
            start = end + 1
        if start < len(data):
            self._pieces, self._size = [data[start:]], len(data) - start
        self._watch.expect(STALL_S)

    async def end(self) -> None:
        """Emit what is left."""
        self._watch.pause()
        if self._pieces:
            await self._cut(b"".join(self._pieces))

    async def _cut(self, data: bytes) -> None:
        if self._is_raw:
            await self._cut_raw(data)
            return
        # What is not UTF-8 (a SQL_ASCII database) goes out as the bytes that came in.
        lines = data.decode("utf-8", "surrogateescape").split("\n")
        del lines[-1]  # behind the last line end
        most = self._info.batch_rows
        if len(lines) <= most:
            await self._send(lines, len(data))
            return
        for start in range(0, len(lines), most):
            part = lines[start : start + most]
            await self._send(part, sum(map(len, part)) + len(part))

    async def _cut_raw(self, data: bytes) -> None:
        """Hand on bytes as they are, in parts of no more rows than a batch may have."""
        count = data.count(b"\n")
        if count > self._info.batch_rows:
            # The line in the middle, or the last one where that is most of them.
            middle = data.find(b"\n", len(data) // 2) + 1
            if middle == len(data):
                middle = data.rfind(b"\n", 0, -1) + 1
            await self._cut_raw(data[:middle])
            await self._cut_raw(data[middle:])
            return
        self._count += count
        position: Position = (self._count,)
        if self._selection.order:
            last = data[data.rfind(b"\n", 0, -1) + 1 : -1]
            position = self._position(last.decode("utf-8", "surrogateescape"))
        lines = Lines(data, count, len(self._selection.hidden))
        await self._hand_on(Batch(TextRows(self._layout, lines), position=position))

    async def _send_wide(self, line: bytes) -> None:
        selection = self._selection
        watched = bool(selection.order) and not selection.proven
        if self._build is not None or selection.hidden or watched:
            await self._send([WideLine(line)[0]], len(line))
            return
        self._count += 1
        position: Position = (self._count,)
        if selection.order:
            fields = [_field(line, place) for place in selection.places]
            position = tuple(unescape(one.decode("utf-8", "surrogateescape")) for one in fields)
        text = TextRows(self._layout, WideLine(line), len(line))
        await self._hand_on(Batch(text, position=position, nbytes=text.nbytes))

    async def _send(self, lines: list[str], nbytes: int) -> None:
        selection = self._selection
        if not selection.proven and selection.order:
            self._watch_keys(lines)
        self._count += len(lines)
        position = self._position(lines[-1]) if selection.order else (self._count,)
        if self._build is not None:
            rows, rejects = self._built(self._build, lines)
            size = 2 * nbytes + 64 * len(lines)
            batch: Batch[Any] = Batch(rows, position=position, rejects=rejects, nbytes=size)
        else:
            if selection.hidden:
                hidden = len(selection.hidden)
                lines = [line.rsplit("\t", hidden)[0] for line in lines]
            text = TextRows(self._layout, lines, nbytes)
            batch = Batch(text, position=position, nbytes=text.nbytes)
        await self._hand_on(batch)

    async def _hand_on(self, batch: Batch[Any]) -> None:
        try:
            await self._emit(batch)
        except Exception as error:
            raise _EmitFailedError(error) from error

    def _built(self, build: Builder, lines: list[str]) -> tuple[Sequence[Any], tuple[Reject, ...]]:
        """The dataclass's instances, and the rows that it cannot hold."""
        width = len(self._layout.columns)
        return sift(
            build,
            lines,
            lambda line: self._layout.row(tuple(line.split("\t")[:width])),
            sets_aside=self._info.sets_aside,
        )

    def _watch_keys(self, lines: Sequence[str]) -> None:
        """Refuse a NULL or double key: a resumed read would leave such rows out."""
        key = _fields_of(self._selection.places)
        keys = [key(line.split("\t")) for line in lines]
        last = self._last
        for one in keys:
            if one == last or NULL in one:
                what = "is NULL in some row" if NULL in one else "is not unique"
                raise DataError(
                    f"{self._selection.label}: the key ({', '.join(self._selection.order)}) {what},"
                    " so a read that is cut short could not continue without losing rows. The rows"
                    " before it are in; choose columns that are unique and never NULL"
                )
            last = one
        self._last = last


def _builder(spec: ReadSpec, selection: Selection) -> Builder | None:
    if spec.row is None:
        return None
    return row_builder(spec.row, selection.columns, width=selection.width, proven=selection.proven)


def _field(line: bytes, place: int) -> bytes:
    """One field of a line, without taking the others apart."""
    start = 0
    for _ in range(place):
        start = line.index(b"\t", start) + 1
    end = line.find(b"\t", start)
    return (line[start:end] if end >= 0 else line[start:]).removesuffix(b"\n")


def _fields_of(places: Sequence[int]) -> Callable[[Sequence[str]], tuple[str, ...]]:
    if len(places) == 1:
        place = places[0]
        return lambda fields: (fields[place],)
    getter: Callable[[Sequence[str]], tuple[str, ...]] = itemgetter(*places)
    return getter


def _position_of(places: Sequence[int]) -> Callable[[str], Position]:
    if not places:
        return lambda _: ()
    fields = _fields_of(places)
    return lambda line: tuple(map(unescape, fields(line.split("\t"))))
