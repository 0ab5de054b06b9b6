"""Some hundred schedules in virtual time; ``python -m tests.crash.schedules`` runs thousands."""

from __future__ import annotations

import pytest

from tests.crash.schedules import run_seed


@pytest.mark.parametrize("first", range(0, 300, 50))
def test_every_schedule_is_exact_and_leaves_nothing(first: int) -> None:
    for seed in range(first, first + 50):
        run_seed(seed)
