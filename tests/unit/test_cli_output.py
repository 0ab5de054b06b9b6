"""What the command writes, and where: lines, tables, JSON, failures, the moving display."""

from __future__ import annotations

import io
import json
import re
import threading
from datetime import UTC, datetime
from typing import Literal

import pytest

from etl.cli.failure import show_failure
from etl.cli.live import LiveView
from etl.cli.render import show_report, show_states
from etl.cli.screen import Screen
from etl.connector import Checkpoint, CheckpointKey
from etl.databases.database import State
from etl.errors import (
    ChannelBrokenError,
    ConfigError,
    DataError,
    PipelineFailedError,
    SourceUnavailableError,
    StageError,
)
from etl.events import (
    ChannelStats,
    Committed,
    Event,
    FlowEnded,
    FlowReport,
    FlowStats,
    Note,
    Report,
    Retrying,
    RunEnded,
    RunStarted,
    RunStats,
    StateChanged,
)
from etl.foreign import because_of, named
from etl.observe.jsonlines import JsonLines
from etl.observe.log import LogEvents
from etl.observe.progress import ProgressLines
from etl.observe.rates import Rates

URL = "postgresql://me:s3cr3t-77@db/shop"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Both:
    """A screen and what was written on it."""

    def __init__(self, *, terminal: bool = False, **options: bool) -> None:
        self.stdout = Terminal() if terminal else io.StringIO()
        self.stderr = Terminal() if terminal else io.StringIO()
        self.screen = Screen(stdout=self.stdout, stderr=self.stderr, **options)

    @property
    def out(self) -> str:
        return self.stdout.getvalue()

    @property
    def err(self) -> str:
        return self.stderr.getvalue()


def report(**changes: object) -> Report:
    fields = {
        "pipeline": "orders",
        "run_id": "r1",
        "status": "completed",
        "started_at": "2024-01-01T00:00:00+00:00",
        "seconds": 2.0,
        "flows": (
            FlowReport(
                name="orders",
                sinks=("dw.orders",),
                rows_read=1000,
                rows_written=990,
                bytes_read=4096,
                seconds=1.5,
                exhausted=True,
            ),
            FlowReport(name="new", sinks=("dw.new",), exhausted=True),
            FlowReport(name="[red]\x1b[2J", sinks=("x",), exhausted=True),
        ),
        **changes,
    }
    return Report(**fields)  # type: ignore[arg-type]


def stats(
    flows: int = 2, rows: int = 1000, state: Literal["waiting", "running", "ended"] = "running"
) -> RunStats:
    channel = ChannelStats(
        name="c", batches=1, capacity_batches=16, nbytes=500, capacity_nbytes=1000,
        put_wait_s=0.0, get_wait_s=0.0,
    )  # fmt: skip
    return RunStats(
        pipeline="orders",
        run_id="r1",
        state="running",
        elapsed_s=2.0 + rows / 1000,
        flows=[
            FlowStats(
                name=f"flow[red]{i}", state=state, rows_read=rows, rows_written=rows // 2,
                rows_rejected=0, rows_skipped=0,
                bytes_read=rows * 10, channels=[channel],
            )
            for i in range(flows)
        ],
    )  # fmt: skip


# -- Streams ------------------------------------------------------------------------------------


def test_talk_goes_to_stderr_without_passwords_and_control_characters() -> None:
    both = Both()
    both.screen.say(f"table \x1b[2J of {URL}\nsecond")
    assert both.err == "table \\x1b[2J of postgresql://me:***@db/shop\n  second\n"
    assert both.out == ""


