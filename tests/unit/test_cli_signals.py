"""What the first two signals ask of a run, and that no handler or thread is left.

The third signal and the deadlines end the process: tests/integration/test_cli_run.py.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator

import pytest

from etl.cli import main, sigterm
from etl.cli.running import RunOptions, run_pipeline
from etl.cli.screen import Screen
from etl.cli.signals import StopSignals
from etl.pipeline import Pipeline
from etl.testing import MemorySink, MemorySource


class FakeRun:
    def __init__(self) -> None:
        self.asked: list[str] = []
        self.heard = asyncio.Event()

    def request_drain(self, reason: str) -> None:
        self.asked.append(f"drain {reason}")
        self.heard.set()

    def request_abort(self, reason: str) -> None:
        self.asked.append(f"abort {reason}")
        self.heard.set()

    async def hears(self, number: signal.Signals) -> None:
        self.heard.clear()
        os.kill(os.getpid(), number)
        await asyncio.wait_for(self.heard.wait(), 10)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


async def test_the_first_drains_and_the_second_aborts() -> None:
    said: list[str] = []
    run = FakeRun()
    with StopSignals(said.append, drain_s=60) as stop:
        stop.runs(run)
        await run.hears(signal.SIGTERM)
        await run.hears(signal.SIGINT)
    assert run.asked == ["drain SIGTERM", "abort second signal, SIGINT"]
    assert said == [
        "stopping: finishing what was read; a second signal rolls back",
        "stopping: second signal; rolling back what is not committed",
    ]
    assert stop.exit_code == 143
    # One more would end the process, and not come out of what is printed at the end.
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


async def test_without_a_signal_everything_is_as_before() -> None:
    def mine(number: int, frame: object) -> None:
        pass

    signal.signal(signal.SIGTERM, mine)
    interrupt = signal.getsignal(signal.SIGINT)
    with StopSignals(print, drain_s=60):
        assert any(thread.name == "etl stop" for thread in threading.enumerate())
    assert signal.getsignal(signal.SIGTERM) is mine
    assert signal.getsignal(signal.SIGINT) is interrupt
    assert not any(thread.name == "etl stop" for thread in threading.enumerate())


async def test_a_signal_before_there_is_a_run_cancels_the_start() -> None:
    said: list[str] = []
    starting = asyncio.create_task(asyncio.sleep(60))
    with StopSignals(said.append, drain_s=60) as stop:
        stop.starts(starting)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(starting, 10)
    assert said == ["stopping: nothing was read yet"]
    assert stop.exit_code == 130


async def test_a_signal_as_the_start_ends_drains_the_run() -> None:
    run = FakeRun()
    with StopSignals(lambda _: None, drain_s=60) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0)
        stop.runs(run)
    assert run.asked[0] == "drain SIGINT"


async def test_an_abort_of_the_runs_own_is_said_once() -> None:
    said: list[str] = []
    with StopSignals(said.append, drain_s=60) as stop:
        stop.aborts("the drain took longer than 1 s")
        stop.aborts("second signal")
    assert said == ["stopping: the drain took longer than 1 s; rolling back what is not committed"]


@pytest.mark.parametrize(
    ("moment", "code"),
    [
        ("secrets.Redactor", 130),
        ("secrets.hide_arguments", 130),
        ("app.run_command", 130),
        ("end_at_once", 0),
    ],
)
def test_ctrl_c_as_the_command_begins_or_ends_prints_no_traceback(
    moment: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    coming = iter([signal.SIGINT])

    def interrupted(*_: object) -> None:
        for number in coming:
            signal.raise_signal(number)

    monkeypatch.setattr(sys, "stdout", sys.stdout)  # main puts streams of its own there
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setattr("etl.cli.app.run_command", lambda _: 0)
    monkeypatch.setattr(f"etl.cli.{moment}", interrupted)
    with pytest.raises((SystemExit, KeyboardInterrupt)) as end:
        main()
    assert repr(end.value) == f"SystemExit({code})"


def test_a_sigterm_that_python_dropped_ends_the_command_before_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Collected:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(sigterm, "_came", False)
    monkeypatch.setattr("sys.unraisablehook", lambda _: None)
    sigterm.handle_signals()
    Collected()  # what is raised in there goes nowhere
    sink = MemorySink[int]()
    pipeline = Pipeline("p", MemorySource([1]).into(sink))
    with pytest.raises(sigterm.Terminated):
        run_pipeline(pipeline, RunOptions(), Screen())
    assert sink.rows == []
