"""The task of a ``map_batches``: calls of an async function, their retries and bad rows."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from time import monotonic
from typing import Any, TypeAlias

from etl.batch import Batch, Reject
from etl.engine.channel import Channel, EndOfChannelError
from etl.engine.nodes import Breather
from etl.engine.retry import Attempts
from etl.engine.supervise import guard
from etl.errors import EtlError, StageError, TransientError, is_about_a_row
from etl.flow import MapBatches, name_of
from etl.foreign import because_of, named
from etl.stages import reject_of

MOST_FAILURES = 100
"""Rows that may fail alone before the first call succeeds: then it is not about the rows."""

OnRetry: TypeAlias = Callable[[str, int, float, BaseException], None]


async def run_parallel(
    step: MapBatches,
    source: Channel[Batch[Any]],
    out: Channel[Batch[Any]],
    on_retry: OnRetry,
    *,
    sets_aside: bool = False,
    steps_left: int = 0,
) -> None:
    """The task of a ``map_batches``: at most ``concurrency`` calls at once, order kept."""
    calls = _Calls(step, on_retry, sets_aside=sets_aside, steps_left=steps_left)
    if step.concurrency == 1:
        await _one_by_one(calls, source, out)
    else:
        await _side_by_side(calls, step.concurrency, source, out)
    out.close()


async def over_calls(
    step: MapBatches, batches: AsyncGenerator[Batch[Any], None]
) -> AsyncGenerator[Batch[Any], None]:
    """A ``map_batches`` as a generator, one call after the other."""
    calls = _Calls(step, _told_nobody)
    async with aclosing(batches):
        async for batch in batches:
            yield await calls.over(batch)


def _told_nobody(what: str, attempt: int, wait_s: float, error: BaseException) -> None:
    """Retries of a call that nobody watches."""


class _Calls:
    """Calls the function of one step: again where the step says so, by halves for bad rows."""

    def __init__(
        self,
        step: MapBatches,
        on_retry: OnRetry,
        *,
        sets_aside: bool = False,
        steps_left: int = 0,
    ) -> None:
        self._name = name_of(step.function)
        self.label = f"map_batches {self._name}"
        self._function: Callable[[Sequence[Any]], Awaitable[Sequence[Any]]] = step.function
        self._retry = step.retry
        self._on_retry = on_retry
        self._sets_aside = sets_aside
        self._steps_left = steps_left

    async def over(self, batch: Batch[Any]) -> Batch[Any]:
        """A batch after its call.

        Raises:
            StageError: The call failed, and nothing says that it may.
        """
        rows = batch.rows
        if not rows:
            return batch
        try:
            result = await self._function(rows)
        except Exception as error:
            failure = error  # what follows is not to count as part of its handling
        else:
            return batch if result is rows else batch.derive(self._checked(result))
        try:
            return await self._after(failure, batch)
        finally:
            del failure  # its traceback refers to this frame, and so to the rows

    async def _after(self, failure: Exception, batch: Batch[Any]) -> Batch[Any]:
        """A batch whose first call failed."""
        attempts = self._attempts()
        try:
            await asyncio.sleep(self._wait_s(attempts, failure))
            return batch.derive(await self._call(batch.rows, attempts))
        except StageError as error:
            cause = error.__cause__
            if not self._sets_aside or cause is None or not is_about_a_row(cause):
                raise
        return await self._apart(batch)

    async def _call(self, rows: Sequence[Any], attempts: Attempts | None) -> Sequence[Any]:
        """Call until it succeeds or the step's policy gives up."""
        while True:
            try:
                result = await self._function(rows)
            except Exception as error:
                wait_s = self._wait_s(attempts, error)
            else:
                return self._checked(result)
            await asyncio.sleep(wait_s)

    def _attempts(self) -> Attempts | None:
        return None if self._retry is None else Attempts(self._retry)

    def _wait_s(self, attempts: Attempts | None, error: Exception) -> float:
        """Seconds until a call that failed is tried again.

        Raises:
            StageError: It is not.
        """
        wait_s = None
        if attempts is not None and isinstance(error, TransientError | OSError):
            wait_s = attempts.next_wait_s()
        if attempts is None or wait_s is None:
            raise self._failed(error) from error
        self._on_retry(self._name, attempts.failed, wait_s, error)
        return wait_s

    def _checked(self, result: Sequence[Any]) -> Sequence[Any]:
        if result.__class__ is not list and (
            not isinstance(result, Sequence) or isinstance(result, str | bytes)
        ):
            raise StageError(
                f"{self.label} returned {type(result).__name__}; it must return a list of rows"
            )
        return result

    def _failed(self, error: Exception) -> EtlError:
        # What the function itself calls passing is passing to whoever decides about another run.
        kind = TransientError if isinstance(error, TransientError) else StageError
        return because_of(
            error,
            kind(
                f"{self.label} failed: {named(error)}. The batch was not written and the"
                " checkpoint did not move"
            ),
        )

    async def _apart(self, batch: Batch[Any]) -> Batch[Any]:
        """Find the rows on which a call fails, by halves; the rest goes on in its order."""
        kept: list[Any] = []
        rejects: list[Reject] = []
        middle = len(batch.rows) // 2
        todo = [(0, middle), (middle, len(batch.rows))] if middle else [(0, len(batch.rows))]
        todo.reverse()
        succeeded = False
        while todo:
            start, stop = todo.pop()
            try:
                kept += await self._call(batch.rows[start:stop], self._attempts())
                succeeded = True
            except StageError as error:
                cause = error.__cause__
                if not isinstance(cause, Exception) or not is_about_a_row(cause):
                    raise
                if stop - start > 1:
                    middle = (start + stop) // 2
                    todo += [(middle, stop), (start, middle)]
                    continue
                rejects.append(
                    reject_of(cause, batch.rows[start], start, self.label, self._steps_left)
                )
                if not succeeded and len(rejects) >= MOST_FAILURES:
                    raise
        return batch.derive(kept, rejects=rejects)


