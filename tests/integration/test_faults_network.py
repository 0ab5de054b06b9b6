"""The network between a run and its databases fails, on either side, in every way we know.

The faults come from ``etl.testing.chaos``. Each run ends equal, or fails as a passing condition
within its limits; then the proxy is healed, and the next run is exact.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Literal

import pytest

from etl import Report, Retry
from etl.errors import CommitInDoubtError, PipelineFailedError
from etl.events import Event, Retrying
from etl.testing.chaos import ChaosProxy, CommitFault, Direction, Fault, How
from tests.integration.fault_kit import (
    EtlEnd,
    assert_clean,
    assert_exact,
    assert_prefix,
    bounded,
    copy,
    end_of,
    make_source,
    make_target,
    shorten_waits,
    sql,
)

Side = Literal["source", "target"]
SIDES: tuple[Side, ...] = ("source", "target")
MODES = ("append", "add", "replace")


def main_flow(side: Side) -> Direction:
    """Where the rows go."""
    return "to_server" if side == "target" else "to_client"


class Bench:
    """Two databases, and a proxy before one of them."""

    def __init__(self, source: str, target: str, side: Side, proxy: ChaosProxy) -> None:
        self.source = source
        self.target = target
        self.proxy = proxy
        self.via_source = proxy.url if side == "source" else source
        self.via_target = proxy.url if side == "target" else target
        self.retries: list[Retrying] = []

    def note(self, event: Event) -> None:
        if isinstance(event, Retrying):
            self.retries.append(event)

    async def run(self, mode: str = "append", *, within_s: float = 30.0) -> EtlEnd:
        pipeline = copy(self.via_source, self.via_target, mode)
        return await end_of(pipeline, within_s=within_s, observers=(self.note,))

    async def empty(self, *, whole: bool = False) -> None:
        """As before the first run; with ``whole``, etl's own tables are gone as well."""
        async with sql(self.target) as connection:
            await connection.execute("TRUNCATE copies, totals; DELETE FROM etl_checkpoint")
            if whole:
                await connection.execute("DROP TABLE etl_checkpoint, etl_version")
        self.retries.clear()
        self.proxy.struck.clear()

    async def measure(self, direction: Direction, mode: str = "append") -> tuple[int, int]:
        """Bytes that pass in a clean run: until it is open, and to its end."""
        for _ in range(2):  # the first one makes etl's tables
            before = self.proxy.passed[direction]
            run = await copy(self.via_source, self.via_target, mode).start()
            opened = self.proxy.passed[direction] - before
            await run.wait()
            total = self.proxy.passed[direction] - before
            await self.empty()
        return opened, total

    async def heal_when_struck(self, after_s: float) -> None:
        await self.proxy.struck.wait()
        await asyncio.sleep(after_s)
        self.proxy.heal()

    async def check(self, end: EtlEnd, mode: str = "append") -> None:
        """What holds after any fault; then heal, run again, compare."""
        if mode == "append":
            await assert_prefix(self.target)
        if isinstance(end, Report):
            await assert_exact(self.target, mode)
        self.proxy.heal()
        await self.proxy.accept()
        await bounded(copy(self.via_source, self.via_target, mode).run())
        await assert_exact(self.target, mode)


@pytest.fixture
async def databases(postgres_database: Callable[[], str]) -> tuple[str, str]:
    source, target = postgres_database(), postgres_database()
    await make_source(source)
    await make_target(target)
    return source, target


@asynccontextmanager
async def bench(databases: tuple[str, str], side: Side) -> AsyncGenerator[Bench]:
    source, target = databases
    async with ChaosProxy(source if side == "source" else target) as proxy:
        yield Bench(source, target, side, proxy)


# --- cuts ---


