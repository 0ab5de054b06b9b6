"""A short kill loop into each database; ``make soak`` has the long one."""

from __future__ import annotations

import pytest

from tests.crash.kill_loop import kill_loop
from tests.crash.worker_kills import worker_kills


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_killed_sqlite_loads_stay_exact(mode: str, sqlite_url: str) -> None:
    assert kill_loop(mode, sqlite_url, kills=8, rows=20_000, seed=1).kills == 8


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_killed_postgres_loads_stay_exact(mode: str, postgres_url: str) -> None:
    assert kill_loop(mode, postgres_url, kills=8, rows=20_000, seed=1).kills == 8


def test_killed_runs_and_workers_stay_exact(postgres_url: str) -> None:
    loop = worker_kills("append", postgres_url, kills=6, rows=20_000, seed=1)
    assert sum(loop.kills.values()) == 6
