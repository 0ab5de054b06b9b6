"""The server fails: sessions are terminated, a backend freezes, it restarts, it takes nobody.

On a server of its own, so that no other test is hit. The source and the target are two databases
of it. What holds after each fault is told in ``fault_kit``.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from etl import Database, Limits, Pipeline, Report, RunAbortedError
from etl.databases.migrate import ADVISORY_LOCK
from etl.databases.postgres.translate import translating
from etl.errors import PipelineFailedError, TargetUnavailableError, TransientError
from etl.events import Event, Retrying
from etl.testing.chaos import ChaosProxy
from tests.integration.fault_kit import (
    NAME,
    SMALL,
    assert_exact,
    assert_prefix,
    bounded,
    copy,
    end_of,
    make_source,
    make_target,
    shorten_waits,
    sql,
    until_unlocked,
)
from tests.own_postgres import OwnServer, StopMode, own_postgres


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    with own_postgres(max_connections="40") as one:
        yield one


@pytest.fixture
async def databases(server: OwnServer) -> AsyncGenerator[tuple[str, str]]:
    names = [f"etl_test_{secrets.token_hex(6)}" for _ in range(2)]
    urls = [urlunsplit(urlsplit(server.url)._replace(path=f"/{name}")) for name in names]
    async with sql(server.url) as connection:
        for name in names:
            await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
    await make_source(urls[0])
    await make_target(urls[1])
    # Each row costs the target some time, so that a fault finds a run at work.
    async with sql(urls[1]) as connection:
        await connection.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_sleep(0.02); RETURN NULL; END';"
            "CREATE TRIGGER slow AFTER INSERT ON copies FOR EACH STATEMENT EXECUTE FUNCTION slow()"
        )
    yield urls[0], urls[1]
    async with sql(server.url) as connection:
        for name in names:
            await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


async def finish_and_compare(source: str, target: str) -> None:
    await bounded(until_unlocked(target))
    await bounded(copy(source, target).run())
    await assert_exact(target)


async def sessions(server: OwnServer, database: str) -> list[int]:
    """The server processes of etl's sessions in a database, but for the one with the lock."""
    name = urlsplit(database).path[1:]
    async with sql(server.url) as connection:
        rows = await connection.fetch(
            "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND application_name LIKE 'etl/%'"
            " AND application_name NOT LIKE 'etl/lock/%'",
            name,
        )
    return [row["pid"] for row in rows]


async def session_of(server: OwnServer, database: str, *, rows_in: bool = True) -> int:
    """The one session in a database of a run that is at work."""
    while True:
        if not rows_in or await assert_prefix(database):
            found = await sessions(server, database)
            if len(found) == 1:
                return found[0]
        await asyncio.sleep(0.01)


WIDE = Limits(batch_rows=30, batch_bytes="1MiB", group_rows=60, channel_batches=2)


async def widen(source: str) -> None:
    """Rows that do not fit into the buffers of a socket: then the read lasts as long as the run."""
    async with sql(source) as connection:
        await connection.execute("UPDATE items SET filler = repeat('x', 30000)")


async def reading_session(server: OwnServer, source: str) -> int:
    """The session in the middle of its COPY, which waits for the run to take more."""
    condition = "query LIKE 'COPY%' AND state = 'active' AND wait_event = 'ClientWrite'"
    return await session_that(server, source, condition)


async def session_that(server: OwnServer, url: str, condition: str) -> int:
    """The first session in a database of which a condition is true."""
    async with sql(server.url) as connection:
        while True:
            pid: int | None = await connection.fetchval(
                f"SELECT pid FROM pg_stat_activity WHERE datname = $1 AND {condition}",
                urlsplit(url).path[1:],
            )
            if pid is not None:
                return pid
            await asyncio.sleep(0.005)


# --- pg_terminate_backend ---


@pytest.mark.parametrize("side", ["source", "target", "both"])
async def test_sessions_that_are_terminated_at_random_cost_no_row(
    server: OwnServer, databases: tuple[str, str], side: str
) -> None:
    source, target = databases
    if side == "source":
        await widen(source)
    hit = {"source": [source], "target": [target], "both": [source, target]}[side]
    names = [urlsplit(url).path[1:] for url in hit]
    killed = 0
    for _ in range(3):
        run = asyncio.create_task(end_of(copy(source, target, limits=WIDE)))
        async with sql(server.url) as connection:
            while not run.done():
                await asyncio.sleep(random.uniform(0.0, 0.3))
                killed += await connection.fetchval(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE datname = ANY($1) AND application_name LIKE 'etl/%'",
                    names,
                )
        end = await run
        await assert_prefix(target)
        if isinstance(end, Report):
            await assert_exact(target)
            break
    assert killed
    await finish_and_compare(source, target)


