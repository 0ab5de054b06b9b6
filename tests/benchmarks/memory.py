"""Peak memory of etl with default limits: it must not grow with the table or with its rows."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import cast

from etl import Database, Row
from tests.benchmarks import lineitem
from tests.benchmarks.postgres_functions import Line, changed, changed_line, is_kept, line_is_kept
from tests.benchmarks.server import execute, fetch_value
from tests.benchmarks.with_etl import run
from tests.benchmarks.work import Contender, Place, Work, nothing

TIMES = 10
WIDE_ROWS = 2_000
WIDE_BYTES = 1024 * 1024
_DOUBLED = "l_orderkey + n * 100000000::bigint, " + ", ".join(lineitem.COLUMNS[1:])
_BODY = f"repeat(md5(i::text), {WIDE_BYTES // 32})"


def prepare(place: Place) -> None:
    """``lineitem``, ten times as much of it as ``many``, and ``wide``; in both databases."""
    lineitem.make_both(place)
    if fetch_value(place.source, "SELECT to_regclass('many')::text") is None:
        execute(
            place.source,
            f"CREATE TABLE many ({lineitem.define()})",
            f"INSERT INTO many SELECT {_DOUBLED} FROM generate_series(1, {TIMES}) AS n, lineitem",
            f"ALTER TABLE many ADD {lineitem.KEY}",
            "CREATE TABLE wide (id integer PRIMARY KEY, body text NOT NULL)",
            f"INSERT INTO wide SELECT i, {_BODY} FROM generate_series(1, {WIDE_ROWS}) AS i",
            "VACUUM ANALYZE",
        )
    with closing(sqlite3.connect(lineitem.sqlite_source(place))) as connection:
        known = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
        if "many" not in known:
            connection.execute(f"CREATE TABLE many ({lineitem.define()}, {lineitem.KEY})")
            for n in range(TIMES):
                select = _DOUBLED.replace("n * 100000000::bigint", "? * 100000000")
                connection.execute(f"INSERT INTO many SELECT {select} FROM lineitem", (n,))
            connection.execute("CREATE TABLE wide (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")
            rows = ((i, f"{i:032d}" * (WIDE_BYTES // 32)) for i in range(WIDE_ROWS))
            connection.executemany("INSERT INTO wide VALUES (?, ?)", rows)
            connection.commit()


def reset(place: Place) -> None:
    """Empty targets for all of it."""
    lineitem.empty_postgres(place)
    lineitem.empty_sqlite(place)
    execute(
        place.target,
        "DROP TABLE IF EXISTS wide",
        "CREATE TABLE wide (id integer PRIMARY KEY, body text NOT NULL)",
    )
    with closing(sqlite3.connect(lineitem.sqlite_target(place))) as connection:
        connection.execute("DROP TABLE IF EXISTS wide")
        connection.execute("CREATE TABLE wide (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")


def _moves(start: str, end: str, table: str, way: str) -> Contender:
    """A contender that moves one table from one kind of database to another.

    Args:
        way: ``untouched``, ``mappings`` or ``dataclass``.
    """
    into = "wide" if table == "wide" else "lineitem"

    def move(place: Place) -> tuple[int, int]:
        urls = {
            "PostgreSQL": (place.source, place.target),
            "SQLite": (
                f"sqlite:///{lineitem.sqlite_source(place)}",
                f"sqlite:///{lineitem.sqlite_target(place)}",
            ),
        }
        source, sink = Database(urls[start][0]), Database(urls[end][1]).append(into)
        match way:
            case "dataclass":
                lines = source.table(table, row=Line)
                flow = lines.filter(line_is_kept).map(changed_line).into(sink)
            case "mappings" if table != "wide":
                flow = source.table(table).filter(is_kept).map(changed).into(sink)
            case "mappings":
                flow = source.table(table).map(_longer).into(sink)
            case _:
                flow = source.table(table).into(sink)
        report = run(flow)
        wanted = {"lineitem": place.rows, "many": TIMES * place.rows, "wide": WIDE_ROWS}
        return report.rows_read, wanted[table]

    size = {"lineitem": "lineitem", "many": f"lineitem × {TIMES}", "wide": "wide rows"}[table]
    return Contender(name=f"{start} → {end}, {way}, {size}", run=move)


def _longer(row: Row) -> Row:
    return row.replace(body=row["body"] + "!")


def check(result: object) -> None:
    """Every row was read."""
    read, wanted = cast("tuple[int, int]", result)
    if read != wanted:
        raise AssertionError(f"{read} rows were read of {wanted}")


WORK = Work(
    title="Peak memory with default limits:"
    f" lineitem, {TIMES} times as much, and {WIDE_ROWS:,} rows of 1 MiB",
    contenders=tuple(
        _moves(start, end, table, way)
        for start, end in (
            ("PostgreSQL", "PostgreSQL"),
            ("SQLite", "PostgreSQL"),
            ("PostgreSQL", "SQLite"),
        )
        for way in ("untouched", "mappings", "dataclass")
        for table in ("lineitem", "many", "wide")
        if not (way == "dataclass" and table == "wide")
        if way == "untouched" or start == end == "PostgreSQL"
    ),
    reference="",
    rows=None,
    prepare=prepare,
    reset=reset,
    found=nothing,
    expected=nothing,
    check=check,
    rounds=1,
    peak_mib=150,
)
