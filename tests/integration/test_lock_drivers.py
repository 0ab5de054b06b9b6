"""The lock of a pipeline in each driver, with runs in one process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import stat
import struct
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from etl import Database, Pipeline
from etl.connector import CheckpointKey, OpenTarget, RunInfo
from etl.databases.postgres import connect as postgres_connect
from etl.databases.postgres import lock as postgres_lock
from etl.databases.postgres.connect import close, connect
from etl.databases.postgres.translate import Side
from etl.databases.sqlite import lock as sqlite_lock
from etl.databases.url import parse_url
from etl.engine.holder import is_alive_here, this_process
from etl.errors import AlreadyRunningError, ConfigError, SourceUnavailableError
from etl.testing.memory import MemorySource

ROOT = Path(__file__).parents[2]
GUARD_S = 45
ENDLESS_S = 1e9
ELSEWHERE = '{"host": "elsewhere", "pid": 7, "since": "2024-01-01T00:00:00+00:00", "started": "1"}'


@dataclass(frozen=True, slots=True)
class Item:
    id: int


def info(run_id: str, *, pipeline: str = "p", take_over: bool = False) -> RunInfo:
    return RunInfo(
        pipeline=pipeline,
        run_id=run_id,
        batch_rows=100,
        batch_bytes=2000,
        holder=this_process(run_id),
        take_over=take_over,
    )


@asynccontextmanager
async def running(url: str, run: RunInfo) -> AsyncGenerator[OpenTarget]:
    """A run that has the lock, and has said so in its checkpoint."""
    async with Database(url).open(run, sessions=1) as target:
        session = await target.session("f", [Database(url).append("t")])
        key = CheckpointKey(pipeline=run.pipeline, flow="f", sink="t", partition="main")
        await session.take_over([key], fingerprints=["{}"], fresh=False)
        yield target


async def starts(url: str, run: RunInfo) -> None:
    async with Database(url).open(run, sessions=1):
        pass


@pytest.fixture(params=["postgres_url", "sqlite_url"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    def set_to(seconds: float) -> None:
        for module in (postgres_lock, sqlite_lock):
            monkeypatch.setattr(module, "PATIENCE_S", seconds)

    return set_to


async def test_a_holder_that_lives_here_is_not_waited_for(
    url: str, patience: Callable[[float], None]
) -> None:
    patience(ENDLESS_S)
    async with running(url, info("one")):
        async with asyncio.timeout(GUARD_S):
            with pytest.raises(AlreadyRunningError, match=f"process {os.getpid()} on host"):
                await starts(url, info("two"))
        await starts(url, info("three", pipeline="another"))


async def test_a_holder_elsewhere_is_waited_for_and_named(
    url: str, patience: Callable[[float], None]
) -> None:
    patience(0.3)
    async with running(url, replace(info("one"), holder=ELSEWHERE)):
        with pytest.raises(
            AlreadyRunningError,
            match="process 7 on host elsewhere, since 2024-01-01T00:00:00",
        ):
            await starts(url, info("two"))


async def test_a_lock_that_is_given_back_meanwhile_is_taken(
    url: str, patience: Callable[[float], None]
) -> None:
    patience(ENDLESS_S)
    async with asyncio.timeout(GUARD_S):
        async with running(url, replace(info("one"), holder=ELSEWHERE)):
            second = asyncio.create_task(starts(url, info("two")))
            await asyncio.sleep(0.3)
            assert not second.done()
        await second


async def test_runs_after_one_another_find_it_free(
    url: str, patience: Callable[[float], None]
) -> None:
    """The holder, this process, lives: a lock that is let go too late would end the next run."""
    patience(0)
    for number in range(10):
        async with running(url, info(str(number))):
            pass


async def test_cancelled_while_it_waits_a_run_leaves_nothing(
    url: str, patience: Callable[[float], None]
) -> None:
    patience(ENDLESS_S)
    async with running(url, replace(info("one"), holder=ELSEWHERE)):
        second = asyncio.create_task(starts(url, info("two")))
        await asyncio.sleep(0.3)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
    patience(5)
    await starts(url, info("three"))


async def test_a_take_over_says_whom_it_fences(url: str, caplog: pytest.LogCaptureFixture) -> None:
    async with running(url, info("one")):
        with caplog.at_level(logging.WARNING, "etl"):
            await starts(url, info("two", take_over=True))
    assert f"taking over from process {os.getpid()}" in caplog.text


def test_a_process_that_ended_is_not_alive_although_nobody_asked_for_its_status() -> None:
    program = "import sys; from etl.engine.holder import this_process; print(this_process('x'))"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{program}; sys.stdout.flush(); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        holder = process.stdout.readline()
        assert is_alive_here(holder)
        process.kill()
        # Waits for the end, and leaves the process listed.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive_here(holder)
    process.wait()


# --- PostgreSQL ---


async def test_one_run_may_name_one_database_twice(postgres_url: str) -> None:
    parts = urlsplit(postgres_url)
    again = urlunsplit(parts._replace(query="sslmode=prefer"))
    flows = [
        MemorySource([Item(1)], name=name).into(Database(url).append(name))
        for name, url in (("a", postgres_url), ("b", again))
    ]
    report = await Pipeline("p", *flows).run()
    assert report.rows_written == 2


async def test_the_lock_is_given_back_before_its_session_ends(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that is closed lives on for a moment."""
    left: list[int] = []

    async def noted(connection: Any) -> None:
        left.append(await _advisory_locks(postgres_url))
        await close(connection)

    monkeypatch.setattr("etl.databases.postgres.lock.close", noted)
    async with running(postgres_url, info("one")):
        assert await _advisory_locks(postgres_url) == 1
    assert left == [0]


