"""The lane: groups batches, and writes rows and positions in one transaction.

Invariants (a run may die anywhere, and these hold in the target):

- Atomic: the rows of a group and its positions change in one transaction.
- Chain: a commit moves a position exactly from the last committed one to the next; the old
  position and the epoch are in the predicate of the update.
- Fence: after a take-over no older run can commit; both need the same checkpoint row.
- No false end: a read is marked complete only after each channel before the lane closed cleanly.
- Bad rows that are kept change in the same transaction as the position that covers them.

So at any moment the target is the effect of the source up to the position.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import partial
from time import monotonic
from typing import Any, TypeAlias

from etl.batch import MAIN_PARTITION, Batch, OpenPieces, Position, Reject
from etl.connector import Advance, Checkpoint, CheckpointKey, NewReject, Session
from etl.engine import failpoints
from etl.engine.bad_rows import BadRows
from etl.engine.channel import Channel, EndOfChannelError
from etl.engine.retry import Attempts
from etl.engine.segments import Follower, Route, Sinks
from etl.engine.sift import Refused, write_sifted
from etl.engine.supervise import finish
from etl.errors import (
    CommitInDoubtError,
    ConservationError,
    DataError,
    EtlError,
    FencedError,
    SchemaMismatchError,
    TargetWentBackError,
    TransientError,
)
from etl.policy import Limits, Retry
from etl.stages import WRITE_STEP, reject_of

_IDLE_COMMIT_S = 5.0
_WARY_GROUPS = 16
"""Groups that are written in pieces after one that had a bad row: where bad rows come, more come,
and a group that is written whole must be written twice when it has one."""


class Care(IntEnum):
    """How a group is written: whole; in pieces that can be taken back; the same, with every
    constraint checked at once, where one was found broken by the commit only."""

    WHOLE = 0
    PIECES = 1
    STRICT = 2


_NOWHERE = ("no position",)  # of a partition that is not the lane's; equal to none

Own: TypeAlias = "tuple[int, ...]"  # the lane's sinks, by their number in it


class Group:
    """Batches that one transaction will write: whole token groups, complete in memory."""

    def __init__(self) -> None:
        self.batches: list[tuple[Batch[Any], Own]] = []  # each with the sinks that it is for
        self.rows = 0
        self.rejects = 0
        self.is_suspect = False  # a row of it is known to be bad
        self.nbytes = 0
        self.moves: dict[tuple[int, str], Position] = {}  # (sink, partition) -> position after it
        self.rows_of: defaultdict[tuple[int, str], int] = defaultdict(int)
        self._open_pieces = OpenPieces()
        self.since = monotonic()

    @property
    def is_whole(self) -> bool:
        """No piece waits for the token that covers it."""
        return not self._open_pieces.partitions

    def add(self, batch: Batch[Any], sinks: Own = (0,)) -> None:
        """Take one more batch, for some of the lane's sinks."""
        self.batches.append((batch, sinks))
        if batch.rejects:
            self.rejects += len(batch.rejects)
        self.nbytes += batch.nbytes
        # Tokens are unpacked: an attribute of a named tuple is found anew each time.
        for partition, _, _, new in batch.tokens:
            if new is not None:
                for sink in sinks:
                    self.moves[sink, partition] = new
        if rows := len(batch.rows):
            self.rows += rows
            partition = _partition(batch)
            for sink in sinks:
                self.rows_of[sink, partition] += rows
        if batch.pieces_of or self._open_pieces.partitions:
            self._open_pieces.add(batch)

    def batches_of(self, sink: int) -> list[Batch[Any]]:
        """Those with rows for one sink."""
        return [batch for batch, sinks in self.batches if sink in sinks and batch.rows]


def _partition(batch: Batch[Any]) -> str:
    """The partition whose rows a batch has; of a merge, the last one."""
    return batch.tokens[-1][0] if batch.tokens else batch.pieces_of[0]


