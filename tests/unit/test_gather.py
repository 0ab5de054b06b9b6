"""Work that goes on side by side: bounded, in order, and nothing left behind by a failure."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from etl.engine.gather import bounded_gather


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

    assert await bounded_gather([partial(work, n) for n in range(20)], most=most) == list(range(20))
    assert highest == min(most, 20)


@pytest.mark.parametrize("first", [1, 2, 3])
async def test_it_fails_as_one_after_the_other_would(first: int) -> None:
    """The error is that of the first piece that has one, whichever of them fails first."""
    failing = asyncio.Event()
    begun: list[int] = []
    ended: list[int] = []

    async def work(number: int) -> None:
        begun.append(number)
        try:
            if number == 0:
                await failing.wait()
            elif number in {1, 2, 3}:
                for _ in range((number - first) % 3):
                    await asyncio.sleep(0)
                failing.set()
                raise ValueError(number) from KeyError("why")
            else:
                await asyncio.Event().wait()
        finally:
            ended.append(number)

    with pytest.raises(ValueError, match="1") as error:
        await bounded_gather([partial(work, n) for n in range(10)], most=5)
    assert isinstance(error.value.__cause__, KeyError)
    assert sorted(ended) == sorted(begun)
    assert len(begun) < 10


async def test_a_cancellation_wins_over_the_errors_that_it_brings_about() -> None:
    async def work(number: int) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError(number) from None

    task = asyncio.create_task(bounded_gather([partial(work, n) for n in range(3)], most=3))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_cancellation_ends_all() -> None:
    ended: list[int] = []

    async def work(number: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(number)

    task = asyncio.create_task(bounded_gather([partial(work, n) for n in range(3)], most=3))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(ended) == [0, 1, 2]


async def test_a_stray_cancellation_is_no_result() -> None:
    async def work() -> int:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await bounded_gather([work, work], most=2)
