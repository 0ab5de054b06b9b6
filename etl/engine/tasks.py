"""Builds the tasks of a flow: from its plan and what was claimed to coroutines."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from time import monotonic
from typing import Any, TypeAlias

from etl.batch import Batch
from etl.connector import CheckpointKey, NewReject, Reader, Session
from etl.engine.arrows import run_arrow
from etl.engine.calls import run_parallel
from etl.engine.channel import Channel
from etl.engine.claims import Claim, Start
from etl.engine.forms import as_it_is, packing
from etl.engine.lane import Lane
from etl.engine.nodes import HeavyRows, Pump, run_fan_out, run_inline
from etl.engine.plan import Leg, Plan, is_own
from etl.engine.running import Node, RunningFlow
from etl.engine.segments import Route, Take
from etl.engine.turns import Turns
from etl.engine.workers import Worker
from etl.events import Committed, Event, Retrying, RowsRefused
from etl.flow import Stage
from etl.foreign import said
from etl.policy import Retry
from etl.stages import RowStep

Tell: TypeAlias = Callable[[Event], None]
Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The steps of a flow with each look-up's side loaded: once, whatever the number of lanes."""

    rows: Mapping[str, Sequence[RowStep]]
    inline: Mapping[int, Sequence[RowStep | Stage[Any, Any]]]  # by the identity of the leg


