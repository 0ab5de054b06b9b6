"""The lane: groups batches, and writes rows and positions in one transaction.

Invariants (a run may die anywhere, and these hold in the target):

- Atomic: the rows of a group and its positions change in one transaction.
- Chain: a commit moves a position exactly from the last committed one to the next; the old
  position and the epoch are in the predicate of the update.
- Fence: after a take-over no older run can commit; both need the same checkpoint row.
- No false end: a read is marked complete only after each channel before the lane closed cleanly.

So at any moment the target is the effect of the source up to the position.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import monotonic
from typing import Any, TypeAlias

from etl.batch import Batch, OpenPieces, Position
from etl.connector import Advance, Checkpoint, CheckpointKey, Session
from etl.engine import failpoints
from etl.engine.channel import Channel, EndOfChannelError
from etl.engine.retry import Attempts
from etl.engine.segments import Follower, Route, Sinks
from etl.engine.supervise import finish
from etl.errors import (
    CommitInDoubtError,
    ConservationError,
    EtlError,
    FencedError,
    TransientError,
)
from etl.policy import Limits, Retry

_IDLE_COMMIT_S = 5.0


Own: TypeAlias = "tuple[int, ...]"  # the lane's sinks, by their number in it


class Group:
    """Batches that one transaction will write: whole token groups, complete in memory."""

    def __init__(self) -> None:
        self.batches: list[tuple[Batch[Any], Own]] = []  # each with the sinks that it is for
        self.rows = 0
        self.nbytes = 0
        self.moves: dict[tuple[int, str], Position] = {}  # (sink, partition) -> position after it
        self.rows_of: dict[tuple[int, str], int] = {}
        self._open_pieces = OpenPieces()
        self.since = monotonic()

    @property
    def is_whole(self) -> bool:
        """No piece waits for the token that covers it."""
        return not self._open_pieces.partitions

    def add(self, batch: Batch[Any], sinks: Own = (0,)) -> None:
        """Take one more batch, for some of the lane's sinks."""
        self.batches.append((batch, sinks))
        self.rows += len(batch.rows)
        self.nbytes += batch.nbytes
        for token in batch.tokens:
            if token.new is not None:
                for sink in sinks:
                    self.moves[sink, token.partition] = token.new
        if batch.rows:
            partition = batch.tokens[-1].partition if batch.tokens else batch.pieces_of[0]
            for sink in sinks:
                have = self.rows_of.get((sink, partition), 0)
                self.rows_of[sink, partition] = have + len(batch.rows)
        self._open_pieces.add(batch)

    def batches_of(self, sink: int) -> list[Batch[Any]]:
        """Those with rows for one sink."""
        return [batch for batch, sinks in self.batches if sink in sinks and batch.rows]


