"""A TCP proxy that breaks connections on purpose, for tests of pipelines and connectors.

It stands between a test and a real server::

    async with ChaosProxy(server_url) as proxy:
        target = Database(proxy.url)
        proxy.at_commit("cut_after")  # the first COMMIT is in, but its answer never comes

What it does can be changed at any time, also for connections that are open. It understands just
enough of PostgreSQL's protocol to find a COMMIT; it declines TLS, since that would hide it.

What a proxy cannot show: in a black hole the kernel goes on to acknowledge packets, so TCP
keep-alive does not find it. What is tested is the limits of the program itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final, Literal, TypeAlias
from urllib.parse import urlsplit, urlunsplit

Direction: TypeAlias = Literal["to_server", "to_client"]
How: TypeAlias = Literal["rst", "fin"]
Fault: TypeAlias = Literal["rst", "fin", "black_hole", "half_close"]
CommitFault: TypeAlias = Literal[
    "cut_before", "cut_with", "cut_after", "hold_answer", "hold_request"
]

DIRECTIONS: Final[tuple[Direction, ...]] = ("to_server", "to_client")
_PIECE = 64 * 1024
_LONGEST_COMMIT = 64
_STARTUP_CODES: Final = {"cancel": 80877102, "tls": 80877103, "gss": 80877104}


class ChaosProxy:
    """A proxy in front of one server; an async context manager.

    Attributes:
        passed: Bytes that went through, by direction, over all connections.
        accepted: Connections that were taken so far.
        commits: COMMITs that came from clients so far.
        strikes: How many of the faults that wait for their moment have happened.
        struck: Set when one has happened.
    """

    def __init__(self, url: str, *, postgres: bool = True) -> None:
        """Describe a proxy; ``async with`` opens it.

        Args:
            url: The server's address; it must name host and port.
            postgres: Look into the protocol. False for any other one: then nothing is known of
                COMMIT.
        """
        parts = urlsplit(url)
        if not parts.hostname or not parts.port:
            raise ValueError("a chaos proxy needs a URL with a host and a port")
        self.passed: dict[Direction, int] = dict.fromkeys(DIRECTIONS, 0)
        self.accepted = 0
        self.commits = 0
        self.strikes = 0
        self.struck = asyncio.Event()
        self._parts = parts
        self._postgres = postgres
        self._port = 0
        self._listening: asyncio.Server | None = None
        self._servers: list[asyncio.Server] = []
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_hole: dict[Direction, bool] = dict.fromkeys(DIRECTIONS, False)
        self._delay_s = 0.0
        self._rate: float | None = None
        self._hides_ends = False
        self._waiting: dict[Direction, list[_Trigger]] = {name: [] for name in DIRECTIONS}
        self._at_commit: dict[int, tuple[CommitFault, How]] = {}

    async def __aenter__(self) -> ChaosProxy:
        await self.accept()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.refuse()
        self.cut("rst")
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for server in self._servers:
            await server.wait_closed()

    @property
    def url(self) -> str:
        """The server's URL, through the proxy."""
        user, at, _ = self._parts.netloc.rpartition("@")
        return urlunsplit(self._parts._replace(netloc=f"{user}{at}127.0.0.1:{self._port}"))

    @property
    def open_links(self) -> int:
        """Connections that are open now."""
        return len(self._links)

    # --- what lasts until ``heal`` ---

    def heal(self) -> None:
        """Let everything pass again; what was held goes out now. Forget what has not struck."""
        self._delay_s = 0.0
        self._rate = None
        self._hides_ends = False
        self._at_commit.clear()
        for direction in DIRECTIONS:
            self._is_hole[direction] = False
            self._waiting[direction].clear()
            for link in self._links:
                link.gates[direction].set()
                link.may_end[direction].set()

    def delay(self, seconds: float) -> None:
        """Hold each piece (64 KiB at most) that long."""
        self._delay_s = seconds

    def throttle(self, bytes_per_s: float) -> None:
        """Let no more than this pass in each direction of each connection."""
        self._rate = bytes_per_s

    def black_hole(self, *directions: Direction) -> None:
        """Let nothing pass any more, nor the end of a connection, in one direction or both."""
        for direction in directions or DIRECTIONS:
            self._is_hole[direction] = True
            for link in self._links:
                link.gates[direction].clear()

    def mute(self) -> None:
        """Let no answer pass on the connections that are open now; new ones are as before."""
        for link in self._links:
            link.gates["to_client"].clear()

    def keep_open(self) -> None:
        """Let bytes pass, but not the end of a connection."""
        self._hides_ends = True
        for link in self._links:
            for gate in link.may_end.values():
                gate.clear()

    def refuse(self) -> None:
        """Refuse new connections; those that are open stay."""
        if self._listening is not None:
            self._listening.close()
            self._listening = None

    async def accept(self) -> None:
        """Take connections again, at the same port."""
        if self._listening is not None:
            return
        self._listening = await asyncio.start_server(
            self._serve, "127.0.0.1", self._port, limit=_PIECE
        )
        self._servers.append(self._listening)
        self._port = self._listening.sockets[0].getsockname()[1]

    # --- what happens at once ---

    def cut(self, how: How = "rst") -> None:
        """End all connections that are open: reset them, or close them in order."""
        for link in list(self._links):
            link.cut(how)

    def half_close(self, direction: Direction) -> None:
        """Close one direction of all connections; the other one stays open."""
        for link in list(self._links):
            link.half_close(direction)

    # --- what waits for its moment ---

    def after(self, nbytes: int, direction: Direction, fault: Fault, *, times: int = 1) -> None:
        """Let that many bytes more pass in a direction, over all connections; then strike once.

        ``rst``, ``fin`` and ``half_close`` hit the connection that the last byte went through,
        ``black_hole`` hits all.

        Args:
            times: Strike that often, each time after as many bytes again.
        """
        self._waiting[direction] += [_Trigger(nbytes, fault) for _ in range(times)]

    def call_after(self, nbytes: int, direction: Direction, act: Callable[[], None]) -> None:
        """As :meth:`after`, with anything that this object can do: ``proxy.refuse``."""
        self._waiting[direction].append(_Trigger(nbytes, act))

    def at_commit(self, fault: CommitFault, *, nth: int = 1, how: How = "rst") -> None:
        """Strike at the n-th COMMIT from now on.

        - ``cut_before``: it does not reach the server.
        - ``cut_with``: it is sent on and the connection cut at once: in or not, nobody knows.
        - ``cut_after``: the server has answered, so it is in; the answer is lost.
        - ``hold_answer``: the answer is held until :meth:`heal`, the connection stays open.
        - ``hold_request``: the client's end is reset, but the COMMIT is only on its way: it
          reaches the server at :meth:`heal`. Until then the server's session lives.
        """
        self._at_commit[self.commits + nth] = (fault, how)

    # --- inside ---

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.accepted += 1
        link: _Link | None = None
        try:
            host, port = self._parts.hostname, self._parts.port
            try:
                up_reader, up_writer = await asyncio.open_connection(host, port, limit=_PIECE)
            except OSError:
                _reset(writer)
                return
            link = _Link(reader, writer, up_reader, up_writer)
            for direction in DIRECTIONS:
                if self._is_hole[direction]:
                    link.gates[direction].clear()
                if self._hides_ends:
                    link.may_end[direction].clear()
            self._links.add(link)
            await self._run(link)
        except asyncio.CancelledError:
            pass  # by __aexit__; raised on, the stream's callback would log it as an error
        finally:
            if link is not None:
                link.cut("fin" if link.ended_well else "rst")
                self._links.discard(link)
            self._tasks.discard(task)

    async def _run(self, link: _Link) -> None:
        pumps = [asyncio.create_task(self._pump(link, name)) for name in DIRECTIONS]
        try:
            await asyncio.gather(*pumps)
            link.ended_well = True
        except OSError:
            pass  # one end was reset, so the other one is
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)

    async def _pump(self, link: _Link, direction: Direction) -> None:
        reader = link.readers[direction]
        gate = link.gates[direction]
        messages = _Messages() if self._postgres and direction == "to_server" else None
        try:
            while data := await reader.read(self._piece_size()):
                for piece, kind in messages.feed(data) if messages else ((data, "data"),):
                    if kind == "tls":
                        link.writers["to_client"].write(b"N")  # no TLS, no GSS: go on without
                    elif kind == "commit":
                        await self._forward_commit(link, piece)
                    else:
                        await self._forward(link, direction, piece)
        except OSError:
            await gate.wait()
            await link.may_end[direction].wait()
            raise
        await gate.wait()
        await link.may_end[direction].wait()
        link.half_close(direction)

    def _piece_size(self) -> int:
        return _PIECE if self._rate is None else max(1, min(_PIECE, int(self._rate / 20)))

    async def _forward(self, link: _Link, direction: Direction, piece: bytes) -> None:
        if direction == "to_client" and link.cut_at_answer is not None:
            how, link.cut_at_answer = link.cut_at_answer, None
            link.cut(how)
            self._strike()
            return
        await link.gates[direction].wait()
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        if self._rate is not None:
            await asyncio.sleep(len(piece) / self._rate)
        waiting = self._waiting[direction]
        while waiting and waiting[0].nbytes <= len(piece):
            trigger = waiting.pop(0)
            await self._send(link, direction, piece[: trigger.nbytes])
            piece = piece[trigger.nbytes :]
            self._pull(link, direction, trigger.fault)
            if link.writers[direction].is_closing() or link.is_half_closed[direction]:
                return  # the rest is lost
            await link.gates[direction].wait()
        if waiting:
            waiting[0].nbytes -= len(piece)
        await self._send(link, direction, piece)

    def _pull(self, link: _Link, direction: Direction, fault: Fault | Callable[[], None]) -> None:
        if callable(fault):
            fault()
        elif fault == "black_hole":
            self.black_hole()
        elif fault == "half_close":
            link.half_close(direction)
        else:
            link.cut(fault)
        self._strike()

    async def _forward_commit(self, link: _Link, piece: bytes) -> None:
        self.commits += 1
        fault: CommitFault | None
        how: How
        fault, how = self._at_commit.pop(self.commits, (None, "rst"))
        match fault:
            case "cut_before":
                link.cut(how)
                self._strike()
                return
            case "cut_after":
                link.cut_at_answer = how
            case "hold_answer":
                link.gates["to_client"].clear()
            case "hold_request":
                link.gates["to_server"].clear()
                _reset(link.writers["to_client"])
                self._strike()
            case _:
                pass
        await self._forward(link, "to_server", piece)
        if fault == "cut_with":
            link.cut(how)
        if fault in {"cut_with", "hold_answer"}:
            self._strike()

    async def _send(self, link: _Link, direction: Direction, piece: bytes) -> None:
        writer = link.writers[direction]
        if piece and not writer.is_closing() and not link.is_half_closed[direction]:
            self.passed[direction] += len(piece)
            writer.write(piece)
            await writer.drain()

    def _strike(self) -> None:
        self.strikes += 1
        self.struck.set()


