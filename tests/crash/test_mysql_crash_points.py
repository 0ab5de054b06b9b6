"""The crash points of ``test_crash_points.py`` with MySQL on both sides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from etl.engine.failpoints import POINTS
from tests.crash.cases import Item, Rows
from tests.crash.matrix import Matrix, Setting, sqlite_files
from tests.crash.nursery import nursery
from tests.crash.outside import position_of, row_of, seen_of
from tests.integration.mysql_kit import SQL_MODE, name_of
from tests.mysql_server import MySQLServer

IN_LANE = tuple(point for point in POINTS if point.startswith("lane."))
SETTINGS = (
    ("add", "incremental", IN_LANE, 3),
    ("bad rows, replaced", "full", POINTS, 1),
)


class MySQLOutside:
    """A MySQL database, which nobody else uses."""

    def __init__(self, server: MySQLServer, url: str) -> None:
        self.url = url
        self._server = server
        self._name = name_of(url)

    def make_table(self, name: str, items: Sequence[Item]) -> None:
        rows = ", ".join(
            "({}, '{}', {})".format(n, kind.replace("\\", "\\\\"), amount)
            for n, kind, amount in map(row_of, items)
        )
        self._server.execute(
            SQL_MODE,
            f"CREATE TABLE {name} (id BIGINT PRIMARY KEY, kind VARCHAR(50) NOT NULL,"
            " amount BIGINT NOT NULL)",
            f"INSERT INTO {name} VALUES {rows}",
            database=self._name,
        )

    def empty(self) -> None:
        # A run that was killed may still have a session, which holds its locks.
        self._server.end_sessions(self._name)
        for name in self._tables():
            if not name.startswith("etl_"):
                self._server.execute(f"DROP TABLE {name}", database=self._name)
            elif name != "etl_version":
                self._server.execute(f"DELETE FROM {name}", database=self._name)

    def look(self, tables: Iterable[str]) -> tuple[Mapping[str, Rows], list[Any] | None]:
        there = self._tables()
        found = {
            name: sorted(self._query(f"SELECT {seen_of(name)} FROM {name}"))
            if name in there
            else []
            for name in tables
        }
        position = (
            self._query("SELECT position FROM etl_checkpoint") if "etl_checkpoint" in there else []
        )
        return found, position_of(position[0] if position else None)

    def _tables(self) -> set[str]:
        return {str(name) for (name,) in self._query("SHOW TABLES")}

    def _query(self, sql: str) -> Rows:
        return self._server.query(sql, database=self._name)


@pytest.mark.parametrize(("case", "reading", "points", "hit"), SETTINGS)
def test_a_rerun_after_a_crash_at_any_point_is_exact(
    case: str,
    reading: str,
    points: tuple[str, ...],
    hit: int,
    mysql_server: MySQLServer,
    mysql_database: Callable[[], str],
    tmp_path: Path,
) -> None:
    source = MySQLOutside(mysql_server, mysql_database())
    target = MySQLOutside(mysql_server, mysql_database())
    with nursery() as runs:
        matrix = Matrix(
            {"mysql": source}, {"mysql": target, "sqlite": sqlite_files(tmp_path)[1]}, runs
        )
        setting = Setting(case, reading, "small", "mysql", "mysql")
        matrix.try_setting(setting, (hit,), points)
    assert matrix.tally.crashes >= 8
