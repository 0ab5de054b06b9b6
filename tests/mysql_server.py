"""The MariaDB or MySQL server of the tests, from the first of these that is there:

the server in ``ETL_TEST_MYSQL_DSN`` (its user must be allowed to make databases), a container by
testcontainers where Docker answers, an installed ``mariadbd``. Each process of the tests has a
server of its own but in the first case: a read that waits for open transactions sees those of all
databases of a server.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import hashlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

T = TypeVar("T")

_SMALL = ("--innodb-log-file-size=16M",)
"""Of a data directory, which is copied for each process."""

IMAGE = "mariadb:11"
START_TIMEOUT_S = 90
STATEMENT_TIMEOUT_S = 60


class MySQLServer:
    """A server and where it comes from; ``url`` names no database."""

    def __init__(self, url: str, origin: str) -> None:
        self.url = url
        self.origin = origin

    def database(self, name: str) -> str:
        """The URL of one of its databases."""
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def execute(self, *statements: str, database: str | None = None) -> None:
        """Run statements, each on its own."""
        run(self._query(statements, database))

    def query(self, sql: str, *, database: str | None = None) -> list[tuple[Any, ...]]:
        """The rows of one statement."""
        return run(self._query([sql], database))

    async def _query(self, statements: Sequence[str], database: str | None) -> list[Any]:
        rows: Sequence[Any] = []
        async with asyncio.timeout(STATEMENT_TIMEOUT_S), self.connected(database) as connection:
            async with connection.cursor() as cursor:
                # The server's own patience with a lock is a day.
                await cursor.execute(
                    "SET sql_notes = 0, time_zone = '+00:00', autocommit = 1,"
                    " lock_wait_timeout = 20, innodb_lock_wait_timeout = 20"
                )
                for statement in statements:
                    await cursor.execute(statement)
                    rows = await cursor.fetchall() if cursor.description else []
        return list(rows)

    @asynccontextmanager
    async def connected(self, database: str | None) -> AsyncGenerator[Any]:
        """A connection of the driver's, which is closed in any case.

        What it has open would make the database impossible to drop.
        """
        import asyncmy

        parts = urlsplit(self.url)
        connection = await asyncmy.connect(
            host=parts.hostname,
            port=parts.port or 3306,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            database=database,
            charset="utf8mb4",
        )
        try:
            yield connection
        finally:
            await connection.ensure_closed()

    def sessions(self, database: str) -> list[str]:
        """What sessions in one database do."""
        return [f"MySQL session {one}" for one in self._sessions(database)]

    def end_sessions(self, database: str) -> None:
        """End all sessions in one database."""
        for number, *_ in self._sessions(database):
            with suppress(Exception):  # it has ended by itself
                self.execute(f"KILL CONNECTION {number}")

    def _sessions(self, database: str) -> list[tuple[Any, ...]]:
        found = self.query("SELECT id, db, command, info FROM information_schema.processlist")
        return [one for one in found if one[1] == database]

    def drop(self, database: str) -> None:
        """Drop a database, whoever is in it."""
        self.end_sessions(database)
        self.execute(f"DROP DATABASE {database}")


@contextmanager
def mysql() -> Generator[MySQLServer]:
    """The server."""
    dsn = os.environ.get("ETL_TEST_MYSQL_DSN")
    if dsn:
        yield MySQLServer(dsn, "ETL_TEST_MYSQL_DSN")
        return
    container = _start_container() if _has_docker() else None
    if container is not None:
        try:
            host, port = container.get_container_host_ip(), container.get_exposed_port(3306)
            container.get_docker_client().client.close()
            url = f"mysql://root:test@{host}:{port}/"
            yield _ready(MySQLServer(url, f"{IMAGE} in a container"))
        finally:
            container.stop()
        return
    with _private_server() as server:
        yield server


def _mariadbd() -> str | None:
    return shutil.which("mariadbd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _has_docker() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = _ping_docker()
        gc.collect()  # sockets that the client forgot: here nobody minds
    return answers


def _ping_docker() -> bool:
    import docker
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    try:
        client = docker.from_env(timeout=3)
        try:
            client.ping()
        finally:
            client.close()
    except (DockerException, RequestException, OSError, TimeoutError):
        return False
    return True


def _start_container() -> Any:
    """A running container, or None where Docker cannot give the image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside testcontainers
        from docker.errors import DockerException
        from requests.exceptions import RequestException
        from testcontainers.core.container import DockerContainer

        container: Any = None
        try:
            container = (
                DockerContainer(IMAGE)
                .with_env("MARIADB_ROOT_PASSWORD", "test")
                .with_exposed_ports(3306)
            )
            container.start()
        except (DockerException, RequestException, OSError, TimeoutError):
            if container is not None:
                container.stop()
            return None
    return container


