"""Work that blocks, on a thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


async def in_thread(function: Callable[[*Ts], T], *args: *Ts) -> T:
    """Run a function in a thread; a cancellation waits for its end.

    So nothing is closed while a thread works with it, and no function of the user's outlives its
    run.
    """
    work = asyncio.get_running_loop().run_in_executor(None, function, *args)
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        if work.done() and not work.cancelled():
            work.exception()  # retrieved: the cancellation is what happened
        raise