async def test_a_terminated_writer_is_replaced_at_once(
    server: OwnServer, databases: tuple[str, str]
) -> None:
    source, target = databases
    attempts: list[int] = []

    def note(event: Event) -> None:
        if isinstance(event, Retrying):
            attempts.append(event.attempt)

    run = asyncio.create_task(end_of(copy(source, target), observers=(note,)))
    pid = await bounded(session_of(server, target))
    async with sql(server.url) as connection:
        assert await connection.fetchval("SELECT pg_terminate_backend($1)", pid)
    assert isinstance(await run, Report)
    assert set(attempts) <= {1}  # the first new session served
    await assert_exact(target)


async def test_a_terminated_reader_goes_on_after_its_last_row(
    server: OwnServer, databases: tuple[str, str]
) -> None:
    source, target = databases
    await widen(source)
    retries: list[Retrying] = []

    def note(event: Event) -> None:
        if isinstance(event, Retrying):
            retries.append(event)

    pipeline = copy(source, target, limits=WIDE)
    run = asyncio.create_task(end_of(pipeline, observers=(note,)))
    pid = await bounded(reading_session(server, source))
    async with sql(server.url) as connection:
        assert await connection.fetchval("SELECT pg_terminate_backend($1)", pid)
    assert isinstance(await run, Report)
    assert [retry.what for retry in retries] == ["reading"]
    await assert_exact(target)


# --- a frozen backend ---


@pytest.mark.parametrize("side", ["source", "target"])
async def test_a_backend_frozen_for_a_moment_is_waited_for(
    server: OwnServer, databases: tuple[str, str], side: str
) -> None:
    source, target = databases
    await widen(source)
    run = asyncio.create_task(end_of(copy(source, target, limits=WIDE)))
    if side == "source":
        pid = await bounded(reading_session(server, source))
    else:
        pid = await bounded(session_of(server, target))
    with server.frozen(pid):
        await asyncio.sleep(0.5)
        assert not run.done()
    assert isinstance(await run, Report)
    await assert_exact(target)


