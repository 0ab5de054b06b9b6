"""Thousands of schedules of a pipeline in memory, each drawn from a seed.

``python -m tests.crash.schedules --seeds 10000`` draws for each seed a pipeline (sources, merged
or alone; steps; one sink or several, in one target or in two; sizes) and what goes wrong in it:
slow reads and writes, reads and writes that fail for a moment or for good, commits in doubt,
drains, aborts and cancellations at any time. It runs in virtual time (``virtual_time.py``). After
each run every target must hold what its position says and nothing may be left; a last run without
faults must make it complete. ``--first N --seeds 1`` runs a seed that failed again.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

from etl import Batch, DataError, Limits, Pipeline, Retry, TransientError, merge, stage
from etl.batch import Position
from etl.connector import Sink
from etl.errors import EtlError, PipelineFailedError, RunAbortedError
from etl.flow import Flow, Stream
from etl.testing import MemorySink, MemorySource, MemoryTarget
from tests.crash.virtual_time import run_virtually

Item: TypeAlias = "tuple[str, int]"  # where it comes from, and a number


class Faults:
    """Chance, and whether anything may go wrong now."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.are_on = True

    def strike(self, probability: float) -> bool:
        return self.are_on and self.chance.random() < probability

    async def pause(self) -> None:
        """Some time, or none."""
        if self.chance.random() < 0.3:
            await asyncio.sleep(self.chance.choice((0.0, 0.001, 0.1, 3.0)))


class FaultySource(MemorySource[Item]):
    """Pauses, and fails for a moment."""

    def __init__(self, rows: Sequence[Item], faults: Faults, **options: Any) -> None:
        super().__init__(rows, **options)
        self._faults = faults

    async def read(
        self, after: Position | None, until: Position | None
    ) -> AsyncGenerator[Batch[Item], None]:
        async with aclosing(super().read(after, until)) as batches:
            async for batch in batches:
                await self._faults.pause()
                if self._faults.strike(0.02):
                    raise TransientError("the source was away for a moment")
                yield batch


class FaultyTarget(MemoryTarget):
    """Writes pause and fail; a commit after one may be in doubt."""

    def __init__(self, name: str, faults: Faults) -> None:
        super().__init__(name)
        self.faults = faults
        self.before_write = self._write

    async def _write(self) -> None:
        await self.faults.pause()
        if self.faults.strike(0.05):
            raise TransientError("the target was away for a moment")
        if self.faults.strike(0.005):
            raise DataError("the target refused a row")
        self.doubt_on_commit = self.commit_calls + 1 if self.faults.strike(0.1) else None
        self.doubt_is_in = self.faults.strike(0.5)


@stage
async def in_halves(batches: AsyncIterator[Batch[Item]]) -> AsyncGenerator[Batch[Item], None]:
    async for batch in batches:
        middle = len(batch.rows) // 2
        for piece in batch.split([batch.rows[:middle], batch.rows[middle:]]):
            yield piece


@stage
async def in_pairs(batches: AsyncIterator[Batch[Item]]) -> AsyncGenerator[Batch[Item], None]:
    held: list[Batch[Item]] = []
    async for batch in batches:
        held.append(batch)
        if len(held) == 2:
            yield Batch.merge(held, [row for one in held for row in one.rows])
            held = []
    if held:
        yield Batch.merge(held, [row for one in held for row in one.rows])


Add: TypeAlias = Callable[[Stream[Item], Faults], Stream[Item]]
Step: TypeAlias = "tuple[Add, Callable[[Item], list[Item]]]"
"""How a step is added to a stream, and what it makes of a row."""


def _calls(concurrency: int) -> Add:
    def add(stream: Stream[Item], faults: Faults) -> Stream[Item]:
        async def double(rows: Sequence[Item]) -> Sequence[Item]:
            await faults.pause()
            if faults.strike(0.02):
                raise TransientError("the service was away for a moment")
            return [(name, 2 * n) for name, n in rows]

        return stream.map_batches(double, concurrency=concurrency, retry=RETRY)

    return add


RETRY = Retry(attempts=4, base_s=0.5, cap_s=10.0)
STEPS: Sequence[Step] = (
    (lambda s, _: s.map(lambda row: (row[0], row[1] + 1)), lambda row: [(row[0], row[1] + 1)]),
    (lambda s, _: s.filter(lambda row: row[1] % 3), lambda row: [row] if row[1] % 3 else []),
    (lambda s, _: s.flat_map(lambda row: [row] * (row[1] % 3)), lambda row: [row] * (row[1] % 3)),
    (_calls(1), lambda row: [(row[0], 2 * row[1])]),
    (_calls(4), lambda row: [(row[0], 2 * row[1])]),
    (lambda s, _: s.through(in_halves), lambda row: [row]),
    (lambda s, _: s.through(in_pairs), lambda row: [row]),
)


@dataclass(slots=True)
class Plan:
    """A pipeline drawn from a seed, and what it must make of its sources."""

    faults: Faults
    flow: Flow
    limits: Limits
    expected: dict[str, list[Item]]  # by source, in its order
    sinks: list[MemorySink[Item]]
    targets: list[FaultyTarget]
    in_order: bool

    def pipeline(self) -> Pipeline:
        return Pipeline("drawn", self.flow, limits=self.limits, retry=RETRY)


