"""A source whose columns change between runs, with a MySQL target: refused, left out, or added."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etl.engine import failpoints
from etl.errors import SchemaMismatchError
from tests.integration.forked_etl import forked_etl
from tests.integration.mysql_kit import copy, fill, rows_of
from tests.integration.sqlite_kit import script
from tests.mysql_server import MySQLServer

FIRST = "CREATE TABLE t (id int PRIMARY KEY, v varchar(9)); INSERT INTO t VALUES (1, 'a'), (2, 'b')"
LATER = "ALTER TABLE t ADD COLUMN note text; INSERT INTO t VALUES (3, 'c', 'new'), (4, 'd', NULL)"
ALL = "SELECT * FROM t ORDER BY id"
APPEND = {"mode": "append", "cursor": ("id",)}
UPSERT = {"mode": "upsert", "cursor": ("id",)}
REPLACE = {"mode": "replace"}


class Source:
    """A source of either dialect."""

    def __init__(self, server: MySQLServer, url: str) -> None:
        self.url = url
        self._server = server

    def run(self, statements: str) -> None:
        if self.url.startswith("sqlite"):
            script(self.url, statements)
        else:
            fill(self._server, self.url, *statements.split("; "))


@pytest.mark.parametrize(
    ("source", "how"),
    [("mysql", APPEND), ("mysql", REPLACE), ("sqlite", UPSERT), ("sqlite", REPLACE)],
)
async def test_a_new_column_is_refused_then_left_out_then_added_as_was_asked(
    mysql_server: MySQLServer,
    mysql_database: Callable[[], str],
    sqlite_url: str,
    source: str,
    how: dict[str, Any],
) -> None:
    here = Source(mysql_server, mysql_database() if source == "mysql" else sqlite_url)
    there = mysql_database()
    here.run(FIRST)
    await copy(here.url, there, **how)
    here.run(LATER)

    with pytest.raises(SchemaMismatchError, match=r"no column 'note'.*schema-change"):
        await copy(here.url, there, **how)
    assert rows_of(mysql_server, there, ALL) == [(1, "a"), (2, "b")]

    notes = "\n".join(await copy(here.url, there, schema_change="ignore", **how))
    assert "the table lacks it: column 'note'" in notes
    assert rows_of(mysql_server, there, ALL) == [(1, "a"), (2, "b"), (3, "c"), (4, "d")]

    here.run("INSERT INTO t VALUES (5, 'e', 'newer')")
    notes = "\n".join(await copy(here.url, there, schema_change="evolve", **how))
    assert "added to the table, with NULL in the rows that were there: column 'note'" in notes
    old = None if how["mode"] != "replace" else "new"  # only a replace reads the old rows again
    every = [(1, "a", None), (2, "b", None), (3, "c", old), (4, "d", None), (5, "e", "newer")]
    assert rows_of(mysql_server, there, ALL) == every

    here.run("INSERT INTO t VALUES (6, 'f', 'newest')")
    assert "column" not in "\n".join(await copy(here.url, there, **how))  # nothing is new any more
    assert rows_of(mysql_server, there, ALL)[-1] == (6, "f", "newest")


async def test_a_column_that_the_source_lost_is_told(
    mysql_server: MySQLServer, mysql_database: Callable[[], str]
) -> None:
    here, there = Source(mysql_server, mysql_database()), mysql_database()
    here.run(FIRST)
    await copy(here.url, there)
    here.run("ALTER TABLE t DROP COLUMN v")
    notes = "\n".join(await copy(here.url, there))
    assert "not in the source, so new rows get the table's default: column 'v'" in notes


async def test_staged_rows_that_lack_the_new_column_are_read_again(
    mysql_server: MySQLServer, mysql_database: Callable[[], str], tmp_path: Path
) -> None:
    here, there = Source(mysql_server, mysql_database()), mysql_database()
    here.run(FIRST)
    await copy(here.url, there)
    here.run(LATER)
    with forked_etl(tmp_path, {}) as etl:
        crash = {failpoints.VARIABLE: "run.before_publish"}
        command = ("copy", here.url, there, "--schema-change")
        assert etl(*command, "ignore", env=crash)[0] == failpoints.CRASHED
        code, said = etl(*command, "evolve")
    assert code == 0, said
    assert rows_of(mysql_server, there, ALL)[2] == (3, "c", "new")
