"""User code that does not stop, forgets tasks or fails once: named, rolled back, exact later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import pytest

from etl import Batch, Limits, Pipeline, Source, stage
from etl.errors import PipelineFailedError, StageStuckError
from etl.testing import MemorySink, MemorySource

ROWS = list(range(14))
QUICK = Limits(abort_grace_s=0.2)


def swallowing(started: asyncio.Event, freed: asyncio.Event) -> Any:
    @stage
    async def deaf(batches: Any) -> AsyncGenerator[Batch[int], None]:
        async for batch in batches:
            started.set()
            while not freed.is_set():
                try:
                    await freed.wait()
                except asyncio.CancelledError:
                    pass
            yield batch

    return deaf


@pytest.mark.parametrize("by_call", [False, True])
async def test_a_stage_that_swallows_cancellation_is_left_behind_and_named(by_call: bool) -> None:
    started, freed = asyncio.Event(), asyncio.Event()

    async def deaf(rows: Sequence[int]) -> Sequence[int]:
        started.set()
        while not freed.is_set():
            try:
                await freed.wait()
            except asyncio.CancelledError:
                pass
        return rows

    source, sink = MemorySource(ROWS), MemorySink[int]()
    stream = source.map_batches(deaf, concurrency=2) if by_call else None
    stream = stream or source.through(swallowing(started, freed))
    run = await Pipeline("t", stream.into(sink), limits=QUICK).start()
    await started.wait()
    before = asyncio.all_tasks()
    run.request_abort("a test")

    with pytest.raises(PipelineFailedError, match="deaf.*did not stop within 0.2 s") as failure:
        await run.wait()

    assert isinstance(failure.value.errors[0], StageStuckError)
    assert sink.rows == []
    assert sink.memory.open_sessions == 0
    # asyncio.run would wait for them.
    assert asyncio.all_tasks() - {asyncio.current_task()} == set()
    freed.set()
    await asyncio.wait(before - {asyncio.current_task()}, timeout=10)
    assert sink.rows == []
    await Pipeline("t", MemorySource(ROWS).into(sink)).run()
    assert sink.rows == ROWS


def test_asyncio_run_ends_although_a_stage_swallows_every_cancellation() -> None:
    async def main() -> None:
        started = asyncio.Event()
        deaf = swallowing(started, asyncio.Event())
        flow = MemorySource(ROWS).through(deaf).into(MemorySink[int]())
        waiter = asyncio.create_task(Pipeline("t", flow, limits=QUICK).run())
        await started.wait()
        waiter.cancel()
        with pytest.raises(PipelineFailedError, match="deaf"):
            await waiter

    asyncio.run(main())


async def test_a_look_up_that_does_not_stop_is_left_behind() -> None:
    started = asyncio.Event()

    class Deaf(Source[int]):
        name = "deaf side"
        incremental = False

        async def read(self, after: Any, until: Any) -> AsyncGenerator[Batch[int], None]:
            started.set()
            while not freed.is_set():
                try:
                    await freed.wait()
                except asyncio.CancelledError:
                    pass
            yield Batch([1], position=(1,))

    def joined(row: int, side: int | None) -> int:
        return row

    freed = asyncio.Event()
    stream = MemorySource(ROWS).lookup(Deaf(), key=int, side_key=int, combine=joined)
    pipeline = Pipeline("t", stream.into(MemorySink[int]()), limits=QUICK)
    waiter = asyncio.create_task(pipeline.run())
    await started.wait()
    left = asyncio.all_tasks()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert asyncio.all_tasks() - {asyncio.current_task()} == set()
    freed.set()
    await asyncio.wait(left - {asyncio.current_task()}, timeout=10)


async def test_a_clean_up_within_the_grace_is_not_cut() -> None:
    cleaned = asyncio.Event()
    started = asyncio.Event()

    @stage
    async def slow_end(batches: Any) -> AsyncGenerator[Batch[int], None]:
        try:
            async for batch in batches:
                started.set()
                await asyncio.Event().wait()
                yield batch
        finally:
            for _ in range(20):
                await asyncio.sleep(0)
            cleaned.set()

    flow = MemorySource(ROWS).through(slow_end).into(MemorySink[int]())
    run = await Pipeline("t", flow).start()
    await started.wait()
    await run.abort()
    assert cleaned.is_set()


@pytest.mark.parametrize("by_call", [False, True])
async def test_forgotten_tasks_are_named_and_not_cancelled(by_call: bool) -> None:
    kept: list[asyncio.Task[bool]] = []
    gate = asyncio.Event()

    def forget() -> None:
        if not kept:
            kept.append(asyncio.create_task(gate.wait(), name="my-task"))

    @stage
    async def forgets(batches: Any) -> AsyncGenerator[Batch[int], None]:
        async for batch in batches:
            forget()
            yield batch

    async def also(rows: Sequence[int]) -> Sequence[int]:
        forget()
        return rows

    source, sink = MemorySource(ROWS), MemorySink[int]()
    others = asyncio.create_task(gate.wait())  # of the program, not of the run
    flow = (source.map_batches(also) if by_call else source.through(forgets)).into(sink)
    report = await Pipeline("t", flow).run()

    assert sink.rows == ROWS
    (note,) = report.flows[0].notes
    assert "my-task" in note
    assert "Event.wait" in note
    assert ("also" if by_call else "forgets") in note
    gate.set()
    assert await kept[0]
    assert await others


async def test_a_stage_that_fails_once_fails_its_run_and_the_rerun_is_exact() -> None:
    failed: list[int] = []

    @stage
    async def once_in_a_while(batches: Any) -> AsyncGenerator[Batch[int], None]:
        async for batch in batches:
            if 5 in batch.rows and not failed:
                failed.append(5)
                raise RuntimeError("once")
            yield batch

    sink = MemorySink[int]()
    pipeline = Pipeline("t", MemorySource(ROWS).through(once_in_a_while).into(sink))
    with pytest.raises(PipelineFailedError, match="once_in_a_while"):
        await pipeline.run()
    assert sink.rows == ROWS[: len(sink.rows)]
    await pipeline.run()
    assert sink.rows == ROWS


async def test_a_function_that_cancels_its_own_task_is_named() -> None:
    async def cuts_itself(numbers: Sequence[int]) -> list[int]:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        return list(numbers)

    sink = MemorySink[int]()
    pipeline = Pipeline("t", MemorySource(ROWS).map_batches(cuts_itself).into(sink))
    with pytest.raises(PipelineFailedError, match="cuts_itself.* although nobody cancelled it"):
        await pipeline.run()
    assert not sink.rows


async def test_an_error_that_is_no_exception_is_named() -> None:
    class Odd(BaseException):
        pass

    def raises(number: int) -> int:
        raise Odd

    sink = MemorySink[int]()
    pipeline = Pipeline("t", MemorySource(ROWS).map(raises).into(sink))
    with pytest.raises(PipelineFailedError, match=r"raised Odd .* stage must not end the program"):
        await pipeline.run()
    assert not sink.rows
