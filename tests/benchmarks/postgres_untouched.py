"""PostgreSQL to PostgreSQL, and nothing looks at the rows."""

from __future__ import annotations

import asyncio

from etl import Database
from tests.benchmarks import by_hand, lineitem, peers
from tests.benchmarks.shell import pipe, psql
from tests.benchmarks.with_etl import run
from tests.benchmarks.work import Contender, Goal, Place, Work

QUERY = "SELECT * FROM lineitem"


def etl_append(place: Place) -> None:
    lines = Database(place.source).table("lineitem")
    run(lines.into(Database(place.target).append("lineitem")))


def etl_replace(place: Place) -> None:
    lines = Database(place.source).table("lineitem")
    run(lines.into(Database(place.target).replace("lineitem")))


def asyncpg_records(place: Place) -> None:
    batches = by_hand.queued(by_hand.postgres_records(place.source, QUERY))
    asyncio.run(by_hand.to_postgres(batches, place.target, "lineitem"))


def asyncpg_binary(place: Place) -> None:
    asyncio.run(by_hand.copy_binary(place.source, QUERY, place.target, "lineitem"))


def psql_text(place: Place) -> None:
    pipe(
        psql(place.source, "COPY lineitem TO STDOUT"),
        psql(place.target, "COPY lineitem FROM STDIN"),
    )


def psql_binary(place: Place) -> None:
    pipe(
        psql(place.source, "COPY lineitem TO STDOUT (FORMAT binary)"),
        psql(place.target, "COPY lineitem FROM STDIN (FORMAT binary)"),
    )


def _urls(place: Place) -> tuple[str, str]:
    return place.source, place.target


LIMIT = "psql COPY binary to psql"

WORK = Work(
    title="PostgreSQL → PostgreSQL, untouched",
    contenders=(
        Contender(name="etl, append", run=etl_append),
        Contender(name="etl, replace", run=etl_replace),
        Contender(name="psql COPY text to psql", run=psql_text, needs=("psql",)),
        Contender(name=LIMIT, run=psql_binary, needs=("psql",)),
        Contender(name="asyncpg COPY binary, queue, COPY", run=asyncpg_binary),
        Contender(name="asyncpg cursor, copy_records_to_table", run=asyncpg_records),
        peers.scripted("ADBC, two threads", "adbc", "with_adbc.py", _urls),
        peers.scripted("connectorx to ADBC", "connectorx", "with_connectorx.py", _urls),
        peers.scripted("polars", "polars", "with_polars.py", _urls),
        peers.scripted(
            "dlt, connectorx, CSV", "dlt", "with_dlt.py", lambda p: (*_urls(p), "connectorx", "csv")
        ),
        peers.scripted(
            "dlt, defaults", "dlt", "with_dlt.py", lambda p: (*_urls(p), "sqlalchemy", "default")
        ),
        peers.ingestr("ingestr", lambda p: (p.source, "public.lineitem")),
        peers.sling("sling", lambda p: (f"{p.source}?sslmode=disable", "public.lineitem")),
    ),
    reference="asyncpg cursor, copy_records_to_table",
    rows=lambda place: place.rows,
    prepare=lineitem.make_postgres,
    reset=lineitem.empty_postgres,
    found=lambda place: lineitem.digest(place.target),
    expected=lambda place: lineitem.digest(place.source),
    goals=(Goal(contender="etl, append", reference=LIMIT, at_most=1.0),),
)
