"""Names and values never become SQL: a canary beside the hostile tables survives."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from etl import ConfigError, Database, DeadLetter, Pipeline, Row
from etl.databases.database import driver_of
from etl.databases.sql import quote
from tests.integration.forked_etl import forked_etl
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


HOSTILE_TEXT = "a'; DROP TABLE canary; --\" \\ %s $1 {0}\n"


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
async def test_names_in_a_pipeline_and_positions_are_values(
    kind: str, postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    """The pipeline, its flow and stages, the position, the reason of a reject: all are bound."""
    url = postgres_database() if kind == "postgresql" else f"sqlite:///{tmp_path / 'all.db'}"
    text = "'" + HOSTILE_TEXT.replace("'", "''") + "'"
    script = (
        "CREATE TABLE canary (n integer); CREATE TABLE t (k text PRIMARY KEY, v text);"
        f" INSERT INTO t VALUES ({text}, {text}), ('b', 'x')"
    )
    await _execute(url, script)

    def refuse(row: Row) -> Row:
        if row["k"] == "b":
            raise ValueError(HOSTILE_TEXT)
        return row

    refuse.__name__ = refuse.__qualname__ = HOSTILE_TEXT
    database = Database(url)
    source = database.table("t", key=("k",)).map(refuse).named(HOSTILE_TEXT)
    for sink in (database.append("u"), database.upsert("w", key=("k",)), database.replace("x")):
        pipeline = Pipeline(f"{sink.mode} {HOSTILE_TEXT}", source.into(sink), on_error=DeadLetter())
        assert (await pipeline.run()).rows_rejected == 1
        assert (await pipeline.retry_rejects())[0].refused == 1
        async with driver_of(database.url).open_state(database.url) as store:
            (state,) = await store.states(pipeline.name)
            assert state.key.flow == HOSTILE_TEXT
            await store.set_position(state.key, (HOSTILE_TEXT,))
            (state,) = await store.states(pipeline.name)
            assert state.checkpoint.position == (HOSTILE_TEXT,)
            if sink.mode != "replace":
                await pipeline.run()  # from a position that is such a text
            await store.reset([state.key])
    rows = await _rows(url, "SELECT k, v FROM w")
    assert rows == [(HOSTILE_TEXT, HOSTILE_TEXT)]
    assert await _rows(url, "SELECT count(*) FROM canary") == [(0,)]


@pytest.mark.parametrize("kind", ["postgresql", "sqlite"])
async def test_a_cursor_s_value_is_a_value(
    kind: str, postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    url = postgres_database() if kind == "postgresql" else f"sqlite:///{tmp_path / 'all.db'}"
    await _execute(
        url,
        'CREATE TABLE canary (n integer); CREATE TABLE t ("c\'; --" integer NOT NULL,'
        ' "k""x" text PRIMARY KEY)',
    )
    database = Database(url)
    flow = database.table("t", cursor=("c'; --", 'k"x')).into(database.append("u"))
    for number in range(3):
        text = "'" + f"{number}{HOSTILE_TEXT}".replace("'", "''") + "'"
        await _execute(url, f"INSERT INTO t VALUES (1, {text})")
        await Pipeline("p", flow).run()
    assert await _rows(url, "SELECT count(*) FROM u") == [(3,)]
    assert await _rows(url, "SELECT count(*) FROM canary") == [(0,)]


@pytest.mark.parametrize("way", ["ps", "sp", "pp"])
def test_options_of_the_command_are_names(
    way: str, postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    name = HOSTILE[0]
    q, inner = quote(name), quote(" c'; DROP TABLE canary; --, n")
    urls: list[str] = []
    for number, kind in enumerate(way):
        path = tmp_path / f"{number}.db"
        urls.append(postgres_database() if kind == "p" else f"sqlite:///{path}")
        schema = f"CREATE SCHEMA {q};" if kind == "p" else ""
        asyncio.run(_execute(urls[-1], f"{schema} CREATE TABLE canary (n integer)"))
    asyncio.run(
        _execute(
            urls[0],
            f"CREATE TABLE {q} ({inner} integer PRIMARY KEY, n integer NOT NULL);"
            f" INSERT INTO {q} VALUES (1, 1), (2, 2)",
        )
    )
    in_schema = ["--target-schema", name] if way[1] == "p" else []
    with forked_etl(tmp_path, {"SOURCE": urls[0], "TARGET": urls[1]}) as etl:
        copy = ("copy", "env:SOURCE", "env:TARGET")
        for options in (
            ["--table", q, *in_schema],
            ["--table", q, "--as", quote(name + "2"), "--mode", "append", "--name", name],
            ["--table", q, "--as", quote(name + "3"), "--mode", "upsert", "--key", inner],
            [
                "--table",
                q,
                "--as",
                quote(name + "4"),
                "--mode",
                "append",
                "--cursor",
                f"n,{inner}",
            ],
            ["--exclude", q, "--name", name + "5"],
        ):
            code, output = etl(*copy, *options)
            assert code == 0, (options, output)
        for options in (
            ["--schema", name],
            ["--table", q, "--key", f"{inner}x"],
            ["--table", q, "--as", name],
            ["--table", q, "--as", "a\x1bb", "--cursor", name],
        ):
            code, output = etl(*copy, *options)
            assert code == 2, (options, output)
        verify = ["--as", quote(name + "2"), "--table", q]
        code, output = etl("verify", "env:SOURCE", "env:TARGET", *verify)
        assert code == 0, output
        assert etl("state", "show", "env:TARGET", name)[0] == 0
        code, output = etl("state", "set", "env:TARGET", name, name, name, '["\'; DROP"]')
        assert code == 2, output
        assert etl("state", "reset", "env:TARGET", name, "--yes")[0] == 0
    for url in urls:
        assert asyncio.run(_rows(url, "SELECT count(*) FROM canary")) == [(0,)]


async def _execute(url: str, script: str) -> None:
    if url.startswith("postgresql"):
        await run_sql(url, script)
    else:
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            connection.executescript(script)


async def _rows(url: str, query: str) -> list[Any]:
    if url.startswith("postgresql"):
        async with sql(url) as connection:
            return [tuple(row) for row in await connection.fetch(query)]
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as plain:
        return plain.execute(query).fetchall()