@contextmanager
def _private_server() -> Generator[MySQLServer]:
    """A server of this process's own, on a free port; it ends with this process."""
    program = _mariadbd()
    assert program is not None
    user = _unprivileged()
    home = _home(user)
    keeper: subprocess.Popen[bytes] | None = None
    try:
        with _template(program, user) as template:
            subprocess.run(["cp", "-R", template, home / "data"], check=True, user=user, cwd="/")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        # Ends when this process closes its end of the pipe, or dies: then it stops the server. In a
        # session of its own, so that a Ctrl-C does not reach it.
        keeper = subprocess.Popen(
            [
                "sh", "-c", '"$@" & pid=$!; read -r _; kill -9 $pid; wait $pid; rm -rf "$0"',
                str(home), program, "--no-defaults", f"--datadir={home / 'data'}",
                f"--socket={home / 'socket'}", f"--port={port}", "--bind-address=127.0.0.1",
                f"--pid-file={home / 'pid'}", f"--log-error={home / 'log'}",
                "--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0",
                "--skip-name-resolve", "--character-set-server=utf8mb4", "--skip-log-bin",
                "--innodb-flush-method=nosync", *_SMALL,
            ],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            user=user, cwd="/", start_new_session=True,
        )  # fmt: skip
        yield _ready(MySQLServer(f"mysql://root@127.0.0.1:{port}/", f"{program}, its own"))
    finally:
        if keeper is not None:
            assert keeper.stdin is not None
            keeper.stdin.close()
            keeper.wait(timeout=START_TIMEOUT_S)
        shutil.rmtree(home, ignore_errors=True)


def _home(user: str | None) -> Path:
    """A new folder of the server's user."""
    home = Path(tempfile.mkdtemp(prefix="etl-my-"))
    if user is not None:
        shutil.chown(home, user)
    return home


@contextmanager
def _template(program: str, user: str | None) -> Generator[Path]:
    """A data directory to copy, made once for this server program.

    Processes take turns: to make it takes seconds, and two that do so at once get in each other's
    way. It stays for the next run of the tests.
    """
    install = shutil.which("mariadb-install-db")
    assert install is not None, "mariadbd is here without mariadb-install-db"
    status = os.stat(program)
    of = f"{program} {status.st_mtime_ns} {status.st_size} {user} {' '.join(_SMALL)}"
    folder = Path(tempfile.gettempdir())
    mark = f"etl-my-{os.geteuid()}"
    template = folder / f"{mark}-{hashlib.sha256(of.encode()).hexdigest()[:12]}"
    with (folder / f"{mark}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not template.exists():
            home = _home(user)
            try:
                subprocess.run(
                    [
                        install, "--no-defaults", f"--datadir={home / 'data'}", "--skip-test-db",
                        "--auth-root-authentication-method=normal", *_SMALL,
                    ],
                    check=True, capture_output=True, user=user, cwd="/", timeout=START_TIMEOUT_S,
                )  # fmt: skip
                (home / "data").rename(template)
            finally:
                shutil.rmtree(home, ignore_errors=True)
        yield template


def _unprivileged() -> str | None:
    """As root, the server runs as another user."""
    if os.geteuid() != 0:
        return None
    for name in ("mysql", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    return None


def _ready(server: MySQLServer) -> MySQLServer:
    """The server, when it answers."""
    end = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            server.execute("SELECT 1")
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return server


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """In a thread: an async test, which has a running loop in this one, may ask."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
