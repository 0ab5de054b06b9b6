"""Writing into SQLite: modes, tables that are made, checkpoints, publishing, refusals."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from etl.connector import Sink
from etl.databases import sqlite
from etl.databases.database import Database, ReadSpec
from etl.databases.loading import staging_name
from etl.databases.url import parse_url
from etl.engine.holder import this_process
from etl.errors import (
    AlreadyRunningError,
    ConfigError,
    DataError,
    FencedError,
    SchemaMismatchError,
    TargetUnavailableError,
)
from etl.pipeline import Pipeline
from etl.rows import Column, Shape, Type, shape_of
from etl.testing import MemorySource
from tests.integration.sqlite_kit import (
    INFO,
    Lane,
    fetch,
    holding,
    insert,
    lane,
    path_of,
    read,
    script,
    target,
    value,
)


@dataclass(frozen=True, slots=True)
class Item:
    id: int
    v: str | None


class Pair(NamedTuple):
    id: int
    v: str | None


def append(database: Database) -> Sink[Any]:
    return database.append("t")


def replace_t(database: Database) -> Sink[Any]:
    return database.replace("t")


def upsert(database: Database) -> Sink[Any]:
    return database.upsert("t", key=("id",))


def counted(database: Database) -> Sink[Any]:
    return database.upsert("t", key=("id",), add=("n",))


ITEM = shape_of(Item, key=("id",))
TRIGGER = (
    "CREATE TABLE t (id, v); CREATE TRIGGER g BEFORE INSERT ON t WHEN new.id = 2"
    " BEGIN SELECT RAISE({}); END"
)


async def test_a_new_file_is_private_and_in_wal_mode(sqlite_url: str) -> None:
    async with target(sqlite_url):
        pass
    assert stat.S_IMODE(Path(path_of(sqlite_url)).stat().st_mode) == 0o600
    assert value(sqlite_url, "PRAGMA journal_mode") == "wal"
    assert value(sqlite_url, "SELECT count(*) FROM etl_checkpoint") == 0
    assert [path.name for path in Path(path_of(sqlite_url)).parent.iterdir()] == ["test.db"]


async def test_a_target_needs_its_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; make it"):
        async with target(f"sqlite:///{tmp_path}/no/x.db"):
            pass


@pytest.mark.parametrize("kind", [Item, Pair, lambda id, v: {"v": v, "id": id}])
async def test_rows_of_each_kind_are_written_by_name(
    sqlite_url: str, kind: Callable[..., Any]
) -> None:
    script(sqlite_url, "CREATE TABLE t (other DEFAULT 7, V TEXT, id INTEGER PRIMARY KEY)")
    async with lane(sqlite_url, append) as one:
        assert await one.write([kind(id=i, v=None) for i in range(5_000)], (1,)) == 5_000
    assert value(sqlite_url, "SELECT count(*) FROM t WHERE other = 7 AND v IS NULL") == 5_000
    assert fetch(sqlite_url, "SELECT position, rows, batches, epoch FROM etl_checkpoint") == [
        ("[1]", 5_000, 1, 1)
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(1, "x")], "tuple, which does not name its columns"),
        ([5], "int, which does not name its columns"),
        ([{"id": 1, "zz": 2}], "no column 'zz'; it has id, v"),
        ([{"v": "x"}], "have no 'id', which the table"),
        ([{"id": 1, "v": 1}, {"id": 1}], "row 2 differs from the first in 'v'"),
        ([{"id": 1, "ID": 1}], "tell the columns 'id' and 'ID' apart"),
        ([Item(1, "x"), {"id": 1, "v": 1}], "several types in one batch"),
    ],
)
async def test_rows_that_do_not_fit_the_table_are_refused(
    sqlite_url: str, rows: list[Any], message: str
) -> None:
    script(sqlite_url, "CREATE TABLE t (id INT NOT NULL, v TEXT)")
    async with lane(sqlite_url, append) as one:
        with pytest.raises(SchemaMismatchError, match=message):
            await one.write(rows, (1,))
        assert await one.write([Item(1, "x")], (1,)) == 1
    assert fetch(sqlite_url, "SELECT * FROM t") == [(1, "x")]


async def test_a_missing_table_is_made_from_the_shape(sqlite_url: str) -> None:
    @dataclass
    class Wide:
        id: int
        b: bool
        f: float
        d: Decimal
        at: datetime
        raw: bytes | None

    async with lane(sqlite_url, append, shape=shape_of(Wide, key=("id",))) as one:
        at = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
        await one.write([Wide(1, True, 0.5, Decimal("1.50"), at, b"x")], (1,))
    assert fetch(sqlite_url, "SELECT name, type, \"notnull\", pk FROM pragma_table_info('t')") == [
        ("id", "INTEGER", 1, 1),
        ("b", "BOOLEAN", 1, 0),
        ("f", "REAL", 1, 0),
        ("d", "TEXT", 1, 0),
        ("at", "TEXT", 1, 0),
        ("raw", "BLOB", 0, 0),
    ]
    assert fetch(sqlite_url, "SELECT *, rowid FROM t") == [
        (1, 1, 0.5, "1.50", "2024-01-02 03:04:05+00:00", b"x", 1)
    ]


async def test_a_missing_table_without_a_shape_is_made_from_the_first_rows(
    sqlite_url: str,
) -> None:
    async with lane(sqlite_url, append) as one:
        with pytest.raises(SchemaMismatchError, match='CREATE TABLE "t"(.|\n)*"v" REAL'):
            await one.write([{"id": 1, "v": 0.5}], (1,))
        assert fetch(sqlite_url, "SELECT name FROM sqlite_schema WHERE name = 't'") == []
        await one.write([Item(1, None)], (1,))
    assert fetch(sqlite_url, "SELECT * FROM t") == [(1, None)]


async def test_create_false_refuses_a_missing_table_with_its_definition(sqlite_url: str) -> None:
    with pytest.raises(SchemaMismatchError, match='CREATE TABLE "t"'):
        async with lane(sqlite_url, lambda d: d.append("t", create=False), shape=ITEM):
            pass


@pytest.mark.parametrize("name", ["sqlite_x", "etl_checkpoint", "other.t"])
async def test_some_names_are_not_for_tables(sqlite_url: str, name: str) -> None:
    with pytest.raises(ConfigError):
        async with lane(sqlite_url, lambda d: d.append(name), shape=ITEM):
            pass


async def test_declared_types_that_are_odd_survive_a_copy(sqlite_url: str, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path}/other.db"
    script(
        other,
        """CREATE TABLE "we""ird" (
            "se""lect" INTEGER, "a b" VARCHAR(10), "from" "TEXT PRIMARY KEY", "é" DECIMAL(10, 2),
            bare, "unsigned" UNSIGNED BIG INT, PRIMARY KEY ("se""lect")
        )""",
    )
    rows = [(1, "x", "007", 1.5, b"\x00", 2**63 - 1), (2, 5, None, "1.x", 2.5, -1)]
    insert(other, '"we""ird"', rows)
    found = await read(other, ReadSpec(table='"we""ird"'))
    async with lane(sqlite_url, lambda d: d.append('"co""py"'), shape=found.shape) as one:
        for batch in found.batches:
            assert batch.position is not None
            await one.write(batch.rows, batch.position)
    assert fetch(sqlite_url, 'SELECT * FROM "co""py"') == fetch(other, 'SELECT * FROM "we""ird"')
    assert fetch(sqlite_url, "SELECT name, type, pk FROM pragma_table_info('co\"py')") == fetch(
        other, "SELECT name, type, pk FROM pragma_table_info('we\"ird')"
    )


async def test_an_upsert_keeps_the_last_row_of_a_key(sqlite_url: str) -> None:
    async with lane(sqlite_url, upsert, shape=ITEM) as one:
        assert await one.write([Item(1, "a"), Item(2, "b"), Item(1, "c")], (1,)) == 3
        await one.write([Item(2, "d"), Item(3, "e")], (2,))
    assert fetch(sqlite_url, "SELECT * FROM t") == [(1, "c"), (2, "d"), (3, "e")]


@pytest.mark.parametrize(("collation", "count"), [("NOCASE", 1), ("BINARY", 2)])
async def test_keys_that_the_table_takes_for_one_are_told(
    sqlite_url: str, collation: str, count: int
) -> None:
    script(
        sqlite_url,
        "CREATE TABLE s (k TEXT PRIMARY KEY); INSERT INTO s VALUES ('a'), ('A');"
        f" CREATE TABLE t (k TEXT PRIMARY KEY COLLATE {collation})",
    )
    database = Database(sqlite_url)
    flow = database.table("s").into(Database(sqlite_url).upsert("t", key="k"))
    report = await Pipeline("p", flow).run()
    assert len(fetch(sqlite_url, "SELECT k FROM t")) == count
    assert ("become one row: 'k' (NOCASE)" in str(report.flows[0].notes)) == (count == 1)


async def test_an_upsert_adds_columns_up(sqlite_url: str) -> None:
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, n INT, v)")
    async with lane(sqlite_url, counted) as one:
        await one.write([{"id": 1, "n": 2, "v": "a"}, {"id": 1, "n": 3, "v": "b"}], (1,))
        await one.write([{"id": 1, "n": None, "v": "c"}, {"id": 2, "n": None, "v": "d"}], (2,))
        await one.write([{"id": 2, "n": 5, "v": "e"}], (3,))
    assert fetch(sqlite_url, "SELECT * FROM t") == [(1, 5, "c"), (2, 5, "e")]


@pytest.mark.parametrize(
    ("create", "sink", "message"),
    [
        ("CREATE TABLE t (id, n)", counted, "no unique index is on exactly the key"),
        (
            "CREATE TABLE t (id, n); CREATE UNIQUE INDEX i ON t (id) WHERE n",
            counted,
            "no unique index",
        ),
        ("CREATE TABLE t (id, n, UNIQUE (id, n))", counted, "no unique index"),
        ("CREATE TABLE t (id PRIMARY KEY, n TEXT)", counted, "texts up as floating-point"),
        ("CREATE TABLE t (id PRIMARY KEY)", counted, "no column 'n'"),
        ("CREATE TABLE s (id, n); CREATE VIEW t AS SELECT * FROM s", counted, "is a view"),
    ],
)
async def test_an_upsert_into_a_table_that_cannot_serve_it_is_refused(
    sqlite_url: str, create: str, sink: Callable[[Database], Sink[Any]], message: str
) -> None:
    script(sqlite_url, create)
    with pytest.raises(SchemaMismatchError, match=message):
        async with lane(sqlite_url, sink):
            pass


async def test_an_upsert_refuses_a_key_of_none_and_an_addition_that_would_repeat(
    sqlite_url: str,
) -> None:
    script(sqlite_url, "CREATE TABLE t (id PRIMARY KEY, v)")
    async with lane(sqlite_url, upsert) as one:
        with pytest.raises(DataError, match="key column 'id' is None in row 2"):
            await one.write([{"id": 1, "v": 1}, {"id": None, "v": 1}], (1,))
    script(sqlite_url, "ALTER TABLE t ADD COLUMN n INT")
    with pytest.raises(SchemaMismatchError, match="would add its 'n' again"):
        async with lane(sqlite_url, counted, resumable=False):
            pass


@pytest.mark.parametrize(
    ("create", "row", "message"),
    [
        ("CREATE TABLE t (id INT PRIMARY KEY, v)", Item(1, "x"), "UNIQUE constraint failed: t.id"),
        ("CREATE TABLE t (id, v NOT NULL DEFAULT 1)", Item(2, None), "NOT NULL .* t.v"),
        ("CREATE TABLE t (id, v, CHECK (id < 2))", Item(2, None), "CHECK constraint"),
        (
            "CREATE TABLE p (k PRIMARY KEY); CREATE TABLE t (id INT REFERENCES p, v)",
            Item(2, None),
            "FOREIGN KEY constraint",
        ),
        (
            TRIGGER.format("IGNORE"),
            Item(2, "x"),
            "kept 0 of 1 rows; a trigger",
        ),
        (
            TRIGGER.format("ROLLBACK, 'not this'"),
            Item(2, "x"),
            "a trigger raised an error",
        ),
        ("CREATE TABLE t (id INTEGER PRIMARY KEY, v)", {"id": "x", "v": 1}, "datatype mismatch"),
        ("CREATE TABLE t (id INT, v) STRICT", {"id": "x", "v": 1}, ""),
    ],
)
async def test_a_refused_row_rolls_the_group_back(
    sqlite_url: str, create: str, row: Any, message: str
) -> None:
    if "STRICT" in create:
        create = create.replace("v)", "v ANY)")
        message = "cannot store TEXT"
    script(sqlite_url, create)
    if "REFERENCES" in create:
        script(sqlite_url, "INSERT INTO p VALUES (1)")
    async with lane(sqlite_url, append) as one:
        await one.write([Item(1, "one")], (1,))
        with pytest.raises(DataError, match=message):
            await one.write([row], (2,))
        assert fetch(sqlite_url, "SELECT * FROM t") == [(1, "one")]
        assert value(sqlite_url, "SELECT position FROM etl_checkpoint") == "[1]"


async def test_rows_of_one_transaction_may_refer_to_each_other_in_any_order(
    sqlite_url: str,
) -> None:
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, v INT REFERENCES t)")
    async with lane(sqlite_url, append) as one:
        await one.write([{"id": 1, "v": 2}, {"id": 2, "v": None}], (1,))
    assert value(sqlite_url, "SELECT count(*) FROM t") == 2


async def test_a_replaced_table_is_seen_only_when_it_is_published(sqlite_url: str) -> None:
    script(
        sqlite_url,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT, made DEFAULT 'default');"
        " CREATE INDEX i ON t (v); CREATE VIEW w AS SELECT v FROM t;"
        " CREATE TABLE child (t_id INT REFERENCES t ON DELETE CASCADE);"
        " INSERT INTO t VALUES (9, 'old', ''), (1, 'old', ''); INSERT INTO child VALUES (1)",
    )
    async with lane(sqlite_url, replace_t, shape=ITEM) as one:
        await one.write([Item(i, "new") for i in range(3_000)], (1,))
        assert fetch(sqlite_url, "SELECT v FROM t") == [("old",), ("old",)]
        await one.publish()
        assert value(sqlite_url, "SELECT count(*) FROM t WHERE made = 'default'") == 3_000
        assert value(sqlite_url, "SELECT complete FROM etl_checkpoint") == 1
        await one.publish()  # a doubtful commit is repeated
    assert value(sqlite_url, "SELECT count(*) FROM w") == 3_000
    assert value(sqlite_url, "SELECT count(*) FROM child") == 1
    assert value(sqlite_url, "SELECT count(*) FROM sqlite_schema WHERE name LIKE '%etl_new%'") == 0


async def test_the_rows_stand_in_the_file_itself_after_a_good_end(sqlite_url: str) -> None:
    """Not in the WAL beside it: somebody may copy the one file."""
    path = Path(path_of(sqlite_url))
    flow = MemorySource([Item(1, "new")]).into(Database(sqlite_url).replace("t"))
    await Pipeline("p", flow).run()  # the table is made, and put in place
    assert not path.with_name(f"{path.name}-wal").exists()


async def test_a_replaced_table_that_is_missing_is_made_whatever_refers_to_it(
    sqlite_url: str,
) -> None:
    script(
        sqlite_url,
        "CREATE VIEW w AS SELECT v FROM t; CREATE TABLE child (t_id INT REFERENCES t);"
        " INSERT INTO child VALUES (7)",
    )
    async with lane(sqlite_url, replace_t, shape=ITEM) as one:
        await one.write([Item(1, "a")], (1,))
        await one.publish()
    assert fetch(sqlite_url, "SELECT * FROM w") == [("a",)]
    assert value(sqlite_url, "SELECT sql FROM sqlite_schema WHERE name = 'child'").endswith(
        "REFERENCES t)"
    )


async def test_publishing_that_would_orphan_rows_is_refused(sqlite_url: str) -> None:
    script(
        sqlite_url,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v); INSERT INTO t VALUES (1, 'old');"
        " CREATE TABLE child (t_id INT REFERENCES t); INSERT INTO child VALUES (1)",
    )
    async with lane(sqlite_url, replace_t, shape=ITEM) as one:
        await one.write([Item(2, "new")], (1,))
        with pytest.raises(DataError, match="leave 1 rows of 'child' without the row"):
            await one.publish()
    assert fetch(sqlite_url, "SELECT * FROM t") == [(1, "old")]


async def test_rows_that_cannot_be_put_in_place_stay_and_what_to_do_is_said(
    sqlite_url: str,
) -> None:
    script(
        sqlite_url,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT CHECK (v <> 'bad'));"
        " INSERT INTO t VALUES (9, 'old')",
    )
    async with lane(sqlite_url, replace_t, shape=ITEM) as one:
        await one.write([Item(1, "bad")], (1,))
        with pytest.raises(DataError, match=r"^table 't' refuses .*what was loaded stays.*--full"):
            await one.publish()
    assert fetch(sqlite_url, "SELECT id FROM t") == [(9,)]
    async with lane(sqlite_url, replace_t, shape=ITEM, fresh=True) as one:
        await one.write([Item(1, "good")], (1,))
        await one.publish()
    assert fetch(sqlite_url, "SELECT id FROM t") == [(1,)]


async def test_an_unfinished_replacement_goes_on_and_a_finished_one_starts_anew(
    sqlite_url: str,
) -> None:
    async with lane(sqlite_url, replace_t, shape=ITEM) as one:
        await one.write([Item(1, "a")], (1,))
    async with lane(sqlite_url, replace_t, shape=ITEM) as one:
        assert one.position == (1,)
        await one.write([Item(2, "b")], (2,))
        await one.publish()
    assert fetch(sqlite_url, "SELECT * FROM t") == [(1, "a"), (2, "b")]
    async with lane(sqlite_url, replace_t, shape=ITEM) as one:
        assert one.position is None
        await one.write([Item(3, "c")], (3,))
    script(sqlite_url, f'DROP TABLE "{staging_name("t__etl_new", "p", "f")}"')
    async with lane(sqlite_url, replace_t, shape=ITEM) as one:
        assert one.position is None  # the staged rows are gone, so they are read again
        await one.write([Item(4, "d")], (4,))
    async with lane(sqlite_url, replace_t, shape=ITEM, fresh=True) as one:
        assert one.position is None
        await one.publish()
    assert fetch(sqlite_url, "SELECT * FROM t") == []


@pytest.mark.parametrize("exists", [False, True])
async def test_a_read_that_cannot_resume_is_appended_at_the_end(
    sqlite_url: str, exists: bool
) -> None:
    if exists:
        script(sqlite_url, "CREATE TABLE t (id INT, v TEXT); INSERT INTO t VALUES (0, 'there')")
    shape = Shape(columns=ITEM.columns)
    for _ in range(2):  # the first try is cut short
        async with lane(sqlite_url, append, shape=shape, resumable=False, fresh=True) as one:
            await one.write([Item(1, "a"), Item(1, "a")], (1,))
            if exists:
                assert value(sqlite_url, "SELECT count(*) FROM t") == 1
    async with lane(sqlite_url, append, shape=shape, resumable=False, fresh=True) as one:
        await one.write([Item(1, "a"), Item(1, "a")], (1,))
        await one.publish()
    there = [(0, "there")] if exists else []
    assert fetch(sqlite_url, "SELECT * FROM t") == [*there, (1, "a"), (1, "a")]


async def test_rows_without_a_known_shape_are_staged_too(sqlite_url: str) -> None:
    script(sqlite_url, "CREATE TABLE t (id INT, made DEFAULT 'default', v TEXT)")
    async with lane(sqlite_url, replace_t) as one:
        await one.write([{"v": "x", "id": 1}], (1,))
        await one.publish()
    assert fetch(sqlite_url, "SELECT * FROM t") == [(1, "default", "x")]
    async with lane(sqlite_url, replace_t) as one:  # no rows at all
        await one.publish()
    assert fetch(sqlite_url, "SELECT * FROM t") == []


async def test_a_take_over_fences_the_older_run(sqlite_url: str) -> None:
    async with lane(sqlite_url, append, shape=ITEM) as old:
        await old.write([Item(1, "a")], (1,))
        async with lane(sqlite_url, append, shape=ITEM) as new:
            assert new.position == (1,)
            with pytest.raises(FencedError):
                await old.write([Item(2, "zombie")], (2,))
            await new.write([Item(2, "b")], (2,))
            with pytest.raises(FencedError):
                await old.publish()
    assert fetch(sqlite_url, "SELECT * FROM t") == [(1, "a"), (2, "b")]


async def test_two_runs_of_one_pipeline_do_not_start_together(sqlite_url: str) -> None:
    info = replace(INFO, holder=this_process("run"))
    async with target(sqlite_url, info):
        with pytest.raises(AlreadyRunningError, match="already running: process"):
            async with target(sqlite_url, info):
                pass
        async with target(sqlite_url, replace(info, pipeline="other")):
            pass
        async with target(sqlite_url, replace(info, take_over=True)):
            pass
    async with target(sqlite_url, info):
        pass


async def test_two_flows_cannot_replace_one_table(sqlite_url: str) -> None:
    sink = Database(sqlite_url).replace("t")
    async with target(sqlite_url) as opened:
        one, other = await opened.session("f", [sink]), await opened.session("g", [sink])
        await one.prepare([ITEM], resumable=True)
        with pytest.raises(ConfigError, match="flows 'f' and 'g' both replace"):
            await other.prepare([ITEM], resumable=True)


async def test_a_target_that_changes_in_mid_run_is_looked_at_again(sqlite_url: str) -> None:
    script(sqlite_url, "CREATE TABLE t (id INT, v TEXT)")
    async with lane(sqlite_url, append) as one:
        await one.write([{"id": 1, "v": "007"}], (1,))
        script(sqlite_url, "DROP TABLE t; CREATE TABLE t (v INT, id TEXT)")
        with pytest.raises(DataError, match="column 'v' .INT.*looks like a number"):
            await one.write([{"id": 2, "v": "008"}], (2,))
        await one.write([{"id": 2, "v": "x"}], (2,))
        script(sqlite_url, "ALTER TABLE t DROP COLUMN v")
        with pytest.raises(SchemaMismatchError, match="no column 'v'"):
            await one.write([{"id": 3, "v": "x"}], (3,))
    assert fetch(sqlite_url, "SELECT * FROM t") == [("2",)]


async def test_computed_columns_are_left_to_sqlite(sqlite_url: str) -> None:
    script(sqlite_url, "CREATE TABLE t (id INT, v TEXT AS (id || '!'))")
    async with lane(sqlite_url, append, shape=ITEM) as one:
        await one.write([Item(1, "ignored")], (1,))
    assert fetch(sqlite_url, "SELECT * FROM t") == [(1, "1!")]


async def test_a_lock_of_another_process_is_waited_for_then_a_passing_condition(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lane(sqlite_url, append, shape=ITEM) as one:
        monkeypatch.setattr("etl.databases.sqlite.connection.LOCK_WAIT_S", 0.2)
        other = await holding(path_of(sqlite_url), "BEGIN IMMEDIATE")
        with pytest.raises(TargetUnavailableError, match="locked by another connection"):
            await one.write([Item(1, "a")], (1,))
        monkeypatch.undo()
        waiting = asyncio.create_task(one.write([Item(1, "a")], (1,)))
        await asyncio.sleep(0.1)
        other.kill()
        await other.wait()
        assert await waiting == 1


async def test_lanes_of_one_file_take_turns(sqlite_url: str) -> None:
    script(sqlite_url, "CREATE TABLE t (id INT, v TEXT)")
    async with target(sqlite_url) as opened:
        lanes: list[Lane] = []
        for number in range(4):
            sink = Database(sqlite_url).append("t")
            session = await opened.session(f"f{number}", [sink])
            one = Lane(opened, session, [sink])  # type: ignore[arg-type]
            one.key = replace(one.key, flow=f"f{number}")
            await session.prepare([None], resumable=True)
            await one.take_over()
            lanes.append(one)
        order: list[int] = []

        async def run(number: int) -> None:
            for step in range(10):
                await lanes[number].write([Item(number, str(step))] * 50, (step,))
                order.append(number)

        await asyncio.gather(*map(run, range(4)))
    assert value(sqlite_url, "SELECT count(*) FROM t") == 4 * 10 * 50
    assert order == [0, 1, 2, 3] * 10  # first come, first served


async def test_the_state_is_shown_set_and_reset(sqlite_url: str) -> None:
    url = parse_url(sqlite_url)
    with pytest.raises(ConfigError, match="no such file"):
        async with sqlite.open_state(url):
            pass
    script(sqlite_url, "CREATE TABLE mine (a)")
    async with sqlite.open_state(url) as state:
        assert await state.states() == []
    assert fetch(sqlite_url, "SELECT name FROM sqlite_schema") == [("mine",)]
    async with lane(sqlite_url, replace_t, shape=ITEM) as one:
        await one.write([Item(1, "a")], (1, "x"))
        key = one.key
        async with sqlite.open_state(url) as state:
            (found,) = await state.states("p")
            assert (found.key, found.checkpoint.position) == (key, (1, "x"))
            assert await state.states("other") == []
            await state.set_position(key, (5,))
            with pytest.raises(FencedError):
                await one.write([Item(2, "a")], (2,))
            with pytest.raises(ConfigError, match="has no checkpoint"):
                await state.set_position(replace(key, flow="zz"), None)
            await state.reset([key])
            assert await state.states() == []
    assert value(sqlite_url, "SELECT count(*) FROM sqlite_schema WHERE name LIKE 't%'") == 0


async def test_tables_are_listed_without_those_of_etl(sqlite_url: str) -> None:
    script(
        sqlite_url,
        "CREATE TABLE b (id INTEGER PRIMARY KEY AUTOINCREMENT, v TEXT); CREATE TABLE a (x, y);"
        " CREATE VIEW w AS SELECT 1; CREATE VIRTUAL TABLE f USING fts5(x)",
    )
    async with lane(sqlite_url, replace_t, shape=ITEM) as one:
        await one.write([Item(1, "a")], (1,))
        found = await sqlite.list_tables(parse_url(sqlite_url))
    assert [info.name for info in found] == ["a", "b", "f", "w"]
    assert [info.kind for info in found] == ["table", "table", "table", "view"]
    assert found[1].shape.key == ("id",)
    assert found[1].shape.names == ("id", "v")


async def test_a_check_finds_what_is_wrong(sqlite_url: str, tmp_path: Path) -> None:
    found = await sqlite.check(parse_url(sqlite_url))
    assert {finding.state for finding in found} == {"ok"}
    assert not Path(path_of(sqlite_url)).exists()
    async with target(sqlite_url):
        pass
    found = await sqlite.check(parse_url(sqlite_url))
    assert {finding.state for finding in found} == {"ok"}
    broken = tmp_path / "broken.db"
    broken.write_bytes(b"no database" * 1_000)
    found = await sqlite.check(parse_url(f"sqlite:///{broken}"))
    assert any(finding.state == "error" for finding in found)
    found = await sqlite.check(parse_url(f"sqlite:///{tmp_path}/no/x.db"))
    assert [finding.state for finding in found] == ["error"]


async def test_a_damaged_file_is_refused(sqlite_url: str) -> None:
    path = Path(path_of(sqlite_url))
    path.write_text("no database at all " * 100)
    with pytest.raises(ConfigError, match="not a SQLite database"):
        async with target(sqlite_url):
            pass
    assert path.read_text() == "no database at all " * 100


async def test_a_damaged_position_is_refused(sqlite_url: str) -> None:
    async with lane(sqlite_url, append, shape=ITEM) as one:
        await one.write([Item(1, "a")], (1,))
    script(sqlite_url, "UPDATE etl_checkpoint SET position = '{\"a\": 1}'")
    with pytest.raises(ConfigError, match="position in etl_checkpoint is damaged"):
        async with lane(sqlite_url, append, shape=ITEM):
            pass


async def test_a_doubtful_commit_is_settled_by_the_checkpoint(sqlite_url: str) -> None:
    async with lane(sqlite_url, append, shape=ITEM) as one:
        await one.write([Item(1, "a")], (1,))
        await one.session.begin()
        await one.session.write(0, [])
        await one.session.advance([one.step((2,))])
        await one.session.rollback()
        found = await one.session.settle([one.key])
        assert found[one.key].position == (1,)
        assert await one.write([Item(2, "b")], (2,)) == 1


async def test_columns_of_postgresql_types_are_declared_without_loss(sqlite_url: str) -> None:
    def column(name: str, kind: Any) -> Column:
        return Column(name=name, type=Type(kind=kind, name=kind, dialect="postgresql"))

    kinds = ["bool", "int16", "float32", "numeric", "timestamptz", "json", "bytes", "other"]
    shape = Shape(columns=tuple(column(kind, kind) for kind in kinds))
    async with lane(sqlite_url, append, shape=shape):
        pass
    assert [row[0] for row in fetch(sqlite_url, "SELECT type FROM pragma_table_info('t')")] == [
        "BOOLEAN", "INTEGER", "REAL", "TEXT", "TEXT", "TEXT", "BLOB", "TEXT",
    ]  # fmt: skip