@pytest.mark.parametrize("how", ["rst", "fin", "half_close"])
@pytest.mark.parametrize("direction", ["to_server", "to_client"])
@pytest.mark.parametrize("side", SIDES)
async def test_a_cut_at_any_byte_loses_and_repeats_nothing(
    databases: tuple[str, str], side: Side, direction: Direction, how: Fault
) -> None:
    async with bench(databases, side) as one:
        await one.run()
        whole = one.proxy.passed[direction]  # with the making of etl's tables
        # From the first bytes of the connection to the last of the run, and some at random.
        chosen = [1, whole // 5, whole // 2, whole - 20, *random.sample(range(whole), 3)]
        for offset in chosen:
            await one.empty(whole=True)
            one.proxy.after(offset, direction, how)
            end = await one.run()
            await one.check(end)
            assert one.proxy.strikes, f"no cut at byte {offset} of {whole}"
            one.proxy.strikes = 0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", SIDES)
async def test_many_cuts_in_one_run_cost_no_row(
    databases: tuple[str, str], side: Side, mode: str
) -> None:
    flow = main_flow(side)
    async with bench(databases, side) as one:
        opened, total = await one.measure(flow, mode)
        one.proxy.after(opened + (total - opened) // 5, flow, "rst")
        one.proxy.after((total - opened) // 4, flow, "rst", times=3)
        end = await one.run(mode)
        assert isinstance(end, Report)  # each time there was progress, so it tried again
        assert len(one.retries) == one.proxy.strikes == 4
        await one.check(end, mode)


@pytest.mark.parametrize("side", SIDES)
async def test_a_connection_that_is_cut_again_and_again_ends_the_run(
    databases: tuple[str, str], side: Side
) -> None:
    flow = main_flow(side)
    async with bench(databases, side) as one:
        opened, total = await one.measure(flow)
        one.proxy.after((opened + total) // 2, flow, "rst")
        one.proxy.after(1, flow, "rst", times=100)  # each new connection at its first byte
        end = await one.run()
        assert isinstance(end, PipelineFailedError)
        assert len(one.retries) == 3  # four tries, as the policy says
        await one.check(end)


# --- COMMIT ---

COMMIT_FAULTS: tuple[CommitFault, ...] = (
    "cut_before", "cut_with", "cut_after", "hold_answer", "hold_request",
)  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", COMMIT_FAULTS)
async def test_a_commit_in_doubt_is_settled(
    databases: tuple[str, str], fault: CommitFault, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each COMMIT of a run: the preparation, the take-over, every group, the publication."""
    if fault == "hold_answer":
        shorten_waits(monkeypatch, 0.3)
    async with bench(databases, "target") as one:
        await one.measure("to_server", mode)
        before = one.proxy.commits
        await one.run(mode)
        commits = one.proxy.commits - before
        assert commits > 6
        # The preparation, the take-over, groups, and the last one, which completes the read.
        # How many groups there are is a matter of timing, so that one may not come.
        for nth in (1, 2, 4, commits):
            await one.empty()
            one.proxy.at_commit(fault, nth=nth)
            late = asyncio.create_task(one.heal_when_struck(0.1)) if "hold" in fault else None
            end = await one.run(mode)
            assert one.proxy.struck.is_set() or nth == commits
            if late is not None:
                one.proxy.struck.set()
                await late
            await one.check(end, mode)


async def test_a_commit_that_arrives_after_the_next_run_began_doubles_nothing(
    databases: tuple[str, str],
) -> None:
    """The zombie commit: the run is gone, its COMMIT is still on its way."""
    async with bench(databases, "target") as one:
        one.proxy.at_commit("hold_request", nth=5)
        first = asyncio.create_task(copy(one.via_source, one.via_target, retry=Retry(attempts=1)).run())
        await bounded(one.proxy.struck.wait())
        with pytest.raises(PipelineFailedError) as failure:
            await bounded(first)
        assert_clean(failure.value)

        second = asyncio.create_task(copy(one.source, one.target).run())
        await bounded(until_waiting_for_a_lock(one.target))
        one.proxy.heal()  # now the COMMIT of the first run arrives
        await bounded(second)
        await assert_exact(one.target)


async def until_waiting_for_a_lock(url: str) -> None:
    """Until some session of etl waits for a lock that another one holds."""
    async with sql(url) as connection:
        while not await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND application_name LIKE 'etl/%')"
        ):
            await asyncio.sleep(0.02)


# --- black holes ---


@pytest.mark.parametrize("directions", [("to_server",), ("to_client",), ("to_server", "to_client")])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("side", SIDES)
async def test_a_black_hole_is_noticed(
    databases: tuple[str, str],
    side: Side,
    fraction: float,
    directions: tuple[Direction, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shorten_waits(monkeypatch, 0.4)
    flow: Direction = "to_server" if side == "target" else "to_client"
    async with bench(databases, side) as one:
        await one.run()
        whole = one.proxy.passed[flow]
        await one.empty()
        one.proxy.after(int(whole * fraction), flow, "black_hole")
        began = monotonic()
        end = await one.run(within_s=20)
        assert not isinstance(end, Report)
        print("took", monotonic() - began)
        await one.check(end)
