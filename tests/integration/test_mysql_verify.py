"""``etl verify`` with MySQL on either side: a copy is equal, and what changes is named."""

from __future__ import annotations

import asyncio
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import pytest

from etl.cli.app import run_command
from etl.databases import generic
from etl.databases.database import Database
from etl.databases.generic.mysql.digest import canonical
from etl.databases.generic.table import TableColumn
from etl.databases.sql import quote
from etl.databases.url import parse_url
from etl.errors import ConfigError
from etl.rows import Type
from etl.verification import Pair, Verdict, verify_all
from tests.integration.mysql_kit import (
    CORPUS,
    ONLY_MYSQL,
    POSTGRES,
    TABLES,
    copy,
    fill,
    rows_of,
)
from tests.integration.postgres_kit import run_sql
from tests.integration.sqlite_kit import script
from tests.mysql_server import MySQLServer

LITE = """
CREATE TABLE t (id INTEGER PRIMARY KEY, n NUMERIC, r REAL, x TEXT, b BLOB, d DATE, ok BOOLEAN,
    big INTEGER, price DECIMAL(10,2), ts TIMESTAMP, u UUID, j JSON);
INSERT INTO t VALUES
    (1, 1.5, 0.1, 'a''\\ ', x'00ff', '2020-01-31', 1, 9223372036854775807, '1.10',
        '2020-01-31T10:00:00.5', 'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', '{"a": 1.10}'),
    (2, -3, 5e-324, 'a	b', x'', '1999-12-31', 0, -1, 1e3, NULL, NULL, 'null'),
    (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
CREATE TABLE k (w TEXT PRIMARY KEY NOT NULL) WITHOUT ROWID;
INSERT INTO k VALUES ('a'), ('A'), ('a ');
"""


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges so small that some thousand rows take every step."""
    monkeypatch.setattr("etl.verification.CHUNK_ROWS", 500)
    monkeypatch.setattr("etl.verification.LEAF_ROWS", 50)


async def compare(source: str, target: str, *tables: str, **options: Any) -> dict[str, Verdict]:
    pairs = [Pair(source=quote(name), target=quote(name), **options) for name in tables]
    found = await verify_all(Database(source), Database(target), pairs)
    return dict(zip(tables, found, strict=True))


def test_a_double_is_hashed_by_its_eight_bytes(mysql_server: MySQLServer, mysql_url: str) -> None:
    """No function of the server's gives them: they are computed, and none may be wrong."""
    dice = random.Random(7)
    found = {0.0, 5e-324, 2.2250738585072009e-308, 2.2250738585072014e-308, 1.7976931348623157e308}
    found |= {2.0**n for n in range(-1074, 1024)}
    found |= {math.nextafter(2.0**n, 0.0) for n in range(-1073, 1024)}
    while len(found) < 6_000:
        (value,) = struct.unpack("d", dice.randbytes(8))
        found |= {abs(value)} if math.isfinite(value) else set()
    values = sorted({*found, *(-one for one in found)} - {-0.0}) + [0.1, 1e15, 1e16, 123456.789]
    fill(
        mysql_server,
        mysql_url,
        "CREATE TABLE t (id int PRIMARY KEY, x double)",
        "INSERT INTO t VALUES " + ", ".join(f"({n}, {x!r})" for n, x in enumerate(values)),
    )
    column = TableColumn(
        name="x",
        type=Type(kind="float64", name="double", dialect="mysql"),
        declared="double",
        base="double",
    )

    rows = rows_of(
        mysql_server, mysql_url, f"SELECT {canonical('exact', column, '`x`')} FROM t ORDER BY id"
    )

    wrong = [
        (x, said) for x, (said,) in zip(values, rows, strict=True)
        if said != struct.pack(">d", x).hex()
    ]  # fmt: skip
    assert wrong == []


