"""Both readers end exactly at ``until`` and order positions as they read them, for all keys."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from itertools import combinations
from random import Random
from typing import Any

import pytest

from etl import Database, Limits, Pipeline
from etl.batch import Batch, Position, decode_position, encode_position
from etl.connector import Reader
from etl.databases import postgres, sqlite
from etl.databases.database import ReadSpec
from etl.databases.url import parse_url
from etl.flow import Flow
from tests.integration import postgres_kit, sqlite_kit
from tests.integration.postgres_kit import run_sql, value
from tests.integration.sqlite_kit import script

ONE_ROW = replace(postgres_kit.INFO, batch_rows=1, batch_bytes=1)

Open = Callable[[], AbstractAsyncContextManager[Reader[Any]]]


async def check_segments(open_reader: Open, count: int) -> None:
    """Read each range between two positions, and sort the shuffled positions."""
    async with open_reader() as reader:
        batches = await _batches(reader, None, None)
        assert [len(batch.rows) for batch in batches] == [1] * count
        places = [_stored(batch.position) for batch in batches]
        shuffled = list(places)
        Random(7).shuffle(shuffled)
        assert list(await reader.order(shuffled)) == places
        for first, last in combinations(range(-1, count), 2):
            after = places[first] if first >= 0 else None
            found = await _batches(reader, after, places[last])
            assert [_stored(one.position) for one in found] == places[first + 1 : last + 1]
        assert await _batches(reader, places[-1], places[-1]) == []


async def _batches(
    reader: Reader[Any], after: Position | None, until: Position | None
) -> list[Batch[Any]]:
    found: list[Batch[Any]] = []

    async def emit(batch: Batch[Any]) -> None:
        found.append(batch)

    await reader.pump(after, until, emit)
    return found


def _stored(position: Position | None) -> Position:
    found = decode_position(encode_position(position))
    assert found is not None
    return found


WORDS = ["'a'", "'A'", "'b'", "'B'", "'ä'", "'Z'", "'a b'", "'a-b'", "'ab'", r"E'a\\t'", "''"]


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("a text", WORDS),
        ("a text COLLATE other", WORDS),
        ('a text COLLATE "C"', WORDS),
        ("a varchar(9)", WORDS),
        ("a char(3)", ["'a'", "'ab'", "'B'", "'abc'"]),
        ("a numeric", ["1.10", "-5", "'NaN'", "'Infinity'", "0.0000001", "12345678901234567890.5"]),
        ("a float8", ["1.5", "'-Infinity'", "'NaN'", "1e-300", "0.1"]),
        ("a timestamptz", ["'-infinity'", "'2024-01-01 00:00:00.000001+02'", "'infinity'"]),
        ("a interval", ["'1 month'", "'29 days'", "'31 days'", "'1 day -1 hour'"]),
        ("a bytea", [r"'\x00'", r"'\x0001'", r"'\xff'", r"'\x'"]),
        ("a boolean", ["true", "false"]),
        ("a mood", ["'sad'", "'ok'", "'happy'"]),
        ("a uuid", ["'00000000-0000-0000-0000-00000000000a'", "gen_random_uuid()"]),
        ("a int[]", ["'{1,2}'", "'{1}'", "'{}'", "'{1,NULL}'"]),
        ("a text COLLATE other, b int", [f"{w}, {n}" for w in WORDS[:4] for n in (10, 9)]),
    ],
)
async def test_postgres_segments_are_exact(
    columns: str, values: Sequence[str], postgres_url: str
) -> None:
    names = ", ".join(column.split()[0] for column in columns.split(", "))
    # A collation that differs from the database's, where the server has one (ICU).
    await run_sql(
        postgres_url,
        "DO $$ BEGIN CREATE COLLATION other (provider = icu, locale = 'und');"
        ' EXCEPTION WHEN OTHERS THEN CREATE COLLATION other FROM "C"; END $$;'
        "CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');"
        f"CREATE TABLE t ({columns}, v int DEFAULT 1, PRIMARY KEY ({names}));"
        f"INSERT INTO t ({names}) VALUES {', '.join(f'({v})' for v in values)}",
    )
    url = parse_url(postgres_url)
    for spec in (
        ReadSpec(table="t"),
        ReadSpec(query="SELECT * FROM t", key=tuple(names.split(", "))),
    ):
        await check_segments(partial(postgres.open_reader, url, spec, ONE_ROW), len(values))


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("a", ["1", "2.5", "'x'", "'1'", "x'00'", "x''", "-9223372036854775808", "1e300", "''"]),
        ("a TEXT", ["'a'", "'A'", "'10'", "'9'", "'ä'", "x'41'"]),
        ("a TEXT COLLATE NOCASE", ["'a'", "'B'", "'c'", "'Z'", "'_'"]),
        ("a TEXT COLLATE RTRIM", ["'a '", "'b'", "'ab'"]),
        ("a REAL", ["1", "0.1", "-2", "'x'"]),
        ("a NUMERIC", ["1", "1.5", "9007199254740993", "'x'", "x'01'"]),
        ("a INTEGER", ["3", "-1", "2"]),
        ("a TEXT COLLATE NOCASE, b", [f"{w}, {n}" for w in ("'x'", "'Y'") for n in ("1", "'1'")]),
    ],
)
@pytest.mark.parametrize("without", ["", " WITHOUT ROWID"])
async def test_sqlite_segments_are_exact(
    columns: str, values: Sequence[str], without: str, sqlite_url: str
) -> None:
    names = ", ".join(column.split()[0] for column in columns.split(", "))
    script(
        sqlite_url,
        f"CREATE TABLE t ({columns}, v INT DEFAULT 1, PRIMARY KEY ({names})){without};"
        f"INSERT INTO t ({names}) VALUES {', '.join(f'({v})' for v in values)};",
    )
    url = parse_url(sqlite_url)
    spec = ReadSpec(table="t")
    await check_segments(partial(sqlite.open_reader, url, spec, ONE_ROW), len(values))


async def test_a_segment_of_an_incremental_read_goes_up_to_its_end_whatever_is_open(
    postgres_url: str,
) -> None:
    """What an earlier run has read was final then, whatever transaction is open now."""
    await run_sql(
        postgres_url,
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2), (3)",
    )
    spec = ReadSpec(table="t", cursor=("id",))
    found = await postgres_kit.read(postgres_url, spec)
    last = found.batches[-1].position
    async with postgres_kit.sql(postgres_url) as other:
        await other.execute("CREATE TABLE o (); BEGIN; INSERT INTO o DEFAULT VALUES")
        segment = await postgres_kit.read(postgres_url, spec, until=last)
    assert len(segment.rows) == 3


SMALL = Limits(batch_rows=20, group_rows=1, channel_batches=1)


@pytest.mark.parametrize("cursor", [(), ("id",)])
async def test_a_sink_in_a_second_database_catches_up_and_both_stay_exact(
    cursor: tuple[str, ...], postgres_url: str, sqlite_url: str
) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL);"
        "INSERT INTO t SELECT i, repeat('x', i) FROM generate_series(1, 100) AS i",
    )
    source, lake = Database(postgres_url), Database(sqlite_url)

    def flow(*, second: bool) -> Flow:
        sinks = [source.append("copy_a"), source.upsert("copy_b", key=["id"])]
        lakes = [lake.append("copy_a"), lake.upsert("copy_b", key=["id"])]
        return source.table("t", cursor=cursor).into(*sinks, *(lakes if second else []))

    await Pipeline("t", flow(second=False), limits=SMALL).run()
    if cursor:
        await run_sql(postgres_url, "INSERT INTO t VALUES (101, ''), (102, 'y')")
    report = await Pipeline("t", flow(second=True), limits=SMALL).run()
    assert report.status == "completed"
    wanted = 102 if cursor else 100
    for table in ("copy_a", "copy_b"):
        assert await value(postgres_url, f"SELECT count(*) FROM {table}") == wanted
        assert sqlite_kit.value(sqlite_url, f"SELECT count(*) FROM {table}") == wanted
        assert sqlite_kit.value(sqlite_url, f"SELECT count(DISTINCT id) FROM {table}") == wanted


async def test_replaced_tables_in_two_databases_are_loaded_by_one_read(
    postgres_url: str, sqlite_url: str
) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL); CREATE TABLE old (id int);"
        "INSERT INTO t SELECT i, repeat('x', i) FROM generate_series(1, 100) AS i;"
        "INSERT INTO old VALUES (1)",
    )
    source, lake = Database(postgres_url), Database(sqlite_url)
    flow = source.table("t").into(source.replace("copy"), lake.replace("copy"))
    report = await Pipeline("t", flow, limits=SMALL).run()
    assert report.rows_read == 100
    assert report.rows_written == 200
    assert await value(postgres_url, "SELECT sum(length(v)) FROM copy") == 5050
    assert sqlite_kit.value(sqlite_url, "SELECT sum(length(v)) FROM copy") == 5050
