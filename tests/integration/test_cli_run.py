"""The real command in a process of its own: output, exit codes, signals. Sources are in memory."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GUARD_S = 60
SECRET = "s3cr3t-0b71ff"

HEAD = """\
import asyncio, os, time
from pathlib import Path
from etl import Limits, Pipeline, Retry
from etl.connector import Sink
from etl.errors import DataError, SourceUnavailableError
from etl.testing.memory import MemorySource, MemoryTarget

target = MemoryTarget("memory")
seen = Path(__file__).with_name("seen")

def into(name):
    return Sink(target=target, table=name, mode="append")

def source(rows=1000, name="orders", **options):
    return MemorySource(list(range(rows)), batch_rows=10, name=name, **options)

async def slow(rows):
    seen.touch()
    await asyncio.sleep(float(os.environ.get("DELAY", "0.05")))
    return rows

def blocking(row):
    seen.touch()
    time.sleep(60)
    return row

"""

Write = Callable[[str], Path]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(body: str) -> Path:
        path = tmp_path / "job.py"
        path.write_text(HEAD + body)
        return path

    return make


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the command; whatever still runs after the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "etl", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def done(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=GUARD_S)
    return process.returncode, out, err


def await_file(path: Path, process: subprocess.Popen[str]) -> None:
    """Until the pipeline has touched the file."""
    end = time.monotonic() + GUARD_S
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def await_text(process: subprocess.Popen[str], text: str) -> str:
    """Read stderr up to a line that holds a text."""
    assert process.stderr is not None
    read = ""
    for line in process.stderr:
        read += line
        if text in line:
            return read
    raise AssertionError(f"{text!r} never came: {read}")


SLOW = 'pipeline = Pipeline("job", source().map_batches(slow).into(into("t")))\n'


# -- Output -------------------------------------------------------------------------------------


def test_a_run_reports_on_stdout_and_talks_on_stderr(write: Write, start: Start) -> None:
    path = write('p = Pipeline("job", source(25).into(into("t")))\n')
    code, out, err = done(start("run", path))
    assert code == 0, err
    assert [line.split()[:3] for line in out.splitlines()[:2]] == [
        ["flow", "rows", "read"],
        ["orders", "25", "25"],
    ]
    assert re.fullmatch(r"job: completed in 0\.\d s, [\d,]+ rows/s", out.splitlines()[-1])
    assert err.splitlines()[0].startswith("job: run ")
    assert "\x1b" not in out + err


def test_a_flow_that_worker_processes_do_not_serve_is_named(write: Write, start: Start) -> None:
    path = write('p = Pipeline("job", source(25).into(into("t")))\n')
    code, _, err = done(start("run", path, "--processes", "2"))
    assert code == 0, err
    assert "note: flow 'orders' runs in one process: what a cursor reads is one partition" in err
    code, _, err = done(start("run", path, "--jobs", "2"))  # not asked for by name
    assert code == 0, err
    assert "in one process" not in err


@pytest.mark.parametrize("before", [True, False])
def test_json_lines_are_all_that_is_on_stdout(write: Write, start: Start, before: bool) -> None:
    path = write(
        'print("at import")\ndef loud(row):\n    print("prompt: ", end="")\n    return row\n'
        'p = Pipeline("job", source(25).map(loud).into(into("t")))\n'
    )
    arguments = ("--json", "run", path) if before else ("run", path, "--json")
    code, out, err = done(start(*arguments))
    assert code == 0, err
    assert "at import" in err
    assert err.count("prompt: ") == 25
    records = [json.loads(line) for line in out.splitlines()]
    assert records[0]["event"] == "run_started"
    assert records[-1]["event"] == "run_ended"
    assert records[-1]["report"]["flows"][0]["rows_written"] == 25


def test_plan_and_list(write: Write, start: Start) -> None:
    path = write('p = Pipeline("[red]job", source(25).into(into("t\\x1b")))\n')
    code, out, err = done(start("plan", path))
    assert (code, err) == (0, "")
    assert "[red]job" in out
    assert "t\\x1b" in out
    code, out, _ = done(start("list", path.parent))
    assert code == 0
    assert f"{path}:p  [red]job  orders" in out
    code, out, _ = done(start("list", path, "--json"))
    assert json.loads(out) == {"target": f"{path}:p", "pipeline": "[red]job", "flows": ["orders"]}


def test_list_goes_on_after_a_broken_file(write: Write, start: Start) -> None:
    path = write('p = Pipeline("job", source(25).into(into("t")))\n')
    path.with_name("broken.py").write_text("nothing\n")
    code, out, err = done(start("list", path.parent))
    assert code == 2
    assert "job.py:p" in out
    assert f"error: {path.with_name('broken.py')}:1: NameError" in err


def test_a_reader_that_leaves_does_not_end_the_run(write: Write) -> None:
    path = write('print("loaded")\n' + SLOW + 'import atexit; atexit.register(print, "bye")\n')
    script = f'({sys.executable} -m etl run {path} --json; echo "rc $?" >&2) | head -1'
    result = subprocess.run(
        ["sh", "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), "DELAY": "0.001"},
        capture_output=True,
        text=True,
        timeout=GUARD_S,
        check=False,
    )
    assert json.loads(result.stdout)["event"] == "run_started"
    assert result.stderr == "loaded\nrc 0\n"


@pytest.mark.parametrize("module", ["json", "typer"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_modules_are_loaded_ends_the_command(
    number: signal.Signals, module: str, tmp_path: Path
) -> None:
    sends = f"import os, time\nos.kill(os.getpid(), {number:d})\ntime.sleep({GUARD_S})\n"
    (tmp_path / f"{module}.py").write_text(sends)
    result = subprocess.run(
        [sys.executable, "-m", "etl", "--version"],
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=GUARD_S,
        check=False,
    )
    assert (result.returncode, result.stderr) == (128 + number, "")


def test_closed_streams_are_no_failure(write: Write) -> None:
    path = write('p = Pipeline("job", source(25).map(print).into(into("t")))\n')
    result = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m etl run {path} >&- 2>&-"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=GUARD_S,
        check=False,
    )
    assert result.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full disk to write to")
def test_data_lost_on_a_full_disk_is_a_failure(write: Write) -> None:
    path = write('p = Pipeline("job", source(25).into(into("t")))\n')
    result = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m etl run {path} > /dev/full"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        timeout=GUARD_S,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr.endswith(
        "error: stdout is incomplete: No space left on device; all else is done\n"
    )


def test_in_a_terminal_the_display_moves_and_the_report_stays(write: Write) -> None:
    path = write(SLOW)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "etl", "run", str(path)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TERM": "xterm",
            "COLUMNS": "80",
            "LINES": "24",
        },
    )
    os.close(theirs)
    shown = b""
    try:
        while select.select([ours], [], [], GUARD_S)[0]:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # the process has closed the terminal
                break
        assert process.wait(GUARD_S) == 0
    finally:
        os.close(ours)
        if process.poll() is None:
            process.kill()
            process.wait()
    text = shown.decode()
    assert "rows/s" in text
    assert "channel" in text
    assert "1,000         1,000" in text
    assert text.rstrip().endswith("rows/s\x1b[0m")
    assert "\x1b[?25h" in text  # the cursor is back


# -- Usage and set-up ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("rnu",), "error: No such command 'rnu'. Did you mean 'run'?; see etl --help"),
        (("run",), "error: Missing argument 'FILE[:NAME]'; see etl run --help"),
        (("run", "x.py", "--fulll"), "error: No such option: --fulll (Possible options: --full)"),
        (("run", "no.py"), "error: there is no file no.py"),
        (("run", "setup.cfg"), "error: there is no file setup.cfg"),
        (("list", "nowhere"), "error: there is no file or folder nowhere; say where"),
        (("copy", "x", "sqlite:///b.db"), "error: this URL does not name a known database"),
        (("check", __file__), f"error: {__file__} is a file, not a URL; where it is a"),
        (("check", "env:"), "error: env: needs the name of an environment variable"),
        (("rejects", "retry", "sqlite:///a"), "error: a URL names a database; here the file of a"),
        (("copy", "env:NO_SUCH", "sqlite:///b.db"), "error: the environment variable NO_SUCH"),
        (
            ("copy", "sqlite:///a", "sqlite:///b", "--mode", "x"),
            "error: Invalid value for '--mode': 'x' is not one of 'replace', 'append', 'upsert'",
        ),
        (("copy", "sqlite:///a", "sqlite:///b", "--key", "a,,b"), "error: --key: a column's name"),
        (("state", "set", "sqlite:///a", "p", "f", "s", "{}"), "error: the position '{}' is not"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(
    start: Start, arguments: tuple[str, ...], line: str
) -> None:
    code, out, err = done(start(*arguments))
    assert err.startswith(line)
    assert (code, out, err.count("\n")) == (2, "", 1)


def test_help_and_version(start: Start) -> None:
    code, out, err = done(start("--version"))
    assert (code, err) == (0, "")
    assert out.startswith("etl ")
    code, out, err = done(start())
    assert code == 2
    assert "Usage: etl" in err
    for command in ("run", "list", "plan", "copy", "state", "migrate", "check"):
        code, out, err = done(start(command, "--help"))
        assert (code, err) == (0, "")
        assert f"Usage: etl {command}" in out


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("", "has no Pipeline; make one at the top level of the file"),
        (SLOW + SLOW.replace("pipeline", "other"), "has 2 pipelines: pipeline, other; say which"),
        ("1 / 0\n", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_file_that_does_not_fit(write: Write, start: Start, body: str, line: str) -> None:
    code, out, err = done(start("run", write(body)))
    assert line in err
    assert (code, out) == (2, "")
    assert "Traceback" not in err


def test_a_wrong_size_and_a_negative_time(write: Write, start: Start) -> None:
    code, _, err = done(start("run", write(SLOW), "--memory", "many"))
    assert (code, err) == (2, "error: 'many' is not a size; write for example 256MiB\n")
    code, _, err = done(start("run", write(SLOW), "--drain", "-1"))
    assert (code, err) == (2, "error: Limits(drain_s=...) must not be negative\n")


# -- Failures -----------------------------------------------------------------------------------


def test_a_failing_function_is_told_once_with_what_stands(write: Write, start: Start) -> None:
    body = """
