"""``etl verify``: a copy is equal, and one cell that changes is named by its key and column."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import etl
from etl.cli.app import run_command
from etl.cli.copy import CopyOptions, plan_copy
from etl.connector import RunInfo
from etl.databases.canonical import Compared
from etl.databases.database import Database
from etl.databases.digest import Agreement, Range
from etl.databases.sql import quote
from etl.databases.sqlite.digest import open_snapshot
from etl.databases.url import parse_url
from etl.engine.holder import this_process
from etl.errors import AlreadyRunningError, ConfigError
from etl.repair import repair_all
from etl.verification import Pair, Verdict, verify_all
from tests.integration.postgres_kit import run_sql, value
from tests.postgres_server import Server

EXAMPLES = 25


async def compare(source: str, target: str, *pairs: Pair) -> list[Verdict]:
    return await verify_all(Database(source), Database(target), pairs)


async def compare_t(source: str, target: str, **options: Any) -> Verdict:
    (verdict,) = await compare(source, target, Pair(source="t", target="t", **options))
    return verdict


async def copy_t(source: str, target: str) -> None:
    options = CopyOptions(tables=("t",))
    planned = await plan_copy(Database(source), Database(target), options)
    await planned.pipeline.run()


def lite(url: str, *statements: str) -> None:
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


# -- one cell ------------------------------------------------------------------------------------

TYPES: Mapping[str, tuple[str, ...]] = {
    "bool": ("true", "false"),
    "int2": ("0", "1", "-32768"),
    "int8": ("0", "9223372036854775807", "-9223372036854775808"),
    "float8": ("0", "-0", "0.1", "0.10000000000000002", "1e15", "5e-324", "Infinity"),
    "float4": ("0", "0.1", "0.10000001", "1e30"),
    "numeric": ("0", "1", "1.0", "1.00", "1e40", "-1e-40"),
    "numeric(9,2)": ("1", "1.01", "-0.5"),
    "text": ("", "a", "a ", "ab", "é", "e\u0301", "a\tb", "a\\tb", "\\N", "a\nb", "1", "1.0"),
    "varchar(5)": ("", "x", "x "),
    "char(4)": ("", "x", "xy"),
    "bytea": ("\\x", "\\x00", "\\x0001", "\\xff"),
    "date": ("2020-01-31", "infinity", "0044-03-15 BC"),
    "time": ("00:00", "24:00", "12:30:00.000001"),
    "timestamp": ("2020-01-31 00:00:00", "2020-01-31 00:00:00.000001", "infinity"),
    "timestamptz": ("2020-01-31 00:00:00+00", "2020-01-31 00:00:00.000001+00"),
    "interval": ("1 month", "30 days", "720 hours"),
    "uuid": ("00000000-0000-0000-0000-000000000000", "00000000-0000-0000-0000-000000000001"),
    "json": ('{"a":1}', '{"a": 1}', "null"),
    "jsonb": ('{"a":1}', '{"a":1.0}', "null"),
    "text[]": ("{}", "{NULL}", '{"NULL"}', '{""}', "[2:2]={a}", "{a}"),
    "inet": ("10.0.0.1", "10.0.0.0/8"),
    "int4range": ("empty", "[1,2)", "[1,3)"),
}
NAMES = tuple(f"c {number}\"'" for number in range(len(TYPES)))
ROWS = 12


@dataclass
class Ends:
    source: str
    target: str


@pytest.fixture
def make(postgres_database: Callable[[], str], tmp_path: Path) -> Callable[[str], str]:
    def one(name: str) -> str:
        return f"sqlite:///{tmp_path / f'{name}.db'}"

    numbers = count()
    return lambda dialect: postgres_database() if dialect == "pg" else one(f"{next(numbers)}")


def postgres_table() -> str:
    """Every type, each value of it, and NULL."""
    columns = ", ".join(f"{quote(n)} {t}" for n, t in zip(NAMES, TYPES, strict=True))
    rows = ", ".join(
        f"({row}, " + ", ".join(literal(values, row) for values in TYPES.values()) + ")"
        for row in range(ROWS)
    )
    return f"CREATE TABLE t (id int PRIMARY KEY, {columns}); INSERT INTO t VALUES {rows}"


def literal(values: Sequence[str], row: int) -> str:
    place = row % (len(values) + 1)
    return "NULL" if place == len(values) else f"'{values[place]}'"


LITE_TYPES: Mapping[str, tuple[Any, ...]] = {
    "INTEGER": (0, 1, -(1 << 63)),
    "BOOLEAN": (0, 1),
    "REAL": (0.0, 0.1, 1e300, 5e-324),
    "DECIMAL(9,2)": (1, 1.5, -2.25),
    "TEXT": ("", "a", "a ", "a\tb", "\\N", "1", "1.0"),
    "BLOB": (b"", b"\x00", b"\xff"),
    "DATE": ("2020-01-31", "1999-12-31"),
    "TIMESTAMP": ("2020-01-31 00:00:00", "2020-01-31T00:00:00.000001"),
    "UUID": ("00000000-0000-0000-0000-00000000000A", "00000000-0000-0000-0000-00000000000b"),
    "JSON": ('{"a":1}', '{"a": 1}'),
}


def lite_table(url: str) -> None:
    columns = ", ".join(f"{quote(n)} {t}" for n, t in zip(NAMES, LITE_TYPES, strict=False))
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        connection.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, {columns})")
        for row in range(ROWS):
            cells = [(*values, None)[row % (len(values) + 1)] for values in LITE_TYPES.values()]
            marks = ", ".join("?" * (len(cells) + 1))
            connection.execute(f"INSERT INTO t VALUES ({marks})", (row, *cells))
        connection.commit()


def mutations(held: Any) -> list[Any]:
    """Values near one that SQLite holds."""
    match held:
        case str():
            return ["", held + " ", held + "0", held.swapcase(), None, "\x00" + held]
        case bytes():
            return [held + b"\x00", bytes([held[0] ^ 1, *held[1:]]) if held else b"\x01", None]
        case float():
            return [math.nextafter(held, 9e999), -held, held + 1, None]
        case int():
            return [held ^ 1, held ^ (1 << 62), None]
        case _:
            return [0, "", b""]


@pytest.mark.parametrize("route", ["pg-pg", "pg-lite", "lite-pg", "lite-lite"])
def test_a_changed_cell_is_named(route: str, make: Callable[[str], str]) -> None:
    ends = Ends(*map(make, route.split("-")))
    if route.startswith("pg"):
        asyncio.run(run_sql(ends.source, postgres_table()))
        names = NAMES
        if route == "pg-lite":  # which keeps no -0.0
            zero = quote(NAMES[[*TYPES].index("float8")])
            asyncio.run(run_sql(ends.source, f"UPDATE t SET {zero} = 0 WHERE {zero} = 0"))
    else:
        lite_table(ends.source)
        names = NAMES[: len(LITE_TYPES)]
    asyncio.run(copy_t(ends.source, ends.target))
    assert asyncio.run(compare_t(ends.source, ends.target)).equal

    @settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )  # fmt: skip
    @given(st.integers(0, ROWS - 1), st.sampled_from(names), st.integers(0, 20))
    def check(row: int, name: str, choice: int) -> None:
        change = change_postgres if route.endswith("-pg") else change_lite
        undo = change(ends.target, row, name, choice)
        if undo is None:
            return  # the database holds the new value as the old one
        verdict = asyncio.run(compare_t(ends.source, ends.target))
        undo()
        told = [(dict(d.key), d.columns) for d in verdict.differences]
        assert told == [({"id": row}, (name,))]
        assert (verdict.changed, verdict.missing, verdict.surplus) == (1, 0, 0)

    check()
    assert asyncio.run(compare_t(ends.source, ends.target)).equal


def change_postgres(url: str, row: int, name: str, choice: int) -> Callable[[], None] | None:
    """Put another value of the type into a cell; None where the server holds the same one."""
    column = quote(name)
    held = f"SELECT {column}::text FROM t WHERE id = {row}"
    before = asyncio.run(value(url, held))
    kind = asyncio.run(value(url, f"SELECT pg_typeof({column})::text FROM t LIMIT 1"))
    pool = [*next((v for t, v in TYPES.items() if NAMES[list(TYPES).index(t)] == name), ())]
    known = asyncio.run(
        value(
            url, "SELECT count(*) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0"
        )
    )
    if known <= len(LITE_TYPES) + 1:
        pool = LITE_POOLS[kind]
    new = [*pool, None][choice % (len(pool) + 1)]
    asyncio.run(run_sql(url, f"UPDATE t SET {column} = {quoted(new)} WHERE id = {row}"))
    after = asyncio.run(value(url, held))

    def undo() -> None:
        asyncio.run(run_sql(url, f"UPDATE t SET {column} = {quoted(before)} WHERE id = {row}"))

    same = before == after
    if known <= len(LITE_TYPES) + 1 and kind == "numeric" and None not in {before, after}:
        same = float(before) == float(after)
    if same:
        undo()
        return None
    return undo


LITE_POOLS: Mapping[str, list[str]] = {
    "bigint": ["5", "1", "-9223372036854775808"],
    "boolean": ["true", "false"],
    "double precision": ["0", "-0", "0.1", "0.10000000000000002", "NaN"],
    "numeric": ["1", "1.00", "1.5", "1.50", "1.5000001", "NaN"],
    "text": ["", "a", "a ", "a\tb", "a\\tb", "\\N", "1", "1.0"],
    "bytea": ["\\x", "\\x00", "\\xfe"],
    "date": ["2020-01-30", "infinity"],
    "timestamp without time zone": ["2020-01-31 00:00:00", "2020-01-31 00:00:00.000002"],
    "uuid": ["00000000-0000-0000-0000-00000000000a"],
    "json": ['{"a":1}', '{"a": 1}', '{"a":1.0}'],
}


def quoted(text: str | None) -> str:
    return "NULL" if text is None else "'" + text.replace("'", "''") + "'"


def change_lite(url: str, row: int, name: str, choice: int) -> Callable[[], None] | None:
    column = quote(name)
    update = f"UPDATE t SET {column} = ? WHERE id = ?"
    with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:

        def held() -> tuple[str, Any]:
            (cell,) = connection.execute(f"SELECT {column} FROM t WHERE id = ?", (row,)).fetchone()
            return type(cell).__name__, cell

        before = held()
        options = mutations(before[1])
        connection.execute(update, (options[choice % len(options)], row))
        connection.commit()
        if held() == before and repr(held()) == repr(before):
            return None

    def undo() -> None:
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as again:
            again.execute(update, (before[1], row))
            again.commit()

    return undo


# -- rows ----------------------------------------------------------------------------------------

MANY = "CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL);"
FILL = "INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 9000) AS i;"


@pytest.fixture
def small_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges so small that a few thousand rows take every step."""
    monkeypatch.setattr("etl.verification.CHUNK_ROWS", 2000)
    monkeypatch.setattr("etl.verification.LEAF_ROWS", 50)


