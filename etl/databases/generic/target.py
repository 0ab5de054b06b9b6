"""A database of a generic dialect as a target: sessions, and the end of a run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import groupby
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

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
from etl.databases.generic import checkpoints
from etl.databases.generic.connect import Connection, connect, make_engine
from etl.databases.generic.load import Load
from etl.databases.generic.rejects import Rejects, publish_rejects
from etl.databases.generic.table import Table
from etl.databases.migrate import needs_upgrade, upgrade
from etl.databases.sessions import StagingOwners, is_fresh, leading, notes_of, take_over
from etl.databases.url import Url
from etl.engine.supervise import finish
from etl.errors import (
    CommitInDoubtError,
    ConfigError,
    DataError,
    EtlError,
    TargetUnavailableError,
    TransientError,
)
from etl.rows import Shape

_SAVEPOINT = "etl_piece"
_log = logging.getLogger("etl")


@asynccontextmanager
async def open_target(
    url: Url, info: RunInfo, *, sessions: int
) -> AsyncGenerator[OpenTarget, None]:
    """Open a database for one run; see :class:`etl.connector.Target`.

    Sessions connect when they are used first.
    """
    engine = make_engine(url)
    target = GenericTarget(engine, url, info)
    try:
        await target.open()
        yield target
    finally:
        await finish(target.close())
        await finish(engine.dispose())


class GenericTarget:
    """See :class:`etl.connector.OpenTarget`.

    Attributes:
        control: The connection that has the pipeline's lock.
    """

    def __init__(self, engine: AsyncEngine, url: Url, info: RunInfo) -> None:
        self.engine = engine
        self.url = url
        self.where = url.name
        self.info = info
        self.control: Connection | None = None
        self._has_lock = False
        self._sessions: list[GenericSession] = []
        self.staging_owners = StagingOwners(url.name)
        # Flows that are published each by itself would wait for each other's tables and catalogue.
        self._publishing = asyncio.Lock()
        self._making = asyncio.Lock()
        self._ending = asyncio.Lock()  # a connection takes one statement at a time

    async def open(self) -> None:
        """Lock it for the pipeline, and bring etl's tables up to date.

        Raises:
            AlreadyRunningError: Another run has the lock.
        """
        if self.info.pipeline.endswith(" "):
            raise ConfigError(
                f"pipeline {self.info.pipeline!r}: in {self.where} a name must not end in a space,"
                " which keys do not tell apart there"
            )
        control = self.control = await self.connect()
        why = await control.dialect.lock(control, self.info)
        self._has_lock = why is None
        if why is not None and not self.info.take_over:
            _log.warning(
                "pipeline %r: no lock in %s (%s): two runs at once are told apart only by the"
                " epoch, and the older one fails",
                self.info.pipeline,
                self.where,
                why,
            )
        if needs_upgrade(await _version(control)):
            await control.rollback()
            await upgrade(self.url)
        await control.rollback()

    async def close(self) -> None:
        """Close every connection; the one with the lock last."""
        for session in self._sessions:
            await session.close()
        if self.control is not None:
            if self._has_lock and self.control.is_open:
                await self.control.dialect.unlock(self.control)
            await self.control.close()

    async def connect(self) -> Connection:
        """A new connection."""
        return await connect(self.engine, self.url, "target")

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[Connection, None]:
        """A connection for a moment."""
        connection = await self.connect()
        try:
            yield connection
        finally:
            await finish(connection.close())

    @asynccontextmanager
    async def making(self) -> AsyncGenerator[Connection, None]:
        """A connection to make a table on; lanes whose first rows want the same one take turns."""
        async with self._making, self.connected() as connection:
            yield connection

    async def session(self, flow: str, sinks: Sequence[Sink[Any]]) -> Session:
        """See the protocol."""
        session = GenericSession(self, flow, sinks)
        self._sessions.append(session)
        return session

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        """See the protocol."""
        return notes_of(self._sessions)

    @property
    def _leading(self) -> list[GenericSession]:
        return leading(self._sessions)

    @property
    def _loads(self) -> list[Load]:
        return [load for session in self._leading for load in session.loads]

    async def build(self) -> None:
        """See the protocol: foreign keys of tables that were made hold from here on.

        A table that was replaced before the others gets its keys here too: only now all are there.
        """
        loads = [load for load in self._loads if not load.is_staged or self.info.publishes_each]
        if loads:
            async with self.connected() as connection:
                for load in loads:
                    await load.build(connection)

    async def publish(self, steps: Sequence[Advance]) -> None:
        """See the protocol.

        The rows of a table are rewritten: renaming a table would end the transaction, and with it
        what keeps rows and position together. So the transaction is as large as the tables.

        Raises:
            DataError: The new rows break a constraint.
            FencedError: Another run took over.
        """
        owners = {(step.key.flow, step.key.sink) for step in steps}
        loads = {
            owner: load
            for load in self._loads
            if load.is_staged and (owner := (load.flow, load.sink.table)) in owners
        }
        ordered = sorted(steps, key=lambda step: parts(step.key))
        async with self._publishing:
            await self._publish(ordered, loads)

    async def _publish(
        self, ordered: Sequence[Advance], loads: Mapping[tuple[str, str], Load]
    ) -> None:
        connection = await self.connect()
        try:
            for load in loads.values():
                await load.make_final(connection)
            await connection.dialect.begin_rewrite(connection)
            await self._rewrite(connection, ordered, loads)
            try:
                await finish(connection.commit())
            except TransientError as error:
                raise TargetUnavailableError(
                    f"{self.where}: the connection was lost while the tables were being replaced;"
                    " they are the old ones or the new ones, as a whole"
                ) from error
            for load in loads.values():
                await load.drop_staging(connection)
            for load in () if self.info.publishes_each else loads.values():
                await load.build(connection)
        finally:
            connection.is_open = False  # what is not committed goes with it
            await finish(self._end(connection))

    async def _rewrite(
        self,
        connection: Connection,
        steps: Sequence[Advance],
        loads: Mapping[tuple[str, str], Load],
    ) -> None:
        found = await checkpoints.load(connection, [step.key for step in steps], locks=True)
        pending: list[Load] = []
        for owner, group in groupby(steps, key=lambda step: (step.key.flow, step.key.sink)):
            of_sink = list(group)
            if all(is_done(found.get(step.key), step) for step in of_sink):
                continue  # by an attempt whose answer was lost
            for step in of_sink:
                await checkpoints.advance(connection, step, self.info.run_id)
            pending.append(loads[owner])
        for load in pending:
            await load.empty(connection)
        tables: list[Table] = []
        for load in pending:
            try:
                table = await load.pour(connection)
            except DataError as error:
                raise DataError(
                    f"{load.label}: the new rows break a constraint of the table: {error.reason}."
                    " Nothing was replaced, and what was loaded stays; mend the rows in the source"
                    " and run with --full",
                    column=error.column,
                    reason=error.reason,
                ) from error
            tables += [table] if table is not None else []
            await publish_rejects(
                connection,
                self.info.pipeline,
                load.flow,
                load.sink.table,
                replaces=load.sink.mode == "replace",
            )
        await connection.dialect.end_rewrite(connection, tables)

    async def _end(self, connection: Connection) -> None:
        """Close a connection, and its session with it, so that no lock of it stays."""
        session = connection.session
        is_cut = not connection.is_open
        await connection.close()
        control = self.control
        if is_cut and session is not None and control is not None and control.is_open:
            async with self._ending:
                with suppress(EtlError):
                    await control.dialect.end(control, session)
                    await control.rollback()

    async def drop(self, connection: Connection) -> None:
        """Close a connection of a session."""
        await self._end(connection)


class GenericSession:
    """See :class:`etl.connector.Session`.

    A connection whose statement was cut is closed, and a new one opened when it is needed next.
    """

    uncancellable = False

    def __init__(self, target: GenericTarget, flow: str, sinks: Sequence[Sink[Any]]) -> None:
        self.flow = flow
        self.loads = [
            Load(sink, pipeline=target.info.pipeline, flow=flow, ddl=target.making)
            for sink in sinks
        ]
        self.rejects = Rejects(self, target.info)
        self._target = target
        self._connection: Connection | None = None
        self._is_working = False

    # -- before the first row ----------------------------------------------------------------

    async def wants_profile(self, sink: int, shape: Shape) -> bool:
        """What is missing is made from the columns' kinds, so each must be settled."""
        connection = await self._connected()
        found = await self.loads[sink].wants_profile(connection, shape)
        await connection.rollback()
        return found

    async def has_table(self, sink: int) -> bool:
        """See the protocol."""
        connection = await self._connected()
        found = await self.loads[sink].find(connection)
        await connection.rollback()
        return found is not None

    def takes_frames(self, sink: int, form: str) -> None:
        """Never: it has no binary form."""

    async def prepare(self, shapes: Sequence[Shape | None], *, resumable: bool) -> Sequence[str]:
        """See the protocol."""
        notes: list[str] = []
        connection = await self._connected()
        for load, shape in zip(self.loads, shapes, strict=True):
            notes += await load.prepare(connection, shape, resumable=resumable)
            if load.is_staged:
                self._target.staging_owners.add(load)
        await connection.rollback()
        return notes

    async def load(self, keys: Sequence[CheckpointKey]) -> Mapping[CheckpointKey, Checkpoint]:
        """See the protocol."""
        async with self._transaction() as connection:
            return await checkpoints.load(connection, keys)

    async def take_over(
        self,
        keys: Sequence[CheckpointKey],
        *,
        fingerprints: Sequence[str],
        fresh: bool,
        drops: Sequence[CheckpointKey] = (),
    ) -> Mapping[CheckpointKey, Checkpoint]:
        """See the protocol. Staging tables are made after the commit that asks for them."""
        anew: list[Load] = []
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
                    anew.append(load)
                    await self.rejects.forget_staged(connection, load.flow, load.sink.table)
                    for key in own:
                        await checkpoints.start_anew(connection, key)
            found = await checkpoints.load(connection, keys)
        connection = await self._connected()
        for load in anew:
            await load.make_staging(connection)
        await connection.rollback()
        return found

    # -- the lane's transaction --------------------------------------------------------------

    async def begin(self, *, strict: bool = False) -> None:
        """See the protocol. Constraints are always checked at each row."""
        connection = await self._connected()
        self._is_working = True
        for load in self.loads:
            await load.get_ready(connection)
        await connection.rollback()

    async def savepoint(self) -> None:
        """See the protocol."""
        await self.working().savepoint(_SAVEPOINT, "set")

    async def undo(self) -> None:
        """See the protocol."""
        await self.working().savepoint(_SAVEPOINT, "undo")

    def working(self) -> Connection:
        """The connection of the transaction that is open."""
        if self._connection is None or not self._connection.is_open:
            raise TargetUnavailableError(
                f"{self._target.where}: the connection was lost; nothing of the transaction was"
                " kept"
            )
        return self._connection

    def is_staged(self, sink: str) -> bool:
        """Whether a sink's rows go into a staging table."""
        return any(load.is_staged for load in self.loads if load.sink.table == sink)

    def pack(self, batch: Batch[Any]) -> Batch[Any]:
        """Rows are encoded when they are written, as they are."""
        return batch

    async def write(self, sink: int, batches: Sequence[Batch[Any]]) -> int:
        """See the protocol."""
        return await self.loads[sink].write(self.working(), batches)

    async def delete(self, sink: int, condition: str) -> int:
        """See :class:`etl.databases.digest.Eraser`."""
        connection = self.working()
        table = self.loads[sink].qualified(connection)
        return await connection.execute(f"DELETE FROM {table} WHERE {condition}")  # noqa: S608

    async def advance(self, steps: Sequence[Advance]) -> None:
        """See the protocol."""
        connection = self.working()
        for step in steps:
            await checkpoints.advance(connection, step, self._target.info.run_id)

    async def commit(self) -> None:
        """See the protocol."""
        connection = self.working()
        try:
            await connection.commit()
        except TransientError as error:
            connection.is_open = False
            await self._disconnect()
            raise CommitInDoubtError(
                f"{self._target.where}: the connection was lost while a transaction was being"
                " committed"
            ) from error
        self._is_working = False

    async def rollback(self) -> None:
        """See the protocol."""
        self._is_working = False
        for load in self.loads:
            load.forget()
        connection = self._connection
        if connection is None:
            return
        if connection.is_open:
            with suppress(EtlError):
                await connection.rollback()
                return
        await self._disconnect()

    async def settle(self, keys: Sequence[CheckpointKey]) -> Mapping[CheckpointKey, Checkpoint]:
        """See the protocol."""
        await self._disconnect()
        for load in self.loads:
            load.forget()
        async with self._transaction() as connection:
            return await checkpoints.load(connection, keys, locks=True)

    def interrupt(self) -> None:
        """See the protocol: the lane is cancelled, and its connection closed."""

    async def blocked_by(self) -> str | None:
        """See the protocol."""
        connection = self._connection
        if not self._is_working or connection is None or connection.session is None:
            return None
        async with self._target.connected() as other:
            return await other.dialect.blocked_by(other, connection.session)

    # -- the connection ----------------------------------------------------------------------

    async def close(self) -> None:
        """Close the connection; what is not committed is rolled back."""
        await self._disconnect()

    async def _connected(self) -> Connection:
        if self._connection is None or not self._connection.is_open:
            await self._disconnect()
            for load in self.loads:
                load.forget()
            self._connection = await self._target.connect()
        return self._connection

    async def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._target.drop(connection)

    @asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[Connection, None]:
        """A transaction of the session's own; rolled back where its body raises."""
        connection = await self._connected()
        try:
            yield connection
            await finish(connection.commit())
        except BaseException:
            with suppress(EtlError):
                await finish(connection.rollback() if connection.is_open else connection.close())
            raise


async def _version(connection: Connection) -> list[str] | None:
    """What the version table of etl's tables holds; None where there is none."""
    if await connection.dialect.find_table(connection, None, "etl_version") is None:
        return None
    version = sa.table("etl_version", sa.column("version_num"))
    found = [str(row[0]) for row in await connection.fetch(sa.select(version.c.version_num))]
    # Where making a table ends a transaction, a crash may leave the table without its row.
    return found or None
