"""``Pipeline``: a name, its flows, and the ways to run them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Sequence
from typing import Literal, cast

from etl.connector import RunInfo
from etl.engine.holder import this_process
from etl.engine.homes import home_of
from etl.engine.plan import Plan, make_plan
from etl.engine.redo import Redone, redo
from etl.engine.run import Run, start
from etl.engine.supervise import finish
from etl.engine.survey import survey
from etl.errors import ConfigError
from etl.events import Observer, Report
from etl.flow import Flow, is_async, name_of
from etl.policy import Limits, OnError, Retry, check_policies
from etl.secrets import holds_url_with_password
from etl.verdict import FlowSurvey


class Pipeline:
    """One or more flows that run together, under a name that keeps their positions.

    Making one checks it and opens nothing. It can run many times.

    Raises:
        ConfigError: No name, no flow, or flows that cannot run together.
    """

    def __init__(
        self,
        name: str,
        *flows: Flow,
        limits: Limits | None = None,
        retry: Retry | None = None,
        on_error: OnError = "fail",
        one_instant: bool = False,
        publish: Literal["run", "flow"] = "run",
    ) -> None:
        """Make a pipeline.

        Args:
            on_error: What becomes of the bad rows of flows that do not say it themselves.
            one_instant: Read all tables that are read in full from one PostgreSQL database at one
                instant, so that sums over several tables hold.
            publish: When tables that are replaced are put in place: all together at the end of the
                ``run``, or those of each ``flow`` when it has ended.
        """
        if not isinstance(name, str) or not name:
            raise ConfigError("Pipeline(): the first argument is its name, a text")
        if not flows:
            raise ConfigError(f"pipeline {name!r} has no flow; end a stream with .into(sink)")
        for flow in flows:
            if not isinstance(flow, Flow):
                raise ConfigError(
                    f"pipeline {name!r}: {type(flow).__name__} is not a flow; end a stream with"
                    " .into(sink)"
                )
        names = [name, *(one for f in flows for one in (f.name, *(s.table for s in f.sinks)))]
        if any(map(holds_url_with_password, names)):
            raise ConfigError(
                "Pipeline(): one of its names is a URL with a password. Names are kept in databases"
                " and shown; give a name without one"
            )
        self.name = name
        self.flows = flows
        check_policies(f"pipeline {name!r}", limits=limits, retry=retry, on_error=on_error)
        self.limits = limits or Limits()
        self.retry = retry or Retry()
        self.on_error: OnError = on_error or "fail"
        self.one_instant = one_instant
        if publish not in ("run", "flow"):
            raise ConfigError(f'pipeline {name!r}: publish={publish!r} is neither "run" nor "flow"')
        self.publish: Literal["run", "flow"] = publish
        self.plan()

    def plan(self, limits: Limits | None = None, on_error: OnError | None = None) -> Plan:
        """What a run will do; ``explain()`` has it in lines. Connects to nothing."""
        check_policies(f"pipeline {self.name!r}", limits=limits, on_error=on_error)
        return make_plan(
            self.name,
            self.flows,
            limits or self.limits,
            on_error=on_error or self.on_error,
            override=on_error is not None,
            one_instant=self.one_instant,
            publishes_each=self.publish == "flow",
        )

    async def run(
        self,
        *,
        observers: Sequence[Observer] = (),
        full: bool = False,
        accept_change: bool = False,
        take_over: bool = False,
        limits: Limits | None = None,
        on_error: OnError | None = None,
    ) -> Report:
        """Run to the end. Cancelling it rolls open transactions back; a rerun is exact.

        Args:
            observers: Plain functions that are called with each event of the run (see
                ``etl.events``), on the event loop: they must not block.
            full: Read everything again, whatever the positions say.
            accept_change: Keep the positions although source, key or sink changed.
            take_over: Start although another run of it is active: that one is fenced off, and
                fails when it commits next.
            limits: Instead of the pipeline's own.
            on_error: Instead of what the pipeline and its flows say.

        Raises:
            ConfigError: The set-up is wrong; nothing was moved.
            TransientError: A database cannot be reached; nothing was moved.
            AlreadyRunningError: Another run of it is active; nothing was moved.
            PipelineFailedError: A flow failed; what was committed stays.
        """
        run = await self.start(
            observers=observers,
            full=full,
            accept_change=accept_change,
            take_over=take_over,
            limits=limits,
            on_error=on_error,
        )
        return await run.wait()

    async def start(
        self,
        *,
        observers: Sequence[Observer] = (),
        full: bool = False,
        accept_change: bool = False,
        take_over: bool = False,
        limits: Limits | None = None,
        on_error: OnError | None = None,
    ) -> Run:
        """Start a run and return its handle, once every database is open and checked.

        See :meth:`run` for arguments and errors.
        """
        plan = self.plan(limits, on_error)
        _check_observers(observers, self.name)
        return await start(
            plan,
            retry=self.retry,
            observers=observers,
            full=full,
            accept_change=accept_change,
            take_over=take_over,
            home=home_of(self, self.name) if plan.processes > 1 else None,
        )

    def run_sync(
        self,
        *,
        observers: Sequence[Observer] = (),
        full: bool = False,
        accept_change: bool = False,
        take_over: bool = False,
        limits: Limits | None = None,
        on_error: OnError | None = None,
    ) -> Report:
        """:meth:`run` for a script without an event loop.

        Raises:
            ConfigError: Called inside a running event loop (a notebook, a web app).
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise ConfigError(
                "run_sync() cannot run inside a running event loop; use 'await pipeline.run()' here"
            )
        return asyncio.run(
            self.run(
                observers=observers,
                full=full,
                accept_change=accept_change,
                take_over=take_over,
                limits=limits,
                on_error=on_error,
            )
        )

    async def survey(
        self, *, limits: Limits | None = None, on_error: OnError | None = None
    ) -> list[FlowSurvey]:
        """What a run would do with each column, and how its rows would travel.

        Connects and looks; it makes no table, file or checkpoint, and leaves no lock.

        Raises:
            ConfigError: A source or the set-up is wrong. What a target would refuse is told by
                ``FlowSurvey.refusal`` instead.
            TransientError: A database cannot be reached.
        """
        plan = self.plan(limits, on_error)
        limits = limits or self.limits
        info = RunInfo(
            pipeline=self.name,
            run_id="survey",
            batch_rows=limits.batch_rows,
            batch_bytes=limits.batch_nbytes,
        )
        return await survey(plan, info)

    async def retry_rejects(
        self, *, module: str = "__main__", take_over: bool = False
    ) -> list[Redone]:
        """Send the rejected rows again, through today's steps, from the one that refused them.

        Each is sent exactly once: its reject goes in the transaction that writes it. A row that is
        refused again stays, with the new reason. Rejects of a ``replace`` that is not published
        are left alone.

        Args:
            module: The module whose classes the rows are of, where that is the program itself.
            take_over: Start although a run of the pipeline is active.

        Raises:
            AlreadyRunningError: A run of the pipeline is active.
        """
        run_id = uuid.uuid4().hex
        limits = self.limits
        info = RunInfo(
            pipeline=self.name,
            run_id=run_id,
            batch_rows=limits.batch_rows,
            batch_bytes=limits.batch_nbytes,
            holder=this_process(run_id),
            take_over=take_over,
        )
        return await redo(self.plan(), info, retry=self.retry, module=module)

    def __repr__(self) -> str:
        return f"<Pipeline {self.name!r} of {', '.join(flow.name for flow in self.flows)}>"


