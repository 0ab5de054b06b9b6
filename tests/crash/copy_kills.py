"""Whole databases copied by a command that is killed again and again.

``python -m tests.crash.copy_kills --kills 100`` copies thirty tables, some of which refer to
others, from one PostgreSQL database to another, in each way of copying in turn. The command is
ended by SIGKILL or SIGTERM at random moments until it has come to its end; then ``etl verify`` must
find every table equal.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

import asyncpg

from tests.own_postgres import own_postgres_url

WAYS: tuple[tuple[str, ...], ...] = (
    ("--mode", "replace"),
    ("--mode", "replace", "--publish", "table", "--jobs", "2"),
    ("--mode", "append"),
    ("--mode", "upsert", "--flows", "3"),
)
TABLES = 30
SOONEST_S, LATEST_S = 0.5, 9.0
LIMIT_S = 600
_EXIT_ACTIVE = 4


def statements() -> str:
    """Tables of 0 to 20,000 rows; every third refers to the one before it."""
    made: list[str] = []
    for number in range(TABLES):
        refers = number % 3 == 2
        rows = 2_000 if refers else (20_000, 3_000, 0, 10)[number % 4] + 2_000 * (number % 3 == 1)
        parent = f" REFERENCES t{number - 1}" if refers else ""
        made.append(
            f"CREATE TABLE t{number} (id int PRIMARY KEY, parent int{parent}, v text,"
            " n numeric(12,3), at timestamptz DEFAULT now(), j jsonb);"
            f"INSERT INTO t{number} SELECT g, {'g' if refers else 'NULL'}, md5(g::text), g / 7.0,"
            f" now(), jsonb_build_object('a', g) FROM generate_series(1, {rows}) AS g"
        )
    return ";".join(made)


async def execute(url: str, sql: str) -> None:
    """Run statements on a plain connection."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()


def _database(server: str, name: str) -> str:
    """A new database of a server; its URL."""
    asyncio.run(execute(server, f"CREATE DATABASE {name}"))
    return urlsplit(server)._replace(path=f"/{name}").geturl()


def etl(*arguments: str) -> subprocess.Popen[str]:
    """The command as a process; what it says goes into a pipe."""
    return subprocess.Popen(
        [sys.executable, "-m", "etl", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill_until_done(command: Sequence[str], kills: int, chance: random.Random) -> tuple[int, str]:
    """Start a copy until it ends by itself; how often it was killed, and what went wrong."""
    killed = 0
    while True:
        copy = etl(*command)
        wait_s = chance.uniform(SOONEST_S, LATEST_S) if killed < kills else LIMIT_S
        try:
            _, said = copy.communicate(timeout=wait_s)
        except subprocess.TimeoutExpired:
            copy.send_signal(chance.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM)))
            copy.communicate(timeout=LIMIT_S)
            killed += 1
            continue
        if copy.returncode == _EXIT_ACTIVE:
            continue  # the server has not noticed yet that the killed one is gone
        return killed, said if copy.returncode else ""


def main() -> int:
    """Run the loop; 1 where a copy failed or a table differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    killed = rounds = 0
    with own_postgres_url() as server:
        source, target = (_database(server, name) for name in ("kills_source", "kills_target"))
        asyncio.run(execute(source, statements()))
        while killed < given.kills:
            way = WAYS[rounds % len(WAYS)]
            asyncio.run(execute(target, "DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
            count, wrong = kill_until_done(("copy", source, target, *way), 8, chance)
            verify = etl("verify", source, target)
            _, differs = verify.communicate(timeout=LIMIT_S)
            killed, rounds = killed + count, rounds + 1
            said = wrong or differs or "equal"
            print(f"{' '.join(way)}: killed {count} times, {said}", flush=True)
            if wrong or verify.returncode:
                return 1
    print(f"{killed} kills in {rounds} copies of {TABLES} tables: all equal")
    return 0


if __name__ == "__main__":
    sys.exit(main())
