"""A SQLite file as a target: sessions that take turns, and the end of a run."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

from etl.batch import Batch
from etl.connector import (
    Advance,
    Checkpoint,
    CheckpointKey,
    OpenTarget,
    RunInfo,
    Session,
    Sink,
)
from etl.databases.checkpoints import is_done, parts
from etl.databases.migrate import needs_upgrade, upgrade
from etl.databases.sessions import StagingOwners, is_fresh, leading, notes_of, take_over
from etl.databases.sql import fold, quote
from etl.databases.sqlite import checkpoints
from etl.databases.sqlite.connection import Connection, connect_target, open_target_file
from etl.databases.sqlite.errors import code_of, name_of
from etl.databases.sqlite.load import Load, gone
from etl.databases.sqlite.lock import run_lock
from etl.databases.sqlite.rejects import Rejects, publish_rejects
from etl.databases.sqlite.schema import find_table, table_name, table_names
from etl.databases.url import Url
from etl.engine.supervise import finish
from etl.errors import (
    CommitInDoubtError,
    DataError,
    EtlError,
    SchemaMismatchError,
    TargetUnavailableError,
)
from etl.rows import Shape

_SAVEPOINT = "etl_piece"
_SURELY_NOT_COMMITTED = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_CONSTRAINT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_INTERRUPT,
    }
)


@asynccontextmanager
async def open_target(
    url: Url, info: RunInfo, *, sessions: int
) -> AsyncGenerator[OpenTarget, None]:
    """Open a file for one run; see :class:`etl.connector.Target`.

    Makes the file where it is missing. Sessions connect when they are used first.
    """
    target = SqliteTarget(url, info)
    async with AsyncExitStack() as stack:
        await target.open(stack)
        stack.push_async_callback(target.close)  # before the lock is given back
        yield target


class SqliteTarget:
    """See :class:`etl.connector.OpenTarget`.

    Attributes:
        turn: Held from the begin of a transaction to its end. SQLite has one writer at a time
            and no queue; this lock is first come, first served.
        said: What the first session passes on to a person.
    """

    def __init__(self, url: Url, info: RunInfo) -> None:
        self.turn = asyncio.Lock()
        self.said: list[str] = []
        self.where = url.name
        self.path = Path(url.path)
        self.info = info
        self._url = url
        self._sessions: list[SqliteSession] = []
        self._idle: list[Connection] = []  # given back by sessions whose flows do not run
        self.staging_owners = StagingOwners(url.name)

    async def open(self, stack: AsyncExitStack) -> None:
        """Make the file, lock it for the pipeline, and bring etl's tables up to date."""
        connection, notes = await open_target_file(self._url.path, self.where)
        try:
            await stack.enter_async_context(run_lock(self.path, self.info))
            if needs_upgrade(await _version(connection)):
                await upgrade(self._url)
        finally:
            await connection.close()
        self.said += notes

    async def close(self) -> None:
        """Close every session's connection, through any number of cancellations."""
        for session in self._sessions:
            session.interrupt()
        await finish(self._close())

    async def _close(self) -> None:
        for session in self._sessions:
            await session.close()
        while self._idle:
            await self._idle.pop().close()

    async def connect(self) -> Connection:
        """A connection: one that was given back, or a new one."""
        if self._idle:
            connection = self._idle.pop()
            try:
                await connection.execute("PRAGMA foreign_keys=ON")  # as a new one has it
            except BaseException:
                await connection.close()  # nobody else would
                raise
            return connection
        return await connect_target(self.path, self.where)

    def give_back(self, connection: Connection) -> None:
        """Keep a connection that is in no transaction, for the next that asks for one."""
        self._idle.append(connection)

    async def session(self, flow: str, sinks: Sequence[Sink[Any]]) -> Session:
        """See the protocol."""
        session = SqliteSession(self, flow, sinks)
        self._sessions.append(session)
        return session

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        """See the protocol."""
        return notes_of(self._sessions)

    @property
    def _leading(self) -> list[SqliteSession]:
        return leading(self._sessions)

    async def build(self) -> None:
        """See the protocol: from here on, foreign keys of tables that were made hold."""
        loads = [load for session in self._leading for load in session.loads if load.is_new]
        if not loads:
            return
        async with self.turn:
            connection = await self.connect()
            try:
                await connection.begin()
                for load in loads:
                    await load.finish(connection)
                await finish(connection.commit())
            except BaseException:
                connection.poison()
                raise
            finally:
                # Not poisoned after a good end: SQLite folds its WAL into the file then.
                await connection.close()

    async def publish(self, steps: Sequence[Advance]) -> None:
        """See the protocol.

        Raises:
            DataError: The new rows break a foreign key, or a trigger dropped some.
            FencedError: Another run took over.
        """
        async with self.turn:
            connection = await self.connect()
            try:
                # Rewriting a table must not cascade into others, so foreign keys are looked at
                # by hand. And renaming must not rewrite, or trip over, views and triggers.
                await connection.execute("PRAGMA foreign_keys=OFF")
                await connection.execute("PRAGMA legacy_alter_table=ON")
                await connection.begin()
                await self._publish(connection, steps)
                if not connection.in_transaction:
                    raise gone(self.where)
                await finish(connection.commit())
            except BaseException:
                connection.poison()
                raise
            finally:
                # Not poisoned after a good end: SQLite folds its WAL into the file then.
                await connection.close()

    async def _publish(self, connection: Connection, steps: Sequence[Advance]) -> None:
        loads = {
            (session.flow, load.sink.table): load
            for session in self._leading
            for load in session.loads
            if load.is_staged
        }
        ordered = sorted(steps, key=lambda step: parts(step.key))
        found = await checkpoints.load(connection, [step.key for step in ordered])
        broken = await _broken_keys(connection)
        there = {fold(name) for name in await table_names(connection)}
        for owner, group in groupby(ordered, key=lambda step: (step.key.flow, step.key.sink)):
            of_sink = list(group)
            if all(is_done(found.get(step.key), step) for step in of_sink):
                continue  # by an attempt whose answer was lost
            for step in of_sink:
                await checkpoints.advance(connection, step, self.info.run_id)
            try:
                await loads[owner].publish(connection)
            except DataError as error:
                raise DataError(
                    f"table {of_sink[0].key.sink!r} refuses the new rows: {error.reason}. Nothing"
                    " was replaced, and what was loaded stays; mend the rows in the source and run"
                    " with --full, or mend the table and run again",
                    column=error.column,
                    reason=error.reason,
                    detail=error.detail,
                ) from error
            await publish_rejects(connection, self.info.pipeline, loads[owner])
        for table, count in (await _broken_keys(connection)).items():
            if fold(table) not in there:
                continue  # a new table has the source's rows, and what those break
            if count > broken.get(table, 0):
                raise DataError(
                    f"{self.where}: the replaced tables would leave {count} rows of {table!r}"
                    " without the row that their foreign key names. Nothing was replaced; the"
                    " staged rows stay for the next run"
                )