async def test_a_frozen_reader_is_given_up_and_replaced(
    server: OwnServer, databases: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_waits(monkeypatch, 0.5)
    source, target = databases
    await widen(source)
    run = asyncio.create_task(end_of(copy(source, target, limits=WIDE)))
    pid = await bounded(reading_session(server, source))
    with server.frozen(pid):
        assert isinstance(await run, Report)  # a new session reads on
    await assert_exact(target)


async def test_a_backend_frozen_for_good_ends_the_run_within_its_limits(
    server: OwnServer, databases: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_waits(monkeypatch, 0.4)
    source, target = databases
    run = asyncio.create_task(end_of(copy(source, target), within_s=25))
    pid = await bounded(session_of(server, target))
    with server.frozen(pid):
        end = await run
        # It holds the checkpoint's lock, or not, depending on where it was: no answer in time,
        # or a new session that took over the rest.
        assert isinstance(end, Report | PipelineFailedError)
    await assert_prefix(target)
    await finish_and_compare(source, target)


async def test_an_abort_does_not_wait_for_a_frozen_backend(
    server: OwnServer, databases: tuple[str, str]
) -> None:
    source, target = databases
    run = await copy(source, target).start()
    pid = await bounded(session_of(server, target))
    with server.frozen(pid):
        await bounded(run.abort(), 20)
    await assert_prefix(target)
    await finish_and_compare(source, target)


@pytest.mark.parametrize("mode", ["append", "replace"])
async def test_an_abort_waits_its_grace_for_a_frozen_commit_and_says_that_it_is_in_doubt(
    server: OwnServer, databases: tuple[str, str], mode: str
) -> None:
    source, target = databases
    async with sql(target) as connection:  # a check that is left to COMMIT, and takes its time
        await connection.execute(
            "DROP TRIGGER slow ON copies;"
            "CREATE OR REPLACE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN IF new.id = 300 THEN PERFORM pg_sleep(2); END IF; RETURN NULL; END';"
            "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON copies DEFERRABLE INITIALLY DEFERRED"
            " FOR EACH ROW EXECUTE FUNCTION slow()"
        )
    limits = replace(SMALL, abort_grace_s=0.5)
    pipeline = copy(source, target, limits=limits)
    if mode == "replace":
        sink = Database(target).replace("copies", swap="rewrite")
        pipeline = Pipeline(NAME, Database(source).table("items").into(sink), limits=limits)
    run = await pipeline.start()
    committing = session_that(server, target, "query = 'COMMIT' AND wait_event = 'PgSleep'")
    with server.frozen(await bounded(committing)):
        run.request_abort()
        with pytest.raises(RunAbortedError, match="which the target did not end in time") as ended:
            await bounded(run.wait(), 20)  # COMMIT itself has a minute
    (flow,) = ended.value.report.flows
    assert any("not known whether it is in" in note for note in flow.notes)
    await bounded(until_unlocked(target))
    await bounded(pipeline.run())
    await assert_exact(target)


async def test_an_abort_does_not_wait_long_for_tables_that_a_frozen_server_is_to_make(
    databases: tuple[str, str],
) -> None:
    source, target = databases
    async with sql(target) as holder, holder.transaction(), ChaosProxy(target) as proxy:
        await holder.execute(f"SELECT pg_advisory_xact_lock({ADVISORY_LOCK})")
        starting = asyncio.ensure_future(copy(source, proxy.url).start())
        while proxy.accepted < 2:  # the lock of the run, and the migration
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        proxy.black_hole()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await bounded(starting, 20)


# --- restarts ---


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_restart_in_the_middle_is_survived(
    server: OwnServer, databases: tuple[str, str], mode: StopMode
) -> None:
    source, target = databases
    run = asyncio.create_task(end_of(copy(source, target)))
    await bounded(session_of(server, target))
    await asyncio.to_thread(server.restart, mode)
    end = await run
    assert isinstance(end, Report)  # a new connection is tried for some seconds
    await assert_exact(target)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_server_that_stays_away_is_a_passing_failure(
    server: OwnServer,
    databases: tuple[str, str],
    mode: StopMode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shorten_waits(monkeypatch, 0.5)
    source, target = databases
    run = asyncio.create_task(end_of(copy(source, target)))
    await bounded(session_of(server, target))
    await asyncio.to_thread(server.stop, mode)
    try:
        end = await run
        assert isinstance(end, PipelineFailedError)
        again = await end_of(copy(source, target))
        assert isinstance(again, TransientError)
    finally:
        await asyncio.to_thread(server.start)
    await assert_prefix(target)
    await finish_and_compare(source, target)


# --- no room ---


async def test_too_many_connections_are_a_passing_failure(
    server: OwnServer, databases: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_waits(monkeypatch, 0.5)
    source, target = databases
    held: list[asyncpg.Connection[asyncpg.Record]] = []
    try:
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                held.append(await asyncpg.connect(server.url))
        end = await end_of(copy(source, target))
        assert isinstance(end, TransientError)
        assert "move fewer tables at once" in str(end)
    finally:
        for connection in held:
            await connection.close()
    await finish_and_compare(source, target)


async def test_room_that_comes_free_is_taken(server: OwnServer, databases: tuple[str, str]) -> None:
    source, target = databases
    held: list[asyncpg.Connection[asyncpg.Record]] = []
    try:
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                held.append(await asyncpg.connect(server.url))
        run = asyncio.create_task(end_of(copy(source, target)))
        await asyncio.sleep(0.3)  # not a wait for anything: there is no room for that long
        assert not run.done()
    finally:
        for connection in held:
            await connection.close()
    assert isinstance(await run, Report)
    await assert_exact(target)


async def test_a_server_that_says_good_bye_between_two_statements_is_lost(
    server: OwnServer,
) -> None:
    """asyncpg has read the server's last message, but not yet the end of the connection."""
    async with ChaosProxy(server.url) as proxy:
        connection = await asyncpg.connect(proxy.url)
        pid = connection.get_server_pid()
        await connection.fetchval("SELECT 1")
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        proxy.call_after(1, "to_client", lambda: None)
        proxy.keep_open()
        async with sql(server.url) as other:
            await other.fetchval("SELECT pg_terminate_backend($1)", pid)
        await bounded(proxy.struck.wait())
        await asyncio.sleep(0.05)
        assert not lost.is_set()
        with pytest.raises(TargetUnavailableError) as error, translating("target", "here"):
            await connection.execute("UPDATE x SET y = $1", 1)
        assert isinstance(error.value.__cause__, asyncpg.InternalClientError)
        connection.terminate()
