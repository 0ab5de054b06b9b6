"""Cancel a run at every point at which one of its tasks waits.

``python -m tests.crash.cancel_points`` counts how often the tasks of a run suspend, and cancels
the caller at the n-th time, n = 1, 2, ... until a run is unharmed: once, and again once or twice
while the run cleans up. No task, thread, connection or lock may be left, the target must hold
what its position says, and the next run must make it complete. The settings are those of
``matrix.py``; ``test_cancel_points.py`` takes some of them and every so-manieth n.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import threading
import time
from collections.abc import Coroutine, Generator, Sequence
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg

from etl import Pipeline
from etl.engine.failpoints import CRASHED
from tests.benchmarks.server import databases, server
from tests.crash.matrix import OPTIONS, Matrix, every, sqlite_files
from tests.crash.outside import PostgresOutside
from tests.crash.victim import LIMITS, pipeline

POINTS = ("once", "twice", "thrice")
"""How often the caller is cancelled; its points in a matrix."""
LEFT_S = 5.0
"""So long a closed connection may take to be gone at the server."""


class Suspensions:
    """Counts how often tasks suspend, and cancels one of them at the n-th time and right after."""

    def __init__(self, at: int, times: int) -> None:
        self.seen = 0
        self.caller: asyncio.Task[Any] | None = None
        self._strikes = range(at, at + times)

    def make_task(
        self, loop: asyncio.AbstractEventLoop, work: Any, **options: Any
    ) -> asyncio.Task[Any]:
        """A task factory."""
        return asyncio.Task(_Counted(work, self), loop=loop, **options)

    def note(self) -> None:
        """A task is about to wait."""
        self.seen += 1
        if self.seen in self._strikes and self.caller is not None:
            asyncio.get_running_loop().call_soon(self.caller.cancel)


class _Counted(Coroutine[Any, Any, Any]):
    """A coroutine whose suspensions are counted."""

    def __init__(self, work: Coroutine[Any, Any, Any], suspensions: Suspensions) -> None:
        self._work = work
        self._suspensions = suspensions

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._work.__await__()

    def send(self, value: Any) -> Any:
        step = self._work.send(value)
        self._suspensions.note()
        return step

    def throw(self, *error: Any) -> Any:
        step = self._work.throw(*error)
        self._suspensions.note()
        return step

    def close(self) -> None:
        self._work.close()


class CancelledRuns:
    """Runs the victim's pipeline in this process; a crash is a cancellation."""

    def run(self, *job: str) -> tuple[int, str]:
        """See ``nursery.Nursery.run``; the failpoint is one of ``POINTS``."""
        source, first, second, case, reading, cut, failpoint = job
        made = pipeline(
            source, first, second, case, incremental=reading == "incremental", limits=LIMITS[cut]
        )
        if not failpoint:
            made.run_sync()
            return 0, ""
        times, _, at = failpoint.partition(":")
        was_reached = run_cancelled(
            made, (source, first, second), at=int(at), times=POINTS.index(times) + 1
        )
        return CRASHED if was_reached else 0, ""


def run_cancelled(made: Pipeline, urls: Sequence[str], *, at: int, times: int = 1) -> bool:
    """Run a pipeline and cancel it at a suspension; whether it came so far.

    Raises:
        AssertionError: Something was left in this process, or in one of the databases.
    """
    suspensions = Suspensions(at, times)
    asyncio.run(_cancelled(made, suspensions))
    _refuse_threads()
    asyncio.run(_refuse_sessions([url for url in urls if url.startswith("postgresql")]))
    return suspensions.seen >= at


async def _cancelled(made: Pipeline, suspensions: Suspensions) -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(suspensions.make_task)
    suspensions.caller = asyncio.create_task(made.run())
    try:
        await suspensions.caller
    except asyncio.CancelledError:
        pass
    finally:
        loop.set_task_factory(None)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, f"tasks are left: {left}"


def _refuse_threads() -> None:
    for thread in threading.enumerate():
        if "connection_worker" in thread.name:
            thread.join(LEFT_S)
            assert not thread.is_alive(), f"a connection is left: {thread}"


async def _refuse_sessions(urls: list[str]) -> None:
    """No session of etl's is left, and so no lock and no open transaction."""
    until = time.monotonic() + LEFT_S
    for url in urls:
        connection = await asyncpg.connect(url)
        try:
            while left := await connection.fetch(
                "SELECT application_name, state, query FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name LIKE 'etl/%'"
            ):
                assert time.monotonic() < until, f"sessions are left: {left}"
                await asyncio.sleep(0.005)
        finally:
            await connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for option, values in OPTIONS.items():
        parser.add_argument(f"--{option}", choices=values, action="append", help="default: all")
    parser.add_argument("--step", type=int, default=1, help="every so-manieth suspension")
    args = vars(parser.parse_args())
    with ExitStack() as stack:
        url = stack.enter_context(server())
        files = sqlite_files(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        made = [
            stack.enter_context(closing(PostgresOutside(one)))
            for one in stack.enter_context(databases(url))
        ]
        matrix = Matrix(
            {"sqlite": files[0], "postgresql": made[0]},
            {"sqlite": files[1], "postgresql": made[1]},
            CancelledRuns(),
        )
        for setting in every():
            if any(
                getattr(setting, option) not in (args[option] or values)
                for option, values in OPTIONS.items()
            ):
                continue
            before, started = matrix.tally.crashes, time.monotonic()
            for times in POINTS:
                matrix.try_setting(setting, count(1, args["step"]), (times,))
            took = time.monotonic() - started
            print(f"{setting}: {matrix.tally.crashes - before} cancelled, {took:.0f} s", flush=True)
        print(f"together: {matrix.tally.crashes} cancelled runs, 0 rows lost, nothing left")


if __name__ == "__main__":
    main()
