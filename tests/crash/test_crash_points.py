"""End the process at each named point; a rerun must make the target of one clean run.

A selection of what ``python -m tests.crash.matrix`` does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash.matrix import Matrix, Setting, pairwise, sqlite_files
from tests.crash.nursery import Nursery, nursery
from tests.crash.outside import PostgresOutside


@pytest.fixture(scope="module")
def runs() -> Iterator[Nursery]:
    with nursery() as runs:
        yield runs


@pytest.mark.parametrize(("number", "setting"), list(enumerate(pairwise())), ids=str)
def test_a_rerun_after_a_crash_at_any_point_is_exact(
    number: int,
    setting: Setting,
    runs: Nursery,
    postgres_database: Callable[[], str],
    tmp_path: Path,
) -> None:
    files = sqlite_files(tmp_path)
    with (
        closing(PostgresOutside(postgres_database())) as source,
        closing(PostgresOutside(postgres_database())) as target,
    ):
        matrix = Matrix(
            {"sqlite": files[0], "postgresql": source},
            {"sqlite": files[1], "postgresql": target},
            runs,
        )
        matrix.try_some(setting, number)
