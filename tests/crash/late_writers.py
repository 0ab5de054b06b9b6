"""Rows that commit late: incremental reads beside writers with open transactions.

``python -m tests.crash.late_writers --seconds 60`` lets writers insert rows in transactions that
stay open for up to two seconds, some before their first write; some roll back. Meanwhile three
pipelines read the same table again and again, each by another cursor: a sequence, a time, and a
time in whole seconds, which many transactions share. In the end each target must hold each
committed row once. A naive reader (``id > last``) runs beside them: the rows that it loses show
that there was something to lose.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from time import monotonic
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from etl import Database, Pipeline

CURSORS: dict[str, tuple[str, ...]] = {
    "sequence": ("id",),
    "time": ("made_at", "id"),
    "seconds": ("made_in", "id"),
}
OPEN_S = 2.0
"""How long a transaction stays open, at most."""
SETTLED_S = 2.5
"""After the last commit: what a time cursor in whole seconds, rounded up, leaves for later."""


@dataclass(slots=True)
class Tally:
    """What was seen."""

    rows: int = 0
    transactions: int = 0
    rolled_back: int = 0
    polls: Counter[str] = field(default_factory=Counter)
    early: Counter[str] = field(default_factory=Counter)
    lost: dict[str, int] = field(default_factory=dict)
    doubled: dict[str, int] = field(default_factory=dict)
    lost_naive: int = 0

    @property
    def is_exact(self) -> bool:
        return not any(self.lost.values()) and not any(self.doubled.values())


async def late_writers(
    source: str, target: str, *, seconds: float, writers: int, seed: int
) -> Tally:
    """Write and read for some time; compare."""
    tally = Tally()
    server = await asyncpg.connect(source)
    try:
        await server.execute(
            "CREATE TABLE events (id bigserial PRIMARY KEY,"
            " made_at timestamptz NOT NULL DEFAULT now(),"
            " made_in timestamptz(0) NOT NULL DEFAULT now(), writer int NOT NULL);"
            "CREATE INDEX ON events (made_at, id); CREATE INDEX ON events (made_in, id)"
        )
        until = monotonic() + seconds
        writing = [
            asyncio.create_task(_write(source, number, until, random.Random(seed + number), tally))
            for number in range(writers)
        ]
        done = asyncio.Event()
        reading = [
            asyncio.create_task(_read(source, target, name, done, tally)) for name in CURSORS
        ]
        naive = asyncio.create_task(_read_naively(source, done))
        try:
            await asyncio.gather(*writing)
            await asyncio.sleep(SETTLED_S)
            done.set()
            await asyncio.gather(*reading)
            seen = await naive
        finally:
            for task in (*writing, *reading, naive):
                task.cancel()
            await asyncio.wait({*writing, *reading, naive})
        rows = [row["id"] for row in await server.fetch("SELECT id FROM events")]
        tally.rows = len(rows)
        tally.lost_naive = len(set(rows) - seen)
        for name in CURSORS:
            found = Counter(await _copied(target, name))
            tally.lost[name] = len(set(rows) - set(found))
            tally.doubled[name] = sum(found.values()) - len(found)
            assert not set(found) - set(rows), "a row that was rolled back was copied"
    finally:
        await server.close()
    return tally


async def _write(url: str, number: int, until: float, chance: random.Random, tally: Tally) -> None:
    connection = await asyncpg.connect(url)
    try:
        while monotonic() < until:
            transaction = connection.transaction()
            if chance.random() < 0.2:  # a lone statement, which commits by itself
                await connection.execute("INSERT INTO events (writer) VALUES ($1)", number)
                await asyncio.sleep(chance.uniform(0.0, 0.05))
                continue
            await transaction.start()
            left_s = chance.choice((0.05, 0.3, OPEN_S)) * chance.random()
            for _ in range(chance.randrange(1, 4)):
                wait_s = left_s * chance.random()
                await asyncio.sleep(wait_s)  # also before the first write
                left_s -= wait_s
                await connection.execute("INSERT INTO events (writer) VALUES ($1)", number)
            await asyncio.sleep(left_s)
            tally.transactions += 1
            if chance.random() < 0.1:
                tally.rolled_back += 1
                await transaction.rollback()
            else:
                await transaction.commit()
    finally:
        await connection.close()


async def _read(source: str, target: str, name: str, done: asyncio.Event, tally: Tally) -> None:
    events = Database(source).table("events", cursor=CURSORS[name])
    pipeline = Pipeline(f"late {name}", events.into(Database(target).append(f"by_{name}")))
    while True:
        is_last = done.is_set()
        report = await pipeline.run()
        tally.polls[name] += 1
        if is_last:
            return
        tally.early[name] += report.rows_written
        await asyncio.sleep(0.05)


async def _read_naively(url: str, done: asyncio.Event) -> set[int]:
    connection = await asyncpg.connect(url)
    seen: set[int] = set()
    try:
        while True:
            is_last = done.is_set()
            rows = await connection.fetch(
                "SELECT id FROM events WHERE id > $1 ORDER BY id", max(seen, default=0)
            )
            seen.update(row["id"] for row in rows)
            if is_last:
                return seen
            await asyncio.sleep(0.05)
    finally:
        await connection.close()


async def _copied(url: str, name: str) -> Sequence[int]:
    connection = await asyncpg.connect(url)
    try:
        return [row["id"] for row in await connection.fetch(f"SELECT id FROM by_{name}")]
    finally:
        await connection.close()


async def _in_new_databases(server: str, **options: Any) -> Tally:
    """Run it in two databases that are made for it and dropped afterwards."""
    names = [f"etl_late_{random.randrange(16**8):08x}_{side}" for side in ("source", "target")]
    urls = [urlunsplit(urlsplit(server)._replace(path=f"/{name}")) for name in names]
    connection = await asyncpg.connect(server)
    try:
        for name in names:
            await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
        try:
            return await late_writers(urls[0], urls[1], **options)
        finally:
            for name in names:
                await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await connection.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--writers", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--server", help="a PostgreSQL URL; default: a server of its own")
    args = parser.parse_args()
    sys.stdout.write(f"seed {args.seed}\n")
    place: AbstractContextManager[str]
    if args.server:
        place = nullcontext(args.server)
    else:
        from tests.own_postgres import own_postgres_url

        place = own_postgres_url()
    with place as url:
        tally = asyncio.run(
            _in_new_databases(url, seconds=args.seconds, writers=args.writers, seed=args.seed)
        )
    sys.stdout.write(
        f"{args.writers} writers, {tally.transactions} transactions of up to {OPEN_S:g} s"
        f" ({tally.rolled_back} rolled back), {tally.rows} rows;"
        f" a naive reader lost {tally.lost_naive}\n"
    )
    for name in CURSORS:
        sys.stdout.write(
            f"cursor {name}: {tally.polls[name]} runs, {tally.lost[name]} rows lost,"
            f" {tally.doubled[name]} doubled\n"
        )
    return 0 if tally.is_exact else 1


if __name__ == "__main__":
    sys.exit(main())
