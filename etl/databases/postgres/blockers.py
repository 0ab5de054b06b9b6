"""Names the sessions that hold a session of ours up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from etl.databases.postgres.connect import connected
from etl.databases.url import Url
from etl.engine.supervise import finish
from etl.errors import EtlError, TransientError

ASK_AFTER_S = 4.0
"""A statement that takes longer may wait for a lock; shorter than ``lock_timeout``."""
_ASK_S = 5.0

# Roles without the right to see others' sessions get their numbers only. Sessions of one run wait
# for each other as well, so those are told that wait for nobody; all, where they wait in a circle.
_BLOCKERS = """
WITH RECURSIVE ahead (pid, waits) AS (
    SELECT b.pid, pg_catalog.cardinality(pg_catalog.pg_blocking_pids(b.pid)) > 0
    FROM pg_catalog.unnest(pg_catalog.pg_blocking_pids($1)) AS b (pid)
    UNION
    SELECT b.pid, pg_catalog.cardinality(pg_catalog.pg_blocking_pids(b.pid)) > 0
    FROM ahead, pg_catalog.unnest(pg_catalog.pg_blocking_pids(ahead.pid)) AS b (pid)
)
SELECT b.pid, a.application_name AS name, a.state,
    to_char(a.query_start AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') AS since
FROM (SELECT DISTINCT pid FROM ahead WHERE NOT waits OR NOT EXISTS (
    SELECT FROM ahead WHERE NOT waits)) AS b
LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = b.pid
ORDER BY a.query_start NULLS LAST
LIMIT 3
"""


async def blockers_of(url: Url, application: str, pid: int) -> str | None:
    """The sessions that a server process waits for in the end, oldest first; None: for none."""
    async with asyncio.timeout(_ASK_S), connected(url, "target", application) as connection:
        rows = await connection.fetch(_BLOCKERS, pid)
    found: list[str] = []
    for row in rows:
        if row["pid"] == 0:
            found.append("a prepared transaction (pg_prepared_xacts)")
            continue
        parts = [part for part in (_printable(row["name"] or ""), row["state"]) if part]
        if row["since"]:
            parts.append(f"its query began {row['since']} UTC")
        found.append(f"session {row['pid']}" + (f" ({', '.join(parts)})" if parts else ""))
    return f"{url.name}: {' and '.join(found)} holds the lock" if found else None


@asynccontextmanager
async def naming_blockers(ask: Callable[[], Awaitable[str | None]]) -> AsyncGenerator[None]:
    """While a statement takes long, find out who blocks it; its failure then says so.

    When the statement has failed it waits no more, and nobody can tell who it waited for.
    """
    found: list[str] = []
    asking: list[asyncio.Task[None]] = []

    async def find() -> None:
        with suppress(EtlError, TimeoutError):  # it is only a help
            found.extend(filter(None, [await ask()]))

    def begin() -> None:
        asking.append(asyncio.create_task(find(), name="etl:who holds the lock"))

    timer = asyncio.get_running_loop().call_later(ASK_AFTER_S, begin)
    try:
        yield
    except TransientError as error:
        if found:
            raise type(error)(f"{error}. {found[0]}") from error.__cause__
        raise
    finally:
        timer.cancel()
        for task in asking:
            task.cancel()
            await finish(asyncio.wait({task}))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)
