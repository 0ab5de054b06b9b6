"""Connections: one own connection for each reader and session, with the settings that keep values
exact and waits bounded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import urlencode

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement

from etl.connector import RunInfo
from etl.databases.postgres.pooled import has_own_session, session_of
from etl.databases.postgres.tls import (
    Options,
    options_of,
    trust_of,
    unused_password_file,
    warn_where_unverified,
)
from etl.databases.postgres.translate import (
    DRIVER_ERRORS,
    Side,
    first_line,
    safe_message,
    translating,
)
from etl.databases.url import Url
from etl.engine.supervise import finish
from etl.errors import (
    ConfigError,
    EtlError,
    SourceUnavailableError,
    TargetUnavailableError,
    chain,
    classify,
)

if TYPE_CHECKING:
    _Connection: TypeAlias = asyncpg.Connection[Any]
else:
    _Connection: TypeAlias = asyncpg.Connection


class Connection(_Connection):
    """A connection of the driver's that knows its server.

    Attributes:
        open_another: Opens one more to the same host, without the settings of a run.
        is_pooled: A pooler stands between.
    """

    __slots__ = ("_prepared", "is_pooled", "open_another")
    open_another: Callable[[], Awaitable[Connection]]
    is_pooled: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_pooled = False
        self._prepared: dict[str, PreparedStatement[Any]] = {}

    async def fetch_prepared(self, query: str, *arguments: Any) -> list[Any]:
        """The rows of a constant query of the catalogue, whose types are the same for ever.

        The server prepares it once for the connection, so that it takes one round trip from then
        on. Not for users' tables: their types would be those that they had at first.
        """
        statement = self._prepared.get(query)
        if statement is None:
            statement = self._prepared[query] = await self.prepare(query)
        return await statement.fetch(*arguments)

    async def fetchval_prepared(self, query: str, *arguments: Any) -> Any:
        """The first value of the first row, as :meth:`fetch_prepared`; None without a row."""
        rows = await self.fetch_prepared(query, *arguments)
        return rows[0][0] if rows else None


CONNECT_S = 10.0
"""Longest wait for one connection."""
COMMAND_S = 60.0
"""Longest wait for a short statement."""
CLOSE_S = 3.0
_CANCEL_S = 0.5
"""How long a connection may still come up after a cancellation."""
# PgBouncer gives everything this one SQLSTATE; its messages are English wherever it runs.
_POOLER = "08P01"
_POOLER_REFUSES = ("no such database", "no such user", "authentication failed")
_POOLER_KNOWS_NOT = "unsupported startup parameter"
_WRONG_PASSWORD = "28P01"
_TOO_MANY = "53300"  # also the limit of a role or a database
# What the driver says of a URL; the last, of a port that no host has.
_UNUSABLE = (asyncpg.ClientConfigurationError, ValueError, OverflowError)
_PATIENCE_S = 5.0
"""How long a server that takes no connections is tried at the start: it may be restarting."""

SETTINGS: Mapping[str, str] = {
    # Text forms must be the same on both sides, whatever the role or the database sets.
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "extra_float_digits": "3",
    "bytea_output": "hex",
    "lc_monetary": "C",
    "standard_conforming_strings": "on",
    "xmloption": "content",
    # Off, NULL as an element of an array is read as the text 'NULL'.
    "array_nulls": "on",
    "default_transaction_isolation": "read committed",
    # A policy that would hide rows becomes an error.
    "row_security": "off",
    "lock_timeout": "10s",
    # A role's own statement_timeout is for its interactive queries, not for a COPY.
    "statement_timeout": "0",
    "transaction_timeout": "0",
    "idle_in_transaction_session_timeout": "300s",
    "idle_session_timeout": "0",
    "client_connection_check_interval": "10s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
}

# Settings that this server's version has; the others are left out. Nothing is set where the
# session has not the process number $3: that is a pooler's, and others may get it next.
_SET = """
SELECT CASE WHEN pg_catalog.pg_backend_pid() = $3 THEN (
    SELECT pg_catalog.count(set_config(wanted.name, wanted.value, false))
    FROM unnest($1::text[], $2::text[]) AS wanted(name, value)
    WHERE current_setting(wanted.name, true) IS NOT NULL
) END
"""


READING = "/read"
"""Ends the application_name of sessions that cannot write: nobody needs to wait for them."""


def application_name(info: RunInfo, side: Side) -> str:
    """``etl/<pipeline>/<run>``, as far as PostgreSQL keeps it."""
    suffix = READING if side == "source" else ""
    name = f"etl/{info.pipeline}/{info.run_id}".encode("ascii", "replace").decode()
    return name[: 63 - len(suffix)] + suffix


async def connect(url: Url, side: Side, application: str, *, again: bool = False) -> Connection:
    """Open a connection and pin its settings.

    A server that refuses connections is tried again for some seconds.

    Args:
        again: There was one before, by which something may have been moved.

    Raises:
        ConfigError: Wrong password, unknown user or database, unknown option.
        SourceUnavailableError: The source's server cannot be reached.
        TargetUnavailableError: The target's server cannot be reached.
    """
    options = options_of(url)
    trust = trust_of(url, options)
    loop = asyncio.get_running_loop()
    until = loop.time() + _PATIENCE_S
    while True:
        try:
            connection = await _open(url, options, trust, application)
            break
        except (*DRIVER_ERRORS, *_UNUSABLE) as error:
            if not _may_come_up(error) or loop.time() > until:
                for one in chain(error):
                    # The driver's frames hold the password, and some tools record their variables.
                    one.__traceback__ = None
                raise _unreachable(error, url, side, again) from error
        await asyncio.sleep(random.uniform(0.1, 0.5))
    try:
        try:
            await _pin(connection, side, url, again)
        except asyncpg.QueryCanceledError:
            if "statement_timeout" in options:
                raise
            # The user's own ended even the statement that would have turned it off. Always given
            # here, it would be refused by poolers that do not know it.
            connection.terminate()
            connection = await _open(url, {**options, "statement_timeout": "0"}, trust, application)
            await _pin(connection, side, url, again)
        warn_where_unverified(connection, url)
        return connection
    except BaseException as error:
        connection.terminate()
        if isinstance(error, DRIVER_ERRORS):
            raise _unreachable(error, url, side, again) from error
        raise


def _may_come_up(error: BaseException) -> bool:
    """Whether a server may take connections in a moment: it restarts, or another takes over."""
    if isinstance(error, asyncpg.exceptions.TargetServerAttributeNotMatched):
        return True
    return _has_no_answer_on_names(error) or classify(error) == "not_ready"


def _has_no_answer_on_names(error: BaseException) -> bool:
    """Whether no server of names answers: a network or a resolver that is still to come up."""
    return isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN


async def _open(
    url: Url, options: Options, trust: ssl.SSLContext | None, application: str
) -> Connection:
    hosts = url.hosts
    if not hosts:
        return await _open_one(url, options, trust, application)
    # One by one: the driver would give the first that does not answer the time of all.
    wanted = options.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS") or "any"
    rounds = ("standby", "any") if wanted == "prefer-standby" else (wanted,)
    last: BaseException | None = None
    for wanted in rounds:
        for host, port in hosts:
            one = {**options, "host": host, "target_session_attrs": wanted}
            one.pop("port", None)
            if port:
                one["port"] = port
            try:
                return await _open_one(url, one, trust, application)
            except (OSError, asyncpg.PostgresError, asyncpg.InternalClientError) as error:
                if isinstance(error, asyncpg.PostgresError) and not _may_come_up(error):
                    raise
                last = error
    assert last is not None
    raise last


async def _open_one(
    url: Url, options: Options, trust: ssl.SSLContext | None, application: str
) -> Connection:
    opening: asyncio.Task[Connection] = asyncio.ensure_future(
        asyncpg.connect(
            f"postgresql://?{urlencode(options)}" if options else None,
            host=url.host,
            port=url.port,
            user=url.user,
            password=url.password,
            database=url.path,
            ssl=trust,
            timeout=CONNECT_S,
            command_timeout=COMMAND_S,
            # With a cache, types of a table that was changed meanwhile would be taken from it.
            statement_cache_size=0,
            server_settings={"application_name": application},
            connection_class=Connection,
        )
    )
    try:
        # Cancelled as its socket comes up, asyncpg leaves an error behind that nobody retrieves,
        # and the event loop reports it. So it gets the moment that this takes.
        connection = await finish(opening, on_cancel=_let_it_end, grace_s=_CANCEL_S)
    except asyncio.CancelledError:
        if not opening.cancelled() and opening.exception() is None:
            opening.result().terminate()
        raise
    _keep_alive(connection)
    connection.open_another = partial(_open_one, url, options, trust, application)
    return connection


def _let_it_end() -> None:
    """The cancellation wins, whatever becomes of the connection."""


def transport_of(connection: Connection) -> asyncio.Transport | None:
    """What a connection reads from; None where the driver does not show it."""
    return getattr(connection, "_transport", None)


def _keep_alive(connection: Connection) -> None:
    """Find a dead peer in about a minute, also while nothing is sent."""
    transport = transport_of(connection)
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None or sock.family not in {socket.AF_INET, socket.AF_INET6}:
        return
    options = [(socket.SOL_SOCKET, "SO_KEEPALIVE", 1)] + [
        (socket.IPPROTO_TCP, name, value)
        for name, value in (
            ("TCP_KEEPIDLE", 30),
            ("TCP_KEEPINTVL", 10),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", 60_000),
        )
    ]
    for level, name, value in options:
        number = getattr(socket, name, None)
        if number is not None:
            # A second line of defence; not every platform and event loop has every option.
            with contextlib.suppress(OSError, AttributeError, TypeError):
                sock.setsockopt(level, number, value)


async def _pin(connection: Connection, side: Side, url: Url, again: bool) -> None:
    settings = dict(SETTINGS)
    if side == "source":
        settings["default_transaction_read_only"] = "on"
    wanted = list(settings), list(settings.values())
    try:
        async with asyncio.timeout(CONNECT_S):
            pinned = await connection.fetchval(_SET, *wanted, connection.get_server_pid())
            # A pooler greets with a process number of its own.
            connection.is_pooled = pinned is None
            if pinned is None and await has_own_session(connection):
                pinned = await connection.fetchval(_SET, *wanted, await session_of(connection))
    except TimeoutError as error:
        raise _no_session(url, side, again) from error
    if pinned is None:
        raise ConfigError(
            f"{url.name} is a connection pooler that gives each transaction or statement another"
            " session, and etl needs a session of its own: its settings and temporary tables"
            f" would be other clients'. {_stands(again)}; give the server's own address, or a pool"
            " with pool_mode=session"
        )


def _stands(again: bool) -> str:
    return "What is committed stays" if again else "Nothing was moved"


def _no_session(url: Url, side: Side, again: bool) -> EtlError:
    stands = _stands(again)
    unavailable = SourceUnavailableError if side == "source" else TargetUnavailableError
    return unavailable(
        f"{url.name} took a connection, but no session answered on it within {CONNECT_S:.0f} s:"
        " the server hangs, or it is a connection pooler that is paused or has none left. A run"
        f" holds one for each flow (table) and lane that is at work, and one or two more. {stands};"
        " run it again, with a larger pool (PgBouncer: default_pool_size), or move fewer tables at"
        " once (--flows, --jobs)"
    )


def _unreachable(error: BaseException, url: Url, side: Side, again: bool) -> EtlError:
    stands = _stands(again)
    unavailable = SourceUnavailableError if side == "source" else TargetUnavailableError
    if isinstance(error, asyncpg.PostgresError):
        text = safe_message(error)
        state = error.sqlstate or ""
        if state.startswith("28") or state in {"3D000", "42501", "22023", "42704"}:
            why = unused_password_file(url) if state == _WRONG_PASSWORD else ""
            return ConfigError(f"{url.name} refused the connection: {text}{why}. {stands}")
        if state == _POOLER and _POOLER_KNOWS_NOT in text:
            return ConfigError(
                f"{url.name} refused the connection: {text}. {stands}; leave it out of the URL, or"
                " add it to the pooler's list (PgBouncer: ignore_startup_parameters, which then"
                " ignores it)"
            )
        if state == _POOLER and any(one in text for one in _POOLER_REFUSES):
            return ConfigError(f"{url.name} refused the connection: {text}. {stands}")
        if state == _TOO_MANY:
            return unavailable(
                f"{url.name} takes no more connections: {text}. A run holds one for each flow"
                " (table) and lane that is at work, and one or two more. What is committed stays;"
                " run it again when others have ended, move fewer tables at once (--flows,"
                " --jobs), or raise max_connections"
            )
        return unavailable(f"{url.name} takes no connections now: {text}. {stands}")
    if isinstance(error, ssl.SSLError | ssl.CertificateError):
        return ConfigError(
            f"{url.name}: no secure connection: {first_line(error)}. {stands}; check"
            " sslmode and sslrootcert in the URL"
        )
    if isinstance(error, _UNUSABLE) and not isinstance(error, asyncpg.PostgresError | OSError):
        return ConfigError(f"{url.name}: the URL cannot be used: {first_line(error)}")
    if isinstance(error, ConnectionError) and "rejected SSL upgrade" in str(error):
        return ConfigError(
            f"{url.name}: the server offers no TLS, which sslmode asks for. {stands}; turn"
            " TLS on there, or ask for less with sslmode=prefer"
        )
    # In a container's network a name goes while its server restarts.
    if isinstance(error, socket.gaierror) and not (again or _has_no_answer_on_names(error)):
        return ConfigError(
            f"{url.name}: the host's name is unknown ({first_line(error)}). {stands}; check the"
            " URL (a container's network knows only the names of containers that run)"
        )
    if isinstance(error, PermissionError) and error.filename:
        # The driver looks into ~/.postgresql, and HOME may be the home of another user.
        return ConfigError(
            f"{url.name}: the file {str(error.filename)!r} cannot be read. {stands}; let this user"
            " read it, or set HOME to a folder of this user's own"
        )
    if isinstance(error, TimeoutError):
        return unavailable(
            f"{url.name} did not answer within {CONNECT_S:.0f} s. {stands}; check the"
            " address and the network"
        )
    return unavailable(
        f"{url.name} cannot be reached ({first_line(error)}). {stands}; check the"
        " address, and that the server runs"
    )


async def close(connection: Connection) -> None:
    """Close a connection in bounded time, whatever state it is in."""
    if connection.is_closed():
        # A COPY that was cut by the loss left a task of asyncpg's that would send a cancel.
        connection.terminate()
        await asyncio.sleep(0)
        return
    try:
        async with asyncio.timeout(CLOSE_S):
            await connection.close(timeout=CLOSE_S)
    except DRIVER_ERRORS:
        pass  # close() has already cut the connection; the server cleans up after it
    finally:
        connection.terminate()


@asynccontextmanager
async def connected(url: Url, side: Side, application: str) -> AsyncGenerator[Connection]:
    """A connection for the length of a block; errors of the driver in it are translated."""
    with translating(side, url.name):
        connection = await connect(url, side, application)
        try:
            yield connection
        finally:
            await finish(close(connection))
