"""Events as sentences, for logs and for people."""

from __future__ import annotations

from etl.events import (
    Committed,
    Event,
    FlowEnded,
    Note,
    Retrying,
    RowsRefused,
    RunEnded,
    RunStarted,
    StateChanged,
)
from etl.figures import count, duration, plural


def sentence(event: Event) -> str:
    """One line that says what happened, without the pipeline's name."""
    match event:
        case RunStarted(run_id=run_id, flows=flows):
            return f"run {run_id} starts, {plural(len(flows), 'flow')}"
        case Note(flow=flow, message=message):
            return f"note on {flow}: {message}"
        case Committed(flow=flow, rows=rows, total_rows=total, seconds=seconds):
            return (
                f"{flow}: committed {plural(rows, 'row')} in {duration(seconds)},"
                f" {count(total)} so far"
            )
        case RowsRefused():
            how = "rejected" if event.kept else "skipped"
            return (
                f"{event.flow}: {plural(event.rows, 'row')} of {event.sink} {how}, the first by"
                f" {event.step}: {event.reason}"
            )
        case Retrying(flow=flow, what=what, attempt=attempt, wait_s=wait_s, error=error):
            return f"{flow}: {what} failed (try {attempt}): {error}; again in {duration(wait_s)}"
        case StateChanged(state=state, reason=reason):
            return f"{state}: {reason}"
        case FlowEnded(flow=flow, rows_read=read, rows_written=written, seconds=seconds):
            return (
                f"{flow}: ended, {plural(read, 'row')} read, {count(written)} written"
                f"{refused(event.rows_rejected, event.rows_skipped)} in {duration(seconds)}"
            )
        case RunEnded(report=report, error=error):
            what = (
                f"{report.status} in {duration(report.seconds)},"
                f" {plural(report.rows_read, 'row')} read, {count(report.rows_written)} written"
                f"{refused(report.rows_rejected, report.rows_skipped)}"
            )
            return f"{what}; {error}" if error else what


def refused(rejected: int, skipped: int) -> str:
    """How many bad rows there were, to be put behind other figures; empty for none."""
    parts = [f", {count(rejected)} rejected"] if rejected else []
    parts += [f", {count(skipped)} skipped"] if skipped else []
    return "".join(parts)