async def _one_by_one(calls: _Calls, source: Channel[Batch[Any]], out: Channel[Batch[Any]]) -> None:
    # No generator between, and no coroutine where nothing waits: small batches would feel it.
    breather = Breather()
    while True:
        batch = source.get_nowait()
        if batch is None:
            try:
                batch = await source.get()
            except EndOfChannelError:
                return
        done = await calls.over(batch)
        nbytes = done.nbytes
        if not out.put_nowait(done, nbytes):
            await out.put(done, nbytes)
        del batch, done
        if monotonic() > breather.due:
            await breather.breathe()


async def _side_by_side(
    calls: _Calls, concurrency: int, source: Channel[Batch[Any]], out: Channel[Batch[Any]]
) -> None:
    async def guarded(batch: Batch[Any]) -> Batch[Any]:
        # In a task of its own, SystemExit would tear down the loop.
        return await guard(calls.label, calls.over(batch))

    name = f"etl:{calls.label}"
    running: deque[asyncio.Task[Batch[Any]]] = deque()
    try:
        ended = False
        while running or not ended:
            while not ended and len(running) < concurrency:
                if running and not source.is_ready:
                    break
                try:
                    batch = await source.get()
                except EndOfChannelError:
                    ended = True
                    break
                running.append(asyncio.create_task(guarded(batch), name=name))
            if not running:
                break
            if not ended and not running[0].done() and len(running) < concurrency:
                await _first_done_or_input(running[0], source)
                continue
            if not running[0].done():
                # Not awaited itself: each cancellation of this task would go on to that call.
                await asyncio.wait({running[0]})
            done = running.popleft().result()
            await out.put(done, done.nbytes)
            del done
    finally:
        await _cancel_all(running)


async def _first_done_or_input(task: asyncio.Task[Any], source: Channel[Any]) -> None:
    """Wait until the oldest call is done or another batch can be started."""
    arrived = asyncio.create_task(source.wait_ready())
    try:
        await asyncio.wait({task, arrived}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _cancel_all([arrived])


async def _cancel_all(tasks: Sequence[asyncio.Task[Any]] | deque[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for their end, through further cancellations."""
    pending = {task for task in tasks if not task.done()}
    for task in pending:
        task.cancel()
    received: asyncio.CancelledError | None = None
    while pending:
        try:
            _, pending = await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            if received is not None:  # asked again, because it takes long
                for task in pending:
                    task.cancel()
            received = error
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # retrieved: the first error is already on its way
    if received is not None:
        raise received
