"""The command with MySQL on either side: each option works, or one sentence says that it does not.

Every case is checked for its exit code, and none may end in a traceback.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Generator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl.databases import trust
from etl.databases.database import driver_of
from etl.databases.url import parse_url
from etl.errors import ConfigError
from tests.integration.forked_etl import ForkedEtl, forked_etl
from tests.integration.mysql_kit import FAMILY, copy, fill, name_of, rows_of
from tests.mysql_server import MySQLServer

PARENTS = "SELECT id, code, n FROM parent ORDER BY id"
CHILDREN = "SELECT a, b, parent_id, code FROM child ORDER BY a, b"


@pytest.fixture
def etl(tmp_path: Path) -> Generator[ForkedEtl]:
    with forked_etl(tmp_path, {}) as command:
        yield command


def done(etl: ForkedEtl, *arguments: str) -> str:
    code, said = etl(*arguments)
    assert code == 0, said
    return said


def refused(etl: ForkedEtl, *arguments: str) -> str:
    """What an answer with exit code 2 says, on one line."""
    code, said = etl(*arguments)
    assert code == 2, said
    assert "Traceback" not in said
    return " ".join(said.split())


def holds(server: MySQLServer, url: str, rows: Sequence[Any]) -> bool:
    return rows_of(server, url, PARENTS) == rows and bool(rows_of(server, url, CHILDREN))


def test_what_a_copy_would_do_is_told_and_nothing_is_made(
    etl: ForkedEtl, mysql_server: MySQLServer, mysql_database: Callable[[], str], sqlite_url: str
) -> None:
    here, there = mysql_database(), mysql_database()
    fill(mysql_server, here, *FAMILY)

    said = done(etl, "copy", here, there, "--dry-run")
    assert "which is made" in said
    assert "exact" in said
    assert rows_of(mysql_server, there, "SHOW TABLES") == []
    done(etl, "copy", here, sqlite_url, "--dry-run")
    assert not Path(sqlite_url.removeprefix("sqlite:///")).exists()

    fill(mysql_server, there, "CREATE TABLE parent (id datetime PRIMARY KEY, code int, n int)")
    said = refused(etl, "copy", here, there, "--dry-run", "--schema-change", "ignore")
    assert "no exact way from the one to the other" in said
    assert "nothing was written" in said
    fill(mysql_server, there, "DROP TABLE parent", "CREATE TABLE parent (id int PRIMARY KEY)")
    assert "--schema-change" in refused(etl, "copy", here, there, "--dry-run")
    assert rows_of(mysql_server, there, "SHOW TABLES") == [("parent",)]
    said = refused(etl, "copy", here, there, "--dry-run", "--allow-lossy", "parent.n")
    assert "every value arrives exactly or is refused" in said


@pytest.mark.parametrize("options", [(), ("--jobs", "2"), ("--snapshot", "run")])
def test_tables_published_each_by_itself_are_whole_and_keep_their_foreign_keys(
    etl: ForkedEtl,
    mysql_server: MySQLServer,
    mysql_database: Callable[[], str],
    options: Sequence[str],
) -> None:
    here, there = mysql_database(), mysql_database()
    fill(mysql_server, here, *FAMILY)
    for _ in range(2):
        done(etl, "copy", here, there, "--publish", "table", *options)
        assert holds(mysql_server, there, [(5, "x", 1), (9, "y", 2)])
    made = str(rows_of(mysql_server, there, "SHOW CREATE TABLE child")[0][1])
    assert made.count("FOREIGN KEY") == 2
    assert "staging" not in str(rows_of(mysql_server, there, "SHOW TABLES"))


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_parents_come_before_their_children_in_tables_that_are_there(
    etl: ForkedEtl, mysql_server: MySQLServer, mysql_database: Callable[[], str], mode: str
) -> None:
    here, there = mysql_database(), mysql_database()
    fill(mysql_server, here, *FAMILY)
    fill(mysql_server, there, *(one for one in FAMILY if one.startswith("CREATE")))
    done(etl, "copy", here, there, "--mode", mode)
    assert holds(mysql_server, there, [(5, "x", 1), (9, "y", 2)])


def test_files_are_loaded_and_written(
    etl: ForkedEtl, mysql_server: MySQLServer, mysql_url: str, tmp_path: Path
) -> None:
    fill(
        mysql_server,
        mysql_url,
        "CREATE TABLE there (id int PRIMARY KEY, n bigint unsigned, j json, d decimal(5,2),"
        " x blob, ts timestamp(6) NULL, s text)",
    )
    (tmp_path / "there.csv").write_text(
        "id,n,j,d,x,ts,s\n"
        '1,18446744073709551615,"{""a"": [1.10]}",-1.5,\\x00ff,2020-01-01 10:00:00+02,007\n'
    )
    (tmp_path / "made.csv").write_text("id,price\n1,1.50\n2,\n")
    (tmp_path / "lines.jsonl").write_text(
        '{"id": 1, "o": {"k": 1.10}, "s": "a"}\n{"id": 2, "o": "text", "s": null}\n'
    )
    table = pa.table({"id": [1, 2], "d": pa.array([Decimal("1.50"), None], pa.decimal128(10, 2))})
    pq.write_table(table, tmp_path / "arrow.parquet")

    done(etl, "copy", "there.csv", mysql_url, "--mode", "upsert", "--key", "id")
    [row] = rows_of(mysql_server, mysql_url, "SELECT n, j, d, x, CAST(ts AS CHAR), s FROM there")
    assert row == (
        18446744073709551615, '{"a": [1.10]}', Decimal("-1.50"), b"\x00\xff",
        "2020-01-01 08:00:00.000000", "007",
    )  # fmt: skip
    for name in ("made.csv", "lines.jsonl", "arrow.parquet"):
        done(etl, "copy", name, mysql_url)
    found = rows_of(mysql_server, mysql_url, "SELECT id, price FROM made ORDER BY id")
    assert found == [(1, Decimal("1.5")), (2, None)]
    found = rows_of(mysql_server, mysql_url, "SELECT o, s FROM `lines` ORDER BY id")
    assert found == [('{"k": 1.10}', "a"), ('"text"', None)]
    found = rows_of(mysql_server, mysql_url, "SELECT id, d FROM arrow ORDER BY id")
    assert found == [(1, Decimal("1.5")), (2, None)]

    for name in ("out.csv", "out.jsonl", "out.parquet"):
        done(etl, "copy", mysql_url, name, "--table", "there")
    assert '"{""a"": [1.10]}",-1.50' in (tmp_path / "out.csv").read_text()
    assert '"j":{"a": [1.10]},"d":-1.50' in (tmp_path / "out.jsonl").read_text()
    assert pq.read_table(tmp_path / "out.parquet").column("d").to_pylist() == [Decimal("-1.50")]


def test_a_wrong_address_is_one_sentence(
    etl: ForkedEtl, mysql_server: MySQLServer, mysql_url: str
) -> None:
    there = "sqlite:///out.db"
    port = urlsplit(mysql_url).port
    wrong = f"mysql://nobody:sesame@127.0.0.1:{port}/{name_of(mysql_url)}"
    for case, sentence in {
        (wrong, there): "access denied: the user or the password is wrong",
        (mysql_url + "_not", there): "Unknown database",
        (mysql_url + "?sslmode=require", there): "unknown option 'sslmode'; known are charset",
        (mysql_url + "?ssl_ca=none.pem", there): "the file 'none.pem', which is not there",
    }.items():
        for more in ((), ("--dry-run",)):
            said = refused(etl, "copy", *case, *more)
            assert sentence in said
            assert "sesame" not in said
    code, said = etl("copy", "mysql://a:sesame@nowhere.invalid/a", there)
    assert code == 75
    assert "Name or service not known" in said or "nowhere.invalid" in said
    assert "sesame" not in said


async def test_a_remote_server_that_is_not_verified_is_warned_of(
    mysql_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = parse_url(mysql_url)
    with caplog.at_level(logging.WARNING, "etl"):
        await driver_of(url).list_tables(url)
        assert not caplog.messages
        # This machine stands for another one: a test may send nothing over a network.
        monkeypatch.setattr(trust, "LOCAL", ())
        for _ in range(2):
            await driver_of(url).list_tables(url)
    (message,) = caplog.messages  # once, for two connections
    assert "not encrypted" in message
    assert "ssl_ca=" in message


async def test_a_driver_that_is_not_installed_is_named(
    mysql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "asyncmy", None)
    url = parse_url(mysql_url)
    with pytest.raises(ConfigError, match=r"pip install 'etl\[mysql\]'"):
        await driver_of(url).list_tables(url)


@pytest.mark.parametrize("target", ["mysql", "sqlite", "postgresql"])
async def test_check_constraints_are_told_as_not_carried(
    mysql_server: MySQLServer,
    mysql_database: Callable[[], str],
    sqlite_url: str,
    postgres_url: str,
    target: str,
) -> None:
    here = mysql_database()
    fill(
        mysql_server,
        here,
        "CREATE TABLE t (id int PRIMARY KEY, n int CHECK (n > 0), j json, CONSTRAINT few CHECK"
        " (n < 100))",
    )
    there = {"mysql": mysql_database(), "sqlite": sqlite_url, "postgresql": postgres_url}[target]
    notes = [one for one in await copy(here, there) if "CHECK" in one]
    assert len(notes) == 2
    assert "`n` > 0" in notes[0] + notes[1]
    assert all("not carried" in one for one in notes)
