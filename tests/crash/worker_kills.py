"""Runs in two worker processes, of which the run or a worker is killed again and again.

``python -m tests.crash.worker_kills --kills 100`` kills a process of ``worker_killed.py`` at a
random moment: the run by SIGKILL, SIGTERM or SIGINT (to its whole process group, as Ctrl-C does),
or a worker by SIGKILL. After each kill no worker may be left, and the target must hold exactly the
rows up to the positions of its key ranges; after a run to the end, exactly all rows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import asyncpg

from tests.benchmarks.server import databases, server

ROOT = Path(__file__).resolve().parents[2]
MODES = ("append", "replace", "upsert")
LIMIT_S = 120.0
GONE_S = 20.0
_EMPTY = "DROP TABLE IF EXISTS copies, etl_checkpoint, etl_reject, etl_table, etl_version"


class WorkerKills:
    """One mode, until enough processes were killed.

    Attributes:
        kills: By what was killed, how often.
        passes: Runs that came to their end, each compared as a whole.
        parts: Kills after which some of the rows showed, and not all.
    """

    def __init__(self, mode: str, database: str, rows: int, chance: random.Random) -> None:
        self.kills: dict[str, int] = {}
        self.passes = self.parts = 0
        self._mode = mode
        self._database = database
        self._rows = rows
        self._chance = chance

    def run(self, kills: int) -> None:
        """Kill that many.

        Raises:
            AssertionError: The target is not what the positions say, or a process is left.
        """
        self._execute(
            f"DROP TABLE IF EXISTS items; {_EMPTY};"
            " CREATE TABLE items (id int PRIMARY KEY, v text NOT NULL);"
            f" INSERT INTO items SELECT i, md5(i::text) FROM generate_series(1, {self._rows}) AS i;"
            " ANALYZE items"
        )
        started = time.monotonic()
        assert self._one_run(None)
        clean_s = time.monotonic() - started
        while sum(self.kills.values()) < kills:
            if self._one_run(self._chance.uniform(0.0, clean_s * 1.1)):
                self.passes += 1

    def _one_run(self, kill_after_s: float | None) -> bool:
        """One run, and one kill of it after a time; whether it came to its end."""
        process = subprocess.Popen(
            [sys.executable, "-m", "etl", "run", f"tests/crash/worker_killed.py:{self._mode}",
             "--jobs", "2", "--drain", "10"],
            cwd=ROOT,
            env={**os.environ, "KILL_DATABASE": self._database},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        workers: set[int] = set()
        try:
            _, said = process.communicate(timeout=kill_after_s or LIMIT_S)
        except subprocess.TimeoutExpired:
            assert kill_after_s is not None, "a run that nobody killed hung"
            workers = _workers_of(process.pid)
            self._kill(process, workers)
            _, said = process.communicate(timeout=LIMIT_S)
        _await_gone(workers)
        code = process.returncode
        known = {0, 75, 130, 143, -signal.SIGKILL, -signal.SIGINT, -signal.SIGTERM}
        assert code in known, f"exit {code}: {said.decode()}"
        asyncio.run(self._check(is_complete=code == 0))
        if code == 0:
            self._execute(_EMPTY)
        return code == 0

    def _kill(self, process: subprocess.Popen[bytes], workers: set[int]) -> None:
        what = self._chance.choice(("run", "run", "worker", "worker", "SIGTERM", "SIGINT"))
        while what == "worker" and not workers and process.poll() is None:
            workers |= _workers_of(process.pid)
            time.sleep(0.01)
        if what == "worker" and not workers:
            return  # the run has ended
        self.kills[what] = self.kills.get(what, 0) + 1
        with suppress(ProcessLookupError):
            match what:
                case "worker":
                    os.kill(self._chance.choice(sorted(workers)), signal.SIGKILL)
                case "run":
                    process.kill()
                case "SIGTERM":
                    process.terminate()
                case _:
                    os.killpg(process.pid, signal.SIGINT)

    def _execute(self, statements: str) -> None:
        async def run() -> None:
            connection = await asyncpg.connect(self._database)
            try:
                await connection.execute(statements)
            finally:
                await connection.close()

        asyncio.run(run())

    async def _check(self, *, is_complete: bool) -> None:
        connection = await asyncpg.connect(self._database)
        try:
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                await self._compare(connection, is_complete=is_complete)
        finally:
            await connection.close()

    async def _compare(self, connection: Any, *, is_complete: bool) -> None:
        if not await connection.fetchval("SELECT to_regclass('copies') IS NOT NULL"):
            assert not is_complete
            return
        spans = [(0, self._rows)]
        if not is_complete:
            if self._mode == "replace":
                return  # nothing shows before the end
            spans = await _spans(connection)
        value = "v" if self._mode == "upsert" else "encode(sha256(v::bytea), 'hex')"
        within = " OR ".join(f"id > {after} AND id <= {upto}" for after, upto in spans) or "false"
        differs = await connection.fetchval(
            f"WITH wanted AS (SELECT id, {value} AS v FROM items WHERE id % 3 <> 0 AND ({within}))"
            " SELECT (SELECT count(*) FROM (TABLE wanted EXCEPT ALL SELECT id, v FROM copies) AS a)"
            " + (SELECT count(*) FROM (SELECT id, v FROM copies EXCEPT ALL TABLE wanted) AS b)"
        )
        assert differs == 0, f"{differs} rows lost or doubled after {self.kills}; {spans}"
        self.parts += not is_complete and await connection.fetchval(
            "SELECT EXISTS (SELECT FROM copies)"
        )


async def _spans(connection: Any) -> list[tuple[int, int]]:
    """What the positions say is in: from each range's beginning to its position."""
    if not await connection.fetchval("SELECT to_regclass('etl_checkpoint') IS NOT NULL"):
        return []
    rows = await connection.fetch("SELECT partition, position, fingerprint FROM etl_checkpoint")
    found = {row["partition"]: row for row in rows}
    if "main" not in found:
        return []
    bounds = json.loads(found["main"]["fingerprint"]).get("key ranges", [])
    parts = sorted(name for name in found if name != "main")
    if not parts:  # all are done, and so is the whole
        position = found["main"]["position"]
        return [(0, int(json.loads(position)[0]))] if position else []
    begins = [0, *(int(bound[0]) for bound in bounds)]
    return [
        (begins[int(name.partition("/")[2]) - 1], int(json.loads(found[name]["position"])[0]))
        for name in parts
        if found[name]["position"]
    ]


