"""Reading from SQLite: order, resumption, sizes of batches, profiles, and what is refused."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from etl.batch import Batch
from etl.databases import sqlite
from etl.databases.database import ReadSpec
from etl.databases.sqlite.reader import SqliteReader
from etl.databases.url import parse_url
from etl.errors import ConfigError, DataError, SchemaMismatchError, SourceUnavailableError
from tests.integration.sqlite_kit import INFO, fetch, holding, insert, path_of, read, script, stored

ITEMS = """
CREATE TABLE items (a TEXT, b INTEGER, v TEXT, PRIMARY KEY (a, b));
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
INSERT INTO items SELECT char(65 + i % 3) || char(9, 246), i, printf('%.*c', i % 40, 'x') FROM n;
"""


async def test_a_read_comes_in_key_order_in_bounded_batches(sqlite_url: str) -> None:
    script(sqlite_url, ITEMS)
    found = await read(sqlite_url, ReadSpec(table="items"))
    assert found.tuples == fetch(sqlite_url, "SELECT * FROM items ORDER BY a, b")
    assert found.resumable
    assert found.shape.key == ("a", "b")
    assert max(len(batch.rows) for batch in found.batches) <= 100
    assert all(batch.nbytes < 20_000 for batch in found.batches)


@pytest.mark.parametrize("batch_rows", [1, 7])
async def test_a_read_resumes_after_each_position_that_it_gave(
    sqlite_url: str, batch_rows: int
) -> None:
    script(sqlite_url, ITEMS)
    info = replace(INFO, batch_rows=batch_rows)
    spec = ReadSpec(table="items")
    whole = await read(sqlite_url, spec, info=info)
    rows = whole.tuples
    seen = 0
    for number, batch in enumerate(whole.batches):
        seen += len(batch.rows)
        if number % 11 == 0:
            rest = await read(sqlite_url, spec, stored(batch.position))
            assert rest.tuples == rows[seen:]
            head = await read(sqlite_url, spec, None, stored(batch.position))
            assert head.tuples == rows[:seen]


async def test_keys_of_every_class_resume_exactly(sqlite_url: str) -> None:
    script(sqlite_url, "CREATE TABLE t (k PRIMARY KEY NOT NULL, v)")
    keys = [
        -(2**63), -1.5, -0.1, 0, 1e-300, 0.1, 1, 2**53 + 1, 2**63 - 1, 1e300, float("inf"),
        "", "a", "a\x00b", "ä", "😀", b"", b"\x00", b"\xff",
    ]  # fmt: skip
    insert(sqlite_url, "t", [(key, i) for i, key in enumerate(keys)])
    info = replace(INFO, batch_rows=1)
    whole = await read(sqlite_url, ReadSpec(table="t"), info=info)
    assert whole.column("k") == keys
    for number, batch in enumerate(whole.batches):
        assert hash(batch.position) is not None
        rest = await read(sqlite_url, ReadSpec(table="t"), stored(batch.position))
        assert rest.column("k") == keys[number + 1 :]


@pytest.mark.parametrize(
    "create",
    [
        "CREATE TABLE t (k COLLATE NOCASE, v INT); CREATE UNIQUE INDEX i ON t (k COLLATE BINARY)",
        "CREATE TABLE t (k TEXT PRIMARY KEY, v INT) WITHOUT ROWID",
        "CREATE TABLE t (k TEXT PRIMARY KEY NOT NULL, v INT) STRICT",
        'CREATE TABLE t (k TEXT COLLATE "RTRIM" PRIMARY KEY, v INT)',
    ],
)
async def test_the_order_is_that_of_the_unique_index(sqlite_url: str, create: str) -> None:
    script(sqlite_url, create)
    names = ["b", "B", "a", "A", "c", "C"]
    insert(sqlite_url, "t", [(name, i) for i, name in enumerate(names)])
    info = replace(INFO, batch_rows=1)
    whole = await read(sqlite_url, ReadSpec(table="t", key=("k",)), info=info)
    assert sorted(whole.column("k")) == sorted(names)
    for number, batch in enumerate(whole.batches):
        rest = await read(sqlite_url, ReadSpec(table="t", key=("k",)), batch.position)
        assert rest.column("k") == whole.column("k")[number + 1 :]


@pytest.mark.parametrize(
    "source", ["CREATE TABLE t (a, b)", "CREATE TABLE s (a, b); CREATE VIEW t AS SELECT * FROM s"]
)
async def test_without_a_key_a_read_is_whole_and_not_resumable(
    sqlite_url: str, source: str
) -> None:
    script(sqlite_url, source)
    table = "s" if "VIEW" in source else "t"
    insert(sqlite_url, table, [(i % 3, None) for i in range(250)])
    found = await read(sqlite_url, ReadSpec(table="t"))
    assert len(found.rows) == 250
    assert not found.resumable
    assert [batch.position for batch in found.batches][-1] == (250,)
    assert any("no primary key" in note for note in found.notes)


@pytest.mark.parametrize("keyed", [True, False])
async def test_large_values_come_alone_also_after_small_ones(sqlite_url: str, keyed: bool) -> None:
    script(sqlite_url, f"CREATE TABLE t (id INTEGER {'PRIMARY KEY' if keyed else ''}, v)")
    sizes = [10] * 250 + [1_000_000] * 20 + [10] * 250
    insert(sqlite_url, "t", [(i, b"x" * size) for i, size in enumerate(sizes)])
    found = await read(sqlite_url, ReadSpec(table="t"), info=replace(INFO, batch_bytes=100_000))
    assert found.column("id") == list(range(520))
    assert list(map(len, found.column("v"))) == sizes
    assert max(sum(len(row["v"]) for row in batch.rows) for batch in found.batches) < 1_200_000


async def test_a_read_is_of_one_instant(sqlite_url: str) -> None:
    script(sqlite_url, "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, v)")
    insert(sqlite_url, "t", [(i, "old" * 50) for i in range(5_000)])
    seen: list[Any] = []

    async def emit(batch: Batch[Any]) -> None:
        if not seen:
            script(sqlite_url, "UPDATE t SET v = 'new'; INSERT INTO t VALUES (10000, 'new')")
        seen.extend(row["v"][:3] for row in batch.rows)

    async with sqlite.open_reader(parse_url(sqlite_url), ReadSpec(table="t"), INFO) as reader:
        await reader.pump(None, None, emit)
        assert seen == ["old"] * 5_000
        seen.append("again")
        await reader.pump((4_999,), None, emit)
    assert seen[-1] == "new"


async def test_a_query_is_read_in_key_order_with_declared_types(sqlite_url: str) -> None:
    script(sqlite_url, ITEMS)
    spec = ReadSpec(query="SELECT b AS n, v FROM items WHERE b > 10 -- odd", key=("n",))
    found = await read(sqlite_url, spec)
    assert found.column("n") == list(range(11, 501))
    assert [column.type.name for column in found.shape.columns] == ["INTEGER", "TEXT"]
    rest = await read(sqlite_url, spec, (400,))
    assert rest.column("n") == list(range(401, 501))


@pytest.mark.parametrize(
    ("query", "key", "message"),
    [
        ("SELECT a FROM items", "a", "same key"),
        ("SELECT CASE WHEN b > 3 THEN b END AS a FROM items", "a", "NULL in 3 rows"),
        ("SELECT b FROM items", "zz", "no column 'zz'"),
        ("DELETE FROM items", "a", "syntax error"),
        ("SELECT 1 AS a; DELETE FROM items", "a", "one statement at a time"),
        ("SELECT * FROM missing", "a", "no such table"),
    ],
)
async def test_a_query_that_cannot_be_read_is_refused(
    sqlite_url: str, query: str, key: str, message: str
) -> None:
    script(sqlite_url, ITEMS)
    with pytest.raises((DataError, SchemaMismatchError), match=message):
        await read(sqlite_url, ReadSpec(query=query, key=(key,)))
    assert fetch(sqlite_url, "SELECT count(*) FROM items") == [(500,)]


@pytest.mark.parametrize(
    ("create", "spec", "message"),
    [
        ("", ReadSpec(table="t"), "has no table 't'; it has none"),
        ("CREATE TABLE u (a)", ReadSpec(table="t"), "has no table 't'; it has 'u'"),
        ("CREATE TABLE t (a)", ReadSpec(table="x.t"), "no schema 'x'"),
        ("CREATE TABLE t (a)", ReadSpec(table="t", key=("a",)), "no unique index"),
        ("CREATE TABLE t (a)", ReadSpec(table="t", key=("b",)), "has no column 'b'; it has 'a'"),
        ("CREATE TABLE t (a)", ReadSpec(table="t", cursor=("a",)), "no primary key"),
        (
            "CREATE TABLE t (a PRIMARY KEY); INSERT INTO t VALUES (NULL), (1)",
            ReadSpec(table="t"),
            "key column 'a' is NULL in 1 rows",
        ),
        (
            "CREATE TABLE t (id INTEGER PRIMARY KEY, c INT); INSERT INTO t VALUES (1, NULL)",
            ReadSpec(table="t", cursor=("c",)),
            "cursor column 'c' is NULL in 1 rows",
        ),
        (
            "CREATE TABLE t (id INTEGER PRIMARY KEY, c REAL)",
            ReadSpec(table="t", cursor=("c",)),
            "floating-point",
        ),
        (
            "CREATE TABLE t (id INTEGER PRIMARY KEY, c); INSERT INTO t VALUES (1, 1.5)",
            ReadSpec(table="t", cursor=("c",)),
            "floating-point",
        ),
        (
            "CREATE TABLE t (a); CREATE UNIQUE INDEX i ON t (a) WHERE a > 1",
            ReadSpec(table="t", key=("a",)),
            "no unique index",
        ),
        (
            "CREATE TABLE s (a); CREATE VIEW t AS SELECT a FROM s",
            ReadSpec(table="t", cursor=("a",)),
            "name the unique columns with key=",
        ),
        ("CREATE VIEW t AS SELECT * FROM gone", ReadSpec(table="t"), "no such table"),
        (
            "CREATE TABLE t (id INTEGER PRIMARY KEY, c TEXT); INSERT INTO t VALUES (1, 'v1')",
            ReadSpec(table="t", cursor=("c",), settle=timedelta(seconds=1)),
            "settle= needs times",
        ),
        (
            "CREATE TABLE t (id INTEGER PRIMARY KEY, c); INSERT INTO t VALUES (1, 7), (2, 'v')",
            ReadSpec(table="t", cursor=("c",)),
            "values of several kinds",
        ),
        (
            "CREATE TABLE t (id PRIMARY KEY, c); INSERT INTO t VALUES (1, '2024-01-01'), (2, 'x')",
            ReadSpec(table="t", cursor=("c",)),
            "values of several kinds",
        ),
    ],
)
async def test_what_cannot_be_read_in_order_is_refused_in_a_sentence(
    sqlite_url: str, create: str, spec: ReadSpec, message: str
) -> None:
    script(sqlite_url, create + "; PRAGMA user_version = 1")
    with pytest.raises(ConfigError, match=message):
        await read(sqlite_url, spec)


async def test_a_cursor_reads_what_is_new_with_its_ties(sqlite_url: str) -> None:
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, c INT NOT NULL)")
    insert(sqlite_url, "t", [(i, i // 50) for i in range(500)])
    spec = ReadSpec(table="t", cursor=("c",))
    whole = await read(sqlite_url, spec)
    assert whole.column("id") == list(range(500))
    assert whole.batches[-1].position == (9, 499)
    assert (await read(sqlite_url, spec, (9, 499))).rows == []
    insert(sqlite_url, "t", [(1_000, 9), (1_001, 20)])
    assert (await read(sqlite_url, spec, (9, 499))).column("id") == [1_000, 1_001]
    assert any("no index serves the cursor" in note for note in whole.notes)


async def test_a_table_that_ends_before_the_position_is_told(sqlite_url: str) -> None:
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (1), (7)")
    spec = ReadSpec(table="t", cursor=("id",))
    same = await read(sqlite_url, spec, (7,))
    assert not any("below the saved position" in note for note in same.notes)
    script(sqlite_url, "DELETE FROM t WHERE id = 7")
    lower = await read(sqlite_url, spec, (7,))
    assert any("below the saved position" in note for note in lower.notes)


async def test_text_times_of_the_present_second_are_left_for_the_next_run(sqlite_url: str) -> None:
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, at TEXT NOT NULL)")
    now = datetime.now(UTC)
    times = [now - timedelta(hours=1), now - timedelta(seconds=40), now + timedelta(seconds=30)]
    insert(sqlite_url, "t", [(i, at.strftime("%Y-%m-%d %H:%M:%S")) for i, at in enumerate(times)])
    found = await read(sqlite_url, ReadSpec(table="t", cursor=("at",)))
    assert found.column("id") == [0, 1]
    assert not any("later than now" in note for note in found.notes)
    spec = ReadSpec(table="t", cursor=("at",), settle=timedelta(minutes=5))
    assert (await read(sqlite_url, spec)).column("id") == [0]
    insert(sqlite_url, "t", [(9, (now + timedelta(days=2)).strftime("%Y-%m-%d %H:%M:%S"))])
    (note,) = [one for one in (await read(sqlite_url, spec)).notes if "later than now" in one]
    assert "later than now: 1. Each is left out until then, in UTC" in note


@dataclass(frozen=True, slots=True)
class Person:
    id: int
    name: str | None
    born: date
    seen: datetime
    balance: Decimal
    active: bool
    key: UUID
    tags: list[str]


PEOPLE = """
CREATE TABLE people (
    extra, name TEXT, id INTEGER PRIMARY KEY, born DATE, seen DATETIME, balance DECIMAL(10,2),
    active BOOLEAN, key UUID, tags JSON
);
INSERT INTO people VALUES
    (1, 'Ada', 1, '1815-12-10', '2024-01-02 03:04:05', 1.5, 1,
     '12345678-1234-1234-1234-123456789abc', '["a"]'),
    (1, NULL, 2, '1815-12-10', '2024-01-02T03:04:05.5+02:00', '12.30', 0,
     '12345678-1234-1234-1234-123456789abc', '[]');
