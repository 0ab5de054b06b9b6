"""Long statements wait as long as their server works on them, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

import pytest

from etl.databases.postgres import connect, liveness
from etl.databases.postgres.connect import Connection, connected
from etl.databases.postgres.copying import copy_out
from etl.databases.postgres.guard import guarded
from etl.databases.postgres.liveness import LivenessCheck, run_long
from etl.databases.url import parse_url
from etl.errors import TargetUnavailableError
from etl.testing.chaos import ChaosProxy

GUARD_S = 30.0
SLOW = "SELECT pg_sleep(1.5), 7 AS seven"
QUICK = "SELECT pg_sleep(0.3)"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "FIRST_S", 0.1)
    monkeypatch.setattr(liveness, "AGAIN_S", 0.1)
    monkeypatch.setattr(liveness, "ASK_S", 0.3)
    monkeypatch.setattr(liveness, "_NO_ANSWER", 4)
    monkeypatch.setattr(connect, "CONNECT_S", 2.0)


async def as_a_statement(connection: Connection, sql: str) -> None:
    await run_long(connection.fetchrow, sql)


async def as_a_copy(connection: Connection, sql: str) -> None:
    async def take(_: object) -> None:
        watch.expect(GUARD_S)

    async with guarded(connection) as watch:
        await copy_out(connection, sql, take)


Run: TypeAlias = "Callable[[Connection, str], Coroutine[Any, Any, None]]"
WAYS = pytest.mark.parametrize("run", [as_a_statement, as_a_copy])


@WAYS
async def test_a_server_at_work_is_waited_for(postgres_url: str, run: Run) -> None:
    async with (
        ChaosProxy(postgres_url) as proxy,
        connected(parse_url(proxy.url), "target", "etl/p/run") as connection,
    ):
        await run(connection, SLOW)
        assert proxy.accepted > 4  # it was asked often enough to give up


@WAYS
@pytest.mark.parametrize("fault", ["mute", "black_hole"])
async def test_an_answer_that_was_lost_is_not(postgres_url: str, run: Run, fault: str) -> None:
    async def loses_its_answer(proxy: ChaosProxy) -> None:
        async with connected(parse_url(proxy.url), "target", "etl/p/run") as connection:
            getattr(proxy, fault)()
            await run(connection, QUICK)

    async with ChaosProxy(postgres_url) as proxy, asyncio.timeout(GUARD_S):
        with pytest.raises(TargetUnavailableError, match=r"lost \(its server does not answer, or"):
            await loses_its_answer(proxy)


@pytest.mark.parametrize(
    ("doubts", "asked"),
    [
        ([liveness._DENIED] * 3, 3),
        ([liveness._DENIED] * 2 + [0] + [liveness._DENIED] * 3, 6),
        ([1] * 12, 12),
        ([1] * 11 + [0] + [1] * 12, 24),
    ],
)
async def test_only_doubts_in_a_row_give_a_session_up(
    doubts: list[int], asked: int, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = doubts.copy()

    async def doubt(_: LivenessCheck) -> int:
        return left.pop(0)

    monkeypatch.setattr(liveness, "AGAIN_S", 0)
    monkeypatch.setattr(LivenessCheck, "_doubt", doubt)
    async with asyncio.timeout(GUARD_S):
        with pytest.raises(TargetUnavailableError):
            await gives_up(postgres_url)
    assert len(doubts) - len(left) == asked


async def gives_up(url: str) -> None:
    async with connected(parse_url(url), "target", "etl/p/run") as connection:
        await run_long(connection.fetchrow, SLOW)


@WAYS
async def test_a_pooler_is_not_asked(postgres_url: str, run: Run) -> None:
    async with (
        ChaosProxy(postgres_url) as proxy,
        connected(parse_url(proxy.url), "target", "etl/p/run") as connection,
    ):
        connection.is_pooled = True
        await run(connection, SLOW)
        assert proxy.accepted == 1
