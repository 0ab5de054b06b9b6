"""One run of a pipeline at a time, in processes of their own, on both databases."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest

from tests.integration.test_cli_databases import ROOT, execute, rows

GUARD_S = 60
ROWS = 300
Kind = Literal["postgres", "sqlite"]

# Each batch waits until the test lets it go, so a run is where the test wants it.
JOB = """\
import asyncio, os
from pathlib import Path
from etl import Database, Pipeline
from etl.policy import Limits

HERE = Path(__file__).parent

async def held(rows):
    if os.environ.get("ETL_TEST_HELD"):
        (HERE / "seen").touch()
        while not (HERE / "go").exists():
            await asyncio.sleep(0.02)
    if os.environ.get("ETL_TEST_FAILS"):
        raise RuntimeError("told to fail")
    return rows

def made(name):
    return Pipeline(
        name,
        Database("env:FROM_URL").table("items", cursor=("id",)).map_batches(held)
        .into(Database("env:TO_URL").append(name)),
        limits=Limits(batch_rows=10, group_rows=20, channel_batches=2),
    )

job, other = made("job"), made("other")
"""


class Bench:
    """A source of 300 rows, a target, and runs of one pipeline between them."""

    def __init__(self, folder: Path, target: str) -> None:
        self.folder = folder
        self.target = target
        self.started: list[subprocess.Popen[str]] = []
        (folder / "job.py").write_text(JOB)
        with closing(sqlite3.connect(folder / "from.db")) as source, source:
            source.execute("CREATE TABLE items (id INTEGER PRIMARY KEY)")
            source.executemany("INSERT INTO items VALUES (?)", [(n,) for n in range(1, ROWS + 1)])

    def start(
        self, *options: str, name: str = "job", held: bool = False, fails: bool = False
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "etl", "run", f"{self.folder / 'job.py'}:{name}", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "FROM_URL": f"sqlite:///{self.folder / 'from.db'}",
                "TO_URL": self.target,
                "ETL_TEST_HELD": "1" if held else "",
                "ETL_TEST_FAILS": "1" if fails else "",
            },
        )
        self.started.append(process)
        return process

    def start_held(self) -> subprocess.Popen[str]:
        """A run that has the lock and its checkpoints, and waits with its first rows."""
        process = self.start(held=True)
        until((self.folder / "seen").exists, process)
        return process

    def run(self, *options: str, name: str = "job", fails: bool = False) -> tuple[int, str]:
        """A run to its end; its exit code, and what it said on stderr."""
        return end_of(self.start(*options, name=name, fails=fails))

    def let_go(self) -> None:
        (self.folder / "go").touch()

    def ids(self, table: str = "job") -> list[int]:
        return [int(row[0]) for row in rows(self.target, f'SELECT id FROM "{table}" ORDER BY id')]

    def is_exact(self, table: str = "job") -> bool:
        return self.ids(table) == list(range(1, ROWS + 1))

    def locks(self) -> list[str]:
        """What is left of locks: files beside a SQLite database, locks in PostgreSQL."""
        if self.target.startswith("sqlite"):
            return [path.name for path in self.folder.glob("to.db.etl-*.lock")]
        query = (
            "SELECT pid::text FROM pg_locks WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        return [row[0] for row in rows(self.target, query)]


@pytest.fixture(params=["postgres", "sqlite"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    kind: Kind = request.param
    url = f"sqlite:///{tmp_path / 'to.db'}"
    if kind == "postgres":
        make: Callable[[], str] = request.getfixturevalue("postgres_database")
        url = make()
    one = Bench(tmp_path, url)
    yield one
    for process in one.started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def until(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + GUARD_S
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def end_of(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, err = process.communicate(timeout=GUARD_S)
    assert "Traceback" not in err
    return process.returncode, err


def names(process: subprocess.Popen[str], err: str) -> bool:
    """Whether a message says who holds the lock: host, process, since when."""
    found = re.search(r"process (\d+) on host (\S+), since (\d{4}-\d\d-\d\dT\S+?\+00:00)", err)
    return found is not None and (int(found[1]), found[2]) == (process.pid, os.uname().nodename)


def test_the_second_run_ends_and_says_who_runs(bench: Bench) -> None:
    first = bench.start_held()
    code, err = bench.run()
    assert code == 4
    assert names(first, err), err
    assert "--take-over" in err
    assert err.count("\n") == 1
    assert rows(bench.target, "SELECT epoch FROM etl_checkpoint") == [(1,)]
    bench.let_go()
    assert end_of(first)[0] == 0
    assert bench.is_exact()


@pytest.mark.parametrize("reaped", [True, False])
def test_after_kill_9_a_new_run_starts_and_is_exact(bench: Bench, reaped: bool) -> None:
    first = bench.start_held()
    os.kill(first.pid, signal.SIGKILL)
    if reaped:  # else it stays listed as a process that has ended
        first.wait()
    began = time.monotonic()
    code, err = bench.run()
    assert code == 0, err
    assert time.monotonic() - began < 15
    assert bench.is_exact()
    assert bench.locks() == []


def test_a_take_over_fences_a_frozen_run(bench: Bench) -> None:
    first = bench.start_held()
    os.kill(first.pid, signal.SIGSTOP)
    try:
        code, err = bench.run("--take-over")
        assert code == 0, err
        assert names(first, err), err  # whom it fenced
        assert bench.is_exact()
        bench.let_go()
    finally:
        os.kill(first.pid, signal.SIGCONT)
    code, err = end_of(first)
    assert code == 4, err
    assert "taken over" in err
    assert bench.is_exact()
    assert bench.run()[0] == 0
    assert bench.is_exact()


def test_take_over_where_nobody_runs_is_a_run_like_any_other(bench: Bench) -> None:
    code, err = bench.run("--take-over")
    assert code == 0, err
    assert "taking over" not in err
    assert bench.is_exact()
    assert bench.locks() == []


def test_another_pipeline_into_the_same_database_is_not_held_up(bench: Bench) -> None:
    first = bench.start_held()
    assert bench.run(name="other")[0] == 0
    assert bench.is_exact("other")
    assert first.poll() is None
    bench.let_go()
    assert end_of(first)[0] == 0
    assert bench.is_exact()


@pytest.mark.parametrize("end", ["done", "failed", "drained", "aborted"])
def test_the_lock_is_gone_after_every_end(bench: Bench, end: str) -> None:
    if end == "done":
        assert bench.run()[0] == 0
    elif end == "failed":
        assert bench.run(fails=True)[0] == 1
    else:
        first = bench.start_held()
        assert len(bench.locks()) == 1
        first.send_signal(signal.SIGTERM)
        if end == "drained":
            bench.let_go()
        else:
            time.sleep(0.3)  # two at once would arrive as one
            first.send_signal(signal.SIGTERM)
        assert end_of(first)[0] == 143
    assert bench.locks() == []
    assert bench.run()[0] == 0
    assert bench.is_exact()


def test_state_show_says_who_runs_it(bench: Bench) -> None:
    first = bench.start_held()
    for alive in (True, False):
        shown = _state(bench.target)
        assert f"process {first.pid} on host {os.uname().nodename}, since " in shown
        assert ("that process is alive" in shown) is alive
        holder = json.loads(_state(bench.target, "--json"))["holder"]
        assert (holder["pid"], holder["host"]) == (first.pid, os.uname().nodename)
        bench.let_go()
        assert end_of(first)[0] == 0


def _state(target: str, *options: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "etl", "state", "show", target, "job", *options],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=GUARD_S,
        check=True,
    ).stdout


def test_a_run_goes_on_when_its_lock_is_lost(postgres_url: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, postgres_url)
    first = bench.start_held()
    try:
        execute(
            postgres_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name LIKE 'etl/lock/%' AND datname = current_database()",
        )
        bench.let_go()
        code, err = end_of(first)
    finally:
        first.kill()
    assert code == 0, err
    assert bench.is_exact()
