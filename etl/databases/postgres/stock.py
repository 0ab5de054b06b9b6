"""Connections that wait to be used again: those of one run to one database."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from etl.databases.postgres.connect import Connection, close, connect
from etl.databases.postgres.translate import Side
from etl.databases.url import Url
from etl.engine.supervise import finish


class Stock:
    """Opens connections, and keeps those that were given back.

    It is no pool: nobody waits for one, and there are never more than were in use at once.
    """

    def __init__(self, url: Url, side: Side, application: str) -> None:
        self._url = url
        self._side: Side = side
        self._application = application
        self._idle: list[Connection] = []
        self._is_closed = False
        self._has_given = False

    async def get(self) -> Connection:
        """One that was given back, or a new one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        connection = await connect(self._url, self._side, self._application, again=self._has_given)
        self._has_given = True
        return connection

    @asynccontextmanager
    async def lent(self) -> AsyncGenerator[Connection]:
        """One for the length of a block; it is closed where the block fails."""
        connection = await self.get()
        try:
            yield connection
        except BaseException:
            await finish(close(connection))
            raise
        await finish(self.give_back(connection))

    async def give_back(self, connection: Connection) -> None:
        """Keep a connection that nothing was cut on; close it where it is in a transaction."""
        if self._is_closed or connection.is_closed() or connection.is_in_transaction():
            await finish(close(connection))
        else:
            self._idle.append(connection)

    async def aclose(self) -> None:
        """Close those that wait, in bounded time, and keep no more."""
        self._is_closed = True
        while self._idle:
            await finish(close(self._idle.pop()))
