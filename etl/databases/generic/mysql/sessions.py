"""Sessions of MySQL: settings, the lock of a run, and which transactions are open."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import secrets
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

from etl.connector import RunInfo
from etl.databases.generic.mysql.base import Base
from etl.databases.generic.mysql.errors import classified
from etl.engine.holder import describe, is_alive_here
from etl.errors import AlreadyRunningError, ErrorClass, EtlError, SourceUnavailableError

if TYPE_CHECKING:
    from etl.databases.generic.connect import Connection

PATIENCE_S = 5.0
"""How long a lock is tried whose holder is not surely alive: a killed run's session lives on for a
moment."""
_POLL_S = 0.1
_STALE_S = 0.12
"""So long InnoDB must be left alone until it looks for transactions anew."""
_FRESH_S = 15.0
"""How long that is tried."""

_STATEMENT = 1 << 20
"""Somewhat more than the driver puts into one INSERT of many rows, whatever the server takes."""

_log = logging.getLogger("etl")

# Strict, so that nothing is cut in silence; 0 stays 0 in a numbered column; dates that only this
# server allows stay as they are. Nothing else, so that SQL means the same on every server.
_SETTINGS = (
    "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES,"
    "ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION', time_zone = '+00:00',"
    # A reader waits while its flow is full, and a target's session while it waits for rows.
    " net_write_timeout = 86400, net_read_timeout = 600, wait_timeout = 86400,"
    " lock_wait_timeout = 60, innodb_lock_wait_timeout = 30,"
    # What bends a value is refused before it is sent, or an error of the strict mode. The rest
    # ("unknown table" of a DROP IF EXISTS) would be logged by the driver.
    " sql_notes = 0, max_error_count = 0"
)


class Sessions(Base):
    """See :class:`etl.databases.generic.dialect.Dialect`."""

    async def set_up(self, connection: Connection) -> None:
        """See the class."""
        found = await connection.fetch(
            "SELECT TIMESTAMPDIFF(SECOND, UTC_TIMESTAMP(), NOW()), @@max_allowed_packet,"
            " CONNECTION_ID()"
        )
        offset, packet, session = map(int, found[0])
        connection.limits.update(offset_s=round(offset / 60) * 60, packet=packet)
        connection.session = session
        await connection.execute(_SETTINGS)
        if packet < _STATEMENT:
            connection.before_each(lambda cursor: _bound(cursor, packet))

    def transport(self, driver: Any) -> asyncio.Transport | None:
        """See the class: asyncmy's receive buffer grows as long as the server sends."""
        found = getattr(driver, "_transport", None)
        # Those of uvloop are no subclasses of asyncio's.
        is_transport = hasattr(found, "pause_reading") and hasattr(found, "abort")
        return cast("asyncio.Transport", found) if is_transport else None

    async def open_snapshot(self, connection: Connection) -> None:
        """See the class."""
        await connection.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")

    async def end(self, connection: Connection, session: int) -> None:
        """See the class."""
        with suppress(EtlError):  # it has ended by itself
            await connection.execute(f"KILL CONNECTION {session:d}", timeout_s=5)

    async def blocked_by(self, connection: Connection, session: int) -> str | None:
        """See the class. The tables of locks need a right that few users have."""
        with suppress(EtlError):
            rows = await connection.fetch(
                "SELECT b.trx_mysql_thread_id, b.trx_state, b.trx_started"
                " FROM information_schema.innodb_lock_waits AS w"
                " JOIN information_schema.innodb_trx AS r ON r.trx_id = w.requesting_trx_id"
                " JOIN information_schema.innodb_trx AS b ON b.trx_id = w.blocking_trx_id"
                " WHERE r.trx_mysql_thread_id = :etl_0 LIMIT 1",
                {"etl_0": session},
            )
            if rows:
                number, state, since = rows[0]
                return f"MySQL session {number} ({str(state).lower()}, transaction since {since})"
        return None

    async def lock(self, connection: Connection, info: RunInfo) -> str | None:
        """See the class: a lock of the session's own, by GET_LOCK."""
        name = await self._lock_name(connection, info.pipeline)
        deadline = monotonic() + PATIENCE_S
        while True:
            got = await connection.value("SELECT GET_LOCK(:etl_0, 0)", {"etl_0": name})
            if got == 1:
                return None
            if got is None:
                return "the server gives no locks"
            session = await connection.value("SELECT IS_USED_LOCK(:etl_0)", {"etl_0": name})
            holder = await self._holder(connection, info.pipeline)
            who = f"MySQL session {session} has its lock"
            if holder is not None:
                who = f"{describe(holder)}, by MySQL session {session}"
            if info.take_over:
                _log.warning(
                    "pipeline %r: taking over from %s; it is fenced off, and writes nothing more",
                    info.pipeline,
                    who,
                )
                return "it was taken over"
            is_held = session is not None and is_alive_here(holder)
            if is_held or monotonic() > deadline:
                raise AlreadyRunningError.told(
                    f"pipeline {info.pipeline!r} is already running: {who}"
                )
            await asyncio.sleep(_POLL_S)

    async def unlock(self, connection: Connection) -> None:
        """See the class. Given back by a statement: a session that is closed lives on a moment."""
        with suppress(EtlError):
            await connection.execute("DO RELEASE_ALL_LOCKS()", timeout_s=1)

    async def _lock_name(self, connection: Connection, pipeline: str) -> str:
        """A lock's name is the server's, so it holds the database."""
        database = await connection.value("SELECT DATABASE()")
        text = f"etl run lock\0{database}\0{pipeline}".encode("utf-8", "surrogatepass")
        return "etl_" + hashlib.sha256(text).hexdigest()[:40]

    async def _holder(self, connection: Connection, pipeline: str) -> str | None:
        """What the run that took the pipeline over last wrote into its checkpoints."""
        with suppress(EtlError):
            found = await connection.value(
                "SELECT holder FROM etl_checkpoint WHERE pipeline = :etl_0 AND holder IS NOT NULL"
                " ORDER BY updated_at DESC LIMIT 1",
                {"etl_0": pipeline},
            )
            await connection.rollback()
            return None if found is None else str(found)
        return None

    async def sees_transactions(self, connection: Connection) -> str | None:
        """See the class."""
        try:
            await connection.value("SELECT COUNT(*) FROM information_schema.innodb_trx")
        except EtlError:
            return "the user may not see others' transactions (GRANT PROCESS)"
        if await connection.value("SELECT @@GLOBAL.read_only"):
            return (
                "the source is read-only (a replica), which does not show the transactions of its"
                " primary"
            )
        return None

    async def clock(self, connection: Connection) -> datetime:
        """See the class."""
        found = await connection.value("SELECT CAST(UTC_TIMESTAMP(6) AS CHAR)")
        return datetime.fromisoformat(found).replace(tzinfo=UTC)

    async def oldest_transaction(self, connection: Connection) -> datetime | None:
        """See the class. The server tells whole seconds."""
        ages = [age for _, age in await self._transactions(connection)]
        if not ages:
            return None
        return await self.clock(connection) - timedelta(seconds=max(ages) + 1)

    async def open_transactions(self, connection: Connection) -> Sequence[str]:
        """See the class."""
        return [name for name, _ in await self._transactions(connection)]

    async def _transactions(self, connection: Connection) -> Sequence[tuple[str, int]]:
        """The other sessions' open transactions: what identifies each, and its age in seconds.

        InnoDB answers from a copy, which it makes anew only when nobody has looked at it for 0.1 s;
        where several look, of whatever session, it may be as old as it likes. A copy that holds the
        statement that asks was made for it.

        Raises:
            SourceUnavailableError: There was no new copy in time.
        """
        await connection.rollback()
        await connection.execute("SET SESSION time_zone = 'SYSTEM'")  # in which starts are told
        await connection.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY")
        try:
            return await self._looked_up(connection)
        finally:
            if connection.is_open:
                await connection.rollback()
                await connection.execute("SET SESSION time_zone = '+00:00'")

    async def _looked_up(self, connection: Connection) -> Sequence[tuple[str, int]]:
        end = monotonic() + _FRESH_S
        pause_s = _STALE_S
        while True:
            mark = secrets.token_hex(8)
            rows = await connection.fetch(
                "SELECT CONCAT(trx_id, ' ', trx_mysql_thread_id, ' ', trx_started),"
                " TIMESTAMPDIFF(SECOND, trx_started, NOW()),"
                " trx_mysql_thread_id = CONNECTION_ID(),"
                " COALESCE(LOCATE(:etl_0, trx_query), 0) > 0"
                " FROM information_schema.innodb_trx",
                {"etl_0": mark},  # the driver puts it into the text of the statement
            )
            if any(is_own and is_asking for _, _, is_own, is_asking in rows):
                return [(str(name), int(age)) for name, age, is_own, _ in rows if not is_own]
            if monotonic() > end:
                raise SourceUnavailableError(
                    f"{connection.where}: other sessions look at information_schema.innodb_trx so"
                    " often that it shows nothing new, so rows that commit late could be missed."
                    " Nothing was moved; run again"
                )
            # Longer each time and of any length, so that readers do not keep each other from it.
            await asyncio.sleep(pause_s * (1 + random.random()))
            pause_s *= 1.3

    def classify(self, error: BaseException) -> tuple[ErrorClass, str]:
        """See the class."""
        return classified(error)


def _bound(cursor: Any, packet: int) -> None:
    """Let an INSERT of many rows fit into a packet; so much of it is not the statement."""
    driver = getattr(cursor, "_cursor", None)
    if hasattr(driver, "max_stmt_length"):
        cast("Any", driver).max_stmt_length = packet - 64
