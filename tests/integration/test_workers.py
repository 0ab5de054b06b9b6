"""Lanes in worker processes: the same target, and the same run for whoever looks at it."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from etl import Database, Pipeline, Row
from etl.errors import (
    ConfigError,
    PipelineFailedError,
    ResourceError,
    StageError,
    StageStuckError,
    TooManyRejectsError,
    exit_code_of,
)
from etl.events import Committed, Event, Note, RowsRefused
from tests.integration import worker_jobs as jobs
from tests.integration.postgres_kit import run_sql, texts, value

ROOT = Path(__file__).parents[2]
GUARD_S = 60
SUMS = "SELECT count(*) || ' ' || count(DISTINCT id) || ' ' || sum(id) || ' ' || max(v) FROM copy"
ALL = f"{jobs.ROWS} {jobs.ROWS} {sum(range(jobs.ROWS + 1))} V999"
ODD = f"{jobs.ROWS // 2} {jobs.ROWS // 2} {sum(range(1, jobs.ROWS + 1, 2))} v999"
RANGES = "SELECT count(*) FROM etl_checkpoint WHERE partition LIKE 'main/%'"


@pytest.fixture
async def bench(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., None]:
    """A source, and a way to say what the function does in the worker processes."""
    await run_sql(postgres_url, jobs.MAKE)
    monkeypatch.setenv("JOB_SOURCE", postgres_url)
    monkeypatch.setenv("JOB_TARGET", postgres_url)
    monkeypatch.setenv("JOB_FOLDER", str(tmp_path))

    def does(what: str = "") -> None:
        monkeypatch.setenv("JOB_DOES", what)

    does()
    return does


def children() -> set[int]:
    """Processes that this one has started and that still run."""
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state != "Z" and _is_worker(path.parent):
            found.add(int(path.parent.name))
    return found


def _is_worker(process: Path) -> bool:
    try:
        return b"etl.engine.worker" in (process / "cmdline").read_bytes()
    except OSError:
        return False


def pids(folder: Path) -> set[int]:
    return {int(path.name.split()[1]) for path in folder.glob("pid *")}


def await_pids(folder: Path, process: subprocess.Popen[str] | None = None) -> set[int]:
    """Until both worker processes are in the function."""
    end = time.monotonic() + GUARD_S
    while len(found := pids(folder)) < 2:
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


async def until_pids(folder: Path) -> set[int]:
    return await asyncio.to_thread(await_pids, folder)


def await_gone(numbers: set[int], within_s: float = 20) -> None:
    end = time.monotonic() + within_s
    while left := {one for one in numbers if Path(f"/proc/{one}").exists()}:
        assert time.monotonic() < end, f"{left} still run"
        time.sleep(0.05)


# -- The same target ------------------------------------------------------------------------------


async def test_functions_of_arrow_run_in_worker_processes(
    bench: Callable[..., None], postgres_url: str
) -> None:
    (flow,) = (await jobs.arrow.run()).flows
    assert any("2 worker processes" in note for note in flow.notes)
    assert await value(postgres_url, SUMS) == ALL


@pytest.mark.parametrize("mode", ["append", "replace", "upsert"])
async def test_two_processes_move_each_row_once(
    mode: str, bench: Callable[..., None], postgres_url: str, tmp_path: Path
) -> None:
    bench("meet:")
    pipeline: Pipeline = getattr(jobs, mode)
    events: list[Event] = []
    report = await pipeline.run(observers=[events.append])
    (flow,) = report.flows
    assert any("2 worker processes" in note for note in flow.notes)
    assert flow.rows_read == jobs.ROWS
    assert flow.bytes_read > 0
    assert flow.rows_written == (jobs.ROWS // 2 if mode == "upsert" else jobs.ROWS)
    assert flow.transactions == len([one for one in events if isinstance(one, Committed)])
    totals = [one.total_rows for one in events if isinstance(one, Committed)]
    assert totals == sorted(totals)
    assert totals[-1] == flow.rows_written
    assert await value(postgres_url, SUMS) == (ODD if mode == "upsert" else ALL)
    if mode != "upsert":
        who = set(await texts(postgres_url, "SELECT DISTINCT pid FROM copy"))
        assert who == {f"({pid})" for pid in pids(tmp_path)}
        assert len(who) == 2
    assert await texts(
        postgres_url, "SELECT partition, position, complete, rows FROM etl_checkpoint"
    ) == [f'(main,"[""{jobs.ROWS}""]",t,{flow.rows_written})']
    assert children() == set()


async def test_two_flows_are_served_one_after_the_other(
    bench: Callable[..., None], postgres_url: str
) -> None:
    most = 0

    def look(event: Event) -> None:
        nonlocal most
        if isinstance(event, Committed):
            most = max(most, len(children()))

    report = await jobs.two_flows.run(observers=[look])
    assert report.rows_written == 2 * jobs.ROWS
    assert 1 <= most <= 2
    for table in ("copy_a", "copy_b"):
        assert await value(postgres_url, SUMS.replace("copy", table)) == ALL


async def test_worker_processes_read_at_the_instant_of_their_run(
    bench: Callable[..., None], postgres_url: str, tmp_path: Path
) -> None:
    (tmp_path / "wait").touch()
    bench("meet:")
    run = await jobs.instant.start()
    await until_pids(tmp_path)
    await run_sql(postgres_url, "UPDATE t SET v = 'w' || id; DELETE FROM t WHERE id > 1990")
    (tmp_path / "wait").unlink()
    await run.wait()
    assert await value(postgres_url, SUMS) == ALL


async def test_a_database_that_takes_no_worker_processes_is_written_in_one(
    bench: Callable[..., None], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOB_TARGET", sqlite_url)
    report = await jobs.append.run()
    assert report.rows_written == jobs.ROWS
    assert any(note.startswith("in one process: env:JOB_TARGET") for note in report.flows[0].notes)


async def test_one_range_that_is_left_needs_no_process(
    bench: Callable[..., None], postgres_url: str
) -> None:
    bench("raise:1990")
    with pytest.raises(PipelineFailedError):
        await jobs.append.run(limits=replace(jobs.LIMITS, processes=1, lanes=1, group_rows=10_000))
    with pytest.raises(PipelineFailedError):
        await jobs.replace.run()
    bench()
    await jobs.replace.run()
    assert await value(postgres_url, SUMS) == ALL


# -- Failures -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "row"), [("append", 1), ("append", 1999), ("replace", 777), ("upsert", 777)]
)
async def test_a_killed_worker_fails_the_run_and_the_next_one_is_exact(
    mode: str, row: int, bench: Callable[..., None], postgres_url: str
) -> None:
    pipeline: Pipeline = getattr(jobs, mode)
    bench(f"kill:{row}")
    with pytest.raises(PipelineFailedError) as failed:
        await pipeline.run()
    (error,) = failed.value.errors
    assert isinstance(error, ResourceError)
    assert exit_code_of(failed.value) == 75
    for part in ("of flow 't' (process", "SIGKILL", "rolled back", "goes on from there"):
        assert part in str(error)
    assert children() == set()
    report = await pipeline.run()
    assert report.status == "completed"
    assert await value(postgres_url, SUMS) == (ODD if mode == "upsert" else ALL)


@pytest.mark.parametrize(
    ("what", "said", "code"), [("exit", "exit status 7", 1), ("crash", "SIGSEGV", 1)]
)
async def test_a_worker_that_ends_without_a_word_is_named(
    what: str, said: str, code: int, bench: Callable[..., None], postgres_url: str
) -> None:
    bench(f"{what}:500")
    with pytest.raises(PipelineFailedError, match=said) as failed:
        await jobs.append.run()
    assert exit_code_of(failed.value) == code
    await jobs.append.run()
    assert await value(postgres_url, SUMS) == ALL


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_function_that_fails_is_named_as_in_one_process(
    processes: int, bench: Callable[..., None], postgres_url: str
) -> None:
    bench("raise:555")
    with pytest.raises(PipelineFailedError) as failed:
        await jobs.append.run(limits=replace(jobs.LIMITS, processes=processes))
    (error,) = failed.value.errors
    assert type(error) is StageError
    assert str(error).startswith("shout failed on row ")
    assert "ValueError (worker_jobs.py:" in str(error)
    assert error.detail == "row says no"
    bench()
    await jobs.append.run(limits=replace(jobs.LIMITS, processes=3 - processes))
    assert await value(postgres_url, SUMS) == ALL


async def test_bad_rows_are_skipped_and_counted(
    bench: Callable[..., None], postgres_url: str
) -> None:
    events: list[Event] = []
    report = await jobs.skips.run(observers=[events.append])
    assert (report.rows_written, report.rows_skipped) == (1900, 100)
    refused = [one for one in events if isinstance(one, RowsRefused)]
    assert sum(one.rows for one in refused) == 100
    assert refused[-1].total_rows == 100
    assert {one.step for one in refused} == {"map most_only"}


async def test_bad_rows_are_kept(bench: Callable[..., None], postgres_url: str) -> None:
    report = await jobs.keeps.run()
    assert (report.rows_written, report.rows_rejected) == (1000, 1000)
    kept = "SELECT count(*) || ' ' || count(DISTINCT row_key) FROM etl_reject"
    assert await value(postgres_url, kept) == "1000 1000"


async def test_the_bounds_of_bad_rows_hold_over_all_processes(
    bench: Callable[..., None], postgres_url: str
) -> None:
    with pytest.raises(PipelineFailedError) as failed:
        await jobs.bounded.run()
    assert isinstance(failed.value.errors[0], TooManyRejectsError)
    assert "max_rows=300" in str(failed.value.errors[0])
    # Each process may have judged one group of at most 100 rows before it heard of the other's.
    assert await value(postgres_url, "SELECT count(*) FROM etl_reject") <= 350


async def test_an_aborted_run_leaves_no_process_and_the_next_one_is_exact(
    bench: Callable[..., None], postgres_url: str, tmp_path: Path
) -> None:
    bench("slow:0.002")
    task = asyncio.create_task(jobs.append.run())
    numbers = await until_pids(tmp_path)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await_gone(numbers, 0.1)
    bench()
    await jobs.append.run()
    assert await value(postgres_url, SUMS) == ALL


async def test_a_drained_run_commits_what_was_read(
    bench: Callable[..., None], postgres_url: str, tmp_path: Path
) -> None:
    bench("slow:0.002")
    run = await jobs.append.start()
    numbers = await until_pids(tmp_path)
    report = await run.drain()
    assert report.status == "drained"
    assert await value(postgres_url, "SELECT count(*) FROM copy") == report.rows_written
    assert report.rows_read == report.rows_written < jobs.ROWS
    await_gone(numbers, 0.1)
    bench()
    await jobs.append.run()
    assert await value(postgres_url, SUMS) == ALL


async def test_a_drain_before_the_processes_begin_moves_nothing(
    bench: Callable[..., None], postgres_url: str
) -> None:
    run = await jobs.append.start()
    report = await run.drain()
    assert report.status == "drained"
    await jobs.append.run()
    assert await value(postgres_url, SUMS) == ALL


async def test_a_worker_whose_function_never_ends_is_killed(
    bench: Callable[..., None], postgres_url: str, tmp_path: Path
) -> None:
    bench("block:300")
    notes: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event.message)

    limits = replace(jobs.LIMITS, abort_grace_s=0.5, stall_after_s=0.5)
    run = await jobs.append.start(limits=limits, observers=[hear])
    end = time.monotonic() + GUARD_S
    while not any("does not answer" in note for note in notes):
        assert time.monotonic() < end, notes
        await asyncio.sleep(0.05)
    assert any("worker" in one and "of flow 't' (it does not answer" in one for one in notes)
    run.request_abort("the test has seen enough")
    with pytest.raises(PipelineFailedError) as failed:
        await run.wait()
    assert isinstance(failed.value.errors[0], StageStuckError)
    assert children() == set()
    await jobs.append.run()
    assert await value(postgres_url, SUMS) == ALL


# -- A good guest ---------------------------------------------------------------------------------


async def test_nothing_is_left_in_the_program(bench: Callable[..., None]) -> None:
    await jobs.append.run()  # what is imported or opened once
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGCHLD)]
    tasks, threads = asyncio.all_tasks(), threading.active_count()
    opened = len(os.listdir("/proc/self/fd"))
    await jobs.replace.run()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGCHLD)] == handlers
    assert asyncio.all_tasks() == tasks
    assert threading.active_count() <= threads + 1  # of the loop's own pool
    assert len(os.listdir("/proc/self/fd")) == opened
    assert children() == set()


async def test_what_functions_print_and_log_comes_out_here(
    bench: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    bench("print:100")
    with caplog.at_level(logging.WARNING):
        await jobs.append.run()
    assert "said by a function\n" in capsys.readouterr().out
    (record,) = [one for one in caplog.records if one.name == "job"]
    assert record.getMessage().endswith("of flow 't': logged by a function")
    assert record.levelno == logging.WARNING


async def test_figures_move_while_the_processes_work(
    bench: Callable[..., None], tmp_path: Path
) -> None:
    bench("slow:0.002")
    run = await jobs.append.start()
    end = time.monotonic() + GUARD_S
    while not (flow := run.stats()["flows"][0])["rows_read"]:
        assert time.monotonic() < end
        await asyncio.sleep(0.02)
    assert flow["state"] == "running"
    assert len(flow["channels"]) >= 1
    await run.abort()


def same(row: Row) -> Row:
    return row


async def test_a_pipeline_that_cannot_be_found_again_is_refused(
    bench: Callable[..., None], postgres_url: str
) -> None:
    database = Database(postgres_url)
    flow = database.table("t").map(same).into(database.append("copy"))
    pipeline = Pipeline("made here", flow, limits=jobs.LIMITS)
    with pytest.raises(ConfigError, match="variable at the top level") as refused:
        await pipeline.run()
    assert str(refused.value).endswith("Nothing was moved")
    assert await value(postgres_url, "SELECT to_regclass('etl_checkpoint') IS NULL")
    await pipeline.run(limits=replace(jobs.LIMITS, processes=1))


# -- The command ----------------------------------------------------------------------------------

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program in a process group of its own; whatever still runs is killed afterwards."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


JOBS = "tests/integration/worker_jobs.py"


def run_etl(start: Start, target: str, *options: str) -> subprocess.Popen[str]:
    return start("-m", "etl", "run", target, "--jobs", "2", *options)


def done(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=GUARD_S)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("mode", "what"),
    [("append", "slow:0.002"), ("replace", "slow:0.002"), ("append", "block:300")],
)
async def test_workers_end_with_a_run_that_is_killed(
    mode: str, what: str, bench: Callable[..., None], postgres_url: str, tmp_path: Path,
    start: Start,
) -> None:  # fmt: skip
    bench(what)
    process = run_etl(start, f"{JOBS}:{mode}")
    if what == "slow:0.002":
        numbers = await_pids(tmp_path, process)
        time.sleep(0.3)
    else:
        end = time.monotonic() + GUARD_S
        while not (numbers := pids(tmp_path)):
            assert time.monotonic() < end
            time.sleep(0.02)
    process.kill()
    process.wait()
    await_gone(numbers)
    locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
    end = time.monotonic() + 10
    while await value(postgres_url, locks):
        assert time.monotonic() < end
    bench()
    code, _, err = done(run_etl(start, f"{JOBS}:{mode}"))
    assert code == 0, err
    assert await value(postgres_url, SUMS) == ALL


@pytest.mark.parametrize(("signals", "code"), [(1, 130), (2, 130)])
async def test_ctrl_c_reaches_the_run_and_its_workers_by_it(
    signals: int, code: int, bench: Callable[..., None], postgres_url: str, tmp_path: Path,
    start: Start,
) -> None:  # fmt: skip
    bench("slow:0.002")
    process = run_etl(start, f"{JOBS}:append")
    numbers = await_pids(tmp_path, process)
    for _ in range(signals):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)
    found, _, err = done(process)
    # A signal that comes when all has ended already ends the process at once: -2 for 130.
    assert found in (code, 128 - code), err
    assert "stopped: " in err
    assert "Traceback" not in err
    await_gone(numbers, 0.1)
    bench()
    found, _, err = done(run_etl(start, f"{JOBS}:append"))
    assert found == 0, err
    assert await value(postgres_url, SUMS) == ALL


async def test_a_worker_takes_no_signals_that_are_for_the_run(
    bench: Callable[..., None], postgres_url: str, tmp_path: Path, start: Start
) -> None:
    (tmp_path / "wait").touch()
    bench("meet:")
    process = run_etl(start, f"{JOBS}:append")
    for number in await_pids(tmp_path, process):
        os.kill(number, signal.SIGTERM)
        os.kill(number, signal.SIGINT)
    (tmp_path / "wait").unlink()
    code, _, err = done(process)
    assert code == 0, err
    assert await value(postgres_url, SUMS) == ALL


@pytest.mark.parametrize(
    "point",
    ["lane.after_write", "lane.commit_sent", "lane.after_commit", "source.after_read"],
)
async def test_a_worker_that_crashes_at_any_point_loses_nothing(
    point: str, bench: Callable[..., None], postgres_url: str, start: Start
) -> None:
    process = start(
        "-m", "etl", "run", f"{JOBS}:append", "--jobs", "2", ETL_FAILPOINTS=f"{point}:3"
    )
    code, _, err = done(process)
    assert code == 1, err
    assert "exit status 137" in err
    code, _, err = done(run_etl(start, f"{JOBS}:append"))
    assert code == 0, err
    assert await value(postgres_url, SUMS) == ALL


async def test_secrets_are_not_in_the_list_of_processes(
    bench: Callable[..., None], postgres_url: str, tmp_path: Path, start: Start
) -> None:
    secret = "s3cr3t-77d0ab"
    url = postgres_url.replace("://", f"://{os.environ.get('USER', 'postgres')}@", 1)
    user, at, rest = (url if "@" not in postgres_url else postgres_url).partition("@")
    address = f"{user.rpartition(':')[0] if user.count(':') > 1 else user}:{secret}{at}{rest}"
    job = tmp_path / "job.py"
    job.write_text(
        "from etl import Database, Limits, Pipeline\n"
        "from tests.integration.worker_jobs import shout\n"
        f"database = Database({address!r})\n"
        "pipeline = Pipeline('secret', database.table('t').map(shout)"
        ".into(database.append('copy')), limits=Limits(batch_rows=50))\n"
    )
    (tmp_path / "wait").touch()
    bench("meet:")
    process = run_etl(start, str(job))
    for number in await_pids(tmp_path, process):
        for name in ("cmdline", "environ"):
            assert secret not in Path(f"/proc/{number}/{name}").read_text(errors="replace")
        assert "etl.engine.worker" in Path(f"/proc/{number}/cmdline").read_text()
    (tmp_path / "wait").unlink()
    code, out, err = done(process)
    assert code == 0, err
    assert secret not in out + err


SCRIPT = """\
import asyncio, os, sys
from pathlib import Path
from etl import Database, Limits, Pipeline
database = Database("env:JOB_SOURCE")

