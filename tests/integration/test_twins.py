"""Two runs of one pipeline at once: the older one is fenced, and the target is exact."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from etl import AlreadyRunningError, Batch, Database, Pipeline, Report, stage
from etl.errors import (
    EXIT_ACTIVE,
    FencedError,
    PipelineFailedError,
    TargetWentBackError,
    exit_code_of,
)
from tests.integration.fault_kit import (
    NAME,
    ROWS,
    SMALL,
    Item,
    assert_exact,
    assert_prefix,
    bounded,
    copied,
    copy,
    make_source,
    make_target,
    sql,
    to_total,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def databases(postgres_database: Callable[[], str]) -> tuple[str, str]:
    source, target = postgres_database(), postgres_database()
    await make_source(source)
    await make_target(target)
    # Each group costs some time, so that the second run finds the first one at work.
    async with sql(target) as connection:
        await connection.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_sleep(0.03); RETURN NULL; END';"
        )
        for table in ("copies", "totals"):
            await connection.execute(
                f"CREATE TRIGGER slow AFTER INSERT ON {table}"
                " FOR EACH STATEMENT EXECUTE FUNCTION slow()"
            )
    return source, target


async def until_moved(target: str) -> None:
    """Until some group is in."""
    async with sql(target) as connection:
        while True:
            if await connection.fetchval("SELECT to_regclass('etl_checkpoint') IS NOT NULL"):
                if await connection.fetchval("SELECT bool_or(batches > 0) FROM etl_checkpoint"):
                    return
            await asyncio.sleep(0.01)


def assert_fenced(error: PipelineFailedError) -> None:
    assert isinstance(error.errors[0], FencedError), repr(error.errors[0])
    assert exit_code_of(error) == EXIT_ACTIVE


async def test_a_flow_that_had_ended_when_the_target_fell_back_is_missed_at_the_end(
    databases: tuple[str, str],
) -> None:
    """A standby without the last transactions takes over while another flow goes on."""
    source, target = databases
    items = Database(source).table("items", row=Item)

    async def fall_back(rows: Sequence[Item]) -> list[Item]:
        async with sql(target) as connection:
            await connection.execute(
                "DELETE FROM copies WHERE id > 60;"
                "UPDATE etl_checkpoint SET position = '[\"60\"]', complete = false"
                " WHERE flow = 'first'"
            )
        return list(rows)

    first = items.named("first").into(Database(target).append("copies"))
    second = items.named("second").map_batches(fall_back).map(to_total)
    last = replace(second.into(Database(target).upsert("totals", key=("kind",))), after=("first",))
    pipeline = Pipeline(NAME, first, last, limits=SMALL)
    with pytest.raises(PipelineFailedError) as failure:
        await bounded(pipeline.run())
    assert isinstance(failure.value.errors[0], TargetWentBackError)

    await bounded(Pipeline(NAME, first, limits=SMALL).run())
    await assert_exact(target)


@pytest.mark.parametrize("mode", ["append", "add"])
async def test_the_older_run_is_fenced_and_the_target_exact(
    databases: tuple[str, str], mode: str
) -> None:
    source, target = databases
    older = asyncio.create_task(copy(source, target, mode).run())
    await bounded(until_moved(target))

    report = await bounded(copy(source, target, mode).run(take_over=True))

    assert report.status == "completed"
    with pytest.raises(PipelineFailedError) as failure:
        await bounded(older)
    assert_fenced(failure.value)
    await assert_exact(target, mode)


@pytest.mark.parametrize("full", [False, True])
async def test_a_replace_that_is_overtaken_publishes_nothing(
    databases: tuple[str, str], full: bool
) -> None:
    source, target = databases
    async with sql(target) as connection:
        await connection.execute("DROP TRIGGER slow ON copies")  # it would be lost in a replace
    overtaken = asyncio.Event()

    @stage
    async def held_up(batches: AsyncIterator[Batch[Item]]) -> AsyncGenerator[Batch[Item], None]:
        async for batch in batches:
            yield batch
            await overtaken.wait()

    items = Database(source).table("items", row=Item).through(held_up)
    flow = items.into(Database(target).replace("copies"))
    older = await Pipeline(NAME, flow, limits=SMALL).start()

    report = await bounded(copy(source, target, "replace").run(full=full, take_over=True))
    overtaken.set()

    assert report.status == "completed"
    with pytest.raises(PipelineFailedError) as failure:
        await bounded(older.wait())
    assert_fenced(failure.value)
    await assert_exact(target, "replace")


async def test_many_take_overs_at_once_end_exact(databases: tuple[str, str]) -> None:
    """One of them wins; the others are fenced."""
    source, target = databases
    await bounded(copy(source, target).run())  # etl's tables are there
    async with sql(target) as connection:
        await connection.execute("TRUNCATE copies; DELETE FROM etl_checkpoint")
    runs = [copy(source, target).run(take_over=True) for _ in range(5)]

    ends = await bounded(asyncio.gather(*runs, return_exceptions=True))

    assert any(isinstance(end, Report) for end in ends), ends
    for end in ends:
        if isinstance(end, PipelineFailedError):
            assert_fenced(end)
        else:
            assert isinstance(end, Report), repr(end)
    await assert_exact(target)


async def test_the_second_run_ends_at_once_and_the_first_goes_on(
    databases: tuple[str, str],
) -> None:
    source, target = databases
    first = asyncio.create_task(copy(source, target).run())
    await bounded(until_moved(target))

    with pytest.raises(AlreadyRunningError) as refused:
        await bounded(copy(source, target).run(), 5)

    assert exit_code_of(refused.value) == EXIT_ACTIVE
    assert str(os.getpid()) in str(refused.value)
    assert (await bounded(first)).status == "completed"
    await assert_exact(target)


async def test_a_stopped_process_that_was_overtaken_writes_nothing_more(
    databases: tuple[str, str], tmp_path: Path
) -> None:
    source, target = databases
    job = tmp_path / "job.py"
    job.write_text(
        f"from tests.integration.fault_kit import copy\npipeline = copy({source!r}, {target!r})\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "etl", "run", str(job)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        await bounded(until_moved(target))
        await bounded(stop_between_locks(process.pid, target))
        assert 0 < await assert_prefix(target) < ROWS

        report = await bounded(copy(source, target).run(take_over=True))
        assert report.status == "completed"
        done = await copied(target)
        assert done == list(range(1, ROWS + 1))

        process.send_signal(signal.SIGCONT)
        printed, _ = await asyncio.to_thread(process.communicate, timeout=30)
        assert process.returncode == EXIT_ACTIVE, printed
        assert "has taken over" in " ".join(printed.split())
        assert await copied(target) == done
    finally:
        process.kill()
        await asyncio.to_thread(process.communicate)


async def stop_between_locks(pid: int, target: str) -> None:
    """Stop the process where it holds no checkpoint: one that does is waited for, as it must be."""
    async with sql(target) as connection:
        while True:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(0.15)  # what it has sent is done by the server meanwhile
            if not await connection.fetchval(
                "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'etl_checkpoint'::regclass"
                " AND mode = 'RowExclusiveLock')"
            ):
                return
            os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.005)