@dataclass(slots=True)
class _Attempt:
    """One try to write a group.

    Attributes:
        batches: Those with rows, of each sink.
        given: Steps that stand instead of those of the group.
        refused: What the table of each sink refused.
        at_commit: Everything was written; what fails then is the commit.
        is_in: It is committed, for certain.
    """

    group: Group
    care: Care
    completes: Sequence[CheckpointKey]
    batches: Mapping[int, Sequence[Batch[Any]]]
    given: Sequence[Advance] = ()
    started: float = field(default_factory=monotonic)
    written: int = 0
    refused: dict[int, list[Refused]] = field(default_factory=dict[int, list[Refused]])
    steps: list[Advance] = field(default_factory=list[Advance])
    new_rejects: list[NewReject] = field(default_factory=list[NewReject])
    at_commit: bool = False
    is_in: bool = False

    def refused_of(self, sink: int) -> dict[int, list[Refused]]:
        """What a table refused, by the batch (its identity)."""
        found: dict[int, list[Refused]] = {}
        for one in self.refused.get(sink, ()):
            found.setdefault(id(self.batches[sink][one.batch]), []).append(one)
        return found

    @property
    def counts(self) -> list[tuple[int, int]]:
        """Of each batch its rows, the bad ones included, and how many are bad."""
        places: dict[int, set[int]] = {}
        for sink in self.refused:
            for batch, refused in self.refused_of(sink).items():
                places.setdefault(batch, set()).update(one.ordinal for one in refused)
        return [
            (
                len(batch.rows) + len(batch.rejects),
                len(places.get(id(batch), ())) + len(batch.rejects),
            )
            for batch, _ in self.group.batches
        ]


