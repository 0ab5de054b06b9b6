"""Opens what a plan needs and builds its tasks: from a plan to coroutines."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, is_dataclass
from time import monotonic
from typing import Any, cast

from etl.batch import Batch, Position
from etl.connector import (
    Advance,
    Checkpoint,
    CheckpointKey,
    OpenTarget,
    Profiler,
    Reader,
    RunInfo,
    Session,
    Sink,
    Target,
)
from etl.engine.channel import Channel
from etl.engine.lane import Lane
from etl.engine.nodes import Pump, run_inline, run_parallel
from etl.engine.plan import FlowPlan, Inline, Leg, Plan, is_own
from etl.engine.supervise import supervise
from etl.errors import ConfigError, DataError, EtlError
from etl.events import Committed, Event, FlowEnded, FlowReport, FlowStats, Note, Retrying
from etl.flow import Filter, Lookup, Map, Source, Stage, Stream
from etl.policy import Retry
from etl.rows import Shape, shape_of
from etl.stages import RowStep, fuse

Tell = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Node:
    """A task of a flow and the channels at its ends; None where a database is."""

    name: str
    source: Channel[Batch[Any]] | None
    out: Channel[Batch[Any]] | None

    @property
    def waits_for_a_channel(self) -> bool:
        """Whether another task is what holds it up."""
        return (self.source is not None and self.source.get_blocked_since is not None) or (
            self.out is not None and self.out.put_blocked_since is not None
        )


@dataclass(slots=True)
class RunningFlow:
    """One flow of a run: its tasks' objects, for statistics, drain and report."""

    plan: FlowPlan
    notes: list[str] = field(default_factory=list[str])
    pumps: list[Pump] = field(default_factory=list[Pump])
    channels: list[Channel[Batch[Any]]] = field(default_factory=list[Channel[Batch[Any]]])
    nodes: list[Node] = field(default_factory=list[Node])
    lane: Lane | None = None
    publishes: tuple[CheckpointKey, ...] = ()
    epochs: dict[CheckpointKey, int] = field(default_factory=dict[CheckpointKey, int])
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
            rows_written=self.lane.rows_written if self.lane else 0,
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
            rows_written=self.lane.rows_written if self.lane else 0,
            bytes_read=sum(pump.nbytes for pump in self.pumps),
            transactions=self.lane.transactions if self.lane else 0,
            seconds=round((self.ended or monotonic()) - started, 3) if started else 0.0,
            exhausted=self.exhausted,
            already_complete=self.is_done,
            notes=tuple(self.notes),
        )

    def publish_steps(self) -> list[Advance]:
        """What completes the staging tables of this flow, once it has ended."""
        assert self.lane is not None
        committed = self.lane.committed
        return [
            Advance(
                key=key,
                epoch=self.epochs[key],
                old=committed[key],
                new=committed[key],
                rows=0,
                complete=True,
            )
            for key in self.publishes
        ]


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
        self.flows = [RunningFlow(flow) for flow in plan.flows]
        self.units: dict[str, Coroutine[Any, Any, None]] = {}
        self.patient: set[str] = set()
        self.targets: dict[Target, OpenTarget] = {}
        self._plan = plan
        self._info = info
        self._retry = retry
        self._full = full
        self._accept_change = accept_change
        self._tell = tell

    @property
    def channels(self) -> list[Channel[Batch[Any]]]:
        """All of them, to fail together."""
        return [channel for flow in self.flows for channel in flow.channels]

    @property
    def progress(self) -> int:
        """A figure that grows whenever anything moves."""
        return sum(channel.moved for channel in self.channels) + sum(
            flow.lane.rows_written + flow.lane.transactions for flow in self.flows if flow.lane
        )

    async def culprits(self) -> str:
        """The tasks that hold the run up (they wait for no channel), and what blocks them."""
        names: list[str] = []
        for flow in self.flows:
            if flow.lane is None or flow.ended is not None:
                continue
            for node in flow.nodes:
                if not node.waits_for_a_channel:
                    names.append(node.name)
                    if node.out is None and (blocker := await _blocker(flow.lane)):
                        names[-1] += f" ({blocker})"
        return ", ".join(names) or "every task waits for a channel"

    async def open(self, stack: AsyncExitStack) -> None:
        """Connect to everything, check it, take over the checkpoints, and build the tasks.

        Nothing is written before every flow has passed its checks but checkpoint rows, tables
        that were missing, and staging tables.
        """
        opened: list[tuple[RunningFlow, list[Reader[Any]], Session]] = []
        for target, sessions in self._plan.targets.items():
            self.targets[target] = await stack.enter_async_context(
                target.open(self._info, sessions=sessions)
            )
        for flow in self.flows:
            readers = [
                await stack.enter_async_context(branch.source.connect(self._info))
                for branch in flow.plan.branches
            ]
            session = await self.targets[flow.plan.target].session(flow.plan.name, flow.plan.sinks)
            await self._prepare(flow, readers, session)
            opened.append((flow, readers, session))
        for flow, readers, session in opened:
            starts = await self._take_over(flow, readers, session)
            if starts is not None:
                await self._build(flow, readers, session, starts)

    async def _prepare(
        self, flow: RunningFlow, readers: Sequence[Reader[Any]], session: Session
    ) -> None:
        for reader in readers:
            flow.notes += reader.notes
        shape = await _reaching_shape(flow.plan, readers, session)
        shapes = [shape for _ in flow.plan.sinks]
        resumable = all(reader.resumable for reader in readers)
        flow.notes += await session.prepare(shapes, resumable=resumable)
        for note in flow.notes:
            self._tell(Note(flow=flow.plan.name, message=note))

    async def _take_over(
        self, flow: RunningFlow, readers: Sequence[Reader[Any]], session: Session
    ) -> dict[str, Position | None] | None:
        """Claim the checkpoints; where to read from by partition, or None: nothing to do."""
        plan = flow.plan
        resumable = all(reader.resumable for reader in readers)
        fingerprints: dict[CheckpointKey, str] = {}
        staged: dict[CheckpointKey, bool] = {}
        for sink in plan.sinks:
            for branch in plan.branches:
                key = CheckpointKey(
                    pipeline=self._plan.pipeline,
                    flow=plan.name,
                    sink=sink.table,
                    partition=branch.partition,
                )
                fingerprints[key] = _fingerprint(branch.source, sink)
                staged[key] = sink.mode == "replace" or (sink.mode == "append" and not resumable)
        keys = list(fingerprints)
        before = await session.load(keys)
        self._check_fingerprints(flow, before, fingerprints)
        begun = any(found.position is not None for found in before.values())
        self._check_additions(plan, resumable, begun)
        if self._is_done(flow, before, keys):
            flow.is_done = True
            flow.notes.append(self._done_note(plan))
            self._tell(Note(flow=plan.name, message=flow.notes[-1]))
            return None
        found = await session.take_over(
            keys,
            fingerprints=[fingerprints[key] for key in keys],
            fresh=self._full or not resumable,
        )
        flow.publishes = tuple(key for key in keys if staged[key])
        flow.epochs = {key: found[key].epoch for key in keys}
        starts: dict[str, Position | None] = {}
        for branch in plan.branches:
            positions = {
                self._start(plan, found[key], resumable, staged[key])
                for key in keys
                if key.partition == branch.partition
            }
            if len(positions) > 1:
                raise ConfigError(
                    f"flow {plan.name!r}: its sinks stand at different positions (one was added"
                    " later, or reset). Give the new sink a flow of its own, or reset the flow's"
                    " state to load all of them anew"
                )
            starts[branch.partition] = positions.pop()
        flow.lane = self._lane(flow, session, found, starts)
        return starts

    def _start(
        self, plan: FlowPlan, found: Checkpoint, resumable: bool, staged: bool
    ) -> Position | None:
        if staged:
            return found.position
        if self._full or not resumable or (found.complete and not plan.incremental):
            return None
        return found.position

    def _check_additions(self, plan: FlowPlan, resumable: bool, begun: bool) -> None:
        """Refuse a read that would add up rows which have been added already."""
        adding = [sink for sink in plan.sinks if sink.add]
        if not adding:
            return
        where = f"flow {plan.name!r}: {adding[0].table!r} adds up ({', '.join(adding[0].add)})"
        if not resumable:
            raise ConfigError(
                f"{where}, and its source has no key: a read that is cut short would start again"
                " and count rows twice. Nothing was moved; give the source a key="
            )
        if self._full and begun:
            raise ConfigError(
                f"{where}, so reading everything again would count every row twice. Nothing was"
                " moved; empty the table and reset the state, then run without --full"
            )

    def _is_done(
        self,
        flow: RunningFlow,
        before: Mapping[CheckpointKey, Checkpoint],
        keys: Sequence[CheckpointKey],
    ) -> bool:
        """A full read that was added completely would only add the same rows again."""
        return (
            not self._full
            and not flow.plan.incremental
            and any(sink.mode == "append" or sink.add for sink in flow.plan.sinks)
            and all(key in before and before[key].complete for key in keys)
        )

    def _done_note(self, plan: FlowPlan) -> str:
        again = (
            "or empty the table and reset the state to count all rows again"
            if any(sink.add for sink in plan.sinks)
            else "or run with --full to append all rows again"
        )
        return (
            "this full read was written completely by an earlier run, and its rows are added to"
            f" what is there; nothing to do. Give the source a cursor= to add new rows, {again}"
        )

    def _check_fingerprints(
        self,
        flow: RunningFlow,
        before: Mapping[CheckpointKey, Checkpoint],
        now: Mapping[CheckpointKey, str],
    ) -> None:
        if self._accept_change or self._full:
            return
        for key, checkpoint in before.items():
            old = checkpoint.fingerprint
            if checkpoint.position is not None and old is not None and old != now[key]:
                changed = _differences(old, now[key])
                raise ConfigError(
                    f"flow {flow.plan.name!r}: {changed} changed since the position of"
                    f" {key.sink!r} was saved, so that position may not mean the same rows."
                    " Nothing was moved; run with --accept-change to keep it, with --full to read"
                    " everything again, or reset the state"
                )

    def _lane(
        self,
        flow: RunningFlow,
        session: Session,
        found: Mapping[CheckpointKey, Checkpoint],
        starts: Mapping[str, Position | None],
    ) -> Lane:
        plan = flow.plan
        channel = self._channel(flow, f"{plan.name}: to the lane", producers=self._ends(plan))

        def completes() -> Sequence[CheckpointKey]:
            if plan.incremental or not flow.exhausted:
                return ()
            return [key for key in found if key not in flow.publishes]

        return Lane(
            flow=plan.name,
            sinks=[sink.table for sink in plan.sinks],
            session=session,
            checkpoints=found,
            starts=starts,
            channel=channel,
            limits=self._plan.limits,
            group_bytes=self._plan.share,
            retry=self._retry,
            completes=completes,
            on_commit=lambda name, rows, total, seconds: self._tell(
                Committed(flow=name, rows=rows, total_rows=total, seconds=round(seconds, 6))
            ),
            on_retry=self._told_retry,
        )

    def _ends(self, plan: FlowPlan) -> int:
        """How many producers the lane's channel has."""
        return 1 if plan.shared else len(plan.branches)

    async def _build(
        self,
        flow: RunningFlow,
        readers: Sequence[Reader[Any]],
        session: Session,
        starts: Mapping[str, Position | None],
    ) -> None:
        plan = flow.plan
        assert flow.lane is not None
        last = flow.channels[0]
        if plan.shared:
            joined = self._channel(flow, f"{plan.name}: merged", producers=len(plan.branches))
            await self._legs(flow, plan.name, plan.shared, joined, last)
        else:
            joined = last
        for branch, reader in zip(plan.branches, readers, strict=True):
            name = f"{plan.name}/{branch.partition}" if len(plan.branches) > 1 else plan.name
            first = joined
            if branch.legs:
                first = self._channel(flow, f"{name}: read")
                await self._legs(flow, name, branch.legs, first, joined)
            pump = Pump(
                flow=plan.name,
                partition=branch.partition,
                reader=reader,
                after=starts[branch.partition],
                steps=await self._row_steps(branch.inline),
                out=first,
                retry=self._retry,
                on_retry=self._told_retry,
            )
            flow.pumps.append(pump)
            source = f"source of flow {name!r}"
            self._add(flow, source, pump.run(), None, first)
            if not is_own(branch.source):
                self.patient.add(source)
        lane = f"lane of flow {plan.name!r}"
        self._add(flow, lane, self._lane_to_end(flow), last, None)
        self.patient.add(lane)

    def _add(
        self,
        flow: RunningFlow,
        name: str,
        work: Coroutine[Any, Any, None],
        source: Channel[Batch[Any]] | None,
        out: Channel[Batch[Any]] | None,
    ) -> None:
        self.units[name] = work
        flow.nodes.append(Node(name, source, out))

    async def _legs(
        self,
        flow: RunningFlow,
        name: str,
        legs: Sequence[Leg],
        first: Channel[Batch[Any]],
        last: Channel[Batch[Any]],
    ) -> None:
        for number, leg in enumerate(legs):
            out = last
            if number < len(legs) - 1:
                out = self._channel(flow, f"{name}: after {leg.label}")
            if leg.parallel is not None:

                def told(what: str, attempt: int, wait_s: float, error: BaseException) -> None:
                    self._told_retry(name, what, attempt, wait_s, error)

                work = run_parallel(leg.parallel, first, out, told)
            else:
                work = run_inline(await self._inline(leg.inline), first, out)
            self._add(flow, f"stage {number + 1} ({leg.label}) of flow {name!r}", work, first, out)
            first = out

    async def _lane_to_end(self, flow: RunningFlow) -> None:
        assert flow.lane is not None
        flow.started = monotonic()
        await flow.lane.run()
        flow.ended = monotonic()
        report = flow.report()
        self._tell(
            FlowEnded(
                flow=flow.plan.name,
                rows_read=report.rows_read,
                rows_written=report.rows_written,
                seconds=report.seconds,
            )
        )

    def _channel(self, flow: RunningFlow, name: str, *, producers: int = 1) -> Channel[Batch[Any]]:
        channel: Channel[Batch[Any]] = Channel(
            name,
            max_items=self._plan.limits.channel_batches,
            max_bytes=self._plan.share,
            producers=producers,
        )
        flow.channels.append(channel)
        return channel

    async def _row_steps(self, steps: Inline) -> list[RowStep]:
        return cast("list[RowStep]", await self._inline(steps))

    async def _inline(self, steps: Inline) -> list[RowStep | Stage[Any, Any]]:
        """The steps with each lookup's side table loaded."""
        return [await self._loaded(step) if isinstance(step, Lookup) else step for step in steps]

    async def _loaded(self, step: Lookup) -> Map:
        table: dict[Any, Any] = {}

        async def load() -> None:
            table.update(await load_side(step, self._info))

        # In a task of its own: a side of the user's may not stop when it is cancelled.
        name = f"the look-up in {step.side.flow_name!r}"
        await supervise(
            {name: load()},
            list,
            grace_s=self._plan.limits.abort_grace_s,
            patient=() if is_own(step.side.origin) else {name},
        )
        key, combine = step.key, step.combine

        def joined(row: Any) -> Any:
            return combine(row, table.get(key(row)))

        joined.__qualname__ = getattr(combine, "__qualname__", "lookup")
        return Map(joined)

    def _told_retry(
        self, flow: str, what: str, attempt: int, wait_s: float, error: BaseException
    ) -> None:
        self._tell(
            Retrying(
                flow=flow, what=what, attempt=attempt, wait_s=round(wait_s, 3), error=str(error)
            )
        )


