"""Results as tables and lines on stdout."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby

from etl.batch import MAIN_PARTITION, encode_position
from etl.cli.screen import Screen
from etl.databases.database import Finding, State
from etl.engine.holder import describe, is_alive_here
from etl.events import FlowReport, Report
from etl.figures import count, duration, printable, size
from etl.observe.jsonlines import as_line
from etl.observe.sentences import refused
from etl.pipeline import Pipeline


def show_report(screen: Screen, report: Report, *, incremental: Mapping[str, bool]) -> None:
    """What each flow did, then the whole run on one line.

    Args:
        incremental: By flow: whether a read that found nothing means that all is up to date.
    """
    rows = [_flow_cells(flow, incremental.get(flow.name, False)) for flow in report.flows]
    if len(rows) > 1:
        nbytes = sum(flow.bytes_read for flow in report.flows)
        figures = (count(report.rows_read), count(report.rows_written), size(nbytes))
        rows.append(("total", *figures, duration(report.seconds), ""))
    head = ("flow", "rows read", "rows written", "bytes", "time", "")
    screen.table(head, rows, right="<>>>>", fit=True)
    if report.rows_read or report.rows_written:
        per_second = report.rows_read / report.seconds if report.seconds > 0 else 0.0
        moved = f"{count(round(per_second))} rows/s"
    else:
        moved = "nothing moved"
    line = f"{report.pipeline}: {report.status} in {duration(report.seconds)}, {moved}"
    screen.out(printable(line), style="bold")


def _flow_cells(flow: FlowReport, incremental: bool) -> tuple[str, ...]:
    remark = ""
    if flow.already_complete:
        remark = "complete already: nothing read"
    elif not flow.rows_read and not flow.rows_written and flow.exhausted:
        remark = "up to date: nothing new" if incremental else "nothing to read"
    elif not flow.exhausted:
        remark = "not finished"
    remark = (remark + refused(flow.rows_rejected, flow.rows_skipped)).removeprefix(", ")
    return (
        flow.name,
        count(flow.rows_read),
        count(flow.rows_written),
        size(flow.bytes_read),
        duration(flow.seconds),
        remark,
    )


def show_states(screen: Screen, states: Sequence[State]) -> None:
    """The checkpoints of a target."""
    if screen.json:
        for state in states:
            screen.out(as_line(_state_record(state)))
        return
    for pipeline, group in groupby(states, key=lambda state: state.key.pipeline):
        screen.out(printable(pipeline), style="bold")
        of_pipeline = list(group)
        _show_positions(screen, of_pipeline)
        for line in _holder_lines(of_pipeline):
            screen.out(printable(line))


def _show_positions(screen: Screen, states: Sequence[State]) -> None:
    """The checkpoints of one pipeline; partitions only where there are several."""
    parted = any(state.key.partition != MAIN_PARTITION for state in states)
    rows = [
        (
            state.key.flow,
            state.key.sink,
            *([state.key.partition] if parted else []),
            encode_position(state.checkpoint.position) or "-",
            count(state.checkpoint.rows),
            "yes" if state.checkpoint.complete else "no",
            re.sub(r"\.\d+", "", state.updated_at or "-"),
        )
        for state in states
    ]
    partition = ["partition"] if parted else []
    head = ["flow", "sink", *partition, "position", "rows", "complete", "updated"]
    screen.table(head, rows, right="<" * len(partition) + "<<<>", indent="  ")


def _holder_lines(states: Sequence[State]) -> list[str]:
    """Who runs a pipeline, or ran it last: one line for each process."""
    lines: list[str] = []
    for holder in dict.fromkeys(state.holder for state in states if state.holder):
        alive = "; that process is alive" if is_alive_here(holder) else ""
        lines.append(f"  held last by {describe(holder)}{alive}")
    return lines


def _state_record(state: State) -> dict[str, object]:
    position = state.checkpoint.position
    return {
        **asdict(state.key),
        "position": None if position is None else list(position),
        "rows": state.checkpoint.rows,
        "complete": state.checkpoint.complete,
        "epoch": state.checkpoint.epoch,
        "fingerprint": json.loads(state.checkpoint.fingerprint or "null"),
        "run_id": state.run_id,
        "updated_at": state.updated_at,
        "holder": _json_or_text(state.holder),
    }


def _json_or_text(holder: str | None) -> object:
    try:
        return json.loads(holder) if holder is not None else None
    except ValueError:  # an etl before the first release wrote another form
        return holder


def show_findings(screen: Screen, database: str, findings: Sequence[Finding]) -> None:
    """What ``etl check`` found in one database."""
    if screen.json:
        for finding in findings:
            screen.out(as_line({"database": database, **asdict(finding)}))
        return
    screen.out(printable(database), style="bold")
    for finding in findings:
        style = {"ok": "", "warning": "yellow", "error": "bold red"}[finding.state]
        line = f"  {finding.state:<7}  {finding.subject}: {finding.message}"
        screen.out(printable(line), style=style)


def show_pipelines(screen: Screen, found: Sequence[tuple[str, Pipeline]]) -> None:
    """Where each pipeline stands, and its flows."""
    if screen.json:
        for target, pipeline in found:
            flows = [flow.name for flow in pipeline.flows]
            screen.out(as_line({"target": target, "pipeline": pipeline.name, "flows": flows}))
        return
    rows = [(target, p.name, ", ".join(flow.name for flow in p.flows)) for target, p in found]
    if rows:
        screen.table(("FILE:NAME", "pipeline", "flows"), rows)


def show_plan(screen: Screen, pipeline: str, lines: Sequence[str]) -> None:
    """What a run would do."""
    if screen.json:
        screen.out(as_line({"pipeline": pipeline, "plan": list(lines)}))
        return
    for line in lines:
        screen.out(printable(line))
