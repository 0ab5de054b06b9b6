"""End the process at each named point; a rerun must make the target of one clean run."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import asyncpg
import pytest

from etl.engine.failpoints import CRASHED, POINTS, VARIABLE
from tests.crash import victim

ROOT = Path(__file__).resolve().parents[2]
MODES = ("append", "upsert", "add", "replace")


@pytest.fixture(scope="module")
def source_url(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("crash") / "source.db"
    connection = sqlite3.connect(path)
    connection.execute(
        "CREATE TABLE items (id INTEGER PRIMARY KEY, kind TEXT NOT NULL, amount INTEGER NOT NULL)"
    )
    connection.executemany("INSERT INTO items VALUES (?, ?, ?)", victim.expected_items())
    connection.commit()
    connection.close()
    return f"sqlite:///{path}"


def run_victim(source: str, target: str, mode: str, failpoint: str = "", second: str = "") -> int:
    """Run the pipeline in a process; its exit status."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.victim", source, target, mode, second],
        cwd=ROOT,
        env={**os.environ, VARIABLE: failpoint},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in {0, CRASHED}, done.stderr
    return done.returncode


def rows_of(target: str, mode: str) -> list[tuple[object, ...]]:
    """The target's rows, sorted, read without etl."""
    query = f"SELECT * FROM {'totals' if mode == 'add' else 'copies'}"
    if target.startswith("sqlite"):
        with closing(sqlite3.connect(target.removeprefix("sqlite:///"))) as connection:
            return sorted(connection.execute(query))
    return asyncio.run(_postgres_rows(target, query))


async def _postgres_rows(url: str, query: str) -> list[tuple[object, ...]]:
    server = await asyncpg.connect(url)
    try:
        return sorted(tuple(row) for row in await server.fetch(query))
    finally:
        await server.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("point", POINTS)
def test_sqlite_rerun_after_a_crash_is_exact(
    point: str, mode: str, source_url: str, sqlite_url: str
) -> None:
    crash_and_rerun(point, mode, source_url, sqlite_url)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("point", POINTS)
def test_postgres_rerun_after_a_crash_is_exact(
    point: str, mode: str, source_url: str, postgres_url: str
) -> None:
    crash_and_rerun(point, mode, source_url, postgres_url)


def crash_and_rerun(point: str, mode: str, source: str, target: str) -> None:
    crashed = [run_victim(source, target, mode, f"{point}:{hit}") for hit in (1, 3)]
    # Publishing exists for a replace only; every other point is passed in each run.
    if not point.endswith("_publish") or mode == "replace":
        assert crashed[0] == CRASHED
    assert run_victim(source, target, mode) == 0
    assert rows_of(target, mode) == victim.expected(mode)


FAN_OUT = [
    *((point, "fan-out") for point in POINTS if point.startswith("lane.")),
    ("lane.after_commit", "fan-out-full"),
    ("run.before_publish", "fan-out-replace"),
    ("run.after_publish", "fan-out-replace"),
]


@pytest.mark.parametrize(("point", "mode"), FAN_OUT)
def test_rerun_into_two_databases_after_a_crash_is_exact(
    point: str, mode: str, source_url: str, postgres_url: str, sqlite_url: str
) -> None:
    """Each time another of the two lanes may be ahead."""
    for hit in (4, 1):
        run_victim(source_url, postgres_url, mode, f"{point}:{hit}", sqlite_url)
    assert run_victim(source_url, postgres_url, mode, second=sqlite_url) == 0
    for target in (postgres_url, sqlite_url):
        assert rows_of(target, mode) == victim.expected(mode)
