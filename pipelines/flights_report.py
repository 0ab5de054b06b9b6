"""A look at the warehouse: the airports whose flights arrive latest."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from typing import Any, Final
from urllib.parse import quote

import asyncpg
from rich.console import Console
from rich.table import Table

from etl.databases.url import parse_url

# The means come from sums and counts, so an airport's busy days weigh more than its quiet ones.
WORST_AIRPORTS: Final = """
SELECT d.airport, a.name, sum(d.flights), sum(d.cancelled), sum(d.arrived),
       1.0 * sum(d.arrival_delay_min) / sum(d.arrived) AS mean_delay_min
FROM delays_by_day d LEFT JOIN dim_airports a ON a.faa = d.airport
GROUP BY d.airport, a.name
HAVING sum(d.arrived) > 0
ORDER BY mean_delay_min DESC, d.airport
LIMIT 5
"""


def report(url: str, console: Console | None = None) -> None:
    """Print the five airports with the worst mean arrival delay."""
    table = Table(title="The five worst airports by mean arrival delay, flights from New York 2013")
    table.add_column("airport")
    table.add_column("name")
    for column in ("flights", "cancelled", "arrived", "mean delay, min"):
        table.add_column(column, justify="right")
    for airport, name, flights, cancelled, arrived, delay in fetch(url, WORST_AIRPORTS):
        table.add_row(
            airport, name or "?", f"{flights:,}", f"{cancelled:,}", f"{arrived:,}", f"{delay:.1f}"
        )
    (console or Console()).print(table)


def fetch(url: str, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a SELECT in a SQLite or PostgreSQL database."""
    address = parse_url(url)
    if address.dialect == "sqlite":
        with closing(sqlite3.connect(f"file:{quote(address.path)}?mode=ro", uri=True)) as database:
            return database.execute(sql).fetchall()
    return asyncio.run(_fetch_postgres(url, sql))


async def _fetch_postgres(url: str, sql: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect("postgresql" + url[url.index(":") :])
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()