class SqliteSession:
    """See :class:`etl.connector.Session`.

    A connection whose operation was cut is closed, and a new one opened when it is needed next.
    """

    uncancellable = True

    def __init__(self, target: SqliteTarget, flow: str, sinks: Sequence[Sink[Any]]) -> None:
        self.flow = flow
        self.loads = [Load(sink, pipeline=target.info.pipeline, flow=flow) for sink in sinks]
        self._target = target
        self._connection: Connection | None = None
        self._has_turn = False
        self._is_working = False
        self._is_stopped = False
        self._is_waiting = False  # for the file's write lock
        self._has_savepoint = False
        self.rejects = Rejects(self, target.info)

    # -- before the first row ----------------------------------------------------------------

    async def wants_profile(self, sink: int, shape: Shape) -> bool:
        """A table made here keeps SQLite's types, whatever the values are; a file has none."""
        load = self.loads[sink]
        if not load.sink.create or all(c.type.dialect == "sqlite" for c in shape.columns):
            return False
        async with self._transaction() as connection:
            found = await find_table(connection, table_name(load.sink.table))
        return found is None or load.lacks_columns(found, shape)

    async def has_table(self, sink: int) -> bool:
        """See the protocol."""
        name = table_name(self.loads[sink].sink.table)
        async with self._transaction() as connection:
            return await find_table(connection, name) is not None

    def takes_frames(self, sink: int, form: str) -> None:
        """Never: it has no binary form."""

    async def prepare(self, shapes: Sequence[Shape | None], *, resumable: bool) -> Sequence[str]:
        """See the protocol."""
        notes, self._target.said = self._target.said, []
        async with self._transaction() as connection:
            for load, shape in zip(self.loads, shapes, strict=True):
                notes += await load.prepare(connection, shape, resumable=resumable)
                if load.is_staged:
                    self._target.staging_owners.add(load)
        return notes

    async def load(self, keys: Sequence[CheckpointKey]) -> Mapping[CheckpointKey, Checkpoint]:
        """See the protocol."""
        connection = await self._connected()
        try:
            return await checkpoints.load(connection, keys)
        finally:
            if not connection.is_open:
                await self._disconnect()

    async def take_over(
        self,
        keys: Sequence[CheckpointKey],
        *,
        fingerprints: Sequence[str],
        fresh: bool,
        drops: Sequence[CheckpointKey] = (),
    ) -> Mapping[CheckpointKey, Checkpoint]:
        """See the protocol."""
        async with self._transaction() as connection:
            asked = dict(zip(keys, fingerprints, strict=True))
            found = await take_over(checkpoints, connection, self._target.info, asked, drops)
            for load in self.loads:
                own = [key for key in keys if key.sink == load.sink.table]
                if not load.is_staged or not own:
                    continue
                if is_fresh([found[key] for key in own], asked=fresh) or not (
                    await load.has_staging(connection)
                ):
                    await load.make_staging(connection)
                    await self.rejects.forget_staged(connection, load.flow, load.sink.table)
                    for key in own:
                        await checkpoints.start_anew(connection, key)
            return await checkpoints.load(connection, keys)

    # -- the lane's transaction --------------------------------------------------------------

    async def begin(self, *, strict: bool = False) -> None:
        """Wait for the turn, then for the file's write lock."""
        self._has_savepoint = False
        self._is_stopped = False
        self._is_working = True
        await self._target.turn.acquire()
        self._has_turn = True
        self._check()
        connection = await self._connected()
        # Rows that are staged, or go into a new table, may name rows that come later.
        free = all(load.is_staged or load.is_new for load in self.loads)
        await connection.execute(f"PRAGMA foreign_keys={'OFF' if free else 'ON'}")
        self._is_waiting = True
        try:
            await connection.begin(lambda: self._is_stopped)
        finally:
            self._is_waiting = False
        if not strict:
            # Rows of one transaction may refer to each other in any order.
            await connection.execute("PRAGMA defer_foreign_keys=ON")

    async def savepoint(self) -> None:
        """See the protocol."""
        connection = self._working()
        if self._has_savepoint:
            await connection.execute(f"RELEASE {_SAVEPOINT}")
        await connection.execute(f"SAVEPOINT {_SAVEPOINT}")
        self._has_savepoint = True

    async def undo(self) -> None:
        """See the protocol. What a load knows of its table is checked by the schema's version."""
        self._check_transaction()
        await self._working().execute(f"ROLLBACK TO {_SAVEPOINT}")

    def working(self) -> Connection:
        """The connection of the transaction that is open."""
        self._check_transaction()
        return self._working()

    def is_staged(self, sink: str) -> bool:
        """Whether a sink's rows go into a staging table."""
        return any(load.is_staged for load in self.loads if load.sink.table == sink)

    def pack(self, batch: Batch[Any]) -> Batch[Any]:
        """Rows are bound on the connection's thread, as they are."""
        return batch

    async def write(self, sink: int, batches: Sequence[Batch[Any]]) -> int:
        """See the protocol."""
        return await self.loads[sink].write(self._working(), batches, self._check_transaction)

    async def delete(self, sink: int, condition: str) -> int:
        """See :class:`etl.databases.digest.Eraser`."""
        table = quote(table_name(self.loads[sink].sink.table))
        return await self._working().execute(f"DELETE FROM {table} WHERE {condition}")  # noqa: S608

    async def advance(self, steps: Sequence[Advance]) -> None:
        """See the protocol."""
        connection = self._working()
        for step in steps:
            self._check_transaction()
            await checkpoints.advance(connection, step, self._target.info.run_id)

    async def commit(self) -> None:
        """See the protocol."""
        connection = self._working()
        self._check_transaction()
        try:
            await connection.commit()
        except EtlError as error:
            if code_of(error.__cause__) in _SURELY_NOT_COMMITTED:
                raise
            connection.poison()
            await self._end()
            raise CommitInDoubtError(
                f"{self._target.where}: the disk or the file system reported an error in COMMIT"
                f" ({name_of(error.__cause__)}), which may be that it is full. Whether the"
                " transaction is in, the next run reads from the checkpoint"
            ) from error
        for load in self.loads:
            load.committed()
        await self._end()

    async def rollback(self) -> None:
        """See the protocol."""
        for load in self.loads:
            load.forget()
        if not self._has_turn:
            self._is_working = False
            return
        try:
            if self._connection is not None:
                with suppress(EtlError):  # it is poisoned then, and closed below
                    await self._connection.roll_back()
        finally:
            await self._end()

    async def settle(self, keys: Sequence[CheckpointKey]) -> Mapping[CheckpointKey, Checkpoint]:
        """See the protocol."""
        await self._disconnect()
        for load in self.loads:
            load.forget()
        async with self._transaction() as connection:
            return await checkpoints.load(connection, keys)

    def interrupt(self) -> None:
        """See the protocol."""
        if self._is_working:
            self._is_stopped = True
            if self._connection is not None:
                self._connection.interrupt()

    async def blocked_by(self) -> str | None:
        """See the protocol. SQLite does not tell which process it is."""
        if not self._is_waiting:
            return None
        return f"another process holds the write lock of {self._target.path}"

    # -- the connection ----------------------------------------------------------------------

    async def rest(self) -> None:
        """See :class:`etl.connector.Resting`."""
        connection = self._connection
        if connection is None or not connection.is_open or connection.in_transaction:
            await self._disconnect()
        else:
            self._connection = None
            self._target.give_back(connection)

    async def close(self) -> None:
        """Close the connection; what is not committed is rolled back."""
        # An interrupt just before the close would keep SQLite from folding its WAL into the file.
        if self._connection is not None and self._is_working:
            self._connection.poison()
        await self._end()
        await self._disconnect()

    async def _connected(self) -> Connection:
        if self._connection is None or not self._connection.is_open:
            await self._disconnect()
            self._connection = await self._target.connect()
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    def _working(self) -> Connection:
        if self._connection is None:
            raise gone(self._target.where)
        return self._connection

    def _check(self) -> None:
        if self._is_stopped:
            raise TargetUnavailableError(
                f"{self._target.where}: the transaction was interrupted; nothing of it was kept"
            )

    def _check_transaction(self) -> None:
        """Between statements: an interrupt may have come, or the transaction may be gone."""
        self._check()
        if not self._working().in_transaction:
            raise gone(self._target.where)

    async def _end(self) -> None:
        """Give the turn back; a poisoned connection is closed first, which frees the file."""
        self._is_working = False
        if self._connection is not None and not self._connection.is_open:
            await self._disconnect()
        if self._has_turn:
            self._has_turn = False
            self._target.turn.release()

    @asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[Connection, None]:
        """A transaction of the session's own; rolled back where its body raises."""
        async with self._target.turn:
            connection = await self._connected()
            try:
                await connection.begin()
                yield connection
                if not connection.in_transaction:
                    raise gone(self._target.where)
                await finish(connection.commit())
            except BaseException:
                for load in self.loads:
                    load.forget()
                with suppress(EtlError):
                    await finish(connection.roll_back())
                if not connection.is_open:
                    await self._disconnect()
                raise


async def _version(connection: Connection) -> list[str] | None:
    """What the version table of etl's tables holds; None where there is none."""
    if await find_table(connection, "etl_version") is None:
        return None
    return [str(row[0]) for row in await connection.fetch("SELECT version_num FROM etl_version")]


async def _broken_keys(connection: Connection) -> dict[str, int]:
    """How many rows of each table name a row by a foreign key that is not there."""
    broken: dict[str, int] = {}
    for table in await table_names(connection):
        if not await connection.fetch("SELECT 1 FROM pragma_foreign_key_list(?)", (table,)):
            continue
        # The key's own definition may not fit; SQLite says so when rows are written.
        with suppress(SchemaMismatchError):
            rows = await connection.fetch(f"PRAGMA foreign_key_check({quote(table)})")
            broken[table] = len(rows)
    return broken
