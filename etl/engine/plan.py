"""From flows to what will run: legs, channels and their share of the memory. No I/O.

A branch reads one source. Its steps are cut into legs where concurrency changes: row functions and
stages next to each other run in one task, and each ``map_batches`` has a task of its own. A channel
stands between two tasks and nowhere else. Row functions right after a source run in the
source's own task.

Free of deadlock: channels form trees that end in lanes. In a state where every task waits on a
channel, one that waits to put has a full channel behind it, so its consumer is not waiting for
input; follow that to a lane, which puts nowhere: contradiction. Nothing shared is held
while waiting on a channel, so there is no global byte budget: the limit is divided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from itertools import groupby
from typing import Any, TypeAlias, cast

from etl.connector import Sink, Target
from etl.errors import ConfigError
from etl.figures import plural
from etl.flow import (
    Filter,
    FlatMap,
    Flow,
    Lookup,
    Map,
    MapArrow,
    MapBatches,
    Merged,
    Source,
    Stage,
    Step,
    Stream,
    name_of,
)
from etl.policy import WORKER_BYTES, DeadLetter, Limits, OnError

Inline: TypeAlias = "tuple[Map | Filter | FlatMap | Lookup | Stage[Any, Any], ...]"

_LANE_PARTS = 3  # the group, its encoded form, and what the driver buffers
_SMALLEST_PART = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One task between two channels: row functions and stages, one ``map_batches``, or functions
    of Arrow."""

    inline: Inline = ()
    parallel: MapBatches | None = None
    arrow: tuple[MapArrow, ...] = ()

    @property
    def size(self) -> int:
        """How many steps it has."""
        return len(self.inline) or len(self.arrow) or 1

    @property
    def label(self) -> str:
        if self.parallel is not None:
            many = f" x{self.parallel.concurrency}" if self.parallel.concurrency > 1 else ""
            return f"map_batches {name_of(self.parallel.function)}{many}"
        return " > ".join(step_label(step) for step in (*self.inline, *self.arrow))


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchPlan:
    """One source: ``inline`` row functions run in its task, then the legs."""

    partition: str
    source: Source[Any]
    inline: Inline
    legs: tuple[Leg, ...]

    @property
    def size(self) -> int:
        """How many steps its rows pass before a merge."""
        return len(self.inline) + sum(leg.size for leg in self.legs)


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePlan:
    """The sinks of a flow that are in one database, by their number in the flow."""

    target: Target
    sinks: Mapping[int, Sink[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowPlan:
    """One flow. ``shared`` legs come after a merge; each of the ``lanes`` gets every batch.

    Attributes:
        jobs: How many key ranges are read and written at once, each by lanes of its own.
        one_job: Why it is one although more were asked for.
        processes: In how many worker processes that is done: in 1, this one, or in ``jobs``.
        one_process: Why in this one although more were asked for.
    """

    flow: Flow
    branches: tuple[BranchPlan, ...]
    shared: tuple[Leg, ...]
    lanes: tuple[LanePlan, ...]
    on_error: OnError
    jobs: int = 1
    one_job: str | None = None
    processes: int = 1
    one_process: str | None = None

    @property
    def name(self) -> str:
        return self.flow.name

    @property
    def sinks(self) -> tuple[Sink[Any], ...]:
        return self.flow.sinks

    @property
    def is_untouched(self) -> bool:
        """Nothing looks at the rows on their way to a single sink, not even for a bad one."""
        steps = [(*one.inline, *one.legs) for one in self.branches]
        alone = len(self.sinks) == 1 and not self.shared and not any(steps)
        return alone and not self.sets_aside

    @property
    def sets_aside(self) -> bool:
        """Whether a bad row does not end the run."""
        return self.on_error != "fail"

    @property
    def shared_size(self) -> int:
        """How many steps come after the merge."""
        return sum(leg.size for leg in self.shared)

    @property
    def channels(self) -> int:
        """How many channels stand in the flow."""
        fan_out = len(self.lanes) if len(self.lanes) > 1 else 0
        legs = sum(len(branch.legs) for branch in self.branches) + len(self.shared)
        return self.jobs * (legs + 1 + fan_out)

    @property
    def parts(self) -> int:
        """Shares of the memory: channels, calls at once, and the lanes."""
        legs = [leg for branch in self.branches for leg in branch.legs] + list(self.shared)
        calls = sum(leg.parallel.concurrency for leg in legs if leg.parallel is not None)
        return self.channels + self.jobs * (calls + _LANE_PARTS * len(self.lanes))

    @property
    def connections(self) -> int:
        """How many it has to each database at once. With worker processes the run itself has one
        more, with which it begins and ends the flow."""
        return self.jobs + (self.processes > 1)

    @property
    def incremental(self) -> bool:
        """Whether a run continues after the last complete one."""
        return all(branch.source.incremental for branch in self.branches)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run of a pipeline will do.

    Attributes:
        share: Bytes that one channel, one call or a third of a lane may hold.
        one_instant: Full reads of one database are all of one instant, where it offers that.
        publishes_each: A replaced table is put in place when its flow has ended, not when all have.
    """

    pipeline: str
    flows: tuple[FlowPlan, ...]
    limits: Limits
    share: int
    one_instant: bool = False
    publishes_each: bool = False

    @property
    def processes(self) -> int:
        """Worker processes at once; 1: none, all is done in this one."""
        return max(flow.processes for flow in self.flows)

    @property
    def targets(self) -> Mapping[Target, int]:
        """The databases written to, and the sessions that each needs at once.

        In order of their names: each is locked for the pipeline when it is opened, and two runs
        that lock in different orders would wait for each other.
        """
        jobs: dict[Target, list[int]] = {}
        lanes = [(lane.target, flow.connections) for flow in self.flows for lane in flow.lanes]
        for target, of_flow in sorted(lanes, key=lambda lane: lane[0].name):
            jobs.setdefault(target, []).append(of_flow)
        return {target: _at_once(of_flows, self.limits) for target, of_flows in jobs.items()}

    def explain(self) -> list[str]:
        """The plan in lines for a person."""
        readers = _at_once(
            [len(flow.branches) * flow.connections for flow in self.flows], self.limits
        )
        number, most = len(self.flows), self.limits.flows
        together = " together" if number <= most else f", {most} at once in this order"
        lines = [
            (
                f"pipeline {self.pipeline}: {plural(number, 'flow')}{together},"
                f" {plural(readers, 'connection')} for reading,"
                f" {sum(self.targets.values())} for writing"
            ),
            (
                f"memory {_size(self.limits.memory_bytes)}: {_size(self.share)} a channel, batches"
                f" of {self.limits.batch_rows} rows or {_size(self.limits.batch_nbytes)} at most"
            ),
        ]
        if self.processes > 1:
            lines.append(_processes_line(self.limits))
        if self.one_instant:
            lines.append(
                "instant: all full reads from one PostgreSQL database are of one snapshot, which"
                " holds vacuum back until the last of them has ended; other sources are read table"
                " by table, each at an instant of its own"
            )
        for flow in self.flows:
            after = f", after {', '.join(flow.flow.after)}" if flow.flow.after else ""
            lines.append(f"flow {flow.name}{after}")
            for branch in flow.branches:
                lines.append(f"  read   {branch.source.summary}")
                if branch.inline:
                    lines.append(f"  rows   {_labels(branch.inline)} (in the reading task)")
                lines += [_leg_line(leg) for leg in branch.legs]
            lines += [_leg_line(leg) for leg in flow.shared]
            if len(flow.lanes) > 1:
                lines.append(
                    f"  fan    each batch goes to {len(flow.lanes)} databases, each with positions"
                    " and transactions of its own; the slowest sets the pace"
                )
            for sink in flow.sinks:
                lines.append(f"  write  {_sink_line(sink, each=self.publishes_each)}")
            lines += [f"  lanes  {line}" for line in _jobs_lines(flow)]
            lines.append(f"  resume {_resume_line(flow)}")
            if len(flow.sinks) > 1:
                lines.append(
                    "  resume each sink where it stands; what only some lack is read for them first"
                )
            lines.append(f"  bad rows {_bad_rows_line(flow.on_error)}")
        replaced = {
            sink.target for flow in self.flows for sink in flow.sinks if sink.mode == "replace"
        }
        if len(replaced) > 1 and not self.publishes_each:
            lines.append(
                f"replaced tables in {len(replaced)} databases are put in place in one transaction"
                " each, one after the other: together within a database, not across them"
            )
        return lines


def make_plan(
    name: str,
    flows: Sequence[Flow],
    limits: Limits,
    *,
    on_error: OnError = "fail",
    override: bool = False,
    one_instant: bool = False,
    publishes_each: bool = False,
) -> Plan:
    """Plan a pipeline.

    Args:
        on_error: What becomes of the bad rows of flows that do not say it themselves; with
            ``override``, of all flows.

    Raises:
        ConfigError: Flows or sinks that cannot run together.
    """
    _check_names(name, flows)
    _check_order(name, flows)
    planned = tuple(
        _plan_flow(flow, on_error if override else flow.on_error or on_error, limits)
        for flow in flows
    )
    limits = replace(limits, processes=max((flow.processes for flow in planned), default=1))
    parts = _at_once([flow.parts for flow in planned], limits)
    share = limits.rows_bytes // parts
    if share < _SMALLEST_PART:
        beside = f" beside {limits.processes} worker processes" if limits.workers_bytes else ""
        raise ConfigError(
            f"pipeline {name!r}: memory {_size(limits.memory_bytes)} is too little for {parts}"
            f" shares{beside}; give it at least"
            f" {_size(parts * _SMALLEST_PART + limits.workers_bytes)}"
        )
    return Plan(
        pipeline=name,
        flows=planned,
        limits=limits,
        share=share,
        one_instant=one_instant,
        publishes_each=publishes_each,
    )


def _at_once(of_flows: Sequence[int], limits: Limits) -> int:
    """The most that the flows which go on at once need together."""
    return sum(sorted(of_flows)[-limits.flows :])


def _check_names(name: str, flows: Sequence[Flow]) -> None:
    seen: set[str] = set()
    modes: dict[tuple[Target, str], str] = {}
    for flow in flows:
        if flow.name in seen:
            raise ConfigError(
                f"pipeline {name!r} has two flows called {flow.name!r}; give one another name with"
                " .named(...), because positions are kept by it"
            )
        seen.add(flow.name)
        own = [(sink.target, sink.table) for sink in flow.sinks]
        if len(set(own)) < len(own):
            raise ConfigError(f"flow {flow.name!r} writes into one table twice")
        for sink in flow.sinks:
            table = (sink.target, sink.table)
            if table in modes and "replace" in {modes[table], sink.mode}:
                raise ConfigError(
                    f"pipeline {name!r}: two sinks load {sink.table!r}, one of them as replace"
                )
            modes[table] = sink.mode


def _check_order(name: str, flows: Sequence[Flow]) -> None:
    """Refuse flows that wait for what is not there, or for each other."""
    waits = {flow.name: set(flow.after) for flow in flows}
    for flow, others in waits.items():
        for other in others - waits.keys():
            raise ConfigError(
                f"pipeline {name!r} has no flow {other!r}, after which {flow!r} is to run"
            )
    try:
        TopologicalSorter(waits).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        raise ConfigError(
            f"pipeline {name!r}: flows wait for each other in a circle: {' after '.join(circle)}"
        ) from error


def _plan_flow(flow: Flow, on_error: OnError, limits: Limits) -> FlowPlan:
    stream = flow.stream
    branches = tuple(_plan_branch(name, branch) for name, branch in flow.branches.items())
    shared = make_legs(stream.steps) if isinstance(stream.origin, Merged) else ()
    plan = FlowPlan(
        flow=flow, branches=branches, shared=shared, lanes=_lanes(flow), on_error=on_error
    )
    _check_rejects(plan)
    if len(plan.lanes) > 1:
        for branch in branches:
            if is_own(branch.source) and not can_order(branch.source):
                raise ConfigError(
                    f"flow {flow.name!r} writes into {len(plan.lanes)} databases, which may stand"
                    f" at different positions after a stop. {type(branch.source).__name__} must say"
                    " which of them comes first: give it an order() beside its read(), or make a"
                    " flow for each database"
                )
    if len({branch.source.incremental for branch in branches}) > 1:
        raise ConfigError(
            f"flow {flow.name!r} merges sources with a cursor and sources without; make two flows"
        )
    if plan.incremental and any(
        sink.mode == "replace" and not is_own(branch.source)
        for sink in flow.sinks
        for branch in branches
    ):
        raise ConfigError(
            f"flow {flow.name!r}: replace loads the whole table anew, so its source takes no"
            " cursor=; use upsert or append for an incremental read"
        )
    if limits.lanes == limits.processes == 1:
        return plan
    if why := _one_job(plan):
        return replace(plan, one_job=why)
    if limits.processes == 1:
        return replace(plan, jobs=limits.lanes)
    if why := _one_process(plan):
        return replace(plan, jobs=limits.lanes, one_process=why)
    return replace(plan, jobs=limits.processes, processes=limits.processes)


def _check_rejects(plan: FlowPlan) -> None:
    """Refuse to keep bad rows where there is no place for them."""
    for lane in plan.lanes:
        if isinstance(plan.on_error, DeadLetter) and not lane.target.keeps_rejects:
            raise ConfigError(
                f"flow {plan.name!r}: {lane.target.name} has no table for rows that are refused;"
                " on_error= is 'fail' or 'skip' there"
            )


def _one_job(plan: FlowPlan) -> str | None:
    """Why a flow is not cut into key ranges."""
    if len(plan.branches) > 1:
        return "the sources of a merge are read at once as they are"
    if plan.incremental:
        return "what a cursor reads is one partition, in the cursor's order"
    steps = plan.flow.stream.steps
    for step in steps:
        if isinstance(step, Stage) and not step.per_partition:
            return (
                f"the stage {step.name} may look across key ranges; @stage(per_partition=True)"
                " says that it does not"
            )
    changing = [step for step in steps if not isinstance(step, Filter)]
    upserts = [sink for sink in plan.sinks if sink.mode == "upsert"]
    if changing and upserts:
        return (
            f"{step_label(changing[0])} may change the key of {upserts[0].table!r}, so two lanes"
            " could write one row"
        )
    return None


def _one_process(plan: FlowPlan) -> str | None:
    """Why worker processes do not serve a flow that is cut into key ranges."""
    source, steps = plan.branches[0].source, plan.flow.stream.steps
    if not steps:
        return "no function looks at the rows, so Python has little to do"
    for step in steps:
        if isinstance(step, Lookup):
            return f"{step_label(step)} has its side table in the memory of this one"
    for lane in plan.lanes:
        if not lane.target.takes_workers:
            return f"{lane.target.name} is not written by several at once"
    if not source.takes_workers:
        return f"{source.summary} is not read by several"
    return None


def _lanes(flow: Flow) -> tuple[LanePlan, ...]:
    """The sinks by database: those of one share their transactions."""
    found: dict[Target, dict[int, Sink[Any]]] = {}
    for number, sink in enumerate(flow.sinks):
        found.setdefault(sink.target, {})[number] = sink
    return tuple(LanePlan(target=target, sinks=sinks) for target, sinks in found.items())


def can_order(source: object) -> bool:
    """Whether a user's own source can serve sinks at different positions."""
    kind: Any = type(source)
    base: Any = Source
    return kind.order is not base.order or kind.connect is not base.connect


def is_own(source: object) -> bool:
    """A source that a user wrote, as a ``read``."""
    kind: Any = type(source)
    base: Any = Source
    return kind.read is not base.read and kind.connect is base.connect


def _plan_branch(partition: str, stream: Stream[Any]) -> BranchPlan:
    source = stream.origin
    if not isinstance(source, Source):
        raise ConfigError("a branch of a merge is one source with steps")
    steps = stream.steps
    lead: list[Map | Filter | FlatMap | Lookup] = []
    for step in steps:
        if not isinstance(step, Map | Filter | FlatMap | Lookup):
            break
        lead.append(step)
    return BranchPlan(
        partition=partition, source=source, inline=tuple(lead), legs=make_legs(steps[len(lead) :])
    )


def make_legs(steps: Sequence[Step]) -> tuple[Leg, ...]:
    """Cut steps where concurrency changes."""
    legs: list[Leg] = []
    for of_task, some in groupby(steps, key=_task_of):
        match of_task:
            case "parallel":
                legs += [Leg(parallel=cast("MapBatches", step)) for step in some]
            case "arrow":
                legs.append(Leg(arrow=tuple(cast("Iterable[MapArrow]", some))))
            case _:
                legs.append(Leg(inline=cast("Inline", tuple(some))))
    return tuple(legs)


def _task_of(step: Step) -> str:
    """Neighbours of the same answer run in one task, but for those in parallel."""
    if isinstance(step, MapBatches):
        return "parallel"
    return "arrow" if isinstance(step, MapArrow) else "inline"


def step_label(step: Step) -> str:
    """A step in a few words."""
    match step:
        case Map(function):
            return f"map {name_of(function)}"
        case Filter(predicate):
            return f"filter {name_of(predicate)}"
        case FlatMap(function):
            return f"flat_map {name_of(function)}"
        case MapBatches(function):
            return f"map_batches {name_of(function)}"
        case MapArrow(function):
            return f"map_arrow {name_of(function)}"
        case Lookup(side=side):
            return f"lookup {side.flow_name}"
        case Stage():
            return f"stage {step.name}"


def _leg_line(leg: Leg) -> str:
    if not leg.arrow:
        return f"  stage  {leg.label} (own task)"
    return f"  arrow  {leg.label} (whole columns, in a thread)"


def _labels(steps: Inline) -> str:
    return " > ".join(step_label(step) for step in steps)


def _sink_line(sink: Sink[Any], *, each: bool) -> str:
    how: str = sink.mode
    if sink.key:
        how += f" by ({', '.join(sink.key)})"
    if sink.add:
        how += f", adding up ({', '.join(sink.add)})"
    if sink.mode == "upsert":
        how += "; deleted rows are not seen, a changed key leaves its old row"
    if sink.mode == "replace":
        how += " when its flow has ended well" if each else " when every flow has ended well"
    if sink.schema_change == "evolve":
        how += "; columns that the table lacks are added to it"
    if sink.schema_change == "ignore":
        how += "; columns that the table lacks are left out"
    return f"{sink.target.name} {sink.table}: {how}; exactly once, rows and position together"


def _jobs_lines(flow: FlowPlan) -> list[str]:
    if flow.one_job is not None:
        return [f"one: {flow.one_job}"]
    in_one = [f"in one process: {flow.one_process}"] if flow.one_process is not None else []
    if flow.jobs == 1:
        return in_one
    each = "each in a process and" if flow.processes > 1 else "each"
    text = (
        f"{flow.jobs}, {each} with connections of its own: the source is cut into key ranges, each"
        " with a position of its own. A table of a few batches, or without a key, is not cut"
    )
    lines = [text, *in_one]
    if any(sink.mode == "upsert" for sink in flow.sinks):
        lines.append("only where the source's key is the key of the upsert; else one")
    if flow.flow.stream.steps and flow.processes == 1:
        lines.append(
            "functions run in one process: lanes share its one processor core for them"
            " (--processes, Limits(processes=))"
        )
    lines += [
        f"{lane.target.name} has one writer at a time: there the lanes take turns"
        for lane in flow.lanes
        if lane.target.has_one_writer
    ]
    return lines


def _processes_line(limits: Limits) -> str:
    own = _size(WORKER_BYTES)
    counted = f"each counts as {own} of the memory"
    beside = f"each takes about {own} beside the memory for rows"
    return (
        f"processes {limits.processes} at once, for one flow after the other;"
        f" {counted if limits.workers_bytes else beside}"
    )


def _resume_line(flow: FlowPlan) -> str:
    if flow.incremental:
        return "after the last committed position; a run with nothing new moves nothing"
    return (
        "an unfinished read continues after its last key (each key range is read once, at one of"
        " several instants); a finished one starts anew"
    )


def _bad_rows_line(policy: OnError) -> str:
    if policy == "fail":
        return "end the run; nothing of their group is written"
    bounds = policy if isinstance(policy, DeadLetter) else DeadLetter()
    how = "go into etl_reject" if isinstance(policy, DeadLetter) else "are counted and left out"
    return (
        f"{how}, up to {bounds.max_rows}, or {bounds.max_share:.3g} of the last"
        f" {bounds.window_rows} rows"
    )


def _size(nbytes: int) -> str:
    for size, unit in ((1024 * 1024, "MiB"), (1024, "KiB")):
        if nbytes >= size:
            return f"{nbytes / size:.3g} {unit}"
    return f"{nbytes} B"
