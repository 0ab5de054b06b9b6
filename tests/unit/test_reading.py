"""``Stream.open``: rows in somebody's own loop; everything is closed whatever happens in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import pytest

from etl import (
    Batch,
    ConfigError,
    Limits,
    PipelineFailedError,
    Position,
    RunAbortedError,
    Source,
    merge,
    stage,
)
from etl.errors import SourceUnavailableError, chain


class Numbers(Source[int]):
    """0, 1, 2, ... in batches of ten; notes how far it was asked."""

    def __init__(self, batches: int, *, fails_at: int | None = None, lost_at: int = -1) -> None:
        self.name = f"numbers{batches}"
        self.batches = batches
        self.fails_at = fails_at
        self.lost_at = lost_at
        self.given = 0
        self.closed = 0

    async def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[int], None]:
        first = int(after[0]) + 1 if after else 0
        try:
            for number in range(first, self.batches):
                if number == self.fails_at:
                    raise ValueError("no such luck")
                if number == self.lost_at:
                    self.lost_at = -1
                    raise SourceUnavailableError("lost once")
                self.given += 1
                yield Batch(list(range(number * 10, number * 10 + 10)), position=(number,))
        finally:
            self.closed += 1


@stage
async def doubled(batches: AsyncIterator[Batch[int]]) -> AsyncGenerator[Batch[int], None]:
    async for batch in batches:
        yield batch.derive([2 * row for row in batch.rows])


async def halves(rows: Sequence[int]) -> Sequence[int]:
    await asyncio.sleep(0)
    return [row // 2 for row in rows]


async def test_the_rows_come_in_order_through_every_kind_of_step() -> None:
    stream = Numbers(30).map(lambda n: n + 1).filter(lambda n: n % 2 == 0) | doubled
    async with stream.map_batches(halves, concurrency=4).open() as rows:
        assert [row async for row in rows] == list(range(2, 301, 2))


async def test_a_merge_gives_the_rows_of_all() -> None:
    async with merge(Numbers(3), Numbers(5)).open() as rows:
        assert sorted([row async for row in rows]) == sorted([*range(30), *range(50)])


async def test_leaving_early_stops_the_source() -> None:
    source = Numbers(10_000)
    async with source.map_batches(halves).open(limits=Limits(channel_batches=2)) as rows:
        async for row in rows:
            if row == 3:
                break
    assert source.closed == 1
    assert source.given < 50


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
async def test_an_error_of_the_reader_passes_as_it_is(error: type[BaseException]) -> None:
    source = Numbers(10_000)

    async def reads() -> None:
        async with source.open() as rows:
            async for row in rows:
                if row == 3:
                    raise error("mine")

    with pytest.raises(error, match="mine"):
        await reads()
    assert source.closed == 1


async def test_a_failure_is_not_taken_for_the_end() -> None:
    seen: list[int] = []

    async def reads() -> None:
        async with Numbers(10, fails_at=3).open() as rows:
            async for row in rows:
                seen.append(row)  # noqa: PERF401  what came before the error counts

    with pytest.raises(PipelineFailedError, match="ValueError") as failure:
        await reads()
    assert seen == list(range(len(seen)))
    assert any(isinstance(one, ValueError) for one in chain(failure.value))  # and where it was


async def test_a_lost_source_goes_on_after_the_last_row() -> None:
    async with Numbers(10, lost_at=4).open() as rows:
        assert [row async for row in rows] == list(range(100))


async def test_a_slow_reader_slows_the_source() -> None:
    source = Numbers(500)
    async with source.open(limits=Limits(channel_batches=1)) as rows:
        async for row in rows:
            if row == 55:
                await asyncio.sleep(0.05)
                assert source.given < 20
                break


async def test_the_reader_may_be_cancelled() -> None:
    source = Numbers(10_000)
    reached = asyncio.Event()

    async def reads() -> None:
        async with source.open() as rows:
            async for _ in rows:
                reached.set()
                await asyncio.sleep(60)

    task = asyncio.create_task(reads())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert source.closed == 1


async def test_each_open_reads_from_the_beginning() -> None:
    source = Numbers(2)
    for _ in range(2):
        async with source.open() as rows:
            assert [row async for row in rows] == list(range(20))


async def test_a_database_that_cannot_be_reached_is_told_at_once(tmp_path: Any) -> None:
    from etl import Database

    with pytest.raises(ConfigError, match="no such file"):
        async with Database(f"sqlite:///{tmp_path}/none.db").table("t").open():
            pass


async def test_an_open_serves_one_block() -> None:
    opened = Numbers(1).open()
    async with opened:
        pass
    with pytest.raises(ConfigError, match="call it again"):
        async with opened:
            pass


async def test_another_task_that_waits_for_a_row_is_told_when_the_block_ends() -> None:
    class Silent(Source[int]):
        async def read(
            self, after: Position | None, until: Position | None
        ) -> AsyncGenerator[Batch[int], None]:
            await asyncio.Event().wait()
            yield Batch([1], position=(1,))

    async def first(rows: AsyncGenerator[int, None]) -> int:
        return await anext(rows)

    async with Silent().open() as rows:
        waits = asyncio.create_task(first(rows))
        await asyncio.sleep(0.01)
    with pytest.raises(RunAbortedError):
        await waits


def test_a_generator_around_open_may_be_left_when_the_loop_ends() -> None:
    source = Numbers(10_000)
    kept: list[AsyncGenerator[int, None]] = []
    told: list[dict[str, Any]] = []

    async def own() -> AsyncGenerator[int, None]:
        async with source.open() as rows:
            async for row in rows:
                yield row

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        kept.append(own())
        await anext(kept[0])
        # As asyncio.run does before it closes the generators.
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    asyncio.run(main())
    assert not told
    assert source.closed == 1
