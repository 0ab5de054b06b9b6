"""PostgreSQL, three Python functions on each row, PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import asyncpg

from etl import Database, Limits, Pipeline, Row
from tests.benchmarks import by_hand, lineitem, peers
from tests.benchmarks.measure import ROOT
from tests.benchmarks.shell import pipe, psql
from tests.benchmarks.with_etl import run
from tests.benchmarks.work import Contender, Goal, Place, Work

CENT = Decimal("0.01")
_CHANGED = {
    "l_extendedprice": "round(l_extendedprice * (1 - l_discount), 2)::numeric(15,2)",
    "l_shipmode": "lower(l_shipmode)",
}
# What the functions do, said in SQL: the result to compare with, and the fastest way there is.
IN_SQL = (
    "SELECT "
    + ", ".join(f"{_CHANGED.get(name, name)} AS {name}" for name in lineitem.COLUMNS)
    + " FROM lineitem WHERE l_returnflag <> 'R'"
)


def is_kept(row: Row) -> object:
    return row["l_returnflag"] != "R"


def changed(row: Row) -> Row:
    price = row["l_extendedprice"] * (1 - row["l_discount"])
    return row.replace(
        l_extendedprice=price.quantize(CENT, ROUND_HALF_UP), l_shipmode=row["l_shipmode"].lower()
    )


def etl_rows(place: Place) -> None:
    lines = Database(place.source).table("lineitem")
    run(lines.filter(is_kept).map(changed).into(Database(place.target).append("lineitem")))


@dataclass(frozen=True, slots=True)
class Line:
    l_orderkey: int
    l_partkey: int
    l_suppkey: int
    l_linenumber: int
    l_quantity: Decimal
    l_extendedprice: Decimal
    l_discount: Decimal
    l_tax: Decimal
    l_returnflag: str
    l_linestatus: str
    l_shipdate: date
    l_commitdate: date
    l_receiptdate: date
    l_shipinstruct: str
    l_shipmode: str
    l_comment: str


def line_is_kept(line: Line) -> bool:
    return line.l_returnflag != "R"


def changed_line(line: Line) -> Line:
    price = line.l_extendedprice * (1 - line.l_discount)
    return replace(
        line,
        l_extendedprice=price.quantize(CENT, ROUND_HALF_UP),
        l_shipmode=line.l_shipmode.lower(),
    )


def etl_dataclass(place: Place) -> None:
    lines = Database(place.source).table("lineitem", row=Line)
    run(
        lines.filter(line_is_kept).map(changed_line).into(Database(place.target).append("lineitem"))
    )


def etl_declared(place: Place) -> None:
    kept = [name for name in lineitem.COLUMNS if name not in _CHANGED]
    lines = Database(place.source).table("lineitem").where("l_returnflag <> 'R'")
    lines = lines.select(*kept, **_CHANGED)
    run(lines.into(Database(place.target).append("lineitem")))


# Worker processes import this module again: the pipeline must be a variable of it.
_LINES = Database("env:BENCH_SOURCE").table("lineitem")
in_processes = Pipeline(
    "benchmark in processes",
    _LINES.filter(is_kept).map(changed).into(Database("env:BENCH_TARGET").append("lineitem")),
)


def etl_two_processes(place: Place) -> None:
    os.environ |= {"BENCH_SOURCE": place.source, "BENCH_TARGET": place.target}
    report = in_processes.run_sync(limits=Limits(processes=2), full=True)
    if report.status != "completed":
        raise RuntimeError(f"the run is {report.status}")


def asyncpg_records(place: Place) -> None:
    batches = by_hand.queued(by_hand.postgres_records(place.source, "SELECT * FROM lineitem"))
    asyncio.run(by_hand.to_postgres(batches, place.target, "lineitem", _changed))


def asyncpg_two_processes(place: Place) -> None:
    """The same by hand: each half of the keys in a Python of its own."""
    middle = asyncio.run(_middle(place.source))
    halves = (f"l_orderkey <= {middle}", f"l_orderkey > {middle}")
    command = [sys.executable, "-m", "tests.benchmarks.postgres_functions"]
    processes = [
        subprocess.Popen([*command, place.source, place.target, half], cwd=ROOT) for half in halves
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise RuntimeError("one of the processes failed")


async def _middle(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        found: int = await connection.fetchval("SELECT max(l_orderkey) / 2 FROM lineitem")
        return found
    finally:
        await connection.close()


def _half(source: str, target: str, condition: str) -> None:
    query = f"SELECT * FROM lineitem WHERE {condition}"
    batches = by_hand.queued(by_hand.postgres_records(source, query))
    asyncio.run(by_hand.to_postgres(batches, target, "lineitem", _changed))


def _changed(records: by_hand.Records) -> Iterator[tuple[Any, ...]]:
    for record in records:
        if record[8] != "R":
            price = (record[5] * (1 - record[6])).quantize(CENT, ROUND_HALF_UP)
            yield (*record[:5], price, *record[6:14], record[14].lower(), record[15])


def psql_in_sql(place: Place) -> None:
    pipe(
        psql(place.source, f"COPY ({IN_SQL}) TO STDOUT (FORMAT binary)"),
        psql(place.target, "COPY lineitem FROM STDIN (FORMAT binary)"),
    )


LIMIT = "limit: the same in SQL, psql to psql"
BY_HAND = "asyncpg cursor, copy_records_to_table"
TWO_PROCESSES = "etl, rows as mappings, two processes"

WORK = Work(
    title="PostgreSQL → filter, computed decimal, lower case in Python → PostgreSQL",
    contenders=(
        Contender(name="etl, rows as mappings", run=etl_rows),
        Contender(name="etl, row=Dataclass", run=etl_dataclass),
        Contender(name="etl, declared steps", run=etl_declared),
        Contender(name=TWO_PROCESSES, run=etl_two_processes),
        Contender(name=BY_HAND, run=asyncpg_records),
        Contender(name=f"{BY_HAND}, two processes", run=asyncpg_two_processes),
        Contender(name=LIMIT, run=psql_in_sql, needs=("psql",)),
        peers.scripted(
            "ADBC, vectorised, two threads",
            "adbc",
            "with_adbc.py",
            lambda p: (p.source, p.target, "functions"),
        ),
    ),
    reference=BY_HAND,
    rows=lambda place: place.rows,
    prepare=lineitem.make_postgres,
    reset=lineitem.empty_postgres,
    found=lambda place: lineitem.digest(place.target),
    expected=lambda place: lineitem.digest(place.source, IN_SQL),
    goals=(
        Goal(contender="etl, rows as mappings", reference=BY_HAND, at_most=0.5),
        Goal(contender=TWO_PROCESSES, reference=BY_HAND, at_most=0.25),
        Goal(contender="etl, declared steps", reference=LIMIT, at_most=1.05),
    ),
)


if __name__ == "__main__":
    _half(*sys.argv[1:])
