"""Rows that pass from PostgreSQL to PostgreSQL as bytes: when they do, and that none is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import asyncpg
import pytest

from etl import Database, DeadLetter, Limits, Pipeline
from etl.batch import Batch, Position
from etl.connector import RunInfo
from etl.databases import postgres
from etl.databases.database import ReadSpec
from etl.databases.declared import Cast, Declared, Rename, Select, Where
from etl.databases.postgres.catalogue import get_relation
from etl.databases.postgres.connect import connected
from etl.databases.postgres.reader import PostgresReader
from etl.databases.url import parse_url
from etl.errors import PipelineFailedError
from etl.rows import Column, Frames
from tests.integration.postgres_kit import run_sql, sql, texts, value

INFO = RunInfo(pipeline="p", run_id="r", batch_rows=100, batch_bytes=2000, most_bytes=1 << 16)
EVERY_KIND = """
    CREATE TABLE t (
        id bigint PRIMARY KEY, b bool, i2 int2, i4 int4, f4 float4, f8 float8, n numeric,
        m numeric(9,3), x text, v varchar(7), c char(5), y bytea, d date, h time, ts timestamp,
        tz timestamptz, iv interval, u uuid, j json, jb jsonb
    );
    INSERT INTO t SELECT g, g % 2 = 0, g % 100, g, g / 3.0, 'NaN', 'NaN', g / 7.0,
        E'\\t\\n\\\\ü' || g, 'v' || g % 1000, 'c', decode(md5(g::text), 'hex'), 'infinity', '24:00',
        '4713-01-01 BC', '-infinity', '1 mon -2 days 3.000001 s', md5(g::text)::uuid,
        '{"b":1, "a" : 2}', '{"a": [1, null]}'
    FROM generate_series(1, 5000) AS g;
    INSERT INTO t (id) VALUES (-9223372036854775808), (9223372036854775807);
