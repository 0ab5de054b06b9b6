"""A lane's session: one connection to the target, one transaction at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import asyncpg

from etl.batch import Batch
from etl.connector import Advance, Checkpoint, CheckpointKey, Sink
from etl.databases.checkpoints import parts
from etl.databases.postgres import blockers
from etl.databases.postgres.blockers import blockers_of, naming_blockers
from etl.databases.postgres.catalogue import find_relation
from etl.databases.postgres.checkpoints import Checkpoints
from etl.databases.postgres.connect import Connection, close
from etl.databases.postgres.frames import FORM
from etl.databases.postgres.load import Load
from etl.databases.postgres.make import Turn
from etl.databases.postgres.rejects import Rejects
from etl.databases.postgres.stock import Stock
from etl.databases.postgres.translate import DRIVER_ERRORS, translated, translating
from etl.databases.sessions import is_fresh
from etl.databases.url import Url
from etl.engine.supervise import finish
from etl.errors import CommitInDoubtError, EtlError, TargetUnavailableError, classify
from etl.rows import Column, Shape

COMMIT_S = 60.0
"""How long the answer to COMMIT is waited for before it is in doubt."""
ROLLBACK_S = 5.0

_SAVEPOINT = "etl_piece"

ROLLED_BACK = "the group was rolled back and the checkpoint did not move"


class PostgresSession:
    """See :class:`etl.connector.Session`.

    Invariant: the saved position is never ahead of the rows in the tables, nor behind them.
    """

    uncancellable = False

    def __init__(
        self,
        url: Url,
        application: str,
        stock: Stock,
        checkpoints: Checkpoints,
        sinks: Sequence[Sink[Any]],
        *,
        pipeline: str,
        flow: str,
        schema: str,
        replaced: Callable[[Connection], Awaitable[Sequence[int]]],
        staged: set[str],
        making: asyncio.Lock,
        each: bool = False,
        joins: bool = False,
    ) -> None:
        self.flow = flow
        self._url = url
        self._application = application
        self._stock = stock
        self._checkpoints = checkpoints
        self._turn = Turn(making)
        self.loads = [
            Load(sink, pipeline, flow, schema, staged, self._turn, each=each, joins=joins)
            for sink in sinks
        ]
        self._replaced = replaced
        self._connection: Connection | None = None
        self._is_open = False  # a transaction
        self._is_cut = False  # a statement was cut short: its late cancel may hit the next one
        self._is_working = False
        self._has_savepoint = False
        self._has_moved = False  # a checkpoint, in a transaction of its own or with rows
        self._moves = False  # in the open transaction
        self.rejects = Rejects(self, checkpoints)

    async def wants_profile(self, sink: int, shape: Shape) -> bool:
        """A table that is missing is made from the columns' kinds, so each must be settled."""
        load = self.loads[sink]
        if not load.sink.create:
            return False
        with self._working(load.label, "nothing was written"):
            found = await find_relation(await self._get(), load.sink.table)
        return found is None or load.lacks_columns(found, shape)

    async def has_table(self, sink: int) -> bool:
        """See :meth:`etl.connector.Session.has_table`."""
        load = self.loads[sink]
        with self._working(load.label, "nothing was written"):
            return await find_relation(await self._get(), load.sink.table) is not None

    async def prepare(self, shapes: Sequence[Shape | None], *, resumable: bool) -> Sequence[str]:
        """See :meth:`etl.connector.Session.prepare`. Tables are made in one transaction."""
        notes: list[str] = []
        await self.begin()
        try:
            together: Sequence[int] = ()
            if any(load.sink.mode == "replace" for load in self.loads):
                together = await self._replaced(await self._get())
            for load, shape in zip(self.loads, shapes, strict=True):
                with self._working(load.label, "nothing was written"):
                    notes += await load.prepare(
                        await self._get(), shape, resumable=resumable, together=together
                    )
            await self.commit()
        except BaseException:
            await finish(self.rollback())
            raise
        return notes

    def takes_frames(self, sink: int, form: str) -> Sequence[Column] | None:
        """See :meth:`etl.connector.Session.takes_frames`."""
        return self.loads[sink].frame_columns if form == FORM else None

    async def line_columns(self, names: Sequence[str]) -> Sequence[Column] | None:
        """See :class:`etl.connector.LineTaker`."""
        if len(self.loads) > 1:
            return None  # lines for one table may not be right for another
        with self._working(self.loads[0].label, "nothing was written"):
            return await self.loads[0].columns(await self._get(), names)

    async def load(self, keys: Sequence[CheckpointKey]) -> Mapping[CheckpointKey, Checkpoint]:
        """See :meth:`etl.connector.Session.load`."""
        with self._working("reading the checkpoints", "nothing was written"):
            return await self._checkpoints.load(await self._get(), keys)

    async def take_over(
        self,
        keys: Sequence[CheckpointKey],
        *,
        fingerprints: Sequence[str],
        fresh: bool,
        drops: Sequence[CheckpointKey] = (),
    ) -> Mapping[CheckpointKey, Checkpoint]:
        """See :meth:`etl.connector.Session.take_over`."""
        await self.begin()
        try:
            async with naming_blockers(self._blocked_in_turn):
                with self._working("taking over the checkpoints", "nothing was written"):
                    for key in sorted(drops, key=parts):
                        await self._checkpoints.drop(await self._get(), key)
                    found = await self._take_over(dict(zip(keys, fingerprints, strict=True)), fresh)
            await self.commit()
            return found
        except BaseException:
            await finish(self.rollback())
            raise

    async def _take_over(
        self, fingerprints: Mapping[CheckpointKey, str], fresh: bool
    ) -> dict[CheckpointKey, Checkpoint]:
        connection = await self._get()
        found: dict[CheckpointKey, Checkpoint] = {}
        for key in sorted(fingerprints, key=parts):
            found[key] = await self._checkpoints.raise_epoch(connection, key, fingerprints[key])
        highest = max(one.epoch for one in found.values())
        for key, one in found.items():
            if one.epoch < highest:
                found[key] = await self._checkpoints.lift_epoch(connection, key, highest)
        for load in self.loads:
            own = [key for key in found if key.sink == load.sink.table]
            if not load.staged or not own:
                continue
            if is_fresh([found[key] for key in own], asked=fresh) or not (
                await load.has_staging(connection)
            ):
                with self._working(load.label, "nothing was written"):
                    await load.restage(connection)
                await self.rejects.forget_staged(load.flow, load.sink.table)
                for key in own:
                    found[key] = await self._checkpoints.start_anew(connection, key)
        return found

    async def blocked_by(self) -> str | None:
        """See :meth:`etl.connector.Session.blocked_by`."""
        connection = self._connection
        if connection is None or connection.is_closed() or not self._is_working:
            return None
        return await blockers_of(self._url, self._application, connection.get_server_pid())

    async def _blocked_in_turn(self) -> str | None:
        """As :meth:`blocked_by`, when it waits for its own run no more."""
        while self._turn.is_waiting:
            await asyncio.sleep(blockers.ASK_AFTER_S)
            if not self._turn.is_waiting:
                await asyncio.sleep(blockers.ASK_AFTER_S / 2)  # it has only just begun
        return await self.blocked_by()

    async def begin(self, *, strict: bool = False) -> None:
        """Begin a transaction, on a new connection where the last one was lost."""
        with self._working("beginning a transaction", "nothing was written"):
            connection = await self._get()
            self._is_open = True
            self._has_savepoint = self._moves = False
            await connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
            if strict:
                await connection.execute("SET CONSTRAINTS ALL IMMEDIATE")
        for load in self.loads:
            load.begin()

    async def savepoint(self) -> None:
        """See :meth:`etl.connector.Session.savepoint`. One round trip, the last mark included."""
        with self._working("setting a savepoint", ROLLED_BACK):
            release = f"RELEASE SAVEPOINT {_SAVEPOINT}; " if self._has_savepoint else ""
            await self.connection.execute(f"{release}SAVEPOINT {_SAVEPOINT}")
        self._has_savepoint = True
        for load in self.loads:
            load.mark()

    async def undo(self) -> None:
        """See :meth:`etl.connector.Session.undo`."""
        with self._working("going back to a savepoint", ROLLED_BACK):
            await self.connection.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
        for load in self.loads:
            load.recall()

    @property
    def connection(self) -> Connection:
        """The connection of the transaction that is open.

        Raises:
            TargetUnavailableError: It was lost.
        """
        connection = self._connection
        if connection is None or connection.is_closed():
            raise TargetUnavailableError(
                f"the connection to {self._url.name} was lost in a transaction; {ROLLED_BACK}"
            )
        return connection

    def is_staged(self, sink: str) -> bool:
        """Whether a sink's rows go into a staging table."""
        return any(load.staged for load in self.loads if load.sink.table == sink)

    def pack(self, batch: Batch[Any]) -> Batch[Any]:
        """See :meth:`etl.connector.Session.pack`."""
        return self.loads[0].pack(batch) if len(self.loads) == 1 else batch

    async def write(self, sink: int, batches: Sequence[Batch[Any]]) -> int:
        """See :meth:`etl.connector.Session.write`. Rows are encoded before the COPY begins."""
        load = self.loads[sink]
        async with naming_blockers(self.blocked_by):
            with self._working(load.label, ROLLED_BACK):
                return await load.write(await self._get(), batches)

    async def delete(self, sink: int, condition: str) -> int:
        """See :class:`etl.databases.digest.Eraser`."""
        load = self.loads[sink]
        with self._working(load.label, ROLLED_BACK):
            return await load.delete(await self._get(), condition)

    async def advance(self, steps: Sequence[Advance]) -> None:
        """See :meth:`etl.connector.Session.advance`."""
        async with naming_blockers(self.blocked_by):
            with self._working("moving the checkpoints", ROLLED_BACK):
                connection = await self._get()
                for step in sorted(steps, key=lambda step: parts(step.key)):
                    await self._checkpoints.advance(connection, step)
                self._moves = True

    async def commit(self) -> None:
        """See :meth:`etl.connector.Session.commit`."""
        connection = await self._get()
        await commit(connection, self._url)
        self._turn.end()
        self._is_open = False
        self._has_moved = self._has_moved or self._moves
        for load in self.loads:
            load.committed()

    async def rollback(self) -> None:
        """Leave the transaction; a connection that cannot be trusted any more is closed."""
        for load in self.loads:
            load.forget()
        connection = self._connection
        try:
            if connection is not None and not self._is_cut and not connection.is_closed():
                await connection.execute("ROLLBACK", timeout=ROLLBACK_S)
                self._is_open = False
        except DRIVER_ERRORS:
            pass  # the connection is closed below, and so the server rolls back
        finally:
            if connection is not None and (self._is_open or connection.is_closed()):
                await self.aclose()
            self._turn.end()

    async def settle(self, keys: Sequence[CheckpointKey]) -> Mapping[CheckpointKey, Checkpoint]:
        """See :meth:`etl.connector.Session.settle`."""
        await self.aclose()
        for load in self.loads:
            load.forget()
        with translating("target", "asking for the outcome of a commit"):
            connection = await self._get()
            self._is_open = True
            await connection.execute("BEGIN")
            try:
                return await self._checkpoints.load(connection, keys, lock=True)
            finally:
                await finish(self.rollback())

    def interrupt(self) -> None:
        """Cut the connection under a running write; the server rolls back."""
        if self._is_working and self._connection is not None:
            self._connection.terminate()

    async def rest(self) -> None:
        """See :class:`etl.connector.Resting`."""
        connection = self._connection
        if connection is None or self._is_open or self._is_cut:
            await self.aclose()
            return
        try:
            had = [load.drop_temporary() for load in self.loads]
            if any(had):
                await connection.execute("DISCARD TEMP", timeout=ROLLBACK_S)
        except DRIVER_ERRORS:
            await self.aclose()
        else:
            self._connection = None
            await self._stock.give_back(connection)

    async def aclose(self) -> None:
        """Close the connection, in bounded time."""
        connection, self._connection = self._connection, None
        self._is_open = self._is_cut = False
        try:
            if connection is not None:
                await finish(close(connection))
        finally:
            self._turn.end()

    async def _get(self) -> Connection:
        connection = self._connection
        if connection is not None and not connection.is_closed():
            return connection
        if self._is_open:
            return self.connection  # which says that it was lost
        self._connection = await self._stock.get()
        return self._connection

    @contextmanager
    def _working(self, where: str, state: str) -> Generator[None]:
        within, self._is_working = self._is_working, True
        try:
            with translating("target", where, state):
                yield
        except BaseException as error:
            # An error of the server ends a statement; a cancellation or a time limit cuts it.
            if not isinstance(error, EtlError) or isinstance(error.__cause__, TimeoutError):
                self._is_cut = True
            if self._has_moved and isinstance(error.__cause__, asyncpg.ReadOnlySQLTransactionError):
                # It was not so before: a fail-over is going on, and the next try connects anew.
                self._is_cut = True
                raise TargetUnavailableError(
                    f"{error}. It took writes before: a standby may be about to take over"
                ) from error.__cause__
            raise
        finally:
            self._is_working = within


async def commit(connection: Connection, url: Url) -> None:
    """Commit, and know how it ended.

    Raises:
        CommitInDoubtError: No answer came.
        EtlError: The server refused; the transaction was rolled back for certain.
    """
    try:
        status = await connection.execute("COMMIT", timeout=COMMIT_S)
    except asyncio.CancelledError:
        # Cut at the end of an abort: whether it is in is not known, and nothing is asked here.
        connection.terminate()
        raise
    except DRIVER_ERRORS as error:
        # Only an answer of the server itself, on a connection that lives, is certain.
        refused = isinstance(error, asyncpg.PostgresError) and classify(error) not in {
            "lost",
            "not_ready",
        }
        if refused and not connection.is_closed():
            raise translated(error, "target", "COMMIT was refused", ROLLED_BACK) from error
        raise CommitInDoubtError(
            f"the connection to {url.name} was lost after COMMIT was sent, so it is not known"
            " whether the last group is in; its checkpoint tells"
        ) from error
    if status != "COMMIT":
        raise TargetUnavailableError(
            f"{url.name} ended a transaction with {status} instead of COMMIT; {ROLLED_BACK}"
        )
