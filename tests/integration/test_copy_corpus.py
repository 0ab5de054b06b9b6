"""Every awkward table of ``corpus.py``, copied on every route: equal, or refused by name.

PostgreSQL is compared by the server's own text of each value, SQLite by class and value, and one
with the other in a common form.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, time
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias, get_args

import pytest

from etl.cli.copy import CopyOptions, plan_copy
from etl.connector import Mode
from etl.databases.database import Database
from etl.databases.sql import OWN_TABLES, qualify, quote, quote_all, split_name
from etl.errors import ConfigError, EtlError, PipelineFailedError, exit_code_of
from etl.verification import Pair, verify_all
from tests.integration.corpus import POSTGRES, POSTGRES_TYPES, SQLITE, Case, Route
from tests.integration.postgres_kit import run_sql, sql

Rows: TypeAlias = list[tuple[Any, ...]]
ROUTES: tuple[Route, ...] = get_args(Route)
TOGETHER = 20
"""Tables of one command: it opens connections for each."""
AGAIN = 8
"""Tables that are copied a second time."""

SETTINGS = (
    "SET TimeZone = 'UTC'; SET DateStyle = 'ISO'; SET IntervalStyle = 'postgres';"
    " SET bytea_output = 'hex'; SET extra_float_digits = 3"
)
COLUMNS = """
    SELECT a.attname::text, coalesce(b.typname, t.typname)::text
    FROM pg_attribute AS a
    JOIN pg_type AS t ON t.oid = a.atttypid
    LEFT JOIN pg_type AS b ON b.oid = t.typbasetype
    WHERE a.attrelid = $1::text::regclass AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
"""


# -- both ends ----------------------------------------------------------------------------------


@pytest.fixture
async def ends(postgres_database: Callable[[], str], tmp_path: Path) -> Callable[[Route], Any]:
    """Makes the source of a route, filled, and a maker of empty targets."""

    numbers = count()

    def target(dialect: str) -> Callable[[], Any]:
        async def make() -> str:
            if dialect == "lite":
                return f"sqlite:///{tmp_path / f'target{next(numbers)}.db'}"
            url = postgres_database()
            await run_sql(url, POSTGRES_TYPES)
            return url

        return make

    async def make(route: Route) -> tuple[str, Callable[[], Any]]:
        source, into = route.split("-")
        if source == "lite":
            connection = sqlite3.connect(tmp_path / "source.db")
            for case in SQLITE:
                connection.executescript(case.sql)
            connection.close()
            return f"sqlite:///{tmp_path / 'source.db'}", target(into)
        url = postgres_database()
        async with sql(url) as session:
            await session.execute(POSTGRES_TYPES)
            for case in POSTGRES:
                await session.execute(case.sql)
        return url, target(into)

    return make


def cases(route: Route) -> tuple[Case, ...]:
    return POSTGRES if route.startswith("pg") else SQLITE


async def copy(source: str, target: str, names: Sequence[str], mode: Mode, **more: Any) -> None:
    for at in range(0, len(names), TOGETHER):
        options = CopyOptions(tables=tuple(names[at : at + TOGETHER]), mode=mode, **more)
        planned = await plan_copy(Database(source), Database(target), options)
        await planned.pipeline.run()


# -- what is in a table -------------------------------------------------------------------------


async def read(url: str, table: str) -> tuple[list[str], Rows]:
    """The types of a table's columns, and its rows: texts of PostgreSQL, (class, value) of
    SQLite."""
    if url.startswith("sqlite"):
        return [], read_sqlite(url, table)
    async with sql(url) as session:
        await session.execute(SETTINGS)
        columns = [tuple(row) for row in await session.fetch(COLUMNS, table)]
        # num_nulls, since a row of NULLs IS NULL too.
        texts = ", ".join(
            f"CASE WHEN num_nulls({quote(name)}) = 0 THEN format('%s', {quote(name)}) END"
            for name, _ in columns
        )
        rows = await session.fetch(f"SELECT ARRAY[{texts}]::text[] AS row FROM {table}")
    return [kind for _, kind in columns], sorted((tuple(row["row"]) for row in rows), key=repr)


def read_sqlite(url: str, table: str) -> Rows:
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    try:
        columns = connection.execute(f"PRAGMA table_xinfo({table})").fetchall()
        listed = quote_all(column[1] for column in columns if column[6] != 1)
        found = connection.execute(f"SELECT {listed} FROM {table}").fetchall()
    finally:
        connection.close()
    return sorted((tuple((type(v).__name__, v) for v in row) for row in found), key=repr)


def as_sqlite(kind: str, text: str | None) -> tuple[str, Any]:
    """What SQLite must hold for PostgreSQL's text of a value."""
    if text is None:
        return "NoneType", None
    match kind:
        case "int2" | "int4" | "int8":
            return "int", int(text)
        case "float4" | "float8":
            return "float", float(text) or 0.0  # SQLite's REAL columns keep no sign of a zero
        case "bool":
            return "int", int(text == "t")
        case "bytea":
            return "bytes", bytes.fromhex(text[2:])
        case "timestamptz":
            return "str", f"{text}:00" if text.endswith("+00") else text
        case _:
            return "str", text


