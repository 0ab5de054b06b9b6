"""Tables that are read at one instant: sums over several of them hold in the copy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from etl.cli.copy import CopyOptions, plan_copy
from etl.databases.database import Database
from etl.events import Report
from etl.pipeline import Pipeline
from etl.policy import Limits
from tests.integration.postgres_kit import run_sql, sql, value

# Money goes from one table to the other all the while; what both hold together stays.
BANK = """
CREATE TABLE a_cash (id int PRIMARY KEY, amount int NOT NULL, pad text);
CREATE TABLE z_safe (id int PRIMARY KEY, amount int NOT NULL, pad text);
INSERT INTO a_cash SELECT g, 1000, repeat('x', 50) FROM generate_series(1, {rows}) g;
INSERT INTO z_safe SELECT * FROM a_cash;
CREATE TABLE between (id int PRIMARY KEY);
INSERT INTO between SELECT generate_series(1, 1000);
"""
SUM = "SELECT (SELECT sum(amount) FROM a_cash) + (SELECT sum(amount) FROM z_safe)"
READERS = "application_name LIKE 'etl/%/read'"


@asynccontextmanager
async def money_moving(url: str, rows: int) -> AsyncGenerator[asyncio.Event]:
    """Somebody moves money, and adds accounts at both ends, until the block ends."""
    moved = asyncio.Event()

    async def move() -> None:
        async with sql(url) as connection:
            number = 0
            while True:
                number += 1
                async with connection.transaction():
                    await connection.execute(
                        "UPDATE a_cash SET amount = amount - 1 WHERE id = $1", number % rows + 1
                    )
                    await connection.execute("INSERT INTO z_safe VALUES ($1, 1)", rows + number)
                moved.set()

    task = asyncio.create_task(move())
    try:
        await moved.wait()
        yield moved
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def planned(source: str, target: str, **options: Any) -> Pipeline:
    copy = await plan_copy(Database(source), Database(target), CopyOptions(**options))
    return copy.pipeline


def notes_of(report: Report) -> list[str]:
    return [note for flow in report.flows for note in flow.notes]


@pytest.mark.parametrize(("lanes", "flows"), [(1, 1), (3, 6)])
async def test_a_sum_over_two_tables_holds_while_money_moves(
    postgres_database: Callable[[], str], lanes: int, flows: int
) -> None:
    source, target = postgres_database(), postgres_database()
    rows = 3000
    await run_sql(source, BANK.format(rows=rows))
    limits = Limits(lanes=lanes, flows=flows, batch_rows=100)
    pipeline = await planned(source, target)
    async with money_moving(source, rows):
        for _ in range(3):
            report = await pipeline.run(limits=limits)
            assert await value(target, SUM) == 2000 * rows
    cut = any("key ranges" in note for note in notes_of(report))
    assert cut == (lanes > 1)
    assert await value(source, f"SELECT count(*) FROM pg_stat_activity WHERE {READERS}") == 0


async def test_a_read_that_is_lost_goes_on_at_the_same_instant(
    postgres_database: Callable[[], str],
) -> None:
    source, target = postgres_database(), postgres_database()
    rows = 20_000
    await run_sql(source, BANK.format(rows=rows))
    pipeline = await planned(source, target)
    reading = f"{READERS} AND state = 'active' AND query LIKE 'COPY%'"
    async with money_moving(source, rows), sql(source) as other:
        run = await pipeline.start(limits=Limits(batch_rows=100, batch_bytes=4096, memory="8MiB"))
        cut = 0
        while not cut and run.state != "ended":
            found = await other.fetch(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {reading}"
            )
            cut += len(found)
            await asyncio.sleep(0)
        report = await run.wait()
    assert await value(target, SUM) == 2000 * rows
    assert not [note for note in notes_of(report) if "instant" in note]


async def test_a_snapshot_that_is_lost_is_told(postgres_database: Callable[[], str]) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, BANK.format(rows=100))
    pipeline = await planned(source, target)
    holding = f"{READERS} AND state = 'idle in transaction'"
    kill = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {holding}"
    killed: list[int] = []

    def watch(event: object) -> None:
        # In a thread, and waited for here: the run stands still meanwhile.
        if type(event).__name__ == "FlowEnded" and not killed:
            with ThreadPoolExecutor(max_workers=1) as thread:
                killed.append(thread.submit(asyncio.run, value(source, kill)).result())

    run = await pipeline.start(observers=[watch], limits=Limits(flows=1))
    report = await run.wait()
    assert killed[0] >= 1
    told = [flow.name for flow in report.flows if any("second instant" in n for n in flow.notes)]
    assert "z_safe" in told
    assert await value(target, SUM) == 200_000


async def test_what_an_earlier_run_began_is_told_to_be_of_another_instant(
    postgres_database: Callable[[], str],
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, BANK.format(rows=100))
    pipeline = await planned(source, target)
    await run_sql(source, "ALTER TABLE between RENAME TO hidden")
    with pytest.raises(Exception, match="between"):
        await pipeline.run()
    await run_sql(source, "ALTER TABLE hidden RENAME TO between")
    run = await pipeline.start(limits=Limits(flows=1))
    run.request_drain()
    await run.wait()
    report = await pipeline.run()
    resumed = [note for note in notes_of(report) if "earlier instant" in note]
    assert report.status == "completed"
    assert len(resumed) <= 1
    again = await pipeline.run(full=True)
    assert not [note for note in notes_of(again) if "instant" in note]


async def test_each_table_may_have_an_instant_of_its_own(
    postgres_database: Callable[[], str],
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, BANK.format(rows=100))
    pipeline = await planned(source, target, snapshot="table")
    assert not pipeline.one_instant
    assert not pipeline.plan().one_instant
    with_snapshot = replace(pipeline.plan(), one_instant=True)
    assert [line for line in with_snapshot.explain() if line.startswith("instant")]
    await pipeline.run()
    assert await value(target, SUM) == 200_000