def _workers_of(run: int) -> set[int]:
    with suppress(OSError):
        text = Path(f"/proc/{run}/task/{run}/children").read_text(encoding="ascii")
        return set(map(int, text.split()))
    return set()


def _await_gone(processes: set[int]) -> None:
    end = time.monotonic() + GONE_S
    while left := {one for one in processes if Path(f"/proc/{one}").exists()}:
        assert time.monotonic() < end, f"workers {left} are left"
        time.sleep(0.02)


def worker_kills(mode: str, database: str, *, kills: int, rows: int, seed: int) -> WorkerKills:
    """Run the loop; see :class:`WorkerKills`."""
    loop = WorkerKills(mode, database, rows, random.Random(f"{seed} {mode}"))
    loop.run(kills)
    return loop


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="for each mode")
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--mode", choices=MODES, action="append", help="default: all")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    with ExitStack() as stack:
        url = stack.enter_context(server())
        _, database = stack.enter_context(databases(url))
        for mode in args.mode or MODES:
            loop = worker_kills(mode, database, kills=args.kills, rows=args.rows, seed=args.seed)
            kills = ", ".join(f"{what} {count}" for what, count in sorted(loop.kills.items()))
            print(
                f"{mode}: killed {kills}; {loop.parts} times in the middle of the rows,"
                f" {loop.passes} complete passes; all exact",
                flush=True,
            )


if __name__ == "__main__":
    main()
