"""Any rows, cut in any way and cancelled anywhere, make the same target: in real databases."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl import Database, Limits, Pipeline
from etl.flow import Flow
from tests.crash.cancel_points import run_cancelled
from tests.crash.cases import Item
from tests.crash.outside import Outside, PostgresOutside, SqliteOutside

DRAWN: dict[str, Any] = {
    # PostgreSQL's texts hold no NUL, and nothing encodes a lone surrogate.
    "kinds": st.lists(
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
        max_size=30,
    ),
    "mode": st.sampled_from(["append", "upsert", "replace"]),
    "incremental": st.booleans(),
    "looked_at": st.booleans(),
    "limits": st.builds(
        Limits,
        batch_rows=st.integers(1, 12),
        group_rows=st.integers(1, 40),
        channel_batches=st.integers(1, 4),
        lanes=st.integers(1, 3),
    ),
    "stops": st.lists(st.tuples(st.integers(1, 250), st.integers(1, 3)), max_size=2),
}


def check(
    source: Outside,
    target: Outside,
    kinds: list[str],
    mode: str,
    incremental: bool,
    looked_at: bool,
    limits: Limits,
    stops: list[tuple[int, int]],
) -> None:
    source.empty()
    target.empty()
    items = [Item(n, kind, n * n) for n, kind in enumerate(kinds)]
    source.make_table("items", items)
    cursor = ("id",) if incremental and mode != "replace" else ()
    rows = Database(source.url).table("items", cursor=cursor)
    stream = rows.map(lambda row: row.replace(kind=row["kind"])) if looked_at else rows
    out = Database(target.url)
    flow: Flow
    match mode:
        case "append":
            flow = stream.into(out.append("copies"))
        case "upsert":
            flow = stream.into(out.upsert("copies", key=("id",)))
        case _:
            flow = stream.into(out.replace("copies"))
    pipeline = Pipeline("any cut", flow, limits=limits)
    target.make_table("copies", [])
    for at, times in stops:
        run_cancelled(pipeline, (source.url, target.url), at=at, times=times)
        found, _ = target.look(["copies"])
        assert len(set(found["copies"])) == len(found["copies"]) <= len(items)
    pipeline.run_sync()
    found, _ = target.look(["copies"])
    assert found["copies"] == [(item.id, item.kind, item.amount) for item in items]


@settings(max_examples=25, deadline=None)
@given(**DRAWN)
def test_from_sqlite_to_sqlite(**drawn: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = SqliteOutside(Path(folder) / "source.db")
        check(source, SqliteOutside(Path(folder) / "target.db"), **drawn)


def test_from_and_to_postgres(postgres_database: Callable[[], str]) -> None:
    with (
        closing(PostgresOutside(postgres_database())) as source,
        closing(PostgresOutside(postgres_database())) as target,
    ):

        @settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(**DRAWN)
        def test(**drawn: Any) -> None:
            check(source, target, **drawn)

        test()