class _Trigger:
    """A fault that waits until so many bytes have passed."""

    def __init__(self, nbytes: int, fault: Fault | Callable[[], None]) -> None:
        self.nbytes = nbytes
        self.fault: Fault | Callable[[], None] = fault


class _Link:
    """One connection of a client and the one to the server that belongs to it."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        self.readers: dict[Direction, asyncio.StreamReader] = {
            "to_server": reader,
            "to_client": up_reader,
        }
        self.writers: dict[Direction, asyncio.StreamWriter] = {
            "to_server": up_writer,
            "to_client": writer,
        }
        self.gates = {direction: asyncio.Event() for direction in DIRECTIONS}
        self.may_end = {direction: asyncio.Event() for direction in DIRECTIONS}
        self.is_half_closed: dict[Direction, bool] = dict.fromkeys(DIRECTIONS, False)
        self.cut_at_answer: How | None = None
        self.ended_well = False
        for gate in (*self.gates.values(), *self.may_end.values()):
            gate.set()

    def cut(self, how: How) -> None:
        for writer in self.writers.values():
            if how == "rst":
                _reset(writer)
            else:
                writer.close()

    def half_close(self, direction: Direction) -> None:
        writer = self.writers[direction]
        if not self.is_half_closed[direction] and not writer.is_closing():
            self.is_half_closed[direction] = True
            with contextlib.suppress(OSError):  # the other end has just gone
                writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection by RST; what was not sent yet is lost."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):  # closed already
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class _Messages:
    """Cuts what a PostgreSQL client sends so that each COMMIT is a piece of its own.

    Only a simple query (``Q``) is looked at, which is what drivers send for it. The text COMMIT
    inside the rows of a COPY is no message, so it is not taken for one.
    """

    def __init__(self) -> None:
        self._held = b""  # a header, or a whole short message, that is not complete yet
        self._left = 0  # bytes of the present message that only pass through
        self._has_started = False

    def feed(self, data: bytes) -> Iterator[tuple[bytes, Literal["data", "commit", "tls"]]]:
        """Take bytes; give pieces that together are the same bytes."""
        through: list[bytes] = []
        data = self._held + data
        self._held = b""
        while data:
            if self._left:
                through.append(data[: self._left])
                data = data[self._left :]
                self._left -= len(through[-1])
                continue
            head = 5 if self._has_started else 8
            if len(data) < head:
                break
            size = int.from_bytes(data[head - 4 : head] if head == 5 else data[:4], "big")
            if head == 5:
                size += 1  # the type is not counted
            whole = not self._has_started or (data[:1] == b"Q" and size <= _LONGEST_COMMIT)
            if not whole:
                self._left = size
                continue
            if len(data) < size:
                break
            message, data = data[:size], data[size:]
            kind = self._kind(message)
            if kind == "data":
                through.append(message)
                continue
            if through:
                yield b"".join(through), "data"
                through = []
            yield message, kind
        self._held = data
        if through:
            yield b"".join(through), "data"

    def _kind(self, message: bytes) -> Literal["data", "commit", "tls"]:
        if not self._has_started:
            code = int.from_bytes(message[4:8], "big")
            if code in {_STARTUP_CODES["tls"], _STARTUP_CODES["gss"]}:
                return "tls"
            self._has_started = True
            return "data"
        text = message[5:].rstrip(b"\0; \t\r\n").strip().upper()
        return "commit" if text in {b"COMMIT", b"END", b"COMMIT TRANSACTION"} else "data"
