"""A target table that was dropped between two runs is not made anew with half of its rows."""

from __future__ import annotations

from typing import Any

import pytest

from etl import Database, Pipeline
from etl.errors import ConfigError
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


async def drop(url: str, table: str) -> None:
    if url.startswith("sqlite"):
        script(url, f"DROP TABLE {table}")
    else:
        await run_sql(url, f"DROP TABLE {table}")


def pipeline(source: str, target: str, mode: str) -> Pipeline:
    rows = Database(source).table("t", cursor="id")
    warehouse = Database(target)
    sink: Any = warehouse.append("u") if mode == "append" else warehouse.upsert("u", key="id")
    return Pipeline("p", rows.into(sink))


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
