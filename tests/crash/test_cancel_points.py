"""Cancel a run where its tasks wait; nothing is left, and a rerun is exact.

A selection of what ``python -m tests.crash.cancel_points`` does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from tests.crash.cancel_points import POINTS, CancelledRuns
from tests.crash.matrix import Matrix, Setting, sqlite_files
from tests.crash.outside import PostgresOutside


@pytest.mark.parametrize(
    ("setting", "step"),
    [
        (Setting("append", "incremental", "large", "sqlite", "sqlite"), 5),
        (Setting("replace", "full", "large", "sqlite", "sqlite"), 11),
        (Setting("upsert", "incremental", "large", "postgresql", "postgresql"), 37),
        (Setting("replace", "full", "large", "sqlite", "postgresql"), 101),
        (Setting("two databases", "full", "large", "postgresql", "sqlite"), 59),
    ],
    ids=str,
)
def test_a_run_that_is_cancelled_anywhere_leaves_nothing_and_its_rerun_is_exact(
    setting: Setting, step: int, postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    files = sqlite_files(tmp_path)
    with (
        closing(PostgresOutside(postgres_database())) as source,
        closing(PostgresOutside(postgres_database())) as target,
    ):
        matrix = Matrix(
            {"sqlite": files[0], "postgresql": source},
            {"sqlite": files[1], "postgresql": target},
            CancelledRuns(),
        )
        for start, times in enumerate(POINTS, start=1):
            matrix.try_setting(setting, count(start, step), (times,))
