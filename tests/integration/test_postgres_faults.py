"""PostgreSQL that goes away, is slow, locked or full, and tasks that are cancelled."""

from __future__ import annotations

import asyncio
import errno
import gc
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from etl.batch import Batch
from etl.connector import RunInfo
from etl.databases import postgres
from etl.databases.database import Database, ReadSpec
from etl.databases.postgres import connect, copying, session
from etl.databases.postgres.translate import translated
from etl.databases.url import parse_url
from etl.errors import (
    CommitInDoubtError,
    ConfigError,
    DataError,
    EtlError,
    SourceUnavailableError,
    TargetUnavailableError,
    TransientError,
)
from tests.integration.postgres_kit import lane, run_sql, sql, texts, value

BIG = RunInfo(pipeline="p", run_id="run", batch_rows=10_000, batch_bytes=256 * 1024)
BIG_TABLE = (
    "CREATE TABLE big (id int PRIMARY KEY, v text);"
    "INSERT INTO big SELECT i, repeat('x', 1000) FROM generate_series(1, 50000) AS i"
)


def batch(start: int, count: int, size: int = 1000) -> Batch[Any]:
    text = "x" * size
    return Batch([{"id": i, "v": text} for i in range(start, start + count)], position=("1",))


async def until(found: Callable[[], Awaitable[Any]]) -> Any:
    """Wait for something to become true."""
    async with asyncio.timeout(10):
        while not (answer := await found()):
            await asyncio.sleep(0.01)
    return answer


async def backends(url: str, like: str) -> list[int]:
    async with sql(url) as connection:
        rows = await connection.fetch(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name LIKE 'etl/p/run%' AND query LIKE $1 AND state <> 'idle'",
            like,
        )
    return [row["pid"] for row in rows]


async def kill(url: str, like: str) -> float:
    """Terminate the backends that run such a statement; when that was."""
    pids = await until(lambda: backends(url, like))
    started = time.monotonic()
    async with sql(url) as connection:
        for pid in pids:
            await connection.fetchval("SELECT pg_terminate_backend($1)", pid)
    return started


async def test_a_backend_killed_in_copy_out_is_a_lost_source(postgres_url: str) -> None:
    await run_sql(postgres_url, BIG_TABLE)
    got: list[Batch[Any]] = []
    go_on = asyncio.Event()

    async def emit(one: Batch[Any]) -> None:
        got.append(one)
        if len(got) == 2:
            await go_on.wait()

    async with postgres.open_reader(parse_url(postgres_url), ReadSpec(table="big"), BIG) as reader:
        pumping = asyncio.create_task(reader.pump(None, None, emit))
        await until(lambda: asyncio.sleep(0, len(got) == 2))
        started = await kill(postgres_url, "COPY%")
        go_on.set()
        with pytest.raises(SourceUnavailableError, match="lost"):
            await pumping
        assert time.monotonic() - started < 2
        assert pumping.cancelling() == 0

        # The same reader goes on behind the last batch that was emitted.
        seen = sum(len(one.rows) for one in got)
        after, got = got[-1].position, []
        await reader.pump(after, None, emit)
        assert [row["id"] for one in got for row in one.rows] == list(range(seen + 1, 50001))


