"""A driver ends a read from inside, while it waits to hand a batch on: nothing comes twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from etl import Batch, Limits, Pipeline, Position, Retry, Source
from etl.connector import Emit, Reader, RunInfo
from etl.errors import SourceUnavailableError
from etl.rows import Shape
from etl.testing import MemorySink

ROWS = 40


class Loss:
    """Cancels a task after some turns of the loop, unless it is over before that."""

    def __init__(self, task: asyncio.Task[object]) -> None:
        self.came = False
        self.is_over = False
        self._task = task

    def in_turns(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self.in_turns, turns - 1)
        elif not self.is_over:
            self.came = True
            self._task.cancel()


class LosesItsConnection:
    """Ends its own task some turns after a hand-over began, as the guard of COPY does."""

    shape: Shape | None = None
    resumable = True
    notes: Sequence[str] = ()

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self._left = 5

    async def pump(self, after: Position | None, until: Position | None, emit: Emit[int]) -> None:
        task = asyncio.current_task()
        assert task is not None
        for number in range(int(after[0]) if after else 0, ROWS):
            loss = Loss(task)
            if number % 7 == 3 and self._left:
                self._left -= 1
                loss.in_turns(self._turns)
            try:
                await emit(Batch([number], position=(number + 1,)))
            except asyncio.CancelledError:
                if not loss.came:
                    raise
                task.uncancel()
                raise SourceUnavailableError("the connection was lost") from None
            finally:
                loss.is_over = True

    async def order(self, positions: Sequence[Position]) -> Sequence[Position]:
        return sorted(positions)

    async def chunks(self, *, most: int, least_rows: int) -> Sequence[Position]:
        return ()


class Unsteady(Source[int]):
    name = "unsteady"

    def __init__(self, turns: int) -> None:
        self._reader = LosesItsConnection(turns)

    def connect(self, info: RunInfo) -> AbstractAsyncContextManager[Reader[int]]:
        return self._opened()

    @asynccontextmanager
    async def _opened(self) -> AsyncGenerator[Reader[int], None]:
        yield self._reader


@pytest.mark.parametrize("turns", range(1, 14))
async def test_a_read_lost_while_it_hands_on_repeats_nothing(turns: int) -> None:
    sink = MemorySink[int](yields_per_write=6)
    limits = Limits(channel_batches=1, group_rows=1)
    retry = Retry(attempts=50, base_s=0.0)

    await Pipeline("lost", Unsteady(turns).into(sink), limits=limits, retry=retry).run()

    assert sink.rows == list(range(ROWS))
