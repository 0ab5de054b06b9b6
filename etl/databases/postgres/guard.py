"""The guard around COPY: ends it when the connection is lost or nothing moves any more.

In the middle of a COPY IN, asyncpg waits for "writing allowed", which never comes when the
server has gone; neither its own timeout nor the loss of the connection ends that wait.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import asyncpg

from etl.databases.postgres.connect import Connection
from etl.databases.postgres.liveness import LONGEST_S, LivenessCheck
from etl.databases.postgres.translate import ConnectionLostError

STALL_S = 300.0
"""Longest time without any progress in the middle of a COPY."""
GROUP_S = 600.0
"""For the server's own work on one group after its last byte: indexes, triggers, merging."""


class Watch:
    """The deadline of a guarded block; progress pushes it back."""

    def __init__(self, limit: asyncio.Timeout, check: LivenessCheck) -> None:
        self._limit = limit
        self._check: LivenessCheck | None = check
        self._loop = asyncio.get_running_loop()

    def expect(self, within_s: float) -> None:
        """The next progress must come within this time."""
        if self._check is not None:
            self._check.end()
            self._check = None
        self._limit.reschedule(self._loop.time() + within_s)

    def pause(self) -> None:
        """The other side waits for us, not we for it: no deadline."""
        self._limit.reschedule(None)


@asynccontextmanager
async def guarded(connection: Connection, within_s: float | None = None) -> AsyncGenerator[Watch]:
    """Run a COPY so that it ends when the connection is lost, or when nothing moves in time.

    Args:
        within_s: For the first progress. None: as long as the server works, which may have to sort.

    Raises:
        ConnectionLostError: The connection ended.
        TimeoutError: No progress in time.
    """
    task = asyncio.current_task()
    assert task is not None
    active = True
    lost = was_cut = False

    def on_lost(_: object) -> None:
        nonlocal lost
        if active and not lost:
            lost = True
            # A turn later: where the task waits for the driver, that has an error for it, which
            # tells why the connection was lost.
            asyncio.get_running_loop().call_soon(cut)

    def cut() -> None:
        nonlocal was_cut
        if active:
            was_cut = True
            task.cancel()

    check = LivenessCheck(connection)
    if within_s is None:
        check.begin()
    connection.add_termination_listener(on_lost)
    try:
        async with asyncio.timeout(LONGEST_S if within_s is None else within_s) as limit:
            yield Watch(limit, check)
    except BaseException as error:
        # Other code may have replaced our CancelledError, so the test is on ``lost``.
        if lost:
            if (task.uncancel() if was_cut else task.cancelling()) == 0:
                raise ConnectionLostError(check.lost) from error
            if not isinstance(error, asyncio.CancelledError):
                raise asyncio.CancelledError from error  # cancelled from outside as well
        raise
    else:
        if lost:
            if was_cut:
                task.uncancel()
            raise ConnectionLostError(check.lost)
    finally:
        active = False
        with contextlib.suppress(asyncpg.InterfaceError):
            connection.remove_termination_listener(on_lost)
        await check.aclose()
