"""CSV files into tables: every value, on from where a killed run stopped, or refused by line."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from etl import (
    ConfigError,
    Database,
    DataError,
    EtlError,
    File,
    Limits,
    Pipeline,
    PipelineFailedError,
    Retry,
    Row,
    SchemaMismatchError,
)
from etl.cli.copy import CopyOptions
from etl.cli.copyfile import FileOptions, plan_file_copy
from tests.integration import sqlite_kit
from tests.integration.postgres_kit import run_sql, sql, texts, value

ROOT = Path(__file__).parents[2]
SMALL = Limits(batch_rows=10, group_rows=20, channel_batches=2)

TYPED = """
CREATE TYPE mood AS ENUM ('ok', 'a,b');
CREATE TABLE t (b bool, i int, big bigint, r real, d float8, n numeric, n2 numeric(9,2), t text,
    v varchar(9), raw bytea, day date, at time, ts timestamp, tz timestamptz, iv interval, u uuid,
    j json, jb jsonb, m mood, a int[], p point, x inet);
INSERT INTO t VALUES
    (true, -5, 9223372036854775807, 0.1, 1e-300, 'NaN', 1.5, E'a "q",\\n b', 'x', '\\x00ff',
     '2024-02-29', '24:00', '0044-03-15 10:00 BC', '2024-01-01 10:00+02', '1 mon -1 day 02:03:04.5',
     gen_random_uuid(), '{"a" :1.0, "a": 2}', '{"b": [1, null]}', 'a,b', '{{1,NULL}}', '(1,2)',
     '::1'),
    (false, 0, 0, 'NaN', '-Infinity', 0.00, 0, '', ' ', '', 'infinity', '00:00:00.000001',
     'infinity', '-infinity', '0', gen_random_uuid(), 'null', '"x"', 'ok', '{}', '(0,0)',
     '10.0.0.0/8');
INSERT INTO t (t) VALUES (E'\\\\N'), (E'\\\\.'), ('\u20ac'), (E'\\r'), (NULL);
"""


async def copy(path: Path, url: str, **options: Any) -> None:
    await plan_file_copy(str(path), Database(url), CopyOptions(**options), FileOptions()).run()


def reason(error: pytest.ExceptionInfo[EtlError]) -> BaseException:
    """What stopped the run, before or after it began to read."""
    found = error.value
    return found.errors[0] if isinstance(found, PipelineFailedError) else found


async def test_what_postgres_writes_as_csv_comes_back_value_for_value(
    postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    one, two = postgres_database(), postgres_database()
    await run_sql(one, TYPED)
    await run_sql(two, TYPED + "TRUNCATE t")
    path = tmp_path / "t.csv"
    async with sql(one) as connection:
        await connection.copy_from_table("t", output=path, format="csv", header=True)
    await copy(path, two, mode="append")
    rows = "SELECT * FROM t ORDER BY t::text"
    assert await texts(two, rows) == await texts(one, rows)


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
async def test_a_missing_table_gets_the_types_that_keep_every_text(
    postgres_url: str, tmp_path: Path, suffix: str, pack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"orders.csv{suffix}"
    text = '\ufeffid,zip,price,"the ""day""",note\r\n1,007,1.50,2024-02-29,"a\nb"\r\n2,,2,,""\r\n'
    path.write_bytes(pack(text.encode()))
    for _ in range(2):  # ``replace`` takes its own table again
        await copy(path, postgres_url)
    assert await texts(postgres_url, "SELECT * FROM orders") == [
        '(1,007,1.50,2024-02-29,"a\nb")',
        '(2,,2,,"")',
    ]
    types = "SELECT atttypid::regtype FROM pg_attribute WHERE attrelid = 'orders'::regclass AND"
    assert await texts(postgres_url, f"{types} attnum > 0 ORDER BY attnum") == [
        "(bigint)", "(text)", "(numeric)", "(date)", "(text)",
    ]  # fmt: skip

    path.write_bytes(pack(b"id,zip,price,note\n3,1,1,x\n"))  # tomorrow's
    await run_sql(postgres_url, 'ALTER TABLE orders DROP COLUMN "the ""day"""')
    await copy(path, postgres_url)
    assert await texts(postgres_url, "SELECT * FROM orders") == ["(3,1,1,x)"]