def same(row):
    return row
"""
MADE = """
pipeline = Pipeline("script", database.table("t").map(same).into(database.append("copy")),
                    limits=Limits(batch_rows=50, processes=2))
"""
GUARDED = 'if __name__ == "__main__":\n    print(pipeline.run_sync())\n'


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (MADE + GUARDED, 0, "rows_written=2000"),
        (MADE + "print(pipeline.run_sync())\n", 1, 'if __name__ == "__main__"'),
        (
            'if "JOB_AGAIN" in os.environ:\n    raise KeyError("only once")\n'
            'os.environ["JOB_AGAIN"] = "1"\n' + MADE + GUARDED,
            1,
            r"could not import the pipeline again from .*script.py: KeyError \(script.py:9\)",
        ),
        (
            'if "JOB_AGAIN" in os.environ:\n    def same(row):\n        return None\n'
            'os.environ["JOB_AGAIN"] = "1"\n' + MADE + GUARDED,
            1,
            "found another flow than its run has",
        ),
    ],
)  # fmt: skip
async def test_a_script_is_found_again_by_its_file(
    body: str, code: int, said: str, bench: Callable[..., None], tmp_path: Path, start: Start
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + body)
    found, out, err = done(start(script))
    assert found == code, err
    assert re.search(said, out + err), out + err


async def test_the_plan_of_the_command_says_that_jobs_are_processes(
    bench: Callable[..., None], start: Start
) -> None:
    for options, wanted in [
        (("--jobs", "2"), "2, each in a process"),
        (("--jobs", "2", "--processes", "1"), "functions run in one process"),
    ]:
        _, out, _ = done(start("-m", "etl", "plan", f"{JOBS}:append", *options))
        assert wanted in " ".join(out.split())