@pytest.mark.parametrize("target", ["mysql", "sqlite", "postgresql"])
async def test_copies_of_mysql_are_equal_and_every_value_that_changes_is_named(
    mysql_server: MySQLServer,
    mysql_database: Callable[[], str],
    sqlite_url: str,
    postgres_url: str,
    target: str,
) -> None:
    source = mysql_database()
    there = {"mysql": mysql_database(), "sqlite": sqlite_url, "postgresql": postgres_url}[target]
    more, tables = (ONLY_MYSQL, (*TABLES, "zero")) if target != "postgresql" else ((), TABLES)
    fill(mysql_server, source, *CORPUS, *more)
    await copy(source, there)

    for name, verdict in (await compare(source, there, *tables)).items():
        assert verdict.equal, (name, verdict)

    for name in tables:
        await every_value_is_seen(mysql_server, source, there, name)


async def every_value_is_seen(server: MySQLServer, here: str, there: str, table: str) -> None:
    """Take every value out of one row of a table that allows it."""
    name = "`" + table.replace("`", "``") + "`"
    text = table.replace("'", "''").replace("\\", "\\\\")
    columns = [
        str(column)
        for (column,) in rows_of(
            server,
            here,
            "SELECT column_name FROM information_schema.columns WHERE table_schema = DATABASE()"
            f" AND table_name = '{text}' AND is_nullable = 'YES' AND generation_expression IS NULL"
            " ORDER BY ordinal_position",
        )
    ]
    quoted = ["`" + column.replace("`", "``") + "`" for column in columns]
    if not columns:
        return
    best = " + ".join(f"({one} IS NOT NULL)" for one in quoted)
    where = f"{best} = (SELECT m FROM (SELECT MAX({best}) AS m FROM {name}) AS x)"
    values = rows_of(server, here, f"SELECT {', '.join(quoted)} FROM {name} WHERE {where} LIMIT 1")
    if not values:
        return  # it has no rows
    lost = [column for column, value in zip(columns, values[0], strict=True) if value is not None]
    changes = ", ".join(f"{one} = NULL" for one in quoted)
    fill(server, here, f"UPDATE {name} SET {changes} WHERE {where} LIMIT 1")

    verdict = (await compare(here, there, table, values=True))[table]

    if table == "nokey":
        assert not verdict.located
        return
    assert verdict.changed == 1, (table, verdict)
    (difference,) = verdict.differences
    computed = {"gen": ["b", "c"]}.get(table, [])
    assert sorted(difference.columns) == sorted([*lost, *computed])
    assert all(here is None for here, _ in difference.values.values())


@pytest.mark.parametrize("source", ["sqlite", "postgresql"])
async def test_copies_into_mysql_are_equal_and_a_changed_value_is_named(
    mysql_server: MySQLServer, mysql_url: str, sqlite_url: str, postgres_url: str, source: str
) -> None:
    if source == "sqlite":
        script(sqlite_url, LITE)
        here, big, tables = sqlite_url, "t", ["t", "k"]
    else:
        await run_sql(postgres_url, POSTGRES)
        here, big, tables = postgres_url, "kinds", ["kinds", "words", "lines"]
    await copy(here, mysql_url)
    columns = [
        str(column)
        for (column,) in rows_of(
            mysql_server,
            mysql_url,
            "SELECT column_name FROM information_schema.columns WHERE table_schema = DATABASE()"
            f" AND table_name = '{big}' AND is_nullable = 'YES'",
        )
    ]

    for name, verdict in (await compare(here, mysql_url, *tables)).items():
        assert verdict.equal, (name, verdict)

    for column in columns:
        fill(mysql_server, mysql_url, f"UPDATE {big} SET `{column}` = NULL WHERE id = 1")
    (difference,) = (await compare(here, mysql_url, big))[big].differences
    assert difference.key == {"id": 1}
    assert sorted(difference.columns) == sorted(columns)


