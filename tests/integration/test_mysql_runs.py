"""Sources and sinks in MySQL: rows and position in one transaction, whatever comes between."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import uvloop

from etl import (
    Batch,
    ConfigError,
    Database,
    DataError,
    DeadLetter,
    Limits,
    Pipeline,
    Row,
)
from etl.connector import Advance, CheckpointKey, RunInfo, Sink
from etl.databases import generic
from etl.databases.database import ReadSpec
from etl.databases.generic.target import GenericSession, GenericTarget
from etl.databases.url import parse_url
from etl.errors import (
    AlreadyRunningError,
    CommitInDoubtError,
    FencedError,
    SchemaMismatchError,
    TargetUnavailableError,
)
from etl.rows import Shape, shape_of
from tests.integration import sqlite_kit
from tests.integration.mysql_kit import fill, name_of, rows_of
from tests.mysql_server import MySQLServer

INFO = RunInfo(pipeline="p", run_id="run", batch_rows=3, batch_bytes=10_000)


async def read(
    url: str, spec: ReadSpec, after: Any = None, until: Any = None, *, info: RunInfo = INFO
) -> list[Batch[Any]]:
    batches: list[Batch[Any]] = []

    async def emit(batch: Batch[Any]) -> None:
        batches.append(batch)

    async with generic.open_reader(parse_url(url), spec, info) as reader:
        await reader.pump(after, until, emit)
    return batches


def rows(batches: list[Batch[Any]]) -> list[Any]:
    return [row for batch in batches for row in batch.rows]


# -- sources -----------------------------------------------------------------------------------


async def test_a_read_goes_on_after_any_position(mysql_server: MySQLServer, mysql_url: str) -> None:
    fill(
        mysql_server,
        mysql_url,
        "CREATE TABLE t (a varchar(20), b decimal(30,5), c enum('z','m','a'), n int,"
        " PRIMARY KEY (a, b, c))",
        "INSERT INTO t VALUES "
        + ", ".join(
            f"('{word}', {number}, '{label}', 1)"
            for word in ("Ab", "aa", "B", "ä", "a c")
            for number in ("1234567890123456789012345.00001", "1234567890123456789012345.00002")
            for label in ("z", "a")
        ),
    )
    whole = rows(await read(mysql_url, ReadSpec(table="t")))
    seen = [(row["a"], row["b"], row["c"]) for row in whole]
    assert len(set(seen)) == 20

    for batch in (batches := await read(mysql_url, ReadSpec(table="t"))):
        rest = rows(await read(mysql_url, ReadSpec(table="t"), batch.position))
        before = rows(await read(mysql_url, ReadSpec(table="t"), None, batch.position))
        assert [(row["a"], row["b"], row["c"]) for row in [*before, *rest]] == seen
    async with generic.open_reader(parse_url(mysql_url), ReadSpec(table="t"), INFO) as reader:
        positions = [batch.position for batch in batches if batch.position is not None]
        assert list(await reader.order(positions[::-1])) == positions


@dataclass(frozen=True)
class Thing:
    id: int
    price: Decimal
    flag: bool
    day: date
    at: datetime
    naive: datetime
    clock: time
    span: timedelta
    code: UUID
    doc: dict[str, Any]
    data: bytes | None
    ratio: float


async def test_rows_become_python_values(mysql_server: MySQLServer, mysql_url: str) -> None:
    fill(
        mysql_server,
        mysql_url,
        "CREATE TABLE t (id bigint unsigned PRIMARY KEY, price decimal(10,2), flag boolean,"
        " day date, at timestamp(6) NULL, naive datetime, clock time, span time,"
        " code char(36), doc json, data blob, ratio double)",
        "INSERT INTO t VALUES (18446744073709551615, 1.50, 1, '2020-01-31',"
        " '2020-01-31 10:00:00.5', '2020-01-31 10:00:00', '10:00:00', '-100:00:01',"
        " 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11',"
        " '{\"a\": [1]}', NULL, 0.1)",
    )
    expected = Thing(
        18446744073709551615, Decimal("1.50"), True, date(2020, 1, 31),
        datetime(2020, 1, 31, 10, 0, 0, 500_000, UTC), datetime.fromisoformat("2020-01-31 10:00"),
        time(10),
        -timedelta(hours=100, seconds=1), UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"), {"a": [1]},
        None, 0.1,
    )  # fmt: skip

    (thing,) = rows(await read(mysql_url, ReadSpec(table="t", row=Thing)))
    (row,) = rows(await read(mysql_url, ReadSpec(table="t")))

    assert thing == expected
    wanted = vars(expected) | {"code": str(expected.code)}
    assert dict(row) == wanted


async def test_a_query_and_declared_steps_are_done_by_the_server(
    mysql_server: MySQLServer, mysql_database: Callable[[], str]
) -> None:
    source, target = mysql_database(), mysql_database()
    fill(
        mysql_server,
        source,
        "CREATE TABLE t (id int PRIMARY KEY, `na``me` varchar(20), n int, d date)",
        r"INSERT INTO t VALUES (1, 'a\\b''c', 1, '2020-01-31'), (2, 'x', 2, NULL),"
        " (3, 'y', 3, NULL)",
    )
    shop, house = Database(source), Database(target)
    steps = shop.table("t").where("n < 3", **{"na`me": "a\\b'c"}).select("d", twice="n * 2")
    query = shop.query(
        "SELECT id, CONCAT('12:30 %', n) AS s, n / 3 AS third FROM t", name="q", key=("id",)
    )

    await Pipeline("p", steps.into(house.append("steps")), query.into(house.append("q"))).run()

    assert rows_of(mysql_server, target, "SELECT * FROM steps") == [(date(2020, 1, 31), 2)]
    assert rows_of(mysql_server, target, "SELECT * FROM q ORDER BY id") == [
        (n, f"12:30 %{n}", Decimal(third))
        for n, third in ((1, "0.3333"), (2, "0.6667"), (3, "1.0000"))
    ]


async def test_an_incremental_read_brings_what_commits_late(
    mysql_server: MySQLServer, mysql_database: Callable[[], str]
) -> None:
    source, target = mysql_database(), mysql_database()
    fill(
        mysql_server,
        source,
        "CREATE TABLE t (id int AUTO_INCREMENT PRIMARY KEY, at datetime(6) NOT NULL DEFAULT NOW(6),"
        " KEY (at, id))",
        "INSERT INTO t (at) VALUES ('2020-01-01')",
    )
    shop, house = Database(source), Database(target)

    def pipeline() -> Pipeline:
        return Pipeline("p", shop.table("t", cursor=("at", "id")).into(house.append("t")))

    async with (
        mysql_server.connected(name_of(source)) as late,
        late.cursor() as cursor,
    ):
        await cursor.execute("INSERT INTO t () VALUES ()")
        fill(mysql_server, source, "INSERT INTO t () VALUES ()")
        await asyncio.sleep(0.5)
        await pipeline().run()
        assert rows_of(mysql_server, target, "SELECT COUNT(*) FROM t") == [(1,)]
        await late.commit()
    await asyncio.sleep(1.5)

    await pipeline().run()

    assert rows_of(mysql_server, target, "SELECT id FROM t ORDER BY id") == [(1,), (2,), (3,)]


@pytest.mark.parametrize("kind", ["datetime(3)", "timestamp", "date"])
async def test_rows_of_later_times_are_told(
    mysql_server: MySQLServer, mysql_url: str, kind: str
) -> None:
    fill(
        mysql_server,
        mysql_url,
        f"CREATE TABLE t (id int PRIMARY KEY, at {kind} NOT NULL)",
        "INSERT INTO t VALUES (1, NOW() - INTERVAL 2 DAY)",
    )
    spec = ReadSpec(table="t", cursor=("at",))
    assert await notes_of(mysql_url, spec) == []
    fill(mysql_server, mysql_url, "INSERT INTO t VALUES (2, NOW() + INTERVAL 2 DAY)")

    (note,) = await notes_of(mysql_url, spec)

    assert "'at' is later than now: 1. " in note


async def test_a_table_that_ends_before_the_position_is_told(
    mysql_server: MySQLServer, mysql_url: str
) -> None:
    fill(
        mysql_server,
        mysql_url,
        "CREATE TABLE t (id int PRIMARY KEY)",
        "INSERT INTO t VALUES (1), (7)",
    )
    spec = ReadSpec(table="t", cursor=("id",))
    assert await notes_of(mysql_url, spec, (7,)) == []
    fill(mysql_server, mysql_url, "DELETE FROM t WHERE id = 7")

    (note,) = await notes_of(mysql_url, spec, (7,))

    assert "below the saved position" in note


async def notes_of(url: str, spec: ReadSpec, after: Any = None) -> list[str]:
    """What a read says."""

    async def emit(batch: Batch[Any]) -> None:
        assert batch.rows

    async with generic.open_reader(parse_url(url), spec, INFO) as reader:
        await reader.pump(after, None, emit)
        return list(reader.notes)


async def test_a_text_cursor_of_a_view_is_read_to_its_end(
    mysql_server: MySQLServer, mysql_url: str
) -> None:
    """It is ordered by its bytes, in which the greatest value is another one."""
    fill(
        mysql_server,
        mysql_url,
        "CREATE TABLE b (id int PRIMARY KEY, w varchar(9) COLLATE utf8mb4_general_ci NOT NULL)",
        "INSERT INTO b VALUES (1, 'a'), (2, 'B')",
        "CREATE VIEW v AS SELECT * FROM b",
    )
    found = await read(mysql_url, ReadSpec(table="v", cursor=("w",), key=("id",)))
    assert [row["id"] for row in rows(found)] == [2, 1]


async def test_without_the_right_to_see_transactions_settle_is_asked_for(
    mysql_server: MySQLServer, mysql_url: str
) -> None:
    name = name_of(mysql_url)
    user = f"reader_{name[-12:]}"  # not to begin with a digit, which may look like a number
    fill(mysql_server, mysql_url, "CREATE TABLE t (id int PRIMARY KEY, at datetime NOT NULL)")
    mysql_server.execute(
        f"CREATE USER {user} IDENTIFIED BY 'pw'", f"GRANT SELECT ON {name}.* TO {user}"
    )
    url = mysql_url.replace("://", f"://{user}:pw@").replace("pw@root@", "pw@")
    try:
        with pytest.raises(ConfigError, match=r"GRANT PROCESS.*settle=") as caught:
            await read(url, ReadSpec(table="t", cursor=("at", "id")))
        spec = ReadSpec(table="t", cursor=("at", "id"), settle=timedelta(seconds=1))
        assert rows(await read(url, spec)) == []
    finally:
        mysql_server.execute(f"DROP USER {user}")
    assert "pw" not in str(caught.value)


# -- sinks -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    id: int
    word: str | None
    amount: int = 0


def shape(key: tuple[str, ...] = ("id",)) -> Shape:
    return shape_of(Item, key)


class Lane:
    """A lane of one sink in a few lines."""

    def __init__(self, url: str, sink: Sink[Any], info: RunInfo = INFO) -> None:
        self.key = CheckpointKey(pipeline="p", flow="f", sink=sink.table, partition="main")
        self.sink = sink
        self.url, self.info = url, info
        self.position: Any = None

    async def __aenter__(self) -> Lane:
        self.opened = generic.open_target(parse_url(self.url), self.info, sessions=1)
        self.target = await self.opened.__aenter__()
        assert isinstance(self.target, GenericTarget)
        session = await self.target.session("f", [self.sink])
        assert isinstance(session, GenericSession)
        self.session = session
        await session.prepare([shape()], resumable=True)
        found = await session.take_over([self.key], fingerprints=["{}"], fresh=False)
        self.epoch = found[self.key].epoch
        self.position = found[self.key].position
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.opened.__aexit__(*error)

    async def write(self, *items: Item, to: Any, commit: bool = True) -> None:
        try:
            await self.session.begin()
            await self.session.write(0, [Batch(list(items), position=to)])
            step = Advance(
                key=self.key, epoch=self.epoch, old=self.position, new=to, rows=len(items)
            )
            await self.session.advance([step])
            if commit:
                await self.session.commit()
                self.position = to
        except CommitInDoubtError:
            raise
        except BaseException:
            await self.session.rollback()
            raise


def table(url: str, mode: str, **more: Any) -> Sink[Any]:
    return Sink(target=Database(url), table="t", mode=mode, **more)  # type: ignore[arg-type]


async def test_rows_and_position_are_rolled_back_together(
    mysql_server: MySQLServer, mysql_url: str
) -> None:
    async with Lane(mysql_url, table(mysql_url, "append")) as lane:
        await lane.write(Item(1, "a"), to=(1,))
        with pytest.raises(DataError, match="unique key 'PRIMARY'") as caught:
            await lane.write(Item(2, "secret"), Item(1, "secret"), to=(2,))
        assert "secret" not in str(caught.value)
        found = await lane.session.load([lane.key])

    assert found[lane.key].position == (1,)
    assert rows_of(mysql_server, mysql_url, "SELECT id FROM t") == [(1,)]


async def test_the_last_row_of_a_key_wins_and_other_unique_keys_are_kept(
    mysql_server: MySQLServer, mysql_url: str
) -> None:
    fill(
        mysql_server,
        mysql_url,
        "CREATE TABLE t (id int, word varchar(20) UNIQUE, amount int DEFAULT 5, UNIQUE (id))",
    )
    async with Lane(mysql_url, table(mysql_url, "upsert", key=("id",))) as lane:
        await lane.write(Item(1, "a"), Item(2, "b"), Item(1, "c"), to=(1,))
        await lane.write(Item(2, "B%s", 7), Item(3, None), to=(2,))
        # By ON DUPLICATE KEY UPDATE, this would have changed the row of id 2.
        with pytest.raises(DataError, match="unique key 'word'"):
            await lane.write(Item(9, "b%S", 0), to=(3,))
        with pytest.raises(DataError, match="key column 'id' is None"):
            await lane.write(Item(None, "n"), to=(3,))  # type: ignore[arg-type]

    assert rows_of(mysql_server, mysql_url, "SELECT * FROM t ORDER BY id") == [
        (1, "c", 0), (2, "B%s", 7), (3, None, 0)
    ]  # fmt: skip


async def test_lanes_whose_first_rows_make_the_table_make_it_once(
    mysql_server: MySQLServer, mysql_url: str
) -> None:
    async with generic.open_target(parse_url(mysql_url), INFO, sessions=2) as target:
        lanes = [await target.session("f", [table(mysql_url, "append")]) for _ in range(2)]
        for lane in lanes:
            await lane.prepare([None], resumable=True)
            await lane.begin()
        batches = [[Batch([Item(number, "x")])] for number in range(2)]
        await asyncio.gather(*(lane.write(0, b) for lane, b in zip(lanes, batches, strict=True)))
        for lane in lanes:
            await lane.commit()

    assert rows_of(mysql_server, mysql_url, "SELECT COUNT(*) FROM t") == [(2,)]


async def test_sums_are_added_once(mysql_server: MySQLServer, mysql_url: str) -> None:
    fill(
        mysql_server, mysql_url, "CREATE TABLE t (word varchar(20) PRIMARY KEY, amount int, id int)"
    )
    sink = table(mysql_url, "upsert", key=("word",), add=("amount",))
    async with Lane(mysql_url, sink) as lane:
        await lane.write(Item(1, "x", 2), Item(2, "X", 3), Item(3, "y", 4), to=(1,))
        await lane.write(Item(4, "x", 10), to=(2,), commit=False)
        await lane.session.rollback()
        await lane.write(Item(4, "x", 10), to=(2,))

    # By the collation of the table, x and X are one key.
    found = rows_of(mysql_server, mysql_url, "SELECT word, amount, id FROM t ORDER BY word")
    assert [(word.lower(), amount, number) for word, amount, number in found] == [
        ("x", 15, 4), ("y", 4, 3)
    ]  # fmt: skip


async def test_a_run_that_was_taken_over_writes_nothing_more(
    mysql_server: MySQLServer, mysql_url: str
) -> None:
    old_info = RunInfo(pipeline="p", run_id="old", batch_rows=3, batch_bytes=100)
    new_info = RunInfo(pipeline="p", run_id="new", batch_rows=3, batch_bytes=100, take_over=True)
    sink = table(mysql_url, "append")
    async with Lane(mysql_url, sink, old_info) as old:
        await old.write(Item(1, "a"), to=(1,))
        async with Lane(mysql_url, sink, new_info) as new:
            with pytest.raises(FencedError):
                await old.write(Item(2, "old"), to=(2,))
            await new.write(Item(2, "new"), to=(2,))

    assert rows_of(mysql_server, mysql_url, "SELECT word FROM t ORDER BY id") == [("a",), ("new",)]


async def test_a_second_run_is_told_who_holds_the_lock(mysql_url: str) -> None:
    from etl.engine.holder import this_process

    info = RunInfo(
        pipeline="p", run_id="a", batch_rows=3, batch_bytes=100, holder=this_process("a")
    )
    async with Lane(mysql_url, table(mysql_url, "append"), info):
        with pytest.raises(AlreadyRunningError, match=r"is already running: process \d+ on host"):
            async with generic.open_target(parse_url(mysql_url), INFO, sessions=1):
                pass
        other = RunInfo(pipeline="q", run_id="b", batch_rows=3, batch_bytes=100)
        async with generic.open_target(parse_url(mysql_url), other, sessions=1):
            pass


@pytest.mark.parametrize("is_in", [True, False])
async def test_a_commit_in_doubt_is_settled_by_the_checkpoint(
    mysql_server: MySQLServer, mysql_url: str, is_in: bool
) -> None:
    async with Lane(mysql_url, table(mysql_url, "append")) as lane:
        await lane.write(Item(1, "a"), to=(1,), commit=False)
        session = lane.session.working()
        if is_in:
            await session.execute("COMMIT")  # and the answer is lost
        number = session.session
        mysql_server.execute(f"KILL CONNECTION {number}")
        with pytest.raises(CommitInDoubtError):
            await lane.session.commit()

        found = await lane.session.settle([lane.key])

        assert found[lane.key].position == ((1,) if is_in else None)
    assert rows_of(mysql_server, mysql_url, "SELECT COUNT(*) FROM t") == [(int(is_in),)]


async def test_a_lost_connection_is_worth_another_try(
    mysql_server: MySQLServer, mysql_url: str
) -> None:
    async with Lane(mysql_url, table(mysql_url, "append")) as lane:
        await lane.write(Item(1, "a"), to=(1,), commit=False)
        mysql_server.execute(f"KILL CONNECTION {lane.session.working().session}")
        with pytest.raises(TargetUnavailableError, match="lost"):
            await lane.session.write(0, [Batch([Item(2, "b")])])
        await lane.session.rollback()
        await lane.write(Item(1, "a"), to=(1,))

    assert rows_of(mysql_server, mysql_url, "SELECT id FROM t") == [(1,)]


async def test_a_deadlock_is_tried_again(mysql_server: MySQLServer, mysql_url: str) -> None:
    fill(
        mysql_server, mysql_url, "CREATE TABLE t (id int PRIMARY KEY, word varchar(20), amount int)"
    )
    fill(mysql_server, mysql_url, "INSERT INTO t VALUES (1, 'a', 0), (2, 'b', 0)")
    async with Lane(mysql_url, table(mysql_url, "upsert", key=("id",))) as lane:
        async with (
            mysql_server.connected(name_of(mysql_url)) as other,
            other.cursor() as cursor,
        ):
            # The other one has changed more, so that etl's transaction is the one to be ended.
            await cursor.execute("CREATE TEMPORARY TABLE x (n int) ENGINE=InnoDB")
            await cursor.execute("INSERT INTO x SELECT seq FROM seq_1_to_5000")
            await cursor.execute("UPDATE t SET amount = 1 WHERE id = 1")
            await lane.session.begin()
            await lane.session.write(0, [Batch([Item(2, "B")])])
            waits = asyncio.create_task(lane.session.write(0, [Batch([Item(1, "A")])]))
            waiting = "SELECT 1 FROM information_schema.innodb_lock_waits"
            while not waits.done() and not rows_of(mysql_server, mysql_url, waiting):
                # Where it is asked more often than each 0.1 s, the server never looks anew.
                await asyncio.sleep(0.2)
            assert "MySQL session" in (await lane.session.blocked_by() or "")
            await cursor.execute("UPDATE t SET amount = 2 WHERE id = 2")
            with pytest.raises(TargetUnavailableError, match="Deadlock"):
                await waits
            await lane.session.rollback()
            await other.commit()
        await lane.write(Item(1, "A"), Item(2, "B"), to=(1,))

    assert rows_of(mysql_server, mysql_url, "SELECT word FROM t ORDER BY id") == [("A",), ("B",)]


async def test_bad_rows_are_kept_with_the_position(
    mysql_server: MySQLServer, mysql_database: Callable[[], str]
) -> None:
    source, target = mysql_database(), mysql_database()
    fill(
        mysql_server,
        source,
        "CREATE TABLE t (id int PRIMARY KEY, word varchar(20))",
        "INSERT INTO t SELECT seq, IF(seq % 10 = 0, NULL, 'x') FROM seq_1_to_100",
    )
    fill(mysql_server, target, "CREATE TABLE t (id int PRIMARY KEY, word varchar(20) NOT NULL,"
                               " CHECK (id <> 55))")  # fmt: skip
    flow = Database(source).table("t").into(Database(target).append("t"), on_error=DeadLetter())

    await Pipeline("p", flow, limits=Limits(batch_rows=20)).run()

    assert rows_of(mysql_server, target, "SELECT COUNT(*) FROM t") == [(89,)]
    kept = rows_of(mysql_server, target, "SELECT row_key, reason FROM etl_reject ORDER BY id")
    assert len(kept) == 11
    assert {reason for key, reason in kept if key == '{"id":55}'} != set()


async def test_a_row_larger_than_the_servers_packet_is_refused(
    mysql_server: MySQLServer, mysql_url: str
) -> None:
    (limit,) = rows_of(mysql_server, mysql_url, "SELECT @@max_allowed_packet")[0]
    async with Lane(mysql_url, table(mysql_url, "append")) as lane:
        with pytest.raises(DataError, match="max_allowed_packet is"):
            await lane.write(Item(1, "x" * limit), to=(1,))
        await lane.write(Item(1, "'" * (limit // 3)), to=(1,))

    assert rows_of(mysql_server, mysql_url, "SELECT LENGTH(word) FROM t") == [(limit // 3,)]


async def test_many_rows_go_in_packets_that_the_server_takes(
    mysql_server: MySQLServer, mysql_url: str
) -> None:
    (usual,) = rows_of(mysql_server, mysql_url, "SELECT @@global.max_allowed_packet")[0]
    fill(mysql_server, mysql_url, "SET GLOBAL max_allowed_packet = 16384")
    try:
        async with Lane(mysql_url, table(mysql_url, "append")) as lane:
            await lane.write(*(Item(n, "'" * 1000) for n in range(100)), to=(100,))
    finally:
        fill(mysql_server, mysql_url, f"SET GLOBAL max_allowed_packet = {usual}")

    assert rows_of(mysql_server, mysql_url, "SELECT COUNT(*) FROM t") == [(100,)]


@pytest.mark.parametrize(
    ("declared", "value", "why"),
    [
        ("varchar(3)", "abc ", "longer than 3 characters"),
        ("char(5)", "ab ", "ends in a space"),
        ("enum('a','1')", "2", "none of the labels"),
        ("enum('a','b')", "A", "none of the labels"),
        ("set('a','b')", "b,a", "not a list of the labels"),
        ("varchar(10) CHARACTER SET latin1", "€😀", "incorrect value for column 'v'"),
        ("tinytext", "é" * 128, "longer than 255 bytes"),
        ("decimal(5,2)", Decimal("1.005"), "more than 2 digits"),
        ("decimal(5,2)", Decimal("1000"), "out of range for column 'v'"),
        ("datetime(3)", datetime.fromisoformat("2020-01-01 00:00:00.000001"), "keeps 3 digits"),
        ("datetime", datetime(2020, 1, 1, tzinfo=UTC), "has a time zone"),
        ("timestamp", datetime.fromisoformat("2020-01-01"), "has no time zone"),
        ("timestamp", datetime(2039, 1, 1, tzinfo=UTC), "incorrect value for column 'v'"),
        ("int", 1.5, "not an integer"),
        ("int", True, "a bool, not an integer"),
        ("tinyint unsigned", -1, "out of range for column 'v'"),
        ("year", 5, "1901 to 2155"),
        ("binary(3)", b"a", "fills it up"),
        ("float", 1e39, "out of range"),
        ("float(8,3)", 1.0625, "more than 3 digits"),
        ("double(20,2)", 1.125, "more than 2 digits"),
        ("double", float("inf"), "infinite"),
        ("json", {"a": float("nan")}, "not JSON"),
        ("int NOT NULL", None, "NULL is not allowed"),
        ("timestamp NOT NULL", None, "NULL is not allowed"),
        ("text", "\ud800", "lone surrogate"),
    ],
)
async def test_a_value_that_the_server_would_change_is_refused(
    mysql_server: MySQLServer, mysql_url: str, declared: str, value: Any, why: str
) -> None:
    fill(mysql_server, mysql_url, f"CREATE TABLE t (id int PRIMARY KEY, v {declared})")

    async with generic.open_target(parse_url(mysql_url), INFO, sessions=1) as target:
        session = await target.session("f", [table(mysql_url, "append")])
        await session.prepare([None], resumable=True)
        await session.begin()
        with pytest.raises(DataError, match="column 'v'|'v'") as caught:
            await session.write(0, [Batch([{"id": 1, "v": value}])])
        await session.rollback()

    assert why in str(caught.value)
    assert "'t'" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("nosuch", "unknown database"),
        ("user", "access denied"),
        ("port", "takes no connections now"),
    ],
)
async def test_a_wrong_address_is_told_without_its_password(
    mysql_url: str, change: str, why: str
) -> None:
    url = mysql_url.replace("://root@", "://root:s3cret@")
    if change == "nosuch":
        url = mysql_url + "_not"
    elif change == "port":
        url = "mysql://root:s3cret@127.0.0.1:1/x"

    with pytest.raises(Exception) as caught:  # noqa: PT011  which one is looked at below
        await read(url, ReadSpec(table="t"))

    assert why in str(caught.value).lower()
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    assert isinstance(caught.value, ConfigError) == (change != "port")


async def test_a_cancelled_write_leaves_no_session_and_no_lock(
    mysql_server: MySQLServer, mysql_url: str
) -> None:
    fill(mysql_server, mysql_url, "CREATE TABLE t (id int PRIMARY KEY, word text, amount int)")
    fill(mysql_server, mysql_url, "INSERT INTO t VALUES (1, 'a', 0)")
    async with (
        Lane(mysql_url, table(mysql_url, "append")) as lane,
        mysql_server.connected(name_of(mysql_url)) as other,
        other.cursor() as cursor,
    ):
        await cursor.execute("SELECT * FROM t WHERE id = 1 FOR UPDATE")
        await lane.session.begin()
        number = lane.session.working().session
        waits = asyncio.create_task(lane.session.write(0, [Batch([Item(1, "x")])]))
        await asyncio.sleep(0.3)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        await lane.session.rollback()
        for _ in range(100):
            left = mysql_server.query(
                f"SELECT 1 FROM information_schema.processlist WHERE id = {number}"
            )
            if not left:
                break
            await asyncio.sleep(0.02)
        assert not left


async def test_state_is_shown_set_and_reset(mysql_server: MySQLServer, mysql_url: str) -> None:
    async with Lane(mysql_url, table(mysql_url, "append")) as lane:
        await lane.write(Item(1, "a"), to=(1, "é"))
    async with generic.open_state(parse_url(mysql_url)) as state:
        (one,) = await state.states()
        assert (one.key, one.checkpoint.position) == (lane.key, (1, "é"))
        await state.set_position(lane.key, (5,))
        (one,) = await state.states("p")
        assert (one.checkpoint.position, one.checkpoint.epoch) == ((5,), 2)
        await state.reset([lane.key])
        assert list(await state.states()) == []


async def test_a_table_without_a_key_is_gathered_and_appended_at_the_end(
    mysql_server: MySQLServer, mysql_database: Callable[[], str]
) -> None:
    source, target = mysql_database(), mysql_database()
    fill(mysql_server, source, "CREATE TABLE t (n int)", "INSERT INTO t VALUES (1), (1), (2)")

    def double(row: Row) -> dict[str, int]:
        return {"n": row["n"] * 2}

    fill(mysql_server, target, "CREATE TABLE t (n int)")
    flow = Database(source).table("t").map(double).into(Database(target).append("t"))
    await Pipeline("p", flow).run()

    assert rows_of(mysql_server, target, "SELECT n FROM t ORDER BY n") == [(2,), (2,), (4,)]


async def test_a_key_that_no_index_makes_unique_is_refused(
    mysql_server: MySQLServer, mysql_url: str
) -> None:
    fill(mysql_server, mysql_url, "CREATE TABLE t (a int NOT NULL, b text, UNIQUE (b(10)))")
    for spec in (ReadSpec(table="t", key=("a",)), ReadSpec(table="t", key=("b",))):
        with pytest.raises(SchemaMismatchError, match="no unique index"):
            await read(mysql_url, spec)
    flow = Database(mysql_url).table("t").into(Database(mysql_url).upsert("t", key=("b",)))
    with pytest.raises(SchemaMismatchError, match="no unique index"):
        await Pipeline("p", flow).run()


async def test_keys_that_the_table_takes_for_one_are_told(
    mysql_server: MySQLServer, mysql_url: str, sqlite_url: str
) -> None:
    collation = "utf8mb4_general_ci"
    table = f"(k varchar(9) CHARACTER SET utf8mb4 COLLATE {collation} PRIMARY KEY)"
    fill(mysql_server, mysql_url, f"CREATE TABLE s {table}", f"CREATE TABLE t {table}")
    sqlite_kit.script(
        sqlite_url, "CREATE TABLE s (k TEXT PRIMARY KEY); INSERT INTO s VALUES ('a'), ('A')"
    )
    for url, is_told in ((mysql_url, False), (sqlite_url, True)):
        flow = Database(url).table("s").into(Database(mysql_url).upsert("t", key="k"))
        report = await Pipeline("p", flow).run(accept_change=True)
        assert (f"become one row: 'k' ({collation})" in str(report.flows[0].notes)) == is_told
    assert len(rows_of(mysql_server, mysql_url, "SELECT k FROM t")) == 1


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_slow_flow_does_not_let_the_driver_read_ahead(
    mysql_server: MySQLServer, mysql_url: str, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    fill(
        mysql_server,
        mysql_url,
        "CREATE TABLE t (id int PRIMARY KEY, v varchar(2000))",
        "INSERT INTO t SELECT seq, REPEAT('x', 2000) FROM seq_1_to_50000",
    )
    info = RunInfo(pipeline="p", run_id="run", batch_rows=1000, batch_bytes=1 << 20)
    before = memory_mib()
    most = count = 0

    async def emit(batch: Batch[Any]) -> None:
        nonlocal most, count
        count += len(batch.rows)
        await asyncio.sleep(0.02)
        most = max(most, memory_mib() - before)

    async def pump() -> None:
        async with generic.open_reader(parse_url(mysql_url), ReadSpec(table="t"), info) as reader:
            await reader.pump(None, None, emit)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(pump())

    assert count == 50_000
    assert most < 60  # of 100 MB that the server would send at once; uvloop takes 30


def memory_mib() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) >> 10
