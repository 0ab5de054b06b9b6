"""``asyncio.gather`` with a bound, that fails as if the work went on one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from etl.engine.supervise import finish

T = TypeVar("T")


async def bounded_gather(works: Sequence[Callable[[], Awaitable[T]]], *, most: int) -> list[T]:
    """What each piece of work returns, in their order.

    It fails as it would if they went on one after the other: with the error of the first piece
    that has one, whichever fails first. Those behind it are cancelled, those before it go on to
    their end. All are waited for; a cancellation of the caller wins over every error.

    Args:
        most: So many go on at once, begun in order.
    """
    if most == 1 or len(works) < 2:
        return [await work() for work in works]
    gate = asyncio.Semaphore(most)
    tasks: list[asyncio.Task[T]] = []

    async def in_turn(number: int, work: Callable[[], Awaitable[T]]) -> T:
        async with gate:
            try:
                return await work()
            except BaseException:
                cancel(number + 1)
                raise

    def cancel(first: int = 0) -> None:
        for task in tasks[first:]:
            if not task.cancelling():  # a second time would cut its clean-up
                task.cancel()

    tasks += [asyncio.create_task(in_turn(n, work)) for n, work in enumerate(works)]
    try:
        await finish(asyncio.wait(tasks), on_cancel=cancel)
        return [task.result() for task in tasks]
    finally:
        for task in tasks:  # retrieved, or the loop would report those that nobody is told of
            if not task.cancelled():
                task.exception()