def moment(kind: str, text: str) -> str:
    if kind == "time":
        return time.fromisoformat(text).isoformat()
    found = datetime.fromisoformat(text)
    return (found.astimezone(UTC) if kind == "timestamptz" else found).isoformat()


def common_of_sqlite(kind: str, cell: tuple[str, Any]) -> Any:
    """A value of SQLite in the form in which it is compared with PostgreSQL's."""
    held, value = cell
    if value is None:
        return None
    match kind:
        case "int2" | "int4" | "int8":
            assert held == "int"
        case "float8":
            assert held in {"int", "float"}
            assert float(value) == value
            return float(value)
        case "numeric":
            return Decimal(repr(value)) if held == "float" else Decimal(value)
        case "bool":
            return {0: "f", 1: "t"}[value]
        case "text" | "json":
            assert held == "str"
        case "bytea":
            assert held == "bytes"
        case "date" | "time" | "timestamp" | "timestamptz":
            return moment(kind, value)
        case "uuid":
            return value.lower()
        case _:
            pytest.fail(f"a table was made with a column of type {kind}")
    return value


def common_of_postgres(kind: str, text: str | None) -> Any:
    if text is None:
        return None
    match kind:
        case "int2" | "int4" | "int8":
            return int(text)
        case "float8":
            return float(text)
        case "numeric":
            return Decimal(text)
        case "bytea":
            return bytes.fromhex(text[2:])
        case "date" | "time" | "timestamp" | "timestamptz":
            return moment(kind, text)
        case _:
            return text


async def assert_equal(route: Route, source: str, target: str, case: Case) -> None:
    schema, bare = split_name(case.asked)
    into = qualify(schema if route == "pg-pg" else None, bare)
    kinds, rows = await read(source, case.table)
    made, copies = await read(target, into)
    if route == "pg-pg":
        assert made == kinds, case.asked
    if route == "pg-lite":
        rows = sorted((tuple(map(as_sqlite, kinds, row)) for row in rows), key=repr)
    if route == "lite-pg":
        rows = sorted((tuple(map(common_of_sqlite, made, row)) for row in rows), key=repr)
        copies = sorted((tuple(map(common_of_postgres, made, row)) for row in copies), key=repr)
    if rows != copies:  # not by assert: the values may have megabytes
        odd = [(str(a)[:200], str(b)[:200]) for a, b in zip(rows, copies, strict=False) if a != b]
        pytest.fail(f"{case.asked}: {len(rows)} rows, {len(copies)} copied; {odd[:3]}")


# -- the tests ----------------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES)
async def test_every_table_is_copied_exactly(route: Route, ends: Callable[[Route], Any]) -> None:
    """All of them by replace; keys, shapes and kinds of tables in every other mode as well."""
    source, make = await ends(route)
    replaced, appended, upserted = [await make() for _ in range(3)]
    wanted = [case for case in cases(route) if route not in case.refused]
    others = [case for case in wanted if not case.asked.startswith(("t_", "a_"))]
    keyed = [case for case in others if case.keyed]
    await copy(source, replaced, names(wanted), "replace")
    await copy(source, replaced, names(others)[:AGAIN], "replace")
    await copy(source, appended, names(others), "append")
    await copy(source, upserted, names(keyed), "upsert")
    await copy(source, upserted, names(keyed)[:AGAIN], "upsert")
    for target, copied in ((replaced, wanted), (appended, others), (upserted, keyed)):
        for case in copied:
            await assert_equal(route, source, target, case)
    await assert_verified(route, source, replaced, wanted)


