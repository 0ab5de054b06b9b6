"""Whether a connection pooler gives a client a session of its own.

What a run keeps in a session (settings, temporary tables, an advisory lock) would be another
client's next where a pooler gives each transaction the session that is free. No pooler says in
which way it works, so a second connection tries to get the session of the first.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from etl.databases.postgres.connect import Connection

_ROUNDS = 4
"""In a busy pool a client may get the same session several times by chance."""
_QUEUED_S = 0.3
"""After this, a request that has no answer waits in the pooler's queue for a session."""
_MOMENT_S = 0.05


async def has_own_session(connection: Connection) -> bool:
    """Whether a pooled connection has one session for as long as it lives.

    Nothing is set in a session, and the second connection is closed again.
    """
    mine = await session_of(connection)
    other = await connection.open_another()
    asking = asyncio.ensure_future(session_of(other))
    try:
        await asyncio.wait({asking}, timeout=_QUEUED_S)
        if not asking.done():
            kept = await _is_still(connection, mine)
            await asyncio.wait({asking}, timeout=_MOMENT_S)
            if not asking.done():
                # Answered while an older request waits for a session: so not from the queue.
                return kept
        theirs = await asking
        kept = theirs != mine
        # Twice each: a pooler may give the session that was free last, or the one that was first.
        for one, session in ((connection, mine), (other, theirs)) * _ROUNDS:
            kept = kept and await _is_still(one, session) and await _is_still(one, session)
        await other.close()  # in order: a pooler drops the session of a client that is cut off
        return kept
    finally:
        other.terminate()
        await asyncio.gather(asking, return_exceptions=True)


async def _is_still(connection: Connection, session: int) -> bool:
    # In one round trip, which nothing is prepared in: the status tells the number of rows.
    asked = f"SELECT WHERE pg_catalog.pg_backend_pid() = {session:d}"
    return await connection.execute(asked) == "SELECT 1"


async def session_of(connection: Connection) -> int:
    """The process number of the session that a statement gets."""
    pid: int = await connection.fetchval("SELECT pg_catalog.pg_backend_pid()")
    return pid
