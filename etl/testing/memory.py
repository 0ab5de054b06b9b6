"""A source and a transactional target in memory, with faults on demand.

The target keeps the same rules as a real one (a transaction holds rows and positions, a
position moves by compare-and-set), so what a test shows with it holds for a database.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any, Generic, TypeVar, cast

from etl.batch import Batch, Position, Reject, encode_position
from etl.connector import (
    Advance,
    Checkpoint,
    CheckpointKey,
    NewReject,
    OpenTarget,
    RunInfo,
    Session,
    Sink,
    StoredReject,
)
from etl.errors import CommitInDoubtError, DataError, FencedError, TransientError
from etl.flow import Source
from etl.rows import Shape

T = TypeVar("T")


class MemorySource(Source[T]):
    """Yields given rows in batches; the position is the number of rows before it.

    Args:
        fail_after: Raise after that many batches, once per read, until ``heal``.
    """

    def __init__(
        self,
        rows: Sequence[T],
        *,
        batch_rows: int = 2,
        name: str = "memory",
        incremental: bool = True,
        fail_after: int | None = None,
        error: type[Exception] = TransientError,
    ) -> None:
        self.rows = rows
        self.batch_rows = batch_rows
        self.name = name
        self.incremental = incremental
        self._fail_after = fail_after
        self._error = error

    def heal(self) -> None:
        """Fail no more."""
        self._fail_after = None

    async def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[T], None]:
        start = int(after[0]) if after else 0
        stop = int(until[0]) if until else len(self.rows)
        for number, at in enumerate(range(start, stop, self.batch_rows)):
            if number == self._fail_after:
                raise self._error("the memory source was told to fail")
            end = min(stop, at + self.batch_rows)
            yield Batch(self.rows[at:end], position=(end,))

    async def order(self, positions: Sequence[Position]) -> Sequence[Position]:
        return sorted(positions)

    async def chunks(self, *, most: int, least_rows: int) -> Sequence[Position]:
        count = len(self.rows)
        number = min(most, count // least_rows)
        return [(count * (at + 1) // number,) for at in range(number)]


class CountingSource(Source[int]):
    """Counts from 0, one number a batch, and notes how far it runs ahead of a sink."""

    name = "counting"

    def __init__(self, *, batches: int, sink: MemorySink[int]) -> None:
        self.max_in_flight = 0
        self._batches = batches
        self._sink = sink

    async def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[int], None]:
        for number in range(int(after[0]) if after else 0, self._batches):
            ahead = number + 1 - len(self._sink.rows)
            self.max_in_flight = max(self.max_in_flight, ahead)
            yield Batch([number], position=(number + 1,))


class MemoryTarget:
    """A database in memory: tables of rows, and checkpoints.

    Attributes:
        tables: Rows by table.
        checkpoints: As a real target keeps them.
        rejects: What a real one has in ``etl_reject``, by number.
        commits: Transactions that were committed.
        blocker: What a session says of who holds it up.
        before_write: Awaited before each write.
        refuses: For rows that a constraint of a real table would refuse: gets a row, and the other
            rows of its table.
    """

    has_one_writer = False
    keeps_rejects = True
    takes_workers = False

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.tables: dict[str, list[Any]] = {}
        self.staging: dict[str, list[Any]] = {}
        self.checkpoints: dict[CheckpointKey, Checkpoint] = {}
        self.rejects: dict[int, StoredReject] = {}
        self.commits = 0
        self.refuses: Callable[[Any, Sequence[Any]], bool] | None = None
        self.rows_sent = 0
        self.open_sessions = 0
        self._numbers = count(1)
        # faults
        self.fail_on_write: int | None = None
        self.doubt_on_commit: int | None = None
        self.doubt_is_in = True
        self.error: type[Exception] = DataError
        self.yields_per_write = 0
        self.blocker: str | None = None
        self.before_write: Callable[[], Awaitable[object]] | None = None
        self.writes = 0
        self.commit_calls = 0

    def open(self, info: RunInfo, *, sessions: int) -> AbstractAsyncContextManager[OpenTarget]:
        return self._open(info)

    def number(self) -> int:
        """The number of a new reject."""
        return next(self._numbers)

    def before_publish(self) -> None:
        """Called before staged tables are put in place; a test may override it to fail."""

    @asynccontextmanager
    async def _open(self, info: RunInfo) -> AsyncGenerator[OpenTarget, None]:
        self.open_sessions += 1
        try:
            yield _OpenMemory(self, info)
        finally:
            self.open_sessions -= 1


class _OpenMemory:
    def __init__(self, target: MemoryTarget, info: RunInfo) -> None:
        self._target = target
        self._info = info

    async def session(self, flow: str, sinks: Sequence[Sink[Any]]) -> Session:
        return MemorySession(self._target, sinks, self._info)

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        return {}

    async def build(self) -> None:
        pass

    async def publish(self, steps: Sequence[Advance]) -> None:
        target = self._target
        target.before_publish()
        for step in steps:
            _check(target, step)
        for step in steps:
            if step.key.sink in target.staging:
                target.tables[step.key.sink] = target.staging.pop(step.key.sink)
                for number, one in list(target.rejects.items()):
                    if _owner(one.key) == _owner(step.key):
                        del target.rejects[number]
                        if one.staged:
                            target.rejects[number] = replace(one, staged=False)
            _move(target, step)


class MemorySession:
    """One lane's view of a memory target; see :class:`etl.connector.Session`."""

    uncancellable = False

    def __init__(
        self, target: MemoryTarget, sinks: Sequence[Sink[Any]], info: RunInfo | None = None
    ) -> None:
        self.target = target
        self._sinks = sinks
        self._info = info
        self._rows: list[tuple[int, Sequence[Any]]] | None = None
        self._steps: list[Advance] = []
        self._before: dict[int, StoredReject] = {}
        self.pending: dict[int, StoredReject] = {}
        self._saved: tuple[int, dict[int, StoredReject]] = (0, {})

    async def wants_profile(self, sink: int, shape: Shape) -> bool:
        return False

    def takes_frames(self, sink: int, form: str) -> None:
        return None

    async def has_table(self, sink: int) -> bool:
        return self._sinks[sink].table in self.target.tables

    async def prepare(self, shapes: Sequence[Shape | None], *, resumable: bool) -> Sequence[str]:
        for sink in self._sinks:
            self.target.tables.setdefault(sink.table, [])
        return []

    async def load(self, keys: Sequence[CheckpointKey]) -> Mapping[CheckpointKey, Checkpoint]:
        known = self.target.checkpoints
        return {key: known[key] for key in keys if key in known}

    async def take_over(
        self,
        keys: Sequence[CheckpointKey],
        *,
        fingerprints: Sequence[str],
        fresh: bool,
        drops: Sequence[CheckpointKey] = (),
    ) -> Mapping[CheckpointKey, Checkpoint]:
        known = self.target.checkpoints
        for key in drops:
            known.pop(key, None)
        epoch = max((known[key].epoch for key in keys if key in known), default=0) + 1
        modes = {sink.table: sink.mode for sink in self._sinks}
        lost = {key.sink for key in keys} - self.target.staging.keys()
        for key, fingerprint in zip(keys, fingerprints, strict=True):
            found = known.get(key, Checkpoint(epoch=0, position=None))
            staged = modes[key.sink] == "replace"
            if staged and (fresh or found.complete or key.sink in lost):
                self.target.staging[key.sink] = []
                for number, one in list(self.target.rejects.items()):
                    if one.staged and _owner(one.key) == _owner(key):
                        del self.target.rejects[number]
                found = replace(found, position=None, complete=False)
            known[key] = replace(found, epoch=epoch, fingerprint=fingerprint)
        return {key: known[key] for key in keys}

    @property
    def rejects(self) -> MemoryRejects:
        return MemoryRejects(self)

    async def begin(self, *, strict: bool = False) -> None:
        assert self._rows is None, "begin inside a transaction"
        self._rows, self._steps = [], []
        self._before = dict(self.target.rejects)
        self.pending = dict(self._before)

    async def savepoint(self) -> None:
        assert self._rows is not None, "savepoint outside a transaction"
        self._saved = (len(self._rows), dict(self.pending))

    async def undo(self) -> None:
        assert self._rows is not None, "undo outside a transaction"
        del self._rows[self._saved[0] :]
        self.pending = dict(self._saved[1])

    def pack(self, batch: Batch[Any]) -> Batch[Any]:
        return batch

    async def write(self, sink: int, batches: Sequence[Batch[Any]]) -> int:
        target = self.target
        for _ in range(target.yields_per_write):
            await asyncio.sleep(0)
        if target.before_write is not None:
            await target.before_write()
        target.writes += 1
        if target.fail_on_write is not None and target.writes == target.fail_on_write:
            raise target.error("the memory target was told to fail")
        assert self._rows is not None, "write outside a transaction"
        count = sum([len(batch.rows) for batch in batches])
        target.rows_sent += count
        if target.refuses is not None:  # it gets all rows of the table, each time
            self._check_rows(target.refuses, sink, [row for one in batches for row in one.rows])
        self._rows += [(sink, batch.rows) for batch in batches]
        return count

    def _check_rows(
        self, refuses: Callable[[Any, Sequence[Any]], bool], sink: int, rows: Sequence[Any]
    ) -> None:
        target = self.target
        others = list(target.tables.get(self._sinks[sink].table, ()))
        others += [row for number, of_sink in self._rows or () if number == sink for row in of_sink]
        for place, row in enumerate(rows):
            if refuses(row, others):
                raise DataError(
                    f"row {place + 1} was refused", row=place, reason="the memory target refused it"
                )
            others.append(row)

    async def advance(self, steps: Sequence[Advance]) -> None:
        for step in steps:
            _check(self.target, step)
        self._steps += steps

    async def commit(self) -> None:
        target = self.target
        for step in self._steps:
            _check(target, step)  # a real target's row lock would have held a take-over back
        target.commit_calls += 1
        in_doubt = target.commit_calls == target.doubt_on_commit
        if not in_doubt or target.doubt_is_in:
            self._apply()
        self._rows = None
        if in_doubt:
            raise CommitInDoubtError("the answer to COMMIT was lost")

    def _apply(self) -> None:
        target = self.target
        for number, rows in self._rows or ():
            sink = self._sinks[number]
            tables = target.staging if sink.mode == "replace" else target.tables
            if sink.mode == "upsert":
                _upsert(tables[sink.table], rows, sink)
            else:
                tables[sink.table].extend(rows)
        for step in self._steps:
            _move(target, step)
        # Only what this transaction changed: that of another lane may be in since it began.
        gone = self._before.keys() - self.pending.keys()
        changed = {n: one for n, one in self.pending.items() if self._before.get(n) is not one}
        now = {number: one for number, one in target.rejects.items() if number not in gone}
        target.rejects = {**now, **changed}
        target.commits += 1

    def stored(self, number: int, new: NewReject) -> StoredReject:
        """A reject as the target keeps it."""
        reject = new.reject
        modes = {sink.table: sink.mode for sink in self._sinks}
        return StoredReject(
            number=number,
            key=new.key,
            position=encode_position(new.position),
            ordinal=reject.ordinal,
            step=reject.step,
            steps_left=reject.steps_left,
            reason=reject.reason,
            detail=reject.detail,
            column=reject.column,
            sqlstate=reject.sqlstate,
            row_key=json.dumps(dict(new.row_key), default=str) if new.row_key else None,
            row=repr(reject.row),
            tries=0,
            staged=modes[new.key.sink] == "replace",
            run_id=self._info.run_id if self._info else None,
            rejected_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            restore=lambda module: reject.row,
        )

    async def rollback(self) -> None:
        self._rows = None

    async def settle(self, keys: Sequence[CheckpointKey]) -> Mapping[CheckpointKey, Checkpoint]:
        return await self.load(keys)

    def interrupt(self) -> None:
        pass

    async def blocked_by(self) -> str | None:
        return self.target.blocker