def broken(row):
    if row == 555:
        raise ValueError("no")
    return row
pipeline = Pipeline("job", source().map(broken).into(into("t")))
"""
    code, out, err = done(start("run", write(body)))
    assert code == 1
    lines = err.splitlines()
    assert lines[1].startswith("error: pipeline 'job': ")
    assert "broken" in lines[1]
    assert lines[2].startswith("state: ")
    assert "Traceback" not in err
    assert "not finished" in out

    code, _, err = done(start("run", write(body), "--traceback"))
    assert code == 1
    assert "ValueError" in err
    assert "ValueError: no" not in err  # what it says may quote a row
    assert "in broken" in err
    code, _, err = done(start("run", write(body), "--traceback", "--show-values"))
    assert code == 1
    assert "ValueError: no" in err


URL = f"postgresql://me:{SECRET}@db.example/shop"
LEAKS = {
    "an error while the file is loaded": f'raise ValueError("{URL}")',
    "a URL that cannot be read": f'from etl import Database; Database("{URL[3:]}")',
    "an error in a function": f"""
def f(row):
    raise RuntimeError("{URL}")
pipeline = Pipeline("job", source().map(f).into(into("t")))
""",
    "an error in an async function": """
async def f(rows):
    raise OSError(os.environ["SHOP_URL"])
