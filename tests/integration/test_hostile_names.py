"""Names and values never become SQL: a canary beside the hostile tables survives."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from etl import ConfigError, Database, Pipeline
from etl.databases.sql import quote
from tests.integration.postgres_kit import run_sql, sql

HOSTILE = [
    'a"; DROP TABLE canary; --',
    "a'; DROP TABLE canary; --",
    "a\nb\tc",
    "back\\slash\\",
    "%s %(x)s {0} $1 :name ?",
    "--help",
    "naïve ☃ 名前",
    "x" * 63,
    "select",
    '"',
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("way", ["pp", "ps", "sp", "ss"])
async def test_a_hostile_name_is_only_a_name(
    way: str, name: str, postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    q = quote(name)
    column = quote(f"{name[:40]} c")
    make = (
        f"CREATE TABLE canary (n integer); CREATE TABLE {q} ({q} integer PRIMARY KEY,"
        f" {column} text); INSERT INTO {q} VALUES (1, 'a''; DROP TABLE canary; --'), (2, '\\')"
    )
    source = target = ""
    if "p" in way:
        postgres = postgres_database()
    if way[0] == "p":
        source = postgres
        await run_sql(source, make)
    else:
        source = f"sqlite:///{tmp_path / 'source.db'}"
        with closing(sqlite3.connect(tmp_path / "source.db")) as connection:
            connection.executescript(make)
    if way[1] == "p":
        target = postgres if way[0] == "s" else postgres_database()
        await run_sql(target, "CREATE TABLE IF NOT EXISTS canary (n integer)")
    else:
        target = f"sqlite:///{tmp_path / 'target.db'}"
        with closing(sqlite3.connect(tmp_path / "target.db")) as connection:
            connection.execute("CREATE TABLE canary (n integer)")

    table = Database(source).table(quote(name), key=(name,))
    into = Database(target)
    for sink in (into.append(quote(name)), into.upsert(quote(name), key=[name])):
        await Pipeline(f"p {name}", table.filter(lambda row: True).named(name).into(sink)).run(
            accept_change=True
        )
    replaced = into.replace(quote(name))
    flow = Database(source).table(quote(name), key=(name,)).named(f"{name} r").into(replaced)
    await Pipeline(name, flow).run()

    query = f"SELECT * FROM {q} ORDER BY 1"
    rows: list[Any]
    if way[1] == "p":
        async with sql(target) as connection:
            rows = [tuple(row) for row in await connection.fetch(query)]
            assert await connection.fetchval("SELECT count(*) FROM canary") == 0
    else:
        with closing(sqlite3.connect(tmp_path / "target.db")) as plain:
            rows = plain.execute(query).fetchall()
            assert plain.execute("SELECT count(*) FROM canary").fetchone() == (0,)
    assert rows == [(1, "a'; DROP TABLE canary; --"), (2, "\\")]


@pytest.mark.parametrize("side", ["source", "sink"])
async def test_a_nul_in_a_name_is_refused(side: str, sqlite_url: str) -> None:
    database = Database(sqlite_url)
    with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as connection:
        connection.execute("CREATE TABLE t (n integer primary key)")
    source, sink = ("a\0b", "x") if side == "source" else ("t", "a\0b")
    with pytest.raises(ConfigError):
        await Pipeline("p", database.table(source).into(database.append(sink))).run()
