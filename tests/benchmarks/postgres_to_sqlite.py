"""PostgreSQL to SQLite, and nothing looks at the rows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from etl import Database
from tests.benchmarks import by_hand, lineitem
from tests.benchmarks.shell import pipe, psql
from tests.benchmarks.with_etl import run
from tests.benchmarks.work import Contender, Place, Work

QUERY = "SELECT * FROM lineitem"


def etl_append(place: Place) -> None:
    lines = Database(place.source).table("lineitem")
    run(lines.into(Database(f"sqlite:///{lineitem.sqlite_target(place)}").append("lineitem")))


def asyncpg_records(place: Place) -> None:
    batches = by_hand.queued(by_hand.postgres_records(place.source, QUERY))
    asyncio.run(
        by_hand.to_sqlite(
            batches, str(lineitem.sqlite_target(place)), lineitem.SQLITE_INSERT, _converted
        )
    )


def _converted(records: by_hand.Records) -> Iterator[tuple[Any, ...]]:
    for record in records:
        yield (
            *record[:4],
            *map(str, record[4:8]),
            *record[8:10],
            *[day.isoformat() for day in record[10:13]],
            *record[13:],
        )


def asyncpg_casts(place: Place) -> None:
    casts = ", ".join(
        f"{name}::text" if type.startswith(("numeric", "date")) else name
        for name, type in zip(lineitem.COLUMNS, lineitem.TYPES, strict=True)
    )
    batches = by_hand.queued(
        by_hand.postgres_records(place.source, f"SELECT {casts} FROM lineitem")
    )
    asyncio.run(
        by_hand.to_sqlite(batches, str(lineitem.sqlite_target(place)), lineitem.SQLITE_INSERT)
    )


def plain_tools(place: Place) -> None:
    pipe(
        psql(place.source, "COPY lineitem TO STDOUT (FORMAT csv)"),
        ["sqlite3", str(lineitem.sqlite_target(place)), ".import --csv /dev/stdin lineitem"],
    )


BY_HAND = "asyncpg cursor, converted, executemany"

WORK = Work(
    title="PostgreSQL → SQLite, untouched",
    contenders=(
        Contender(name="etl, append", run=etl_append),
        Contender(name=BY_HAND, run=asyncpg_records),
        Contender(name="asyncpg cursor with casts in SQL, executemany", run=asyncpg_casts),
        Contender(
            name="psql COPY csv to sqlite3 .import", run=plain_tools, needs=("psql", "sqlite3")
        ),
    ),
    reference=BY_HAND,
    rows=lambda place: place.rows,
    prepare=lineitem.make_postgres,
    reset=lineitem.empty_sqlite,
    found=lineitem.sqlite_digest,
    expected=lineitem.sqlite_digest_of_postgres,
)
