"""Pieces of work that go on side by side, some at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


async def together(works: Sequence[Callable[[], Awaitable[T]]], *, most: int) -> list[T]:
    """What each piece of work returns, in their order.

    Where one fails the others are cancelled and waited for. Of several errors the one of the first
    piece is raised.

    Args:
        most: So many go on at once, begun in order.
    """
    if most == 1:
        return [await work() for work in works]
    gate = asyncio.Semaphore(most)

    async def in_turn(work: Callable[[], Awaitable[T]]) -> T:
        async with gate:
            return await work()

    tasks: list[asyncio.Task[T]] = []
    try:
        async with asyncio.TaskGroup() as group:
            tasks += [group.create_task(in_turn(work)) for work in works]
    except BaseExceptionGroup:
        errors = (task.exception() for task in tasks if task.done() and not task.cancelled())
        raise next(error for error in errors if error is not None) from None
    return [task.result() for task in tasks]
