"""Incremental reads beside writers that commit late; see ``tests/crash/late_writers.py``."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.crash.late_writers import CURSORS, late_writers
from tests.integration.fault_kit import bounded


async def test_no_row_of_a_late_transaction_is_lost_or_doubled(
    postgres_database: Callable[[], str],
) -> None:
    seed = random.randrange(2**32)
    work = late_writers(postgres_database(), postgres_database(), seconds=5, writers=12, seed=seed)

    tally = await bounded(work, 50)

    assert tally.is_exact, f"seed {seed}: {tally}"
    assert tally.lost_naive > 0, "nothing came late, so nothing was shown"
    for name in CURSORS:
        assert tally.early[name] > 0, f"cursor {name}: everything came with the last run"
