"""Incremental reads beside writers that commit late; see ``tests/crash/late_writers.py``."""

from __future__ import annotations

import random
from collections.abc import Callable

from etl import Database, Pipeline
from tests.crash.late_writers import CURSORS, late_writers
from tests.integration.fault_kit import bounded, sql


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


async def test_a_time_without_zone_is_not_taken_for_utc(
    postgres_database: Callable[[], str],
) -> None:
    """West of UTC, local times lie below a bound in UTC, however young they are."""
    source, target = postgres_database(), postgres_database()
    async with sql(source) as connection:
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE \"{name}\" SET timezone = 'America/New_York'")
    events = Database(source).table("events", cursor="at")
    pipeline = Pipeline("late", events.into(Database(target).append("seen")))
    async with sql(source) as early, sql(source) as late:
        await early.execute(
            "CREATE TABLE events (id bigserial PRIMARY KEY, at timestamp NOT NULL DEFAULT now())"
        )
        await late.execute("BEGIN; INSERT INTO events DEFAULT VALUES")
        await early.execute("INSERT INTO events DEFAULT VALUES; SELECT pg_sleep(0.3)")

        assert (await bounded(pipeline.run())).rows_written == 0

        await late.execute("COMMIT; SELECT pg_sleep(0.3)")
        assert (await bounded(pipeline.run())).rows_written == 2
