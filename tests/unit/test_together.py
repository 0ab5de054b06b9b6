"""Work that goes on side by side: bounded, in order, and nothing left behind by a failure."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from etl.engine.together import together


@pytest.mark.parametrize("most", [1, 3, 100])
async def test_results_come_in_order_and_no_more_than_was_allowed_goes_on(most: int) -> None:
    at_work = highest = 0

    async def work(number: int) -> int:
        nonlocal at_work, highest
        at_work += 1
        highest = max(highest, at_work)
        for _ in range(7 - number % 7):
            await asyncio.sleep(0)
        at_work -= 1
        return number

    assert await together([partial(work, n) for n in range(20)], most=most) == list(range(20))
    assert highest == min(most, 20)


async def test_of_several_errors_that_of_the_first_is_raised_and_the_others_end() -> None:
    begun: list[int] = []
    ended: list[int] = []

    async def work(number: int) -> None:
        begun.append(number)
        try:
            if number in {1, 2}:
                await asyncio.sleep(0)
                raise ValueError(number)
            await asyncio.Event().wait()
        finally:
            ended.append(number)

    with pytest.raises(ValueError, match="1"):
        await together([partial(work, n) for n in range(10)], most=4)
    assert sorted(ended) == sorted(begun)
    assert len(begun) < 10


async def test_a_cancellation_ends_all() -> None:
    ended: list[int] = []

    async def work(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(number)

    task = asyncio.create_task(together([partial(work, n) for n in range(3)], most=3))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(ended) == [0, 1, 2]


async def test_a_stray_cancellation_is_no_result() -> None:
    async def work() -> int:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await together([work, work], most=2)
