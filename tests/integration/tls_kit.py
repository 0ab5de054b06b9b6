"""TLS before a PostgreSQL server that has none: the server of the tests is built without it.

A proxy that answers PostgreSQL's request for TLS, shakes hands with certificates of the tests' own
(``certificates/``, good for a hundred years: an authority, its server ``localhost``, its client
``postgres``, and a stranger's authority), and hands on what comes through.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

CERTIFICATES = Path(__file__).parent / "certificates"
AUTHORITY = CERTIFICATES / "authority.crt"
STRANGER = CERTIFICATES / "stranger.crt"
CLIENT = CERTIFICATES / "client.crt"
CLIENT_KEY = CERTIFICATES / "client.locked.key"
PASSPHRASE = "k3y-Phrase!"

_REQUEST = struct.pack("!ii", 8, 80877103)

Offer = Literal["tls", "no tls", "tls only"]


class TlsProxy:
    """A server's address as the clients of a test see it.

    Attributes:
        secure: Connections that came by TLS.
        plain: Connections that did not.
    """

    def __init__(self, url: str, offer: Offer, *, asks_client: bool) -> None:
        parts = urlsplit(url)
        self.secure = 0
        self.plain = 0
        self.port = 0
        self.database = parts.path.lstrip("/")
        self.user = parts.username or "postgres"
        self._address = (parts.hostname or "127.0.0.1", parts.port or 5432)
        self._offer = offer
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(CERTIFICATES / "server.crt", CERTIFICATES / "server.key")
        if asks_client:
            self._context.load_verify_locations(AUTHORITY)
            self._context.verify_mode = ssl.CERT_REQUIRED

    def url(self, host: str = "localhost", /, **options: object) -> str:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"postgresql://{self.user}@{host}:{self.port}/{self.database}?{query}".rstrip("?")

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            first = await reader.readexactly(8)
            if first == _REQUEST:
                if self._offer != "no tls":
                    writer.write(b"S")
                    await writer.start_tls(self._context)
                    self.secure += 1
                    await self._through(reader, writer, b"")
                    return
                writer.write(b"N")
                first = await reader.readexactly(8)
            if self._offer == "tls only":
                fields = b"SFATAL\0C28000\0Mno pg_hba.conf entry for host, no encryption\0\0"
                writer.write(b"E" + struct.pack("!i", 4 + len(fields)) + fields)
                return
            self.plain += 1
            await self._through(reader, writer, first)
        writer.close()

    async def _through(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, first: bytes
    ) -> None:
        back, out = await asyncio.open_connection(*self._address)
        out.write(first)
        await asyncio.gather(_copy(reader, out), _copy(back, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@asynccontextmanager
async def tls_before(
    url: str, offer: Offer = "tls", *, asks_client: bool = False
) -> AsyncGenerator[TlsProxy]:
    """Stand before the server of a URL for the length of a block."""
    proxy = TlsProxy(url, offer, asks_client=asks_client)
    open_ones: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        open_ones.add(task)
        try:
            await proxy.serve(reader, writer)
        finally:
            writer.close()
            open_ones.discard(task)

    with socket.create_server(("127.0.0.1", 0)) as probe:
        proxy.port = probe.getsockname()[1]
    # The second address stands for a remote one, where a test says so.
    server = await asyncio.start_server(serve, ["127.0.0.1", "127.0.0.2"], proxy.port)
    try:
        yield proxy
    finally:
        server.close()
        for task in open_ones:
            task.cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)
