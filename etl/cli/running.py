"""Runs a pipeline under the command: signals, progress, the report, the exit code."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Literal

from etl.cli.failure import show_failure
from etl.cli.render import show_report
from etl.cli.screen import Screen
from etl.cli.signals import StopSignals
from etl.cli.sigterm import Terminated, came
from etl.cli.view import View, make_view
from etl.engine.process import own_this_process
from etl.engine.run import Run
from etl.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_REJECTS,
    PipelineFailedError,
    RunAbortedError,
    StageStuckError,
)
from etl.events import Event, Note, Report, StateChanged
from etl.figures import plural
from etl.files.file import File
from etl.flow import Merged
from etl.pipeline import Pipeline
from etl.policy import DeadLetter, Limits, OnError


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What the command line says of one run; None: as the pipeline has it."""

    full: bool = False
    accept_change: bool = False
    take_over: bool = False
    memory: str | None = None
    jobs: int | None = None
    processes: int | None = None
    flows: int | None = None
    drain_s: float | None = None
    on_error: Literal["fail", "skip", "reject"] | None = None
    allow_rejects: int = 0

    def policy(self, own: OnError) -> OnError | None:
        """What becomes of bad rows, where the command line says it; None: as the pipeline has it.

        Bounds that the pipeline gives stay.
        """
        if self.on_error == "reject":
            return own if isinstance(own, DeadLetter) else DeadLetter()
        return self.on_error

    def limits(self, own: Limits) -> Limits:
        """The pipeline's limits with what was asked for instead.

        Jobs of a flow with functions are processes: the command owns its process, and what it has
        loaded from a file can be loaded again.

        Raises:
            ConfigError: Not a size, or a negative time.
        """
        limits = own if self.memory is None else replace(own, memory=self.memory)
        processes = self.jobs if self.processes is None else self.processes
        limits = limits if self.jobs is None else replace(limits, lanes=self.jobs)
        limits = limits if processes is None else replace(limits, processes=processes)
        limits = limits if self.flows is None else replace(limits, flows=self.flows)
        return limits if self.drain_s is None else replace(limits, drain_s=self.drain_s)


def run_pipeline(pipeline: Pipeline, options: RunOptions, screen: Screen) -> int:
    """Run it to its end, or until it is told to stop; return the exit code.

    Raises:
        EtlError: The run could not start. Nothing was moved.
    """
    if came():
        # Python drops what is raised while it collects garbage, or inside an import's callback.
        raise Terminated
    limits = options.limits(pipeline.limits)
    if options.processes is not None and options.processes > 1:
        _tell_of_processes(pipeline, limits, screen)
    own_this_process()
    view = make_view(screen, pipeline.name)
    shown = _Shown(screen)
    try:
        with asyncio.Runner() as runner:
            return runner.run(_run(pipeline, options, limits, screen, view, shown))
    except asyncio.CancelledError:
        screen.error(
            f"pipeline {pipeline.name!r}: a function of it cancelled every task of the program, so"
            " the run was aborted. What was not committed is rolled back; let it cancel only what"
            " it has made itself, and run again"
        )
        return EXIT_FAILED
    finally:
        view.close()


def _tell_of_processes(pipeline: Pipeline, limits: Limits, screen: Screen) -> None:
    """Say which flows do not run in worker processes, which were asked for by name."""
    for flow in pipeline.plan(limits).flows:
        if why := flow.one_job or flow.one_process:
            screen.note(f"flow {flow.name!r} runs in one process: {why}")


async def _run(
    pipeline: Pipeline,
    options: RunOptions,
    limits: Limits,
    screen: Screen,
    view: View,
    shown: _Shown,
) -> int:
    with StopSignals(
        screen.say,
        drain_s=limits.drain_s,
        abort_grace_s=limits.abort_grace_s,
        restore=b"\x1b[?25h" if screen.live else b"",
    ) as stop:
        shown.stop = stop
        starting = asyncio.create_task(
            pipeline.start(
                observers=(view, shown),
                full=options.full,
                accept_change=options.accept_change,
                take_over=options.take_over,
                limits=limits,
                on_error=options.policy(pipeline.on_error),
            )
        )
        stop.starts(starting)
        try:
            run = await starting
        except asyncio.CancelledError:
            if stop.received is None:
                raise
            view.close()
            screen.say("stopped: nothing was read, nothing was written")
            return stop.exit_code
        stop.runs(run)
        report, error = await _to_end(run, view)
    view.close()
    return _show_end(pipeline, report, error, screen, shown, stop, options.allow_rejects)