@pytest.mark.parametrize("route", ["pg-pg", "pg-lite", "lite-pg", "lite-lite"])
@pytest.mark.parametrize("key", ["id", "name"])
async def test_differences_are_found_among_many_rows(
    route: str, key: str, make: Callable[[str], str], small_ranges: None
) -> None:
    """By a key of integers, and by one of texts, which the databases order differently."""
    source, target = map(make, route.split("-"))
    name = "lower(md5(CAST(i AS text)))" if route.startswith("pg") else "hex(i * 7919) || 'é'"
    table = f"CREATE TABLE t (id int, name text, v text, PRIMARY KEY ({key}))"
    await run(source, table)
    await run(
        source,
        f"""
        INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 9000)
        SELECT i, CASE i % 3 WHEN 0 THEN '' WHEN 1 THEN 'Z' ELSE 'z' END || {name}, 'v' || i FROM n
        """,
    )
    await copy_t(source, target)
    assert (await compare_t(source, target)).equal
    await run(target, "UPDATE t SET v = 'other' WHERE id IN (1, 4711, 9000)")
    await run(target, "DELETE FROM t WHERE id IN (2, 5000)")
    await run(target, "INSERT INTO t VALUES (99999, 'new', 'x'), (-1, 'Ä', 'x'), (99998, '', '')")
    verdict = await compare_t(source, target)
    assert (verdict.changed, verdict.missing, verdict.surplus) == (3, 2, 3)
    assert (verdict.source_rows, verdict.target_rows) == (9000, 9001)
    if key == "id":
        found = {(d.change, d.key["id"]) for d in verdict.differences}
        assert found == {
            *(("changed", 1), ("changed", 4711), ("changed", 9000), ("missing", 2)),
            *(("missing", 5000), ("surplus", 99999), ("surplus", -1), ("surplus", 99998)),
        }
    assert {d.columns for d in verdict.differences if d.change == "changed"} == {("v",)}
    capped = await compare_t(source, target, most=2)
    assert len(capped.differences) == 2
    assert (capped.changed, capped.missing, capped.surplus) == (3, 2, 3)


