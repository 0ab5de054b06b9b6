"""SQLite to PostgreSQL, and nothing looks at the rows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import date
from decimal import Decimal
from typing import Any

from etl import Database
from tests.benchmarks import by_hand, lineitem, peers
from tests.benchmarks.shell import pipe, psql
from tests.benchmarks.with_etl import run
from tests.benchmarks.work import Contender, Goal, Place, Work

QUERY = "SELECT * FROM lineitem"


def etl_append(place: Place) -> None:
    lines = Database(f"sqlite:///{lineitem.sqlite_source(place)}").table("lineitem")
    run(lines.into(Database(place.target).append("lineitem")))


def sqlite3_records(place: Place) -> None:
    batches = by_hand.queued(by_hand.sqlite_records(str(lineitem.sqlite_source(place)), QUERY))
    asyncio.run(by_hand.to_postgres(batches, place.target, "lineitem", _converted))


def _converted(records: by_hand.Records) -> Iterator[tuple[Any, ...]]:
    day = date.fromisoformat
    for record in records:
        yield (
            *record[:4],
            *[Decimal(str(value)) for value in record[4:8]],
            *record[8:10],
            *map(day, record[10:13]),
            *record[13:],
        )


def plain_tools(place: Place) -> None:
    pipe(
        ["sqlite3", "-csv", str(lineitem.sqlite_source(place)), QUERY],
        psql(place.target, "COPY lineitem FROM STDIN (FORMAT csv)"),
    )


def pgloader(place: Place) -> None:
    pipe(["pgloader", str(lineitem.sqlite_source(place)), place.target])


def _addresses(place: Place) -> tuple[str, str]:
    return str(lineitem.sqlite_source(place)), place.target


LIMIT = "sqlite3 -csv to psql COPY csv"
BY_HAND = "sqlite3 rows, converted, copy_records_to_table"

WORK = Work(
    title="SQLite → PostgreSQL, untouched",
    contenders=(
        Contender(name="etl, append", run=etl_append),
        Contender(name=BY_HAND, run=sqlite3_records),
        Contender(name=LIMIT, run=plain_tools, needs=("sqlite3", "psql")),
        peers.scripted("ADBC, two threads", "adbc", "with_adbc.py", _addresses),
        peers.scripted(
            "dlt, defaults",
            "dlt",
            "with_dlt.py",
            lambda p: (*_addresses(p), "sqlalchemy", "default"),
        ),
        peers.ingestr(
            "ingestr", lambda p: (f"sqlite:///{lineitem.sqlite_source(p)}", "main.lineitem")
        ),
        peers.sling("sling", lambda p: (f"sqlite://{lineitem.sqlite_source(p)}", "main.lineitem")),
        Contender(
            name="pgloader",
            run=pgloader,
            needs=("pgloader",),
            bends="varchar becomes char, padded with spaces",
        ),
    ),
    reference=BY_HAND,
    rows=lambda place: place.rows,
    prepare=lineitem.make_both,
    reset=lineitem.empty_postgres,
    found=lambda place: lineitem.digest(place.target),
    expected=lambda place: lineitem.digest(place.source),
    goals=(
        Goal(contender="etl, append", reference=BY_HAND, at_most=0.5),
        Goal(contender="etl, append", reference=LIMIT, at_most=1.2),
    ),
)