def draw(seed: int) -> Plan:
    chance = random.Random(seed)
    faults = Faults(chance)
    steps = chance.choices(STEPS, k=chance.randrange(5))
    lanes = chance.choice((1, 1, 1, 3))
    count = chance.choice((1, 1, 2, 3)) if lanes == 1 else 1
    sources: dict[str, list[Item]] = {
        f"s{i}": [(f"s{i}", n) for n in range(chance.choice((0, 1, 7, 40)))] for i in range(count)
    }
    incremental = lanes == 1 and chance.random() < 0.5
    streams: list[Stream[Item]] = [
        FaultySource(
            rows, faults, batch_rows=chance.randint(1, 9), name=name, incremental=incremental
        )
        for name, rows in sources.items()
    ]
    stream = streams[0] if len(streams) == 1 else merge(*streams)
    for add, _ in steps:
        stream = add(stream, faults)
    targets = [FaultyTarget(f"t{i}", faults) for i in range(chance.choice((1, 1, 2)))]
    sinks = [
        MemorySink[Item](
            target=chance.choice(targets),
            table=f"table {i}",
            mode=chance.choice(("append", "append", "replace")) if not incremental else "append",
        )
        for i in range(chance.choice((1, 1, 2, 3)))
    ]
    into: list[Sink[Item]] = list(sinks)

    def result(rows: list[Item]) -> list[Item]:
        for _, function in steps:
            rows = [new for row in rows for new in function(row)]
        return rows

    return Plan(
        faults=faults,
        flow=stream.into(*into),
        limits=Limits(
            batch_rows=chance.randint(1, 9),
            channel_batches=chance.randint(1, 4),
            group_rows=chance.choice((1, 5, 1000)),
            lanes=lanes,
        ),
        expected={name: result(rows) for name, rows in sources.items()},
        sinks=sinks,
        targets=targets,
        in_order=lanes == 1,
    )


async def try_schedule(seed: int) -> Counter[str]:
    """Run what a seed draws, to its end.

    Raises:
        AssertionError: Rows were lost, doubled or out of order, or something was left.
    """
    plan = draw(seed)
    told = Counter[str]()
    for _ in range(plan.faults.chance.randrange(5)):
        told[await _one_run(plan)] += 1
        _check(plan, is_complete=False)
    plan.faults.are_on = False
    report = await plan.pipeline().run()
    assert report.status == "completed"
    _check(plan, is_complete=True)
    told["complete"] += 1
    return told


async def _one_run(plan: Plan) -> str:
    """One run, and what was done to it; whatever it ends with."""
    chance = plan.faults.chance
    what = chance.choice(("nothing", "drain", "abort", "cancel", "cancel twice"))
    try:
        if what in {"drain", "abort"}:
            run = await plan.pipeline().start()
            await asyncio.sleep(chance.expovariate(1.0))
            await (run.drain() if what == "drain" else run.abort())
            report = await run.wait()
        else:
            work = asyncio.create_task(plan.pipeline().run())
            for _ in range(("nothing", "cancel", "cancel twice").index(what)):
                await asyncio.sleep(chance.expovariate(1.0))
                work.cancel()
            report = await work
    except (EtlError, asyncio.CancelledError, ExceptionGroup) as error:
        if not isinstance(
            error,
            TransientError
            | DataError
            | PipelineFailedError
            | RunAbortedError
            | asyncio.CancelledError,
        ):
            raise
        return f"{what}: {type(error).__name__}"
    _check(plan, is_complete=report.status == "completed")
    return f"{what}: {report.status}"


def _check(plan: Plan, *, is_complete: bool) -> None:
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left, f"left behind: {left}"
    assert not any(target.open_sessions for target in plan.targets)
    for sink in plan.sinks:
        found: dict[str, list[Item]] = {name: [] for name in plan.expected}
        for row in sink.rows:
            found[row[0]].append(row)
        for name, rows in found.items():
            wanted = plan.expected[name]
            if is_complete:
                same = rows == wanted if plan.in_order else sorted(rows) == sorted(wanted)
                assert same, f"{sink.table}, {name}: {len(rows)} of {len(wanted)} rows"
            elif plan.in_order:
                assert rows == wanted[: len(rows)], f"{sink.table}, {name}: no prefix"
            else:
                assert not Counter(rows) - Counter(wanted), f"{sink.table}, {name}: doubled"


def run_seed(seed: int) -> tuple[Counter[str], float]:
    """One schedule: what happened, and how much virtual time it took.

    Raises:
        AssertionError: With the seed in a note.
    """
    random.seed(seed)  # the jitter of retries
    try:
        return run_virtually(try_schedule(seed), seed)
    except BaseException as error:
        error.add_note(f"seed {seed}: python -m tests.crash.schedules --first {seed} --seeds 1")
        raise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=random.randrange(2**32))
    args = parser.parse_args()
    print(f"first seed {args.first}", flush=True)
    told, virtual_s, started = Counter[str](), 0.0, time.monotonic()
    for seed in range(args.first, args.first + args.seeds):
        happened, took_s = run_seed(seed)
        told += happened
        virtual_s += took_s
    print(
        f"{args.seeds} schedules, {told.total()} runs, {virtual_s / 3600:.1f} virtual hours in"
        f" {time.monotonic() - started:.0f} s: 0 rows lost, 0 doubled"
    )
    for what, times in sorted(told.items()):
        print(f"  {what}: {times}")


if __name__ == "__main__":
    main()
