"""A password that is planted wherever libpq takes one comes out nowhere.

Every command runs, in success and in failure, as talkative as it can be; then its output, the
databases, the files that it left and the server's log are searched.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest

from etl import Database, Pipeline
from etl.errors import EtlError
from tests.integration.forked_etl import ForkedEtl, forked_etl
from tests.own_postgres import own_postgres

MARK = "hunterSECRET"
PASSWORD = f"a/{MARK} @#'b"
WRONG = f"x{MARK}x"
ENCODED = quote(PASSWORD, safe="")
TALK = ("--verbose", "--traceback", "--show-values")

PIPELINE = """
import asyncio, logging, warnings
from etl import Database, DeadLetter, Pipeline

URL = {url!r}
shop = Database(URL)

def checked(row):
    if row["id"] == 3:
        raise ValueError(f"row {{row}} of {{URL}} is bad, password={wrong!r}")
    return row

async def forgotten(rows):
    async def fails():
        raise RuntimeError(f"no way to {{URL}}")
    asyncio.create_task(fails())
    await asyncio.sleep(0)
    logging.getLogger("etl").warning("looked at %s", URL)
    logging.getLogger("etl").debug("with password='%s'", {wrong!r})
    warnings.warn(f"deprecated: {{URL}}")
    return rows

