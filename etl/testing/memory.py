"""A source and a transactional target in memory, with faults on demand.

The target keeps the same rules as a real one (a transaction holds rows and positions, a
position moves by compare-and-set), so what a test shows with it holds for a database.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar, cast

from etl.batch import Batch, Position
from etl.connector import Advance, Checkpoint, CheckpointKey, OpenTarget, RunInfo, Session, Sink
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
        commits: Transactions that were committed.
        blocker: What a session says of who holds it up.
        before_write: Awaited before each write.
    """

    def __init__(self, name: str = "memory") -> None:
        self.name = name
        self.tables: dict[str, list[Any]] = {}
        self.staging: dict[str, list[Any]] = {}
        self.checkpoints: dict[CheckpointKey, Checkpoint] = {}
        self.commits = 0
        self.open_sessions = 0
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
        return self._open()

    def before_publish(self) -> None:
        """Called before staged tables are put in place; a test may override it to fail."""

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[OpenTarget, None]:
        self.open_sessions += 1
        try:
            yield _OpenMemory(self)
        finally:
            self.open_sessions -= 1


class _OpenMemory:
    def __init__(self, target: MemoryTarget) -> None:
        self._target = target

    async def session(self, flow: str, sinks: Sequence[Sink[Any]]) -> Session:
        return MemorySession(self._target, sinks)

    async def publish(self, steps: Sequence[Advance]) -> None:
        target = self._target
        target.before_publish()
        for step in steps:
            _check(target, step)
        for step in steps:
            if step.key.sink in target.staging:
                target.tables[step.key.sink] = target.staging.pop(step.key.sink)
            _move(target, step)


class MemorySession:
    """One lane's view of a memory target; see :class:`etl.connector.Session`."""

    uncancellable = False

    def __init__(self, target: MemoryTarget, sinks: Sequence[Sink[Any]]) -> None:
        self._target = target
        self._sinks = sinks
        self._rows: list[tuple[int, Sequence[Any]]] | None = None
        self._steps: list[Advance] = []

    async def wants_profile(self, sink: int, shape: Shape) -> bool:
        return False

    def takes_frames(self, sink: int, form: str) -> bool:
        return False

    async def prepare(self, shapes: Sequence[Shape | None], *, resumable: bool) -> Sequence[str]:
        for sink in self._sinks:
            self._target.tables.setdefault(sink.table, [])
        return []

    async def load(self, keys: Sequence[CheckpointKey]) -> Mapping[CheckpointKey, Checkpoint]:
        known = self._target.checkpoints
        return {key: known[key] for key in keys if key in known}

    async def take_over(
        self, keys: Sequence[CheckpointKey], *, fingerprints: Sequence[str], fresh: bool
    ) -> Mapping[CheckpointKey, Checkpoint]:
        known = self._target.checkpoints
        modes = {sink.table: sink.mode for sink in self._sinks}
        lost = {key.sink for key in keys} - self._target.staging.keys()
        for key, fingerprint in zip(keys, fingerprints, strict=True):
            found = known.get(key, Checkpoint(epoch=0, position=None))
            staged = modes[key.sink] == "replace"
            if staged and (fresh or found.complete or key.sink in lost):
                self._target.staging[key.sink] = []
                found = replace(found, position=None, complete=False)
            known[key] = replace(found, epoch=found.epoch + 1, fingerprint=fingerprint)
        return {key: known[key] for key in keys}

    async def begin(self) -> None:
        assert self._rows is None, "begin inside a transaction"
        self._rows, self._steps = [], []

    def pack(self, batch: Batch[Any]) -> Batch[Any]:
        return batch

    async def write(self, sink: int, batches: Sequence[Batch[Any]]) -> int:
        target = self._target
        for _ in range(target.yields_per_write):
            await asyncio.sleep(0)
        if target.before_write is not None:
            await target.before_write()
        target.writes += 1
        if target.fail_on_write is not None and target.writes == target.fail_on_write:
            raise target.error("the memory target was told to fail")
        assert self._rows is not None, "write outside a transaction"
        self._rows += [(sink, batch.rows) for batch in batches]
        return sum(len(batch.rows) for batch in batches)

    async def advance(self, steps: Sequence[Advance]) -> None:
        for step in steps:
            _check(self._target, step)
        self._steps += steps

    async def commit(self) -> None:
        target = self._target
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
        target = self._target
        for number, rows in self._rows or ():
            sink = self._sinks[number]
            tables = target.staging if sink.mode == "replace" else target.tables
            if sink.mode == "upsert":
                _upsert(tables[sink.table], rows, sink)
            else:
                tables[sink.table].extend(rows)
        for step in self._steps:
            _move(target, step)
        target.commits += 1

    async def rollback(self) -> None:
        self._rows = None

    async def settle(self, keys: Sequence[CheckpointKey]) -> Mapping[CheckpointKey, Checkpoint]:
        return await self.load(keys)

    def interrupt(self) -> None:
        pass

    async def blocked_by(self) -> str | None:
        return self._target.blocker


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


def _check(target: MemoryTarget, step: Advance) -> None:
    found = target.checkpoints.get(step.key)
    if found is None or found.epoch != step.epoch or found.position != step.old:
        raise FencedError(f"checkpoint of {step.key.sink!r} was moved by another run")


def _move(target: MemoryTarget, step: Advance) -> None:
    found = target.checkpoints[step.key]
    target.checkpoints[step.key] = replace(
        found, position=step.new, complete=step.complete, rows=found.rows + step.rows
    )
