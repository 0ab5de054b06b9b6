"""Sends rejected rows again: through today's steps, from the one that refused them, into the sink.

A row is sent exactly once: its reject is deleted in the transaction that writes what became of it,
and deleting it fails where somebody else has done so. A row that is refused again stays, with the
new reason. Positions are not touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any, cast

from etl.batch import MAIN_PARTITION, Batch, Reject, Token
from etl.connector import RunInfo, Session, Sink, StoredReject
from etl.engine import failpoints
from etl.engine.arrows import over_tables
from etl.engine.calls import over_calls
from etl.engine.lookups import load_lookups
from etl.engine.nodes import inline_chain
from etl.engine.plan import FlowPlan, Plan, make_legs, step_label
from etl.engine.retry import Attempts
from etl.engine.supervise import finish
from etl.errors import (
    CommitInDoubtError,
    ConfigError,
    ConservationError,
    DataError,
    StageError,
    TransientError,
    is_about_a_row,
)
from etl.flow import MapArrow, MapBatches, Merged, Source, Stage, Step
from etl.policy import Limits, Retry
from etl.stages import READ_STEP, WRITE_STEP, RowStep, label_of, reject_of

_CHUNK = 100
"""Rejects of one transaction."""


@dataclass(slots=True, kw_only=True)
class Redone:
    """What became of the rejects of one sink.

    Attributes:
        settled: Rejects that are gone: their rows are written, or today's steps drop them.
        rows_written: Rows that came out of them.
        refused: Rejects that stay.
    """

    flow: str
    sink: str
    settled: int = 0
    rows_written: int = 0
    refused: int = 0


@dataclass(slots=True)
class _Sent:
    """A reject that went through the steps: its rows, or what it was refused for."""

    stored: StoredReject
    rows: Sequence[Any] = ()
    again: Reject | None = None


@dataclass(slots=True)
class _Chunk:
    """One transaction's rejects."""

    sent: list[_Sent]
    strict: bool = False
    done: Redone = field(default_factory=lambda: Redone(flow="", sink=""))


class _GoneError(Exception):
    """Another program has settled a reject meanwhile."""


async def redo(plan: Plan, info: RunInfo, *, retry: Retry, module: str) -> list[Redone]:
    """Send all rejects of a pipeline again, but for those of loads that are not published.

    Holds the pipeline's lock in every target.

    Args:
        module: The module of the pipeline's file, where classes of stored rows are looked for.

    Raises:
        AlreadyRunningError: A run of the pipeline is active.
        StageError: A step failed with an error that is not about a row.
    """
    done: list[Redone] = []
    async with AsyncExitStack() as stack:
        opened = {
            target: await stack.enter_async_context(target.open(info, sessions=sessions))
            for target, sessions in plan.targets.items()
        }
        for flow in plan.flows:
            steps = _FlowSteps(flow, info, plan.limits, module)
            for lane in flow.lanes:
                # What is published is in the table itself, and so the row goes there.
                sinks = [_into_table(sink) for sink in lane.sinks.values()]
                session = await opened[lane.target].session(flow.name, sinks)
                for number in range(len(sinks)):
                    one = _SinkRedo(flow, session, number, sinks, steps, retry)
                    done.append(await one.run())
    return done


def _into_table(sink: Sink[Any]) -> Sink[Any]:
    if sink.mode != "replace":
        return sink
    return Sink(target=sink.target, table=sink.table, mode="append", create=False)


class _FlowSteps:
    """The steps of a flow, for rows that enter in the middle."""

    def __init__(self, flow: FlowPlan, info: RunInfo, limits: Limits, module: str) -> None:
        self._flow = flow
        self._info = info
        self._limits = limits
        self._module = module
        self._paths: dict[str, list[Step]] = {}

    async def send(self, stored: StoredReject) -> _Sent:
        """Send one reject through the steps that it has left."""
        try:
            return _Sent(stored, await self._rows(stored))
        except (ConservationError, TransientError, ConfigError):
            raise
        except (DataError, StageError) as error:
            cause = error if isinstance(error, DataError) else error.__cause__ or error
            if not isinstance(cause, Exception) or not is_about_a_row(cause):
                raise
            again = reject_of(cause, None, stored.ordinal, stored.step, stored.steps_left)
            return _Sent(stored, again=again)

    async def _rows(self, stored: StoredReject) -> Sequence[Any]:
        row = stored.restore(self._module)
        if stored.step == WRITE_STEP:
            return [row]
        steps = await self._path(stored.key.partition)
        if stored.step == READ_STEP:
            source = self._source(stored.key.partition)
            row = source.build(row)
        else:
            steps = _entered(steps, stored)
        batch = Batch([row], tokens=(Token(MAIN_PARTITION, 0, None, (1,)),))
        return await _through(steps, batch)

    def _source(self, partition: str) -> Source[Any]:
        for branch in self._flow.branches:
            if branch.partition == partition:
                return branch.source
        raise DataError(
            f"flow {self._flow.name!r} has no source {partition!r} any more",
            reason="the flow does not have its source any more",
        )

    async def _path(self, partition: str) -> list[Step]:
        self._source(partition)
        if partition not in self._paths:
            flow = self._flow.flow
            shared = flow.stream.steps if isinstance(flow.stream.origin, Merged) else ()
            steps = (*flow.branches[partition].steps, *shared)
            self._paths[partition] = await load_lookups(steps, self._info, self._limits)
        return self._paths[partition]