def test_colour_only_in_a_terminal_and_not_against_the_wish(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    both = Both(terminal=True)
    both.screen.error("x")
    assert both.err == "\x1b[1;31merror: x\x1b[0m\n"
    monkeypatch.setenv("NO_COLOR", "1")
    both = Both(terminal=True)
    both.screen.error("x")
    assert both.err == "error: x\n"
    both = Both()
    both.screen.error("x")
    assert both.err == "error: x\n"


# -- The report ---------------------------------------------------------------------------------


def test_the_report_has_a_line_for_each_flow_and_one_for_the_run() -> None:
    both = Both()
    show_report(both.screen, report(), incremental={"new": True})
    assert both.out.splitlines() == [
        "flow          rows read  rows written    bytes   time",
        "orders            1,000           990  4.0 KiB  1.5 s",
        "new                   0             0      0 B  0.0 s  up to date: nothing new",
        "[red]\\x1b[2J          0             0      0 B  0.0 s  nothing to read",
        "total             1,000           990  4.0 KiB  2.0 s",
        "orders: completed in 2.0 s, 500 rows/s",
    ]


def test_a_run_that_moved_nothing_says_so() -> None:
    both = Both()
    flow = FlowReport(name="new", sinks=("x",), exhausted=True)
    show_report(both.screen, report(flows=(flow,)), incremental={"new": True})
    assert both.out.endswith("orders: completed in 2.0 s, nothing moved\n")


def test_positions_as_a_table_and_as_json() -> None:
    key = CheckpointKey(pipeline="p", flow="f", sink="t\n", partition="main")
    checkpoint = Checkpoint(epoch=3, position=("ü", 2), rows=1200, fingerprint='{"mode": "append"}')
    states = [
        State(key=key, checkpoint=checkpoint, run_id="r", updated_at="2024-01-01 01:02:03.4+00")
    ]
    both = Both()
    show_states(both.screen, states)
    assert both.out.splitlines() == [
        "p",
        "  flow  sink  position   rows  complete  updated",
        '  f     t\\n   ["ü",2]   1,200  no        2024-01-01 01:02:03+00',
    ]
    both = Both(json=True)
    show_states(both.screen, states)
    record = json.loads(both.out)
    assert record["position"] == ["ü", 2]
    assert record["sink"] == "t\n"
    assert record["fingerprint"] == {"mode": "append"}


# -- Failures -----------------------------------------------------------------------------------


def test_the_root_cause_comes_first_then_what_followed_then_the_state() -> None:
    root = DataError("sink 'orders' refused a row")
    errors = [root, ChannelBrokenError("x"), DataError("also this"), DataError("also this")]
    both = Both()
    code = show_failure(both.screen, PipelineFailedError("failed", errors, report()))
    assert code == 1
    assert both.err.splitlines() == [
        "error: pipeline 'orders': sink 'orders' refused a row",
        "also: also this",
        (
            "state: 990 rows of this run are committed, with their positions; when the cause is"
            " mended, run the same command again; it goes on from there"
        ),
    ]


def test_many_consequences_are_counted() -> None:
    errors = [DataError(f"failure {i}") for i in range(9)]
    both = Both()
    show_failure(both.screen, PipelineFailedError("failed", errors, report(flows=())))
    lines = both.err.splitlines()
    assert lines[4] == "also: 5 more failures"
    assert lines[5].startswith("state: this run committed nothing")


def test_a_failure_says_that_of_files_nothing_is_kept() -> None:
    both = Both()
    error = PipelineFailedError("failed", (ValueError("x"),), report())
    show_failure(both.screen, error, files_only=True)
    state = next(line for line in both.err.splitlines() if line.startswith("state: "))
    assert "committed" not in state
    assert state.endswith("; it begins anew")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("no such table"), 2),
        (SourceUnavailableError("gone"), 75),
        (PipelineFailedError("x", [SourceUnavailableError("gone")], report()), 75),
        (KeyError("x"), 1),
    ],
)
def test_exit_codes(error: Exception, code: int) -> None:
    assert show_failure(Both().screen, error) == code


def test_a_strange_error_names_its_class_and_place() -> None:
    both = Both()
    try:
        raise ValueError("no \x1b way")
    except ValueError as error:
        show_failure(both.screen, error)
    first, second = both.err.splitlines()
    assert first.startswith("error: ValueError (test_cli_output.py:")
    assert "--traceback shows the whole chain" in second
    assert "--show-values shows what it says itself" in second


