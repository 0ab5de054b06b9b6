"""The lane alone: what it puts into one transaction, and what it refuses to write."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl import Batch, Limits, Retry, Token
from etl.batch import MAIN_PARTITION, Position
from etl.connector import Checkpoint, CheckpointKey
from etl.engine.bad_rows import BadRows
from etl.engine.channel import Channel
from etl.engine.lane import Group, Lane
from etl.engine.segments import make_route
from etl.errors import (
    ChannelBrokenError,
    CommitInDoubtError,
    ConservationError,
    DataError,
    FencedError,
    TransientError,
)
from etl.testing import MemorySink, MemoryTarget
from etl.testing.memory import MemorySession

AT_ONCE = Retry(attempts=3, base_s=0.0)


def tokened(
    rows: Sequence[int], seq: int, partition: str = MAIN_PARTITION, old: Position | None = None
) -> Batch[int]:
    before = old if old is not None else ((seq,) if seq else None)
    token = Token(partition, seq, before, (seq + 1,))
    return Batch(rows, position=(seq + 1,), tokens=(token,))


class Harness:
    """A lane that writes into a memory target, fed by hand."""

    def __init__(
        self,
        *,
        partitions: Sequence[str] = (MAIN_PARTITION,),
        limits: Limits | None = None,
        group_bytes: int = 10**9,
        retry: Retry = AT_ONCE,
        complete: bool = False,
    ) -> None:
        self.target = MemoryTarget()
        self.sink = MemorySink[int](target=self.target)
        self.target.tables["rows"] = []
        self.session = MemorySession(self.target, [self.sink])
        self.channel: Channel[Batch[Any]] = Channel("lane", max_items=1000, max_bytes=10**9)
        self.commits: list[int] = []
        self.retries: list[str] = []
        self.doubts: list[str] = []
        self.keys = {
            name: CheckpointKey(pipeline="t", flow="f", sink="rows", partition=name)
            for name in partitions
        }
        for key in self.keys.values():
            self.target.checkpoints[key] = Checkpoint(epoch=1, position=None)
        self.lane = Lane(
            flow="f",
            sinks={0: "rows"},
            session=self.session,
            checkpoints=dict(self.target.checkpoints),
            starts=dict.fromkeys(self.keys.values()),
            routes={name: make_route(name, {0: None}, ()) for name in partitions},
            channel=self.channel,
            limits=limits or Limits(),
            group_bytes=group_bytes,
            retry=retry,
            completes=lambda: list(self.keys.values()) if complete else [],
            bad_rows=BadRows("fail", "f"),
            forgets=(),
            row_keys=(),
            on_refused=lambda flow, rejects: None,
            on_commit=lambda flow, rows, total, seconds: self.commits.append(rows),
            on_retry=lambda flow, what, attempt, wait_s, error: self.retries.append(what),
            on_doubt=self.doubts.append,
        )

    async def give(self, *batches: Batch[Any]) -> None:
        for batch in batches:
            await self.channel.put(batch, batch.nbytes)

    async def write(self, *batches: Batch[Any]) -> list[int]:
        """All of them, then the end; what is in the table."""
        await self.give(*batches)
        self.channel.close()
        await self.lane.run()
        return self.target.tables["rows"]

    def checkpoint(self, partition: str = MAIN_PARTITION) -> Checkpoint:
        return self.target.checkpoints[self.keys[partition]]


async def test_what_waits_becomes_one_transaction() -> None:
    harness = Harness()
    assert await harness.write(*(tokened([n], n) for n in range(5))) == [0, 1, 2, 3, 4]
    assert harness.commits == [5]
    assert harness.checkpoint() == Checkpoint(epoch=1, position=(5,), rows=5)


@pytest.mark.parametrize(("group_rows", "commits"), [(1, [2] * 6), (3, [4] * 3), (100, [12])])
async def test_a_group_ends_with_the_batch_that_reaches_the_rows(
    group_rows: int, commits: list[int]
) -> None:
    harness = Harness(limits=Limits(group_rows=group_rows))
    await harness.write(*(tokened([n, n], n) for n in range(6)))
    assert harness.commits == commits


async def test_a_group_ends_with_the_batch_that_reaches_the_bytes() -> None:
    harness = Harness(group_bytes=1000)
    await harness.write(*(tokened(["x" * 600], n) for n in range(4)))  # type: ignore[list-item]
    assert harness.commits == [2, 2]


async def test_a_group_never_ends_between_pieces() -> None:
    harness = Harness(limits=Limits(group_rows=1))
    batches = [piece for n in range(3) for piece in tokened([1, 2, 3], n).split([[1], [2], [3]])]
    await harness.write(*batches)
    assert harness.commits == [3, 3, 3]
    assert harness.checkpoint().rows == 9


async def test_a_group_waits_for_the_last_piece() -> None:
    harness = Harness()
    head, last = tokened([1, 2], 0).split([[1], [2]])
    task = asyncio.create_task(harness.lane.run())
    await harness.give(head)
    for _ in range(10):
        await asyncio.sleep(0)
    assert harness.target.writes == 0  # no transaction is open while it waits either
    await harness.give(last)
    harness.channel.close()
    await task
    assert harness.target.tables["rows"] == [1, 2]


async def test_pieces_of_two_partitions_in_turns_are_one_group() -> None:
    harness = Harness(partitions=("a", "b"), limits=Limits(group_rows=1))
    first, first_end = tokened([1, 2], 0, "a").split([[1], [2]])
    second, second_end = tokened([3, 4], 0, "b").split([[3], [4]])
    await harness.write(first, second, first_end, tokened([5], 1, "a"), second_end)
    assert harness.commits == [5]
    assert [harness.checkpoint(name).rows for name in "ab"] == [3, 2]


async def test_an_end_in_the_middle_of_pieces_is_refused_and_nothing_of_it_written() -> None:
    harness = Harness()
    head, _ = tokened([1, 2], 1).split([[1], [2]])
    await harness.give(tokened([0], 0), head)
    harness.channel.close()
    with pytest.raises(ConservationError, match="middle of a split batch"):
        await harness.lane.run()
    assert harness.target.tables["rows"] == []


async def test_rows_without_a_token_are_refused() -> None:
    with pytest.raises(ConservationError, match="without a token"):
        await Harness().write(Batch([1]))


@pytest.mark.parametrize(
    "batches",
    [
        [tokened([1], 1)],
        [tokened([0], 0), tokened([2], 2)],
        [tokened([0], 0), tokened([0], 0)],
        [tokened([0], 0), tokened([1], 1), tokened([0], 0)],
    ],
)
async def test_a_gap_or_a_repeat_in_the_chain_is_refused(batches: list[Batch[int]]) -> None:
    harness = Harness(limits=Limits(group_rows=1))
    with pytest.raises(ConservationError, match="out of order"):
        await harness.write(*batches)
    assert len(harness.target.tables["rows"]) == len(set(harness.target.tables["rows"]))


async def test_tokens_without_rows_wait_for_rows_and_are_kept_at_the_end() -> None:
    harness = Harness()
    assert await harness.write(tokened([], 0), tokened([], 1)) == []
    assert harness.commits == []  # no rows to speak of
    assert harness.checkpoint().position == (2,)
    assert harness.target.writes == 0
    assert harness.target.commits == 1


async def test_nothing_at_all_touches_the_target_only_to_complete() -> None:
    harness = Harness()
    await harness.write()
    assert harness.target.commits == 0
    harness = Harness(complete=True)
    await harness.write()
    assert harness.target.commits == 1
    assert harness.checkpoint() == Checkpoint(epoch=1, position=None, complete=True)


async def test_complete_is_marked_at_the_clean_end_only() -> None:
    harness = Harness(complete=True)
    await harness.give(tokened([0], 0))
    task = asyncio.create_task(harness.lane.run())
    while not harness.commits:
        await asyncio.sleep(0)
    assert not harness.checkpoint().complete
    harness.channel.fail(ValueError("upstream"))
    with pytest.raises(ChannelBrokenError):
        await task
    assert not harness.checkpoint().complete

    harness = Harness(complete=True)
    await harness.write(tokened([0], 0))
    assert harness.checkpoint() == Checkpoint(epoch=1, position=(1,), complete=True, rows=1)


async def test_a_refused_row_is_rolled_back_and_not_tried_again() -> None:
    harness = Harness()
    harness.target.fail_on_write, harness.target.error = 1, DataError
    with pytest.raises(DataError):
        await harness.write(tokened([0], 0))
    assert harness.retries == []
    assert harness.target.tables["rows"] == []
    await harness.session.begin()  # it left the transaction


async def test_a_passing_failure_is_tried_again_with_the_same_group() -> None:
    harness = Harness()
    harness.target.fail_on_write, harness.target.error = 1, TransientError
    assert await harness.write(tokened([0], 0), tokened([1], 1)) == [0, 1]
    assert harness.retries == ["writing"]
    assert harness.commits == [2]


async def test_a_policy_that_gives_up_raises_the_failure() -> None:
    harness = Harness(retry=Retry(attempts=1))
    harness.target.fail_on_write, harness.target.error = 1, TransientError
    with pytest.raises(TransientError):
        await harness.write(tokened([0], 0))


async def test_an_epoch_that_someone_raised_fences_the_lane() -> None:
    harness = Harness()
    key = harness.keys[MAIN_PARTITION]
    harness.target.checkpoints[key] = Checkpoint(epoch=2, position=None)
    with pytest.raises(FencedError):
        await harness.write(tokened([0], 0))
    assert harness.target.tables["rows"] == []


async def test_a_position_that_someone_moved_fences_the_lane() -> None:
    harness = Harness()
    key = harness.keys[MAIN_PARTITION]
    harness.target.checkpoints[key] = Checkpoint(epoch=1, position=(7,))
    with pytest.raises(FencedError):
        await harness.write(tokened([0], 0))


class DoubtfulSession(MemorySession):
    """The first COMMIT gets no answer; ``settle`` fails for a while, then finds what it is told."""

    def __init__(self, harness: Harness, found: Checkpoint | None, settle_failures: int) -> None:
        super().__init__(harness.target, [harness.sink])
        self._harness = harness
        self._found = found
        self._failures = settle_failures
        self._doubted = False

    async def commit(self) -> None:
        if self._doubted:
            await super().commit()
            return
        self._doubted = True
        self._rows = None
        raise CommitInDoubtError("no answer")

    async def settle(self, keys: Sequence[CheckpointKey]) -> dict[CheckpointKey, Checkpoint]:
        if self._failures:
            self._failures -= 1
            raise TransientError("not reachable yet")
        return {} if self._found is None else dict.fromkeys(keys, self._found)


@pytest.mark.parametrize(
    ("found", "outcome"),
    [
        (Checkpoint(epoch=1, position=(1,), rows=1), "in"),
        (Checkpoint(epoch=1, position=None), "not in"),
        (Checkpoint(epoch=2, position=(1,), rows=1), "fenced"),
        (Checkpoint(epoch=2, position=None), "fenced"),
        # Somewhere else, or gone: the compare-and-set of the next try says what has become of it.
        (Checkpoint(epoch=1, position=(9,)), "not in"),
        (None, "not in"),
    ],
)
async def test_the_outcome_of_a_doubtful_commit(found: Checkpoint | None, outcome: str) -> None:
    harness = Harness(retry=Retry(attempts=6, base_s=0.0))
    harness.lane.session = DoubtfulSession(harness, found, 2)
    if outcome == "fenced":
        with pytest.raises(FencedError, match="taken over"):
            await harness.write(tokened([0], 0))
        return
    rows = await harness.write(tokened([0], 0))
    assert harness.retries[:3] == ["asking for the outcome of a commit"] * 3
    assert rows == ([] if outcome == "in" else [0])  # where it is in, it is not written again
    assert harness.lane.rows_written == 1


async def test_a_doubt_that_cannot_be_settled_fails_as_temporary() -> None:
    harness = Harness(retry=Retry(attempts=3, base_s=0.0))
    harness.lane.session = DoubtfulSession(harness, None, 99)
    with pytest.raises(TransientError):
        await harness.write(tokened([0], 0))


def test_a_group_counts_rows_by_partition() -> None:
    group = Group()
    assert group.is_whole
    head, last = tokened([1, 2, 3], 0, "a").split([[1, 2], [3]])
    group.add(head)
    assert not group.is_whole
    group.add(tokened([4], 0, "b"))
    group.add(last)
    assert group.is_whole
    assert group.rows_of == {(0, "a"): 3, (0, "b"): 1}
    assert group.moves == {(0, "a"): (1,), (0, "b"): (1,)}
    assert group.rows == 4


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 5), max_size=12),
    cuts=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    group_rows=st.integers(1, 8),
    group_bytes=st.integers(1, 500),
    faults=st.lists(st.integers(1, 10), max_size=3),
)
def test_any_batches_and_bounds_write_each_row_once_in_order(
    sizes: list[int], cuts: list[int], group_rows: int, group_bytes: int, faults: list[int]
) -> None:
    async def check() -> None:
        harness = Harness(
            limits=Limits(group_rows=group_rows),
            group_bytes=group_bytes,
            retry=Retry(attempts=20, base_s=0.0),
        )
        harness.target.error = TransientError
        harness.target.fail_on_write = faults[0] if faults else None
        harness.target.doubt_on_commit = faults[1] if len(faults) > 1 else None
        harness.target.doubt_is_in = len(faults) > 2
        batches: list[Batch[int]] = []
        number = 0
        for seq, size in enumerate(sizes):
            rows = list(range(number, number + size))
            number += size
            cut = cuts[seq % len(cuts)]
            batches += tokened(rows, seq).split([rows[at : at + cut] for at in range(0, size, cut)])
        assert await harness.write(*batches) == list(range(number))
        assert harness.checkpoint().rows == number
        assert harness.checkpoint().position == ((len(sizes),) if sizes else None)
        # A group is at most its bound and the batches up to the next token.
        assert all(rows < group_rows + 5 for rows in harness.commits)

    asyncio.run(check())
