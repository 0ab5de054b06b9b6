"""What is around a PostgreSQL table: other sessions' deadlocks, settings, encodings."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import pytest

from etl import Database, Pipeline, Retry
from etl.errors import PipelineFailedError
from etl.events import Event, Retrying
from tests.integration.postgres_kit import run_sql, sql, texts, value
from tests.postgres_server import Server


async def test_a_deadlock_is_tried_again(postgres_database: Callable[[], str]) -> None:
    source, target = postgres_database(), postgres_database()
    table = "CREATE TABLE f (id int PRIMARY KEY, v int);"
    await run_sql(source, f"{table} INSERT INTO f VALUES (1, 10), (2, 20)")
    await run_sql(target, f"{table} INSERT INTO f VALUES (1, 1), (2, 2)")
    told: list[Event] = []
    pipeline = Pipeline(
        "deadlock",
        Database(source).table("f").into(Database(target).upsert("f", key=("id",))),
        retry=Retry(attempts=3, base_s=0.01),
    )
    async with sql(target) as other:
        await other.execute("SET deadlock_timeout = '30s'")  # so that it is the run that is ended
        async with other.transaction():
            await other.execute("UPDATE f SET v = v WHERE id = 2")
            run = asyncio.create_task(pipeline.run(observers=[told.append]))
            while not await value(
                target,
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
                " AND application_name LIKE 'etl/%' AND wait_event_type = 'Lock')",
            ):
                assert not run.done()
            await other.execute("UPDATE f SET v = v WHERE id = 1")
        await run
    assert any(isinstance(event, Retrying) for event in told)
    assert await texts(target, "SELECT * FROM f ORDER BY id") == ["(1,10)", "(2,20)"]


@pytest.mark.parametrize(
    "setting",
    [
        "DateStyle = 'SQL, DMY'",
        "IntervalStyle = 'sql_standard'",
        "bytea_output = 'escape'",
        "extra_float_digits = -10",
        "TimeZone = 'America/New_York'",
        "default_transaction_isolation = 'serializable'",
        "standard_conforming_strings = off",
        "array_nulls = off",
    ],
)
async def test_settings_of_the_databases_change_no_value(
    postgres_database: Callable[[], str], setting: str
) -> None:
    source, target = postgres_database(), postgres_database()
    table = (
        "CREATE TABLE public.f (id int PRIMARY KEY, d date, i interval, b bytea, x float8,"
        " t timestamptz, s text, a text[]);"
    )
    await run_sql(
        source,
        table
        + "INSERT INTO public.f VALUES (1, '2024-02-01', '1 mon -2 days 03:04:05', '\\x00ff5c',"
        " 0.1::float8 + 0.2, '2024-07-01 12:00+02', E'a\\\\b''c',"
        " array[NULL, 'NULL'])",
    )
    for url in (source, target):
        await run_sql(url, f'ALTER DATABASE "{urlsplit(url).path[1:]}" SET {setting}')
    flow = Database(source).table("public.f").filter(lambda row: row["d"]).map(lambda row: row)
    await Pipeline("s", flow.into(Database(target).append("public.f"))).run()
    for url in (source, target):  # looked at as they were written
        await run_sql(url, f'ALTER DATABASE "{urlsplit(url).path[1:]}" RESET ALL')
    assert await texts(target, "SELECT * FROM f") == await texts(source, "SELECT * FROM f")


async def test_a_user_s_statement_timeout_does_not_keep_a_connection_from_its_settings(
    postgres_database: Callable[[], str],
) -> None:
    source, target = postgres_database(), postgres_database()
    name = urlsplit(source).path[1:]
    await run_sql(source, "CREATE TABLE f (id int PRIMARY KEY); INSERT INTO f VALUES (1)")
    await run_sql(target, f"ALTER DATABASE \"{name}\" SET statement_timeout = '1ms'")
    await Pipeline("t", Database(source).table("f").into(Database(target).append("f"))).run()
    await run_sql(target, f'ALTER DATABASE "{name}" RESET ALL')
    assert await texts(target, "SELECT * FROM f") == ["(1)"]


@pytest.fixture
def database_in(postgres_server: Server) -> Iterator[Callable[[str], str]]:
    """Makes databases of an encoding."""
    names: list[str] = []

    def make(encoding: str) -> str:
        names.append(f"etl_test_{secrets.token_hex(6)}")
        postgres_server.execute(
            f"CREATE DATABASE \"{names[-1]}\" TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'"
        )
        return postgres_server.database(names[-1])

    yield make
    for name in names:
        postgres_server.drop(name)


@pytest.mark.parametrize("look", [True, False])
async def test_encodings_are_converted_or_refused(
    database_in: Callable[[str], str], look: bool
) -> None:
    latin, wide, other = database_in("LATIN1"), database_in("UTF8"), database_in("LATIN1")
    table = "CREATE TABLE f (id int PRIMARY KEY, s text)"
    await run_sql(latin, f"{table}; INSERT INTO f VALUES (1, 'Zürich')")
    for url in (wide, other):
        await run_sql(url, table)

    def copy(source: str, target: str) -> Pipeline:
        rows = Database(source).table("f", cursor=("id",))
        flow = rows.map(lambda row: row.replace(s=row["s"])) if look else rows
        return Pipeline("c", flow.into(Database(target).append("f")))

    await copy(latin, wide).run()
    assert await value(wide, "SELECT s FROM f") == "Zürich"
    await run_sql(wide, "INSERT INTO f VALUES (2, '東京')")
    with pytest.raises(PipelineFailedError, match="LATIN1") as failed:
        await copy(wide, other).run()
    assert "東京" not in str(failed.value)
    assert await value(other, "SELECT count(*) FROM f") == 0


async def test_bytes_without_an_encoding_are_refused_by_name(
    database_in: Callable[[str], str],
) -> None:
    ascii_, wide = database_in("SQL_ASCII"), database_in("UTF8")
    await run_sql(ascii_, "CREATE TABLE f (id int PRIMARY KEY, s text)")
    await run_sql(ascii_, "INSERT INTO f VALUES (1, convert_from('\\xff', 'SQL_ASCII'))")
    pipeline = Pipeline("a", Database(ascii_).table("f").into(Database(wide).append("f")))
    with pytest.raises(PipelineFailedError, match="encoding|UTF"):
        await pipeline.run()
    assert await value(wide, "SELECT count(*) FROM f") == 0


# As the extension's, which the server may lack, but for its comparison.
CITEXT = """
    CREATE TYPE citext;
    CREATE FUNCTION citextin(cstring) RETURNS citext IMMUTABLE STRICT LANGUAGE internal AS 'textin';
    CREATE FUNCTION citextout(citext) RETURNS cstring IMMUTABLE STRICT LANGUAGE internal
        AS 'textout';
    CREATE TYPE citext (INPUT = citextin, OUTPUT = citextout, LIKE = text, COLLATABLE = true);
    CREATE CAST (citext AS text) WITHOUT FUNCTION AS IMPLICIT;
    CREATE TABLE f (k citext PRIMARY KEY);
"""


@pytest.mark.parametrize("is_told", [True, False])
async def test_keys_that_the_table_takes_for_one_are_told(
    postgres_database: Callable[[], str], is_told: bool
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, "CREATE TABLE f (k text PRIMARY KEY)" if is_told else CITEXT)
    await run_sql(source, "INSERT INTO f VALUES ('a')")
    await run_sql(target, f"SET client_min_messages = error; {CITEXT}")
    rows = Database(source).table("f")
    report = await Pipeline("p", rows.into(Database(target).upsert("f", key="k"))).run()
    assert ("become one row: 'k' (citext)" in str(report.flows[0].notes)) == is_told
