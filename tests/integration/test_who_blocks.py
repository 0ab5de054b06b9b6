"""A run that is held up in a database names who holds it up."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing

import pytest

from etl import Database, Limits, Pipeline, Retry
from etl.databases.postgres import blockers, connect
from etl.errors import PipelineFailedError
from etl.events import Event, Note
from etl.testing import MemorySource
from tests.integration.postgres_kit import run_sql, sql
from tests.integration.sqlite_kit import path_of, script

GUARD_S = 30
ROWS = [{"id": number} for number in range(3)]


async def test_a_stall_names_the_postgres_session_that_has_the_lock(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (id bigint PRIMARY KEY)")
    told = asyncio.Event()
    notes: list[str] = []

    def observe(event: Event) -> None:
        if isinstance(event, Note) and "session" in event.message:
            notes.append(event.message)
            told.set()

    held = asyncio.Event()

    async def late(rows: Sequence[dict[str, int]]) -> Sequence[dict[str, int]]:
        await held.wait()  # by then the run has looked at its table
        return rows

    flow = MemorySource(ROWS).map_batches(late).into(Database(postgres_url).append("t"))
    pipeline = Pipeline("held up", flow, limits=Limits(stall_after_s=0.2))
    async with asyncio.timeout(GUARD_S), sql(postgres_url) as other:
        run = await pipeline.start(observers=[observe])
        await other.execute("SET application_name = 'a migration'; BEGIN; LOCK TABLE t")
        await other.execute("/* s3cr3t */ SELECT 1")
        held.set()
        await told.wait()
        await other.execute("ROLLBACK")
        await run.wait()

    pid = other.get_server_pid()
    assert "lane of flow" in notes[0]
    assert f"session {pid} (a migration, idle in transaction, its query began 20" in notes[0]
    assert "s3cr3t" not in notes[0]
    async with sql(postgres_url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM t") == len(ROWS)


async def test_a_lock_that_is_waited_for_too_long_is_told_with_its_session(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockers, "ASK_AFTER_S", 0.1)
    monkeypatch.setitem(connect.SETTINGS, "lock_timeout", "1500ms")
    await run_sql(
        postgres_url,
        "CREATE TABLE t (id bigint PRIMARY KEY, n bigint); INSERT INTO t VALUES (1, 1)",
    )
    rows = [{"id": 1, "n": 2}]
    sink = Database(postgres_url).upsert("t", key=["id"])
    pipeline = Pipeline("held up", MemorySource(rows).into(sink), retry=Retry(attempts=1))
    async with asyncio.timeout(GUARD_S), sql(postgres_url) as other:
        await other.execute("BEGIN; UPDATE t SET n = 3")  # a row's lock: no table tells of it
        with pytest.raises(PipelineFailedError) as failure:
            await pipeline.run()
        await other.execute("ROLLBACK")
    text = str(failure.value)
    assert "another session holds a lock for too long" in text
    assert f"session {other.get_server_pid()} (" in text


async def test_a_stall_names_the_sqlite_file_that_another_process_writes(sqlite_url: str) -> None:
    script(sqlite_url, "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY)")
    told = asyncio.Event()
    notes: list[str] = []

    def observe(event: Event) -> None:
        if isinstance(event, Note) and "nothing has moved" in event.message:
            notes.append(event.message)
            if "write lock" in event.message:
                told.set()

    held = asyncio.Event()

    async def late(rows: Sequence[dict[str, int]]) -> Sequence[dict[str, int]]:
        await held.wait()
        return rows

    flow = MemorySource(ROWS).map_batches(late).into(Database(sqlite_url).append("t"))
    pipeline = Pipeline("held up", flow, limits=Limits(stall_after_s=0.2))
    path = path_of(sqlite_url)
    async with asyncio.timeout(GUARD_S):
        run = await pipeline.start(observers=[observe])
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            held.set()
            await told.wait()
            other.execute("ROLLBACK")
        await run.wait()
    assert f"another process holds the write lock of {path}" in notes[-1]
