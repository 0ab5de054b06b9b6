"""What the fault tests share: a copy of one table in many small transactions, and how it may end.

Under any fault a run ends equal, or fails cleanly as a passing condition (exit code 75); at any
moment the target holds the rows up to the recorded position; the next run makes it equal. The
target has no key, so that a row that came twice is seen.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import asyncpg
import pytest

from etl import Database, Limits, Pipeline, Report, Retry
from etl.databases.postgres import connect, copying, guard, load, reader, session
from etl.errors import EXIT_TEMPORARY, PipelineFailedError, TransientError, exit_code_of
from etl.events import Observer
from etl.flow import Flow

T = TypeVar("T")

GUARD_S = 45.0
"""Only a guard against hanging: every run here ends much sooner."""
ROWS = 500
QUICK = Retry(attempts=4, base_s=0.02, cap_s=0.1, total_s=20.0)
SMALL = Limits(batch_rows=30, batch_bytes="8KiB", group_rows=60, channel_batches=2)
NAME = "under fault"


@dataclass(frozen=True, slots=True)
class Item:
    id: int
    kind: str
    amount: int
    filler: str


@dataclass(frozen=True, slots=True)
class Total:
    kind: str
    items: int
    amount: int


def to_total(item: Item) -> Total:
    return Total(item.kind, 1, item.amount)


@asynccontextmanager
async def sql(url: str) -> AsyncGenerator[Any]:
    """A plain connection, past any proxy."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def make_source(url: str, rows: int = ROWS) -> None:
    async with sql(url) as connection:
        await connection.execute(
            "CREATE TABLE items (id bigint PRIMARY KEY, kind text NOT NULL, amount bigint NOT"
            " NULL, filler text NOT NULL)"
        )
        await connection.execute(
            "INSERT INTO items SELECT n, 'kind ' || n % 7, n * 3, repeat('x', 100)"
            f" FROM generate_series(1, {rows}) AS n"
        )


async def make_target(url: str) -> None:
    """The tables that rows are added to: without a key, so that doubles show."""
    async with sql(url) as connection:
        await connection.execute(
            "CREATE TABLE copies (id bigint, kind text, amount bigint, filler text);"
            "CREATE TABLE totals (kind text PRIMARY KEY, items bigint NOT NULL,"
            " amount bigint NOT NULL)"
        )


def copy(
    source: str, target: str, mode: str = "append", *, retry: Retry = QUICK, limits: Limits = SMALL
) -> Pipeline:
    """The pipeline under fault."""
    # A full read that ended would be added up once more by the next run.
    cursor = ("id",) if mode == "add" else ()
    items = Database(source).table("items", row=Item, cursor=cursor)
    into = Database(target)
    flow: Flow
    match mode:
        case "append":
            flow = items.into(into.append("copies"))
        case "add":
            flow = items.map(to_total).into(
                into.upsert("totals", key=("kind",), add=("items", "amount"))
            )
        case "replace":
            flow = items.into(into.replace("copies"))
        case _:
            raise ValueError(mode)
    return Pipeline(NAME, flow, retry=retry, limits=limits)


async def bounded(work: Awaitable[T], within_s: float = GUARD_S) -> T:
    """The result of some work that must not hang, not even when it is cancelled."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait({task}, timeout=within_s)
    if not done:
        task.cancel()
        await asyncio.wait({task}, timeout=5)
        pytest.fail(f"hung: not ended after {within_s} s")
    return task.result()


async def end_of(
    pipeline: Pipeline, *, within_s: float = GUARD_S, observers: tuple[Observer, ...] = ()
) -> EtlEnd:
    """Run it under a fault: its report, or the clean failure that it may end with."""
    try:
        return await bounded(pipeline.run(observers=observers), within_s)
    except (TransientError, PipelineFailedError) as error:
        assert_clean(error)
        return error


def assert_clean(error: TransientError | PipelineFailedError) -> None:
    """A passing condition, told as one."""
    if isinstance(error, PipelineFailedError):
        assert error.retryable, [repr(one) for one in error.errors]
    assert exit_code_of(error) == EXIT_TEMPORARY


EtlEnd = Report | TransientError | PipelineFailedError


async def copied(target: str) -> list[int]:
    async with sql(target) as connection:
        return [row["id"] for row in await connection.fetch("SELECT id FROM copies ORDER BY id")]


async def assert_prefix(target: str) -> int:
    """Seen from outside: the rows up to the recorded position, each once. How many."""
    async with sql(target) as connection, connection.transaction(isolation="repeatable_read"):
        ids = [row["id"] for row in await connection.fetch("SELECT id FROM copies ORDER BY id")]
        position = None
        if await connection.fetchval("SELECT to_regclass('etl_checkpoint') IS NOT NULL"):
            position = await connection.fetchval("SELECT position FROM etl_checkpoint")
    upto = int(json.loads(position)[0]) if position else 0
    assert ids == list(range(1, upto + 1))
    return upto


async def assert_exact(target: str, mode: str = "append", rows: int = ROWS) -> None:
    """The target of a complete run."""
    if mode != "add":
        assert await copied(target) == list(range(1, rows + 1))
        return
    async with sql(target) as connection:
        found = await connection.fetch("SELECT kind, items, amount FROM totals ORDER BY kind")
    expected = {f"kind {k}": [n for n in range(1, rows + 1) if n % 7 == k] for k in range(7)}
    assert [tuple(row) for row in found] == [
        (kind, len(ids), 3 * sum(ids)) for kind, ids in sorted(expected.items())
    ]


def shorten_waits(patch: pytest.MonkeyPatch, seconds: float = 1.0) -> None:
    """Make the driver's limits short: with the real ones these tests would wait for minutes."""
    patch.setattr(connect, "CONNECT_S", seconds)
    patch.setattr(connect, "COMMAND_S", seconds)
    patch.setattr(connect, "CLOSE_S", seconds / 2)
    patch.setattr(connect, "_PATIENCE_S", seconds)
    patch.setattr(session, "COMMIT_S", seconds)
    patch.setattr(session, "ROLLBACK_S", seconds / 2)
    for module in (guard, copying, reader):
        patch.setattr(module, "STALL_S", seconds)
    for module in (guard, copying, load):
        patch.setattr(module, "GROUP_S", seconds)
    # The first bytes of a read come at once here; with the real limit a sort may last.
    patch.setattr(guard, "LONGEST_S", seconds)


async def until_unlocked(target: str) -> None:
    """Until the server has seen the end of earlier runs, whose lock would refuse the next one."""
    async with sql(target) as connection:
        while await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE 'etl/lock/%')"
        ):
            await asyncio.sleep(0.01)
