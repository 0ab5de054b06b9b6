"""Full reads in key ranges, with several lanes, from and into both databases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

import pytest

from etl import Database, DeadLetter, Limits, Pipeline, Row
from etl.connector import Advance, CheckpointKey, Reader, Sink, Target
from etl.databases import postgres, sqlite
from etl.databases.database import ReadSpec
from etl.databases.postgres import catalogue, load, sink_table
from etl.databases.postgres.connect import Connection
from etl.databases.url import parse_url
from etl.errors import FencedError
from etl.testing import MemoryTarget
from tests.integration import sqlite_kit
from tests.integration.postgres_kit import INFO, run_sql, texts, value
from tests.integration.sqlite_kit import script

LANES = Limits(batch_rows=25, group_rows=50, lanes=4)

POSTGRES = (
    "CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL);"
    "INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 1000) AS i"
)
SQLITE = (
    "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT NOT NULL);"
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000)"
    " INSERT INTO t SELECT i, 'v' || i FROM n;"
)


def shout(row: Row) -> Row:
    return row.replace(v=row["v"].upper())


@pytest.mark.parametrize("mode", ["append", "replace", "upsert"])
@pytest.mark.parametrize("way", ["pg-pg", "pg-sqlite", "sqlite-pg", "sqlite-sqlite", "pg-both"])
async def test_four_lanes_move_each_row_once(
    way: str, mode: str, postgres_url: str, sqlite_url: str
) -> None:
    await run_sql(postgres_url, POSTGRES)
    script(sqlite_url, SQLITE)
    from_, to = way.split("-")
    databases = {"pg": Database(postgres_url), "sqlite": Database(sqlite_url)}
    targets = list(databases) if to == "both" else [to]
    source = databases[from_].table("t")
    # A table is made in front of the lanes, or by the first rows of one of them.
    stream = source.map(shout) if mode == "replace" else source
    sinks = [
        databases[name].upsert("copy", key=["id"])
        if mode == "upsert"
        else getattr(databases[name], mode)("copy")
        for name in targets
    ]
    pipeline = Pipeline("t", stream.into(*sinks), limits=LANES)
    report = await pipeline.run()
    assert any("10 key ranges" in note for note in report.flows[0].notes)
    assert report.rows_written == 1000 * len(targets)
    if mode != "append":
        await pipeline.run()
    query = "SELECT count(*) || ' ' || count(DISTINCT id) || ' ' || sum(length(v)) FROM copy"
    wanted = f"1000 1000 {sum(len(f'v{n}') for n in range(1, 1001))}"
    kept = "SELECT partition || ' ' || position FROM etl_checkpoint"
    for name in targets:
        if name == "pg":
            assert await value(postgres_url, query) == wanted
            assert await value(postgres_url, kept) in {'main ["1000"]', "main [1000]"}
        else:
            assert sqlite_kit.value(sqlite_url, query) == wanted
            assert sqlite_kit.value(sqlite_url, kept).startswith("main [")


@pytest.mark.parametrize("look", [1, 2])
async def test_a_table_that_another_lane_makes_between_two_looks_is_not_a_changed_one(
    look: int, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await run_sql(postgres_url, POSTGRES)
    looks = 0

    async def fingerprint(connection: Connection, name: str) -> str | None:
        """As the real one; after the look that is meant, the table is made."""
        nonlocal looks
        found = await catalogue.fingerprint(connection, name)
        looks += name == '"copy"'
        if looks == look and found is None:
            await run_sql(postgres_url, "CREATE TABLE copy (id int, v text)")
        return found

    for module in (load, sink_table):
        monkeypatch.setattr(module, "fingerprint", fingerprint)
    database = Database(postgres_url)
    flow = database.table("t").map(shout).into(database.append("copy"))
    report = await Pipeline("t", flow).run()
    assert looks >= look
    assert report.rows_written == 1000
    assert await value(postgres_url, "SELECT count(*) FROM copy") == 1000


async def ranges(reader: Reader[object], count: int, most: int) -> None:
    """The ranges cover all rows, each row once, and are of about equal size."""
    bounds = await reader.chunks(most=most, least_rows=1)
    assert len(bounds) == most
    sizes: list[int] = []

    async def emit(batch: object) -> None:
        sizes[-1] += len(batch.rows)  # type: ignore[attr-defined]

    for after, until in zip([None, *bounds], [*bounds, None], strict=False):
        sizes.append(0)
        await reader.pump(after, until, emit)
    assert sizes.pop() == 0  # nothing lies behind the highest key
    assert sum(sizes) == count
    assert max(sizes) <= 2 * count / most + 1


@pytest.mark.parametrize(
    ("columns", "make"),
    [
        ("a int", "i"),
        ("a text", "md5(i::text)"),
        ("a char(9)", "'x' || i"),
        ("a numeric", "i / 7.0"),
        ("a timestamptz", "now() + i * interval '1 hour'"),
        ("a bytea", "decode(md5(i::text), 'hex')"),
        ("a boolean, b text", "i % 2 = 0, md5(i::text)"),
        ("a int, b int, c date", "i % 2, i % 10, date '2020-01-01' + i"),
    ],
)
async def test_postgres_ranges_cover_each_row_once(
    columns: str, make: str, postgres_url: str
) -> None:
    names = ", ".join(column.split()[0] for column in columns.split(", "))
    await run_sql(
        postgres_url,
        f"CREATE TABLE t ({columns}, PRIMARY KEY ({names}));"
        f"INSERT INTO t SELECT {make} FROM generate_series(1, 500) AS i",
    )
    async with postgres.open_reader(parse_url(postgres_url), ReadSpec(table="t"), INFO) as reader:
        await ranges(reader, 500, 6)


async def test_a_large_table_is_sampled_and_its_ranges_cover_it(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 250000);"
        "ANALYZE t",
    )
    big = replace(INFO, batch_rows=50_000, batch_bytes=1 << 20)
    async with postgres.open_reader(parse_url(postgres_url), ReadSpec(table="t"), big) as reader:
        await ranges(reader, 250_000, 5)


@pytest.mark.parametrize(
    ("columns", "make"),
    [
        ("a INTEGER", "i"),
        ("a TEXT COLLATE NOCASE", "CASE i % 2 WHEN 0 THEN 'A' ELSE 'b' END || i"),
        ("a", "CASE i % 3 WHEN 0 THEN i / 3.7 WHEN 1 THEN 'x' || i ELSE CAST(i AS BLOB) END"),
        ("a TEXT, b", "'k' || (i % 3), i"),
    ],
)
async def test_sqlite_ranges_cover_each_row_once(columns: str, make: str, sqlite_url: str) -> None:
    names = ", ".join(column.split()[0] for column in columns.split(", "))
    script(
        sqlite_url,
        f"CREATE TABLE t ({columns}, PRIMARY KEY ({names})) WITHOUT ROWID; WITH RECURSIVE n(i) AS"
        " (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)"
        f" INSERT INTO t SELECT {make} FROM n;",
    )
    async with sqlite.open_reader(parse_url(sqlite_url), ReadSpec(table="t"), INFO) as reader:
        await ranges(reader, 500, 6)


async def test_a_query_whose_key_is_not_proven_is_read_in_one_piece(postgres_url: str) -> None:
    """Its rows are watched for keys that are NULL, which no range would hold."""
    await run_sql(postgres_url, POSTGRES)
    url, spec = parse_url(postgres_url), ReadSpec(query="SELECT * FROM t", key=("id",))
    async with postgres.open_reader(url, spec, INFO) as reader:
        assert await reader.chunks(most=4, least_rows=1) == ()


async def test_a_key_that_functions_leave_alone_is_upserted_by_one_lane_if_it_is_another(
    postgres_url: str,
) -> None:
    await run_sql(
        postgres_url,
        POSTGRES + "; CREATE TABLE copy (id int, v text UNIQUE)",
    )
    database = Database(postgres_url)
    flow = database.table("t").into(database.upsert("copy", key=["v"]))
    report = await Pipeline("t", flow, limits=LANES).run()
    assert any("is not the key" in note for note in report.flows[0].notes)
    assert len(await texts(postgres_url, "SELECT * FROM copy")) == 1000


WHOLE = CheckpointKey(pipeline="p", flow="f", sink="copy", partition="main")
RANGE = CheckpointKey(pipeline="p", flow="f", sink="copy", partition="main/1")


@pytest.mark.parametrize("dialect", ["pg", "sqlite", "memory"])
async def test_a_range_that_is_cut_anew_has_a_higher_epoch_than_any_before(
    dialect: str, postgres_url: str, sqlite_url: str
) -> None:
    """Else an older run that still lives could move it."""
    targets: dict[str, Target] = {
        "pg": Database(postgres_url),
        "sqlite": Database(sqlite_url),
        "memory": MemoryTarget(),
    }
    target = targets[dialect]
    sink: Sink[object] = Sink(target=target, table="copy", mode="append")
    both, prints = [WHOLE, RANGE], ["{}", "{}"]
    async with target.open(INFO, sessions=1) as opened:
        session = await opened.session("f", [sink])
        first = await session.take_over(both, fingerprints=prints, fresh=False)
        await session.take_over([WHOLE], fingerprints=["{}"], fresh=False, drops=[RANGE])
        again = await session.take_over(both, fingerprints=prints, fresh=False)
        assert again[RANGE].epoch > first[RANGE].epoch
        stale = Advance(key=RANGE, epoch=first[RANGE].epoch, old=None, new=("1",), rows=0)
        await session.begin()
        with pytest.raises(FencedError):
            await session.advance([stale])
        await session.rollback()
        gone = Advance(
            key=RANGE, epoch=again[RANGE].epoch, old=None, new=None, rows=0, removes=True
        )
        await session.begin()
        await session.advance([gone])
        await session.commit()
        assert list(await session.load(both)) == [WHOLE]


class Kind(Enum):
    GOOD = "good"


@dataclass(frozen=True, slots=True)
class Thing:
    id: int
    kind: Kind


async def test_each_lane_sets_rows_aside_that_its_source_cannot_build(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE things (id int PRIMARY KEY, kind text NOT NULL); INSERT INTO things"
        " SELECT i, CASE WHEN i % 100 = 0 THEN 'bad' ELSE 'good' END"
        " FROM generate_series(1, 1000) AS i; CREATE TABLE copy (id int, kind text)",
    )
    database = Database(postgres_url)
    flow = database.table("things", row=Thing).into(database.append("copy"))
    report = await Pipeline("t", flow, limits=LANES, on_error=DeadLetter()).run()
    assert report.flows[0].rows_rejected == 10
    assert report.rows_written == 990
    assert await value(postgres_url, "SELECT count(*) FROM etl_reject") == 10
