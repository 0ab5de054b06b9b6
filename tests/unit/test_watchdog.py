"""Who blocks the loop, and who holds a run up, is named."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence

import pytest

from etl import Limits, Pipeline
from etl.engine.watchdog import LoopWatchdog
from etl.events import Event, Note
from etl.testing import MemorySink, MemorySource


def sleeps_in_the_loop(number: int) -> int:
    time.sleep(0.6)
    return number


async def test_a_function_that_blocks_the_loop_is_named(caplog: pytest.LogCaptureFixture) -> None:
    watchdog = LoopWatchdog(late_s=0.3)
    watchdog.start()
    try:
        await asyncio.sleep(0)
        sleeps_in_the_loop(1)
    finally:
        watchdog.stop()
    assert "sleeps_in_the_loop" in caplog.text
    assert not [one for one in threading.enumerate() if one.name == "etl:watchdog"]


async def test_a_loop_that_runs_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    watchdog = LoopWatchdog(late_s=5)
    with caplog.at_level(logging.WARNING, "etl"):
        watchdog.start()
        for _ in range(1000):
            await asyncio.sleep(0)
        watchdog.stop()
    assert caplog.text == ""


async def test_a_stalled_run_names_the_task_that_waits_for_no_channel() -> None:
    told = asyncio.Event()
    notes: list[str] = []

    def observe(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.message)
            told.set()

    async def hangs(rows: Sequence[int]) -> Sequence[int]:
        await told.wait()  # until somebody has complained
        return rows

    sink = MemorySink[int]()
    flow = MemorySource([1, 2, 3], batch_rows=1).map_batches(hangs).into(sink)
    limits = Limits(stall_after_s=0.2, channel_batches=1)
    async with asyncio.timeout(20):
        await Pipeline("stalls", flow, limits=limits).run(observers=[observe])

    assert "nothing has moved" in notes[0]
    assert "hangs" in notes[0]
    assert "lane" not in notes[0]
    assert sink.rows == [1, 2, 3]


async def test_a_stall_in_a_write_names_who_blocks_the_target() -> None:
    told = asyncio.Event()
    notes: list[str] = []

    def observe(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.message)
            told.set()

    sink = MemorySink[int]()
    sink.memory.blocker = "session 42 (a migration) holds the lock"
    sink.memory.before_write = told.wait
    flow = MemorySource([1, 2, 3]).into(sink)
    async with asyncio.timeout(20):
        await Pipeline("stalls", flow, limits=Limits(stall_after_s=0.2)).run(observers=[observe])
    assert "lane of flow 'memory' (session 42 (a migration) holds the lock)" in notes[0]