async def assert_verified(route: Route, source: str, target: str, copied: Sequence[Case]) -> None:
    """``etl verify`` finds the same."""
    pairs: list[Pair] = []
    for case in copied:
        schema, bare = split_name(case.asked)
        into = qualify(schema if route == "pg-pg" else None, bare)
        pairs.append(Pair(source=case.asked, target=into))
    verdicts = await verify_all(Database(source), Database(target), pairs)
    assert [verdict for verdict in verdicts if not verdict.equal] == []


def names(wanted: Sequence[Case]) -> list[str]:
    return [case.asked for case in wanted]


@pytest.mark.parametrize("route", ROUTES)
async def test_what_cannot_be_held_is_refused_by_name(
    route: Route, ends: Callable[[Route], Any]
) -> None:
    source, make = await ends(route)
    target = await make()
    for case in cases(route):
        if route not in case.refused:
            continue
        with pytest.raises(EtlError) as refusal:
            await copy(source, target, [case.asked], "replace")
        error: BaseException = refusal.value
        code = exit_code_of(error)
        if isinstance(error, PipelineFailedError) and error.errors:
            error = error.errors[0]
        assert code in {1, 2}, (case.asked, error)
        assert all(part in str(error) for part in case.refused[route]), (case.asked, str(error))
    # What only a value could tell leaves its staging table, from which the next run goes on.
    left = {name.rpartition("__etl_new_")[0] for name in await tables(target)}
    assert left <= {case.asked for case in cases(route)}


async def tables(url: str) -> set[str]:
    """The tables of a target but for etl's own."""
    if not url.startswith("sqlite"):
        async with sql(url) as session:
            found = await session.fetch(
                "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'"
            )
        return {row[0] for row in found} - OWN_TABLES
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    try:
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    finally:
        connection.close()
    return {name for (name,) in found if not name.startswith("sqlite_")} - OWN_TABLES


CURSORS: dict[str, tuple[str, ...]] = {
    "pg": ("k_composite:b", "k_uuid:k", "k_timestamptz:k", "k_extreme:k"),
    "lite": ("b_without:a", "b_pk_desc:id", "b_pk_int:id", "b_pk_nocase:id", "a_int:id"),
}


@pytest.mark.parametrize("route", ROUTES)
async def test_an_incremental_copy_brings_every_row(
    route: Route, ends: Callable[[Route], Any]
) -> None:
    source, make = await ends(route)
    target = await make()
    by_name = {case.asked: case for case in cases(route)}
    for text in CURSORS[route.split("-")[0]]:
        name, _, cursor = text.partition(":")
        for _ in range(2):
            await copy(source, target, [name], "upsert", cursor=(cursor,))
        await assert_equal(route, source, target, by_name[name])


async def test_tables_that_sqlite_cannot_tell_apart_are_refused(
    postgres_url: str, sqlite_url: str
) -> None:
    await run_sql(postgres_url, 'CREATE TABLE "T" (id int); CREATE TABLE t (id int)')
    with pytest.raises(ConfigError, match="'T' and 't' would both be written"):
        await plan_copy(Database(postgres_url), Database(sqlite_url), CopyOptions())


async def test_a_key_takes_the_name_that_the_server_would_give_it(
    postgres_database: Callable[[], str],
) -> None:
    """A name that is taken is left to its owner; a long one is cut (see the corpus)."""
    source, target = postgres_database(), postgres_database()
    await run_sql(source, "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int)")
    await run_sql(target, "CREATE TABLE a_pkey (x int)")
    await copy(source, target, ["a", "b"], "replace")
    assert await tables(target) == {"a", "b", "a_pkey"}
