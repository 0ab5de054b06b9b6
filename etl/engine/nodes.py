"""The tasks of a flow before its lane: the pump of a source, and the legs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from math import ceil
from time import monotonic
from typing import Any

from etl.batch import Batch, Position, Reject, Token, encode_position
from etl.connector import Reader
from etl.engine import failpoints
from etl.engine.channel import Channel, EndOfChannelError
from etl.engine.retry import Attempts
from etl.engine.segments import Follower, Route, Sinks, Take
from etl.engine.supervise import ends_the_program
from etl.errors import (
    ConservationError,
    DataError,
    OutOfMemoryError,
    RowTooLargeError,
    StageError,
    TransientError,
)
from etl.flow import Filter, FlatMap, Map, Stage
from etl.policy import COPIES_OF_A_ROW, MIB, Limits, Retry
from etl.rows import joined
from etl.stages import RowStep, fuse_batches, through_stage

_FAIR_S = 0.005
_PIECE_ROWS = 160
"""So many rows, their changes and what they are made of are fewer objects than the 700 at which
the garbage collector begins to look at them."""
_SIMPLE = frozenset({str, int, bool, type(None)})  # these always have a JSON form


class Breather:
    """Lets the loop run once in a while: a hand-over that never waits would starve it.

    Attributes:
        due: Monotonic time from which on this task has run for long without suspending here.
    """

    def __init__(self) -> None:
        self.due = monotonic() + _FAIR_S

    async def breathe(self) -> None:
        """Let the others run."""
        await asyncio.sleep(0)
        self.due = monotonic() + _FAIR_S


class HeavyRows:
    """What a run may do with batches that are large for a channel's share of the memory.

    They take turns over all flows, so that one is under way at a time. Whoever has the turn
    waits only for what comes after it in its own flow, which waits for no turn.
    """

    def __init__(self, limits: Limits) -> None:
        self.turn = asyncio.Lock()
        self._limits = limits

    def check(self, where: str, batch: Batch[Any]) -> None:
        """Refuse a row that the limit cannot hold.

        Raises:
            RowTooLargeError: Names the row by its position, and the limit that it needs.
        """
        if batch.nbytes <= self._limits.row_bytes:
            return
        limits, memory = self._limits, self._limits.memory_bytes
        needed = COPIES_OF_A_ROW * limits.processes * batch.nbytes + limits.workers_bytes
        each = f" in each of {limits.processes} processes" if limits.processes > 1 else ""
        at = "" if batch.position is None else f" at position {encode_position(batch.position)}"
        raise RowTooLargeError(
            f"{where}: the row{at} takes {batch.nbytes / MIB:.1f} MiB, and {COPIES_OF_A_ROW} times"
            f" that{each} must fit into the memory limit, which is {memory / MIB:.3g} MiB. It was"
            " not written and the checkpoint did not move past the rows before it; raise the limit"
            f" to {ceil(needed / MIB)} MiB or more (--memory, Limits(memory=))"
        )


class _Drained(Exception):  # a way out of the read, not an error
    """Raised in ``emit`` to end a read between two batches."""


class Pump:
    """Drives one reader in one task; gives its batches tokens and hands them on.

    It reads one partition after the other; pumps of several lanes share what is to be read.

    A drain ends the read between two batches, or interrupts it while it waits for the
    database; a batch that was half read is dropped, because it had no position yet.

    Attributes:
        rows: Rows read so far.
        nbytes: Their approximate size.
        exhausted: The source has no more rows.
    """

    def __init__(
        self,
        *,
        flow: str,
        reader: Reader[Any],
        take: Take,
        steps: Sequence[RowStep],
        steps_left: int,
        sets_aside: bool,
        pack: Callable[[Batch[Any]], Batch[Any]],
        out: Channel[Batch[Any]],
        heavy: HeavyRows,
        retry: Retry,
        on_retry: Callable[[str, str, int, float, BaseException], None],
    ) -> None:
        """Make a pump.

        Args:
            take: What to read; other pumps may share it.
            pack: Brings what the steps made into the form that it waits in.
        """
        self.rows = 0
        self.nbytes = 0
        self.exhausted = False
        self._flow = flow
        self._where = f"source of flow {flow!r}"
        self._take = take
        self._partition = ""
        self._reader = reader
        self._last: Position | None = None
        self._until: Position | None = None
        self._run_rows = fuse_batches(steps, sets_aside=sets_aside, steps_left=steps_left)
        self._changes_rows = bool(steps)
        self._pack = pack
        self._out = out
        self._heavy = heavy
        self._retry = retry
        self._on_retry = on_retry
        self._seq = 0
        self._unsettled = False
        self._draining = False
        self._reading = False
        self._interrupted = False  # the drain has cancelled the read
        self._task: asyncio.Task[Any] | None = None
        self._breather = Breather()
        self._attempts = Attempts(retry)

    def request_drain(self) -> None:
        """Stop reading soon; what was handed on is still committed."""
        if self._draining:
            return
        self._draining = True
        # Rows handed on without a position are owed one: such a read goes on to its next batch.
        if self._reading and not self._unsettled and self._task is not None:
            self._interrupted = True
            self._task.cancel()

    async def run(self) -> None:
        """Read to the end, or to a drain; then close the channel cleanly."""
        self._task = asyncio.current_task()
        try:
            while (route := await self._take()) is not None:
                await self._follow(route)
            self.exhausted = True
        except _Drained:
            pass
        except asyncio.CancelledError:
            task = self._task
            if not (self._interrupted and task is not None and task.cancelling() == 1):
                raise  # a real cancellation, or both at once
            task.uncancel()
        finally:
            self._reading = False
        self._out.close()

    async def _follow(self, route: Route) -> None:
        """Read one partition."""
        self._partition, self._last, self._seq = route.partition, route.after, 0
        for segment in route.segments:
            await self._read(segment.until)
            if segment.until is not None:
                await self._reach(segment.until)

    async def _read(self, until: Position | None) -> None:
        """Read one segment to its end."""
        self._until = until
        await self._read_with_retries(until)
        if self._interrupted:
            raise _Drained  # a read that swallowed its cancellation has not seen the end
        if self._unsettled:
            raise ConservationError(
                f"{self._where} ended with rows but without a position for them; give its last"
                " Batch a position=. They were not written"
            )

    async def _reach(self, cut: Position) -> None:
        """Be exactly at the end of a segment, also where its last row is gone by now."""
        self._until = None
        if self._last == cut:
            return
        if self._last is not None and (await self._reader.order([self._last, cut]))[0] == cut:
            raise self._overshot()
        await self._emit(Batch([], position=cut))

    def _overshot(self) -> ConservationError:
        return ConservationError(
            f"{self._where} read past the position until which it was asked to, so a sink that"
            " stands there would get rows twice. That sink got none of them; let its read() end at"
            " until="
        )

    async def _read_with_retries(self, until: Position | None) -> None:
        while not self._draining:
            self._reading = True
            try:
                await self._reader.pump(self._last, until, self._emit)
            except (MemoryError, OutOfMemoryError) as error:
                place = "in the first rows"
                if self._last is not None:
                    place = f"in the rows after position {encode_position(self._last)}"
                raise OutOfMemoryError(f"{self._where}, {place}") from error
            except TransientError as error:
                if self._draining and not self._unsettled:
                    break  # what was read stands; nobody waits for more
                # Rows handed on without a position yet would come a second time.
                again = self._reader.resumable and not self._unsettled
                wait_s = self._attempts.next_wait_s() if again else None
                if wait_s is None:
                    raise
                self._on_retry(self._flow, "reading", self._attempts.failed, wait_s, error)
                await asyncio.sleep(wait_s)
            else:
                return
        raise _Drained

    async def _emit(self, batch: Batch[Any]) -> None:
        self._reading = False
        if batch.rows or batch.position is not None:  # else there is nothing to hand on
            await self._hand_on(batch)
        if monotonic() > self._breather.due:
            await self._breather.breathe()
        if self._draining and not self._unsettled:
            raise _Drained
        self._reading = not self._draining  # draining: go on to the next position

    async def _hand_on(self, batch: Batch[Any]) -> None:
        if self._until is not None and self._last == self._until and batch.rows:
            raise self._overshot()
        if batch.position is None:
            batch = Batch(batch.rows, pieces_of=(self._partition,), rejects=batch.rejects)
            self._unsettled = True
        else:
            self._check_position(batch)
            token = Token(self._partition, self._seq, self._last, batch.position)
            self._seq += 1
            if batch.tokens or batch.pieces_of:  # given before: another run may still have it
                batch = Batch(
                    batch.rows,
                    position=batch.position,
                    rejects=batch.rejects,
                    nbytes=batch.nbytes,
                )
            batch.tokens = (token,)
        failpoints.hit("source.after_read")
        out = batch
        nbytes = weight = batch.nbytes
        if self._changes_rows:
            try:
                out = self._worked(batch)
            except (SystemExit, KeyboardInterrupt, GeneratorExit) as error:
                # Here, because a driver may hand on rows in a task of its own, without a guard.
                raise ends_the_program(f"a row function of the {self._where}", error) from error
            weight = out.nbytes
            nbytes = max(nbytes, weight)

        if not self._out.is_heavy(nbytes):
            if self._out.put_nowait(out, weight):
                self._accepted(batch)
            else:
                await self._out.put(out, weight, partial(self._accepted, batch))
            return
        self._heavy.check(self._where, batch)
        async with self._heavy.turn:
            await self._out.put(out, nbytes, partial(self._accepted, batch))

    def _accepted(self, batch: Batch[Any]) -> None:
        """A batch is in the channel.

        Called at this very moment: a driver may end a read that waits here because its connection
        was lost, and the next try must go on after what is in the channel.
        """
        self.rows += len(batch.rows) + len(batch.rejects)
        self.nbytes += batch.nbytes
        if batch.position is not None:
            self._last = batch.position
            self._unsettled = False
            if self._attempts.failed:
                self._attempts.succeeded()

    def _worked(self, batch: Batch[Any]) -> Batch[Any]:
        """The batch after the steps, packed.

        Piece by piece: what functions make of some rows then dies before the garbage collector
        has looked at it, and never waits in a channel. Where a piece fails for good, the whole
        batch is done again, which says which row of the batch it was.
        """
        rows = batch.rows
        done: list[Sequence[Any]] = []
        rejects: list[Reject] = []
        for start in range(0, len(rows), _PIECE_ROWS):
            try:
                out = self._run_rows(Batch(rows[start : start + _PIECE_ROWS], nbytes=0))
            except Exception:
                self._run_rows(batch)
                raise  # it failed once and not again
            rejects += (replace(one, ordinal=start + one.ordinal) for one in out.rejects)
            try:
                done.append(self._pack(out).rows)
            except DataError:
                # What only the table refuses is the lane's to judge.
                return self._run_rows(batch)
        return batch.derive(joined(done), rejects=rejects)

    def _check_position(self, batch: Batch[Any]) -> None:
        position: Any = batch.position
        if position.__class__ is not tuple or not _SIMPLE.issuperset(map(type, position)):
            try:
                encode_position(position)
                if not isinstance(position, tuple):
                    raise TypeError(f"it is a {type(position).__name__}")
            except (TypeError, ValueError) as error:
                raise StageError(
                    f"{self._where} gave a position that cannot be kept: {error}. A position is a"
                    " tuple of texts, numbers and None. Its batch was not written"
                ) from error
        if batch.rows and batch.position == self._last:
            raise ConservationError(
                f"{self._where} gave rows without moving its position, so a restart would skip"
                " them. Give each batch the position after its last row. They were not written"
            )


def inline_chain(
    steps: Sequence[RowStep | Stage[Any, Any]],
    batches: AsyncGenerator[Batch[Any], None],
    *,
    sets_aside: bool = False,
    steps_left: int = 0,
) -> AsyncGenerator[Batch[Any], None]:
    """Row functions and stages as one chain of generators, neighbours fused."""
    functions: list[RowStep] = []
    for step in steps:
        if isinstance(step, Map | Filter | FlatMap):
            functions.append(step)
            continue
        if functions:
            run = fuse_batches(functions, sets_aside=sets_aside, steps_left=steps_left)
            batches = _over_rows(run, batches)
            steps_left -= len(functions)
            functions = []
        batches = through_stage(step, batches)
        steps_left -= 1
    if not functions:
        return batches
    run = fuse_batches(functions, sets_aside=sets_aside, steps_left=steps_left)
    return _over_rows(run, batches)


async def _over_rows(
    run: Callable[[Batch[Any]], Batch[Any]], batches: AsyncGenerator[Batch[Any], None]
) -> AsyncGenerator[Batch[Any], None]:
    async with aclosing(batches):
        async for batch in batches:
            yield run(batch)
            del batch


class _Runs:
    """Cuts what comes out of a channel into runs that stages may look at together.

    A run is for the same sinks, and where the source is read in key ranges, of one of them.
    """

    def __init__(self, source: Channel[Batch[Any]], routes: Mapping[str, Route]) -> None:
        self._source = source
        self._follower = Follower(routes)
        self._next: tuple[Batch[Any], tuple[Sinks, str | None]] | None = None

    async def has_more(self) -> bool:
        """Whether another run begins; waits for its first batch."""
        if self._next is None:
            await self._take()
        return self._next is not None

    async def batches(self) -> AsyncGenerator[Batch[Any], None]:
        """One run; none where there is nothing at all."""
        run = self._next[1] if self._next is not None else None
        while self._next is not None and self._next[1] == run:
            batch, self._next = self._next[0], None
            yield batch
            del batch  # not held while the next is waited for
            await self._take()

    async def _take(self) -> None:
        try:
            batch = await self._source.get()
        except EndOfChannelError:
            return
        sinks = self._follower.sinks_of(batch)
        self._next = (batch, (sinks, self._follower.key_range))


async def run_inline(
    steps: Sequence[RowStep | Stage[Any, Any]],
    source: Channel[Batch[Any]],
    out: Channel[Batch[Any]],
    routes: Mapping[str, Route],
    *,
    sets_aside: bool = False,
    steps_left: int = 0,
) -> None:
    """The task of a leg of row functions and stages.

    Where the sinks change for which the batches are, the stages end and begin anew: one that
    merges batches would otherwise mix rows that a sink wants with rows that it has. So they do
    between key ranges, which makes the result the same for any number of lanes.
    """
    breather = Breather()
    runs = _Runs(source, routes)
    is_first = True  # stages begin also where there is nothing at all
    while await runs.has_more() or is_first:
        is_first = False
        chain = inline_chain(steps, runs.batches(), sets_aside=sets_aside, steps_left=steps_left)
        async with aclosing(chain) as batches:
            async for batch in batches:
                failpoints.hit("stage.before_emit")
                await out.put(batch, batch.nbytes)
                failpoints.hit("stage.after_emit")
                del batch
                if monotonic() > breather.due:
                    await breather.breathe()
    out.close()


async def run_fan_out(source: Channel[Batch[Any]], outs: Sequence[Channel[Batch[Any]]]) -> None:
    """The task that hands each batch to every lane; the slowest of them sets the pace."""
    breather = Breather()
    async with aclosing(source.drain_items()) as batches:
        async for batch in batches:
            for out in outs:
                await out.put(batch, batch.nbytes)
            del batch
            if monotonic() > breather.due:
                await breather.breathe()
    for out in outs:
        out.close()
