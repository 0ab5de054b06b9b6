"""Waits for statements that take as long as the data is large, but not for ever.

TCP finds a peer that is dead. It does not find one that is alive and says nothing: a proxy that
lost its server, a server that is frozen. So after a while another connection asks whether the
session is still at work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from etl.databases.postgres.connect import Connection, close
from etl.databases.postgres.translate import DRIVER_ERRORS, ConnectionLostError
from etl.engine.supervise import finish
from etl.errors import classify

T = TypeVar("T")

LONGEST_S = 7 * 24 * 3600.0
"""For one statement, whatever its server says."""
FIRST_S = 60.0
"""After how long the server is asked for the first time."""
AGAIN_S = 20.0
ASK_S = 15.0
"""Longest wait for its answer."""
ENOUGH = 12
"""Doubts in a row, by which the session is given up."""
_DENIED, _NO_ANSWER = 4, 1
"""What an answer counts; a server may be too busy to give one."""

# A session that waits for us, or cannot get rid of the result, is one whose answer was lost.
_ASK = """
SELECT a.pid IS NULL OR a.state LIKE 'idle%' OR coalesce(a.wait_event_type = 'Client', false)
FROM (SELECT) AS one LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = $1
"""


class LivenessCheck:
    """Cuts a connection that waits for an answer that nobody works on.

    Not behind a pooler: it gives sessions numbers of its own, and may have none left to ask by.

    Args:
        connection: It runs one statement between ``begin`` and ``end``.

    Attributes:
        lost: Why it was cut, or an empty text.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.Task[None] | None = None
        self.lost = ""

    def begin(self) -> None:
        """From now on it may take long."""
        if self._connection.is_pooled:
            return
        self._timer = asyncio.get_running_loop().call_later(FIRST_S, self._start)

    def end(self) -> None:
        """The answer has come, or begun to come."""
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None:
            self._asking.cancel()

    async def aclose(self) -> None:
        """End, and wait for the end of what still asks."""
        self.end()
        if self._asking is not None:
            await finish(asyncio.wait({self._asking}))

    def _start(self) -> None:
        self._asking = asyncio.create_task(self._ask(), name="etl:is the server still at work")

    async def _ask(self) -> None:
        doubts = 0
        while True:
            doubt = await self._doubt()
            doubts = doubts + doubt if doubt else 0
            if doubts >= ENOUGH:
                self.lost = "its server does not answer, or works on the statement no more"
                self._connection.terminate()
                return
            await asyncio.sleep(AGAIN_S)

    async def _doubt(self) -> int:
        try:
            async with asyncio.timeout(ASK_S):
                another = await self._connection.open_another()
                try:
                    number = self._connection.get_server_pid()
                    return _DENIED if await another.fetchval(_ASK, number) else 0
                finally:
                    await finish(close(another))
        except DRIVER_ERRORS as error:
            # One that takes no more connections, or no user of this name any more, is at work.
            return _NO_ANSWER if classify(error) in {"lost", "not_ready", "unknown"} else 0


async def run_long(call: Callable[..., Awaitable[T]], sql: str, *arguments: Any) -> T:
    """Run a statement by a connection's method, as long as the server works on it.

    Args:
        call: ``connection.execute``, ``fetch``, ``fetchrow`` or ``fetchval``.

    Raises:
        ConnectionLostError: Its answer was lost.
    """
    check = LivenessCheck(cast("Connection", getattr(call, "__self__")))  # noqa: B009
    check.begin()
    try:
        return await call(sql, *arguments, timeout=LONGEST_S)
    except DRIVER_ERRORS as error:
        if check.lost:
            raise ConnectionLostError(check.lost) from error
        raise
    finally:
        await check.aclose()