def _entered(steps: Sequence[Step], stored: StoredReject) -> list[Step]:
    """The steps from the one that refused a row on.

    Raises:
        DataError: It is not there any more, or there are several of its name.
    """
    labels = [_label(step) for step in steps]
    place = len(steps) - stored.steps_left
    if not (0 <= place < len(steps) and labels[place] == stored.step):
        if labels.count(stored.step) != 1:
            raise DataError(
                f"the step {stored.step!r}, which refused the row, is not in the flow any more",
                reason=f"the step {stored.step!r} is not in the flow any more",
            )
        place = labels.index(stored.step)
    return list(steps[place:])


def _label(step: Step) -> str:
    if isinstance(step, MapBatches | MapArrow):
        return step_label(step)
    return f"stage {step.name}" if isinstance(step, Stage) else label_of(cast("RowStep", step))


async def _through(steps: Sequence[Step], batch: Batch[Any]) -> list[Any]:
    async def one() -> AsyncGenerator[Batch[Any], None]:
        yield batch

    chain = one()
    for leg in make_legs(steps):
        if leg.arrow:
            chain = over_tables(leg.arrow, chain)
        elif leg.parallel is not None:
            chain = over_calls(leg.parallel, chain)
        else:
            inline = cast("Sequence[RowStep | Stage[Any, Any]]", leg.inline)
            chain = inline_chain(inline, chain)
    async with aclosing(chain) as results:
        return [row async for result in results for row in result.rows]


class _SinkRedo:
    """The rejects of one sink."""

    def __init__(
        self,
        flow: FlowPlan,
        session: Session,
        number: int,
        sinks: Sequence[Sink[Any]],
        steps: _FlowSteps,
        retry: Retry,
    ) -> None:
        self._flow = flow
        self._session = session
        self._number = number
        self._sinks = sinks
        self._steps = steps
        self._retry = retry

    async def run(self) -> Redone:
        """Chunk by chunk, in the order in which they were refused."""
        sink = self._sinks[self._number].table
        total = Redone(flow=self._flow.name, sink=sink)
        attempts = Attempts(self._retry)
        prepared = False
        strict = False
        after = 0
        while True:
            try:
                found = await self._read(sink, after)
                if not found:
                    return total
                if not prepared:
                    await self._session.prepare([None] * len(self._sinks), resumable=True)
                    prepared = True
                chunk = _Chunk([await self._steps.send(one) for one in found], strict)
                await self._write(chunk)
            except _GoneError:
                continue  # read again what is left
            except TransientError as error:
                wait_s = attempts.next_wait_s()
                if wait_s is None:
                    raise
                if isinstance(error, CommitInDoubtError):
                    await finish(self._session.settle([]))  # on a new connection
                await asyncio.sleep(wait_s)
                continue
            except DataError:
                if strict:
                    raise
                strict = True  # the commit found it: look at each row as it is written
                continue
            attempts.succeeded()
            strict = False
            after = found[-1].number
            total.settled += chunk.done.settled
            total.rows_written += chunk.done.rows_written
            total.refused += chunk.done.refused

    async def _read(self, sink: str, after: int) -> Sequence[StoredReject]:
        session = self._session
        try:
            await session.begin()
            return await session.rejects.read(self._flow.name, sink, after=after, most=_CHUNK)
        finally:
            await finish(session.rollback())

    async def _write(self, chunk: _Chunk) -> None:
        work = self._transaction(chunk)
        if self._session.uncancellable:
            await finish(work, on_cancel=self._session.interrupt)
        else:
            await work

    async def _transaction(self, chunk: _Chunk) -> None:
        session = self._session
        chunk.done = Redone(flow="", sink="")
        try:
            await session.begin(strict=chunk.strict)
            for one in chunk.sent:
                await self._settle(one, chunk.done)
            failpoints.hit("lane.after_rejects")
            await finish(session.commit())
            failpoints.hit("lane.after_commit")
        except CommitInDoubtError:
            raise
        except BaseException:
            await finish(session.rollback())
            raise

    async def _settle(self, one: _Sent, done: Redone) -> None:
        """Write the rows of one reject and delete it, or note why it stays."""
        session, stored = self._session, one.stored
        again = one.again
        await session.savepoint()
        if again is None:
            try:
                if one.rows:
                    done.rows_written += await session.write(self._number, [Batch(one.rows)])
            except DataError as error:
                await session.undo()
                again = reject_of(error, None, stored.ordinal, stored.step, stored.steps_left)
        if again is not None:
            await session.rejects.keep(stored.number, again)
            done.refused += 1
        elif await session.rejects.drop(stored.number):
            done.settled += 1
        else:
            raise _GoneError
