"""What a run tells while it goes on: events for observers, figures for ``run.stats()``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypedDict

RunState: TypeAlias = Literal["starting", "running", "draining", "aborting", "ended"]
RunStatus: TypeAlias = Literal["completed", "drained", "aborted", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """Every database is open and checked; the flows start."""

    pipeline: str
    run_id: str
    flows: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """Something that a person should know; not an error."""

    flow: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A transaction of a lane is in. ``rows`` of it, ``total_rows`` of the run so far."""

    flow: str
    rows: int
    total_rows: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsRefused:
    """Bad rows of a transaction that is in.

    Attributes:
        rows: How many of one sink; ``total_rows`` of its flow in this run so far.
        kept: They are in ``etl_reject``; False: they were skipped.
        step: What refused the first of them, and ``reason``: why.
    """

    flow: str
    sink: str
    rows: int
    total_rows: int
    kept: bool
    step: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrying:
    """A passing failure; the same work is tried again after ``wait_s`` seconds."""

    flow: str
    what: str
    attempt: int
    wait_s: float
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged:
    """The run drains or aborts, and why."""

    state: RunState
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowEnded:
    """One flow has ended cleanly."""

    flow: str
    rows_read: int
    rows_written: int
    seconds: float
    rows_rejected: int = 0
    rows_skipped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowReport:
    """What one flow did in this run.

    Attributes:
        rows_read: Rows that the sources gave.
        rows_written: Rows that the sinks took, summed over the sinks.
        rows_rejected: Bad rows that are in ``etl_reject`` now, summed over the sinks.
        rows_skipped: Bad rows that were left out, summed over the sinks.
        bytes_read: Approximate bytes of the rows read.
        transactions: Commits with rows.
        exhausted: The sources had no more rows; False where a drain or an error came first.
        already_complete: An earlier run had added all rows, so nothing was read.
    """

    name: str
    sinks: tuple[str, ...]
    rows_read: int = 0
    rows_written: int = 0
    rows_rejected: int = 0
    rows_skipped: int = 0
    bytes_read: int = 0
    transactions: int = 0
    seconds: float = 0.0
    exhausted: bool = False
    already_complete: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run did. ``status`` is ``completed``, ``drained``, ``aborted`` or ``failed``."""

    pipeline: str
    run_id: str
    status: RunStatus
    started_at: str  # UTC, ISO 8601
    seconds: float
    flows: tuple[FlowReport, ...] = field(default=())

    @property
    def rows_read(self) -> int:
        return sum(flow.rows_read for flow in self.flows)

    @property
    def rows_written(self) -> int:
        return sum(flow.rows_written for flow in self.flows)

    @property
    def rows_rejected(self) -> int:
        return sum(flow.rows_rejected for flow in self.flows)

    @property
    def rows_skipped(self) -> int:
        return sum(flow.rows_skipped for flow in self.flows)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """The last event of a run; ``error`` is its one-line message, or None."""

    report: Report
    error: str | None


Event: TypeAlias = (
    RunStarted | Note | Committed | RowsRefused | Retrying | StateChanged | FlowEnded | RunEnded
)
Observer: TypeAlias = Callable[[Event], None]
"""Called on the event loop: must not block. What it raises is logged and never fails a run."""


class ChannelStats(TypedDict):
    """How full a channel is, and how long its ends have waited, in seconds."""

    name: str
    batches: int
    capacity_batches: int
    nbytes: int
    capacity_nbytes: int
    put_wait_s: float
    get_wait_s: float


class FlowStats(TypedDict):
    """One flow, now."""

    name: str
    state: Literal["waiting", "running", "ended"]
    rows_read: int
    rows_written: int
    rows_rejected: int
    rows_skipped: int
    bytes_read: int
    channels: list[ChannelStats]


class RunStats(TypedDict):
    """A run, now."""

    pipeline: str
    run_id: str
    state: RunState
    elapsed_s: float
    flows: list[FlowStats]
