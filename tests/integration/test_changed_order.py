"""A source that is read in another order than the one in which a read began."""

from __future__ import annotations

import pytest

from etl import ConfigError, Database, Limits, Pipeline, PipelineFailedError, Row
from tests.integration.postgres_kit import run_sql, value
from tests.integration.sqlite_kit import script
from tests.integration.sqlite_kit import value as sqlite_value

ROWS = 1000
POSTGRES = (
    "CREATE TABLE t (id int NOT NULL, down int NOT NULL UNIQUE, CONSTRAINT k PRIMARY KEY (id));"
    "INSERT INTO t SELECT i, 1001 - i FROM generate_series(1, 1000) AS i"
)
SQLITE = (
    "CREATE TABLE t (id INTEGER PRIMARY KEY, down INTEGER NOT NULL);"
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)"
    " INSERT INTO t SELECT i, 1001 - i FROM n;"
)
ANOTHER_KEY = {
    "no key": "ALTER TABLE t DROP CONSTRAINT k",
    "another column": "ALTER TABLE t DROP CONSTRAINT k, ADD PRIMARY KEY (down)",
    "another type": (
        "ALTER TABLE t ALTER COLUMN id TYPE text; ALTER TABLE copy ALTER COLUMN id TYPE text"
    ),
}


def halfway(row: Row) -> Row:
    if 480 < row["id"] < 520:
        raise ValueError("halfway")
    return row


def pipelines(source: str, target: str, lanes: int = 1) -> tuple[Pipeline, Pipeline]:
    """One that fails halfway, and the same one mended."""
    table, sink = Database(source).table("t"), Database(target).append("copy")
    limits = Limits(batch_rows=10, group_rows=20, lanes=lanes)
    return (
        Pipeline("p", table.map(halfway).into(sink), limits=limits),
        Pipeline("p", table.into(sink), limits=limits),
    )


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("change", ANOTHER_KEY)
async def test_positions_of_another_key_are_refused(
    change: str, lanes: int, postgres_url: str
) -> None:
    await run_sql(postgres_url, POSTGRES)
    await run_sql(postgres_url, "CREATE TABLE copy (id int, down int)")
    failing, mended = pipelines(postgres_url, postgres_url, lanes)
    with pytest.raises(PipelineFailedError):
        await failing.run()
    before = await value(postgres_url, "SELECT count(*)::text FROM copy")
    await run_sql(postgres_url, ANOTHER_KEY[change])
    with pytest.raises(ConfigError, match="order of the source changed"):
        await mended.run()
    assert await value(postgres_url, "SELECT count(*)::text FROM copy") == before


async def test_a_position_that_cannot_be_kept_is_not_advised_to_be(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE t (id int PRIMARY KEY, part int NOT NULL, n int NOT NULL);"
        "INSERT INTO t VALUES (1, 0, 1), (2, 0, 1);"
        "CREATE TABLE copy (id int UNIQUE, part int, n int)",
    )
    database = Database(postgres_url)
    pipeline = Pipeline(
        "p", database.table("t", cursor="n").into(database.upsert("copy", key=["id"]))
    )
    await pipeline.run()
    await run_sql(postgres_url, "ALTER TABLE t DROP CONSTRAINT t_pkey, ADD PRIMARY KEY (id, part)")
    with pytest.raises(ConfigError, match="cannot be kept") as caught:
        await pipeline.run(accept_change=True)
    assert "accept" not in str(caught.value)
    assert (await pipeline.run(full=True)).rows_written == 2


async def test_a_replace_that_was_stopped_is_not_continued_in_another_mode(sqlite_url: str) -> None:
    script(sqlite_url, SQLITE + "CREATE TABLE copy (id INTEGER PRIMARY KEY, down INTEGER);")
    database = Database(sqlite_url)
    limits = Limits(batch_rows=10, group_rows=20)
    half = Pipeline(
        "p", database.table("t").map(halfway).into(database.replace("copy")), limits=limits
    )
    with pytest.raises(PipelineFailedError):
        await half.run()
    whole = Pipeline("p", database.table("t").into(database.append("copy")))
    with pytest.raises(ConfigError, match="in the middle of a replace of 'copy'"):
        await whole.run(accept_change=True)
    await whole.run(full=True)
    assert sqlite_value(sqlite_url, "SELECT count(*) FROM copy") == ROWS


async def test_positions_of_another_key_in_sqlite_are_refused(sqlite_url: str) -> None:
    script(sqlite_url, SQLITE)
    failing, mended = pipelines(sqlite_url, sqlite_url)
    with pytest.raises(PipelineFailedError):
        await failing.run()
    before = sqlite_value(sqlite_url, "SELECT count(*) FROM copy")
    script(
        sqlite_url,
        "CREATE TABLE u (id INTEGER NOT NULL, down INTEGER PRIMARY KEY);"
        "INSERT INTO u SELECT id, down FROM t; DROP TABLE t; ALTER TABLE u RENAME TO t;",
    )
    with pytest.raises(ConfigError, match="order of the source changed"):
        await mended.run()
    assert sqlite_value(sqlite_url, "SELECT count(*) FROM copy") == before


async def test_a_wider_integer_goes_on_where_the_read_was(postgres_url: str) -> None:
    await run_sql(postgres_url, POSTGRES)
    failing, mended = pipelines(postgres_url, postgres_url)
    with pytest.raises(PipelineFailedError):
        await failing.run()
    await run_sql(postgres_url, "ALTER TABLE t ALTER COLUMN id TYPE bigint")
    await mended.run()
    query = "SELECT count(*) || ' ' || count(DISTINCT id) FROM copy"
    assert await value(postgres_url, query) == f"{ROWS} {ROWS}"


async def test_a_read_that_has_ended_may_begin_again_by_another_key(postgres_url: str) -> None:
    await run_sql(postgres_url, POSTGRES)
    database = Database(postgres_url)
    pipeline = Pipeline("p", database.table("t").into(database.replace("copy")))
    await pipeline.run()
    await run_sql(postgres_url, ANOTHER_KEY["another column"])
    assert (await pipeline.run()).rows_written == ROWS