async def run(url: str, statement: str) -> None:
    if url.startswith("sqlite"):
        lite(url, statement)
    else:
        await run_sql(url, statement)


@pytest.mark.parametrize("types", [("int", "int"), ("text", "int"), ("text COLLATE NOCASE", "int")])
async def test_sqlite_finds_each_range_by_the_index(sqlite_url: str, types: Sequence[str]) -> None:
    """Named, even the column's own collation would keep SQLite from using it."""
    lite(sqlite_url, f"CREATE TABLE t (a {types[0]}, b {types[1]}, v text, PRIMARY KEY (a, b))")
    async with open_snapshot(parse_url(sqlite_url), side="source") as snapshot:
        table = await snapshot.describe("t")
        columns = tuple(Compared(names=(name, name), form="value") for name in ("a", "b", "v"))
        agreement = Agreement(columns=columns, key=(0, 1), orders=("native", "native"))
        digests = await snapshot.open(table, agreement, side=0)
        ran: list[str] = []
        await snapshot.connection.run(lambda driver: driver.set_trace_callback(ran.append))
        await digests.digests([Range(after=(1, 2), upto=(3, 4))])
        statement = ran[-1]
        plan = str(await snapshot.connection.fetch(f"EXPLAIN QUERY PLAN {statement}"))
    # Ordered by its bytes, a column of another order is scanned, by few ranges at a time.
    assert (digests.together, "SEARCH" in plan) == (
        (16, False) if "NOCASE" in types[0] else (1, True)
    )