@pytest.mark.parametrize("shown", [False, True])
def test_what_a_strange_error_says_is_shown_on_request(shown: bool) -> None:
    both = Both(traceback=True, show_values=shown)
    try:
        try:
            raise ValueError("bad row {'email': 'x@y\x1b'}")
        except ValueError as error:
            raise because_of(error, StageError("f failed")) from error
    except StageError as error:
        show_failure(both.screen, error)
    assert "direct cause" in both.err
    assert ("detail: bad row {'email': 'x@y\\x1b'}" in both.err) is shown
    assert both.err.count("x@y") == (3 if shown else 1)  # the source line stands in any case


def test_what_the_interpreter_says_of_types_and_names_is_shown() -> None:
    def interpreted(code: str) -> str:
        try:
            exec(code, {})
        except Exception as error:
            return named(error)
        return ""

    assert "TypeError: unsupported operand" in interpreted("1 + 'x'")
    assert "NameError: name 'missing' is not defined" in interpreted("missing")
    for code in ("int('secret')", "{}['secret']", "raise TypeError('secret')"):
        assert interpreted(code).partition(" (")[0] in {"ValueError", "KeyError", "TypeError"}


def test_a_thread_that_the_system_does_not_give_is_told() -> None:
    before = threading.stack_size(1 << 47)  # more than there are addresses
    try:
        with pytest.raises(RuntimeError) as caught:
            threading.Thread(target=print).start()
    finally:
        threading.stack_size(before)
    assert "RuntimeError: can't start new thread" in named(caught.value)


def test_the_whole_chain_on_request_without_the_password() -> None:
    both = Both(traceback=True)
    try:
        try:
            raise OSError(URL)
        except OSError as error:
            raise ConfigError("wrong") from error
    except ConfigError as error:
        show_failure(both.screen, error)
    assert "direct cause" in both.err
    assert "\n  OSError: (what it says may quote a row" in both.err
    assert "s3cr3t" not in both.err
    both = Both(show_values=True, traceback=True)
    show_failure(both.screen, OSError(URL))
    assert "OSError: postgresql://me:***@db/shop" in both.err
    assert "s3cr3t" not in both.err


# -- Observers ----------------------------------------------------------------------------------

EVENTS: list[Event] = [
    RunStarted(pipeline="orders", run_id="r1", flows=("a", "b")),
    Note(flow="a", message="no index"),
    Committed(flow="a", rows=1, total_rows=1200, seconds=0.25),
    Retrying(flow="a", what="reading", attempt=2, wait_s=0.5, error="lost"),
    StateChanged(state="draining", reason="SIGINT"),
    FlowEnded(flow="a", rows_read=1200, rows_written=1100, seconds=3.0),
    RunEnded(report=report(), error=None),
]


def test_json_lines_hold_every_event_with_its_fields() -> None:
    lines: list[str] = []
    observer = JsonLines(lines.append)
    for event in EVENTS:
        observer(event)
    records = [json.loads(line) for line in lines]
    assert [record["event"] for record in records] == [
        "run_started", "note", "committed", "retrying", "state_changed", "flow_ended", "run_ended"
    ]  # fmt: skip
    times = [datetime.fromisoformat(record.pop("time")) for record in records]
    assert times == sorted(times)
    assert (datetime.now(UTC) - times[0]).total_seconds() < 60
    assert records[2] == {
        "event": "committed", "flow": "a", "rows": 1, "total_rows": 1200, "seconds": 0.25
    }  # fmt: skip
    assert records[-1]["report"]["flows"][0]["rows_written"] == 990
    assert records[-1]["error"] is None
    assert all(line.isascii() for line in lines)