async def test_a_run_that_is_starting_is_named_by_its_session(
    postgres_url: str, patience: Callable[[float], None]
) -> None:
    """It has the lock, and no checkpoint yet."""
    patience(0)
    async with Database(postgres_url).open(info("one"), sessions=1):
        with pytest.raises(
            AlreadyRunningError, match=rf"session \d+ \(etl/lock/one/{os.getpid()}@.*, since 20"
        ):
            await starts(postgres_url, info("two"))


class Pooler:
    """Greets with a process number of its own, as poolers do; what follows passes unchanged."""

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        user = self._parts.netloc.rpartition("@")[0]
        return urlunsplit(self._parts._replace(netloc=f"{user}@127.0.0.1:{port}"))

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        up_reader, up = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        try:
            await asyncio.gather(_pass(reader, up), _pass(up_reader, writer, changing=True))
        finally:
            for one in (up, writer):
                one.close()
            self._tasks.discard(task)


async def _pass(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, changing: bool = False
) -> None:
    try:
        while data := await reader.read(65536):
            # BackendKeyData: "K", the length 12, the process number, a secret.
            at = data.find(b"K\x00\x00\x00\x0c") if changing else -1
            if at >= 0 and len(data) >= at + 9:
                data = data[: at + 5] + struct.pack("!I", 77) + data[at + 9 :]
                changing = False
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        if not writer.is_closing():
            writer.close()


async def test_behind_a_pooler_no_lock_is_left_with_it(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with Pooler(postgres_url) as pooled:
        with caplog.at_level(logging.WARNING, "etl"):
            async with running(pooled, info("one")):
                assert await _advisory_locks(postgres_url) == 0
                await starts(pooled, info("two"))
    assert "behind a connection pooler" in caplog.text


_READY = b"Z\x00\x00\x00\x05I"
"""ReadyForQuery, outside of a transaction."""


class SharedPooler(Pooler):
    """Gives each transaction the one session that it has, whoever asks."""

    async def __aenter__(self) -> str:
        url = await super().__aenter__()
        self._turn = asyncio.Lock()
        self._up_reader, self._up = await asyncio.open_connection(
            self._parts.hostname, self._parts.port
        )
        self._greeting = b""
        return url

    async def __aexit__(self, *exc_info: object) -> None:
        self._up.close()
        await super().__aexit__(*exc_info)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await self._share(reader, writer)
        writer.close()

    async def _share(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start = await reader.readexactly(4)
        start += await reader.readexactly(struct.unpack("!I", start)[0] - 4)
        if not self._greeting:
            self._up.write(start)
            self._greeting = await self._answer(start)
        key = self._greeting.find(b"K\x00\x00\x00\x0c")
        pooled = struct.pack("!I", 77)
        writer.write(self._greeting[: key + 5] + pooled + self._greeting[key + 9 :])
        while (data := await reader.read(65536)) and data[:1] != b"X":
            async with self._turn:
                self._up.write(data)
                writer.write(answer := await self._answer(data))
                while not answer.endswith(_READY):
                    data = await reader.read(65536)
                    self._up.write(data)
                    writer.write(answer := await self._answer(data))

    async def _answer(self, asked: bytes) -> bytes:
        """Up to ReadyForQuery, or to the description that was flushed."""
        ends = b"nTE" if asked.endswith(b"H\x00\x00\x00\x04") else b"Z"
        answer = b""
        while True:
            head = await self._up_reader.readexactly(5)
            answer += head
            answer += await self._up_reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
            if head[:1] in ends:
                return answer


@pytest.mark.parametrize("side", ["source", "target"])
async def test_a_pooler_that_gives_each_transaction_a_session_is_refused(
    postgres_url: str, side: Side
) -> None:
    """Its other clients would get the settings: on the source's side, a read-only session."""
    async with SharedPooler(postgres_url) as pooled:
        with pytest.raises(ConfigError, match="pool_mode=session"):
            await connect(parse_url(f"{pooled}?sslmode=disable"), side, "etl/test")
        other = await asyncpg.connect(pooled, ssl=False, statement_cache_size=0)
        async with other.transaction():
            assert await other.fetchval("SHOW default_transaction_read_only") == "off"
            assert await other.fetchval("SHOW lock_timeout") == "0"
            assert await other.fetchval("SHOW row_security") == "on"
        await other.close()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("no such database: nosuch", "no such database"),
        ("unsupported startup parameter: options", "ignore_startup_parameters"),
    ],
)
async def test_what_a_pooler_refuses_is_to_be_corrected(said: str, told: str) -> None:
    """PgBouncer gives the SQLSTATE of a broken protocol, which would be tried again."""

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fields = f"SFATAL\0C08P01\0M{said}\0\0".encode()
        writer.write(b"E" + struct.pack("!I", len(fields) + 4) + fields)
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        url = parse_url(f"postgresql://me@127.0.0.1:{port}/nosuch?sslmode=disable")
        with pytest.raises(ConfigError, match=told):
            await connect(url, "target", "etl/test")