pipeline = Pipeline("job", source().map_batches(f).into(into("t")))
""",
    "a source that quotes it bare": f"""
class S(MemorySource):
    async def read(self, after, until):
        raise SourceUnavailableError("{SECRET} is wrong for " + os.environ["SHOP_URL"])
        yield
pipeline = Pipeline("job", S([1]).into(into("t")), retry=Retry(attempts=2, base_s=0))
""",
    "a log record": f"""
import logging
logging.getLogger("etl").error("cannot log in at {URL}")
raise KeyError("{SECRET}")
""",
}


@pytest.mark.parametrize("extra", [(), ("--traceback", "--verbose"), ("--json",)])
@pytest.mark.parametrize("leak", LEAKS)
def test_a_password_never_comes_out(
    write: Write, start: Start, leak: str, extra: tuple[str, ...]
) -> None:
    path = write(LEAKS[leak])
    code, out, err = done(start("run", path, *extra, SHOP_URL=URL))
    assert code != 0
    assert SECRET not in out + err


# -- Signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "again"),
    [(signal.SIGINT, 130, "Ctrl-C again"), (signal.SIGTERM, 143, "a second signal")],
)
def test_one_signal_drains(
    write: Write, start: Start, number: signal.Signals, code: int, again: str
) -> None:
    path = write(SLOW)
    process = start("run", path, "--json")
    await_file(path.with_name("seen"), process)
    process.send_signal(number)
    returned, out, err = done(process)
    assert returned == code, err
    assert f"stopping: finishing what was read; {again} rolls back\n" in err
    assert "stopped: what was read is committed; run the same command again" in err
    flow = json.loads(out.splitlines()[-1])["report"]["flows"][0]
    assert 0 < flow["rows_read"] < 1000
    assert flow["rows_written"] == flow["rows_read"]


def test_a_second_signal_aborts(write: Write, start: Start) -> None:
    path = write(SLOW)
    process = start("run", path, "--json", DELAY="30")
    await_file(path.with_name("seen"), process)
    process.send_signal(signal.SIGINT)
    await_text(process, "stopping: finishing what was read")
    process.send_signal(signal.SIGINT)
    code, out, err = done(process)
    assert code == 130
    assert err.startswith("stopping: second signal; rolling back what is not committed\n")
    assert "stopped: what was not committed is rolled back" in err
    report = json.loads(out.splitlines()[-1])["report"]
    assert (report["status"], report["flows"][0]["rows_written"]) == ("aborted", 0)


def test_the_deadline_of_a_drain_aborts_and_says_so(write: Write, start: Start) -> None:
    path = write(SLOW)
    process = start("run", path, "--drain", "0.2", DELAY="30")
    await_file(path.with_name("seen"), process)
    process.send_signal(signal.SIGTERM)
    code, out, err = done(process)
    assert code == 143
    assert "stopping: the drain took longer than 0.2 s; rolling back" in err
    assert "aborted" in out


def test_a_third_signal_ends_a_process_that_is_held_up(write: Write, start: Start) -> None:
    path = write('pipeline = Pipeline("job", source().map(blocking).into(into("t")))\n')
    process = start("run", path)
    await_file(path.with_name("seen"), process)
    process.send_signal(signal.SIGINT)
    # The loop hears nothing, so a thread says what it waits for.
    text = await_text(process, "stopping: waiting for")
    assert f"blocking() in {path}:" in text
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)  # two signals at once arrive as one
    process.send_signal(signal.SIGINT)
    code, _, err = done(process)
    assert (code, err) == (
        130,
        "stopped at once; the databases roll back; the next run goes on from what is committed\n",
    )


def test_a_stage_that_does_not_stop_is_left_behind_and_named(write: Write, start: Start) -> None:
    body = """