async def test_a_connection_that_is_cancelled_as_it_opens_leaves_nothing_behind(
    postgres_url: str,
) -> None:
    told: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    for turns in range(40):
        opening = asyncio.ensure_future(
            connect.connect(parse_url(postgres_url), "target", f"cut/{turns}")
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        opening.cancel()
        await asyncio.wait([opening])
        if not opening.cancelled():
            await connect.close(opening.result())
    gc.collect()
    await asyncio.sleep(0.01)
    assert not told


async def test_a_cancelled_read_ends_at_once_and_closes_its_connection(postgres_url: str) -> None:
    await run_sql(postgres_url, BIG_TABLE)
    reached = asyncio.Event()

    async def emit(_: Batch[Any]) -> None:
        reached.set()
        await asyncio.Event().wait()

    async with postgres.open_reader(parse_url(postgres_url), ReadSpec(table="big"), BIG) as reader:
        pumping = asyncio.create_task(reader.pump(None, None, emit))
        await reached.wait()
        started = time.monotonic()
        pumping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pumping
        assert time.monotonic() - started < 2
        assert await until(lambda: _none_left(postgres_url))


async def _none_left(url: str) -> bool:
    return not await value(
        url,
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name LIKE 'etl/p/run%'",
    )


async def test_a_cancelled_copy_is_cut_in_a_turn_in_which_no_data_come() -> None:
    done: list[str] = []
    begun = asyncio.Event()

    class Reading:
        def pause_reading(self) -> None:
            done.append("pause")
            asyncio.get_running_loop().call_soon(done.append, "a turn")

        def resume_reading(self) -> None:
            done.append("resume")

    class Copying:
        _transport = Reading()

        async def copy_from_query(self, *_: Any, **__: Any) -> str:
            try:
                begun.set()
                await asyncio.Event().wait()
            finally:
                done.append("cut")
            return ""

    async def output(_: bytearray) -> None:
        raise AssertionError

    connection: Any = Copying()
    task = asyncio.ensure_future(copying.copy_out(connection, "SELECT 1", output))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == ["pause", "a turn", "cut", "resume"]


@pytest.mark.parametrize("error", [RuntimeError("stop"), TimeoutError("slow"), OSError("disk")])
async def test_an_error_of_emit_passes_unchanged(postgres_url: str, error: Exception) -> None:
    await run_sql(postgres_url, BIG_TABLE)

    async def emit(_: Batch[Any]) -> None:
        raise error

    async with postgres.open_reader(parse_url(postgres_url), ReadSpec(table="big"), BIG) as reader:
        with pytest.raises(type(error)) as caught:
            await reader.pump(None, None, emit)
        assert caught.value is error


async def test_a_backend_killed_in_copy_in_is_a_lost_target(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        """
        CREATE TABLE big (id int PRIMARY KEY, v text);
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep(0.01); RETURN NEW; END $$;
        CREATE TRIGGER s BEFORE INSERT ON big FOR EACH ROW EXECUTE FUNCTION slow();
        """,
    )
    async with lane(postgres_url, Database(postgres_url).append("big")) as one:
        groups = [batch(i * 1000, 1000, 20_000) for i in range(3)]
        writing = asyncio.create_task(one.write(groups, ("1",)))
        started = await kill(postgres_url, "COPY%")
        with pytest.raises(TargetUnavailableError, match="lost"):
            await writing
        assert time.monotonic() - started < 2
        assert writing.cancelling() == 0
        assert await value(postgres_url, "SELECT count(*) FROM big") == 0

        await run_sql(postgres_url, "DROP TRIGGER s ON big")
        await one.write([batch(0, 100)], ("1",))
    assert await value(postgres_url, "SELECT count(*) FROM big") == 100


async def test_a_cancelled_write_leaves_nothing_and_the_session_goes_on(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE big (id int PRIMARY KEY, v text)")
    async with (
        lane(postgres_url, Database(postgres_url).append("big")) as one,
        sql(postgres_url) as blocker,
    ):
        await blocker.execute("BEGIN; INSERT INTO big VALUES (5)")
        writing = asyncio.create_task(one.write([batch(0, 10)], ("1",)))
        await until(lambda: backends(postgres_url, "COPY%"))
        started = time.monotonic()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        assert time.monotonic() - started < 4
        await blocker.execute("ROLLBACK")
        assert await value(postgres_url, "SELECT count(*) FROM big") == 0
        await one.write([batch(0, 10)], ("1",))
    assert await value(postgres_url, "SELECT count(*) FROM big") == 10


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.003, 0.006, 0.01, 0.02, 0.04])
@pytest.mark.parametrize("mode", ["append", "upsert"])
async def test_a_write_cancelled_anywhere_is_in_whole_or_not_at_all(
    postgres_url: str, after_s: float, mode: str
) -> None:
    await run_sql(postgres_url, "CREATE TABLE big (id int PRIMARY KEY, v text)")
    database = Database(postgres_url)
    sink = database.append("big") if mode == "append" else database.upsert("big", key=("id",))
    async with lane(postgres_url, sink) as one:
        writing = asyncio.create_task(one.write([batch(0, 2000), batch(2000, 500)], ("1",)))
        await asyncio.sleep(after_s)
        writing.cancel()
        try:
            await writing
        except asyncio.CancelledError:
            pass
        found = (await one.session.settle(one.keys))[one.keys[0]].position
        count = await value(postgres_url, "SELECT count(*) FROM big")
        assert (found, count) in {(None, 0), (("1",), 2500)}
        if found is None:
            await one.write([batch(0, 2500)], ("1",))
    assert await value(postgres_url, "SELECT count(*) FROM big") == 2500


