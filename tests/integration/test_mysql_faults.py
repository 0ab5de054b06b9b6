"""MySQL connections whose server falls silent, and what the server tells of transactions late."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from etl.databases.generic import connect as connecting
from etl.databases.generic.connect import Connection, connect, make_engine, opened
from etl.databases.generic.mysql import sessions
from etl.databases.url import parse_url
from etl.errors import SourceUnavailableError, TargetUnavailableError
from etl.testing.chaos import ChaosProxy
from tests.integration.mysql_kit import fill, name_of
from tests.mysql_server import MySQLServer

LIMIT_S = 20.0
"""Only a guard: what is waited for here ends within a second, or never."""


@asynccontextmanager
async def through(proxy: ChaosProxy) -> AsyncGenerator[Connection]:
    """A connection of a target's by way of a proxy; the test closes it."""
    url = parse_url(proxy.url)
    engine = make_engine(url)
    try:
        yield await connect(engine, url, "target")
    finally:
        await engine.dispose()


@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_a_connection_that_is_lost_at_its_end_is_closed_without_a_new_one(
    mysql_url: str, end: str
) -> None:
    """SQLAlchemy would connect anew, and wait for ever where whatever listens there is silent."""
    async with ChaosProxy(mysql_url, postgres=False) as proxy, through(proxy) as connection:
        await connection.execute("SELECT 1")
        before = proxy.accepted
        proxy.cut()
        proxy.black_hole()

        async with asyncio.timeout(LIMIT_S):
            with pytest.raises(TargetUnavailableError, match="lost"):
                await getattr(connection, end)()
            await connection.close()

        assert proxy.accepted == before


async def test_a_statement_that_nobody_reads_ends_in_time_and_leaves_no_socket(
    mysql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connecting, "STATEMENT_S", 0.5)
    async with ChaosProxy(mysql_url, postgres=False) as proxy, through(proxy) as connection:
        proxy.black_hole()
        before = sockets()
        async with asyncio.timeout(LIMIT_S):
            # More than the buffers of both sockets hold.
            with pytest.raises(TargetUnavailableError, match="did not answer in time"):
                await connection.driver_many("SELECT LENGTH(%s)", [("x" * (12 << 20),)])
            assert not connection.is_open
            await connection.close()
            while sockets() >= before:
                await asyncio.sleep(0.02)


def sockets() -> int:
    """How many this process has open."""
    found = 0
    for one in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            found += os.readlink(one).startswith("socket:")
    return found


# -- open transactions --------------------------------------------------------------------------


async def test_a_transaction_that_began_a_moment_ago_holds_an_incremental_read_back(
    mysql_server: MySQLServer, mysql_url: str
) -> None:
    """InnoDB shows what it knew when somebody else looked, as long as that is not 0.1 s ago."""
    fill(mysql_server, mysql_url, "CREATE TABLE t (id int PRIMARY KEY)")
    async with (
        opened(parse_url(mysql_url), "source") as reader,
        mysql_server.connected(name_of(mysql_url)) as writer,
        mysql_server.connected(None) as monitor,
        writer.cursor() as write,
        monitor.cursor() as look,
    ):
        await look.execute("SELECT COUNT(*) FROM information_schema.innodb_trx")
        await look.fetchall()
        await write.execute("INSERT INTO t VALUES (1)")

        assert len(await reader.dialect.open_transactions(reader)) == 1
        assert await reader.dialect.oldest_transaction(reader) is not None

        await writer.commit()
        assert await reader.dialect.oldest_transaction(reader) is None


async def test_a_list_of_transactions_that_never_is_a_new_one_is_refused(
    mysql_server: MySQLServer, mysql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_FRESH_S", 0.5)

    async def watch() -> None:
        async with mysql_server.connected(None) as monitor, monitor.cursor() as cursor:
            while True:
                await cursor.execute("SELECT COUNT(*) FROM information_schema.innodb_trx")
                await asyncio.sleep(0.01)

    async with opened(parse_url(mysql_url), "source") as reader:
        watching = asyncio.create_task(watch())
        try:
            await asyncio.sleep(0.1)
            with pytest.raises(SourceUnavailableError, match="shows nothing new"):
                await reader.dialect.open_transactions(reader)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        # The settings of the session are those that it had.
        assert await reader.value("SELECT @@session.time_zone") == "+00:00"


@pytest.mark.parametrize("readers", [6])
async def test_readers_that_ask_at_once_do_not_keep_each_other_from_the_answer(
    mysql_url: str, readers: int
) -> None:
    async def ask() -> int:
        async with opened(parse_url(mysql_url), "source") as reader:
            return len(await reader.dialect.open_transactions(reader))

    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*(ask() for _ in range(readers)))