async def test_values_that_change_places_are_seen(
    postgres_database: Callable[[], str],
) -> None:
    """Their sum stays the same, whatever column or row they move to."""
    source, target = postgres_database(), postgres_database()
    for url in (source, target):
        await run_sql(url, "CREATE TABLE t (id int PRIMARY KEY, a text, b text)")
    await run_sql(source, "INSERT INTO t VALUES (1, 'a', 'bc'), (2, 'ab', 'c'), (3, NULL, '')")
    await run_sql(target, "INSERT INTO t VALUES (1, 'ab', 'c'), (2, 'a', 'bc'), (3, '', NULL)")
    verdict = await compare_t(source, target, values=True)
    assert [(d.key["id"], d.columns) for d in verdict.differences] == [
        (1, ("a", "b")), (2, ("a", "b")), (3, ("a", "b"))
    ]  # fmt: skip
    assert verdict.differences[2].values == {"a": (None, ""), "b": ("", None)}


@pytest.mark.parametrize("route", ["pg-pg", "pg-lite", "lite-lite"])
async def test_rows_without_a_key_are_compared_as_a_whole(
    route: str, make: Callable[[str], str]
) -> None:
    source, target = map(make, route.split("-"))
    await run(source, "CREATE TABLE t (a int, b text)")
    await run(source, "INSERT INTO t VALUES (1, 'x'), (1, 'x'), (NULL, 'y')")
    await copy_t(source, target)
    assert (await compare_t(source, target)).equal
    await run(target, "INSERT INTO t VALUES (1, 'x')")
    doubled = await compare_t(source, target)
    assert not doubled.equal
    assert (doubled.source_rows, doubled.target_rows) == (3, 4)
    await run(source, "INSERT INTO t VALUES (NULL, 'y')")  # as many rows, not the same
    verdict = await compare_t(source, target)
    assert not verdict.equal
    assert not verdict.located


async def test_a_row_that_is_there_twice_is_surplus(
    postgres_database: Callable[[], str],
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, MANY + FILL)
    await run_sql(target, "CREATE TABLE t (id int, v text);" + FILL)
    assert (await compare_t(source, target)).equal
    await run_sql(target, "INSERT INTO t VALUES (77, 'v77'), (NULL, 'v')")
    verdict = await compare_t(source, target)
    assert (verdict.surplus, verdict.differences[0].key) == (1, {"id": 77})
    assert not verdict.located  # the row whose key is NULL


