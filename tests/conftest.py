"""What every test gets: a real PostgreSQL, fresh databases, and a check that nothing is left.

PostgreSQL comes from ``tests.postgres_server``, on every machine, so that no test ever skips it;
MySQL from ``tests.mysql_server``, for ``make test-mysql``.
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from tests import mysql_server as my
from tests.postgres_server import Server, postgres

T = TypeVar("T")

# Machines differ in speed by ten, and a busy one is no fault of the code.
settings.register_profile("etl", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("etl")

TOGETHER = ("test_flights.py", "test_readme.py", "test_secrets.py", "test_wheel.py")
"""Files whose tests share what takes long to make, or go on from one another."""


# -- PostgreSQL ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres_server(pytestconfig: pytest.Config) -> Iterator[Server]:
    """The server, started once per session (and per xdist worker)."""
    with postgres() as server:
        pytestconfig.stash[_SERVER] = server
        yield server


@pytest.fixture
def postgres_database(postgres_server: Server) -> Iterator[Callable[[], str]]:
    """Gives empty databases by their URLs; after the test they are emptied for others."""
    names: list[str] = []

    def make() -> str:
        names.append(postgres_server.take())
        return postgres_server.database(names[-1])

    yield make

    left: list[str] = []
    for name in names:
        # A backend ends a moment after its client has closed the connection.
        left += _what_stays(partial(postgres_server.sessions_of_etl, name))
        postgres_server.give_back(name)
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
