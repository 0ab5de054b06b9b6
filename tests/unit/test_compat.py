"""A run inside other people's event loops: uvloop, anyio, timeouts, task groups, threads."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any

import anyio
import anyio.from_thread
import pytest

from etl import Batch, Limits, Pipeline, gather
from etl.batch import Position
from etl.flow import Flow
from etl.testing import MemorySink, MemorySource

ROWS = list(range(20))

Main = Callable[[], Coroutine[Any, Any, None]]


class Blocking(MemorySource[int]):
    """Stops for ever after two batches; its clean-up needs some turns of the loop."""

    def __init__(self) -> None:
        super().__init__(ROWS)
        self.blocked = asyncio.Event()
        self.cleaned_up = False

    async def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[int], None]:
        count = 0
        try:
            async for batch in super().read(after, until):
                if count == 2:
                    self.blocked.set()
                    await asyncio.Event().wait()
                yield batch
                count += 1
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            self.cleaned_up = True


def uvloop_factory() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


@pytest.fixture(
    params=[
        "asyncio",
        pytest.param(
            "uvloop",
            marks=pytest.mark.skipif(sys.platform == "win32", reason="uvloop is not for Windows"),
        ),
        "debug",
    ]
)
def run(request: pytest.FixtureRequest) -> Callable[[Main], None]:
    """Runs a coroutine function in a new loop of each kind."""
    factory = uvloop_factory if request.param == "uvloop" else None

    def in_a_loop(main: Main) -> None:
        with asyncio.Runner(loop_factory=factory, debug=request.param == "debug") as runner:
            runner.run(main())

    return in_a_loop


def nothing_else_runs() -> bool:
    return asyncio.all_tasks() == {asyncio.current_task()}


async def double(rows: Any) -> Any:
    await asyncio.sleep(0)
    return [2 * row for row in rows]


def flow_into(sink: MemorySink[int]) -> Flow:
    return MemorySource(ROWS).map(abs).map_batches(double, concurrency=3).into(sink)


def test_a_run_completes_and_is_idle_the_second_time(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        sink = MemorySink[int]()
        pipeline = Pipeline("t", flow_into(sink))
        assert (await pipeline.run()).status == "completed"
        assert (await pipeline.run()).rows_read == 0
        assert sink.rows == [2 * row for row in ROWS]
        assert nothing_else_runs()

    run(main)


def test_drain_and_abort(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        for stop in ("drain", "abort"):
            source, sink = Blocking(), MemorySink[int]()
            handle = await Pipeline("t", source.into(sink)).start()
            await source.blocked.wait()
            if stop == "drain":
                assert (await handle.drain()).status == "drained"
                assert sink.rows == ROWS[:4]
            else:
                await handle.abort()
            assert source.cleaned_up
            assert nothing_else_runs()

    run(main)


def test_cancelled_by_a_timeout(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        source = Blocking()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await Pipeline("t", source.into(MemorySink[int]())).run()
        assert source.cleaned_up
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        assert nothing_else_runs()

    run(main)


def test_cancelled_by_an_anyio_scope(run: Callable[[Main], None]) -> None:
    """anyio cancels again on every turn of the loop until its scope ends."""

    async def main() -> None:
        source = Blocking()
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_later(0.02, scope.cancel)
            await Pipeline("t", source.into(MemorySink[int]())).run()
        assert scope.cancelled_caught
        assert source.cleaned_up
        assert nothing_else_runs()

    run(main)


def test_cancelled_by_an_anyio_scope_while_it_starts(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await Pipeline("t", Blocking().into(MemorySink[int]())).run()
        assert scope.cancelled_caught
        assert nothing_else_runs()

    run(main)


def test_cancelled_with_an_anyio_task_group(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        source = Blocking()
        async with anyio.create_task_group() as group:
            group.start_soon(Pipeline("t", source.into(MemorySink[int]())).run)
            await source.blocked.wait()
            group.cancel_scope.cancel()
        assert source.cleaned_up
        assert nothing_else_runs()

    run(main)


def test_cancelled_with_a_task_group(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        source = Blocking()

        async def boom() -> None:
            await source.blocked.wait()
            raise ValueError("boom")

        async def both() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(Pipeline("t", source.into(MemorySink[int]())).run())
                group.create_task(boom())

        with pytest.raises(ExceptionGroup) as failure:
            await both()
        assert [str(error) for error in failure.value.exceptions] == ["boom"]
        assert source.cleaned_up
        assert nothing_else_runs()

    run(main)


def test_a_commit_under_an_anyio_scope_is_not_cut(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        sink = MemorySink[int](yields_per_write=3)
        loop = asyncio.get_running_loop()

        def cancel_after(turns: int, scope: anyio.CancelScope) -> None:
            if turns == 0:
                scope.cancel()
            else:
                loop.call_soon(cancel_after, turns - 1, scope)

        for turns in range(0, 30, 3):
            with anyio.CancelScope() as scope:
                cancel_after(turns, scope)
                await Pipeline("t", flow_into(sink), limits=Limits(group_rows=1)).run()
            assert sink.rows == [2 * row for row in ROWS][: len(sink.rows)]
        await Pipeline("t", flow_into(sink)).run()
        assert sink.rows == [2 * row for row in ROWS]

    run(main)


def test_several_pipelines_under_gather(run: Callable[[Main], None]) -> None:
    async def main() -> None:
        sinks = [MemorySink[int]() for _ in range(4)]
        await gather(*(Pipeline(f"p{n}", flow_into(sink)) for n, sink in enumerate(sinks)))
        assert all(sink.rows == [2 * row for row in ROWS] for sink in sinks)
        assert nothing_else_runs()

    run(main)


def test_a_run_in_the_loop_of_another_thread() -> None:
    sink = MemorySink[int]()
    with anyio.from_thread.start_blocking_portal() as portal:
        report = portal.call(Pipeline("t", flow_into(sink)).run)
    assert report.status == "completed"
    assert sink.rows == [2 * row for row in ROWS]


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_eager_tasks() -> None:
    """A child runs before ``create_task`` returns: the engine must not rely on either order."""

    async def main() -> None:
        factory: Any = vars(asyncio)["eager_task_factory"]
        asyncio.get_running_loop().set_task_factory(factory)
        sink = MemorySink[int]()
        assert (await Pipeline("t", flow_into(sink)).run()).status == "completed"
        assert sink.rows == [2 * row for row in ROWS]
        source = Blocking()
        handle = await Pipeline("u", source.into(MemorySink[int]())).start()
        await source.blocked.wait()
        assert (await handle.drain()).status == "drained"
        source = Blocking()
        handle = await Pipeline("v", source.into(MemorySink[int]())).start()
        await source.blocked.wait()
        await handle.abort()
        assert source.cleaned_up

    asyncio.run(main())