"""


async def test_rows_become_a_dataclass(sqlite_url: str) -> None:
    script(sqlite_url, PEOPLE)
    found = await read(sqlite_url, ReadSpec(table="people", row=Person))
    key = UUID("12345678-1234-1234-1234-123456789abc")
    born = date(1815, 12, 10)
    assert found.rows == [
        Person(
            1,
            "Ada",
            born,
            datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC),
            Decimal("1.5"),
            True,
            key,
            ["a"],
        ),  # fmt: skip
        Person(
            2,
            None,
            born,
            datetime(2024, 1, 2, 1, 4, 5, 500000, tzinfo=UTC),
            Decimal("12.3"),
            False,
            key,
            [],
        ),  # fmt: skip
    ]
    assert found.shape.key == ("id",)
    assert found.batches[-1].position == (2,)


@pytest.mark.parametrize(
    ("column", "bad", "why"),
    [
        ("name", "x'00'", "a blob, not text"),
        ("born", "'2024-02-30'", "not a date"),
        ("born", "NULL", "NULL"),
        ("seen", "5", "not text"),
        ("balance", "'1_0'", "not a number"),
        ("active", "2", "not 0 or 1"),
        ("active", "'t'", "not 0 or 1"),
        ("key", "'x'", "not a UUID"),
        ("key", "' 2345678-1234-5678-1234-567812345678'", "not a UUID"),
        ("key", "'1_345678-1234-5678-1234-567812345678'", "not a UUID"),
        ("tags", "'{}'", "not a list"),
    ],
)
async def test_a_value_that_does_not_fit_the_dataclass_is_named_by_key(
    sqlite_url: str, column: str, bad: str, why: str
) -> None:
    script(sqlite_url, PEOPLE + f"UPDATE people SET {column} = {bad} WHERE id = 2")
    with pytest.raises(DataError, match=why) as refused:
        await read(sqlite_url, ReadSpec(table="people", row=Person))
    assert refused.value.column == column
    assert "id=2" in str(refused.value)


@dataclass(frozen=True)
class Shift:
    id: int
    length: timedelta
    pay: Decimal


@pytest.mark.parametrize(
    ("length", "pay", "why"),
    [
        ("P9999999999DT0.000000S", "1", "not a duration"),
        ("P1DT0.000000S", "1e99999999999999999999", "exponent that Decimal cannot hold"),
    ],
)
async def test_a_text_that_python_cannot_hold_is_named_by_key(
    sqlite_url: str, length: str, pay: str, why: str
) -> None:
    script(
        sqlite_url,
        "CREATE TABLE shifts (id INTEGER PRIMARY KEY, length TEXT NOT NULL, pay TEXT NOT NULL)",
    )
    insert(sqlite_url, "shifts", [(1, "P1DT0.000000S", "1"), (2, length, pay)])
    with pytest.raises(DataError, match=f"id=2.*{why}"):
        await read(sqlite_url, ReadSpec(table="shifts", row=Shift))


async def test_a_dataclass_field_without_a_column_is_refused_with_the_columns(
    sqlite_url: str,
) -> None:
    script(sqlite_url, "CREATE TABLE people (id INTEGER PRIMARY KEY, naem TEXT)")
    with pytest.raises(SchemaMismatchError, match="'name'.*it has 'id', 'naem'"):
        await read(sqlite_url, ReadSpec(table="people", row=Person))


async def test_a_text_that_is_not_utf8_is_named_by_column_and_key(sqlite_url: str) -> None:
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT, w BLOB)")
    insert(sqlite_url, "t", [(i, "ok", b"\xff") for i in range(300)])
    script(sqlite_url, "UPDATE t SET v = CAST(x'73656372657441ff' AS TEXT) WHERE id = 222")
    with pytest.raises(DataError, match="column 'v' of the row with id=222") as refused:
        await read(sqlite_url, ReadSpec(table="t"))
    with closing(sqlite3.connect(path_of(sqlite_url), timeout=0)) as writer:
        writer.execute("CREATE TABLE more (a)")  # who holds the error locks nothing
    seen: BaseException | None = refused.value
    while seen is not None:  # nor does anything in the chain quote the value
        assert "secret" not in str(seen)
        seen = seen.__cause__ or seen.__context__
    # Everything before it can be read and the connection is not stuck.
    assert len((await read(sqlite_url, ReadSpec(table="t"), None, (221,))).rows) == 222


@pytest.mark.parametrize(
    ("declared", "values", "kind"),
    [
        ("INTEGER", [1, 2**63 - 1, None], "int64"),
        ("BOOLEAN", [0, 1, None], "bool"),
        ("BOOLEAN", [0, 2], "int64"),
        ("REAL", [1, 2.5], "float64"),
        ("", [1, 2.5], "float64"),
        ("", [2**53 + 1, 2.5], "numeric"),
        ("DECIMAL(10,2)", [1, 2.5], "numeric"),
        ("DECIMAL(10,2)", ["x", 2.5], "dynamic"),
        ("DECIMAL(10,2)", [], "numeric"),
        ("INTEGER", ["abc"], "text"),
        ("INTEGER", ["abc", 1], "dynamic"),
        ("TEXT", ["a", b"x"], "dynamic"),
        ("", [b"x", None], "bytes"),
        ("", [], "text"),
        ("BLOB", [], "bytes"),
        ("DATE", ["2024-02-29", None], "date"),
        ("DATE", ["2024-02-30"], "text"),
        ("DATETIME", ["2024-02-29 10:00:00", "2024-02-29T10:00"], "timestamp"),
        ("TIMESTAMP", ["2024-02-29 10:00:00Z"], "timestamptz"),
        ("TIMESTAMP", ["2024-02-29 10:00:00Z", "2024-02-29 10:00:00"], "text"),
        ("TEXT", ["2024-02-29"], "text"),
        ("TIME", ["10:00", "23:59:59.5"], "time"),
        ("TIME", ["24:00:00"], "text"),
        ("JSON", ['{"a": [1]}', "[]"], "json"),
        ("JSON", ["{"], "text"),
        ("JSON", ['["\\u0000"]'], "text"),
        ("UUID", ["12345678-1234-1234-1234-123456789abc"], "uuid"),
        ("UUID", ["12345678"], "int64"),  # NUMERIC affinity has made it a number
    ],
)
async def test_a_profile_settles_what_a_column_is(
    sqlite_url: str, declared: str, values: list[Any], kind: str
) -> None:
    script(sqlite_url, f"CREATE TABLE t (id INTEGER PRIMARY KEY, v {declared})")
    if values:
        insert(sqlite_url, "t", list(enumerate(values)))
    async with sqlite.open_reader(parse_url(sqlite_url), ReadSpec(table="t"), INFO) as reader:
        assert isinstance(reader, SqliteReader)
        assert reader.shape is not None
        assert [column.type.kind for column in reader.shape.columns] == ["int64", "dynamic"]
        assert (await reader.profile()).columns[1].type.kind == kind


async def test_a_missing_file_is_refused_and_not_made(sqlite_url: str) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        await read(sqlite_url, ReadSpec(table="t"))
    assert not Path(path_of(sqlite_url)).exists()


async def test_odd_paths_and_other_files(tmp_path: Path) -> None:
    odd = tmp_path / "a ?#%41&mode=rw ä.db"
    url = "sqlite:///" + str(odd).replace("%", "%25").replace("?", "%3F")
    script(url, "CREATE TABLE t (id INTEGER PRIMARY KEY); INSERT INTO t VALUES (1)")
    assert odd.exists()
    assert (await read(url, ReadSpec(table="t"))).tuples == [(1,)]
    other = tmp_path / "text.db"
    other.write_text("this is no database, whatever its name says" * 100)
    with pytest.raises(ConfigError, match="not a SQLite database"):
        await read(f"sqlite:///{other}", ReadSpec(table="t"))
    with pytest.raises(ConfigError, match="is a directory"):
        await read(f"sqlite:///{tmp_path}", ReadSpec(table="t"))
    with pytest.raises(ConfigError, match="does not exist; make it"):
        await read(f"sqlite:///{tmp_path}/no/x.db", ReadSpec(table="t"))


async def test_a_source_that_is_locked_for_long_is_a_passing_condition(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("etl.databases.sqlite.connection.LOCK_WAIT_S", 0.2)
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY)")
    locker = await holding(path_of(sqlite_url), "BEGIN EXCLUSIVE")
    try:
        with pytest.raises(SourceUnavailableError, match="locked by another connection"):
            await read(sqlite_url, ReadSpec(table="t"))
    finally:
        locker.kill()
        await locker.wait()
    assert (await read(sqlite_url, ReadSpec(table="t"))).rows == []


READ_ONLY = """
import asyncio, os, sys, traceback
from tests.integration.sqlite_kit import read, ReadSpec
os.setgid(65534), os.setuid(65534)  # after the imports: Python itself may be out of reach then
try:
    found = asyncio.run(read(sys.argv[1], ReadSpec(table="t")))
    print(len(found.rows), *found.notes)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