class MemoryRejects:
    """The rejects of a memory target, in its session's transaction."""

    def __init__(self, session: MemorySession) -> None:
        self._session = session

    async def add(self, rejects: Sequence[NewReject]) -> None:
        for new in rejects:
            number = self._session.target.number()
            self._session.pending[number] = self._session.stored(number, new)

    async def forget(self, keys: Sequence[CheckpointKey]) -> None:
        rejects = self._session.pending
        for number in [n for n, one in rejects.items() if one.key in keys]:
            del rejects[number]

    async def read(self, flow: str, sink: str, *, after: int, most: int) -> Sequence[StoredReject]:
        found = [
            one
            for number, one in self._session.target.rejects.items()
            if number > after and (one.key.flow, one.key.sink, one.staged) == (flow, sink, False)
        ]
        return sorted(found, key=lambda one: one.number)[:most]

    async def drop(self, number: int) -> bool:
        return self._session.pending.pop(number, None) is not None

    async def keep(self, number: int, again: Reject) -> None:
        one = self._session.pending[number]
        self._session.pending[number] = replace(
            one,
            reason=again.reason,
            detail=again.detail,
            column=again.column,
            sqlstate=again.sqlstate,
            tries=one.tries + 1,
        )


class MemorySink(Sink[T], Generic[T]):
    """A sink into a table of a memory target, one of its own by default.

    Args:
        fail_on_write: Raise ``error`` at that write (counted from 1), until ``heal``.
        yields_per_write: Turns of the event loop that each write takes.
    """

    def __init__(
        self,
        *,
        target: MemoryTarget | None = None,
        table: str = "rows",
        mode: Any = "append",
        key: tuple[str, ...] = (),
        add: tuple[str, ...] = (),
        fail_on_write: int | None = None,
        yields_per_write: int = 0,
        error: type[Exception] = DataError,
    ) -> None:
        memory = target or MemoryTarget()
        super().__init__(target=memory, table=table, mode=mode, key=key, add=add)
        if fail_on_write is not None:
            memory.fail_on_write = fail_on_write
            memory.error = error
        if yields_per_write:
            memory.yields_per_write = yields_per_write

    @property
    def memory(self) -> MemoryTarget:
        """The target it writes into."""
        assert isinstance(self.target, MemoryTarget)
        return self.target

    @property
    def rows(self) -> list[T]:
        """What is committed (and, for a replace, published)."""
        return self.memory.tables.get(self.table, [])

    def heal(self) -> None:
        """Fail no more."""
        self.memory.fail_on_write = None


