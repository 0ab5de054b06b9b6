"""One run of a pipeline at a time: a session advisory lock on a connection of its own.

Only manners: the epoch in the checkpoint is what keeps two runs apart. So a lock whose connection
is lost in the middle of a run is not looked for again, and the run goes on. The server drops the
lock with its session, however that ends; keepalives find a client that is gone in about a minute.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
from dataclasses import dataclass
from time import monotonic

from etl.connector import RunInfo
from etl.databases.postgres.checkpoints import TABLE
from etl.databases.postgres.connect import Connection, close
from etl.databases.postgres.translate import DRIVER_ERRORS
from etl.databases.sql import qualify
from etl.engine.holder import describe, is_alive_here
from etl.errors import AlreadyRunningError

PATIENCE_S = 5.0
"""How long a lock is tried whose holder is not surely alive: a killed run's session lives on for a
moment."""
_POLL_S = 0.1
_RELEASE_S = 1.0

_log = logging.getLogger("etl")

_OWNER = """
SELECT l.pid, a.application_name AS name,
    date_trunc('second', a.backend_start)::text AS since
FROM pg_catalog.pg_locks AS l LEFT JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
    AND l.classid::bigint = $1 AND l.objid::bigint = $2
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Owner:
    """Whose session has the lock, as far as it can be seen.

    Attributes:
        run_id: The run of that session, by its application_name.
        holder: What that run wrote into its checkpoints; None where it has not done so yet.
        text: For a message.
    """

    run_id: str | None
    holder: str | None
    text: str


def control_name(info: RunInfo) -> str:
    """The application_name of the connection that has the lock: it says who holds it."""
    name = f"etl/lock/{info.run_id}/{os.getpid()}@{socket.gethostname()}"
    return name.encode("ascii", "replace").decode()[:63]


async def acquire(connection: Connection, schema: str, info: RunInfo) -> bool:
    """Take the lock of a pipeline; whether this session has it.

    Without it a run goes on too, by the epoch alone: behind a pooler, in a take-over, and
    where this run has it under another name of the database.

    Raises:
        AlreadyRunningError: Another run has it.
    """
    if connection.is_pooled:
        # A lock would stay with a session of the pooler, which nobody could tell to give it back.
        _log.warning(
            "pipeline %r: the target is behind a connection pooler, which keeps no lock: two runs"
            " at once are told apart only by the epoch, and the older one fails",
            info.pipeline,
        )
        return False
    key = _key(schema, info.pipeline)
    deadline = monotonic() + PATIENCE_S
    while True:
        if await connection.fetchval("SELECT pg_catalog.pg_try_advisory_lock($1)", key):
            return True
        owner = await _owner(connection, key, schema, info.pipeline)
        if owner is not None:
            if owner.run_id == info.run_id:
                return False
            if info.take_over:
                _log.warning(
                    "pipeline %r: taking over from %s; it is fenced off, and writes nothing more",
                    info.pipeline,
                    owner.text,
                )
                return False
            if is_alive_here(owner.holder) or monotonic() > deadline:
                raise AlreadyRunningError.told(
                    f"pipeline {info.pipeline!r} is already running: {owner.text}"
                )
        await asyncio.sleep(_POLL_S)


async def release(connection: Connection, *, held: bool) -> None:
    """Give the lock back, and close its connection, in bounded time.

    Given back by a statement: a session that is only closed has it for a moment longer, in which
    the next run would find it taken.
    """
    if held and not connection.is_closed():
        try:
            await connection.execute(
                "SELECT pg_catalog.pg_advisory_unlock_all()", timeout=_RELEASE_S
            )
        except DRIVER_ERRORS:
            connection.terminate()  # the lock goes with the session
    await close(connection)


def _key(schema: str, pipeline: str) -> int:
    """64 bits of a hash that is the same in every process and version.

    Pipelines of one name with checkpoints in different schemas have nothing to do with each other.
    """
    text = f"etl run lock\0{schema}\0{pipeline}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big", signed=True)


async def _owner(connection: Connection, key: int, schema: str, pipeline: str) -> _Owner | None:
    """Who has the lock; None where it was given back meanwhile."""
    row = await connection.fetchrow(_OWNER, (key >> 32) & 0xFFFFFFFF, key & 0xFFFFFFFF)
    if row is None:
        return None
    name = row["name"] or ""
    parts = name.split("/")
    run_id = parts[2] if len(parts) == 4 and parts[:2] == ["etl", "lock"] else None
    session = f"PostgreSQL session {row['pid']}"
    seen = [name] if name else []
    if row["since"]:  # hidden from roles without the right to see it
        seen.append(f"since {row['since']}")
    if seen:
        session += f" ({', '.join(seen)})"
    if run_id is not None:
        holder = await _holder(connection, schema, pipeline, run_id)
        if holder is not None:
            return _Owner(run_id=run_id, holder=holder, text=f"{describe(holder)}, by {session}")
    last = await _holder(connection, schema, pipeline)
    text = f"{session} has its lock"
    if last is not None:
        text += f"; its checkpoints were taken over last by {describe(last)}"
    return _Owner(run_id=run_id, holder=None, text=text)


async def _holder(
    connection: Connection, schema: str, pipeline: str, run_id: str | None = None
) -> str | None:
    """What a run wrote into its checkpoints; without a run, what was written last."""
    table = qualify(schema, TABLE)
    if await connection.fetchval("SELECT pg_catalog.to_regclass($1) IS NULL", table):
        return None
    holder: str | None = await connection.fetchval(
        f"SELECT holder FROM {table} WHERE pipeline = $1 AND holder IS NOT NULL"  # noqa: S608
        " AND ($2::text IS NULL OR run_id = $2) ORDER BY updated_at DESC LIMIT 1",
        pipeline,
        run_id,
    )
    return holder