"""


async def frames_of(
    url: str,
    table: str,
    info: RunInfo = INFO,
    *,
    after: Position | None = None,
    steps: tuple[Declared, ...] = (),
    between: Callable[[], Any] | None = None,
) -> list[Batch[Any]]:
    """The batches of a read in frames."""
    batches: list[Batch[Any]] = []

    async def emit(batch: Batch[Any]) -> None:
        batches.append(batch)
        if between is not None:
            await between()

    spec = ReadSpec(table=table, steps=steps)
    async with postgres.open_reader(parse_url(url), spec, info) as reader:
        assert await reader.offers_frames() is not None
        assert reader.use_frames(reader.shape.columns)
        await reader.pump(after, None, emit)
    return batches


async def offered(url: str, spec: ReadSpec) -> str | None:
    async with postgres.open_reader(parse_url(url), spec, INFO) as reader:
        assert isinstance(reader, PostgresReader)
        return await reader.offers_frames()


def counted(batches: list[Batch[Any]]) -> int:
    assert any(isinstance(batch.rows, Frames) for batch in batches)
    return sum(len(batch.rows) for batch in batches)


@pytest.mark.parametrize("analyzed", [True, False])
@pytest.mark.parametrize("mode", ["append", "replace", "upsert"])
async def test_every_kind_of_value_arrives_as_it_was(
    postgres_database: Callable[[], str], mode: str, analyzed: bool
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, EVERY_KIND)
    if analyzed:
        await run_sql(source, "ANALYZE t")
    sink = (
        Database(target).upsert("t", key=["id"])
        if mode == "upsert"
        else getattr(Database(target), mode)("t")
    )

    report = await Pipeline(
        "frames", Database(source).table("t").into(sink), limits=Limits(memory="2MiB")
    ).run()

    assert report.flows[0].rows_written == 5002
    assert report.flows[0].transactions > 1
    query = "SELECT * FROM t ORDER BY id"
    assert await texts(target, query) == await texts(source, query)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        ("CREATE TABLE t (id int PRIMARY KEY, x text)", "g"),
        ("CREATE TABLE t (id text COLLATE \"C\" PRIMARY KEY, x text)", "md5(g::text)"),
        ("CREATE TABLE t (id text PRIMARY KEY, x text)", "chr(64 + g % 60) || 'ä' || g"),
        ("CREATE TABLE t (id uuid PRIMARY KEY, x text)", "md5(g::text)::uuid"),
        ("CREATE TABLE t (id numeric PRIMARY KEY, x text)", "g / 7.0"),
        ("CREATE TABLE t (id bool, more int, x text, PRIMARY KEY (id, more))", "g % 2 = 0, g"),
        ("CREATE TABLE t (id int, more date, x text, PRIMARY KEY (id, more))",
         "g % 3, date '2020-01-01' + g"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("statistics", ["none", "fresh", "old"])
async def test_ranges_cover_every_row_once(
    postgres_url: str, make: str, key: str, statistics: str
) -> None:
    await run_sql(postgres_url, make)
    insert = f"INSERT INTO t SELECT {key}, repeat('x', 50) FROM generate_series({{}}, {{}}) AS g"
    if statistics == "old":
        await run_sql(postgres_url, insert.format(2000, 2999))
        await run_sql(postgres_url, "ANALYZE t")
        await run_sql(postgres_url, "DELETE FROM t WHERE random() < 0.5")
        await run_sql(postgres_url, insert.format(1, 1999))
        await run_sql(postgres_url, insert.format(3000, 4000))
    else:
        await run_sql(postgres_url, insert.format(1, 4000))
    if statistics == "fresh":
        await run_sql(postgres_url, "ANALYZE t")

    batches = await frames_of(postgres_url, "t")

    assert counted(batches) == await value(postgres_url, "SELECT count(*) FROM t")
    assert len(batches) > 2
    # From any of its positions on, the read gives just the rest.
    middle = len(batches) // 2
    rest = await frames_of(postgres_url, "t", after=batches[middle - 1].position)
    assert counted(rest) == counted(batches[middle:])


async def test_all_ranges_are_of_one_instant(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (id int PRIMARY KEY, x text)")
    await run_sql(
        postgres_url, "INSERT INTO t SELECT g, repeat('x', 99) FROM generate_series(1, 2000) AS g"
    )
    async with sql(postgres_url) as other:

        async def change() -> None:
            await other.execute("DELETE FROM t WHERE id % 3 = 0")
            await other.execute("INSERT INTO t SELECT max(id) + 1, 'new' FROM t")

        assert counted(await frames_of(postgres_url, "t", between=change)) == 2000


async def test_an_empty_table_gives_nothing(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (id int PRIMARY KEY)")
    assert await frames_of(postgres_url, "t") == []


@pytest.mark.parametrize("analyzed", [True, False])
async def test_a_range_that_outgrows_memory_is_read_in_smaller_ones(
    postgres_url: str, analyzed: bool
) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (etl_size int PRIMARY KEY, x text, y jsonb)")
    await run_sql(postgres_url, "INSERT INTO t SELECT g, 'x' FROM generate_series(1, 2000) AS g")
    # Packed as it is stored, ninety times as much on its way.
    packed = "UPDATE t SET x = repeat('x', 30000) WHERE etl_size BETWEEN 1001 AND 1030"
    await run_sql(postgres_url, packed)
    large = """UPDATE t SET y = jsonb_build_array(repeat('y', 100000)) WHERE etl_size = 1500"""
    await run_sql(postgres_url, large)
    if analyzed:
        await run_sql(postgres_url, "ANALYZE t")

    batches = await frames_of(postgres_url, "t")

    assert {type(batch.rows) for batch in batches} == {Frames}
    assert counted(batches) == 2000
    assert [len(b.rows) for b in batches if b.nbytes > INFO.most_bytes] == [1]


async def test_a_large_row_passes_in_the_pieces_in_which_it_came(
    postgres_database: Callable[[], str],
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, "CREATE TABLE t (id int PRIMARY KEY, x text, y bytea)")
    large = "repeat(md5(g::text), 60000), convert_to(repeat(md5(g::text), 90000), 'UTF8')"
    small = "INSERT INTO t SELECT g, 'x', 'y' FROM generate_series(100, 300) AS g"
    await run_sql(source, f"INSERT INTO t SELECT g, {large} FROM generate_series(1, 4) AS g")
    await run_sql(source, small)
    batches = await frames_of(source, "t")
    assert [len(batch.rows) for batch in batches][:4] == [1, 1, 1, 1]
    large_rows = batches[0].rows
    assert isinstance(large_rows, Frames)
    assert isinstance(large_rows.pieces[0], memoryview)  # not a copy of what came in

    flow = Database(source).table("t").into(Database(target).append("t"))
    report = await Pipeline("t", flow).run()

    assert report.flows[0].rows_written == 205
    query = "SELECT id, md5(x), md5(y) FROM t ORDER BY id"
    assert await texts(target, query) == await texts(source, query)


@pytest.mark.parametrize(
    ("table", "spec"),
    [
        ("CREATE TABLE t (id int, x text)", ReadSpec(table="t")),
        ("CREATE TABLE t (id int PRIMARY KEY, x int[])", ReadSpec(table="t")),
        ("CREATE TABLE t (id int PRIMARY KEY, x inet)", ReadSpec(table="t")),
        ("CREATE TABLE t (id int PRIMARY KEY)", ReadSpec(table="t", cursor=("id",))),
        ("CREATE TABLE t (id int PRIMARY KEY)", ReadSpec(query="SELECT * FROM t", key=("id",))),
        ("CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)", ReadSpec(table="t")),
    ],
)  # fmt: skip
async def test_what_cannot_be_framed_is_not_offered(
    postgres_url: str, table: str, spec: ReadSpec
) -> None:
    await run_sql(postgres_url, table)
    assert await offered(postgres_url, spec) is None


async def test_bounds_are_found_without_reading_the_index_again_for_each(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (id int, more int, x text, PRIMARY KEY (id, more))")
    fill = "INSERT INTO t SELECT g / 3, g, repeat('x', 50) FROM generate_series(1, 12000) AS g"
    await run_sql(postgres_url, fill)
    await run_sql(postgres_url, "VACUUM ANALYZE t")

    assert len(await frames_of(postgres_url, "t")) > 30

    read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 't_pkey'"
    assert await value(postgres_url, read) < 3 * 12000


async def test_the_first_ranges_are_small_so_that_writing_begins_soon(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (id int PRIMARY KEY, x text)")
    fill = "INSERT INTO t SELECT g, repeat('x', 50) FROM generate_series(1, 12000) AS g"
    await run_sql(postgres_url, fill)

    sizes = [len(batch.rows) for batch in await frames_of(postgres_url, "t")]

    assert sizes[0] < sizes[1] < sizes[2] < sizes[3]
    assert len(set(sizes[3:-1])) == 1


STEPS: tuple[Declared, ...] = (
    Where("id NOT BETWEEN 500 AND 2500 AND id <> 4000"),
    Select(("x",), (("price", "n * 1.1"), ("low", "lower(x)"))),
    Rename((("name", "x"),)),
    Cast((("low", "varchar(9)"),)),
)


@pytest.mark.parametrize("analyzed", [True, False])
async def test_declared_steps_are_read_by_the_ranges_of_the_table(
    postgres_database: Callable[[], str], analyzed: bool
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, "CREATE TABLE t (id int PRIMARY KEY, x text, n numeric(9,2))")
    fill = "INSERT INTO t SELECT g, 'X' || g, g / 4.0 FROM generate_series(1, 4000) AS g"
    await run_sql(source, fill)
    if analyzed:
        await run_sql(source, "ANALYZE t")
    await run_sql(target, "CREATE TABLE t (name varchar(7), price numeric(12,3), low varchar(9))")

    batches = await frames_of(source, "t", steps=STEPS)

    assert counted(batches) == 1998
    assert any(not len(batch.rows) for batch in batches)  # nothing is left of it, and it counts
    assert batches[-1].position == ("4000",)
    middle = len(batches) // 2
    rest = await frames_of(source, "t", after=batches[middle - 1].position, steps=STEPS)
    assert counted(rest) == counted(batches[middle:])

    lines = Database(source).table("t").where("id NOT BETWEEN 500 AND 2500 AND id <> 4000")
    lines = lines.select("x", price="n * 1.1", low="lower(x)").rename(name="x")
    flow = lines.cast(low="varchar(9)").into(Database(target).append("t"))
    report = await Pipeline("declared", flow).run()

    assert report.flows[0].rows_written == 1998
    made = "SELECT x, (n * 1.1)::numeric(12,3), lower(x)::varchar(9) FROM t"
    expected = await texts(source, f"{made} WHERE id NOT BETWEEN 500 AND 2500 AND id <> 4000")
    assert sorted(await texts(target, "SELECT * FROM t")) == sorted(expected)


@pytest.mark.parametrize(
    "steps",
    [
        (Select(("id",), (("n", "sum(id) OVER ()"),)),),
        (Select(("id",), (("n", "(SELECT count(*) FROM t)"),)),),
        (Select(("id",), (("n", "generate_series(1, 2)"),)),),
        (Where("id > (SELECT avg(id) FROM t)"),),
        (Where("id < 100"),),
    ],
)
async def test_steps_that_are_not_done_row_by_row_for_most_rows_are_one_query(
    postgres_url: str, steps: tuple[Declared, ...]
) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (id int PRIMARY KEY, x text)")
    await run_sql(postgres_url, "INSERT INTO t SELECT g, 'x' FROM generate_series(1, 2000) AS g")
    await run_sql(postgres_url, "ANALYZE t")
    assert await offered(postgres_url, ReadSpec(table="t", steps=steps)) is None
    assert await offered(postgres_url, ReadSpec(table="t", limit=1000)) is None


FITS = [
    ("int2", "int8", ["-1", "32767", None]),
    ("int4", "int8", ["-2147483648", "7"]),
    ("numeric", "numeric(9,2)", ["1.5", "-3", "1.5000", "NaN", None, "0.10"]),
    ("numeric", "numeric(9,-2)", ["100", "-1200", "0"]),
    ("numeric(7,2)", "numeric", ["1.50", "-3"]),
    ("text", "varchar(4)", ["äöüß", "", None, "a  ", "\\t"]),
    ("varchar(9)", "varchar(3)", ["abc", ""]),
    ("varchar(3)", "text", ["abc", ""]),
    ("char(3)", "text", ["a", "abc"]),
    ("timestamp(0)", "timestamp(3)", ["2020-01-01 12:00:01", "infinity"]),
]


@pytest.mark.parametrize(("from_", "into", "values"), FITS)
async def test_columns_of_like_types_pass_as_bytes(
    postgres_database: Callable[[], str], from_: str, into: str, values: list[str | None]
) -> None:
    source, target, as_text = postgres_database(), postgres_database(), postgres_database()
    await run_sql(source, f"CREATE TABLE t (id int PRIMARY KEY, v {from_})")
    async with sql(source) as connection:
        fill = f"INSERT INTO t SELECT $1::int, $2::text::{from_}"
        await connection.executemany(fill, list(enumerate(values)))
    for url in (target, as_text):
        await run_sql(url, f"CREATE TABLE t (id int PRIMARY KEY, v {into})")
    table = Database(source).table("t")

    async with postgres.open_reader(parse_url(source), ReadSpec(table="t"), INFO) as reader:
        columns = await columns_of(target)
        assert await reader.offers_frames()
        assert reader.use_frames(columns)
    await Pipeline("bytes", table.into(Database(target).append("t"))).run()
    text = table.into(Database(as_text).append("t"))
    await Pipeline("text", text, on_error=DeadLetter()).run()

    query = "SELECT id, v, v::text AS t FROM t ORDER BY id"
    assert len(await texts(target, query)) == len(values)
    assert await texts(target, query) == await texts(as_text, query)


async def columns_of(url: str) -> list[Column]:
    async with connected(parse_url(url), "source", "etl/p/run") as connection:
        found = await get_relation(connection, "t")
    return [attribute.column for attribute in found.attributes]


@pytest.mark.parametrize(
    ("from_", "into", "bad"),
    [
        ("numeric", "numeric(9,2)", "'0.005'"),
        ("text", "varchar(4)", "'12345'"),
        ("text", "varchar(4)", "'1234 '"),
    ],
)
async def test_a_value_that_its_column_would_bend_is_refused_by_name(
    postgres_database: Callable[[], str], from_: str, into: str, bad: str
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, f"CREATE TABLE t (id int PRIMARY KEY, v {from_}, x text)")
    fill = "INSERT INTO t SELECT g, '1', repeat('x', 90) FROM generate_series(1, 20000) AS g"
    await run_sql(source, fill)
    await run_sql(source, f"UPDATE t SET v = {bad} WHERE id = 19000")
    await run_sql(target, f"CREATE TABLE t (id int PRIMARY KEY, v {into}, x text)")
    flow = Database(source).table("t").into(Database(target).append("t"))
    pipeline = Pipeline("bent", flow, limits=Limits(memory="2MiB"))

    with pytest.raises(PipelineFailedError, match="column 'v'"):
        await pipeline.run()
    there = await value(target, "SELECT count(*) FROM t")
    assert 10_000 < there < 19_000
    await run_sql(source, "UPDATE t SET v = '2' WHERE id = 19000")
    await pipeline.run()

    query = f"SELECT id, v::{into} AS v, x FROM t ORDER BY id"
    assert await texts(target, query) == await texts(source, query)


async def test_another_type_in_the_target_takes_rows_as_text(
    postgres_database: Callable[[], str],
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, "CREATE TABLE t (id int PRIMARY KEY, n int)")
    await run_sql(source, "INSERT INTO t SELECT g, g FROM generate_series(1, 100) AS g")
    await run_sql(target, "CREATE TABLE t (id bigint PRIMARY KEY, n numeric(7,2))")
    async with postgres.open_reader(parse_url(source), ReadSpec(table="t"), INFO) as reader:
        assert await reader.offers_frames()
        assert not reader.use_frames(await columns_of(target))

    await Pipeline("types", Database(source).table("t").into(Database(target).append("t"))).run()

    assert await value(target, "SELECT sum(n) FROM t") == 5050


async def test_a_trigger_that_drops_rows_is_an_error(
    postgres_database: Callable[[], str],
) -> None:
    source, target = postgres_database(), postgres_database()
    for url in (source, target):
        await run_sql(url, "CREATE TABLE t (id int PRIMARY KEY)")
    await run_sql(source, "INSERT INTO t SELECT generate_series(1, 100)")
    await run_sql(
        target,
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN IF new.id % 10 = 0 THEN RETURN NULL; END IF; RETURN new; END';"
        " CREATE TRIGGER g BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()",
    )

    with pytest.raises(PipelineFailedError, match="took 90 of 100 rows"):
        await Pipeline(
            "drops", Database(source).table("t").into(Database(target).append("t"))
        ).run()

    assert await value(target, "SELECT count(*) FROM t") == 0


async def test_a_lost_connection_is_written_again(postgres_database: Callable[[], str]) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, "CREATE TABLE t (id int PRIMARY KEY, x text)")
    await run_sql(
        source, "INSERT INTO t SELECT g, repeat('x', 90) FROM generate_series(1, 20000) AS g"
    )
    pipeline = Pipeline(
        "lost",
        Database(source).table("t").into(Database(target).append("t")),
        limits=Limits(memory="2MiB"),
    )
    run = await pipeline.start()
    async with sql(target) as other:
        while not await _killed(other) and run.state != "ended":
            await other.execute("SELECT pg_sleep(0.001)")
    await run.wait()

    assert await value(target, "SELECT count(*) FROM t") == 20000
    assert await value(target, "SELECT count(DISTINCT id) FROM t") == 20000


async def _killed(connection: asyncpg.Connection[Any]) -> bool:
    """Whether a session that was in a COPY was ended."""
    found = await connection.fetchval(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE 'COPY%' AND state = 'active'"
    )
    return bool(found)


async def test_bad_rows_are_told_apart_where_they_are_kept(
    postgres_database: Callable[[], str],
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, "CREATE TABLE t (id int PRIMARY KEY)")
    await run_sql(source, "INSERT INTO t SELECT generate_series(1, 100)")
    await run_sql(target, "CREATE TABLE t (id int PRIMARY KEY CHECK (id % 10 > 0))")

    report = await Pipeline(
        "bad", Database(source).table("t").into(Database(target).append("t")), on_error=DeadLetter()
    ).run()

    assert report.flows[0].rows_written == 90
    assert await value(target, "SELECT count(*) FROM t") == 90
    assert await value(target, "SELECT count(*) FROM etl_reject") == 10
