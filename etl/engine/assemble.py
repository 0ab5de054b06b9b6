"""Opens what a plan needs and builds its tasks: from a plan to coroutines."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial
from itertools import groupby
from time import monotonic
from typing import Any, cast

from etl.batch import MAIN_PARTITION, Batch
from etl.connector import (
    Advance,
    CheckpointKey,
    Expecting,
    Framer,
    LineTaker,
    LineWriter,
    NewReject,
    OpenTarget,
    Profiler,
    Reader,
    RunInfo,
    Session,
    Target,
)
from etl.engine.bad_rows import BadRows
from etl.engine.channel import Channel
from etl.engine.claims import Claim, Claimant, Start
from etl.engine.lane import Lane
from etl.engine.nodes import HeavyRows, Pump, run_fan_out, run_inline, run_parallel
from etl.engine.plan import FlowPlan, Inline, Leg, Plan, is_own
from etl.engine.segments import Route
from etl.engine.supervise import finish, supervise
from etl.errors import DataError, EtlError
from etl.events import (
    Committed,
    Event,
    FlowEnded,
    FlowReport,
    FlowStats,
    Note,
    Retrying,
    RowsRefused,
)
from etl.flow import Filter, Lookup, Map, Source, Stage, Step, Stream
from etl.foreign import said
from etl.policy import Limits, Retry
from etl.rows import Shape, shape_of
from etl.stages import RowStep, fuse, texts_in

Tell = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Node:
    """A task of a flow and the channels at its ends; none where a database is."""

    name: str
    source: Channel[Batch[Any]] | None
    outs: Sequence[Channel[Batch[Any]]]
    lane: Lane | None = None

    @property
    def waits_for_a_channel(self) -> bool:
        """Whether another task is what holds it up."""
        return (self.source is not None and self.source.get_blocked_since is not None) or any(
            out.put_blocked_since is not None for out in self.outs
        )


@dataclass(slots=True)
class RunningFlow:
    """One flow of a run: its tasks' objects, for statistics, drain and report."""

    plan: FlowPlan
    bad_rows: BadRows
    notes: list[str] = field(default_factory=list[str])
    pumps: list[Pump] = field(default_factory=list[Pump])
    channels: list[Channel[Batch[Any]]] = field(default_factory=list[Channel[Batch[Any]]])
    nodes: list[Node] = field(default_factory=list[Node])
    claims: tuple[Claim, ...] = ()
    lanes: list[Lane] = field(default_factory=list[Lane])
    lanes_ended: int = 0
    shape: Shape | None = None  # of the rows that reach the sinks
    profiled: bool = False  # the shape was settled by a look at all values
    is_done: bool = False  # an append of a full read that was complete before this run
    started: float | None = None
    ended: float | None = None

    @property
    def exhausted(self) -> bool:
        """Every source was read to its end."""
        return self.is_done or (bool(self.pumps) and all(pump.exhausted for pump in self.pumps))

    def stats(self) -> FlowStats:
        """Figures for now."""
        return FlowStats(
            name=self.plan.name,
            state="ended" if self.ended else "running" if self.started else "waiting",
            rows_read=sum(pump.rows for pump in self.pumps),
            rows_written=sum(lane.rows_written for lane in self.lanes),
            rows_rejected=self.bad_rows.rejected,
            rows_skipped=self.bad_rows.skipped,
            bytes_read=sum(pump.nbytes for pump in self.pumps),
            channels=[channel.stats() for channel in self.channels],
        )

    def report(self) -> FlowReport:
        """What the flow has done."""
        started = self.started or 0.0
        return FlowReport(
            name=self.plan.name,
            sinks=tuple(sink.table for sink in self.plan.sinks),
            rows_read=sum(pump.rows for pump in self.pumps),
            rows_written=sum(lane.rows_written for lane in self.lanes),
            rows_rejected=self.bad_rows.rejected,
            rows_skipped=self.bad_rows.skipped,
            bytes_read=sum(pump.nbytes for pump in self.pumps),
            transactions=sum(lane.transactions for lane in self.lanes),
            seconds=round((self.ended or monotonic()) - started, 3) if started else 0.0,
            exhausted=self.exhausted,
            already_complete=self.is_done,
            notes=tuple(self.notes),
        )

    def publish_steps(self, target: Target) -> list[Advance]:
        """What completes the staging tables of this flow in one database, once it has ended."""
        return [
            step
            for claim in self.claims
            if claim.plan.target == target
            for step in claim.closing(staged=True)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """The steps of a flow with each look-up's side loaded: once, whatever the number of lanes."""

    rows: Mapping[str, Sequence[RowStep]]
    inline: Mapping[int, Sequence[RowStep | Stage[Any, Any]]]  # by the identity of the leg


class Assembly:
    """The opened databases and built tasks of one run. Closed by its exit stack.

    Attributes:
        units: The tasks' work, by name.
        patient: Those of them that run no coroutine of the user's; see ``supervise``.
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
    ) -> None:
        self.flows = [RunningFlow(flow, BadRows(flow.on_error, flow.name)) for flow in plan.flows]
        self.units: dict[str, Coroutine[Any, Any, None]] = {}
        self.patient: set[str] = set()
        self.targets: dict[Target, OpenTarget] = {}
        self._plan = plan
        self._info = info
        self._retry = retry
        self._full = full
        self._accept_change = accept_change
        self._tell = tell
        self._heavy = HeavyRows(plan.limits)

    @property
    def channels(self) -> list[Channel[Batch[Any]]]:
        """All of them, to fail together."""
        return [channel for flow in self.flows for channel in flow.channels]

    @property
    def progress(self) -> int:
        """A figure that grows whenever anything moves."""
        return sum(channel.moved for channel in self.channels) + sum(
            lane.rows_written + lane.transactions for flow in self.flows for lane in flow.lanes
        )

    async def culprits(self) -> str:
        """The tasks that hold the run up (they wait for no channel), and what blocks them."""
        names: list[str] = []
        for flow in self.flows:
            if not flow.lanes or flow.ended is not None:
                continue
            for node in flow.nodes:
                if not node.waits_for_a_channel:
                    names.append(node.name)
                    if node.lane is not None and (blocker := await _blocker(node.lane)):
                        names[-1] += f" ({blocker})"
        return ", ".join(names) or "every task waits for a channel"

    async def open(self, stack: AsyncExitStack) -> None:
        """Connect to everything, check it, take over the checkpoints, and build the tasks.

        Nothing is written before every flow has passed its checks but checkpoint rows, tables
        that were missing, and staging tables.
        """
        opened: list[tuple[RunningFlow, list[Reader[Any]], list[Session]]] = []
        for target, sessions in self._plan.targets.items():
            self.targets[target] = await stack.enter_async_context(
                target.open(self._info, sessions=sessions)
            )
        for flow in self.flows:
            info = self._reading_info(flow)
            readers = [
                await stack.enter_async_context(branch.source.connect(info))
                for branch in flow.plan.branches
            ]
            lanes = [
                await self.targets[lane.target].session(flow.plan.name, tuple(lane.sinks.values()))
                for lane in flow.plan.lanes
            ]
            opened.append((flow, readers, lanes))
        claimants = [
            Claimant(
                flow.plan,
                self._plan.pipeline,
                readers,
                full=self._full,
                accept_change=self._accept_change,
                batch_rows=self._info.batch_rows,
            )
            for flow, readers, _ in opened
        ]
        for claimant, (_, _, lanes) in zip(claimants, opened, strict=True):
            await claimant.check_tables(lanes)
        for flow, readers, lanes in opened:  # what is refused may depend on the other sinks
            await self._prepare(flow, readers, lanes)
        for claimant, (flow, readers, lanes) in zip(claimants, opened, strict=True):
            start = await claimant.claim(lanes)
            flow.claims = start.claims
            flow.is_done = not start.claims
            self._note(flow, start.notes)
            if start.claims:
                await self._build_all(flow, readers, start, stack)

    def _reading_info(self, flow: RunningFlow) -> RunInfo:
        """What the sources of a flow are told."""
        return replace(self._info, sets_aside=flow.plan.sets_aside)

    async def _prepare(
        self, flow: RunningFlow, readers: Sequence[Reader[Any]], sessions: Sequence[Session]
    ) -> None:
        notes = [note for reader in readers for note in reader.notes]
        flow.shape, flow.profiled = await _reaching_shape(flow.plan, readers, sessions)
        resumable = all(reader.resumable for reader in readers)
        for lane, session in zip(flow.plan.lanes, sessions, strict=True):
            shapes = [flow.shape for _ in lane.sinks]
            notes += await session.prepare(shapes, resumable=resumable)
        # A bad row among bytes could not be told from the good ones.
        if flow.plan.is_untouched and flow.plan.on_error == "fail":
            await self._offer_frames(readers, sessions[0])
        self._note(flow, notes)

    async def _offer_frames(self, readers: Sequence[Reader[Any]], session: Session) -> None:
        """Rows that nobody looks at may pass as bytes, where both sides speak of the same ones."""
        for reader in readers:
            form = await reader.offers_frames() if isinstance(reader, Framer) else None
            columns = session.takes_frames(0, form) if form is not None else None
            if columns is not None:
                cast("Framer", reader).use_frames(columns)

    def _note(self, flow: RunningFlow, notes: Sequence[str]) -> None:
        for note in notes:
            flow.notes.append(note)
            self._tell(Note(flow=flow.plan.name, message=note))

    async def _build_all(
        self,
        flow: RunningFlow,
        readers: Sequence[Reader[Any]],
        start: Start,
        stack: AsyncExitStack,
    ) -> None:
        """The tasks of a flow: once, or for each of several lanes that share its key ranges."""
        plan = flow.plan
        sessions = [claim.session for claim in start.claims]
        legs = [leg for branch in plan.branches for leg in branch.legs] + list(plan.shared)
        steps = _Steps(
            rows={one.partition: await self._row_steps(one.inline) for one in plan.branches},
            inline={id(leg): await self._inline(leg.inline) for leg in legs if not leg.parallel},
        )
        await _agree_on_lines(plan, readers, sessions)
        if start.claims[0].layout is None:
            queues = [deque([route]) for route in start.routes]
            self._build(flow, readers, start, sessions, queues, steps)
            return
        if start.is_cut_anew:
            for claim in start.claims:
                await _forget_rejects(claim)
        work = deque(route for route in start.routes if route.segments)
        self._note(flow, [f"read in {len(start.routes)} key ranges; {len(work)} are left"])
        for number in range(max(1, min(plan.jobs, len(work)))):
            if number:
                readers, sessions = await self._another(flow, start, stack)
            self._build(flow, readers, start, sessions, [work], steps, lane=number + 1)

    async def _another(
        self, flow: RunningFlow, start: Start, stack: AsyncExitStack
    ) -> tuple[list[Reader[Any]], list[Session]]:
        """Connections for one more lane, prepared like those of the first."""
        source, info = flow.plan.branches[0].source, self._reading_info(flow)
        reader = await stack.enter_async_context(source.connect(info))
        if flow.profiled and isinstance(reader, Profiler):
            await reader.profile()
        sessions: list[Session] = []
        for claim in start.claims:
            sinks = tuple(claim.plan.sinks.values())
            session = await self.targets[claim.plan.target].session(flow.plan.name, sinks)
            await session.prepare([flow.shape for _ in sinks], resumable=True)
            sessions.append(session)
        if flow.plan.is_untouched and flow.plan.on_error == "fail":
            await self._offer_frames([reader], sessions[0])
        await _agree_on_lines(flow.plan, [reader], sessions)
        return [reader], sessions

    def _build(
        self,
        flow: RunningFlow,
        readers: Sequence[Reader[Any]],
        start: Start,
        sessions: Sequence[Session],
        queues: Sequence[deque[Route]],
        steps: _Steps,
        lane: int = 0,
    ) -> None:
        plan = flow.plan
        which = f" ({lane})" if lane > 1 else ""
        routes = {route.partition: route for route in start.routes}
        # One producer: what joins the branches, or else each of them.
        ends = 1 if plan.shared else len(plan.branches)
        row_keys = [reader.shape.key for reader in readers if reader.shape is not None]
        row_keys += [sink.key for sink in plan.sinks]
        last = self._lanes(flow, start, sessions, routes, row_keys, producers=ends, which=which)
        left = plan.shared_size
        if plan.shared:
            joined = self._channel(flow, f"{plan.name}: merged", producers=len(plan.branches))
            self._legs(flow, plan.name + which, plan.shared, joined, last, routes, steps, left)
        else:
            joined = last
        for branch, reader, queue in zip(plan.branches, readers, queues, strict=True):
            name = f"{plan.name}/{branch.partition}" if len(plan.branches) > 1 else plan.name
            name += which
            first = joined
            if branch.legs:
                first = self._channel(flow, f"{name}: read")
                of_legs = left + branch.size - len(branch.inline)
                self._legs(flow, name, branch.legs, first, joined, routes, steps, of_legs)
            pump = Pump(
                flow=plan.name,
                reader=reader,
                routes=queue,
                steps=steps.rows[branch.partition],
                steps_left=left + branch.size,
                sets_aside=plan.sets_aside,
                pack=_packing(sessions) if first is last else _as_it_is,
                out=first,
                heavy=self._heavy,
                retry=self._retry,
                on_retry=self._told_retry,
            )
            flow.pumps.append(pump)
            source = f"source of flow {name!r}"
            self._add(flow, source, pump.run(), None, first)
            if not is_own(branch.source):
                self.patient.add(source)

    def _lanes(
        self,
        flow: RunningFlow,
        start: Start,
        sessions: Sequence[Session],
        routes: Mapping[str, Route],
        row_keys: Sequence[Sequence[str]],
        *,
        producers: int,
        which: str,
    ) -> Channel[Batch[Any]]:
        """Make the lanes, and the fan-out to them where there are several; what feeds them."""
        plan = flow.plan
        name = plan.name + which
        to = "to the lanes" if len(start.claims) > 1 else "to the lane"
        feed = self._channel(flow, f"{name}: {to}", producers=producers)
        outs: list[Channel[Batch[Any]]] = []
        for claim, session in zip(start.claims, sessions, strict=True):
            where = f" into {claim.plan.target.name}" if len(plan.lanes) > 1 else ""
            source = feed
            if len(start.claims) > 1:
                source = self._channel(flow, f"{name}:{where}")
                outs.append(source)
            lane = self._lane(flow, claim, session, routes, row_keys, source)
            flow.lanes.append(lane)
            unit = f"lane {len(flow.lanes)}" if len(plan.lanes) > 1 or which else "lane"
            self._add_lane(f"{unit} of flow {plan.name!r}{where}", flow, lane, source)
        if outs:
            self._add(flow, f"fan-out of flow {name!r}", run_fan_out(feed, outs), feed, *outs)
        return feed

    def _add_lane(
        self, unit: str, flow: RunningFlow, lane: Lane, source: Channel[Batch[Any]]
    ) -> None:
        self._add(flow, unit, self._lane_to_end(flow, lane), source, lane=lane)
        self.patient.add(unit)

    def _lane(
        self,
        flow: RunningFlow,
        claim: Claim,
        session: Session,
        routes: Mapping[str, Route],
        row_keys: Sequence[Sequence[str]],
        channel: Channel[Batch[Any]],
    ) -> Lane:
        plan = flow.plan
        updating = _updating(claim)

        def completes() -> Sequence[CheckpointKey]:
            if plan.incremental or not flow.exhausted:
                return ()
            return claim.completes()

        def committed(name: str, rows: int, _: int, seconds: float) -> None:
            total = sum(lane.rows_written for lane in flow.lanes)
            self._tell(Committed(flow=name, rows=rows, total_rows=total, seconds=round(seconds, 6)))

        return Lane(
            flow=plan.name,
            sinks={number: sink.table for number, sink in claim.plan.sinks.items()},
            session=session,
            checkpoints=claim.checkpoints,
            starts=claim.starts,
            routes=routes,
            channel=channel,
            limits=self._plan.limits,
            group_bytes=self._plan.share,
            retry=self._retry,
            completes=completes,
            bad_rows=flow.bad_rows,
            # Read from the beginning, a row that is bad still comes again; one that is not updates.
            forgets=[
                key
                for key, place in claim.starts.items()
                if claim.layout is None and key.sink in updating and place is None
            ],
            row_keys=[names for names in row_keys if names],
            on_refused=partial(self._told_refused, flow),
            on_commit=committed,
            on_retry=self._told_retry,
        )

    def _add(
        self,
        flow: RunningFlow,
        name: str,
        work: Coroutine[Any, Any, None],
        source: Channel[Batch[Any]] | None,
        *outs: Channel[Batch[Any]],
        lane: Lane | None = None,
    ) -> None:
        self.units[name] = work
        flow.nodes.append(Node(name, source, outs, lane))

    def _legs(
        self,
        flow: RunningFlow,
        name: str,
        legs: Sequence[Leg],
        first: Channel[Batch[Any]],
        last: Channel[Batch[Any]],
        routes: Mapping[str, Route],
        steps: _Steps,
        steps_left: int,
    ) -> None:
        sets_aside = flow.plan.sets_aside
        for number, leg in enumerate(legs):
            out = last
            if number < len(legs) - 1:
                out = self._channel(flow, f"{name}: after {leg.label}")
            if leg.parallel is not None:

                def told(what: str, attempt: int, wait_s: float, error: BaseException) -> None:
                    self._told_retry(name, what, attempt, wait_s, error)

                work = run_parallel(
                    leg.parallel,
                    first,
                    out,
                    told,
                    sets_aside=sets_aside,
                    steps_left=steps_left,
                )
            else:
                work = run_inline(
                    steps.inline[id(leg)],
                    first,
                    out,
                    routes,
                    sets_aside=sets_aside,
                    steps_left=steps_left,
                )
            steps_left -= leg.size
            self._add(flow, f"stage {number + 1} ({leg.label}) of flow {name!r}", work, first, out)
            first = out

    async def _lane_to_end(self, flow: RunningFlow, lane: Lane) -> None:
        flow.started = flow.started or monotonic()
        await lane.run()
        flow.lanes_ended += 1
        if flow.lanes_ended < len(flow.lanes):
            return
        await self._close(flow)
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

    async def _close(self, flow: RunningFlow) -> None:
        """Every lane has ended: make one checkpoint of those of the key ranges."""
        if not flow.exhausted:
            return
        for claim, lane in zip(flow.claims, flow.lanes, strict=False):
            if claim.layout is not None and (steps := claim.closing(staged=False)):
                await lane.apply(steps)

    def _channel(self, flow: RunningFlow, name: str, *, producers: int = 1) -> Channel[Batch[Any]]:
        channel: Channel[Batch[Any]] = Channel(
            name,
            max_items=self._plan.limits.channel_batches,
            max_bytes=self._plan.share,
            heavy_bytes=self._plan.share // 2,
            producers=producers,
        )
        flow.channels.append(channel)
        return channel

    async def _row_steps(self, steps: Inline) -> list[RowStep]:
        return cast("list[RowStep]", await self._inline(steps))

    async def _inline(self, steps: Inline) -> list[RowStep | Stage[Any, Any]]:
        loaded = await load_lookups(steps, self._info, self._plan.limits)
        return cast("list[RowStep | Stage[Any, Any]]", loaded)

    def _told_refused(self, running: RunningFlow, flow: str, rejects: Sequence[NewReject]) -> None:
        bad = running.bad_rows
        for sink, group in groupby(rejects, key=lambda one: one.key.sink):
            of_sink = list(group)
            self._tell(
                RowsRefused(
                    flow=flow,
                    sink=sink,
                    rows=len(of_sink),
                    total_rows=bad.rejected + bad.skipped,
                    kept=bad.keeps,
                    step=of_sink[0].reject.step,
                    reason=of_sink[0].reject.reason,
                )
            )

    def _told_retry(
        self, flow: str, what: str, attempt: int, wait_s: float, error: BaseException
    ) -> None:
        self._tell(
            Retrying(
                flow=flow, what=what, attempt=attempt, wait_s=round(wait_s, 3), error=said(error)
            )
        )


def _updating(claim: Claim) -> set[str]:
    """The tables in which a row that comes again takes the place of the one that is there."""
    sinks = claim.plan.sinks.values()
    return {sink.table for sink in sinks if sink.mode == "upsert" and not sink.add}


async def _forget_rejects(claim: Claim) -> None:
    """Everything is read from the beginning, in key ranges: before the first lane begins.

    Not by a lane with its first group, which would drop what another one has just kept.
    """
    updating = _updating(claim)
    wholes = [
        key for key in claim.checkpoints if key.partition == MAIN_PARTITION and key.sink in updating
    ]
    if not wholes:
        return
    session = claim.session
    try:
        await session.begin()
        await session.rejects.forget(wholes)
        await finish(session.commit())
    except BaseException:
        await finish(session.rollback())
        raise


async def _blocker(lane: Lane) -> str | None:
    try:
        return await lane.session.blocked_by()
    except (EtlError, TimeoutError):
        return None  # the database cannot be asked now; what is known is told all the same


async def load_lookups(steps: Sequence[Step], info: RunInfo, limits: Limits) -> list[Step]:
    """The steps with each lookup's side table loaded."""
    return [
        await _loaded(step, info, limits) if isinstance(step, Lookup) else step for step in steps
    ]


async def _loaded(step: Lookup, info: RunInfo, limits: Limits) -> Map:
    table: dict[Any, Any] = {}

    async def load() -> None:
        table.update(await load_side(step, info))

    # In a task of its own: a side of the user's may not stop when it is cancelled.
    name = f"the look-up in {step.side.flow_name!r}"
    await supervise(
        {name: load()},
        list,
        grace_s=limits.abort_grace_s,
        patient=() if is_own(step.side.origin) else {name},
    )
    key, combine = step.key, step.combine

    def joined(row: Any) -> Any:
        return combine(row, table.get(key(row)))

    joined.__qualname__ = getattr(combine, "__qualname__", "lookup")
    return Map(joined)


async def load_side(step: Lookup, info: RunInfo) -> dict[Any, Any]:
    """The side of a lookup, by its key.

    Raises:
        DataError: Two side rows have the same key.
    """
    side = step.side
    source = side.origin
    assert isinstance(source, Source)
    run = fuse(cast("Sequence[RowStep]", side.steps))
    table: dict[Any, Any] = {}

    async def emit(batch: Batch[Any]) -> None:
        for row in run(batch.rows):
            key = step.side_key(row)
            if key is None:
                continue  # as in SQL, NULL matches nothing
            if key in table:
                raise DataError(
                    f"lookup in {side.flow_name!r}: two side rows have the same key. Nothing was"
                    " written; make side_key unique, or filter the side"
                )
            table[key] = row

    async with source.connect(info) as reader:
        await reader.pump(None, None, emit)
    return table


async def _reaching_shape(
    plan: FlowPlan, readers: Sequence[Reader[Any]], sessions: Sequence[Session]
) -> tuple[Shape | None, bool]:
    """The shape of the rows that reach the sinks, where it is known before the first one.

    And whether the source's values had to be looked at for it.
    """
    kind = plan.flow.stream.row_type
    if isinstance(kind, type) and is_dataclass(kind):
        return shape_of(kind, _source_key(plan, kind, readers)), False
    shape, profiled = readers[0].shape, False
    if shape is not None and len(readers) == 1 and await _needs_profile(plan, shape, sessions):
        reader = readers[0]
        assert isinstance(reader, Profiler)
        shape, profiled = await reader.profile(), True
    # What a function returns is seen when it comes: also a Row may have got other values.
    return (shape if _rows_untouched(plan) else None), profiled


async def _needs_profile(plan: FlowPlan, shape: Shape, sessions: Sequence[Session]) -> bool:
    """Whether a table is to be made for rows whose columns do not tell what they hold."""
    if not any(column.type.kind == "dynamic" for column in shape.columns):
        return False
    for lane, session in zip(plan.lanes, sessions, strict=True):
        for number in range(len(lane.sinks)):
            if await session.wants_profile(number, shape):
                return True
    return False


def _packing(sessions: Sequence[Session]) -> Callable[[Batch[Any]], Batch[Any]]:
    """Into the form that the only session wants; several may each want another one."""
    return sessions[0].pack if len(sessions) == 1 else _as_it_is


def _as_it_is(batch: Batch[Any]) -> Batch[Any]:
    return batch


async def _agree_on_lines(
    plan: FlowPlan, readers: Sequence[Reader[Any]], sessions: Sequence[Session]
) -> None:
    """Let the source write the rows as the target takes them, where nothing looks at them.

    Where functions do, a source may be glad to know at which columns.
    """
    streams = (plan.flow.stream, *plan.flow.branches.values())
    if texts := {text for one in streams for step in one.steps for text in _texts_of(step)}:
        for reader in readers:
            if isinstance(reader, Expecting):
                reader.expect(texts)
    if len(sessions) > 1 or any(stream.steps for stream in streams):
        return  # lines for one table may not be right for another
    if plan.on_error != "fail":
        return  # rows that are kept must be the source's, not what they would be in the target
    for reader in readers:
        if isinstance(reader, LineWriter) and isinstance(sessions[0], LineTaker) and reader.shape:
            columns = await sessions[0].line_columns(reader.shape.names)
            if columns is not None:
                reader.write_lines(columns)


def _texts_of(step: Step) -> set[str]:
    """Texts in the functions of a step."""
    match step:
        case Filter():
            return texts_in(step.predicate)
        case Lookup():
            return texts_in((step.key, step.combine))
        case _:
            return texts_in(step.function)


def _rows_untouched(plan: FlowPlan) -> bool:
    streams: list[Stream[Any]] = [plan.flow.stream, *plan.flow.branches.values()]
    return all(isinstance(step, Filter) for stream in streams for step in stream.steps)


def _source_key(plan: FlowPlan, row: type[Any], readers: Sequence[Reader[Any]]) -> tuple[str, ...]:
    """The source's key, where the rows still have it: the key of a table made for them."""
    shape = readers[0].shape
    if not _rows_untouched(plan) or shape is None:
        return ()
    names = getattr(row, "__dataclass_fields__", {})
    return shape.key if all(name in names for name in shape.key) else ()
