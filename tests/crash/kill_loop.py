"""Kill a real run at random moments, again and again, and check the target from outside.

``python -m tests.crash.kill_loop`` (``make soak``) runs the pipeline of ``victim.py`` over a larger
table in a process of its own and sends it SIGKILL, SIGTERM or SIGINT after a random time. After
every kill the target must hold exactly the rows up to the recorded position; when a run gets to
its end, exactly all rows. Then the target is emptied and the next pass begins. The seed is
printed; the moments of the kills still differ from machine to machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from tests.benchmarks.server import databases, server

ROOT = Path(__file__).resolve().parents[2]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
MODES = ("append", "upsert", "add", "replace")
STOP_LIMIT_S = 30.0


@dataclass(slots=True)
class Tally:
    """What the loop has seen."""

    kills: int = 0
    passes: int = 0
    orderly: int = 0
    slowest_stop_s: float = 0.0

    def add(self, other: Tally) -> None:
        """Sum up."""
        self.kills += other.kills
        self.passes += other.passes
        self.orderly += other.orderly
        self.slowest_stop_s = max(self.slowest_stop_s, other.slowest_stop_s)

    def __str__(self) -> str:
        return (
            f"{self.kills} kills, {self.passes} complete passes, 0 rows lost, 0 doubled;"
            f" {self.orderly} by SIGTERM or SIGINT, the slowest stop {self.slowest_stop_s:.1f} s"
        )


class KillLoop:
    """One mode into one target, until enough runs were killed."""

    def __init__(self, mode: str, target: str, rows: int, seed: int, folder: Path) -> None:
        self.tally = Tally()
        self._mode = mode
        self._target = target
        self._rows = rows
        self._random = random.Random(seed)
        self._source = f"sqlite:///{folder}/kill-source.db"
        self._clean_s = 0.0
        self._make_source(folder / "kill-source.db")

    def run(self, kills: int) -> None:
        """Kill that many runs.

        Raises:
            AssertionError: The target is not what the position says, or a run hung.
        """
        self._empty()  # of what another mode has left
        started = time.monotonic()
        self._one_run(None)
        self._clean_s = time.monotonic() - started
        self._check_complete()
        self._empty()
        while self.tally.kills < kills:
            # Short delays hit the start, long ones the end: both ends matter.
            ended = self._one_run(self._random.uniform(0.0, self._clean_s * 1.1))
            if ended:
                self.tally.passes += 1
                self._check_complete()
                self._empty()
            else:
                self._check_prefix()

    def _one_run(self, kill_after_s: float | None) -> bool:
        """Start a run and kill it after a time; whether it got to its end."""
        process = subprocess.Popen(
            [sys.executable, "-m", "etl", "run", "tests/crash/killed.py", "--drain", "10"],
            cwd=ROOT,
            env={
                **os.environ,
                "KILL_SOURCE": self._source,
                "KILL_TARGET": self._target,
                "KILL_MODE": self._mode,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            printed, _ = process.communicate(timeout=kill_after_s or 120.0)
        except subprocess.TimeoutExpired:
            assert kill_after_s is not None, "a run that nobody killed hung"
            return self._kill(process)
        assert process.returncode == 0, printed.decode()
        return True

    def _kill(self, process: subprocess.Popen[bytes]) -> bool:
        how = self._random.choice(SIGNALS)
        sent = time.monotonic()
        process.send_signal(how)
        try:
            printed, _ = process.communicate(timeout=STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise AssertionError(f"{how.name}: the run did not stop in {STOP_LIMIT_S} s") from None
        code = process.returncode
        self.tally.kills += 1
        if how is not signal.SIGKILL:
            self.tally.orderly += 1
            self.tally.slowest_stop_s = max(self.tally.slowest_stop_s, time.monotonic() - sent)
            # A signal before the command's handlers stand ends Python as by default.
            assert code in {0, 128 + how, -how, 1}, f"{how.name}: exit {code}: {printed.decode()}"
        return code == 0

    def _make_source(self, path: Path) -> None:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute(
                "CREATE TABLE items (id INTEGER PRIMARY KEY, kind TEXT NOT NULL,"
                " amount INTEGER NOT NULL)"
            )
            connection.executemany(
                "INSERT INTO items VALUES (?, ?, ?)",
                ((n, f"kind {n % 7}", n * 3) for n in range(1, self._rows + 1)),
            )
            connection.commit()

    def _expected(self, upto: int) -> tuple[Any, ...]:
        """Count and sums of the rows that a clean run to that id would have made."""
        ids = range(62, upto + 1, 2)
        if self._mode == "add":
            return (len(ids), sum(3 * n for n in ids))
        return (len(ids), len(ids), sum(ids), sum(3 * n for n in ids))

    def _queries(self) -> tuple[str, str]:
        if self._mode == "add":
            rows = "SELECT coalesce(sum(items), 0), coalesce(sum(amount), 0) FROM totals"
        else:
            rows = (
                "SELECT count(*), count(DISTINCT id), coalesce(sum(id), 0),"
                " coalesce(sum(amount), 0) FROM copies"
            )
        return rows, "SELECT position FROM etl_checkpoint WHERE pipeline LIKE 'victim %'"

    def _check_prefix(self) -> None:
        if self._mode == "replace":
            return  # nothing shows before the end; the end is checked
        rows, position = self._look()
        upto = int(json.loads(position)[0]) if position else 0
        assert rows == self._expected(upto), (
            f"after kill {self.tally.kills}: position {upto}, target {rows},"
            f" expected {self._expected(upto)}"
        )

    def _check_complete(self) -> None:
        rows, _ = self._look()
        assert rows == self._expected(self._rows), f"after a complete run: {rows}"

    def _look(self) -> tuple[tuple[Any, ...], str | None]:
        """The sums and the position, at one instant; zeros before the first commit."""
        if self._target.startswith("sqlite"):
            return self._look_sqlite()
        return asyncio.run(self._look_postgres())

    def _look_sqlite(self) -> tuple[tuple[Any, ...], str | None]:
        query, position = self._queries()
        path = self._target.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, isolation_level=None, timeout=20)) as connection:
            connection.execute("BEGIN")
            try:
                rows = connection.execute(query).fetchone()
                found = connection.execute(position).fetchone()
            except sqlite3.OperationalError:  # killed before the tables were made
                return self._expected(0), None
            return tuple(rows), found[0] if found else None

    async def _look_postgres(self) -> tuple[tuple[Any, ...], str | None]:
        query, position = self._queries()
        server = await asyncpg.connect(self._target)
        try:
            async with server.transaction(isolation="repeatable_read", readonly=True):
                rows = await server.fetchrow(query)
                found = await server.fetchval(position)
        except asyncpg.UndefinedTableError:
            return self._expected(0), None
        finally:
            await server.close()
        assert rows is not None
        return tuple(int(value) for value in rows), found

    def _empty(self) -> None:
        if self._target.startswith("sqlite"):
            path = Path(self._target.removeprefix("sqlite:///"))
            for one in path.parent.glob(path.name + "*"):
                one.unlink()
        else:
            asyncio.run(self._empty_postgres())

    async def _empty_postgres(self) -> None:
        server = await asyncpg.connect(self._target)
        try:
            await server.execute(
                "DROP TABLE IF EXISTS copies, totals, etl_checkpoint,"
                " etl_reject, etl_table, etl_version"
            )
        finally:
            await server.close()


def kill_loop(mode: str, target: str, *, kills: int, rows: int, seed: int) -> Tally:
    """Run the loop in a temporary folder; see :class:`KillLoop`."""
    with tempfile.TemporaryDirectory() as folder:
        loop = KillLoop(mode, target, rows, seed, Path(folder))
        loop.run(kills)
        return loop.tally


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="for each mode and target")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--mode", choices=MODES, action="append", help="default: all")
    parser.add_argument("--target", choices=("sqlite", "postgresql"), action="append")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    total = Tally()
    with ExitStack() as stack:
        for kind in args.target or ("sqlite", "postgresql"):
            if kind == "sqlite":
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                target = f"sqlite:///{folder}/kill-target.db"
            else:
                url = stack.enter_context(server())
                target = stack.enter_context(databases(url))[1]
            for mode in args.mode or MODES:
                tally = kill_loop(mode, target, kills=args.kills, rows=args.rows, seed=args.seed)
                total.add(tally)
                print(f"{kind}, {mode}: {tally}", flush=True)
    print(f"together: {total}")


if __name__ == "__main__":
    main()
