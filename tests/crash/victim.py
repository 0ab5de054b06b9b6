"""The pipeline that crash tests run in a process of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from etl import Database, Limits, Pipeline
from etl.flow import Stream
from tests.crash.cases import CASES, Item

LIMITS: Mapping[str, Limits] = {
    # Many steps to crash at.
    "small": Limits(batch_rows=10, group_rows=20, channel_batches=2),
    # Two batches, which one transaction may hold.
    "large": Limits(batch_rows=100),
}


def pipeline(
    source: str,
    first: str,
    second: str,
    case: str,
    *,
    incremental: bool,
    limits: Limits,
) -> Pipeline:
    """The items of the source, into the targets as a case wants it."""
    cursor = ("id",) if incremental else ()
    read = Database(source)
    items: Stream[Any] = (
        read.table("items", row=Item, cursor=cursor)
        if CASES[case].builds
        else read.table("items", cursor=cursor)
    )
    flow = CASES[case].flow(items, Database(first), Database(second))
    return Pipeline(f"victim {case}", flow, limits=replace(limits, lanes=CASES[case].lanes))
