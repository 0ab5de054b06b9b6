"""``Stream.open``: the rows of a stream in somebody's own ``async for``, without a target.

A run with a sink that hands each batch to the reader instead of writing it: tasks, memory limit,
retries and clean-up are those of any run. It keeps no position.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Generic, TypeVar

from etl.batch import Batch
from etl.connector import (
    Advance,
    Checkpoint,
    CheckpointKey,
    OpenTarget,
    RejectTable,
    RunInfo,
    Session,
    Sink,
)
from etl.engine.channel import Channel, EndOfChannelError
from etl.engine.run import Run
from etl.errors import ChannelBrokenError, ConfigError
from etl.flow import Stream
from etl.pipeline import Pipeline
from etl.policy import Limits, Retry
from etl.rows import Shape

T = TypeVar("T")
_BATCHES = 2  # that wait for the reader; what is read ahead waits in the run's own channels


class OpenRows(Generic[T]):
    """See :meth:`etl.flow.Stream.open`.

    A class, since the event loop closes each generator that is left when it ends by itself: one
    would be closed here while the generator of a user, in which the block stands, is closing it.
    """

    def __init__(self, stream: Stream[T], *, limits: Limits | None, retry: Retry | None) -> None:
        self._stream = stream
        self._limits = limits or Limits()
        self._retry = retry
        self._is_open = False

    async def __aenter__(self) -> AsyncGenerator[T, None]:
        if self._is_open:
            raise ConfigError("open() is for one 'async with'; call it again for another one")
        self._is_open = True
        name = self._stream.flow_name
        channel: Channel[Batch[T]] = Channel(
            f"{name}: to the reader", max_items=_BATCHES, max_bytes=self._limits.memory_bytes
        )
        sink: Sink[T] = Sink(target=_Reader(channel), table="the reader", mode="append")
        flow = self._stream.into(sink)
        self._run = await Pipeline(name, flow, limits=self._limits, retry=self._retry).start()
        self._watch = asyncio.create_task(_watch(self._run, channel), name=f"etl:reader of {name}")
        self._rows = _rows(channel)
        return self._rows

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._run.abort()  # where it goes on: nobody takes its rows any more
        finally:
            await self._watch
            # Another task that waits for a row is told by the channel, which has ended.
            with suppress(RuntimeError):
                await self._rows.aclose()


async def _watch(run: Run, channel: Channel[Batch[Any]]) -> None:
    """End the channel as the run ended, so that a failure is not taken for the last row."""
    try:
        await run.wait()
    except Exception as error:
        channel.fail(error)
    else:
        channel.close()


async def _rows(channel: Channel[Batch[T]]) -> AsyncGenerator[T, None]:
    while True:
        try:
            batch = await channel.get()
        except EndOfChannelError:
            return
        except ChannelBrokenError as broken:
            # The run's own error is what happened; the channel is only how it got here.
            failure = broken.__cause__ or broken
            break
        for row in batch.rows:
            yield row
    raise failure  # out here: ``from None`` would take its own cause away


class _Reader:
    """The target that stands for the reader; see :class:`etl.connector.Target`."""

    has_one_writer = False
    keeps_rejects = False
    takes_workers = False

    def __init__(self, channel: Channel[Batch[Any]]) -> None:
        self.name = "the reader"
        self._channel = channel

    @asynccontextmanager
    async def open(self, info: RunInfo, *, sessions: int) -> AsyncGenerator[OpenTarget, None]:
        yield _Open(self._channel)


class _Open:
    """See :class:`etl.connector.OpenTarget`."""

    notes: Mapping[str, Sequence[str]] = {}

    def __init__(self, channel: Channel[Batch[Any]]) -> None:
        self._channel = channel

    async def session(self, flow: str, sinks: Sequence[Sink[Any]]) -> Session:
        return _Session(self._channel)

    async def build(self) -> None:
        """Nothing is made."""

    async def publish(self, steps: Sequence[Advance]) -> None:
        """Nothing is staged."""


class _Session:
    """See :class:`etl.connector.Session`. What is handed over cannot be rolled back."""

    uncancellable = False

    def __init__(self, channel: Channel[Batch[Any]]) -> None:
        self._channel = channel
        self._checkpoints: dict[CheckpointKey, Checkpoint] = {}

    @property
    def rejects(self) -> RejectTable:
        raise ConfigError("a reader has no place for bad rows; open() ends at the first one")

    async def wants_profile(self, sink: int, shape: Shape) -> bool:
        return False

    async def has_table(self, sink: int) -> bool:
        return True

    async def prepare(self, shapes: Sequence[Shape | None], *, resumable: bool) -> Sequence[str]:
        return []

    def takes_frames(self, sink: int, form: str) -> None:
        return None

    async def load(self, keys: Sequence[CheckpointKey]) -> Mapping[CheckpointKey, Checkpoint]:
        return {key: self._checkpoints[key] for key in keys if key in self._checkpoints}

    async def take_over(
        self,
        keys: Sequence[CheckpointKey],
        *,
        fingerprints: Sequence[str],
        fresh: bool,
        drops: Sequence[CheckpointKey] = (),
    ) -> Mapping[CheckpointKey, Checkpoint]:
        self._checkpoints = {key: Checkpoint(epoch=1, position=None) for key in keys}
        return self._checkpoints

    async def begin(self, *, strict: bool = False) -> None:
        """A transaction is only what the lane makes of it."""

    async def savepoint(self) -> None:
        """Only asked for where bad rows are set aside."""

    async def undo(self) -> None:
        """Only asked for where bad rows are set aside."""

    def pack(self, batch: Batch[Any]) -> Batch[Any]:
        return batch

    async def write(self, sink: int, batches: Sequence[Batch[Any]]) -> int:
        for batch in batches:
            await self._channel.put(batch, batch.nbytes)
        return sum(len(batch.rows) for batch in batches)

    async def advance(self, steps: Sequence[Advance]) -> None:
        """The lane keeps the positions of the run; nothing outlives it."""

    async def commit(self) -> None:
        """What was handed over is out."""

    async def rollback(self) -> None:
        """What was handed over stays out; the run ends with the error."""

    async def settle(self, keys: Sequence[CheckpointKey]) -> Mapping[CheckpointKey, Checkpoint]:
        return await self.load(keys)

    def interrupt(self) -> None:
        """Nothing runs that a cancellation would not end."""

    async def blocked_by(self) -> str | None:
        return "the program that reads the rows takes no more"
