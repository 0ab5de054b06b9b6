"""A target that is open for one run: its sessions, and the publication of staging tables."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal

from etl.connector import Advance, Checkpoint, CheckpointKey, RunInfo, Sink
from etl.databases import migrate
from etl.databases.checkpoints import check_unmoved, is_done, parts
from etl.databases.postgres import lock
from etl.databases.postgres.catalogue import find_oids, find_relation
from etl.databases.postgres.checkpoints import Checkpoints
from etl.databases.postgres.connect import (
    Connection,
    application_name,
    connect,
)
from etl.databases.postgres.describe import describe
from etl.databases.postgres.load import Load
from etl.databases.postgres.made import Made, State
from etl.databases.postgres.order import parents_first
from etl.databases.postgres.rejects import publish_rejects
from etl.databases.postgres.session import PostgresSession, commit
from etl.databases.postgres.staging import put_in_place
from etl.databases.postgres.stock import Stock
from etl.databases.postgres.translate import translating
from etl.databases.sessions import leading, notes_of
from etl.databases.sql import qualify
from etl.databases.url import Url
from etl.engine.gather import bounded_gather
from etl.engine.supervise import finish
from etl.errors import ConfigError


@asynccontextmanager
async def open_target(url: Url, info: RunInfo, *, sessions: int) -> AsyncGenerator[PostgresTarget]:
    """See :meth:`etl.connector.Target.open`. Each session opens its own connection when used.

    One more connection has the lock of the pipeline, until every session is closed; for a worker
    process that is one of its run's.

    Raises:
        AlreadyRunningError: Another run has the lock.
    """
    if info.invitation is not None:
        joined = PostgresTarget(
            url,
            info,
            info.invitation["schema"],
            application_name(info, "target"),
            most=max(1, sessions),
        )
        try:
            yield joined
        finally:
            await finish(joined.aclose())
        return
    control = await connect(url, "target", lock.control_name(info))
    held = False
    try:
        with translating("target", url.name):
            schema = await home_schema(control, url)
            held = await lock.acquire(control, schema, info)
            found = await versions(control, schema)
        if migrate.needs_upgrade(found):
            await migrate.upgrade(url)
        target = PostgresTarget(
            url, info, schema, application_name(info, "target"), most=max(1, sessions)
        )
        try:
            yield target
        finally:
            await finish(target.aclose())
    finally:
        await finish(lock.release(control, held=held))


async def home_schema(connection: Connection, url: Url) -> str:
    """The schema of etl's tables, and of new tables without one.

    Raises:
        ConfigError: The user's search_path names no schema that exists.
    """
    schema: str | None = await connection.fetchval("SELECT pg_catalog.current_schema()")
    if schema is None:
        raise ConfigError(
            f"{url.name}: no schema of the user's search_path exists, so etl has no place for its"
            " tables. Nothing was moved; see ALTER ROLE ... SET search_path"
        )
    return schema


async def versions(connection: Connection, schema: str) -> list[str] | None:
    """The rows of the version table; None where there is none."""
    table = qualify(schema, migrate.VERSION_TABLE)
    if await connection.fetchval("SELECT pg_catalog.to_regclass($1) IS NULL", table):
        return None
    rows = await connection.fetch(f"SELECT version_num FROM {table}")  # noqa: S608
    return [row["version_num"] for row in rows]


class PostgresTarget:
    """See :class:`etl.connector.OpenTarget`."""

    # What they make, they make under an advisory lock.
    opens_concurrently: Literal[True] = True

    def __init__(
        self, url: Url, info: RunInfo, schema: str, application: str, *, most: int
    ) -> None:
        """Make a target.

        Args:
            most: So many sessions are at work at once.
        """
        self._url = url
        self._info = info
        self._schema = schema
        self._application = application
        self._most = most
        self._stock = Stock(url, "target", application)
        self._checkpoints = Checkpoints(schema, info)
        self._sessions: list[PostgresSession] = []
        self._staged: set[str] = set()
        self._making = asyncio.Lock()
        self._replaces: tuple[int, list[int]] = (0, [])  # of how many sessions, which tables

    async def session(self, flow: str, sinks: Sequence[Sink[Any]]) -> PostgresSession:
        """See :meth:`etl.connector.OpenTarget.session`."""
        session = PostgresSession(
            self._url,
            self._application,
            self._stock,
            self._checkpoints,
            sinks,
            pipeline=self._info.pipeline,
            flow=flow,
            schema=self._schema,
            replaced=self._replaced,
            staged=self._staged,
            making=self._making,
            each=self._info.publishes_each,
            joins=self._info.invitation is not None,
        )
        self._sessions.append(session)
        return session

    async def invitation(self) -> Mapping[str, Any]:
        """See :class:`etl.connector.Joinable`."""
        return {"schema": self._schema}

    async def publish(self, steps: Sequence[Advance]) -> None:
        """See :meth:`etl.connector.OpenTarget.publish`.

        One transaction: checkpoints first, so that an older run that still lives is fenced
        before a table changes.
        """
        async with self._stock.lent() as connection:
            with translating("target", "publishing", "the old tables are in place"):
                await connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
                moved = [
                    step.key
                    for step in sorted(steps, key=lambda step: parts(step.key))
                    if await self._complete(connection, step)
                ]
                loads = self._loads_of(moved)
                await self._put_in_place(connection, loads)
                await publish_rejects(connection, self._schema, self._info.pipeline, loads)
            await commit(connection, self._url)
            for load in self._loads_of([step.key for step in steps]):
                load.is_published = True

    @property
    def notes(self) -> Mapping[str, Sequence[str]]:
        """See the protocol."""
        return notes_of(self._sessions)

    async def build_flow(self, flow: str) -> None:
        """See :class:`etl.connector.FlowBuilder`. Keys of a new table wait for the others."""
        loads = [
            load
            for session in self._leading
            if session.flow == flow
            for load in session.loads
            if load.staged
        ]
        async with self._stock.lent() as connection:
            for load in loads:
                with translating("target", load.label, "the old table is in place"):
                    await load.build_indexes(connection)
                    if not await load.is_first(connection):
                        place = await load.place(connection)  # a key may refer to its own table
                        await load.build_keys(connection, dict([place] if place else []))

    async def build(self) -> None:
        """See :meth:`etl.connector.OpenTarget.build`: all indexes, then foreign keys.

        Indexes of several tables are made side by side; a foreign key locks two of them.
        """
        loads = [load for session in self._leading for load in session.loads if load.needs_build]
        if not loads:
            return
        async with self._stock.lent() as connection:
            with translating("target", "finishing the tables", "the old tables are in place"):
                await self._describe(connection, loads)
        await bounded_gather(
            [partial(self._build_indexes, load) for load in loads], most=self._most
        )
        found = await bounded_gather(
            [partial(self._place, load) for load in loads], most=self._most
        )
        places = dict(filter(None, found))
        keys = [partial(self._build_keys, load, places) for load in loads]
        await bounded_gather(keys, most=self._most)

    async def _build_indexes(self, load: Load) -> None:
        async with self._stock.lent() as connection:
            with translating("target", load.label, "the old tables are in place"):
                await load.build_indexes(connection)

    async def _place(self, load: Load) -> tuple[tuple[str, str], str] | None:
        async with self._stock.lent() as connection:
            with translating("target", load.label, "the old tables are in place"):
                return await load.place(connection)

    async def _build_keys(self, load: Load, places: Mapping[tuple[str, str], str]) -> None:
        async with self._stock.lent() as connection:
            with translating("target", load.label, "the old tables are in place"):
                await load.build_keys(connection, places)

    async def _describe(self, connection: Connection, loads: Sequence[Load]) -> None:
        """Look at all tables that are replaced at once: it takes many queries, however many."""
        names = {load.sink.table for load in loads if load.renames}
        described = await describe(connection, await find_oids(connection, sorted(names)))
        for load in loads:
            load.described = described

    async def confirm(self, checkpoints: Mapping[CheckpointKey, Checkpoint]) -> None:
        """See :class:`etl.connector.Confirming`."""
        with translating("target", "looking at the checkpoints at the end"):
            async with self._stock.lent() as connection:
                found = await self._checkpoints.load_all(connection)
        check_unmoved(checkpoints, found)

    async def _put_in_place(self, connection: Connection, loads: Sequence[Load]) -> None:
        """Rename what is renamed, all together; pour the others, parents before children."""
        with translating("target", "publishing", "the old tables are in place"):
            await self._describe(connection, loads)
            swaps = [await load.swap(connection) for load in loads]
            poured = [load for load, swap in zip(loads, swaps, strict=True) if swap is None]
            staged = [await find_relation(connection, load.staging_table) for load in poured]
            await put_in_place(
                connection,
                [swap for swap in swaps if swap is not None],
                [one for one in staged if one is not None],
            )
            ordered = await self._parents_first(connection, poured)
        await connection.execute("SET CONSTRAINTS ALL DEFERRED")
        for load in reversed(ordered):
            with translating("target", load.label, "the old tables are in place"):
                await load.pour(connection, empties=True)
        for load in ordered:
            with translating("target", load.label, "the old tables are in place"):
                await load.pour(connection, empties=False)
        placed: dict[str, State] = {}
        for load in loads:
            placed |= load.placed
        await Made(self._schema, self._info.pipeline).record(connection, placed)

    async def _parents_first(self, connection: Connection, loads: Sequence[Load]) -> list[Load]:
        by_table: dict[int, Load] = {}
        others: list[Load] = []
        for load in loads:
            final = await load.find_final(connection)
            if final is None or final.oid in by_table:
                others.append(load)  # several flows append to one table: any order will do
            else:
                by_table[final.oid] = load
        return [*await parents_first(connection, by_table), *others]

    async def _complete(self, connection: Connection, step: Advance) -> bool:
        """Complete a checkpoint; False where an earlier attempt has done so."""
        if await self._is_published(connection, step):
            return False
        await self._checkpoints.advance(connection, step)
        return True

    async def _is_published(self, connection: Connection, step: Advance) -> bool:
        found = await self._checkpoints.load(connection, [step.key], lock=True)
        return is_done(found.get(step.key), step)

    def _loads_of(self, keys: Sequence[CheckpointKey]) -> list[Load]:
        wanted = {(key.flow, key.sink) for key in keys}
        loads = [
            load
            for session in self._leading
            for load in session.loads
            if load.staged and (load.flow, load.sink.table) in wanted
        ]
        return sorted(loads, key=lambda load: load.sink.table)

    @property
    def _leading(self) -> list[PostgresSession]:
        return leading(self._sessions)

    async def _replaced(self, connection: Connection) -> list[int]:
        """The tables that are replaced, all in one transaction, as they were at first."""
        if self._info.publishes_each:
            return []
        known, oids = self._replaces
        if known != len(self._sessions):
            names = {
                load.sink.table
                for session in self._sessions
                for load in session.loads
                if load.sink.mode == "replace"
            }
            oids = await find_oids(connection, sorted(names))
            self._replaces = (len(self._sessions), oids)
        return oids

    async def aclose(self) -> None:
        """Close every session's connection."""
        for session in self._sessions:
            await session.aclose()
        await self._stock.aclose()