def _check_observers(given: object, name: str) -> None:
    """Refuse what would be called in vain: each error of an observer is only logged."""
    if not isinstance(given, Iterable):
        raise ConfigError(
            f"pipeline {name!r}: observers= takes a list of functions, as observers=[show]"
        )
    for one in cast("Iterable[object]", given):
        if not callable(one):
            raise ConfigError(
                f"pipeline {name!r}: observers= takes functions, not {type(one).__name__}"
            )
        if is_async(one):
            raise ConfigError(
                f"pipeline {name!r}: observer {name_of(one)} is async, and nothing would await it."
                " Write it as a plain function; it may put events into an asyncio.Queue"
            )


async def gather(
    *pipelines: Pipeline, on_failure: Literal["abort", "drain", "continue"] = "abort"
) -> list[Report]:
    """Run several pipelines together; their reports, in order.

    Args:
        on_failure: What happens to the others when one fails.

    Raises:
        ConfigError: Two pipelines have the same name, or one is none.
        BaseExceptionGroup: Several failed.
        EtlError: The only failure.
    """
    for one_of_them in pipelines:
        if not isinstance(one_of_them, Pipeline):
            raise ConfigError(
                f"gather() takes pipelines, each by itself, as gather(a, b), not"
                f" {type(one_of_them).__name__}"
            )
    if on_failure not in ("abort", "drain", "continue"):
        raise ConfigError(
            f'gather(): on_failure={on_failure!r} is neither "abort", "drain" nor "continue"'
        )
    names = [pipeline.name for pipeline in pipelines]
    if len(set(names)) < len(names):
        raise ConfigError("gather(): two pipelines have the same name")
    runs: list[Run] = []
    failed = asyncio.Event()

    async def one(pipeline: Pipeline) -> Report:
        run = await pipeline.start()
        runs.append(run)
        if on_failure == "drain" and failed.is_set():
            run.request_drain("another pipeline failed")  # while this one was starting
        return await run.wait()

    tasks = [asyncio.create_task(one(pipeline), name=pipeline.name) for pipeline in pipelines]
    pending = set(tasks)
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if any(task.cancelled() or task.exception() is not None for task in done):
                failed.set()
                if on_failure == "abort":
                    for task in pending:
                        task.cancel()
                elif on_failure == "drain":
                    for run in runs:
                        run.request_drain("another pipeline failed")
    except BaseException:
        for task in pending:
            task.cancel()
        if pending:
            await finish(asyncio.wait(pending))
        for task in tasks:
            if not task.cancelled():
                task.exception()  # retrieved, or the loop would report it
        raise
    errors = [
        error for task in tasks if not task.cancelled() and (error := task.exception()) is not None
    ]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise BaseExceptionGroup("several pipelines failed", errors)
    return [task.result() for task in tasks]
