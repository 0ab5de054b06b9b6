"""A pipeline that crash tests run in a process: ``victim.py SOURCE TARGET MODE [SECOND]``."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from etl import Batch, Database, Limits, Pipeline, stage
from etl.flow import Flow

ROWS = 600


@dataclass(frozen=True, slots=True)
class Item:
    id: int
    kind: str
    amount: int


@dataclass(frozen=True, slots=True)
class Total:
    kind: str
    items: int
    amount: int


@stage
async def pairs_only(batches: AsyncIterator[Batch[Item]]) -> AsyncGenerator[Batch[Item], None]:
    """Drop the odd ids; some batches become empty and must still be sent on."""
    async for batch in batches:
        yield batch.derive([item for item in batch.rows if item.id % 2 == 0 and item.id > 60])


def to_total(item: Item) -> Total:
    return Total(item.kind, 1, item.amount)


SMALL = Limits(batch_rows=25, group_rows=50, channel_batches=2)


def pipeline(
    source_url: str, target_url: str, mode: str, second_url: str = "", *, limits: Limits = SMALL
) -> Pipeline:
    """The flow under test; small batches and groups, so that there are many steps to crash at."""
    source, target = Database(source_url), Database(target_url)
    cursor = ("id",) if mode in {"append", "upsert", "add", "fan-out"} else ()
    items = source.table("items", row=Item, cursor=cursor).through(pairs_only)
    flow: Flow
    match mode:
        case "append":
            flow = items.into(target.append("copies"))
        case "upsert":
            flow = items.into(target.upsert("copies", key=("id",)))
        case "add":
            add = ("items", "amount")
            flow = items.map(to_total).into(target.upsert("totals", key=("kind",), add=add))
        case "replace":
            flow = items.into(target.replace("copies"))
        case "fan-out" | "fan-out-full":
            flow = items.into(target.append("copies"), Database(second_url).append("copies"))
        case "fan-out-replace":
            flow = items.into(target.replace("copies"), Database(second_url).replace("copies"))
        case _:
            raise ValueError(mode)
    return Pipeline(f"victim {mode}", flow, limits=limits)


def expected_items() -> list[tuple[int, str, int]]:
    """What the source holds."""
    return [(n, f"kind {n % 7}\tä\\", n * 3) for n in range(1, ROWS + 1)]


def expected(mode: str) -> list[tuple[object, ...]]:
    """What the target holds after any number of crashes and one clean end."""
    kept = [item for item in expected_items() if item[0] % 2 == 0 and item[0] > 60]
    if mode != "add":
        return sorted(kept)
    sums: dict[str, tuple[int, int]] = {}
    for _, kind, amount in kept:
        items, total = sums.get(kind, (0, 0))
        sums[kind] = (items + 1, total + amount)
    return sorted((kind, items, total) for kind, (items, total) in sums.items())


if __name__ == "__main__":
    report = pipeline(*sys.argv[1:]).run_sync()
    sys.stdout.write(f"{report.status} {report.rows_read} {report.rows_written}\n")