class Lane:
    """Writes one flow into its sinks of one target, one transaction at a time.

    Attributes:
        checkpoints: The lane's keys, as they are committed by now.
        rows_written: Rows that the sinks took in this run.
        transactions: Commits with rows.
        session: Its connection to the target.
    """

    def __init__(
        self,
        *,
        flow: str,
        sinks: Mapping[int, str],
        session: Session,
        checkpoints: dict[CheckpointKey, Checkpoint],
        starts: Mapping[CheckpointKey, Position | None],
        routes: Mapping[str, Route],
        channel: Channel[Batch[Any]],
        limits: Limits,
        group_bytes: int,
        retry: Retry,
        completes: Callable[[], Sequence[CheckpointKey]],
        on_commit: Callable[[str, int, int, float], None],
        on_retry: Callable[[str, str, int, float, BaseException], None],
    ) -> None:
        """Make a lane.

        Args:
            sinks: The tables, by the number of the sink in the flow, in the session's order.
            checkpoints: The lane's keys, as the take-over returned them.
            starts: Where each of them begins in this run: its first token's ``old``.
            routes: How the partitions are read.
            completes: At a clean end: the keys to mark complete.
        """
        self.rows_written = 0
        self.transactions = 0
        self.checkpoints = checkpoints
        self._flow = flow
        self._sinks = tuple(sinks)
        self.session = session
        tables = list(sinks.values())
        self._keys = {(tables.index(key.sink), key.partition): key for key in checkpoints}
        self._expected = {place: starts[key] for place, key in self._keys.items()}
        self._follower = Follower(routes)
        self._own: dict[Sinks, Own] = {}
        self._channel = channel
        self._limits = limits
        self._group_bytes = group_bytes
        self._retry = retry
        self._completes = completes
        self._on_commit = on_commit
        self._on_retry = on_retry

    async def run(self) -> None:
        """Write until the channel has ended.

        Raises:
            FencedError: A newer run took over.
            DataError: A row was refused; nothing of its group was written.
        """
        group = Group()
        while True:
            try:
                batch = await self._channel.get()
            except EndOfChannelError:
                break
            self._take(group, batch)
            await self._extend(group)
            if group.rows or (group.moves and monotonic() - group.since > _IDLE_COMMIT_S):
                await self._commit(group, ())
                group = Group()
        completes = self._completes()
        if group.moves or completes:
            await self._commit(group, completes)

    async def _extend(self, group: Group) -> None:
        """Take what waits, up to the bounds, and always up to the end of a token group."""
        while not group.is_whole or (
            group.rows < self._limits.group_rows and group.nbytes < self._group_bytes
        ):
            batch = self._channel.get_nowait()
            if batch is None:
                if group.is_whole:
                    return
                try:
                    batch = await self._channel.get()
                except EndOfChannelError:
                    raise ConservationError(
                        f"flow {self._flow!r} ended in the middle of a split batch: its last piece,"
                        " which carries the token, never came. Nothing of it was written"
                    ) from None
            self._take(group, batch)

    def _take(self, group: Group, batch: Batch[Any]) -> None:
        if not batch.partial and not batch.tokens and batch.rows:
            raise ConservationError(
                f"flow {self._flow!r}: {len(batch.rows)} rows came without a token; a stage made a"
                " batch of its own. Use derive, merge or split. Nothing of it was written"
            )
        sinks = self._sinks_of(batch)
        if not sinks:
            return  # every sink of this lane has these rows already
        for token in batch.tokens:
            for sink in sinks:
                place = (sink, token.partition)
                if place not in self._expected or self._expected[place] != token.old:
                    raise ConservationError(
                        f"flow {self._flow!r}: a batch came out of order in partition"
                        f" {token.partition!r}. It was not written"
                    )
                self._expected[place] = token.new
        group.add(self.session.pack(batch), sinks)

    def _sinks_of(self, batch: Batch[Any]) -> Own:
        wanted = self._follower.sinks_of(batch)
        own = self._own.get(wanted)
        if own is None:
            own = tuple(i for i, number in enumerate(self._sinks) if number in wanted)
            self._own[wanted] = own
        return own

    async def _commit(self, group: Group, completes: Sequence[CheckpointKey]) -> None:
        """One group, tried until it is in or the policy gives up."""
        steps = self._steps(group, completes)
        work = [(sink, group.batches_of(sink)) for sink in range(len(self._sinks))]
        batches = [(sink, of_sink) for sink, of_sink in work if of_sink]
        attempts = Attempts(self._retry)
        while True:
            started = monotonic()
            try:
                transaction = self._transaction(batches, steps, started)
                if self.session.uncancellable:
                    await finish(transaction, on_cancel=self.session.interrupt)
                else:
                    await transaction
                return
            except CommitInDoubtError as doubt:
                if await self._is_in(steps, attempts, doubt):
                    written = sum(len(one.rows) for _, of_sink in batches for one in of_sink)
                    self._note(steps, written, started)
                    return
            except TransientError as error:
                await self._pause("writing", attempts, error)
            except EtlError as error:
                # A newer run drops the staging table under an older one, say: then what failed
                # here is only the consequence.
                if not isinstance(error, FencedError) and await self._is_overtaken(steps):
                    raise self._fenced() from error
                raise

    def _note(self, steps: Sequence[Advance], written: int, started: float) -> None:
        """A transaction is in."""
        for step in steps:
            found = self.checkpoints[step.key]
            self.checkpoints[step.key] = replace(
                found, position=step.new, complete=step.complete, rows=found.rows + step.rows
            )
        if written:
            self.rows_written += written
            self.transactions += 1
            self._on_commit(self._flow, written, self.rows_written, monotonic() - started)

    async def _transaction(
        self,
        batches: Sequence[tuple[int, Sequence[Batch[Any]]]],
        steps: Sequence[Advance],
        started: float,
    ) -> None:
        session = self.session
        written = 0
        try:
            await session.begin()
            failpoints.hit("lane.after_begin")
            if batches:
                for sink, of_sink in batches:
                    written += await session.write(sink, of_sink)
                failpoints.hit("lane.after_write")
            await session.advance(steps)
            failpoints.hit("lane.after_checkpoint")
            failpoints.hit_after_send("lane.commit_sent")

            async def commit() -> None:
                await session.commit()
                # In the same piece: a cancelled run must still report what is in.
                self._note(steps, written, started)

            # A cancelled COMMIT says nothing about the data, so it is never cut.
            await finish(commit())
            failpoints.hit("lane.after_commit")
        except CommitInDoubtError:
            raise
        except BaseException:
            await finish(session.rollback())
            raise

    def _steps(self, group: Group, completes: Sequence[CheckpointKey]) -> list[Advance]:
        steps: list[Advance] = []
        for place, key in self._keys.items():
            moved = place in group.moves
            if moved or key in completes:
                found = self.checkpoints[key]
                # A read that starts anew over a complete one has no move to make when it
                # found no rows: the old position then stays.
                new = group.moves[place] if moved else found.position
                steps.append(
                    Advance(
                        key=key,
                        epoch=found.epoch,
                        old=found.position,
                        new=new,
                        rows=group.rows_of.get(place, 0),
                        complete=key in completes,
                    )
                )
        return steps

    async def _is_in(
        self, steps: Sequence[Advance], attempts: Attempts, doubt: CommitInDoubtError
    ) -> bool:
        """Whether a transaction whose COMMIT was not answered is in.

        Reads with a lock, so it waits for the old transaction where that still lives.

        Raises:
            FencedError: The checkpoint is neither at the old nor at the new position.
        """
        await self._pause("asking for the outcome of a commit", attempts, doubt)
        while True:
            try:
                found = await finish(self.session.settle([step.key for step in steps]))
                break
            except TransientError as error:
                await self._pause("asking for the outcome of a commit", attempts, error)
        at_new = at_old = 0
        for step in steps:
            now = found.get(step.key)
            if now is None or now.epoch != step.epoch:
                raise self._fenced() from doubt
            at_new += self._is_after(step, now)
            at_old += now.position == step.old
        if at_new == len(steps):
            return True
        if at_old == len(steps):
            return False
        raise self._fenced() from doubt

    async def _is_overtaken(self, steps: Sequence[Advance]) -> bool:
        """Whether a newer run has a checkpoint of these, as far as can be found out."""
        try:
            found = await finish(self.session.load([step.key for step in steps]))
        except EtlError:
            return False
        return any(step.key in found and found[step.key].epoch != step.epoch for step in steps)

    def _is_after(self, step: Advance, now: Checkpoint) -> bool:
        if now.position != step.new or now.complete != step.complete:
            return False
        # A read of everything may end where the last one ended: then the position says nothing.
        return step.old != step.new or now.rows == self.checkpoints[step.key].rows + step.rows

    async def _pause(self, what: str, attempts: Attempts, error: BaseException) -> None:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # It came while something that is not cut went on, which then failed: it stands.
            raise asyncio.CancelledError from error
        wait_s = attempts.next_wait_s()
        if wait_s is None:
            raise error
        self._on_retry(self._flow, what, attempts.failed, wait_s, error)
        await asyncio.sleep(wait_s)

    def _fenced(self) -> FencedError:
        return FencedError(
            f"flow {self._flow!r}: another run of this pipeline has taken over; this one stops and"
            " wrote nothing since"
        )