class Lane:
    """Writes one flow into its sinks of one target, one transaction at a time.

    Attributes:
        checkpoints: As they are committed by now. Lanes of other key ranges share them; each key
            is moved by one lane only.
        rows_written: Rows that the sinks took in this run.
        transactions: Commits with rows, good or bad.
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
        bad_rows: BadRows,
        forgets: Sequence[CheckpointKey],
        row_keys: Sequence[Sequence[str]],
        on_refused: Callable[[str, Sequence[NewReject]], None],
        on_commit: Callable[[str, int, int, float], None],
        on_retry: Callable[[str, str, int, float, BaseException], None],
        on_doubt: Callable[[str], None],
    ) -> None:
        """Make a lane.

        Args:
            sinks: The tables, by the number of the sink in the flow, in the session's order.
            checkpoints: As the take-over returned them.
            starts: Where each that may move begins in this run: its first token's ``old``.
            routes: How the partitions are read.
            completes: At a clean end: the keys to mark complete.
            forgets: Keys that are read from the beginning: their old rejects are read again.
            row_keys: Columns that may identify a row, the best ones first.
            on_doubt: Told where an abort ends before it is known whether a group is in.
        """
        self.rows_written = 0
        self.transactions = 0
        self.checkpoints = checkpoints
        self._flow = flow
        self._sinks = tuple(sinks)
        self.session = session
        tables = list(sinks.values())
        self._keys = {(tables.index(key.sink), key.partition): key for key in starts}
        self._expected = {place: starts[key] for place, key in self._keys.items()}
        self._routes = routes
        self._follower = Follower(routes)
        # Of partitions whose batches are all for the same sinks, which is nearly always so.
        self._own = {
            route.partition: self._numbers(route.segments[0].sinks)
            for route in routes.values()
            if len(route.segments) == 1
        }
        self._channel = channel
        self._limits = limits
        self._group_bytes = group_bytes
        self._retry = retry
        self._completes = completes
        self._bad_rows = bad_rows
        self._forgets = tuple(forgets)
        self._row_keys = row_keys
        self._wary = 0  # groups that are still to be written in pieces
        self._on_refused = on_refused
        self._on_commit = on_commit
        self._on_retry = on_retry
        self._on_doubt = on_doubt

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
            del batch  # a large row is not to be held twice, nor while the next is waited for
            await self._extend(group)
            if (
                group.rows
                or group.rejects
                or (group.moves and monotonic() - group.since > _IDLE_COMMIT_S)
            ):
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
        if not batch.tokens and not batch.pieces_of and batch.rows:
            raise ConservationError(
                f"flow {self._flow!r}: {len(batch.rows)} rows came without a token; a stage made a"
                " batch of its own. Use derive, merge or split. Nothing of it was written"
            )
        tokens = batch.tokens
        sinks = self._own.get(tokens[0][0]) if tokens else None
        if sinks is None:
            sinks = self._numbers(self._follower.sinks_of(batch))
        if not sinks:
            return  # every sink of this lane has these rows already
        expected = self._expected
        for partition, _, old, new in tokens:
            for sink in sinks:
                place = (sink, partition)
                if expected.get(place, _NOWHERE) != old:
                    raise ConservationError(
                        f"flow {self._flow!r}: a batch came out of order in partition"
                        f" {partition!r}. It was not written"
                    )
                expected[place] = new
        if batch.rejects and not self._bad_rows.sets_aside:
            raise self._bad_rows.refuse(batch.rejects[0])
        try:
            group.add(self.session.pack(batch), sinks)
        except DataError:
            if not self._bad_rows.sets_aside:
                raise
            group.is_suspect = True
            group.add(batch, sinks)  # as it is: the write finds the row

    def _numbers(self, wanted: Sinks) -> Own:
        """Those of the lane's sinks that are among a flow's."""
        return tuple(i for i, number in enumerate(self._sinks) if number in wanted)

    async def apply(self, steps: Sequence[Advance]) -> None:
        """Move checkpoints in a transaction of their own."""
        await self._commit(Group(), (), steps)

    async def _commit(
        self,
        group: Group,
        completes: Sequence[CheckpointKey],
        given: Sequence[Advance] = (),
    ) -> None:
        """One group, tried until it is in or the policy gives up."""
        work = {sink: group.batches_of(sink) for sink in range(len(self._sinks))}
        batches = {sink: of_sink for sink, of_sink in work.items() if of_sink}
        care = Care.PIECES if self._wary or group.is_suspect else Care.WHOLE
        attempts = Attempts(self._retry)
        while True:
            attempt = _Attempt(group, care, completes, batches, given)
            try:
                transaction = self._transaction(attempt)
                if self.session.uncancellable:
                    await finish(transaction, on_cancel=self.session.interrupt)
                else:
                    await transaction
                return
            except CommitInDoubtError as doubt:
                if await self._is_in(attempt.steps, attempts, doubt):
                    self._note(attempt)
                    return
            except TransientError as error:
                await self._pause("writing", attempts, error)
            except EtlError as error:
                # A newer run drops the staging table under an older one, say: then what failed
                # here is only the consequence.
                if not isinstance(error, FencedError):
                    await self._check_unmoved(error)
                if not self._looks_closer(error, attempt):
                    raise
                care = Care.STRICT if attempt.at_commit else Care.PIECES

    def _looks_closer(self, error: EtlError, attempt: _Attempt) -> bool:
        """Whether the group is tried again to find the rows that are to blame."""
        if not self._bad_rows.sets_aside or not isinstance(error, DataError):
            return False
        return attempt.care is Care.WHOLE or (attempt.at_commit and attempt.care < Care.STRICT)

    def _note(self, attempt: _Attempt) -> None:
        """A transaction is in."""
        attempt.is_in = True
        for step in attempt.steps:
            if step.removes:
                del self.checkpoints[step.key]
                continue
            found = self.checkpoints[step.key]
            self.checkpoints[step.key] = replace(
                found, position=step.new, complete=step.complete, rows=found.rows + step.rows
            )
        self._forgets = ()
        if attempt.care is not Care.WHOLE:
            self._wary = _WARY_GROUPS if attempt.refused else max(0, self._wary - 1)
        if attempt.written or attempt.new_rejects:
            self.transactions += 1
        if self._bad_rows.sets_aside:
            self._bad_rows.count(attempt.counts, len(attempt.new_rejects))
        if attempt.written:
            self.rows_written += attempt.written
            seconds = monotonic() - attempt.started
            self._on_commit(self._flow, attempt.written, self.rows_written, seconds)
        if attempt.new_rejects:
            self._on_refused(self._flow, attempt.new_rejects)

    async def _transaction(self, attempt: _Attempt) -> None:
        session = self.session
        try:
            await session.begin(strict=attempt.care is Care.STRICT)
            failpoints.hit("lane.after_begin")
            if attempt.batches:
                await self._write(attempt)
                failpoints.hit("lane.after_write")
            attempt.steps = list(attempt.given) or self._steps(attempt)
            await self._set_aside(attempt)
            failpoints.hit("lane.after_rejects")
            await session.advance(attempt.steps)
            failpoints.hit("lane.after_checkpoint")
            failpoints.hit_after_send("lane.commit_sent")
            attempt.at_commit = True

            async def commit() -> None:
                await session.commit()
                # In the same piece: a cancelled run must still report what is in.
                self._note(attempt)

            # A cancelled COMMIT says nothing about the data, so it is cut only where no answer
            # came within the grace of an abort.
            try:
                await finish(commit(), grace_s=self._limits.abort_grace_s)
            except asyncio.CancelledError:
                if not attempt.is_in:
                    self._on_doubt(self._flow)
                raise
            failpoints.hit("lane.after_commit")
        except CommitInDoubtError:
            raise
        except BaseException:
            await finish(session.rollback())
            raise

    async def _write(self, attempt: _Attempt) -> None:
        for sink, batches in attempt.batches.items():
            if attempt.care is Care.WHOLE:
                attempt.written += await self.session.write(sink, batches)
                continue
            judge = partial(self._judge, attempt, sink)
            written, refused = await write_sifted(self.session, sink, batches, judge)
            attempt.written += written
            if refused:
                attempt.refused[sink] = refused

    async def _judge(self, attempt: _Attempt, sink: int, refused: list[Refused]) -> None:
        """Judge a group of which only some bad rows are known: more of them make it no better."""
        attempt.refused[sink] = refused
        last = refused[-1]
        reject = reject_of(last.error, last.row, last.ordinal, WRITE_STEP, 0)
        await self._bad_rows.judge(attempt.counts, reject)

    async def _set_aside(self, attempt: _Attempt) -> None:
        """Judge the bad rows of a group and keep them, beside the good ones.

        Raises:
            TooManyRejectsError: The policy does not allow so many.
        """
        if self._forgets:
            await self.session.rejects.forget(self._forgets)
        if not attempt.group.rejects and not attempt.refused:
            return
        attempt.new_rejects = self._new_rejects(attempt)
        await self._bad_rows.judge(attempt.counts, attempt.new_rejects[-1].reject)
        if self._bad_rows.keeps:
            await self.session.rejects.add(attempt.new_rejects)

    def _new_rejects(self, attempt: _Attempt) -> list[NewReject]:
        """The bad rows of a group, those of each sink, in the order of its batches."""
        found: list[NewReject] = []
        for sink in range(len(self._sinks)):
            refused = attempt.refused_of(sink)
            for batch, sinks in attempt.group.batches:
                if sink not in sinks:
                    continue
                rejects = [
                    *batch.rejects,
                    *(
                        reject_of(one.error, one.row, one.ordinal, WRITE_STEP, 0)
                        for one in refused.get(id(batch), ())
                    ),
                ]
                found += [self._new_reject(attempt.group, batch, sink, one) for one in rejects]
        return found

    def _new_reject(self, group: Group, batch: Batch[Any], sink: int, reject: Reject) -> NewReject:
        place = (sink, _partition(batch))
        key = self._keys[place]
        if self._routes[key.partition].is_key_range:
            # Its checkpoint goes when all ranges are done, and the next cut may be another one.
            key = replace(key, partition=MAIN_PARTITION)
        return NewReject(
            key=key,
            position=batch.tokens[-1].new if batch.tokens else group.moves.get(place),
            reject=reject,
            row_key=key_of(reject.row, self._row_keys),
        )

    def _steps(self, attempt: _Attempt) -> list[Advance]:
        group, completes = attempt.group, attempt.completes
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
                        rows=group.rows_of.get(place, 0) - self._lost(attempt, *place),
                        complete=key in completes,
                    )
                )
        return steps

    def _lost(self, attempt: _Attempt, sink: int, partition: str) -> int:
        """Rows of a partition that the table of a sink refused."""
        refused = attempt.refused.get(sink, ())
        return sum(_partition(attempt.batches[sink][one.batch]) == partition for one in refused)

    async def _is_in(
        self, steps: Sequence[Advance], attempts: Attempts, doubt: CommitInDoubtError
    ) -> bool:
        """Whether a transaction whose COMMIT was not answered is in.

        Reads with a lock, so it waits for the old transaction where that still lives.

        Where a checkpoint is neither at the old nor at the new position, the next try says why.

        Raises:
            FencedError: A newer run took over.
        """
        grace_s = self._limits.abort_grace_s
        try:
            await self._pause("asking for the outcome of a commit", attempts, doubt)
            while True:
                try:
                    asking = self.session.settle([step.key for step in steps])
                    found = await finish(asking, grace_s=grace_s)
                    break
                except TransientError as error:
                    await self._pause("asking for the outcome of a commit", attempts, error)
        except asyncio.CancelledError:
            self._on_doubt(self._flow)
            raise
        at_new = 0
        for step in steps:
            now = found.get(step.key)
            if now is None and step.removes:
                at_new += 1
                continue
            if now is not None and now.epoch > step.epoch:
                raise self._fenced() from doubt
            at_new += now is not None and self._is_after(step, now)
        return at_new == len(steps)

    async def _check_unmoved(self, error: EtlError) -> None:
        """Look whether an error comes of checkpoints that moved, as far as can be found out.

        Raises:
            FencedError: A newer run has one of the lane's.
            TargetWentBackError: They are in an earlier state, so what was made since is gone.
        """
        found: Mapping[CheckpointKey, Checkpoint]
        try:
            found = await finish(
                self.session.load(list(self.checkpoints)), grace_s=self._limits.abort_grace_s
            )
        except SchemaMismatchError:
            found = {}  # not even etl's tables are there
        except EtlError:
            return
        if any(one.epoch > self.checkpoints[key].epoch for key, one in found.items()):
            raise self._fenced() from error
        if not found or any(one.epoch < self.checkpoints[key].epoch for key, one in found.items()):
            raise TargetWentBackError(f"flow {self._flow!r}") from error

    def _is_after(self, step: Advance, now: Checkpoint) -> bool:
        if step.removes or now.epoch != step.epoch:
            return False
        if now.position != step.new or now.complete != step.complete:
            return False
        # A read of everything may end where the last one ended: then the position says nothing.
        return step.old != step.new or now.rows == self.checkpoints[step.key].rows + step.rows

    async def _pause(self, what: str, attempts: Attempts, error: TransientError) -> None:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # It came while something that is not cut went on, which then failed: it stands.
            raise asyncio.CancelledError from error
        wait_s = None if error.is_final else attempts.next_wait_s()
        if wait_s is None:
            raise error
        self._on_retry(self._flow, what, attempts.failed, wait_s, error)
        await asyncio.sleep(wait_s)

    def _fenced(self) -> FencedError:
        return FencedError(
            f"flow {self._flow!r}: another run of this pipeline has taken over; this one stops and"
            " wrote nothing since"
        )


def doubt_note(limits: Limits) -> str:
    """What a person is told of a flow whose last transaction an abort did not see the end of."""
    return (
        f"the target did not end the last transaction within {limits.abort_grace_s:g} s of the"
        " abort (Limits(abort_grace_s=...)), so it is not known whether it is in, as a whole, or"
        " not at all. The checkpoint tells: the next run looks there, and goes on exactly"
    )


def key_of(row: Any, choices: Sequence[Sequence[str]]) -> Mapping[str, Any] | None:
    """What identifies a row, for a person: the values of the first key that it has."""
    for names in choices:
        try:
            found: dict[str, Any] = (
                {name: row[name] for name in names}
                if isinstance(row, Mapping)
                else {name: getattr(row, name) for name in names}
            )
        except Exception:  # it lacks one, or a value that Python cannot hold
            continue
        if found:
            return found
    return None