async def _blocker(lane: Lane) -> str | None:
    try:
        return await lane.session.blocked_by()
    except (EtlError, TimeoutError):
        return None  # the database cannot be asked now; what is known is told all the same


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
    plan: FlowPlan, readers: Sequence[Reader[Any]], session: Session
) -> Shape | None:
    """The shape of the rows that reach the sinks, where it is known before the first one."""
    kind = plan.flow.stream.row_type
    if isinstance(kind, type) and is_dataclass(kind):
        return shape_of(kind, _source_key(plan, kind, readers))
    shape = readers[0].shape
    if shape is not None and len(readers) == 1 and await _needs_profile(plan, shape, session):
        reader = readers[0]
        assert isinstance(reader, Profiler)
        shape = await reader.profile()
    # What a function returns is seen when it comes: also a Row may have got other values.
    return shape if _rows_untouched(plan) else None


async def _needs_profile(plan: FlowPlan, shape: Shape, session: Session) -> bool:
    """Whether a table is to be made for rows whose columns do not tell what they hold."""
    if not any(column.type.kind == "dynamic" for column in shape.columns):
        return False
    for number in range(len(plan.sinks)):
        if await session.wants_profile(number, shape):
            return True
    return False


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


def _fingerprint(source: Source[Any], sink: Sink[Any]) -> str:
    return json.dumps(
        {"source": dict(source.fingerprint), "sink": dict(sink.fingerprint)},
        sort_keys=True,
        ensure_ascii=False,
    )


def _differences(old: str, now: str) -> str:
    try:
        before, after = json.loads(old), json.loads(now)
        names = [
            f"{name} of the {side}"
            for side in after
            for name in after[side]
            if before.get(side, {}).get(name) != after[side][name]
        ]
    except (ValueError, TypeError, AttributeError):
        names = []
    return ", ".join(names) or "the set-up"