@pytest.mark.parametrize("left_open", [False, True])
async def test_a_wal_file_in_a_read_only_directory(tmp_path: Path, left_open: bool) -> None:
    directory = tmp_path / "ro"
    directory.mkdir()
    url = f"sqlite:///{directory}/x.db"
    script(url, "PRAGMA journal_mode=WAL; CREATE TABLE t (id INTEGER PRIMARY KEY)")
    insert(url, "t", [(1,), (2,)])
    if left_open:  # killed: what is in the -wal file is not in the database yet
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "import sqlite3, os, sys; c = sqlite3.connect(sys.argv[1]);"
            " c.execute('INSERT INTO t VALUES (3)'); c.commit(); os._exit(1)",
            path_of(url),
        )
        await process.wait()
        (directory / "x.db-shm").unlink()
    for path in [tmp_path, *tmp_path.parents][:4]:
        path.chmod(path.stat().st_mode | 0o005)
    for file in directory.iterdir():
        file.chmod(0o444)
    directory.chmod(0o555)
    out = await asyncio.create_subprocess_exec(
        sys.executable, "-c", READ_ONLY, url,
        stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    told, _ = await out.communicate()
    if left_open:
        assert b"ConfigError" in told
        assert b"in the middle of its last changes" in told
    else:
        assert told.startswith(b"2 "), told
        assert b"nobody changes meanwhile" in told