async def test_a_key_that_identifies_nothing_is_refused(postgres_url: str) -> None:
    await run_sql(
        postgres_url, MANY + FILL + "CREATE TABLE u AS SELECT id + 1 AS id, 'v' AS v FROM t"
    )
    with pytest.raises(ConfigError, match="does not identify rows"):
        await compare(postgres_url, postgres_url, Pair(source="u", target="t", key=("v",)))


async def test_a_column_that_is_missing_is_told_first(postgres_url: str, sqlite_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (id int PRIMARY KEY, a int, b int)")
    lite(sqlite_url, "CREATE TABLE t (ID int PRIMARY KEY, a int, c int)")
    verdict = await compare_t(postgres_url, sqlite_url)
    assert verdict.structure == (
        "the target has no column 'b'",
        "the source has no column 'c'",
    )
    assert not verdict.equal


async def test_hostile_names_and_a_condition(postgres_database: Callable[[], str]) -> None:
    source, target = postgres_database(), postgres_database()
    table = 'CREATE TABLE "a.b""c; --" ("k""; DROP" text PRIMARY KEY, "v\'" int)'
    for url in (source, target):
        await run_sql(url, table)
        await run_sql(url, """INSERT INTO "a.b""c; --" VALUES ('x', 1), ('y', 2)""")
    await run_sql(target, """UPDATE "a.b""c; --" SET "v'" = 3 WHERE "v'" = 2""")
    name = '"a.b""c; --"'
    one, two = await compare(
        source,
        target,
        Pair(source=name, target=name),
        Pair(source=name, target=name, where='"v\'" = 1 -- only those'),
    )
    assert [d.key for d in one.differences] == [{'k"; DROP': "y"}]
    assert two.equal
    assert two.source_rows == 1


async def test_tables_are_compared_by_the_library(postgres_url: str, sqlite_url: str) -> None:
    await run_sql(postgres_url, MANY + FILL)
    await copy_t(postgres_url, sqlite_url)
    shop, copied = Database(postgres_url), Database(sqlite_url)
    assert (await etl.verify(shop.table("t"), copied.table("t"))).equal
    with pytest.raises(ConfigError, match="compares two tables"):
        await etl.verify(shop.table("t").where("id > 1"), copied.table("t"))


# -- the command ---------------------------------------------------------------------------------


def test_the_command_names_what_differs_and_hides_values(
    postgres_url: str, sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(run_sql(postgres_url, MANY + FILL))
    asyncio.run(copy_t(postgres_url, sqlite_url))
    assert run_command(["verify", postgres_url, sqlite_url]) == 0
    assert capsys.readouterr().out == "public.t: equal, 9,000 rows\n"
    lite(sqlite_url, "UPDATE t SET v = 'secret' WHERE id = 5", "DELETE FROM t WHERE id = 6")
    assert run_command(["verify", postgres_url, sqlite_url]) == 1
    out = capsys.readouterr().out
    assert "differs; 1 changed, 1 missing; 9,000 rows in the source, 8,999 in the target" in out
    assert "changed  id=5  in v" in out
    assert "missing  id=6" in out
    assert "secret" not in out
    assert run_command(["verify", postgres_url, sqlite_url, "--values", "--json"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["differences"][0]["values"] == {"v": {"source": "v5", "target": "secret"}}


def test_a_pipeline_is_verified_unless_it_changes_rows(
    postgres_url: str, sqlite_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asyncio.run(run_sql(postgres_url, MANY + FILL))
    asyncio.run(copy_t(postgres_url, sqlite_url))
    file = tmp_path / "flows.py"
    text = f"""
from etl import Database, Pipeline
a, b = Database({postgres_url!r}), Database({sqlite_url!r})
same = Pipeline("same", a.table("t").into(b.append("t")))
other = Pipeline("other", a.table("t").filter(lambda row: True).into(b.append("t")))
"""
    file.write_text(text)
    assert run_command(["verify", f"{file}:same"]) == 0
    assert run_command(["verify", f"{file}:other"]) == 2
    assert "flow 't' has functions" in capsys.readouterr().err


@pytest.mark.parametrize("route", ["pg-pg", "pg-lite", "lite-pg", "lite-lite"])
@pytest.mark.parametrize("key", ["id", "name"])
def test_a_repair_rewrites_the_rows_that_differ(
    route: str,
    key: str,
    make: Callable[[str], str],
    small_ranges: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, target = map(make, route.split("-"))
    table = f"CREATE TABLE t (id int, name text, v text UNIQUE, PRIMARY KEY ({key}))"
    rows = """
        INSERT INTO t WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900)
        SELECT i, 'k''é' || i, 'v' || i FROM n
    """
    asyncio.run(run(source, table))
    asyncio.run(run(source, rows))
    assert run_command(["copy", source, target, "--verify"]) == 0
    assert "equal, 900 rows" in capsys.readouterr().out
    for change in (
        "UPDATE t SET v = 'x' WHERE id = 3",
        "UPDATE t SET v = 'v3' WHERE id = 900",
        "UPDATE t SET v = 'v900' WHERE id = 3",
        "DELETE FROM t WHERE id BETWEEN 100 AND 400",
        "INSERT INTO t VALUES (1000, 'more', 'v200')",
    ):
        asyncio.run(run(target, change))
    assert run_command(["verify", source, target, "--repair"]) == 0
    out, err = capsys.readouterr()
    assert "3 rows deleted, 303 written" in err
    assert "equal, 900 rows" in out


@pytest.fixture
def database_with(postgres_server: Server) -> Iterator[Callable[[str], str]]:
    """Makes databases with options; skips where the server was built without what they name."""
    names: list[str] = []

    def make(options: str) -> str:
        name = f"etl_test_{secrets.token_hex(6)}"
        try:
            postgres_server.execute(f'CREATE DATABASE "{name}" TEMPLATE template0 {options}')
        except asyncpg.FeatureNotSupportedError as error:
            pytest.skip(str(error))
        names.append(name)
        return postgres_server.database(name)

    yield make
    for name in names:
        postgres_server.drop(name)


# Each orders these otherwise than the bytes of UTF-8 do.
ORDERED = {
    "icu": "ENCODING 'UTF8' LOCALE 'C' LOCALE_PROVIDER icu ICU_LOCALE 'en'",
    "win": "ENCODING 'WIN1252' LOCALE 'C'",
    "utf16le": "PRAGMA encoding = 'UTF-16le'",
}


@pytest.mark.parametrize("kind", list(ORDERED))
@pytest.mark.parametrize("odd_side", [0, 1])
def test_one_row_that_differs_is_found_whatever_orders_the_texts(
    kind: str,
    odd_side: int,
    database_with: Callable[[str], str],
    make: Callable[[str], str],
    small_ranges: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if kind == "utf16le":
        odd, other = make("lite"), make("lite")
        lite(odd, ORDERED[kind], "CREATE TABLE made (a)", "DROP TABLE made")
    else:
        odd, other = database_with(ORDERED[kind]), make("pg")
    source, target = (odd, other) if odd_side == 0 else (other, odd)
    signs = ["a", "B", "_", "é", "Ü", "€", "œ"]
    keys = ", ".join(f"('{sign}{number}')" for number in range(60) for sign in signs)
    asyncio.run(run(source, "CREATE TABLE t (k text PRIMARY KEY NOT NULL, v text)"))
    asyncio.run(run(source, f"INSERT INTO t (k) VALUES {keys}"))
    assert run_command(["copy", source, target]) == 0
    asyncio.run(run(target, "UPDATE t SET v = 'x' WHERE k = 'œ7'"))
    if odd_side == 0:
        asyncio.run(run(target, "INSERT INTO t VALUES ('東京', 'which the source cannot hold')"))
    capsys.readouterr()
    assert run_command(["verify", source, target]) == 1
    assert "1 changed" in capsys.readouterr().out
    assert run_command(["verify", source, target, "--repair"]) == 0
    assert "equal, 420 rows" in capsys.readouterr().out


async def test_characters_that_are_padded_to_bytes_are_equal_to_padded_characters(
    database_with: Callable[[str], str], make: Callable[[str], str]
) -> None:
    source, target = make("pg"), database_with("ENCODING 'SQL_ASCII' LOCALE 'C'")
    await run_sql(source, "CREATE TABLE t (id int PRIMARY KEY, c char(5))")
    await run_sql(source, "INSERT INTO t VALUES (1, 'é'), (2, 'a')")
    await copy_t(source, target)
    assert (await compare_t(source, target)).equal


PARENTS = """
    CREATE TABLE p (id int PRIMARY KEY, v text, up int REFERENCES p ON DELETE CASCADE);
    CREATE TABLE gone (id int PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE);
    CREATE TABLE emptied (id int PRIMARY KEY, p int REFERENCES p ON DELETE SET NULL);
    CREATE TABLE kept (id int PRIMARY KEY, p int REFERENCES p);
    INSERT INTO p VALUES (1, 'a', NULL), (2, 'b', 1), (3, 'c', 2);
    INSERT INTO gone VALUES (1, 1), (2, 2);
    INSERT INTO emptied VALUES (1, 1), (2, 3);
    INSERT INTO kept VALUES (1, 2)
"""


@pytest.mark.parametrize("route", ["pg-pg", "pg-lite", "lite-pg", "lite-lite"])
def test_a_repair_leaves_alone_what_refers_to_its_rows(
    route: str, make: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = map(make, route.split("-"))
    for statement in PARENTS.split(";"):
        asyncio.run(run(source, statement))
    assert run_command(["copy", source, target, "--verify"]) == 0
    asyncio.run(run(target, "UPDATE p SET v = 'x'"))
    assert run_command(["verify", source, target, "--table", "p", "--repair"]) == 0
    assert run_command(["verify", source, target]) == 0

    asyncio.run(run(target, "INSERT INTO p VALUES (4, 'd', NULL)"))
    capsys.readouterr()
    assert run_command(["verify", source, target, "--table", "p", "--repair"]) == 1
    message = capsys.readouterr().err
    assert "'emptied' (ON DELETE SET NULL), 'gone' (ON DELETE CASCADE), 'p'" in message


def test_a_repair_of_rows_without_a_key_is_refused(
    postgres_url: str, sqlite_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tables beside it are repaired, and each is told."""
    tables = "CREATE TABLE t (a int); CREATE TABLE s (a int PRIMARY KEY, v text);"
    rows = "INSERT INTO t VALUES (1), (2); INSERT INTO s VALUES (1, 'x');"
    more = "CREATE TABLE u AS SELECT * FROM s; ALTER TABLE u ADD PRIMARY KEY (a)"
    asyncio.run(run_sql(postgres_url, tables + rows + more))
    assert run_command(["copy", postgres_url, sqlite_url]) == 0
    lite(sqlite_url, "UPDATE t SET a = 3 WHERE a = 2", "UPDATE s SET v = 'y'", "DELETE FROM u")
    capsys.readouterr()
    assert run_command(["verify", postgres_url, sqlite_url, "--repair"]) == 1
    out, err = capsys.readouterr()
    assert "rows without a key differ" in err
    assert "s: repaired; 1 changed" in err
    assert "u: repaired; 1 missing" in err
    assert "t: differs" in out
    assert "s: equal" in out
    assert "u: equal" in out


async def test_a_repair_respects_the_lock_of_the_copy(postgres_url: str, sqlite_url: str) -> None:
    await run_sql(postgres_url, MANY + FILL)
    source, target = Database(postgres_url), Database(sqlite_url)
    pipeline = (await plan_copy(source, target, CopyOptions(tables=("t",)))).pipeline
    await pipeline.run()
    lite(sqlite_url, "UPDATE t SET v = 'x' WHERE id = 5")
    info = RunInfo(
        pipeline=pipeline.name, run_id="r", batch_rows=1, batch_bytes=1, holder=this_process("r")
    )
    async with target.open(info, sessions=1):
        with pytest.raises(AlreadyRunningError):
            await repair_all(source, target, [Pair(source="t", target="t")], pipeline.name)
    (done,) = await repair_all(source, target, [Pair(source="t", target="t")], pipeline.name)
    assert (done.deleted, done.written) == (1, 1)
    assert (await compare_t(postgres_url, sqlite_url)).equal