class Builder:
    """Builds the tasks of a run, flow by flow. They wait for the turn of their flow.

    Args:
        writer_ended: Told by each lane, or worker process, of a flow when it has ended.
        in_doubt: Told of a flow with a group of which an abort left unknown whether it is in.

    Attributes:
        units: The tasks' work, by name.
        patient: Those of them that run no coroutine of the user's; see ``supervise``.
    """

    def __init__(
        self,
        plan: Plan,
        turns: Turns,
        *,
        retry: Retry,
        tell: Tell,
        writer_ended: Callable[[RunningFlow], Awaitable[None]],
        in_doubt: Callable[[str], None],
    ) -> None:
        self.units: dict[str, Coroutine[Any, Any, None]] = {}
        self.patient: set[str] = set()
        self._plan = plan
        self._turns = turns
        self._retry = retry
        self._tell = tell
        self._writer_ended = writer_ended
        self._in_doubt = in_doubt
        self._heavy = HeavyRows(plan.limits)

    def build(
        self,
        flow: RunningFlow,
        readers: Sequence[Reader[Any]],
        start: Start,
        sessions: Sequence[Session],
        takes: Sequence[Take],
        steps: Steps,
        lane: int = 0,
    ) -> None:
        """The tasks from the readers to one lane for each target."""
        plan = flow.plan
        which = f" ({lane})" if lane > 1 else ""
        routes = {route.partition: route for route in start.routes}
        # One producer: what joins the branches, or else each of them.
        ends = 1 if plan.shared else len(plan.branches)
        row_keys = _row_keys(flow, readers)
        last = self._lanes(flow, start, sessions, routes, row_keys, producers=ends, which=which)
        left = plan.shared_size
        if plan.shared:
            joined = self._channel(flow, f"{plan.name}: merged", producers=len(plan.branches))
            where = plan.name + which
            pack = packing(sessions)
            self._legs(flow, where, plan.shared, joined, last, routes, steps, left, pack)
        else:
            joined = last
        for branch, reader, take in zip(plan.branches, readers, takes, strict=True):
            name = f"{plan.name}/{branch.partition}" if len(plan.branches) > 1 else plan.name
            name += which
            first = joined
            if branch.legs:
                first = self._channel(flow, f"{name}: read")
                of_legs = left + branch.size - len(branch.inline)
                pack = packing(sessions) if joined is last else as_it_is
                self._legs(flow, name, branch.legs, first, joined, routes, steps, of_legs, pack)
            pump = Pump(
                flow=plan.name,
                reader=reader,
                take=take,
                steps=steps.rows[branch.partition],
                steps_left=left + branch.size,
                sets_aside=plan.sets_aside,
                pack=packing(sessions) if first is last else as_it_is,
                out=first,
                heavy=self._heavy,
                retry=self._retry,
                on_retry=self._told_retry,
            )
            flow.pumps.append(pump)
            source = f"source of flow {name!r}"
            self._add(flow, source, pump.run, None, first)
            if not is_own(branch.source):
                self.patient.add(source)

    def build_workers(
        self,
        flow: RunningFlow,
        readers: Sequence[Reader[Any]],
        start: Start,
        workers: Sequence[Worker],
    ) -> None:
        """The tasks that wait for worker processes, and the lanes that end what those did."""
        routes = {route.partition: route for route in start.routes}
        for claim in start.claims:
            nothing: Channel[Batch[Any]] = Channel("nothing", max_items=1, max_bytes=1)
            keys = _row_keys(flow, readers)
            flow.lanes.append(self._lane(flow, claim, claim.session, routes, keys, nothing))
        for worker in workers:
            flow.workers.append(worker)
            work = partial(self._to_end, flow, worker.run)
            self._add(flow, worker.name, work, None, worker=worker)
            self.patient.add(worker.name)

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
            work = partial(run_fan_out, feed, outs)
            self._add(flow, f"fan-out of flow {name!r}", work, feed, *outs)
        return feed

    def _add_lane(
        self, unit: str, flow: RunningFlow, lane: Lane, source: Channel[Batch[Any]]
    ) -> None:
        self._add(flow, unit, partial(self._to_end, flow, lane.run), source, lane=lane)
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
        updated = updating(claim)

        def completes() -> Sequence[CheckpointKey]:
            if plan.incremental or not flow.exhausted:
                return ()
            return claim.completes()

        def committed(name: str, rows: int, _: int, seconds: float) -> None:
            self._tell(
                Committed(
                    flow=name,
                    rows=rows,
                    total_rows=flow.rows_written,
                    seconds=round(seconds, 6),
                )
            )

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
                if claim.layout is None and key.sink in updated and place is None
            ],
            row_keys=[names for names in row_keys if names],
            on_refused=partial(self._told_refused, flow),
            on_commit=committed,
            on_retry=self._told_retry,
            on_doubt=self._in_doubt,
        )

    def _add(
        self,
        flow: RunningFlow,
        name: str,
        work: Work,
        source: Channel[Batch[Any]] | None,
        *outs: Channel[Batch[Any]],
        lane: Lane | None = None,
        worker: Worker | None = None,
    ) -> None:
        self.units[name] = self._in_turn(flow, work)
        flow.nodes.append(Node(name, source, outs, lane, worker))

    async def _in_turn(self, flow: RunningFlow, work: Work) -> None:
        await self._turns.wait(flow.plan.name)
        await work()

    def _legs(
        self,
        flow: RunningFlow,
        name: str,
        legs: Sequence[Leg],
        first: Channel[Batch[Any]],
        last: Channel[Batch[Any]],
        routes: Mapping[str, Route],
        steps: Steps,
        steps_left: int,
        pack: Callable[[Batch[Any]], Batch[Any]],
    ) -> None:
        sets_aside = flow.plan.sets_aside
        for number, leg in enumerate(legs):
            out = last
            if number < len(legs) - 1:
                out = self._channel(flow, f"{name}: after {leg.label}")
            work: Work
            if leg.arrow:
                work = partial(
                    run_arrow,
                    leg.arrow,
                    first,
                    out,
                    pack if out is last else as_it_is,
                    sets_aside=sets_aside,
                    steps_left=steps_left,
                )
            elif leg.parallel is not None:
                work = partial(
                    run_parallel,
                    leg.parallel,
                    first,
                    out,
                    partial(self._told_retry, name),
                    sets_aside=sets_aside,
                    steps_left=steps_left,
                )
            else:
                work = partial(
                    run_inline,
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

    async def _to_end(self, flow: RunningFlow, write: Work) -> None:
        flow.started = flow.started or monotonic()
        await write()
        await self._writer_ended(flow)

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


def _row_keys(flow: RunningFlow, readers: Sequence[Reader[Any]]) -> list[tuple[str, ...]]:
    """The columns that may identify a row: of each source, and of each sink."""
    found = [tuple(reader.shape.key) for reader in readers if reader.shape is not None]
    return [*found, *(sink.key for sink in flow.plan.sinks)]


def updating(claim: Claim) -> set[str]:
    """The tables in which a row that comes again takes the place of the one that is there."""
    sinks = claim.plan.sinks.values()
    return {sink.table for sink in sinks if sink.mode == "upsert" and not sink.add}