def _upsert(table: list[Any], rows: Sequence[Any], sink: Sink[Any]) -> None:
    def value(row: Any, name: str) -> Any:
        if isinstance(row, Mapping):
            return cast("Mapping[str, object]", row)[name]
        return getattr(row, name)

    def key_of(row: Any) -> tuple[Any, ...]:
        return tuple(value(row, name) for name in sink.key)

    by_key = {key_of(row): row for row in table}
    for row in rows:
        key = key_of(row)
        if sink.add and key in by_key:
            sums = {name: value(by_key[key], name) + value(row, name) for name in sink.add}
            by_key[key] = {**row, **sums} if isinstance(row, Mapping) else replace(row, **sums)
        else:
            by_key[key] = row
    table[:] = by_key.values()


def _owner(key: CheckpointKey) -> tuple[str, str, str]:
    return (key.pipeline, key.flow, key.sink)


def _check(target: MemoryTarget, step: Advance) -> None:
    found = target.checkpoints.get(step.key)
    if found is None or found.epoch != step.epoch or found.position != step.old:
        raise FencedError(f"checkpoint of {step.key.sink!r} was moved by another run")


def _move(target: MemoryTarget, step: Advance) -> None:
    if step.removes:
        del target.checkpoints[step.key]
        return
    found = target.checkpoints[step.key]
    target.checkpoints[step.key] = replace(
        found, position=step.new, complete=step.complete, rows=found.rows + step.rows
    )
