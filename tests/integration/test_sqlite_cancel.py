"""Cancelling and interrupting SQLite work anywhere: nothing half-written, nothing left open."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import closing, suppress
from dataclasses import dataclass
from time import monotonic
from typing import Any

import pytest

from etl import Pipeline
from etl.batch import Batch
from etl.databases import sqlite
from etl.databases.database import Database, ReadSpec
from etl.databases.sqlite.connection import connect_target, path_of
from etl.databases.url import parse_url
from etl.errors import ResourceError, TargetUnavailableError
from etl.rows import shape_of
from tests.integration.sqlite_kit import INFO, fetch, insert, lane, read, script, target, value


@dataclass(frozen=True, slots=True)
class Item:
    id: int
    v: str | None


ITEM = shape_of(Item, key=("id",))

SLOW = """
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000)
SELECT sum(i) AS id FROM n
"""


class ActAt:
    """Awaits a coroutine, and does something at the k-th suspension, once or more often.

    Args:
        action: By default: cancel the task.
    """

    def __init__(
        self,
        work: Coroutine[Any, Any, Any],
        k: int,
        again: int = 0,
        action: Callable[[], object] | None = None,
    ) -> None:
        self.work, self.k, self.again, self.action = work, k, again, action
        self.suspensions = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self.work.__await__()
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                step = inner.throw(error) if error else inner.send(value)
            except StopIteration as end:
                return end.value
            value = error = None
            self.suspensions += 1
            if self.k <= self.suspensions <= self.k + self.again:
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_soon(self.action or task.cancel)
            try:
                value = yield step
            except BaseException as thrown:
                error = thrown


async def cancelled_at(work: Coroutine[Any, Any, Any], k: int, again: int) -> bool:
    """Run work with a cancellation at the k-th suspension; whether it came so far."""
    probe = ActAt(work, k, again)

    async def run() -> None:
        await probe

    (outcome,) = await asyncio.gather(asyncio.create_task(run()), return_exceptions=True)
    assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome
    return probe.suspensions >= k


@pytest.mark.parametrize("again", [0, 2])
async def test_a_read_that_is_cancelled_anywhere_leaves_nothing_and_can_be_read_again(
    sqlite_url: str, again: int
) -> None:
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    insert(sqlite_url, "t", [(i, "x" * 20) for i in range(400)])
    k = 0
    while True:
        k += 1
        seen: list[int] = []

        async def emit(batch: Batch[Any], seen: list[int] = seen) -> None:
            await asyncio.sleep(0)
            seen.extend(row["id"] for row in batch.rows)

        async with sqlite.open_reader(parse_url(sqlite_url), ReadSpec(table="t"), INFO) as reader:
            came = await cancelled_at(reader.pump(None, None, emit), k, again)
            start = len(seen)
            assert seen == list(range(start))
            # The same reader goes on from the last position, on a new connection.
            await reader.pump((start - 1,) if start else None, None, emit)
            assert seen == list(range(400))
        if not came:
            break
    assert k > 5
    assert _threads() == 0


@pytest.mark.parametrize("again", [0, 2])
async def test_opening_that_is_cancelled_anywhere_leaves_nothing(
    sqlite_url: str, again: int
) -> None:
    async with lane(sqlite_url, lambda d: d.append("t"), shape=ITEM):
        pass

    async def work() -> None:
        async with lane(sqlite_url, lambda d: d.replace("t"), shape=ITEM) as one:
            if one.position is None:  # else an earlier round has staged the row
                await one.write([Item(1, "a")], (1,))
            await one.publish()
        async with sqlite.open_state(parse_url(sqlite_url)) as state:
            await state.states()
        await read(sqlite_url, ReadSpec(table="t"))

    k = 0
    while True:
        k += 1
        came = await cancelled_at(work(), k, again)
        assert _threads() == 0, k
        _is_free(sqlite_url)
        if not came:
            break
    assert k > 30
    assert fetch(sqlite_url, "SELECT * FROM t") == [(1, "a")]


async def test_a_transaction_that_is_interrupted_anywhere_is_all_or_nothing(
    sqlite_url: str,
) -> None:
    async with lane(sqlite_url, lambda d: d.append("t"), shape=ITEM) as one:
        k = step = 0
        came = True
        while came:
            k += 1
            step += 1
            rows = [Item(step * 10_000 + i, "x") for i in range(5_000)]
            probe = ActAt(one.write(rows, (step,)), k, action=one.session.interrupt)
            with suppress(TargetUnavailableError):
                await probe
            came = probe.suspensions >= k
            stored = value(sqlite_url, "SELECT position FROM etl_checkpoint")
            count = value(sqlite_url, "SELECT count(*) FROM t")
            if one.position == (step,):
                assert stored == f"[{step}]"
            else:
                assert stored != f"[{step}]"
            assert count % 5_000 == 0
            assert count == value(sqlite_url, "SELECT rows FROM etl_checkpoint")
    assert k > 5


async def test_an_interrupt_ends_a_long_statement_soon(sqlite_url: str) -> None:
    script(
        sqlite_url,
        "CREATE TABLE t (id INT, v TEXT); CREATE TRIGGER g AFTER INSERT ON t"
        f" WHEN (SELECT id FROM ({SLOW})) > 0 BEGIN SELECT 1; END",
    )
    async with lane(sqlite_url, lambda d: d.append("t"), shape=ITEM) as one:
        writing = asyncio.create_task(one.write([Item(1, "a")], (1,)))
        await asyncio.sleep(0.2)
        began = monotonic()
        one.session.interrupt()
        with pytest.raises(TargetUnavailableError, match="interrupted"):
            await writing
        assert monotonic() - began < 5
        script(sqlite_url, "DROP TRIGGER g")
        assert await one.write([Item(1, "a")], (1,)) == 1


async def test_an_interrupt_without_a_transaction_is_harmless(sqlite_url: str) -> None:
    async with lane(sqlite_url, lambda d: d.append("t"), shape=ITEM) as one:
        one.session.interrupt()
        assert await one.write([Item(1, "a")], (1,)) == 1


async def test_a_slow_read_is_cancelled_soon_also_at_its_first_step(sqlite_url: str) -> None:
    script(sqlite_url, "CREATE TABLE t (a)")
    spec = ReadSpec(query=f"SELECT * FROM ({SLOW})", key=("id",))
    for wait_s in (0, 0.01, 0.2):
        reading = asyncio.create_task(read(sqlite_url, spec))
        await asyncio.sleep(wait_s)
        began = monotonic()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert monotonic() - began < 5
        assert _threads() == 0


async def test_an_interrupted_connection_tells_that_its_transaction_is_gone(
    sqlite_url: str,
) -> None:
    async with lane(sqlite_url, lambda d: d.append("t"), shape=ITEM) as one:
        await one.session.begin()
        connection = one.session._connection
        assert connection is not None
        await connection.execute("ROLLBACK")  # as SQLite itself does on some errors
        with pytest.raises(TargetUnavailableError, match="rolled the transaction back by itself"):
            await one.session.write(0, [Batch([Item(1, "a")])])
        with pytest.raises(TargetUnavailableError, match="by itself"):
            await one.session.advance([one.step((1,))])
        with pytest.raises(TargetUnavailableError, match="by itself"):
            await one.session.commit()
        await one.session.rollback()
        assert await one.write([Item(1, "a")], (1,)) == 1


async def test_a_full_disk_is_a_resource_error_and_nothing_is_kept(sqlite_url: str) -> None:
    async with lane(sqlite_url, lambda d: d.append("t"), shape=ITEM) as one:
        await one.write([Item(1, "a")], (1,))
        connection = one.session._connection
        assert connection is not None
        pages = await connection.value("PRAGMA page_count")
        await connection.fetch(f"PRAGMA max_page_count={pages + 5}")
        with pytest.raises(ResourceError, match="disk is full; make room"):
            await one.write([Item(i, "x" * 500) for i in range(2, 1_000)], (2,))
        assert fetch(sqlite_url, "SELECT id FROM t") == [(1,)]
        await connection.fetch("PRAGMA max_page_count=1000000")
        assert await one.write([Item(i, "x" * 500) for i in range(2, 1_000)], (2,)) == 998


async def test_a_cancelled_wait_for_the_lock_does_not_leak_it(sqlite_url: str) -> None:
    script(sqlite_url, "PRAGMA journal_mode=WAL; CREATE TABLE t (a)")
    path = path_of(parse_url(sqlite_url).path, "x")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        connection = await connect_target(path, "x")
        beginning = asyncio.create_task(connection.begin())
        await asyncio.sleep(0.05)
        beginning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await beginning
        assert connection.poisoned
        await connection.close()
        other.execute("COMMIT")
        other.execute("BEGIN IMMEDIATE")
        other.execute("COMMIT")


@pytest.mark.parametrize("mode", ["append", "replace", "upsert"])
async def test_a_pipeline_that_is_cancelled_at_any_time_ends_exact(
    sqlite_url: str, tmp_path: Any, mode: str
) -> None:
    source_url = f"sqlite:///{tmp_path}/source.db"
    script(source_url, "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    insert(source_url, "t", [(i, f"v{i}") for i in range(20_000)])
    source, out = Database(source_url), Database(sqlite_url)
    sinks = {
        "append": out.append("t"),
        "replace": out.replace("t"),
        "upsert": out.upsert("t", key=("id",)),
    }

    def pipeline() -> Pipeline:
        return Pipeline(
            "p", source.table("t").map(lambda row: row.replace(v="n")).into(sinks[mode])
        )

    for wait_s in (0.0, 0.01, 0.03, 0.05, 0.08, 0.12, 0.2):
        running = asyncio.create_task(pipeline().run())
        await asyncio.sleep(wait_s)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert _threads() == 0
    await pipeline().run()
    assert fetch(sqlite_url, "SELECT id, v FROM t ORDER BY rowid") == [
        (i, "n") for i in range(20_000)
    ]


def _threads() -> int:
    """Threads of aiosqlite that are still there, a moment after they were told to end."""
    for thread in threading.enumerate():
        if "connection_worker" in thread.name:
            thread.join(2)
    return sum("connection_worker" in thread.name for thread in threading.enumerate())


def _is_free(url: str) -> None:
    """Nobody holds a lock."""
    with closing(sqlite3.connect(parse_url(url).path, isolation_level=None, timeout=0)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")


async def test_a_target_closes_all_its_sessions_through_cancellations(sqlite_url: str) -> None:
    script(sqlite_url, "CREATE TABLE t (id INT, v TEXT)")
    sink = Database(sqlite_url).append("t")

    async def work() -> None:
        async with target(sqlite_url) as opened:
            for number in range(4):
                session = await opened.session(f"f{number}", [sink])
                await session.prepare([None], resumable=True)

    k, came = 0, True
    while came:
        k += 1
        came = await cancelled_at(work(), k, 3)
        assert _threads() == 0, k
    assert k > 20