flow = shop.table("orders").map(checked).map_batches(forgotten)
sqlite = Database("sqlite:///kept.db").append("copies")
pipeline = Pipeline("kept", flow.into(shop.append("copies")), on_error=DeadLetter())
strict = Pipeline("strict", flow.into(sqlite))
"""


@dataclass(frozen=True)
class Place:
    """A server that asks for a password, a folder of its own, and the commands in it."""

    etl: ForkedEtl
    folder: Path
    port: int
    log: Path

    def url(self, password: str | None = ENCODED, *, path: str = "shop", query: str = "") -> str:
        """A URL with a password; without one where it comes from elsewhere."""
        secret = "" if password is None else f":{password}"
        return f"postgresql://keeper{secret}@127.0.0.1:{self.port}/{path}{query}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("secrets")
    logged = {"log_statement": "all", "log_connections": "on", "log_line_prefix": "%a:"}
    with own_postgres(**logged) as server:
        home = server.home
        rules = home / "data" / "pg_hba.conf"
        rules.write_text("host all keeper all scram-sha-256\n" + rules.read_text())
        server.restart("fast")
        asyncio.run(_prepare(server.url))
        environment = {"PYTHONASYNCIODEBUG": "1", "PYTHONWARNINGS": "always"}
        with forked_etl(folder, environment) as command:
            yield Place(command, folder, int(server.url.rpartition(":")[2].split("/")[0]),
                        home / "log")  # fmt: skip


async def _prepare(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("SET log_statement = 'none'")
    literal = "'" + PASSWORD.replace("'", "''") + "'"
    await connection.execute(f"CREATE ROLE keeper LOGIN PASSWORD {literal}")
    await connection.execute("CREATE DATABASE shop OWNER keeper")
    await connection.close()
    connection = await asyncpg.connect(url.removesuffix("postgres") + "shop")
    await connection.execute(
        "SET ROLE keeper; CREATE SCHEMA own; CREATE TABLE orders (id int PRIMARY KEY, name text);"
        " INSERT INTO orders SELECT n, 'name ' || n FROM generate_series(1, 5) AS n"
    )
    await connection.close()


def _clean(text: str, *, of: object) -> str:
    assert MARK not in text, (of, text)
    return text


def test_every_command_keeps_a_password_to_itself(place: Place) -> None:
    url, variable = place.url(), {"SHOP": place.url()}
    file = place.folder / "flows.py"
    file.write_text(PIPELINE.format(url=url, wrong=WRONG))
    broken = place.folder / "broken.py"
    broken.write_text(f"URL = {url!r}\nraise RuntimeError(f'cannot use {{URL}}')\n")
    sqlite = "sqlite:///copy.db"
    key = ("kept", "orders", "copies")
    commands: list[tuple[int, list[str]]] = [
        (0, ["migrate", url]),
        (0, ["migrate", url, "--sql"]),
        (0, ["check", url, "env:SHOP", "sqlite:///new.db"]),
        (0, ["list", "flows.py"]),
        (0, ["--json", "list", "flows.py"]),
        (2, ["list", "."]),
        (0, ["plan", "flows.py:pipeline"]),
        (0, ["--json", "plan", "flows.py:strict"]),
        (2, ["plan", "broken.py"]),
        (2, ["run", "broken.py"]),
        (3, ["run", "flows.py:pipeline"]),
        (0, ["--json", "run", "flows.py:pipeline"]),
        (1, ["run", "flows.py:strict"]),
        (1, ["--json", "run", "flows.py:strict"]),
        (0, ["state", "show", url]),
        (0, ["--json", "state", "show", "env:SHOP"]),
        (0, ["rejects", "show", url, "--values"]),
        (0, ["--json", "rejects", "show", "flows.py:pipeline", "--values"]),
        (3, ["rejects", "retry", "flows.py:pipeline"]),
        (0, ["state", "set", url, *key, "[1]"]),
        (0, ["state", "reset", url, "kept", "--yes"]),
        (0, ["copy", url, sqlite, "--table", "orders", "--verify"]),
        (0, ["--json", "copy", "env:SHOP", sqlite, "--table", "orders", "--as", "b"]),
        (0, ["copy", sqlite, url, "--table", "orders", "--as", "back"]),
        (0, ["verify", url, sqlite, "--table", "orders"]),
        (2, ["--json", "verify", url, sqlite, "--table", "orders", "--where", "nothing = 1"]),
    ]
    for code, arguments in commands:
        found, output = place.etl(*arguments, *TALK, env=variable)
        _clean(output, of=arguments)
        assert found == code, (arguments, found, output)
    assert _kept(place), "the searched tables are there"
    for one in place.folder.iterdir():
        if one.suffix != ".py" and one.is_file():
            _clean(one.read_bytes().decode("utf-8", "replace"), of=one)
    _clean(place.log.read_text(), of="the server's log")


def _kept(place: Place) -> list[str]:
    """All that etl keeps in the database, as text."""

    async def read() -> list[str]:
        connection = await asyncpg.connect(
            host="127.0.0.1", port=place.port, user="postgres", database="shop"
        )
        found: list[str] = []
        for table in ("etl_checkpoint", "etl_reject", "etl_table", "copies", "back"):
            rows = await connection.fetch(f"SELECT t::text FROM {table} AS t")
            found += [_clean(row[0], of=table) for row in rows]
        await connection.close()
        return found

    return asyncio.run(read())


def test_a_connection_that_fails_does_not_tell_its_password(place: Place) -> None:
    pgpass, pgservice = place.folder / ".pgpass", place.folder / ".pg_service.conf"
    pgpass.write_text(f"127.0.0.1:{place.port}:shop:keeper:{WRONG}\n")
    pgpass.chmod(0o600)
    pgservice.write_text(f"[shop]\npassword={WRONG}\nno line {WRONG}\n")
    bad = [
        place.url(WRONG),
        place.url(path="missing"),
        place.url().replace(str(place.port), "1"),
        place.url(query="?sslmode=verify-full"),
        place.url(query=f"?sslmode=require&sslpassword={WRONG}"),
        place.url(query=f"?sslpassword={WRONG}&nonsense=1"),
        place.url(None),  # the wrong one is in .pgpass
        place.url(None, query=f"?password={WRONG}"),
        place.url(None, query=f"?passfile={pgpass}"),
        place.url(None, query="?service=shop"),
        f"postgresql://keeper:{WRONG}/x@127.0.0.1:{place.port}/shop",
        f"postgresql://keeper:{WRONG}#x@127.0.0.1:{place.port}/shop",
        f"postgresql://keeper:1/{WRONG}@127.0.0.1:{place.port}/shop",
        f"postgresql://keeper:{PASSWORD}@127.0.0.1/shop",
        f"postgresql://keeper:{WRONG}@127.0.0.1:port/shop",
        f"postgresql://keeper:{WRONG}@[::1/shop",
        f"postgresql:keeper:{WRONG}@127.0.0.1/shop",
        f"postgresql:/keeper:{WRONG}@127.0.0.1/shop",
        f"postgress://keeper:{WRONG}@127.0.0.1/shop",
        f"keeper:{WRONG}@127.0.0.1/shop",
        f"host=127.0.0.1 user=keeper password='{WRONG}'",
        f"sqlite://keeper:{WRONG}@127.0.0.1/shop",
        f"sqlite:///file.db?password={WRONG}",
        WRONG,
    ]
    for number, url in enumerate(bad):
        for arguments in (["check", url, "env:SHOP"], ["copy", url, "sqlite:///x.db"]):
            code, output = place.etl(*arguments, *TALK, env={"SHOP": url})
            if url != WRONG:  # it is no password by itself
                _clean(output, of=(number, arguments))
            assert code in {1, 2, 75}, (arguments, output)
    url = bad[0]
    for arguments in (
        ["copy", "sqlite:///new.db", url],
        ["verify", url, "sqlite:///x.db"],
        ["migrate", url],
        ["state", "show", url],
        ["state", "set", url, "a", "b", "c", "[1]"],
        ["state", "reset", url, "a", "--yes"],
        ["rejects", "show", url],
    ):
        code, output = place.etl(*arguments, *TALK)
        _clean(output, of=arguments)
        assert code in {1, 2}, (arguments, output)
    for variables in ({"PGPASSWORD": WRONG}, {"PGPASSFILE": str(pgpass)}, {"PGSERVICE": "shop"}):
        _, output = place.etl("check", place.url(None), *TALK, env=variables)
        _clean(output, of=variables)
    pgpass.unlink()
    _clean(place.log.read_text(), of="the server's log")


@pytest.mark.parametrize("password", ["hunter", "it's a pass@word"])
def test_a_url_in_the_wrong_place_is_not_shown_or_kept(password: str, place: Place) -> None:
    url = f"postgresql://keeper:{password}@127.0.0.1:1/shop"
    good, sqlite = place.url(), "sqlite:///copy.db"
    (place.folder / "one.py").write_text("from etl import Database\n")
    copy = ["copy", sqlite, "sqlite:///other.db"]
    for arguments in (
        ["run", url],
        ["run", f"{url}:name"],
        ["run", f"one.py:{url}"],
        ["run", "one.py", url],
        ["run", "one.py", "--memory", url],
        ["run", "one.py", "--jobs", url],
        ["run", "one.py", "--on-error", url],
        [url],
        [f"--{url}"],
        ["list", url],
        ["plan", url],
        ["rejects", "retry", url],
        ["state", "show", sqlite, url],
        ["state", "set", sqlite, url, "b", "c", "[1]"],
        ["state", "set", sqlite, "a", "b", "c", url],
        ["state", "reset", sqlite, url, "--yes"],
        ["verify", url],
        ["check", f"x{url}"],
        ["verify", good, sqlite, "--where", url],
        *(
            [*copy, option, url]
            for option in (
                *("--table", "--exclude", "--schema", "--target-schema", "--as", "--name"),
                *("--key", "--cursor", "--where", "--delimiter", "--encoding", "--null", "--mode"),
            )
        ),
        ["copy", f"/tmp/{url}.csv", sqlite],
    ):
        code, output = place.etl(*arguments, *TALK)
        assert password not in output, (arguments, output)
        assert code in {1, 2, 75}, (arguments, code, output)
    for one in ("copy.db", "other.db"):
        path = place.folder / one
        assert not path.exists() or password.encode() not in path.read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a program overwrite it")
def test_other_users_of_the_machine_do_not_see_a_password(place: Place) -> None:
    with closing(sqlite3.connect(place.folder / "held.db")) as connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY)")
        connection.commit()
        connection.execute("BEGIN IMMEDIATE")  # so that the command waits
        url = place.url()
        process = subprocess.Popen(
            [sys.executable, "-m", "etl", "copy", url, "sqlite:///held.db", "--table", "orders"],
            cwd=place.folder, env={**os.environ, "PYTHONPATH": os.getcwd()},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        line = Path(f"/proc/{process.pid}/cmdline")
        seen = ""
        while "***" not in seen:
            assert process.poll() is None, process.communicate()
            seen = line.read_bytes().decode()
        connection.rollback()
    output, _ = process.communicate(timeout=60)
    assert MARK not in seen
    assert "--table" in seen
    assert process.returncode == 0, _clean(output, of="copy")


async def test_a_library_user_does_not_see_a_password_either(place: Place) -> None:
    for url in (place.url(WRONG), place.url(path="missing")):
        database = Database(url)
        flow = database.table("orders").into(Database("sqlite:////tmp/none/x.db").append("x"))
        with pytest.raises(EtlError) as failed:
            await Pipeline("p", flow).run()
        shown: list[str] = [repr(database), str(database.url), repr(database.url), repr(flow)]
        todo: list[BaseException | None] = [failed.value]
        while todo:
            error = todo.pop()
            if error is None:
                continue
            todo += [error.__cause__, error.__context__]
            shown.append(repr(error))
            trace = error.__traceback__
            while trace is not None:
                if trace.tb_frame.f_code.co_filename != __file__:
                    # What tools that record the variables of frames would see.
                    shown += [repr(value) for value in trace.tb_frame.f_locals.values()]
                trace = trace.tb_next
        _clean("\n".join(shown), of=url)