async def stubborn(rows):
    seen.touch()
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass
flow = source().map_batches(stubborn).into(into("t"))
pipeline = Pipeline("job", flow, limits=Limits(abort_grace_s=0.2))
"""
    path = write(body)
    process = start("run", path, "--drain", "0.1")
    await_file(path.with_name("seen"), process)
    process.send_signal(signal.SIGTERM)
    code, _, err = done(process)
    assert code == 143
    last = err.splitlines()[-1]
    assert last.startswith("stopped: stage 1 (map_batches stubborn) of flow ")
    assert "did not stop within 0.2 s" in last


def test_an_abort_that_is_held_up_ends_the_process_and_names_the_function(
    write: Write, start: Start
) -> None:
    body = """
flow = source().map(blocking).into(into("t"))
pipeline = Pipeline("job", flow, limits=Limits(abort_grace_s=0.2))
"""
    path = write(body)
    process = start("run", path, "--drain", "0.1")
    await_file(path.with_name("seen"), process)
    process.send_signal(signal.SIGTERM)
    code, _, err = done(process)
    assert code == 143
    last = err.splitlines()[-1]
    assert last.startswith("stopped at once, without waiting longer for blocking() in ")


def test_a_signal_while_databases_are_opened_stops_at_once(write: Write, start: Start) -> None:
    body = """
from contextlib import asynccontextmanager
class S(MemorySource):
    @asynccontextmanager
    async def connect(self, info):
        seen.touch()
        await asyncio.sleep(60)
        yield
pipeline = Pipeline("job", S([1]).into(into("t")))
"""
    path = write(body)
    process = start("run", path)
    await_file(path.with_name("seen"), process)
    process.send_signal(signal.SIGINT)
    code, _, err = done(process)
    assert code == 130
    assert err.splitlines()[-1] == "stopped: nothing was read, nothing was written"


@pytest.mark.parametrize("is_ignored", [False, True])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_file_is_loaded(
    write: Write, start: Start, number: signal.Signals, code: int, is_ignored: bool
) -> None:
    path = write("seen.touch(); time.sleep(60)\n")
    before = signal.getsignal(number)
    if is_ignored:  # as in a background job of a script
        signal.signal(number, signal.SIG_IGN)
    try:
        process = start("run", path)
    finally:
        signal.signal(number, before)
    await_file(path.with_name("seen"), process)
    process.send_signal(number)
    returned, _, err = done(process)
    assert returned == code
    assert "Traceback" not in err


def test_a_signal_after_the_sources_are_exhausted_changes_nothing(
    write: Write, start: Start
) -> None:
    body = 'pipeline = Pipeline("job", source(10).map_batches(slow).into(into("t")))\n'
    path = write(body)
    process = start("run", path, DELAY="1.5")
    await_file(path.with_name("seen"), process)
    time.sleep(0.3)  # the source of one batch has ended meanwhile
    process.send_signal(signal.SIGINT)
    code, out, err = done(process)
    assert "stopping: finishing what was read" in err
    assert code == 0
    assert "job: completed" in out