# -- many rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["mysql", "sqlite", "postgresql"])
@pytest.mark.parametrize("key", ["id", "kind, id", "name", "word", "at"])
def test_a_repair_rewrites_the_rows_that_differ(
    mysql_server: MySQLServer,
    mysql_database: Callable[[], str],
    sqlite_url: str,
    postgres_url: str,
    target: str,
    key: str,
    small_ranges: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By keys that an index finds in this order, and by some that have another one elsewhere."""
    here = mysql_database()
    there = {"mysql": mysql_database(), "sqlite": sqlite_url, "postgresql": postgres_url}[target]
    fill(
        mysql_server,
        here,
        "CREATE TABLE t (id int NOT NULL, kind smallint NOT NULL, name varchar(40) COLLATE"
        " utf8mb4_nopad_bin NOT NULL, word varchar(40) COLLATE utf8mb4_general_ci NOT NULL,"
        f" at datetime(3) NOT NULL, v varchar(20) UNIQUE, PRIMARY KEY ({key}))",
        "INSERT INTO t SELECT seq, seq % 7, CONCAT('k''é ', seq), CONCAT('Wörd ', CHAR(97 + seq %"
        " 26), seq), TIMESTAMPADD(MICROSECOND, seq * 1000, '2020-01-01'), CONCAT('v', seq)"
        " FROM seq_1_to_1500",
    )
    assert run_command(["copy", here, there, "--verify"]) == 0
    assert "equal, 1500 rows" in capsys.readouterr().out.replace(",500", "500")
    more = "INSERT INTO t VALUES (2000, 1, 'more', 'more', '2021-01-01 00:00:00', 'v200')"
    for change in (
        "UPDATE t SET v = 'x' WHERE id = 3",
        "UPDATE t SET v = 'v3' WHERE id = 900",
        "UPDATE t SET v = 'v900' WHERE id = 3",
        "DELETE FROM t WHERE id BETWEEN 100 AND 400",
        more,
    ):
        if target == "mysql":
            fill(mysql_server, there, change)
        elif target == "sqlite":
            script(there, change)
        else:
            asyncio.run(run_sql(there, change))

    assert run_command(["verify", here, there, "--repair"]) == 0

    out, err = capsys.readouterr()
    assert "3 rows deleted, 303 written" in err
    assert "equal, 1500 rows" in out.replace(",500", "500")


def test_a_repair_leaves_alone_what_refers_to_its_rows(
    mysql_server: MySQLServer, mysql_database: Callable[[], str]
) -> None:
    here, there = mysql_database(), mysql_database()
    for url in (here, there):
        fill(
            mysql_server,
            url,
            "CREATE TABLE p (id int PRIMARY KEY, v varchar(5))",
            "CREATE TABLE c (id int PRIMARY KEY, p int, FOREIGN KEY (p) REFERENCES p (id)"
            " ON DELETE CASCADE)",
            "INSERT INTO p VALUES (1, 'a')",
            "INSERT INTO c VALUES (1, 1)",
        )
    fill(mysql_server, there, "UPDATE p SET v = 'x'")
    assert run_command(["verify", here, there, "--table", "p", "--repair"]) == 0
    assert run_command(["verify", here, there]) == 0


@pytest.mark.parametrize("source", ["sqlite", "postgresql"])
def test_a_target_in_mysql_is_repaired(
    mysql_server: MySQLServer,
    mysql_url: str,
    sqlite_url: str,
    postgres_url: str,
    source: str,
    small_ranges: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = """
        CREATE TABLE t (id int, name varchar(40) PRIMARY KEY, v text);
        INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900)
        SELECT i, 'k''é\\' || i, 'v' || i FROM n
    """
    here = sqlite_url if source == "sqlite" else postgres_url
    if source == "sqlite":
        script(here, rows)
    else:
        asyncio.run(run_sql(here, rows))
    assert run_command(["copy", here, mysql_url, "--verify"]) == 0
    fill(
        mysql_server,
        mysql_url,
        "UPDATE t SET v = 'x' WHERE id = 3",
        "DELETE FROM t WHERE id BETWEEN 100 AND 120",
        "INSERT INTO t VALUES (1000, 'more', 'v')",
    )
    capsys.readouterr()

    assert run_command(["verify", here, mysql_url]) == 1
    assert "1 changed, 21 missing, 1 surplus" in capsys.readouterr().out
    assert run_command(["verify", here, mysql_url, "--repair"]) == 0
    assert "equal, 900 rows" in capsys.readouterr().out


# -- what is not there to be compared -------------------------------------------------------------


async def test_a_row_that_the_server_cannot_hash_is_refused_and_not_taken_for_equal(
    mysql_server: MySQLServer, mysql_database: Callable[[], str]
) -> None:
    """The server makes NULL of a text that is longer than its packets, on both sides alike."""
    here, there = mysql_database(), mysql_database()
    (packet,) = rows_of(mysql_server, here, "SELECT @@max_allowed_packet")[0]
    for url, letter in ((here, "a"), (there, "b")):
        fill(
            mysql_server,
            url,
            "CREATE TABLE t (id int PRIMARY KEY, x longtext, y longtext)",
            f"INSERT INTO t VALUES (1, REPEAT('{letter}', {packet * 2 // 3}), '')",
            "UPDATE t SET y = x",
        )
    with pytest.raises(ConfigError, match="longer than the server's max_allowed_packet"):
        await compare(here, there, "t")


async def test_what_jsonb_made_of_a_text_cannot_be_compared(
    mysql_server: MySQLServer, mysql_url: str, postgres_url: str
) -> None:
    fill(mysql_server, mysql_url, "CREATE TABLE t (id int PRIMARY KEY, j json)")
    await run_sql(postgres_url, "CREATE TABLE t (id int PRIMARY KEY, j jsonb)")
    verdict = (await compare(mysql_url, postgres_url, "t"))["t"]
    assert not verdict.equal
    assert "column 'j' cannot be compared" in verdict.structure[0]


def test_another_dialect_has_no_hashes() -> None:
    with pytest.raises(ConfigError, match="no hashes for this dialect"):
        generic.open_snapshot(parse_url("oracle+oracledb://a@b/c"), side="source")


async def test_one_instant_is_compared(
    mysql_server: MySQLServer, mysql_url: str, sqlite_url: str
) -> None:
    """What is written while a comparison goes on is not seen."""
    fill(mysql_server, mysql_url, "CREATE TABLE t (id int PRIMARY KEY)", "INSERT INTO t VALUES (1)")
    await copy(mysql_url, sqlite_url)
    seen: list[int] = []

    def write(progress: Any) -> None:
        seen.append(progress.source_rows)
        fill(mysql_server, mysql_url, f"INSERT INTO t VALUES ({100 + len(seen)})")

    pairs = [Pair(source="t", target="t")] * 2
    verdicts = await verify_all(Database(mysql_url), Database(sqlite_url), pairs, write)
    assert [verdict.equal for verdict in verdicts] == [True, True]
    assert seen == [1, 1]


async def test_a_long_text_full_of_backslashes_and_tabs_is_compared_in_its_time(
    mysql_server: MySQLServer, mysql_database: Callable[[], str], postgres_url: str
) -> None:
    """MariaDB's REPLACE would take minutes."""
    source, target = mysql_database(), mysql_database()
    fill(
        mysql_server,
        source,
        "CREATE TABLE t (id int PRIMARY KEY, v longtext, w text)",
        r"INSERT INTO t VALUES (1, REPEAT('é\\\t', 400000), 'a\\\tb'), (2, NULL, ''),"
        r" (3, '\\t', '\t'), (4, '\t', '\\t')",
    )
    await copy(source, target)
    await copy(source, postgres_url)

    async with asyncio.timeout(60):
        found = [await compare(source, to, "t") for to in (target, postgres_url)]

    assert all(verdicts["t"].equal for verdicts in found)
    fill(mysql_server, target, r"UPDATE t SET v = '\\t' WHERE id = 4")
    (difference,) = (await compare(source, target, "t"))["t"].differences
    assert dict(difference.key) == {"id": 4}