def test_plain_lines_tell_the_start_troubles_and_ends() -> None:
    lines: list[str] = []
    observer = ProgressLines(lines.append)
    for event in EVENTS:
        observer(event)
    assert lines == [
        "orders: run r1 starts, 2 flows",
        "orders: a: reading failed (try 2): lost; again in 0.5 s",
        "orders: a: ended, 1,200 rows read, 1,100 written in 3.0 s",
    ]


def test_plain_lines_now_and_then_only_for_flows_that_moved() -> None:
    lines: list[str] = []
    observer = ProgressLines(lines.append)
    observer.tick(stats(rows=1000))
    observer.tick(stats(rows=1000))
    observer.tick(stats(rows=3000))
    assert len(lines) == 4
    assert lines[2] == (
        "orders: 5.0 s: flow[red]0: 3,000 rows read, 1,500 written, 1,000 rows/s, 29.3 KiB"
    )


def test_plain_lines_of_many_flows_are_one() -> None:
    lines: list[str] = []
    ProgressLines(lines.append).tick(stats(flows=20))
    assert len(lines) == 1
    assert "20 flows running, 20,000 rows read, 10,000 written" in lines[0]


def test_rates_span_the_last_samples() -> None:
    rates = Rates(samples=2)
    assert rates.of("flow[red]0") == 0.0
    assert rates.total == 0.0
    for rows in (1000, 2000, 6000):
        rates.sample(stats(rows=rows))
    assert rates.of("flow[red]0") == pytest.approx(1000)
    assert rates.total == pytest.approx(2000)


def test_log_lines_have_levels(caplog: pytest.LogCaptureFixture) -> None:
    observer = LogEvents()
    with caplog.at_level("DEBUG", logger="etl.run"):
        for event in EVENTS:
            observer(event)
        observer(RunEnded(report=report(status="failed"), error="it \n broke"))
    levels = [record.levelname for record in caplog.records]
    assert levels == ["INFO", "INFO", "DEBUG", "WARNING", "WARNING", "INFO", "INFO", "ERROR"]
    assert caplog.records[-1].getMessage().endswith("990 written; it \\n broke")
    assert caplog.records[2].getMessage() == ("orders: a: committed 1 row in 0.2 s, 1,200 so far")


# -- The moving display -------------------------------------------------------------------------


@pytest.fixture
def eighty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")


def _plain(drawn: str) -> str:
    """Without the sequences that move the cursor or set a style."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.replace("\r", ""))


@pytest.mark.usefixtures("eighty")
def test_the_display_is_readable_at_80_columns() -> None:
    both = Both(terminal=True)
    view = LiveView(both.screen, "orders")
    both.stderr.truncate(0)
    view.tick(stats(flows=20, rows=2_345_678))
    drawn = both.err
    view.close()
    lines = [line for line in _plain(drawn).split("\n") if "flow" in line]
    assert len(lines) == 1 + 12 + 1
    assert all(len(line) <= 80 for line in lines)
    assert "flow[red]0" in drawn
    assert " 50%" in drawn
    assert "8 flows more (8 running), 18.8M rows" in drawn


@pytest.mark.usefixtures("eighty")
def test_running_flows_come_first_when_not_all_fit() -> None:
    both = Both(terminal=True)
    view = LiveView(both.screen, "orders")
    both.stderr.truncate(0)
    figures = stats(flows=14, state="ended")
    figures["flows"][13]["state"] = "running"
    view.tick(figures)
    drawn = both.err
    view.close()
    assert "flow[red]13" in drawn
    assert "and 2 flows more (2 ended)" in drawn


@pytest.mark.usefixtures("eighty")
def test_talk_is_written_above_the_display_and_literally() -> None:
    both = Both(terminal=True)
    view = LiveView(both.screen, "orders")
    view(EVENTS[3])
    both.screen.note("[bold]x[/bold] \x1b[2J")
    view.close()
    assert "a: reading failed (try 2): lost; again in 0.5 s" in both.err
    assert "note: [bold]x[/bold] \\x1b[2J" in both.err
    both.screen.say("after")
    assert both.err.endswith("after\n")
