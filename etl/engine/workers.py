"""Worker processes of a flow, seen from the run: started, fed with key ranges, listened to, ended.

The run keeps what there is one of: the lock, the epoch, what is read next, the bounds for bad
rows, the end of the flow. A worker process (``engine/worker``) reads, computes and commits.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from time import monotonic
from typing import Any, Final

from etl import events
from etl.engine import wire
from etl.engine.bad_rows import BadRows
from etl.engine.claims import Claim
from etl.engine.segments import Take
from etl.engine.supervise import finish
from etl.errors import (
    ConfigError,
    EtlError,
    ResourceError,
    StageError,
    StageStuckError,
    TooManyRejectsError,
    TransientError,
)
from etl.events import ChannelStats, Event, Note
from etl.foreign import named

_log = logging.getLogger("etl")

CLOSE_S: Final = 1.5
"""Seconds for closing, after a worker has given up what does not stop, before it is killed."""
_EXIT_S = 5.0
_ANSWER_S = 2.0
_CRASHES = frozenset({"SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE"})

# Not ``-m``: that would put the working directory before everything else. What the list of
# processes shows are paths, no secrets: those go through the socket, where there are any.
_MAIN = (
    "from sys import argv, path; path[:] = argv[2:];"
    " from etl.engine.worker import main; main(int(argv[1]))"
)


class Worker:
    """One worker process, from the turn of its flow to its end.

    Attributes:
        name: For messages.
        rows: Rows that it has read so far; ``nbytes`` their size, ``rows_written`` those that the
            sinks took, in as many ``transactions``.
        moved: A figure that grows whenever anything moves in it.
        channels: How full its channels were when it last told.
        exhausted: No key range was left for it.
    """

    def __init__(
        self,
        name: str,
        job: wire.Message,
        take: Take,
        *,
        grace_s: float,
        bad_rows: BadRows,
        claims: Sequence[Claim],
        tell: events.Observer,
    ) -> None:
        """Make one; :meth:`run` starts it.

        Args:
            job: See ``wire``.
            grace_s: Seconds that it may go on after it was told to abort.
            claims: Their checkpoints move as the worker's did.
            tell: Takes what it tells for the observers of the run.
        """
        self.name = name
        self.rows = self.nbytes = self.rows_written = self.transactions = self.moved = 0
        self.channels: Sequence[ChannelStats] = ()
        self.exhausted = False
        self._job = job
        self._take = take
        self._grace_s = grace_s
        self._bad_rows = bad_rows
        self._claims = claims
        self._tell = tell
        self._writer: asyncio.StreamWriter | None = None
        self._draining = False
        self._answer: asyncio.Future[str] | None = None
        self._asked_at = 0.0

    def request_drain(self) -> None:
        """Let it stop reading soon; what it has read it still commits."""
        self._draining = True
        self._send("drain")

    async def culprits(self) -> str | None:
        """Which of its tasks hold it up."""
        if self._writer is None:
            return None
        self._answer = asyncio.get_running_loop().create_future()
        self._send("who")
        try:
            async with asyncio.timeout(_ANSWER_S):
                return await self._answer
        except TimeoutError:
            return "it does not answer: a function blocks its event loop"

    async def run(self) -> None:
        """Start it, and wait for its end.

        Raises:
            EtlError: What it failed with; or how it ended, where it could not say.
        """
        if self._draining:
            return  # nothing was read yet
        process, ours = _start(self.name)
        try:
            try:
                reader, self._writer = await asyncio.open_unix_connection(
                    sock=ours, limit=wire.MOST_BYTES
                )
            except BaseException:
                ours.close()
                raise
            self._send("job", **self._job, **_of_this_process())
            if self._draining:
                self._send("drain")
            try:
                end = await self._listen(reader)
            except BaseException:
                end = await finish(self._abort(reader, process))
                if end is not None and end["is"] == "failed":
                    error = self.failure(end)
                    raise error from error.__cause__
                raise
            code = await finish(self._close(process))
        except BaseException:
            await finish(self._close(process, at_once=True))
            raise
        if end is None:
            raise self._died(process.pid, code)
        if end["is"] == "failed":
            raise self.failure(end)
        self.exhausted = end["exhausted"]
        for claim, checkpoints in zip(self._claims, end["claims"], strict=True):
            moved = {(sink, partition): one for sink, partition, one in checkpoints}
            for key in list(claim.checkpoints):
                if (one := moved.get((key.sink, key.partition))) is not None:
                    claim.checkpoints[key] = wire.checkpoint_of(one)

    async def _listen(self, reader: asyncio.StreamReader) -> wire.Message | None:
        """Hear it out; its last message, or None where it ended without one."""
        while True:
            try:
                line = await reader.readline()
            except ConnectionError:
                return None
            if not line.endswith(b"\n"):
                return None
            message = wire.decode(line)
            if message["is"] in {"ended", "failed", "aborted"}:
                return message
            await self._hear(message)

    async def _hear(self, message: wire.Message) -> None:
        match message["is"]:
            case "next":
                route = await self._take()
                self._send("range", partition=None if route is None else route.partition)
            case "figures":
                for name, value in message["figures"].items():
                    setattr(self, name, value)
            case "event":
                self._tell(_event_of(message))
            case "judge":
                batches = [(rows, bad) for rows, bad in message["batches"]]
                try:
                    await self._bad_rows.judge(batches, wire.reject_of(message["last"]))
                except TooManyRejectsError as error:
                    self._send("verdict", refusal=str(error))
                else:
                    self._send("verdict", refusal=None)
            case "count":
                batches = [(rows, bad) for rows, bad in message["batches"]]
                self._bad_rows.count(batches, message["refused"])
            case "culprits":
                if self._answer is not None and not self._answer.done():
                    self._answer.set_result(message["text"])
            case "log":
                logger = logging.getLogger(message["logger"])
                logger.log(message["level"], "%s: %s", self.name, message["text"])
            case "print":
                stream = getattr(sys, message["stream"], None)
                if stream is not None:
                    stream.write(message["text"])
            case other:
                raise StageError(f"{self.name} sent a message {other!r}, which nobody knows")

    def _send(self, kind: str, /, **fields: Any) -> None:
        if self._writer is not None:
            self._writer.write(wire.encode({"is": kind, **fields}))

    def failure(self, end: wire.Message) -> EtlError:
        """What it failed with first; what failed beside that is told."""
        first, *others = end["errors"]
        for one in others:
            self._tell(Note(flow=self._job["flow"], message=f"{self.name}, also: {one['text']}"))
        return wire.error_of(first)

    async def _abort(
        self, reader: asyncio.StreamReader, process: subprocess.Popen[bytes]
    ) -> wire.Message | None:
        """Let it roll back; a worker that does not end in time is killed."""
        self._send("abort")
        limit_s = self._grace_s + CLOSE_S
        try:
            async with asyncio.timeout(limit_s):
                return await self._listen(reader)
        except TimeoutError:
            process.kill()
            raise StageStuckError(
                f"{self.name} did not stop within {limit_s:g} s after it was told to, and was"
                " killed: a function blocks its event loop or does not end, or a database does not"
                " answer. What was open is rolled back. Raise Limits(abort_grace_s=...) where it"
                " needs longer"
            ) from None

    async def _close(self, process: subprocess.Popen[bytes], *, at_once: bool = False) -> int:
        """Wait for the process's end, in bounded time; its exit status."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        deadline = monotonic() + (0 if at_once and process.poll() is None else _EXIT_S)
        while (code := process.poll()) is None:
            if monotonic() >= deadline:
                process.kill()
            await asyncio.sleep(0.005)
        return code

    def _died(self, pid: int, code: int) -> EtlError:
        """The error for a worker that ended without a word."""
        state = (
            "Its open transaction is rolled back; what was committed before stays, with its"
            " positions, and the next run goes on from there"
        )
        who = f"{self.name} (process {pid})"
        if code >= 0:
            return StageError(
                f"{who} ended with exit status {code} and said nothing: a function may have called"
                f" os._exit. {state}"
            )
        try:
            how = signal.Signals(-code).name
        except ValueError:
            how = f"signal {-code}"
        if how == "SIGKILL":
            return ResourceError(
                f"{who} was killed by SIGKILL, as the system does when memory is short. {state}."
                " Where it is, use fewer processes or a lower limit on memory"
            )
        if how in _CRASHES:
            return StageError(f"{who} crashed with {how}, probably in a library in C. {state}")
        return TransientError(f"{who} was ended by {how}. {state}")


