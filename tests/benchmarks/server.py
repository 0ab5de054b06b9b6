"""The PostgreSQL server of the benchmarks: durable, and big enough not to be the story."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from tests.own_postgres import own_postgres

SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
    "fsync": "on",
    # It would wake up in the middle of a run, for one contender and not for the other.
    "autovacuum": "off",
}
SHOWN = ("server_version", "shared_buffers", "fsync", "synchronous_commit", "autovacuum")


@contextmanager
def server() -> Generator[str, None, None]:
    """URL of a server's maintenance database: that in ``ETL_TEST_POSTGRES_DSN``, else our own."""
    dsn = os.environ.get("ETL_TEST_POSTGRES_DSN")
    if dsn:
        yield dsn
        return
    with own_postgres(**SETTINGS) as own:
        yield own.url


@contextmanager
def databases(url: str) -> Generator[tuple[str, str], None, None]:
    """URLs of an empty source and an empty target database; both are dropped at the end."""
    names = [f"etl_bench_{what}_{os.getpid()}" for what in ("source", "target")]
    for name in names:
        execute(url, f'CREATE DATABASE "{name}"')
    try:
        source, target = (urlunsplit(urlsplit(url)._replace(path=f"/{name}")) for name in names)
        yield source, target
    finally:
        for name in names:
            execute(url, f'DROP DATABASE "{name}" WITH (FORCE)')


def settings(url: str) -> dict[str, str]:
    """The settings that figures depend on."""
    return {name: str(fetch_value(url, f"SHOW {name}")) for name in SHOWN}


def execute(url: str, *statements: str) -> None:
    """Run statements one after the other, each in a transaction of its own."""

    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(run())


def server_cpu_s(url: str) -> float:
    """CPU time that the server has taken so far, its sessions included; 0 where it is not here.

    A session's time counts among that of the server's first process when the session has ended.
    """

    async def run() -> float:
        connection = await asyncpg.connect(url)
        try:
            own = _stat(await connection.fetchval("SELECT pg_backend_pid()"))
            first = int(own[1])
            if not Path(f"/proc/{first}/comm").read_text().startswith("postgres"):
                return 0.0  # a process of that number is here, and it is another one
            # User and system time of each process, and of those that it has waited for.
            times = [sum(map(int, _stat(first)[11:15]))]
            times += [sum(map(int, _stat(one)[11:13])) for one in children(first)]
            return sum(times) / os.sysconf("SC_CLK_TCK")
        except (OSError, IndexError):
            return 0.0
        finally:
            await connection.close()

    return asyncio.run(run())


def _stat(pid: int) -> Sequence[str]:
    """What /proc says of a process, from its state on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def children(pid: int) -> Sequence[int]:
    """The processes that one has started and not waited for yet."""
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def fetch_value(url: str, query: str) -> object:
    """The first value of the first row."""
    value: object = fetch_rows(url, query)[0][0]
    return value


def fetch_rows(url: str, query: str) -> Sequence[asyncpg.Record]:
    """All rows of a query."""

    async def run() -> Sequence[asyncpg.Record]:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetch(query)
        finally:
            await connection.close()

    return asyncio.run(run())


def load_csv(url: str, table: str, file: Path) -> None:
    """COPY a CSV file with a header line into a table."""

    async def run() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.copy_to_table(table, source=file, format="csv", header=True)
        finally:
            await connection.close()

    asyncio.run(run())
