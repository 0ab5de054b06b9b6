"""Opens what a plan needs: checks every flow, claims its checkpoints, has its tasks built."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any, TypeVar, cast

from etl.batch import MAIN_PARTITION, Batch
from etl.connector import (
    Commons,
    Concurrent,
    Instant,
    Joinable,
    OpenTarget,
    Profiler,
    Reader,
    RunInfo,
    Session,
    Target,
)
from etl.engine import wire
from etl.engine.bad_rows import BadRows
from etl.engine.channel import Channel
from etl.engine.claims import Claim, Claimant, Start
from etl.engine.forms import agree_on_lines, keep_columns, offer_frames, reaching_shape
from etl.engine.gather import bounded_gather
from etl.engine.homes import mark_of, seen_by
from etl.engine.lane import doubt_note
from etl.engine.lookups import load_lookups
from etl.engine.plan import Inline, Plan
from etl.engine.publish import Publisher
from etl.engine.running import RunningFlow
from etl.engine.segments import Take, taking
from etl.engine.supervise import finish
from etl.engine.tasks import Builder, Steps, Tell, updating
from etl.engine.turns import Turns
from etl.engine.workers import Worker
from etl.events import Committed, Event, FlowEnded, Note, RowsRefused
from etl.flow import Stage
from etl.policy import Retry
from etl.stages import RowStep

T = TypeVar("T")

_MOST_NAMES = 5


class Assembly:
    """The opened databases and built tasks of one run. Closed by its exit stack.

    A flow that is checked, or has ended, gives up its connections: however many flows there are,
    only those whose turn it is have some.

    Attributes:
        in_doubt: Flows of which an abort left unknown whether their last transaction is in.
    """

    def __init__(
        self,
        plan: Plan,
        info: RunInfo,
        *,
        retry: Retry,
        full: bool,
        accept_change: bool,
        tell: Tell,
        home: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare a run.

        Args:
            home: Where worker processes find the pipeline; None: it has none.
        """
        self.flows = [RunningFlow(flow, BadRows(flow.on_error, flow.name)) for flow in plan.flows]
        self.targets: dict[Target, OpenTarget] = {}
        self._plan = plan
        self._commons = Commons()
        self._info = replace(info, commons=self._commons)
        self._full = full
        self._accept_change = accept_change
        self._tell = tell
        self._home = home
        self._turns = Turns({one.name: one.flow.after for one in plan.flows}, plan.limits.flows)
        self.in_doubt: list[str] = []
        self.publisher = Publisher(
            self.targets,
            retry=retry,
            tell=tell,
            grace_s=plan.limits.abort_grace_s,
            in_doubt=self._told_doubt,
        )
        self._builder = Builder(
            plan,
            self._turns,
            retry=retry,
            tell=tell,
            writer_ended=self._writer_ended,
            in_doubt=self._told_doubt,
        )

    @property
    def units(self) -> Mapping[str, Coroutine[Any, Any, None]]:
        """The tasks' work, by name."""
        return self._builder.units

    @property
    def patient(self) -> set[str]:
        """Those of them that run no coroutine of the user's; see ``supervise``."""
        return self._builder.patient

    @property
    def channels(self) -> list[Channel[Batch[Any]]]:
        """All of them, to fail together."""
        return [channel for flow in self.flows for channel in flow.channels]

    @property
    def progress(self) -> int:
        """A figure that grows whenever anything moves."""
        return sum(flow.moved for flow in self.flows)

    async def culprits(self) -> str:
        """The tasks that hold the run up (they wait for no channel), and what blocks them."""
        names: list[str] = []
        for flow in self.flows:
            if flow.started is not None and flow.ended is None:
                names += await flow.culprits()
        return ", ".join(names) or "every task waits for a channel"

    async def open(self, stack: AsyncExitStack) -> None:
        """Connect to everything, check it, take over the checkpoints, and build the tasks.

        Nothing is written before every flow has passed its checks but checkpoint rows, tables
        that were missing, and staging tables.
        """
        for target, sessions in self._plan.targets.items():
            self.targets[target] = await stack.enter_async_context(
                target.open(self._info, sessions=sessions)
            )
        await stack.enter_async_context(self._commons)
        for flow in self.flows:
            for lane in flow.plan.lanes:
                sinks = tuple(lane.sinks.values())
                flow.sessions.append(await self.targets[lane.target].session(flow.plan.name, sinks))
        claimants = await self._for_each(lambda flow: self._connect(flow, stack))
        # What is refused may depend on the other sinks.
        await self._for_each(self._prepare)
        for flow in self.flows:
            for reader in flow.readers:
                if isinstance(reader, Instant) and reader.at_one_instant:
                    await reader.settle_instant()
        by_name = {flow.plan.name: one for flow, one in zip(self.flows, claimants, strict=True)}
        starts = await self._for_each(
            lambda flow: by_name[flow.plan.name].claim(flow.sessions, flow.shape)
        )
        for flow, start in zip(self.flows, starts, strict=True):
            await self._begin(flow, start, stack)
        self._tell_of_instants()
        # Worker processes serve one flow after the other: there are never more than was asked for.
        self._turns.one_by_one([flow.plan.name for flow in self.flows if flow.workers])
        self._turns.begin()

    async def _for_each(self, work: Callable[[RunningFlow], Awaitable[T]]) -> list[T]:
        """Do something for each flow, at most for as many at once as will run together.

        Each step takes some round trips to the databases, which over a long line are most of the
        time of a small table.
        """

        async def done(flow: RunningFlow) -> T:
            found = await work(flow)
            await flow.rest()
            return found

        concurrent = all(isinstance(target, Concurrent) for target in self.targets.values())
        most = self._plan.limits.flows if concurrent else 1
        return await bounded_gather([partial(done, flow) for flow in self.flows], most=most)

    def _told_doubt(self, flow: str) -> None:
        self.in_doubt.append(flow)
        running = next(one for one in self.flows if one.plan.name == flow)
        self._note(running, [doubt_note(self._plan.limits)])

    async def reads_ended(self) -> None:
        """Release what the readers had in common, before tables are built and published."""
        await finish(self._commons.aclose())

    def _tell_of_instants(self) -> None:
        """Say which tables go on from another instant than that of this run."""
        resumed = [flow for flow in self.flows if flow.is_resumed and flow.is_at_one_instant]
        if not resumed:
            return
        names = ", ".join(flow.plan.name for flow in resumed[:_MOST_NAMES])
        more = len(resumed) - _MOST_NAMES
        self._note(
            resumed[0],
            [
                "an earlier run began to read "
                + (f"{names} and {more} more" if more > 0 else names)
                + ", at an earlier instant than this one, which goes on there: sums over several"
                " tables need not hold. A run with --full reads everything at one instant"
            ],
        )

    def _reading_info(self, flow: RunningFlow) -> RunInfo:
        """What the sources of a flow are told."""
        return replace(self._info, sets_aside=flow.plan.sets_aside)

    async def _connect(self, flow: RunningFlow, stack: AsyncExitStack) -> Claimant:
        for branch in flow.plan.branches:
            opening = branch.source.connect(self._reading_info(flow))
            flow.readers.append(await stack.enter_async_context(opening))
        claimant = self._claimant(flow)
        await claimant.check_tables(flow.sessions)
        return claimant

    async def _prepare(self, flow: RunningFlow) -> None:
        notes = [note for reader in flow.readers for note in reader.notes]
        looked = await keep_columns(flow.plan, flow.readers)
        flow.shape, flow.profiled = await reaching_shape(flow.plan, flow.readers, flow.sessions)
        flow.profiled = flow.profiled or looked
        resumable = all(reader.resumable for reader in flow.readers)
        for lane, session in zip(flow.plan.lanes, flow.sessions, strict=True):
            shapes = [flow.shape for _ in lane.sinks]
            notes += await session.prepare(shapes, resumable=resumable)
        await offer_frames(flow.plan, flow.readers, flow.sessions)
        self._note(flow, notes)

    def _note(self, flow: RunningFlow, notes: Sequence[str]) -> None:
        for note in notes:
            flow.notes.append(note)
            self._tell(Note(flow=flow.plan.name, message=note))

    def _claimant(self, flow: RunningFlow) -> Claimant:
        return Claimant(
            flow.plan,
            self._plan.pipeline,
            flow.readers,
            full=self._full,
            accept_change=self._accept_change,
            batch_rows=self._info.batch_rows,
        )

    async def _begin(self, flow: RunningFlow, start: Start, stack: AsyncExitStack) -> None:
        flow.claims = start.claims
        flow.is_done = not start.claims
        self._note(flow, start.notes)
        if start.claims:
            await self._build(flow, start, stack)
            await flow.rest()
        else:
            self._turns.ended(flow.plan.name)

    async def _build(self, flow: RunningFlow, start: Start, stack: AsyncExitStack) -> None:
        """The tasks of a flow: once, or for each of several lanes that share its key ranges."""
        plan = flow.plan
        readers = list(flow.readers)
        sessions = [claim.session for claim in start.claims]
        legs = [leg for branch in plan.branches for leg in branch.legs] + list(plan.shared)
        steps = Steps(
            rows={one.partition: await self._row_steps(one.inline) for one in plan.branches},
            inline={id(leg): await self._inline(leg.inline) for leg in legs if not leg.parallel},
        )
        await agree_on_lines(plan, readers, sessions)
        if start.claims[0].layout is None:
            takes = [taking(deque([route])) for route in start.routes]
            self._builder.build(flow, readers, start, sessions, takes, steps)
            return
        if start.is_cut_anew:
            for claim in start.claims:
                await _forget_rejects(claim, self._plan.limits.abort_grace_s)
        work = deque(route for route in start.routes if route.segments)
        take, lanes = taking(work), max(1, min(plan.jobs, len(work)))
        ranges = f"read in {len(start.routes)} key ranges; {len(work)} are left"
        if plan.processes > 1 and lanes > 1 and (job := await self._job(flow, start)):
            self._note(flow, [f"{ranges}, in {lanes} worker processes"])
            workers = [self._worker(flow, job, number + 1, take) for number in range(lanes)]
            self._builder.build_workers(flow, readers, start, workers)
            return
        self._note(flow, [ranges])
        for number in range(lanes):
            if number:
                readers, sessions = await self._another(flow, start, stack)
            self._builder.build(flow, readers, start, sessions, [take], steps, lane=number + 1)

    async def _job(self, flow: RunningFlow, start: Start) -> dict[str, Any] | None:
        """What worker processes are to do; None where a database does not take them."""
        plan, (reader,) = flow.plan, flow.readers
        numbers = [plan.lanes.index(claim.plan) for claim in start.claims]
        targets = [self.targets[claim.plan.target] for claim in start.claims]
        for one, name in [
            (reader, plan.branches[0].source.summary),
            *zip(targets, (claim.plan.target.name for claim in start.claims), strict=True),
        ]:
            if not isinstance(one, Joinable):
                self._note(flow, [f"in one process: {name} takes no worker processes"])
                return None
        assert self._home is not None
        return {
            "home": self._home,
            "flow": plan.name,
            "mark": mark_of(plan),
            "shape": seen_by(reader),
            "limits": wire.of_limits(self._plan.limits),
            "on_error": wire.of_policy(plan.on_error),
            "info": wire.of_info(self._reading_info(flow)),
            "source": await cast("Joinable", reader).invitation(),
            "targets": [await cast("Joinable", one).invitation() for one in targets],
            "claims": [
                wire.of_claim(claim, number)
                for claim, number in zip(start.claims, numbers, strict=True)
            ],
            "routes": [wire.of_route(route) for route in start.routes],
        }

    def _worker(self, flow: RunningFlow, job: Mapping[str, Any], number: int, take: Take) -> Worker:
        def told(event: Event) -> None:
            match event:
                case Committed():
                    event = replace(event, total_rows=flow.rows_written)
                case RowsRefused():
                    bad = flow.bad_rows
                    event = replace(event, total_rows=bad.rejected + bad.skipped)
                case Note() if event.message in flow.notes:
                    return
                case Note():
                    flow.notes.append(event.message)
                case _:
                    pass
            self._tell(event)

        return Worker(
            f"worker {number} of flow {flow.plan.name!r}",
            {**job, "number": number},
            take,
            grace_s=self._plan.limits.abort_grace_s,
            bad_rows=flow.bad_rows,
            claims=flow.claims,
            tell=told,
        )

    async def _writer_ended(self, flow: RunningFlow) -> None:
        """One of a flow's lanes or worker processes has ended; after the last, the flow has."""
        flow.writers_ended += 1
        if flow.writers_ended < flow.writers:
            return
        if flow.exhausted:
            for claim, lane in zip(flow.claims, flow.lanes, strict=False):
                # Make one checkpoint of those of the key ranges.
                if claim.layout is not None and (steps := claim.closing(staged=False)):
                    await lane.apply(steps)
        await flow.rest()  # the flows that come next use its connections
        for reader in flow.readers:
            self._note(flow, [one for one in reader.notes if one not in flow.notes])
        if self._plan.publishes_each and flow.exhausted:
            await self.publisher.publish_one(flow)
        flow.ended = monotonic()
        report = flow.report()
        self._tell(
            FlowEnded(
                flow=flow.plan.name,
                rows_read=report.rows_read,
                rows_written=report.rows_written,
                seconds=report.seconds,
                rows_rejected=report.rows_rejected,
                rows_skipped=report.rows_skipped,
            )
        )
        self._turns.ended(flow.plan.name)
        self._turns.begin()

    async def _another(
        self, flow: RunningFlow, start: Start, stack: AsyncExitStack
    ) -> tuple[list[Reader[Any]], list[Session]]:
        """A reader and sessions for one more lane, prepared like those of the first."""
        source, info = flow.plan.branches[0].source, self._reading_info(flow)
        reader = await stack.enter_async_context(source.connect(info))
        flow.readers.append(reader)
        if flow.profiled and isinstance(reader, Profiler):
            await reader.profile()
        await keep_columns(flow.plan, [reader])
        sessions: list[Session] = []
        for claim in start.claims:
            sinks = tuple(claim.plan.sinks.values())
            session = await self.targets[claim.plan.target].session(flow.plan.name, sinks)
            await session.prepare([flow.shape for _ in sinks], resumable=True)
            sessions.append(session)
        flow.sessions += sessions
        await offer_frames(flow.plan, [reader], sessions)
        await agree_on_lines(flow.plan, [reader], sessions)
        await flow.rest()
        return [reader], sessions

    async def _row_steps(self, steps: Inline) -> list[RowStep]:
        return cast("list[RowStep]", await self._inline(steps))

    async def _inline(self, steps: Inline) -> list[RowStep | Stage[Any, Any]]:
        loaded = await load_lookups(steps, self._info, self._plan.limits)
        return cast("list[RowStep | Stage[Any, Any]]", loaded)


async def _forget_rejects(claim: Claim, grace_s: float) -> None:
    """Everything is read from the beginning, in key ranges: before the first lane begins.

    Not by a lane with its first group, which would drop what another one has just kept.
    """
    tables = updating(claim)
    wholes = [
        key for key in claim.checkpoints if key.partition == MAIN_PARTITION and key.sink in tables
    ]
    if not wholes:
        return
    session = claim.session
    try:
        await session.begin()
        await session.rejects.forget(wholes)
        await finish(session.commit(), grace_s=grace_s)
    except BaseException:
        await finish(session.rollback())
        raise