async def _to_end(run: Run, view: View) -> tuple[Report | None, BaseException | None]:
    """Wait for the end of a run, and show how it goes on meanwhile."""
    ticking = asyncio.create_task(_tick(run, view))
    try:
        return await run.wait(), None
    except (PipelineFailedError, RunAbortedError) as error:
        return error.report, error
    finally:
        ticking.cancel()
        await asyncio.gather(ticking, return_exceptions=True)


async def _tick(run: Run, view: View) -> None:
    while view.every_s is not None:
        await asyncio.sleep(view.every_s)
        view.tick(run.stats())


class _Shown:
    """An observer beside the view: tells of notes and of an abort that the run began itself."""

    def __init__(self, screen: Screen) -> None:
        self.stop: StopSignals | None = None
        self._screen = screen
        self._said: set[tuple[str, str]] = set()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Note):
            self.note(event.flow, event.message)
        elif isinstance(event, StateChanged) and event.state == "aborting" and self.stop:
            self.stop.aborts(event.reason)

    def note(self, flow: str, message: str) -> None:
        """Say it, once."""
        if (flow, message) not in self._said:
            self._said.add((flow, message))
            if not self._screen.json:
                self._screen.note(f"{flow}: {message}")


def _show_end(
    pipeline: Pipeline,
    report: Report | None,
    error: BaseException | None,
    screen: Screen,
    shown: _Shown,
    stop: StopSignals,
    allow_rejects: int,
) -> int:
    if report is not None:
        for flow in report.flows:
            for message in flow.notes:
                shown.note(flow.name, message)
        if not screen.json:
            show_report(screen, report, incremental=_incremental(pipeline))
            _tell_of_rejects(pipeline, report, screen)
    if stop.received and isinstance(error, PipelineFailedError) and _only_stuck(error):
        screen.say(f"stopped: {error.errors[0]}")
        return stop.exit_code
    if isinstance(error, RunAbortedError):
        screen.say(
            "stopped: what was not committed is rolled back; run the same command again, and it"
            " goes on from what is"
        )
        return stop.exit_code
    if error is not None:
        return show_failure(screen, error, files_only=_writes_files_only(pipeline))
    if report is not None and report.status == "drained" and _writes_files_only(pipeline):
        screen.say(
            "stopped: files are put in place as a whole, so old ones are as they were; run the same"
            " command again, and it begins anew"
        )
        return stop.exit_code
    if report is not None and report.status == "drained":
        replaces = any(sink.mode == "replace" for flow in pipeline.flows for sink in flow.sinks)
        until = "it has been read to its end" if pipeline.publish == "flow" else "a run ends"
        staged = f"; a table to be replaced keeps its old rows until {until}" if replaces else ""
        screen.say(
            "stopped: what was read is committed; run the same command again, and it goes on from"
            f" there{staged}"
        )
        return stop.exit_code
    bad = report.rows_rejected + report.rows_skipped if report is not None else 0
    return EXIT_REJECTS if bad > allow_rejects else EXIT_DONE


def _tell_of_rejects(pipeline: Pipeline, report: Report, screen: Screen) -> None:
    """Where the bad rows of a run are."""
    if report.rows_rejected:
        names = dict.fromkeys(sink.target.name for flow in pipeline.flows for sink in flow.sinks)
        screen.note(
            f"{plural(report.rows_rejected, 'row')} rejected, in etl_reject of {', '.join(names)};"
            " see: etl rejects show"
        )
    if report.rows_skipped:
        screen.note(f"{plural(report.rows_skipped, 'row')} skipped, and not kept anywhere")


def _writes_files_only(pipeline: Pipeline) -> bool:
    return all(isinstance(sink.target, File) for flow in pipeline.flows for sink in flow.sinks)


def _only_stuck(error: PipelineFailedError) -> bool:
    return all(isinstance(one, StageStuckError) for one in error.errors)


def _incremental(pipeline: Pipeline) -> dict[str, bool]:
    """By flow: whether a run reads only what is new."""
    found: dict[str, bool] = {}
    for flow in pipeline.flows:
        origin = flow.stream.origin
        branches = origin.branches if isinstance(origin, Merged) else (origin,)
        found[flow.name] = all(
            not isinstance(b.origin, Merged) and b.origin.incremental for b in branches
        )
    return found