def _event_of(message: wire.Message) -> Event:
    kind: Any = getattr(events, message["kind"])
    event: Event = kind(**message["fields"])
    return event


def _start(name: str) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a worker process; it, and this end of the socket to it."""
    if not sys.executable or getattr(sys, "frozen", False):
        raise ConfigError(
            f"{name} cannot be started: this program is not run by a Python interpreter that could"
            " be started again. Leave processes= at 1"
        )
    ours, theirs = socket.socketpair()
    optimize = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    paths = [path for path in sys.path if isinstance(path, str)]
    try:
        process = subprocess.Popen(
            [sys.executable, *optimize, "-P", "-c", _MAIN, str(theirs.fileno()), *paths],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            # Ctrl-C in a terminal goes to all processes of a group; the run decides what it means.
            start_new_session=True,
        )
    except OSError as error:
        ours.close()
        raise ResourceError(
            f"{name} could not be started: {named(error)}. Nothing of it was moved; run again, with"
            " fewer processes"
        ) from error
    finally:
        theirs.close()
    ours.setblocking(False)
    return process, ours


def _of_this_process() -> dict[str, Any]:
    """What a worker process has like this one, for the module that it imports."""
    levels = {name: logging.getLogger(name).getEffectiveLevel() for name in ("", "etl")}
    return {"argv": sys.argv, "levels": levels}
