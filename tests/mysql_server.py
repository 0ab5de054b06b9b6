"""The MariaDB or MySQL server of the tests, from the first of these that is there:

the server in ``ETL_TEST_MYSQL_DSN`` (its user must be allowed to make databases), a container by
testcontainers where Docker answers, an installed ``mariadbd``. There is no server to install by
pip, so these tests are not those of ``make test`` but of ``make test-mysql``.
"""

from __future__ import annotations

import asyncio
import gc
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

T = TypeVar("T")

IMAGE = "mariadb:11"
START_TIMEOUT_S = 90


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
        import asyncmy

        parts = urlsplit(self.url)
        connection = await asyncmy.connect(
            host=parts.hostname,
            port=parts.port or 3306,
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            database=database,
            charset="utf8mb4",
            autocommit=True,
        )
        try:
            rows: Sequence[Any] = []
            async with connection.cursor() as cursor:
                await cursor.execute("SET sql_notes = 0, time_zone = '+00:00'")
                for statement in statements:
                    await cursor.execute(statement)
                    rows = await cursor.fetchall() if cursor.description else []
            return list(rows)
        finally:
            await connection.ensure_closed()

    def sessions(self, database: str) -> list[str]:
        """What sessions in one database do."""
        found = self.query("SELECT id, db, command, info FROM information_schema.processlist")
        return [f"MySQL session {one}" for one in found if one[1] == database]


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
    install = shutil.which("mariadb-install-db")
    assert program is not None
    assert install is not None, "mariadbd is here without mariadb-install-db"
    home = Path(tempfile.mkdtemp(prefix="etl-my-"))
    user = _unprivileged()
    if user is not None:
        shutil.chown(home, user)
    keeper: subprocess.Popen[bytes] | None = None
    try:
        subprocess.run(
            [
                install, "--no-defaults", f"--datadir={home / 'data'}", "--skip-test-db",
                "--auth-root-authentication-method=normal",
            ],
            check=True, capture_output=True, user=user, cwd="/", timeout=START_TIMEOUT_S,
        )  # fmt: skip
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
                "--innodb-flush-method=nosync",
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