async def test_interrupt_ends_a_running_write(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE big (id int PRIMARY KEY, v text)")
    async with (
        lane(postgres_url, Database(postgres_url).append("big")) as one,
        sql(postgres_url) as blocker,
    ):
        one.session.interrupt()
        await blocker.execute("BEGIN; INSERT INTO big VALUES (5)")
        writing = asyncio.create_task(one.write([batch(0, 10)], ("1",)))
        await until(lambda: backends(postgres_url, "COPY%"))
        one.session.interrupt()
        with pytest.raises(TransientError):
            await writing
        await blocker.execute("ROLLBACK")
        await one.write([batch(0, 10)], ("1",))


async def test_a_lock_is_not_waited_for_for_ever(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connect.SETTINGS, "lock_timeout", "200ms")
    await run_sql(postgres_url, "CREATE TABLE big (id int PRIMARY KEY, v text)")
    async with (
        lane(postgres_url, Database(postgres_url).append("big")) as one,
        sql(postgres_url) as blocker,
    ):
        await blocker.execute("BEGIN; LOCK TABLE big")
        with pytest.raises(TargetUnavailableError, match="holds a lock"):
            await one.write([batch(0, 10)], ("1",))
        await blocker.execute("ROLLBACK")
        await one.write([batch(0, 10)], ("1",))


async def test_a_connection_lost_in_commit_is_in_doubt_and_settled(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        """
        CREATE TABLE big (id int PRIMARY KEY, v text);
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep(30); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER s AFTER INSERT ON big DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION slow();
        """,
    )
    async with lane(postgres_url, Database(postgres_url).append("big")) as one:
        writing = asyncio.create_task(one.write([batch(0, 1)], ("1",)))
        await kill(postgres_url, "COMMIT%")
        with pytest.raises(CommitInDoubtError):
            await writing
        found = await one.session.settle(one.keys)
        assert found[one.keys[0]].position is None
        await run_sql(postgres_url, "DROP TRIGGER s ON big")
        await one.write([batch(0, 1)], ("1",))


async def test_a_commit_without_an_answer_is_in_doubt_and_settle_waits_for_it(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "COMMIT_S", 0.3)
    await run_sql(
        postgres_url,
        """
        CREATE TABLE big (id int PRIMARY KEY, v text);
        CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep(1); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER s AFTER INSERT ON big DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION slow();
        """,
    )
    async with lane(postgres_url, Database(postgres_url).append("big")) as one:
        with pytest.raises(CommitInDoubtError):
            await one.write([batch(0, 1)], ("1",))
        position = (await one.session.settle(one.keys))[one.keys[0]].position
        count = await value(postgres_url, "SELECT count(*) FROM big")
        assert (position, count) in {(None, 0), (("1",), 1)}


async def test_a_refused_commit_is_certain(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE big (id int UNIQUE DEFERRABLE INITIALLY DEFERRED, v text)",
    )
    async with lane(postgres_url, Database(postgres_url).append("big")) as one:
        with pytest.raises(DataError, match="big_id_key"):
            await one.write([batch(1, 1), batch(1, 1)], ("1",))
        await one.write([batch(1, 1)], ("1",))
    assert await texts(postgres_url, "SELECT id FROM big") == ["(1)"]


# --- connecting ----------------------------------------------------------------------------


def with_parts(url: str, *, netloc: str | None = None, path: str | None = None) -> str:
    parts = urlsplit(url)
    return urlunsplit(
        parts._replace(
            netloc=parts.netloc if netloc is None else netloc,
            path=parts.path if path is None else path,
        )
    )


async def open_source(url: str) -> None:
    async with postgres.open_reader(parse_url(url), ReadSpec(table="t"), BIG):
        pass


async def test_an_unknown_database_or_user_is_a_wrong_configuration(postgres_url: str) -> None:
    with pytest.raises(ConfigError, match='"nowhere" does not exist'):
        await open_source(with_parts(postgres_url, path="/nowhere"))
    host = urlsplit(postgres_url).netloc.rpartition("@")[2]
    with pytest.raises(ConfigError, match="nobody") as caught:
        await open_source(with_parts(postgres_url, netloc=f"nobody:s3cr3t@{host}"))
    assert "s3cr3t" not in str(caught.value)


async def test_a_password_file_that_was_not_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pgpass"
    monkeypatch.delenv("PGPASSWORD", raising=False)

    async def refuses(*_args: object, **_kwargs: object) -> NoReturn:
        raise asyncpg.InvalidPasswordError("password authentication failed")

    monkeypatch.setattr(asyncpg, "connect", refuses)

    async def refused(url: str) -> str:
        with pytest.raises(ConfigError, match="password authentication failed") as caught:
            await connect.connect(parse_url(url), "target", "test")
        return str(caught.value)

    named = f"postgresql://me@warehouse/d?passfile={file}"
    assert f"{str(file)!r}, which is not there" in await refused(named)
    file.touch(0o600)
    assert "passfile" not in await refused(named)
    file.chmod(0o644)
    assert "others may read as well" in await refused(named)
    monkeypatch.setenv("PGPASSFILE", str(file))
    assert "others may read as well" in await refused("postgresql://me@warehouse/d")
    assert "passfile" not in await refused("postgresql://me:s3cr3t@warehouse/d")


async def test_a_home_that_may_not_be_read_is_a_wrong_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def looks(*_args: object, **_kwargs: object) -> NoReturn:
        raise PermissionError(errno.EACCES, "Permission denied", "/root/.postgresql/postgresql.key")

    monkeypatch.setattr(asyncpg, "connect", looks)
    with pytest.raises(ConfigError, match=r"'/root/\.postgresql/postgresql\.key' cannot be read"):
        await connect.connect(parse_url("postgresql://me@warehouse/d"), "target", "test")


async def test_a_server_that_is_not_there_is_tried_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connect, "_PATIENCE_S", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"postgresql://u:s3cr3t@127.0.0.1:{port}/db"
    with pytest.raises(SourceUnavailableError, match="cannot be reached") as caught:
        await open_source(url)
    assert "s3cr3t" not in str(caught.value)
    with pytest.raises(TargetUnavailableError, match="cannot be reached"):
        async with postgres.open_target(parse_url(url), BIG, sessions=1):
            pass


async def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "CONNECT_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"postgresql://u:s3cr3t@127.0.0.1:{silent.getsockname()[1]}/db?sslmode=disable"
        with pytest.raises(SourceUnavailableError, match="did not answer"):
            await open_source(url)


async def test_tls_that_is_demanded_is_not_given_up(postgres_url: str) -> None:
    if await value(postgres_url, "SHOW ssl") == "on":
        pytest.skip("this server has TLS")
    mark = "&" if "?" in postgres_url else "?"
    with pytest.raises(EtlError, match="SSL|TLS|secure"):
        await open_source(f"{postgres_url}{mark}sslmode=require")


async def test_a_read_only_target_is_a_wrong_configuration(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE big (id int, v text)")
    async with lane(postgres_url, Database(postgres_url).append("big")):
        pass
    name = await value(postgres_url, "SELECT current_database()")
    await run_sql(postgres_url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    with pytest.raises(ConfigError, match="read-only"):
        async with lane(postgres_url, Database(postgres_url).append("big")) as one:
            await one.write([batch(0, 1)], ("1",))


async def test_a_target_that_becomes_read_only_in_a_run_is_about_to_fail_over(
    postgres_url: str,
) -> None:
    name = urlsplit(postgres_url).path.lstrip("/")
    await run_sql(postgres_url, "CREATE TABLE t (id int, v text)")
    async with lane(postgres_url, Database(postgres_url).append("t")) as one:
        await one.write([batch(1, 1)], ("1",))
        await run_sql(
            postgres_url, f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'
        )
        pid = one.session.connection.get_server_pid()
        assert await value(postgres_url, f"SELECT pg_terminate_backend({pid}, 5000)")
        for _ in range(2):  # the loss of the connection, then what the next one finds
            with pytest.raises(TargetUnavailableError) as failure:
                await one.write([batch(2, 1)], ("2",))
        assert "may be about to take over" in str(failure.value)
        async with sql(postgres_url) as admin:
            await admin.execute("SET default_transaction_read_only = off")
            await admin.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
        await one.write([batch(2, 1)], ("2",))  # connects anew
    assert await value(postgres_url, "SELECT count(*) FROM t") == 2


async def test_a_host_that_is_silent_or_a_standby_is_passed_over(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "CONNECT_S", 2.0)
    await run_sql(postgres_url, "CREATE TABLE t (id int PRIMARY KEY)")
    parts = urlsplit(postgres_url)
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        others = ",".join(f"127.0.0.1:{one.getsockname()[1]}" for one in (silent, closed))
        user, at, host = parts.netloc.rpartition("@")
        several = with_parts(postgres_url, netloc=f"{user}{at}{others},{host}")
        await open_source(several + "?target_session_attrs=read-write")
        monkeypatch.setattr(connect, "_PATIENCE_S", 0.1)
        with pytest.raises(SourceUnavailableError, match="None of the hosts match"):
            await open_source(several + "?target_session_attrs=standby")
    assert parse_url(several).name == f"postgresql://{others},{host}{parts.path}"
    with pytest.raises(ConfigError, match="2 hosts and 3 ports"):
        await open_source("postgresql:///d?host=a,b&port=1,2,3")
    with pytest.raises(ConfigError, match="port must be 0-65535"):
        await open_source("postgresql:///d?host=127.0.0.1&port=99999")


async def test_a_connection_that_is_lost_in_a_run_says_that_what_is_committed_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connect, "_PATIENCE_S", 0.1)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = parse_url(f"postgresql://me@127.0.0.1:{closed.getsockname()[1]}/d")
        for again, said in ((False, "Nothing was moved"), (True, "What is committed stays")):
            with pytest.raises(TargetUnavailableError, match=said):
                await connect.connect(url, "target", "test", again=again)


async def test_a_name_that_is_not_known_may_be_known_again_once_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A container's network forgets the name of a server that restarts."""
    monkeypatch.setattr(connect, "_PATIENCE_S", 0.1)
    answer = socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def looked_up(*_args: object, **_kwargs: object) -> NoReturn:
        raise answer

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", looked_up)
    url = parse_url("postgresql://me@warehouse/d")
    with pytest.raises(ConfigError, match="the host's name is unknown"):
        await connect.connect(url, "target", "test")
    with pytest.raises(TargetUnavailableError, match="What is committed stays"):
        await connect.connect(url, "target", "test", again=True)
    # No server of names answers: nobody has said that there is none of this name.
    answer = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    with pytest.raises(TargetUnavailableError, match="Nothing was moved"):
        await connect.connect(url, "target", "test")


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.IdleInTransactionSessionTimeoutError,
        asyncpg.IdleSessionTimeoutError,
        asyncpg.DatabaseDroppedError,
        asyncpg.AdminShutdownError,
    ],
)
def test_a_session_that_the_server_ended_is_a_lost_connection(
    error: type[asyncpg.PostgresError],
) -> None:
    """Told in the middle of a statement, before the driver sees the end of the connection."""
    found = translated(error("terminating connection"), "target", "sink 't'")
    assert isinstance(found, TargetUnavailableError)
