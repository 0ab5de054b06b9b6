"""A worker process of a run: reads, computes and commits the key ranges that the run gives it.

It imports the pipeline anew, checks that it is the same, and runs the tasks of one lane as a run
does: a pump, the stages, the lane. The lock, the epoch and the end of the flow are the run's.
Rows and position stay in one transaction of this process, and epoch and old position are compared
in it, so one that outlives its run is fenced like any older run.

It ends when its run does: a thread listens to the run, and once nobody is there any more the
process rolls back, or is gone a moment later, whatever its functions do meanwhile.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import asdict, replace
from queue import SimpleQueue
from time import sleep
from types import FrameType
from typing import Any, Final, Literal, cast

from etl.batch import Reject
from etl.connector import Commons, OpenTarget, Reader, RunInfo, Session
from etl.engine import failpoints, homes, wire
from etl.engine.bad_rows import BadRows
from etl.engine.claims import Claim, Start
from etl.engine.forms import agree_on_lines, keep_columns, offer_frames, reaching_shape
from etl.engine.lane import doubt_note
from etl.engine.plan import Plan
from etl.engine.process import own_this_process
from etl.engine.running import RunningFlow
from etl.engine.segments import Route
from etl.engine.strays import forgotten_note
from etl.engine.supervise import guard, supervise
from etl.engine.tasks import Builder, Steps
from etl.engine.turns import Turns
from etl.engine.watchdog import LoopWatchdog
from etl.engine.workers import CLOSE_S
from etl.errors import ConfigError, SchemaMismatchError, TooManyRejectsError
from etl.events import Event, Note
from etl.policy import OnError

_LOOK_S: Final = 1.0
_FIGURES_S: Final = 0.2


def main(number: int) -> None:
    """Do what comes through a socket, the file descriptor of this number."""
    # The run decides what these mean: a supervisor may send them to every process of a service.
    # Not SIG_IGN, which programs that a function starts would inherit.
    signal.signal(signal.SIGINT, _leave_it_to_the_run)
    signal.signal(signal.SIGTERM, _leave_it_to_the_run)
    link = Link(socket.socket(fileno=number))
    job = link.first()
    _speak_through(link, job["levels"])
    sys.argv = job["argv"]
    try:
        end = _do(job, link)
    except BaseException as error:
        end = {"is": "failed", "errors": [wire.of_error(error)]}
    sys.stdout.flush()
    sys.stderr.flush()
    link.post(**end)


def _leave_it_to_the_run(_number: int, _frame: FrameType | None) -> None:
    """A signal came."""


def _do(job: wire.Message, link: Link) -> dict[str, Any]:
    """The job; the last message."""
    failpoints.arm()
    pipeline = homes.load(job["home"])
    own_this_process()
    limits = wire.limits_of(job["limits"])
    link.grace_s = limits.abort_grace_s + CLOSE_S
    plan: Plan = pipeline.plan(limits, wire.policy_of(job["on_error"]))
    with asyncio.Runner() as runner:
        try:
            return runner.run(Work(job, link, plan, pipeline.retry).run())
        except asyncio.CancelledError:
            return {"is": "aborted"}
        except BaseExceptionGroup as group:
            return {"is": "failed", "errors": [wire.of_error(one) for one in group.exceptions]}


class Link:
    """The socket to the run. Any thread may post; one of its own listens.

    Attributes:
        grace_s: Seconds from the end of the run to that of this process, at most.
    """

    def __init__(self, end: socket.socket) -> None:
        end.set_inheritable(False)  # a program that a function starts is not to hold it
        self.grace_s = 0.0
        self._socket = end
        self._run = os.getppid()
        self._sending = threading.Lock()
        self._inbox: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hear: Callable[[dict[str, Any]], None] | None = None
        threading.Thread(target=self._listen, name="etl:link", daemon=True).start()

    def first(self) -> dict[str, Any]:
        """The first message; before :meth:`attach`."""
        return self._inbox.get()

    def attach(self, hear: Callable[[dict[str, Any]], None]) -> None:
        """From now on messages are heard on the running loop."""
        self._loop, self._hear = asyncio.get_running_loop(), hear
        self._deliver()

    def post(self, **message: Any) -> None:
        """Send a message."""
        # Where the run is gone, the thread that listens sees to it.
        with self._sending, suppress(OSError):
            self._socket.sendall(wire.encode(message))

    def _deliver(self) -> None:
        assert self._hear is not None
        while not self._inbox.empty():
            self._hear(self._inbox.get())

    def _listen(self) -> None:
        rest = b""
        with suppress(OSError):
            while data := self._more():
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._pass_on(wire.decode(line))
        # Nobody is there. A function that blocks the loop does not see that; this thread does.
        self._pass_on({"is": "abort"})
        sleep(self.grace_s)
        os._exit(1)

    def _more(self) -> bytes:
        poll = select.poll()  # not select(): the number of the descriptor may be a high one
        poll.register(self._socket, select.POLLIN)
        while not poll.poll(_LOOK_S * 1000):
            if os.getppid() != self._run:
                return b""  # killed, while a child of its own still holds its end of the socket
        return self._socket.recv(1 << 20)

    def _pass_on(self, message: dict[str, Any]) -> None:
        if message["is"] == "abort" and self._loop is None:
            os._exit(1)  # an import goes on, and nothing is open
        self._inbox.put(message)
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed: the process ends anyway
                self._loop.call_soon_threadsafe(self._deliver)


class Work:
    """The tasks of one lane, from the reader to the commits."""

    def __init__(self, job: wire.Message, link: Link, plan: Plan, retry: Any) -> None:
        self._job = job
        self._link = link
        self._plan = plan
        self._name = f"worker {job['number']} of flow {job['flow']!r}"
        flow = next((one for one in plan.flows if one.name == job["flow"]), None)
        if flow is None or homes.mark_of(flow) != job["mark"]:
            raise ConfigError(
                f"{self._name} found another flow than its run has: the file was changed since the"
                " run began, or does not come out the same at each import. What was committed"
                " stays; run again, or in one process (--processes 1, Limits(processes=1))"
            )
        self._routes = {one.partition: one for one in map(wire.route_of, job["routes"])}
        self._answers: deque[asyncio.Future[Any]] = deque()
        self._flow = RunningFlow(flow, _AskingBadRows(flow.on_error, flow.name, self))
        turns = Turns({flow.name: ()}, 1)
        turns.begin()
        self._builder = Builder(
            plan,
            turns,
            retry=retry,
            tell=self._tell,
            writer_ended=self._writer_ended,
            in_doubt=lambda name: self._tell(Note(flow=name, message=doubt_note(plan.limits))),
        )
        self._draining = False
        self._told: dict[str, Any] = {}
        self._task: asyncio.Task[Any] | None = None
        self._asked: set[asyncio.Task[None]] = set()

    async def run(self) -> dict[str, Any]:
        """Work until no range is left; the last message."""
        self._task = asyncio.current_task()
        self._link.attach(self._hear)
        flow, watchdog = self._flow, LoopWatchdog()
        watchdog.start()
        try:
            async with AsyncExitStack() as stack:
                await guard(f"the start of {self._name}", self._open(stack))
                if self._draining:
                    flow.request_drain()
                self._tick()
                await supervise(
                    self._builder.units,
                    lambda: [*flow.channels],
                    grace_s=self._plan.limits.abort_grace_s,
                    patient=self._builder.patient,
                    on_forgotten=self._told_forgotten,
                )
                for note in dict.fromkeys(one for reader in flow.readers for one in reader.notes):
                    self._tell(Note(flow=flow.plan.name, message=note))
        finally:
            watchdog.stop()
            self._tell_figures()
        return {
            "is": "ended",
            "exhausted": flow.exhausted,
            "claims": [wire.of_checkpoints(self._own(claim)) for claim in flow.claims],
        }

    async def ask(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        """Ask the run; its answers come in the order of the questions."""
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._answers.append(answer)
        self.post(kind, **fields)
        return await answer

    def post(self, kind: str, /, **fields: Any) -> None:
        """Tell the run."""
        self._link.post(**{"is": kind}, **fields)

    def _hear(self, message: dict[str, Any]) -> None:
        match message["is"]:
            case "range" | "verdict":
                answer = self._answers.popleft()
                if not answer.done():
                    answer.set_result(message)
            case "drain":
                self._draining = True
                self._flow.request_drain()
            case "who":
                task = asyncio.create_task(self._tell_culprits(), name="etl:culprits")
                self._asked.add(task)
                task.add_done_callback(self._asked.discard)
            case _:  # abort
                if self._task is not None:
                    self._task.cancel()

    async def _open(self, stack: AsyncExitStack) -> None:
        """Connect as the run did, see that it is the same there, and build the tasks."""
        job, flow = self._job, self._flow
        commons = Commons()
        info = RunInfo(**job["info"])
        opened: list[OpenTarget] = []
        for sent, invitation in zip(job["claims"], job["targets"], strict=True):
            lane = flow.plan.lanes[int(sent["lane"])]
            invited = replace(info, invitation=invitation)
            opened.append(await stack.enter_async_context(lane.target.open(invited, sessions=1)))
        await stack.enter_async_context(commons)
        source = flow.plan.branches[0].source
        invited = replace(info, invitation=job["source"], commons=commons)
        reader = await stack.enter_async_context(source.connect(invited))
        flow.readers.append(reader)
        if homes.seen_by(reader) != job["shape"]:
            raise SchemaMismatchError(
                f"{source.summary} was changed (ALTER, or dropped and made again) after the run had"
                " begun. What was committed stays; run again"
            )
        flow.claims = await self._claims(opened)
        flow.sessions += [claim.session for claim in flow.claims]
        await self._prepare([reader], flow.sessions)
        start = Start(claims=flow.claims, routes=list(self._routes.values()), notes=())
        legs = [leg for branch in flow.plan.branches for leg in branch.legs]
        steps = Steps(
            rows={one.partition: cast("Any", one.inline) for one in flow.plan.branches},
            inline={id(leg): cast("Any", leg.inline) for leg in legs if not leg.parallel},
        )
        self._builder.build(
            flow, [reader], start, flow.sessions, [self._take], steps, lane=job["number"]
        )

    async def _claims(self, opened: Sequence[OpenTarget]) -> tuple[Claim, ...]:
        plan = self._flow.plan
        claims: list[Claim] = []
        for target, sent in zip(opened, self._job["claims"], strict=True):
            lane = plan.lanes[int(sent["lane"])]
            session = await target.session(plan.name, tuple(lane.sinks.values()))
            claims.append(wire.claim_of(sent, lane, session))
        return tuple(claims)

    async def _prepare(self, readers: Sequence[Reader[Any]], sessions: Sequence[Session]) -> None:
        """As the run did with what it opened; its notes are told."""
        flow = self._flow
        await keep_columns(flow.plan, readers)
        flow.shape, _ = await reaching_shape(flow.plan, readers, sessions)
        for claim in flow.claims:
            shapes = [flow.shape for _ in claim.plan.sinks]
            await claim.session.prepare(shapes, resumable=True)
        await offer_frames(flow.plan, readers, sessions)
        await agree_on_lines(flow.plan, readers, sessions)

    async def _take(self) -> Route | None:
        partition = (await self.ask("next"))["partition"]
        return None if partition is None else self._routes[partition]

    def _own(self, claim: Claim) -> dict[Any, Any]:
        """The checkpoints of the ranges that were read here."""
        before = wire.claim_of(
            self._job["claims"][self._flow.claims.index(claim)], claim.plan, None
        ).checkpoints
        return {key: one for key, one in claim.checkpoints.items() if one != before[key]}

    async def _writer_ended(self, flow: RunningFlow) -> None:
        """The run ends the flow, when all its workers have ended."""

    def _tick(self) -> None:
        self._tell_figures()
        asyncio.get_running_loop().call_later(_FIGURES_S, self._tick)

    def _tell_figures(self) -> None:
        flow = self._flow
        figures: dict[str, Any] = {
            "rows": flow.rows_read,
            "nbytes": flow.bytes_read,
            "rows_written": flow.rows_written,
            "transactions": flow.transactions,
            "moved": flow.moved,
        }
        if figures != self._told:
            self._told = figures
            self.post(
                "figures",
                figures={**figures, "channels": [channel.stats() for channel in flow.channels]},
            )

    def _tell(self, event: Event) -> None:
        self._tell_figures()  # what it sums up is known when it comes
        self.post("event", kind=type(event).__name__, fields=asdict(event))

    async def _tell_culprits(self) -> None:
        names = await self._flow.culprits()
        self.post("culprits", text=", ".join(names) or "every task waits for a channel")

    def _told_forgotten(self, unit: str, tasks: list[str]) -> None:
        self._tell(Note(flow=self._flow.plan.name, message=forgotten_note(unit, tasks)))


class _AskingBadRows(BadRows):
    """The bounds hold for the flow in all its processes, so the run judges and counts."""

    def __init__(self, policy: OnError, flow: str, work: Work) -> None:
        super().__init__(policy, flow)
        self._work = work

    async def judge(self, batches: Sequence[tuple[int, int]], last: Reject | None) -> None:
        if last is None:
            return
        verdict = await self._work.ask("judge", batches=batches, last=wire.of_reject(last))
        if verdict["refusal"] is not None:
            raise TooManyRejectsError(verdict["refusal"])

    def count(self, batches: Sequence[tuple[int, int]], refused: int) -> None:
        self._work.post("count", batches=batches, refused=refused)


def _speak_through(link: Link, levels: dict[str, int]) -> None:
    """What is printed or logged here comes out at the run, where a person looks."""
    sys.stdout = _stream(link, "stdout")
    sys.stderr = _stream(link, "stderr")
    logging.getLogger().addHandler(_ToRun(link))
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def _stream(link: Link, name: Literal["stdout", "stderr"]) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(_Printed(link, name)),
        encoding="utf-8",
        errors="backslashreplace",
        line_buffering=True,
    )


class _Printed(io.RawIOBase):
    def __init__(self, link: Link, name: str) -> None:
        self._link = link
        self._name = name

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        text = bytes(data).decode("utf-8", "replace")
        self._link.post(**{"is": "print", "stream": self._name, "text": text})
        return len(data)


class _ToRun(logging.Handler):
    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
            if record.exc_info and record.exc_info[1] is not None:
                # Its class only: the message of a stranger's error may quote a row.
                text = f"{text} ({type(record.exc_info[1]).__name__})"
            message = {"logger": record.name, "level": record.levelno, "text": text}
            self._link.post(**{"is": "log"}, **message)
        except Exception:
            self.handleError(record)
