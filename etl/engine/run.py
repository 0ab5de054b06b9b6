"""One run of a pipeline: start, watch, drain, abort, report.

Stop levels: *drain* (sources stop, everything that was read is committed), then *abort* (cancel
all, roll back). A deadline turns the first into the second. The library installs no signal
handlers; the command does.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from etl.connector import RunInfo
from etl.engine import failpoints
from etl.engine.assemble import Assembly
from etl.engine.holder import this_process
from etl.engine.homes import check_not_loading
from etl.engine.plan import Plan
from etl.engine.strays import forgotten_note
from etl.engine.supervise import finish, guard, supervise, wait_for_root
from etl.engine.watchdog import watched
from etl.errors import ConfigError, EtlError, PipelineFailedError, RunAbortedError
from etl.events import (
    Event,
    Note,
    Observer,
    Report,
    RunEnded,
    RunStarted,
    RunState,
    RunStats,
    RunStatus,
    StateChanged,
)
from etl.foreign import said
from etl.policy import Retry

_log = logging.getLogger("etl")


class Run:
    """A pipeline that runs. Made by ``Pipeline.start``; ``wait`` gives its report."""

    def __init__(
        self,
        plan: Plan,
        *,
        retry: Retry,
        observers: Sequence[Observer],
        full: bool,
        accept_change: bool,
        take_over: bool,
        home: Mapping[str, str] | None,
    ) -> None:
        self.run_id = uuid.uuid4().hex
        self.state: RunState = "starting"
        self._plan = plan
        self._retry = retry
        self._observers = tuple(observers)
        self._began = monotonic()
        self._started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._started = asyncio.Event()  # set when it is open, or has ended before that
        self._is_open = False
        self._abort_reason: str | None = None
        self._report: Report | None = None
        self._deadline: asyncio.TimerHandle | None = None
        info = RunInfo(
            pipeline=plan.pipeline,
            run_id=self.run_id,
            batch_rows=plan.limits.batch_rows,
            batch_bytes=min(plan.limits.batch_nbytes, plan.share),
            most_bytes=plan.share,
            row_bytes=plan.limits.row_bytes,
            holder=this_process(self.run_id),
            take_over=take_over,
            one_instant=plan.one_instant,
            publishes_each=plan.publishes_each,
        )
        self._assembly = Assembly(
            plan,
            info,
            retry=retry,
            full=full,
            accept_change=accept_change,
            tell=self._tell,
            home=home,
        )
        self._loop = asyncio.get_running_loop()
        self._root = asyncio.create_task(self._run(), name=f"etl:run {plan.pipeline}")

    async def started(self) -> None:
        """Wait until every database is open and checked, or the run has failed before."""
        try:
            await self._started.wait()
        except asyncio.CancelledError:
            self._root.cancel()
            await self._ended()
            raise
        if not self._is_open:
            await self.wait()

    async def wait(self) -> Report:
        """Wait for the end. Cancelling this aborts the run and waits for its roll-back.

        Raises:
            PipelineFailedError: A flow failed; ``errors`` has the causes.
            RunAbortedError: It was aborted; also where another task that waited was cancelled.
            ConfigError: It goes on in another event loop (so has each method that ends it).
        """
        if not self._root.done():
            self._check_loop()
        try:
            return await wait_for_root(self._root)
        except asyncio.CancelledError as cancel:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody cancelled this waiter, so it must not see a cancellation.
            raise self._aborted("another task that waited for it was cancelled") from cancel

    def _check_loop(self) -> None:
        """Refuse another thread or loop: a drain would be half done there, with no deadline."""
        try:
            is_here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            is_here = False
        if not is_here:
            raise ConfigError(
                f"the run of pipeline {self._plan.pipeline!r} goes on in another event loop. From"
                " another thread, keep the loop that started it and call"
                " loop.call_soon_threadsafe(run.request_drain), or run.request_abort"
            )

    async def _ended(self) -> None:
        """Wait for the end, whatever it is; for a caller that has no use for the error."""
        if not self._root.done():  # its own loop may have ended since, and would call nobody back
            await finish(asyncio.wait({self._root}))
        if not self._root.cancelled():
            self._root.exception()  # retrieved, or the loop would report it

    def request_drain(self, reason: str = "asked to", deadline_s: float | None = None) -> None:
        """Stop reading, commit what was read, end. Returns at once.

        Args:
            deadline_s: Seconds until it becomes an abort; default: ``Limits.drain_s``.
        """
        if self.state not in {"starting", "running"}:
            return
        self._check_loop()
        if self.state == "starting":
            self.request_abort(reason)  # nothing was read yet: there is nothing to finish
            return
        self._change("draining", reason)
        for flow in self._assembly.flows:
            flow.request_drain()
        seconds = self._plan.limits.drain_s if deadline_s is None else deadline_s
        self._deadline = asyncio.get_running_loop().call_later(
            seconds, self.request_abort, f"the drain took longer than {seconds:g} s"
        )

    def request_abort(self, reason: str = "asked to") -> None:
        """Cancel everything and roll open transactions back. Returns at once."""
        if self._root.done() or self._abort_reason is not None:
            return
        self._check_loop()
        self._abort_reason = reason
        self._change("aborting", reason)
        self._root.cancel()

    async def drain(self, *, deadline_s: float | None = None) -> Report:
        """Drain and wait for the end."""
        self.request_drain("asked to", deadline_s)
        return await self.wait()

    async def abort(self) -> None:
        """Abort and wait for the end; no error if the run ended by itself."""
        self.request_abort()
        await self._ended()

    def stats(self) -> RunStats:
        """Figures for now: rows, bytes, how full each channel is."""
        return RunStats(
            pipeline=self._plan.pipeline,
            run_id=self.run_id,
            state=self.state,
            elapsed_s=round(monotonic() - self._began, 3),
            flows=[flow.stats() for flow in self._assembly.flows],
        )

    async def _run(self) -> Report:
        try:
            report = await self._run_to_end()
        except asyncio.CancelledError as cancel:
            if self._abort_reason is None:
                self._report = self._end("aborted", "cancelled")
                raise
            aborted = self._aborted(self._abort_reason)
            aborted.report = self._end("aborted", str(aborted))
            raise aborted from cancel
        except EtlError as error:
            # Told before anything ran, an error of the set-up needs no wrapping.
            report = self._end("failed", str(error))
            if not self._is_open:
                raise
            raise PipelineFailedError(self._failure([error]), [error], report) from error
        except BaseExceptionGroup as group:
            errors = list(group.exceptions)
            report = self._end("failed", said(errors[0]))
            raise PipelineFailedError(self._failure(errors), errors, report) from group
        except Exception as error:
            report = self._end("failed", said(error))
            raise PipelineFailedError(self._failure([error]), [error], report) from error
        finally:
            self._started.set()
            if self._deadline is not None:
                self._deadline.cancel()
        return report

    async def _run_to_end(self) -> Report:
        failpoints.arm()
        assembly = self._assembly
        async with AsyncExitStack() as stack:
            try:
                await guard(f"the start of pipeline {self._plan.pipeline!r}", assembly.open(stack))
            except BaseException:
                for work in assembly.units.values():
                    work.close()
                raise
            self._change("running", "")
            names = tuple(flow.plan.name for flow in assembly.flows)
            self._tell(RunStarted(pipeline=self._plan.pipeline, run_id=self.run_id, flows=names))
            self._is_open = True
            self._started.set()
            # What was just built lives as long as the run. Uncollected, it would soon make the
            # collector look at everything young, the first rows with it. Where a program has put
            # the collector off, all of its objects are young.
            if gc.isenabled():
                gc.collect(0)
            async with watched(
                stall_after_s=self._plan.limits.stall_after_s,
                progress=lambda: assembly.progress,
                culprits=assembly.culprits,
                tell=lambda text: self._tell(Note(flow=self._plan.pipeline, message=text)),
            ):
                await supervise(
                    assembly.units,
                    lambda: [*assembly.channels],
                    grace_s=self._plan.limits.abort_grace_s,
                    patient=assembly.patient,
                    on_forgotten=self._told_forgotten,
                )
            await assembly.reads_ended()
            done = all(flow.exhausted for flow in assembly.flows)
            if done:
                await assembly.publisher.publish_all(assembly.flows)
            failpoints.hit("run.before_exit")
        return self._end("completed" if done else "drained", None)

    def _told_forgotten(self, unit: str, tasks: list[str]) -> None:
        # The user's own: they may be meant to go on in the program, so they are not cancelled.
        self._note(forgotten_note(unit, tasks))

    def _note(self, message: str) -> None:
        """A note that belongs to the whole run; the report has it with the first flow."""
        flow = self._assembly.flows[0]
        flow.notes.append(message)
        self._tell(Note(flow=flow.plan.name, message=message))

    def _aborted(self, reason: str) -> RunAbortedError:
        doubt = ""
        if flows := ", ".join(map(repr, dict.fromkeys(self._assembly.in_doubt))):
            doubt = (
                f", but for one of flow {flows}, which the target did not end in time: it is in or"
                " not, and the next run sees which"
            )
        return RunAbortedError(
            f"run of pipeline {self._plan.pipeline!r} was aborted ({reason}). Open transactions"
            f" were rolled back{doubt}; what was committed stays, and the next run goes on from"
            " there",
            self._report,
        )

    def _failure(self, errors: Sequence[BaseException]) -> str:
        first = errors[0]
        text = said(first)
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        return f"pipeline {self._plan.pipeline!r} failed: {text}{more}"

    def _end(self, status: RunStatus, error: str | None) -> Report:
        report = Report(
            pipeline=self._plan.pipeline,
            run_id=self.run_id,
            status=status,
            started_at=self._started_at,
            seconds=round(monotonic() - self._began, 3),
            flows=tuple(flow.report() for flow in self._assembly.flows),
        )
        self.state = "ended"
        self._tell(RunEnded(report=report, error=error))
        return report

    def _change(self, state: RunState, reason: str) -> None:
        self.state = state
        if state != "running":
            self._tell(StateChanged(state=state, reason=reason))

    def _tell(self, event: Event) -> None:
        for observer in self._observers:
            try:
                observer(event)
            except (Exception, asyncio.CancelledError):  # its own: nothing is awaited here
                _log.exception("an observer failed on %s", type(event).__name__)


_running: set[asyncio.Task[Any]] = set()  # a task that nobody refers to may be collected


async def start(
    plan: Plan,
    *,
    retry: Retry,
    observers: Sequence[Observer],
    full: bool,
    accept_change: bool,
    take_over: bool,
    home: Mapping[str, str] | None = None,
) -> Run:
    """Start a run; returns when every database is open and checked.

    Args:
        home: Where worker processes find the pipeline, where the plan has some.

    Raises:
        ConfigError: The set-up is wrong; nothing was moved.
        TransientError: A database cannot be reached.
        AlreadyRunningError: Another run of the pipeline is active; nothing was moved.
    """
    if asyncio.get_running_loop().is_closed():
        raise ConfigError("the event loop is closed")
    check_not_loading(plan.pipeline)
    run = Run(
        plan,
        retry=retry,
        observers=observers,
        full=full,
        accept_change=accept_change,
        take_over=take_over,
        home=home,
    )
    root = run._root  # pyright: ignore[reportPrivateUsage]  this module's own class
    _running.add(root)
    root.add_done_callback(_running.discard)
    await run.started()
    return run
