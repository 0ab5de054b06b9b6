"""A database that the readers of one run read from: what they have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from etl.connector import RunInfo
from etl.databases.postgres.blockers import blockers_of, naming_blockers
from etl.databases.postgres.catalogue import Relation
from etl.databases.postgres.connect import Connection, application_name, close
from etl.databases.postgres.stock import Stock
from etl.databases.postgres.translate import translating
from etl.databases.url import Url
from etl.engine.supervise import finish

_WHERE = "locking the tables that are to be read at one instant"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An instant of the database.

    Attributes:
        name: What the server calls it, for ``SET TRANSACTION SNAPSHOT``.
        number: 1 for the first of a run; a later one stands for one that was lost.
    """

    name: str
    number: int


class Origin:
    """The connections of one run for reading from one database, and the instant that it reads.

    A connection of its own, the holder, exports its snapshot and stays in that transaction until
    the reads have ended. It locks all tables (ACCESS SHARE) before it takes the snapshot: a table
    that somebody empties by TRUNCATE or rewrites after it would look empty in it.
    """

    def __init__(self, url: Url, info: RunInfo) -> None:
        self._application = application_name(info, "source")
        self.stock = Stock(url, "source", self._application)
        self._url = url
        self._tables: dict[int, str] = {}
        self._holder: Connection | None = None
        self._snapshot: Snapshot | None = None
        self._is_joined = False  # another process holds the snapshot
        self._taking = asyncio.Lock()

    def will_read(self, relation: Relation) -> None:
        """Note a table that is to be locked with the snapshot."""
        if relation.is_table:
            self._tables[relation.oid] = relation.qualified

    async def snapshot(self, lost: Snapshot | None = None) -> Snapshot:
        """The instant that the reads of this run share; taken when it is first asked for.

        Args:
            lost: One that the server does not know any more.
        """
        async with self._taking:
            holder = self._holder
            is_held = self._is_joined or (holder is not None and not holder.is_closed())
            if not is_held or lost == self._snapshot:
                await self._release()
                self._snapshot, self._is_joined = await self._take(), False
            assert self._snapshot is not None
            return self._snapshot

    def join(self, snapshot: Snapshot) -> None:
        """Read at the instant of the run whose worker process this is.

        The run holds it. Where the server does not know it any more, this process takes a later
        one of its own.
        """
        if self._snapshot is None:
            self._snapshot, self._is_joined = snapshot, True

    async def _take(self) -> Snapshot:
        connection = await self.stock.get()
        ask = partial(blockers_of, self._url, self._application, connection.get_server_pid())
        try:
            async with naming_blockers(ask):
                with translating("source", _WHERE, "the source was not changed"):
                    name = await self._export(connection)
        except BaseException:
            await finish(close(connection))
            raise
        self._holder = connection
        number = self._snapshot.number + 1 if self._snapshot is not None else 1
        return Snapshot(name, number)

    async def _export(self, connection: Connection) -> str:
        # It waits for the reads, however long they take.
        await connection.execute("SET idle_in_transaction_session_timeout = 0")
        rows = await connection.fetch(
            # A user who may read some columns only may not lock the table.
            "SELECT oid FROM unnest($1::bigint[]) AS oid"
            " WHERE pg_catalog.has_table_privilege(oid::oid, 'SELECT')",
            list(self._tables),
        )
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        if rows:
            names = ", ".join(self._tables[row["oid"]] for row in rows)
            await connection.execute(f"LOCK TABLE {names} IN ACCESS SHARE MODE")
        name: str = await connection.fetchval("SELECT pg_catalog.pg_export_snapshot()")
        return name

    async def _release(self) -> None:
        holder, self._holder = self._holder, None
        if holder is not None:
            await finish(close(holder))

    async def aclose(self) -> None:
        """Close what waits: the reads have ended."""
        await self._release()
        await self.stock.aclose()


@asynccontextmanager
async def open_origin(url: Url, info: RunInfo) -> AsyncGenerator[Origin]:
    """For the length of a run; connects to nothing."""
    origin = Origin(url, info)
    try:
        yield origin
    finally:
        await finish(origin.aclose())
