"""A source that gets or loses columns between runs: refused, added, or left out, and said."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from etl.cli.copy import CopyOptions, plan_copy
from etl.databases.database import Database
from etl.errors import ConfigError, SchemaMismatchError
from etl.events import Report
from etl.pipeline import Pipeline
from tests.integration.postgres_kit import run_sql, texts

FIRST = "CREATE TABLE t (id integer PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b')"
LATER = "ALTER TABLE t ADD COLUMN note text; INSERT INTO t VALUES (3, 'c', 'new'), (4, 'd', NULL)"


class Ends:
    """Databases of each dialect by one interface."""

    def __init__(self, make_postgres: Callable[[], str], folder: Path) -> None:
        self._make_postgres = make_postgres
        self._folder = folder
        self._made = 0

    def make(self, dialect: str) -> str:
        self._made += 1
        if dialect == "postgres":
            return self._make_postgres()
        return f"sqlite:///{self._folder / f'{self._made}.db'}"

    @staticmethod
    async def run(url: str, statements: str) -> None:
        if url.startswith("postgresql"):
            await run_sql(url, statements)
            return
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
            connection.executescript(statements)

    @staticmethod
    async def rows(url: str, query: str) -> list[str]:
        """Each row as PostgreSQL writes a row."""
        if url.startswith("postgresql"):
            return await texts(url, query)
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            found = connection.execute(query).fetchall()
        return [f"({','.join('' if one is None else str(one) for one in row)})" for row in found]


@pytest.fixture
def ends(postgres_database: Callable[[], str], tmp_path: Path) -> Ends:
    return Ends(postgres_database, tmp_path)


ROUTES = pytest.mark.parametrize(
    ("source", "target"),
    [
        ("postgres", "postgres"),
        ("postgres", "sqlite"),
        ("sqlite", "postgres"),
        ("sqlite", "sqlite"),
    ],
)
APPEND = {"mode": "append", "cursor": ("id",)}
UPSERT = {"mode": "upsert", "cursor": ("id",)}
REPLACE = {"mode": "replace"}


async def copied(source: str, target: str, **options: Any) -> Report:
    planned = await plan_copy(Database(source), Database(target), CopyOptions(**options))
    return await planned.pipeline.run()


def notes_of(report: Report) -> str:
    return "\n".join(note for flow in report.flows for note in flow.notes)


@pytest.mark.parametrize(
    ("source", "target", "how"),
    [
        ("postgres", "postgres", APPEND),
        ("postgres", "postgres", REPLACE),
        ("postgres", "postgres", {**REPLACE, "swap": "rewrite"}),
        ("postgres", "sqlite", UPSERT),
        ("postgres", "sqlite", REPLACE),
        ("sqlite", "postgres", UPSERT),
        ("sqlite", "postgres", REPLACE),
        ("sqlite", "sqlite", APPEND),
    ],
)
async def test_a_new_column_is_refused_then_left_out_then_added_as_was_asked(
    ends: Ends, source: str, target: str, how: dict[str, Any]
) -> None:
    here, there = ends.make(source), ends.make(target)
    await ends.run(here, FIRST)
    await copied(here, there, **how)
    await ends.run(here, LATER)

    with pytest.raises(SchemaMismatchError, match=r"no column 'note'.*schema-change"):
        await copied(here, there, **how)
    assert await ends.rows(there, "SELECT * FROM t ORDER BY id") == ["(1,a)", "(2,b)"]

    report = await copied(here, there, schema_change="ignore", **how)
    assert "the table lacks it: column 'note'" in notes_of(report)
    every = ["(1,a)", "(2,b)", "(3,c)", "(4,d)"]
    assert await ends.rows(there, "SELECT * FROM t ORDER BY id") == every

    await ends.run(here, "INSERT INTO t VALUES (5, 'e', 'newer')")
    report = await copied(here, there, schema_change="evolve", **how)
    assert "added to the table" in notes_of(report)
    assert "'note'" in notes_of(report)
    old = "" if how["mode"] != "replace" else "new"  # only a replace reads the old rows again
    every = ["(1,a,)", "(2,b,)", f"(3,c,{old})", "(4,d,)", "(5,e,newer)"]
    assert await ends.rows(there, "SELECT * FROM t ORDER BY id") == every

    await ends.run(here, "INSERT INTO t VALUES (6, 'f', 'newest')")
    report = await copied(here, there, **how)  # nothing is new any more
    assert "column" not in notes_of(report)
    assert (await ends.rows(there, "SELECT * FROM t ORDER BY id"))[-1] == "(6,f,newest)"


@ROUTES
async def test_a_column_that_the_source_lost_is_told(ends: Ends, source: str, target: str) -> None:
    here, there = ends.make(source), ends.make(target)
    await ends.run(here, FIRST)
    await copied(here, there)
    await ends.run(here, "ALTER TABLE t DROP COLUMN v")
    report = await copied(here, there)
    assert "not in the source, so new rows get the table's default: column 'v'" in notes_of(report)


async def test_a_replace_of_a_table_that_computes_a_column_is_repeated(ends: Ends) -> None:
    here, there = ends.make("sqlite"), ends.make("sqlite")
    await ends.run(here, "CREATE TABLE t (id integer PRIMARY KEY, g integer AS (id * 2) STORED)")
    for number in (1, 2):
        await ends.run(here, f"INSERT INTO t (id) VALUES ({number})")
        await copied(here, there)
    assert await ends.rows(there, "SELECT * FROM t ORDER BY id") == ["(1,2)", "(2,4)"]


@pytest.mark.parametrize("target", ["postgres", "sqlite"])
async def test_staged_rows_lack_what_the_table_computes(ends: Ends, target: str) -> None:
    """Those that are poured into a table which stays."""
    here, there = ends.make("postgres"), ends.make(target)
    await ends.run(here, "CREATE TABLE t (v int, g int GENERATED ALWAYS AS (v * 2) STORED)")
    await ends.run(here, "INSERT INTO t (v) SELECT generate_series(1, 3)")
    for _ in range(2):
        await copied(here, there, swap="rewrite")
    await copied(here, there, mode="append", rename="u")
    for table in "tu":
        rows = await ends.rows(there, f"SELECT * FROM {table} ORDER BY v")
        assert rows == ["(1,2)", "(2,4)", "(3,6)"]


@pytest.mark.parametrize("target", ["postgres", "sqlite"])
async def test_values_that_a_computed_column_cannot_take_are_told(ends: Ends, target: str) -> None:
    here, there = ends.make("postgres"), ends.make(target)
    await ends.run(here, FIRST)
    computed = "g integer GENERATED ALWAYS AS (id * 2) STORED"
    await ends.run(there, f"CREATE TABLE t (id integer PRIMARY KEY, v text, {computed})")
    await ends.run(here, f"ALTER TABLE t ADD COLUMN {computed}")
    report = await copied(here, there)
    assert target == "sqlite" or notes_of(report) == ""  # SQLite does not tell what is the same

    for change in (
        "DROP COLUMN g, ADD COLUMN g integer GENERATED ALWAYS AS (id * 3) STORED",
        "ALTER COLUMN g DROP EXPRESSION",
    ):
        await ends.run(here, f"ALTER TABLE t {change}")
        report = await copied(here, there)
        assert "not written, because the table computes it: column 'g'" in notes_of(report)


async def test_a_new_column_of_a_type_of_its_own_brings_the_type(ends: Ends) -> None:
    here, there = ends.make("postgres"), ends.make("postgres")
    await ends.run(here, FIRST)
    await copied(here, there)
    await ends.run(
        here,
        "CREATE TYPE mood AS ENUM ('ok', 'bad'); ALTER TABLE t ADD COLUMN m mood NOT NULL"
        ' DEFAULT \'ok\', ADD COLUMN "odd ""name" numeric(9,2)[]',
    )
    await copied(here, there, schema_change="evolve")
    assert await ends.rows(there, "SELECT * FROM t ORDER BY id") == ["(1,a,ok,)", "(2,b,ok,)"]


async def test_a_new_sqlite_column_of_mixed_values_is_refused_by_name(ends: Ends) -> None:
    here, there = ends.make("sqlite"), ends.make("postgres")
    await ends.run(here, FIRST)
    await copied(here, there)
    await ends.run(here, "ALTER TABLE t ADD COLUMN x; UPDATE t SET x = id WHERE id = 1;")
    await ends.run(here, "UPDATE t SET x = x'00' WHERE id = 2")
    with pytest.raises(SchemaMismatchError, match="'x'.*several kinds"):
        await copied(here, there, schema_change="evolve")
    assert await ends.rows(there, "SELECT * FROM t ORDER BY id") == ["(1,a)", "(2,b)"]


@dataclass(frozen=True, slots=True)
class Wide:
    id: int
    v: str
    extra: int


def widened(row: Any) -> Wide:
    return Wide(int(row["id"]), str(row["v"]), 7)


@pytest.mark.parametrize("target", ["postgres", "sqlite"])
@pytest.mark.parametrize("mode", ["append", "upsert", "replace"])
async def test_what_functions_return_follows_the_same_rules(
    ends: Ends, target: str, mode: str
) -> None:
    here, there = ends.make("sqlite"), ends.make(target)
    await ends.run(here, FIRST)
    await ends.run(there, "CREATE TABLE t (id integer PRIMARY KEY, v text)")

    def pipeline(name: str, **how: Any) -> Pipeline:
        to = Database(there)
        make: Any = {"append": to.append, "upsert": to.upsert, "replace": to.replace}[mode]
        sink = make("t", **({"key": ["id"]} if mode == "upsert" else {}), **how)
        return Pipeline(name, Database(here).table("t").map(widened).into(sink))

    with pytest.raises(SchemaMismatchError, match="no column 'extra'"):
        await pipeline("frozen").run()
    await pipeline("ignoring", schema_change="ignore").run()
    assert await ends.rows(there, "SELECT * FROM t ORDER BY id") == ["(1,a)", "(2,b)"]
    await ends.run(there, "DELETE FROM t")
    await pipeline("evolving", schema_change="evolve").run()
    assert await ends.rows(there, "SELECT * FROM t ORDER BY id") == ["(1,a,7)", "(2,b,7)"]


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match="schema_change= is one of freeze, evolve, ignore"):
        Database("sqlite:///x.db").append("t", schema_change="evolv")  # type: ignore[arg-type]
