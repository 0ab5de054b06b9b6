"""Full reads of a MySQL table in key ranges, with several lanes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from etl import Database, Limits, Pipeline, Row
from etl.databases import generic
from etl.databases.database import ReadSpec
from etl.databases.url import parse_url
from etl.errors import PipelineFailedError
from etl.verification import Pair, verify_all
from tests.integration.mysql_kit import fill, rows_of
from tests.integration.postgres_kit import INFO
from tests.mysql_server import MySQLServer

LANES = Limits(batch_rows=25, group_rows=50, lanes=4)
KEYS = {
    "id": "id int NOT NULL",
    "word": "word varchar(20) COLLATE utf8mb4_general_ci NOT NULL",
    "kind, big": "kind enum('z', 'a', 'm') NOT NULL, big bigint unsigned NOT NULL",
    "at": "at datetime(6) NOT NULL",
}
VALUES = {
    "id": "seq",
    "word": "CONCAT('Wörd ', CHAR(97 + seq % 26), seq)",
    "kind, big": "ELT(1 + seq % 3, 'z', 'a', 'm'), 18446744073709551615 - seq",
    "at": "TIMESTAMPADD(MICROSECOND, seq * 7, '2020-01-01')",
}


def shout(row: Row) -> Row:
    return row.replace(v=row["v"].upper())


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("mode", ["append", "replace", "upsert"])
async def test_four_lanes_move_each_row_once(
    mysql_server: MySQLServer, mysql_database: Callable[[], str], key: str, mode: str
) -> None:
    here, there = mysql_database(), mysql_database()
    fill(
        mysql_server,
        here,
        f"CREATE TABLE t ({KEYS[key]}, v varchar(20), PRIMARY KEY ({key}))",
        f"INSERT INTO t SELECT {VALUES[key]}, CONCAT('v', seq) FROM seq_1_to_1000",
    )
    source, target = Database(here), Database(there)
    sink = (
        target.upsert("t", key=key.split(", ")) if mode == "upsert" else getattr(target, mode)("t")
    )

    report = await Pipeline("p", source.table("t").into(sink), limits=LANES).run()

    assert any("10 key ranges" in note for note in report.flows[0].notes)
    assert report.rows_written == 1000
    (verdict,) = await verify_all(source, target, [Pair(source="t", target="t")])
    assert verdict.equal, verdict


async def test_ranges_are_of_about_equal_size_and_cover_all_rows(
    mysql_server: MySQLServer, mysql_url: str
) -> None:
    fill(
        mysql_server,
        mysql_url,
        "CREATE TABLE t (id int PRIMARY KEY)",
        "INSERT INTO t SELECT seq * seq FROM seq_1_to_1003",
    )
    async with generic.open_reader(parse_url(mysql_url), ReadSpec(table="t"), INFO) as reader:
        assert await reader.chunks(most=4, least_rows=500) == [(501**2,), (1003**2,)]
        assert await reader.chunks(most=4, least_rows=600) == []
        assert len(await reader.chunks(most=7, least_rows=1)) == 7


@pytest.mark.parametrize("lanes", [1, 3])
async def test_a_read_that_was_stopped_goes_on_with_any_number_of_lanes(
    mysql_server: MySQLServer, mysql_database: Callable[[], str], lanes: int
) -> None:
    here, there = mysql_database(), mysql_database()
    fill(
        mysql_server,
        here,
        "CREATE TABLE t (id int PRIMARY KEY, v varchar(20))",
        "INSERT INTO t SELECT seq, CONCAT('v', seq) FROM seq_1_to_1000",
    )
    bad = {577}

    def pass_on(row: Row) -> Row:
        if row["id"] in bad:
            raise ValueError
        return row

    def pipeline(limits: Limits) -> Pipeline:
        stream = Database(here).table("t").map(pass_on)
        return Pipeline("p", stream.into(Database(there).append("t")), limits=limits)

    with pytest.raises(PipelineFailedError):
        await pipeline(LANES).run()
    ((ranges,),) = rows_of(mysql_server, there, "SELECT COUNT(*) FROM etl_checkpoint")
    assert ranges == 11  # one for each range, and that of the whole
    bad.clear()
    await pipeline(replace(LANES, lanes=lanes)).run()

    (verdict,) = await verify_all(Database(here), Database(there), [Pair(source="t", target="t")])
    assert verdict.equal, verdict
