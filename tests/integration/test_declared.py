"""Declared steps: the same on both databases, done by the source, safe whatever the values."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from etl import ConfigError, Database, Pipeline, SchemaMismatchError
from etl.databases.database import DatabaseSource
from etl.databases.url import parse_url
from etl.rows import Row

ROWS = [(i, f"N{i}", i * 2, "DE" if i % 2 else "o'x\\", i % 7) for i in range(300)]
TABLE = (
    "CREATE TABLE t (id integer PRIMARY KEY, name text NOT NULL, price integer,"
    " country text, seen integer NOT NULL)"
)


@pytest.fixture(params=["postgresql", "sqlite"])
async def source(request: pytest.FixtureRequest, postgres_database: Callable[[], str]) -> str:
    if request.param == "sqlite":
        url: str = f"sqlite:///{request.getfixturevalue('tmp_path') / 'source.db'}"
        with closing(sqlite3.connect(parse_url(url).path)) as file, file:
            file.execute(TABLE)
            file.execute("CREATE UNIQUE INDEX by_seen ON t (seen, id)")
            file.executemany("INSERT INTO t VALUES (?, ?, ?, ?, ?)", ROWS)
        return url
    url = postgres_database()
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(TABLE)
        await connection.execute("CREATE UNIQUE INDEX by_seen ON t (seen, id)")
        await connection.copy_records_to_table("t", records=ROWS)
    finally:
        await connection.close()
    return url


@pytest.fixture
def target(sqlite_url: str) -> Database:
    return Database(sqlite_url)


def rows_of(target: Database, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(target.url.path)) as connection:
        return connection.execute(query).fetchall()


async def copied(stream: DatabaseSource[Any], target: Database, table: str = "out") -> int:
    report = await Pipeline("declared", stream.into(target.append(table))).run()
    return report.flows[0].rows_read


async def test_the_source_filters_computes_renames_and_casts(source: str, target: Database) -> None:
    stream = (
        Database(source)
        .table("t")
        .where("price > 30 -- a comment", country="o'x\\")
        .select("name", double="price * 2")
        .rename(label="name")
        .cast(double="text")
    )

    read = await copied(stream, target)

    wanted = [(n, str(p * 2)) for _, n, p, c, _ in ROWS if p > 30 and c != "DE"]
    assert rows_of(target, "SELECT label, double FROM out ORDER BY rowid") == wanted
    assert read == len(wanted)


async def test_what_orders_the_read_need_not_be_selected(source: str, target: Database) -> None:
    stream = Database(source).table("t", cursor=("seen", "id")).select("name")

    first = await copied(stream, target)
    second = await copied(stream, target)

    assert rows_of(target, "SELECT * FROM out ORDER BY rowid") == [
        (name,) for _, name, *_ in sorted(ROWS, key=lambda row: (row[4], row[0]))
    ]
    assert (first, second) == (len(ROWS), 0)


async def test_functions_see_the_declared_columns_only(source: str, target: Database) -> None:
    seen: list[tuple[str, ...]] = []

    def note(row: Row) -> Row:
        seen.append(tuple(row))
        return row.replace(name=row["name"].lower())

    stream = Database(source).table("t").where(id=7).select("name", more="price + 1")
    await Pipeline("declared", stream.map(note).into(target.append("out"))).run()

    assert seen == [("name", "more")]
    assert rows_of(target, "SELECT * FROM out") == [("n7", 15)]


async def test_a_dataclass_takes_computed_columns(source: str, target: Database) -> None:
    @dataclass(frozen=True)
    class Doubled:
        name: str
        double: int | None

    stream = Database(source).table("t", row=Doubled).where(country=None)
    assert await copied(stream.select("name", double="price * 2"), target) == 0

    stream = Database(source).table("t", row=Doubled).where("id < 3")
    await copied(stream.select("name", double="price * 2"), target, "other")
    assert rows_of(target, "SELECT * FROM other") == [("N0", 0), ("N1", 4), ("N2", 8)]


async def test_a_key_keeps_its_meaning_under_another_name(source: str, target: Database) -> None:
    stream = Database(source).table("t").rename(number="id")

    await copied(stream, target)

    assert rows_of(target, "SELECT name FROM pragma_table_info('out') WHERE pk") == [("number",)]


@pytest.mark.parametrize(
    "value", ["'; DROP TABLE t; --", "\\'; DROP TABLE t; --", '"', "$1 %s :x ?", "\n\t\\N"]
)
async def test_a_value_never_becomes_sql(source: str, target: Database, value: str) -> None:
    assert await copied(Database(source).table("t").where(name=value), target) == 0
    assert await copied(Database(source).table("t").where(name="N1"), target, "again") == 1


async def test_changed_steps_are_a_changed_source(source: str, target: Database) -> None:
    table = Database(source).table("t", cursor=("seen", "id"))
    await copied(table.where("id < 10"), target)

    with pytest.raises(ConfigError, match="steps of the source changed"):
        await copied(table.where("id < 20"), target)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda t: t.where(nix=1), r"where\(\) names the column 'nix'"),
        (lambda t: t.select("nix"), r"select\(\) names the column 'nix'"),
        (lambda t: t.rename(new="nix"), r"rename\(\) names the column 'nix'"),
        (lambda t: t.cast(nix="text"), r"cast\(\) names the column 'nix'"),
        (lambda t: t.select("id", name="1").rename(id="name"), "two columns .* called 'id'"),
    ],
)
async def test_a_step_that_does_not_fit_is_refused(
    source: str, target: Database, step: Callable[[Any], DatabaseSource[Any]], words: str
) -> None:
    with pytest.raises((ConfigError, SchemaMismatchError), match=words):
        await copied(step(Database(source).table("t")), target)


@pytest.mark.parametrize("value", [float("nan"), Decimal("Infinity"), "a\0b", [1], b"x"])
def test_a_value_without_a_constant_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match="cannot stand in a condition"):
        Database("sqlite:///x.db").table("t").where(name=value)
