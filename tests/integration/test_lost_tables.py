"""Tables that are dropped between two runs, by somebody else or by ``etl state reset``."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Literal

import pytest

from etl import Database, Limits, Pipeline
from etl.databases import postgres, sqlite
from etl.databases.url import parse_url
from etl.errors import ConfigError, PipelineFailedError
from tests.integration.postgres_kit import run_sql
from tests.integration.sqlite_kit import insert, script


@pytest.fixture(params=["sqlite", "postgres"])
def target_url(request: pytest.FixtureRequest) -> str:
    name = "other_sqlite_url" if request.param == "sqlite" else "postgres_url"
    found: str = request.getfixturevalue(name)
    return found


@pytest.fixture
def other_sqlite_url(sqlite_url: str) -> str:
    return sqlite_url + ".target"


async def run_in(url: str, sql: str) -> None:
    if url.startswith("sqlite"):
        script(url, sql)
    else:
        await run_sql(url, sql)


async def drop(url: str, table: str) -> None:
    await run_in(url, f"DROP TABLE {table}")


def pipeline(source: str, target: str, mode: str) -> Pipeline:
    rows = Database(source).table("t", cursor="id")
    warehouse = Database(target)
    sink: Any = warehouse.append("u") if mode == "append" else warehouse.upsert("u", key="id")
    return Pipeline("p", rows.into(sink))


ROWS = 500


async def slowly(rows: Any) -> Any:
    await asyncio.sleep(0.02)
    return rows


@pytest.mark.parametrize("mode", ["append", "upsert"])
async def test_a_dropped_table_is_refused_and_not_made_with_the_new_rows_only(
    sqlite_url: str, target_url: str, mode: str
) -> None:
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    insert(sqlite_url, "t", [(i, "x") for i in range(5)])
    await pipeline(sqlite_url, target_url, mode).run()
    await drop(target_url, "u")
    insert(sqlite_url, "t", [(7, "y")])

    for _ in range(2):  # the first refusal has made nothing
        with pytest.raises(
            ConfigError, match=r"5 rows were written to 'u', but that table is gone"
        ):
            await pipeline(sqlite_url, target_url, mode).run()

    report = await pipeline(sqlite_url, target_url, mode).run(full=True)
    assert report.rows_written == 6


async def test_a_reset_leaves_what_another_pipeline_has_loaded(
    sqlite_url: str, target_url: str
) -> None:
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    insert(sqlite_url, "t", [(i, "x") for i in range(100)])
    await pipeline(sqlite_url, target_url, "append").run()
    rows = Database(sqlite_url).table("t").map_batches(slowly)
    whole = Pipeline("whole", rows.into(Database(target_url).replace("u")))
    run = await whole.start(limits=Limits(batch_rows=1, group_rows=1))
    while not run.stats()["flows"][0]["rows_written"]:
        await asyncio.sleep(0.01)
    await run.drain()

    is_sqlite = target_url.startswith("sqlite")
    url = parse_url(target_url)
    async with sqlite.open_state(url) if is_sqlite else postgres.open_state(url) as state:
        await state.reset([one.key for one in await state.states("p")])
        assert {one.key.pipeline for one in await state.states()} == {"whole"}

    report = await whole.run()
    assert 0 < report.rows_written < 100


async def stop_in_the_middle(whole: Pipeline, *, lanes: int = 1) -> None:
    limits = Limits(batch_rows=1, group_rows=1, channel_batches=1, lanes=lanes)
    run = await whole.start(limits=limits)
    while not run.stats()["flows"][0]["rows_written"]:
        await asyncio.sleep(0.01)
    assert (await run.drain()).status == "drained"


async def test_pipelines_that_replace_one_table_do_not_load_into_each_others_staging(
    sqlite_url: str, target_url: str
) -> None:
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    insert(sqlite_url, "t", [(i, "x") for i in range(60)])
    rows = Database(sqlite_url).table("t")
    one, other = [
        Pipeline(name, part.map_batches(slowly).into(Database(target_url).replace("u")))
        for name, part in (("low", rows.where("id < 30")), ("high", rows.where("id >= 30")))
    ]
    await stop_in_the_middle(one)
    await stop_in_the_middle(other)

    report = await one.run()

    assert report.rows_written < 30  # it went on
    assert await ids(target_url) == list(range(30))
    await other.run()
    assert await ids(target_url) == list(range(30, 60))


async def ids(url: str) -> list[int]:
    async with Database(url).table("u").open() as rows:
        return [row["id"] async for row in rows]


@pytest.mark.parametrize("policy", ["freeze", "ignore"])
@pytest.mark.parametrize(("is_known", "is_there"), [(True, False), (True, True), (False, True)])
async def test_a_column_that_came_meanwhile_is_loaded_for_all_rows(
    sqlite_url: str,
    target_url: str,
    is_known: bool,
    is_there: bool,
    policy: Literal["freeze", "ignore"],
) -> None:
    """Known are the columns of rows that no function looks at; else the first rows tell."""
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    insert(sqlite_url, "t", [(i, "x") for i in range(ROWS)])
    target = Database(target_url)
    if is_there:
        await run_in(target_url, "CREATE TABLE u (id BIGINT PRIMARY KEY, v TEXT, w TEXT)")
    rows = Database(sqlite_url).table("t")
    stream = rows if is_known else rows.map_batches(slowly)
    whole = Pipeline("whole", stream.into(target.replace("u", schema_change=policy)))
    await stop_in_the_middle(whole)
    script(sqlite_url, "ALTER TABLE t ADD COLUMN w TEXT; UPDATE t SET w = 'new'")

    report = await whole.run()

    assert report.rows_written == ROWS  # from the beginning
    assert "was stopped begins anew: columns 'w' changed" in str(report.flows[0].notes)
    async with target.table("u").open() as found:
        assert [row["w"] async for row in found] == ["new"] * ROWS


async def test_a_column_that_went_meanwhile_is_left_out_of_all_rows(
    sqlite_url: str, target_url: str
) -> None:
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT, w TEXT)")
    insert(sqlite_url, "t", [(i, "x", "old") for i in range(ROWS)])
    await run_in(target_url, "CREATE TABLE u (id BIGINT PRIMARY KEY, v TEXT, w TEXT)")
    target = Database(target_url)
    whole = Pipeline("whole", Database(sqlite_url).table("t").into(target.replace("u")))
    await stop_in_the_middle(whole)
    script(sqlite_url, "ALTER TABLE t DROP COLUMN w")

    assert (await whole.run()).rows_written == ROWS
    async with target.table("u").open() as found:
        assert [row["w"] async for row in found] == [None] * ROWS


async def test_key_ranges_of_other_columns_are_cut_anew(sqlite_url: str, target_url: str) -> None:
    """Some of them may be complete already."""
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    insert(sqlite_url, "t", [(i, "x") for i in range(ROWS)])
    await run_in(target_url, "CREATE TABLE u (id BIGINT PRIMARY KEY, v TEXT, w TEXT)")
    target = Database(target_url)
    rows = Database(sqlite_url).table("t").map_batches(slowly)
    whole = Pipeline("whole", rows.into(target.replace("u")))
    await stop_in_the_middle(whole, lanes=2)
    script(sqlite_url, "ALTER TABLE t ADD COLUMN w TEXT; UPDATE t SET w = 'new'")

    report = await whole.run(limits=Limits(batch_rows=20, lanes=2))

    assert report.rows_written == ROWS
    assert any("key ranges" in note for note in report.flows[0].notes)
    async with target.table("u").open() as found:
        assert [row["w"] async for row in found] == ["new"] * ROWS


async def test_a_column_that_only_a_function_adds_takes_full(
    sqlite_url: str, other_sqlite_url: str
) -> None:
    """What a function returns is in no fingerprint; the staging table tells."""

    async def with_more(rows: Sequence[Any]) -> Sequence[Any]:
        return [{**row, "w": "new"} for row in rows]

    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    insert(sqlite_url, "t", [(i, "x") for i in range(ROWS)])
    script(other_sqlite_url, "CREATE TABLE u (id BIGINT PRIMARY KEY, v TEXT, w TEXT)")
    target = Database(other_sqlite_url)
    rows = Database(sqlite_url).table("t")
    await stop_in_the_middle(Pipeline("whole", rows.map_batches(slowly).into(target.replace("u"))))
    whole = Pipeline("whole", rows.map_batches(with_more).into(target.replace("u")))
    with pytest.raises(PipelineFailedError, match=r"the rows have column 'w'.* --full"):
        await whole.run()
    assert (await whole.run(full=True)).rows_written == ROWS
    async with target.table("u").open() as found:
        assert [row["w"] async for row in found] == ["new"] * ROWS
