"""The network between a run and its databases fails, on either side, in every way we know.

The faults come from ``etl.testing.chaos``. Each run ends equal, or fails as a passing condition
within its limits; then the proxy is healed, and the next run is exact.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import Literal

import pytest

from etl import Report, Retry
from etl.errors import PipelineFailedError, TransientError
from etl.events import Event, Retrying
from etl.testing.chaos import ChaosProxy, CommitFault, Direction, Fault
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
    until_unlocked,
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
                await connection.execute(
                    "DROP TABLE etl_checkpoint, etl_reject, etl_table, etl_version"
                )
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

    def close_the_door(self) -> None:
        self.proxy.refuse()
        self.proxy.cut()

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
        await bounded(until_unlocked(self.target))
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
        chosen = random.sample(range(whole * 9 // 10), 2)
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
        # A new connection costs some bytes before rows flow again.
        one.proxy.after((opened + total) // 2, flow, "rst")
        one.proxy.after((opened + total) // 2, flow, "rst", times=2)
        end = await one.run(mode)
        assert isinstance(end, Report)  # each time there was progress, so it tried again
        assert len(one.retries) >= 1
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


@pytest.mark.parametrize(
    ("fault", "mode"),
    [
        *((fault, "append") for fault in COMMIT_FAULTS),
        ("cut_after", "add"),
        ("hold_request", "add"),
        ("cut_after", "replace"),
        ("cut_with", "replace"),
    ],
)
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
        assert commits > 5
        # The preparation, the take-over, groups, and the last one, which completes the read.
        # How many groups there are is a matter of timing, so that one may not come.
        for nth in (random.choice((1, 2)), 5) if mode == "append" else (5, commits):
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
        first = asyncio.create_task(
            copy(one.via_source, one.via_target, retry=Retry(attempts=1)).run()
        )
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


# --- black holes, slow lines, closed doors ---


@pytest.mark.parametrize("directions", [("to_server",), ("to_client",), ("to_server", "to_client")])
@pytest.mark.parametrize("side", SIDES)
async def test_a_black_hole_is_noticed(
    databases: tuple[str, str],
    side: Side,
    directions: tuple[Direction, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At random bytes: in the start, in a COPY, in a COMMIT, at the end."""
    shorten_waits(monkeypatch, 0.3)
    flow = main_flow(side)
    async with bench(databases, side) as one:
        _, total = await one.measure(flow)
        offset = random.randrange(total * 9 // 10)
        one.proxy.call_after(offset, flow, partial(one.proxy.black_hole, *directions))
        end = await one.run(within_s=20)
        # A reader may have got everything by then.
        assert side == "source" or not isinstance(end, Report)
        await one.check(end)


@pytest.mark.parametrize("side", SIDES)
async def test_a_short_black_hole_is_waited_out(databases: tuple[str, str], side: Side) -> None:
    flow = main_flow(side)
    async with bench(databases, side) as one:
        opened, total = await one.measure(flow)
        one.proxy.after((opened + total) // 2, flow, "black_hole")
        healing = asyncio.create_task(one.heal_when_struck(0.5))
        end = await one.run()
        await healing
        assert isinstance(end, Report)
        assert not one.retries
        await one.check(end)


async def test_an_abort_ends_in_a_black_hole(
    databases: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the limits of the driver as they are: an abort may not wait for them."""
    async with bench(databases, "target") as one:
        opened, total = await one.measure("to_server")
        one.proxy.after((opened + total) // 2, "to_server", "black_hole")
        run = await copy(one.via_source, one.via_target).start()
        await bounded(one.proxy.struck.wait())
        began = monotonic()
        await bounded(run.abort(), 30)
        assert monotonic() - began < 20
        one.proxy.heal()
        await one.check(await one.run())


@pytest.mark.parametrize("side", SIDES)
async def test_a_slow_line_only_takes_longer(databases: tuple[str, str], side: Side) -> None:
    async with bench(databases, side) as one:
        await one.measure(main_flow(side))
        one.proxy.delay(0.005)
        one.proxy.throttle(400_000)
        end = await one.run()
        assert isinstance(end, Report)
        assert not one.retries
        await one.check(end)


@pytest.mark.parametrize("side", SIDES)
async def test_refused_at_the_start_for_a_moment_is_waited_out(
    databases: tuple[str, str], side: Side
) -> None:
    async with bench(databases, side) as one:
        one.proxy.refuse()
        run = asyncio.create_task(one.run())
        await asyncio.sleep(0.3)  # not a wait for anything: the door is closed for that long
        assert not run.done()
        await one.proxy.accept()
        assert isinstance(await run, Report)
        await assert_exact(one.target)


@pytest.mark.parametrize("side", SIDES)
async def test_refused_for_good_is_a_passing_failure(
    databases: tuple[str, str], side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_waits(monkeypatch, 0.3)
    async with bench(databases, side) as one:
        await one.measure(main_flow(side))
        one.proxy.refuse()
        end = await one.run()  # refused at the start
        assert isinstance(end, TransientError)
        await one.check(end)

        await one.empty()
        opened, total = await one.measure(main_flow(side))
        one.proxy.call_after((opened + total) // 2, main_flow(side), one.close_the_door)
        end = await one.run()  # refused in the middle
        assert isinstance(end, PipelineFailedError)
        await one.check(end)