async def test_sqlite_gets_numbers_as_numbers_and_all_else_as_text(
    sqlite_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_text('i,r,n,zip,ok,e\n1,1e5,1.50,007,true,""\n,,,,,\n')
    await copy(path, sqlite_url)
    assert sqlite_kit.fetch(sqlite_url, "SELECT * FROM t") == [
        (1, 100000.0, "1.50", "007", 1, ""),
        (None,) * 6,
    ]
    sqlite_kit.script(sqlite_url, "CREATE TABLE u (i INT, r REAL, n NUMERIC, b BLOB, t TEXT)")
    path.write_text("i,r,n,b,t\n007,3,1.50,\\x00ff,007\n,,,,\n")
    await copy(path, sqlite_url, rename="u", mode="append")
    assert sqlite_kit.fetch(sqlite_url, "SELECT * FROM u") == [
        (7, 3.0, 1.5, b"\x00\xff", "007"),
        (None,) * 5,
    ]
    path.write_text("i,n\n1,1\n2,0.12345678901234567890\n")
    with pytest.raises(EtlError) as caught:
        await copy(path, sqlite_url, rename="u", mode="append", name="second")
    assert "t.csv, line 3: " in str(reason(caught))
    assert "0.123" not in str(reason(caught))
    assert sqlite_kit.value(sqlite_url, "SELECT count(*) FROM u") == 2


async def test_a_value_that_does_not_fit_is_named_by_line_and_column(
    postgres_url: str, tmp_path: Path
) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (id int, note text)")
    path = tmp_path / "t.csv"
    path.write_text('id,note\n1,"two\nlines"\nsecret7,x\n')
    with pytest.raises(EtlError) as caught:
        await copy(path, postgres_url, mode="append")
    assert isinstance(reason(caught), DataError)
    assert "t.csv, line 4: column 'id' (integer)" in str(reason(caught))
    assert "secret7" not in str(reason(caught))
    assert await value(postgres_url, "SELECT count(*) FROM t") == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "t.csv is empty"),
        ("a,a\n", "line 1: two columns are called 'a'"),
        ("a,,b\n", "line 1: column 2 has no name"),
        ("a,b\n1,2\n1\n", "line 3: 1 field, but there are 2"),
        ("a,b\n1,2\n\n", "line 3: 1 field, but there are 2"),
        ("a,b\n1,2,3\n", "line 2: 3 fields, but there are 2"),
    ],
)
async def test_a_file_that_is_no_table_is_refused(
    sqlite_url: str, tmp_path: Path, content: str, said: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(EtlError) as caught:
        await copy(path, sqlite_url)
    assert said in str(reason(caught))


async def test_damaged_and_missing_files_are_refused(sqlite_url: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a\n" + os.urandom(5000).hex().encode())[:-20])
    with pytest.raises(EtlError) as caught:
        await copy(path, sqlite_url)
    assert "damaged or cut off" in str(reason(caught))
    path.unlink()
    with pytest.raises(EtlError) as caught:
        await copy(path, sqlite_url)
    assert isinstance(reason(caught), ConfigError)


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
async def test_streams_behind_the_first_one_are_read_or_refused(
    sqlite_url: str, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"t.csv.{suffix}"
    forms: dict[str, Any] = {"gz": gzip, "bz2": bz2, "xz": lzma}
    compress = forms[suffix].compress
    first, second = compress(b"a\n1\n"), compress(b"2\n")
    padding = b"" if suffix == "bz2" else bytes(8)  # bzip2 has none
    path.write_bytes(first + padding + second + padding)
    await copy(path, sqlite_url)
    assert sqlite_kit.fetch(sqlite_url, "SELECT a FROM t ORDER BY a") == [(1,), (2,)]
    for damaged in (b"X" + second[1:], second[:12] + b"XX" + second[14:], second[:3]):
        path.write_bytes(first + damaged)
        with pytest.raises(EtlError) as caught:
            await copy(path, sqlite_url)
        assert isinstance(reason(caught), DataError)
        assert "damaged" in str(reason(caught))


KILLED = """
import sys
from etl import Database, File, Limits, Pipeline
path, url = sys.argv[1:]
limits = Limits(batch_rows=10, group_rows=20, channel_batches=2)
Pipeline("p", File(path).rows().into(Database(url).append("t")), limits=limits).run_sync()
"""


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("point", ["lane.after_commit:3", "lane.after_checkpoint:2"])
async def test_a_killed_run_goes_on_after_the_last_committed_row(
    sqlite_url: str, tmp_path: Path, suffix: str, point: str
) -> None:
    path = tmp_path / f"t.csv{suffix}"
    numbers = range(500)
    data = ("id,note\n" + "".join(f'{i},"a\n{i}"\n' for i in numbers)).encode()
    path.write_bytes(gzip.compress(data) if suffix else data)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, path, sqlite_url],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ETL_FAILPOINTS": point},
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode not in {0, 1}, done.stderr
    half = sqlite_kit.value(sqlite_url, "SELECT count(*) FROM t")
    assert 0 < half < 500

    flow = File(path).rows().into(Database(sqlite_url).append("t"))
    report = await Pipeline("p", flow, limits=SMALL).run()
    assert report.rows_written == 500 - half
    assert sqlite_kit.fetch(sqlite_url, "SELECT id, note FROM t ORDER BY rowid") == [
        (i, f"a\n{i}") for i in numbers
    ]


async def test_another_content_is_not_gone_on_with(sqlite_url: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id\n" + "\n".join(map(str, range(10_000, 14_000))) + "\nx,y\n")
    sqlite_kit.script(sqlite_url, "CREATE TABLE t (id INTEGER)")
    flow = File(path).rows().into(Database(sqlite_url).append("t"))
    with pytest.raises(PipelineFailedError, match="line 4002"):
        await Pipeline(
            "p", flow, limits=Limits(batch_rows=10, group_rows=20, batch_bytes=256)
        ).run()
    path.write_text("id\n" + "\n".join(map(str, range(200))) + "\n")
    with pytest.raises(ConfigError, match="content of the source changed"):
        await Pipeline("p", flow).run()


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
async def test_a_file_that_is_cut_off_while_it_is_read_is_no_shorter_file(
    sqlite_url: str, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    # Of 16 and of 8 bytes: the pieces that are read end between two rows.
    row = '{"id": %d}\n' if path.suffix == ".jsonl" else "%d\n"
    head = "" if path.suffix == ".jsonl" else "id\n"
    path.write_text(head + "".join(row % number for number in range(1_000_000, 1_020_000)))
    sqlite_kit.script(sqlite_url, "CREATE TABLE t (id INTEGER)")

    async def cut_off(rows: Sequence[Row]) -> Sequence[Row]:
        if path.stat().st_size > 1_000:
            path.write_text(head + row % 1)
        return rows

    flow = File(path).rows().map_batches(cut_off).into(Database(sqlite_url).replace("t"))
    limits = Limits(batch_rows=100, group_rows=100, batch_bytes=1 << 13)
    with pytest.raises(PipelineFailedError, match="changed while it was read") as caught:
        await Pipeline("p", flow, limits=limits, retry=Retry(attempts=1)).run()
    assert caught.value.retryable
    assert sqlite_kit.fetch(sqlite_url, "SELECT id FROM t") == []


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
async def test_a_pipe_is_refused_before_it_is_opened(
    sqlite_url: str, tmp_path: Path, name: str
) -> None:
    """Opening it would wait, in the event loop, for somebody who writes into it."""
    path = tmp_path / name
    os.mkfifo(path)
    with pytest.raises(EtlError) as caught:
        await copy(path, sqlite_url)
    assert isinstance(reason(caught), ConfigError)
    assert "is a pipe or a device" in str(reason(caught))


async def test_documents_of_a_file_keep_their_spelling_in_a_table_that_is_made(
    postgres_url: str, tmp_path: Path
) -> None:
    """In a ``jsonb`` numbers would be respelled, and double keys and signs of zeros refused."""
    path = tmp_path / "t.jsonl"
    documents = ['{"b":1,"a":1E+2}', '{"a":1,"a":2}', "[-0.0]", "-0.0", '"x"']
    path.write_text("".join(f'{{"d":{document}}}\n' for document in documents))
    await copy(path, postgres_url)
    kept = await value(postgres_url, "SELECT string_agg(d::text, E'\\n' ORDER BY ctid) FROM t")
    assert kept.split("\n") == documents
    again = tmp_path / "again.jsonl"
    await Pipeline("again", File(path).rows().into(File(again).replace())).run()
    assert again.read_text() == path.read_text()


async def test_a_replace_from_a_file_with_another_content_begins_anew(
    sqlite_url: str, tmp_path: Path
) -> None:
    """Nobody has seen its rows yet."""
    path = tmp_path / "t.csv"
    path.write_text("id\n" + "\n".join(map(str, range(10_000, 14_000))) + "\nx,y\n")
    sqlite_kit.script(sqlite_url, "CREATE TABLE t (id INTEGER)")
    flow = File(path).rows().into(Database(sqlite_url).replace("t"))
    limits = Limits(batch_rows=10, group_rows=20, batch_bytes=256)
    with pytest.raises(PipelineFailedError, match="line 4002"):
        await Pipeline("p", flow, limits=limits).run()
    path.write_text("id\n" + "\n".join(map(str, range(200))) + "\n")
    report = await Pipeline("p", flow).run()
    assert report.rows_written == 200
    assert "begins anew: the content of the file changed" in str(report.flows[0].notes)
    assert sqlite_kit.fetch(sqlite_url, "SELECT id FROM t ORDER BY id") == [
        (i,) for i in range(200)
    ]


async def test_a_resumed_read_still_knows_the_lines(postgres_url: str, tmp_path: Path) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (id int, note text)")
    path = tmp_path / "t.csv"
    path.write_text("id,note\n" + "".join(f'{i},"a\nb"\n' for i in range(2000)) + 'x,"a"\n')
    for _ in range(2):
        flow = File(path).rows().into(Database(postgres_url).append("t"))
        with pytest.raises(PipelineFailedError, match=r"t\.csv, line 4002: column 'id'"):
            await Pipeline("p", flow, limits=SMALL).run()
        count = await value(postgres_url, "SELECT count(*) FROM t")
        assert count > 1900  # so the second began far behind the first line
        assert await value(postgres_url, "SELECT count(DISTINCT id) FROM t") == count


async def test_rows_of_a_file_pass_through_functions(sqlite_url: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("1;Anna\n2;\n")
    people = File(path, delimiter=";", columns=("id", "name")).rows()
    flow = people.map(lambda row: {"id": int(row["id"]), "name": row["name"] or "?"})
    sqlite_kit.script(sqlite_url, "CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT)")
    await Pipeline("p", flow.into(Database(sqlite_url).upsert("people", key=("id",)))).run()
    changed = people.filter(lambda row: row["id"] == "2").map(lambda row: row.replace(name="Bo"))
    await Pipeline("q", changed.into(Database(sqlite_url).upsert("people", key=("id",)))).run()
    assert sqlite_kit.fetch(sqlite_url, "SELECT * FROM people") == [(1, "Anna"), (2, "Bo")]


def test_the_command_copies_a_file(sqlite_url: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("id;v\n1;-\n2;ä\n", encoding="cp1252")

    def etl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "etl", "copy", *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    form = ("--delimiter", ";", "--encoding", "cp1252", "--null", "-")
    done = etl(str(path), sqlite_url, "--as", "other", *form)
    assert done.returncode == 0, done.stderr
    assert sqlite_kit.fetch(sqlite_url, "SELECT * FROM other") == [(1, None), (2, "ä")]
    refused = etl(str(path), sqlite_url, "--table", "x")
    assert refused.returncode == 2
    assert "--table is for a database" in refused.stderr
    assert etl(sqlite_url, sqlite_url, "--null", "-").returncode == 2


def test_options_that_a_file_has_not_are_refused() -> None:
    for options in (
        {"where": "a > 1"}, {"cursor": ("a",)}, {"limit": 3}, {"mode": "upsert"}, {"key": ("a",)},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            plan_file_copy(
                "t.csv", Database("sqlite:///x.db"), CopyOptions(**options), FileOptions()
            )


async def test_a_column_that_the_table_lacks_is_named(postgres_url: str, tmp_path: Path) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (id int)")
    path = tmp_path / "t.csv"
    path.write_text("id,more\n1,2\n")
    with pytest.raises(EtlError) as caught:
        await copy(path, postgres_url, mode="append")
    assert isinstance(reason(caught), SchemaMismatchError)
    assert "'more'" in str(reason(caught))
