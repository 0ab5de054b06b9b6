"""One flow of a run: the objects that its tasks work on, and what they tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from etl.batch import Batch
from etl.connector import (
    Advance,
    Checkpoint,
    CheckpointKey,
    Instant,
    Reader,
    Resting,
    Session,
    Target,
)
from etl.engine.bad_rows import BadRows
from etl.engine.channel import Channel
from etl.engine.claims import Claim
from etl.engine.lane import Lane
from etl.engine.nodes import Pump
from etl.engine.plan import FlowPlan
from etl.engine.workers import Worker
from etl.errors import EtlError
from etl.events import FlowReport, FlowStats
from etl.rows import Shape


@dataclass(frozen=True, slots=True)
class Node:
    """A task of a flow and the channels at its ends; none where a database is."""

    name: str
    source: Channel[Batch[Any]] | None
    outs: Sequence[Channel[Batch[Any]]]
    lane: Lane | None = None
    worker: Worker | None = None

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
    readers: list[Reader[Any]] = field(default_factory=list[Reader[Any]])
    sessions: list[Session] = field(default_factory=list[Session])
    notes: list[str] = field(default_factory=list[str])
    pumps: list[Pump] = field(default_factory=list[Pump])
    channels: list[Channel[Batch[Any]]] = field(default_factory=list[Channel[Batch[Any]]])
    nodes: list[Node] = field(default_factory=list[Node])
    claims: tuple[Claim, ...] = ()
    lanes: list[Lane] = field(default_factory=list[Lane])
    workers: list[Worker] = field(default_factory=list[Worker])
    writers_ended: int = 0
    shape: Shape | None = None  # of the rows that reach the sinks
    profiled: bool = False  # the shape was settled by a look at all values
    is_published: bool = False  # what it staged is in place, before the end of the run
    is_done: bool = False  # an append of a full read that was complete before this run
    started: float | None = None
    ended: float | None = None

    @property
    def exhausted(self) -> bool:
        """Every source was read to its end."""
        ends = [one.exhausted for one in self.pumps] + [one.exhausted for one in self.workers]
        return self.is_done or (bool(ends) and all(ends))

    @property
    def writers(self) -> int:
        """How many lanes, or worker processes, write it."""
        return len(self.workers) or len(self.lanes)

    @property
    def rows_read(self) -> int:
        return sum(one.rows for one in self.pumps) + sum(one.rows for one in self.workers)

    @property
    def bytes_read(self) -> int:
        return sum(one.nbytes for one in self.pumps) + sum(one.nbytes for one in self.workers)

    @property
    def rows_written(self) -> int:
        here = sum(lane.rows_written for lane in self.lanes)
        return here + sum(worker.rows_written for worker in self.workers)

    @property
    def transactions(self) -> int:
        here = sum(lane.transactions for lane in self.lanes)
        return here + sum(worker.transactions for worker in self.workers)

    @property
    def moved(self) -> int:
        """A figure that grows whenever anything moves."""
        return (
            sum(channel.moved for channel in self.channels)
            + sum(worker.moved for worker in self.workers)
            + sum(lane.rows_written + lane.transactions for lane in self.lanes)
        )

    def request_drain(self) -> None:
        """Stop reading soon; what was read is still committed."""
        for pump in self.pumps:
            pump.request_drain()
        for worker in self.workers:
            worker.request_drain()

    async def culprits(self) -> list[str]:
        """The tasks that wait for no channel, and what blocks them."""
        names: list[str] = []
        for node in self.nodes:
            if node.waits_for_a_channel:
                continue
            why = None
            if node.lane is not None:
                why = await _blocker(node.lane)
            elif node.worker is not None:
                why = await node.worker.culprits()
            names.append(f"{node.name} ({why})" if why else node.name)
        return names

    def stats(self) -> FlowStats:
        """Figures for now."""
        return FlowStats(
            name=self.plan.name,
            state="ended" if self.ended else "running" if self.started else "waiting",
            rows_read=self.rows_read,
            rows_written=self.rows_written,
            rows_rejected=self.bad_rows.rejected,
            rows_skipped=self.bad_rows.skipped,
            bytes_read=self.bytes_read,
            channels=[channel.stats() for channel in self.channels]
            + [stats for worker in self.workers for stats in worker.channels],
        )

    def report(self) -> FlowReport:
        """What the flow has done."""
        started = self.started or 0.0
        return FlowReport(
            name=self.plan.name,
            sinks=tuple(sink.table for sink in self.plan.sinks),
            rows_read=self.rows_read,
            rows_written=self.rows_written,
            rows_rejected=self.bad_rows.rejected,
            rows_skipped=self.bad_rows.skipped,
            bytes_read=self.bytes_read,
            transactions=self.transactions,
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

    def unstaged(self, target: Target) -> dict[CheckpointKey, Checkpoint]:
        """The checkpoints in one database that no publication moves, as this run left them."""
        return {
            key: checkpoint
            for claim in self.claims
            if claim.plan.target == target
            for key, checkpoint in claim.checkpoints.items()
            if key.sink not in claim.staged
        }

    @property
    def is_at_one_instant(self) -> bool:
        """A source is read at the instant that the run's full reads share."""
        return any(isinstance(one, Instant) and one.at_one_instant for one in self.readers)

    @property
    def is_resumed(self) -> bool:
        """Some rows of its read were taken by an earlier run."""
        return any(
            checkpoint.position is not None and not checkpoint.complete
            for claim in self.claims
            for checkpoint in claim.checkpoints.values()
        )

    async def rest(self) -> None:
        """Give up the connections of its readers and sessions, until they are used again."""
        for one in (*self.readers, *self.sessions):
            if isinstance(one, Resting):
                await one.rest()


async def _blocker(lane: Lane) -> str | None:
    try:
        return await lane.session.blocked_by()
    except (EtlError, TimeoutError):
        return None  # the database cannot be asked now; what is known is told all the same