async def test_a_session_that_does_not_come_is_not_waited_for_long(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler greets at once, and lets the first statement wait."""
    monkeypatch.setattr(postgres_connect, "CONNECT_S", 1.0)
    async with SharedPooler(postgres_url) as pooled:
        other = await asyncpg.connect(pooled, ssl=False, statement_cache_size=0)
        await other.execute("BEGIN")
        with pytest.raises(SourceUnavailableError, match="default_pool_size"):
            await connect(parse_url(f"{pooled}?sslmode=disable"), "source", "etl/test")
        await other.close()


async def _advisory_locks(url: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    finally:
        await connection.close()


# --- SQLite ---


def lock_files(folder: Path) -> Iterator[Path]:
    return folder.glob("*.lock")


async def test_the_file_is_private_and_goes_with_the_run(sqlite_url: str, tmp_path: Path) -> None:
    async with running(sqlite_url, info("one")):
        (file,) = lock_files(tmp_path)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(lock_files(tmp_path)) == []


async def test_a_link_names_the_same_database(sqlite_url: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "test.db")):
        (tmp_path / "link.db").symlink_to(tmp_path / "test.db")
    async with running(sqlite_url, info("one")):
        with pytest.raises(AlreadyRunningError):
            await starts(f"sqlite:///{tmp_path / 'link.db'}", info("two"))


async def test_a_file_with_a_second_name_is_refused(sqlite_url: str, tmp_path: Path) -> None:
    """By each name SQLite would keep a log of its own, and two runs would destroy the file."""
    with closing(sqlite3.connect(tmp_path / "test.db")) as connection:
        connection.execute("CREATE TABLE t (id int)")
    (tmp_path / "other.db").hardlink_to(tmp_path / "test.db")
    with pytest.raises(ConfigError, match="2 names"):
        await starts(sqlite_url, info("one"))
    (tmp_path / "other.db").unlink()
    await starts(sqlite_url, info("one"))


async def test_the_lock_outlasts_the_sessions(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from etl.databases.sqlite.target import SqliteSession

    seen: list[int] = []
    close = SqliteSession.close

    async def noted(self: SqliteSession) -> None:
        await close(self)
        seen.append(len(list(lock_files(tmp_path))))

    monkeypatch.setattr(SqliteSession, "close", noted)
    async with running(sqlite_url, info("one")):
        pass
    assert seen == [1]


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    program = """
import asyncio, os, sys, time
from pathlib import Path
from etl.connector import RunInfo
from etl.databases.sqlite.lock import run_lock
from etl.engine.holder import this_process

async def main():
    info = RunInfo(pipeline="p", run_id="r", batch_rows=1, batch_bytes=1, holder=this_process("r"))
    async with run_lock(Path(sys.argv[1]), info):
        pid = os.fork()
        if pid == 0:
            os.close(1)
            time.sleep(60)
        os.write(1, f"{pid}\\n".encode())
        os._exit(0)  # the child lives on

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "x.db"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=GUARD_S,
        check=True,
    )
    child = int(done.stdout)
    try:
        asyncio.run(asyncio.wait_for(_is_free(tmp_path / "x.db"), GUARD_S))
    finally:
        os.kill(child, signal.SIGKILL)


async def _is_free(database: Path) -> None:
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(sqlite_lock.run_lock(database, info("two")))


async def test_a_lock_that_cannot_be_written_is_done_without(
    sqlite_url: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """A full disk: no descriptor stays open with the lock."""

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "etl"):
        patch.setattr(os, "pwrite", full)
        await starts(sqlite_url, info("one"))
    assert "No space left on device" in caplog.text
    async with running(sqlite_url, info("two")):
        assert len(list(lock_files(tmp_path))) == 1


# --- several targets ---


def test_targets_are_opened_in_the_order_of_their_names(tmp_path: Path) -> None:
    one, two = (Database(f"sqlite:///{tmp_path / name}") for name in ("a.db", "b.db"))
    flows = [
        MemorySource([1], name=name).into(database.append(name))
        for name, database in (("x", two), ("y", one))
    ]
    for order in (flows, flows[::-1]):
        assert list(Pipeline("p", *order).plan().targets) == [one, two]
