"""Files as targets: put in place as a whole, or not at all; and the lines that are in them."""

from __future__ import annotations

import asyncio
import bz2
import errno
import gzip
import lzma
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from etl import (
    Batch,
    ConfigError,
    Database,
    DataError,
    DeadLetter,
    EtlError,
    File,
    Limits,
    Pipeline,
    PipelineFailedError,
    Row,
    stage,
)
from etl.cli.copy import CopyOptions
from etl.cli.copyfile import FileOptions, plan_copy_to_files, plan_file_to_file
from etl.errors import (
    EXIT_TEMPORARY,
    AlreadyRunningError,
    SchemaMismatchError,
    exit_code_of,
)
from etl.files.parquet import ParquetWriter
from etl.files.texts import TextWriter
from tests.integration import sqlite_kit
from tests.integration.postgres_kit import run_sql

ROOT = Path(__file__).parents[2]
SMALL = Limits(batch_rows=10, group_rows=20, channel_batches=2)


@pytest.fixture
def numbers(sqlite_url: str) -> str:
    """A database with a table of 500 rows."""
    sqlite_kit.script(
        sqlite_url,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, note TEXT);"
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)"
        " INSERT INTO t SELECT i, iif(i % 3, 'a, ' || i, NULL) FROM n",
    )
    return sqlite_url


def reason(error: pytest.ExceptionInfo[EtlError]) -> BaseException:
    found = error.value
    return found.errors[0] if isinstance(found, PipelineFailedError) else found


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.endswith(".etl-part")]


@dataclass(frozen=True)
class Thing:
    a: int
    b: str | None
    c: Decimal
    d: datetime
    e: bool
    f: bytes
    g: dict[str, Any]
    h: float


THINGS = [
    Thing(
        1, 'x,"y"\n', Decimal("1.10"), datetime(2024, 2, 29, 1, tzinfo=UTC), True, b"\0", {}, 0.1
    ),
    Thing(2, "", Decimal("NaN"), datetime(1, 1, 1, tzinfo=UTC), False, b"", {"k": None}, -1e400),
    Thing(3, None, Decimal(0), datetime(2024, 1, 1, tzinfo=UTC), False, b"", {}, -0.0),
]


async def test_the_lines_of_rows_that_a_function_made(numbers: str, tmp_path: Path) -> None:
    source = Database(numbers).table("t").filter(lambda row: row["id"] <= 3)

    def thing(row: Row) -> Thing:
        return THINGS[int(row["id"]) - 1]

    csv, lines = File(tmp_path / "t.csv"), File(tmp_path / "t.jsonl")
    await Pipeline("p", source.map(thing).into(csv.replace(), lines.replace())).run()
    assert csv.path.read_text() == (
        "a,b,c,d,e,f,g,h\n"
        '1,"x,""y""\n",1.10,2024-02-29 01:00:00+00:00,true,\\x00,{},0.1\n'
        '2,"",NaN,0001-01-01 00:00:00+00:00,false,\\x,"{""k"": null}",-Infinity\n'
        "3,,0,2024-01-01 00:00:00+00:00,false,\\x,{},-0.0\n"
    )
    assert lines.path.read_text() == (
        '{"a":1,"b":"x,\\"y\\"\\n","c":1.10,"d":"2024-02-29 01:00:00+00:00","e":true,'
        '"f":"\\\\x00","g":{},"h":0.1}\n'
        '{"a":2,"b":"","c":"NaN","d":"0001-01-01 00:00:00+00:00","e":false,"f":"\\\\x",'
        '"g":{"k": null},"h":"-Infinity"}\n'
        '{"a":3,"b":null,"c":0,"d":"2024-01-01 00:00:00+00:00","e":false,"f":"\\\\x","g":{},'
        '"h":-0.0}\n'
    )


async def test_columns_are_in_the_order_of_the_source_whichever_a_function_looks_at(
    postgres_url: str, tmp_path: Path
) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE t (id int PRIMARY KEY, a text, b text); INSERT INTO t VALUES (1, 'x', 'y')",
    )
    rows = Database(postgres_url).table("t").map(lambda row: row.replace(b=row["b"].upper()))

    for name in ("t.csv", "t.jsonl"):
        await Pipeline(f"to {name}", rows.into(File(tmp_path / name).replace())).run()

    assert (tmp_path / "t.csv").read_text() == "id,a,b\n1,x,Y\n"
    assert (tmp_path / "t.jsonl").read_text() == '{"id":1,"a":"x","b":"Y"}\n'


async def test_dicts_need_no_types_but_in_parquet(numbers: str, tmp_path: Path) -> None:
    source = Database(numbers).table("t").filter(lambda row: row["id"] <= 2)
    made = source.map(
        lambda row: {"id": row["id"], "u": UUID(int=row["id"]), "day": date(2024, 1, row["id"])}
    )
    path = tmp_path / "t.csv"
    await Pipeline("p", made.into(File(path).replace())).run()
    assert path.read_text().split("\n")[1] == "1,00000000-0000-0000-0000-000000000001,2024-01-01"
    with pytest.raises(PipelineFailedError) as caught:
        await Pipeline("p", made.into(File(tmp_path / "t.parquet").replace())).run()
    assert isinstance(reason(caught), SchemaMismatchError)
    assert not (tmp_path / "t.parquet").exists()


async def test_null_and_the_encoding_are_written_as_asked(numbers: str, tmp_path: Path) -> None:
    rows = [("-", None), ("ä", ""), ("€", "-")]
    source = Database(numbers).table("t").filter(lambda row: row["id"] <= len(rows))
    flow = source.map(lambda row: dict(zip("ab", rows[row["id"] - 1], strict=True)))
    path = tmp_path / "t.csv"
    form: dict[str, Any] = {"delimiter": ";", "encoding": "cp1252", "null": "-"}
    await Pipeline("p", flow.into(File(path, **form).replace())).run()
    assert path.read_text("cp1252") == 'a;b\n"-";-\nä;""\n€;"-"\n'
    with pytest.raises(PipelineFailedError) as caught:
        await Pipeline("p", flow.into(File(path, encoding="latin-1").replace())).run()
    assert isinstance(reason(caught), DataError)
    assert "column 'a'" in str(reason(caught))
    assert "latin-1" in str(reason(caught))
    assert path.read_text("cp1252").startswith("a;b\n")  # the old one


async def test_a_byte_order_mark_is_written_once_and_read_by_any_name(
    numbers: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    source = Database(numbers).table("t").where("id <= 60").select("id")
    marked = File(path, encoding="utf-8-sig")
    await Pipeline("p", source.into(marked.replace()), limits=SMALL).run()
    assert path.read_bytes() == b"\xef\xbb\xbfid\n" + b"".join(b"%d\n" % i for i in range(1, 61))
    again = tmp_path / "again.csv"
    for name in ("utf-8-sig", "U8"):
        flow = File(path, encoding=name).rows().into(File(again).replace())
        await Pipeline("q", flow).run()
        assert again.read_text().startswith("id\n1\n")


async def test_a_word_for_a_boolean_is_not_taken_for_null_or_cut(
    numbers: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    source = Database(numbers).table("t").filter(lambda row: row["id"] <= 3)
    flow = source.map(lambda row: {"b": [None, True, False][row["id"] - 1]})
    await Pipeline("p", flow.into(File(path, null="true", delimiter="f").replace())).run()
    assert path.read_text() == 'b\ntrue\n"true"\n"false"\n'


@pytest.mark.parametrize(
    ("suffix", "unpack"),
    [("", bytes), (".gz", gzip.decompress), (".bz2", bz2.decompress), (".xz", lzma.decompress)],
)
async def test_a_compressed_file_is_whole_and_always_the_same(
    numbers: str, tmp_path: Path, suffix: str, unpack: Callable[[bytes], bytes]
) -> None:
    path = tmp_path / f"t.csv{suffix}"
    flow = Database(numbers).table("t").into(File(path).replace())
    await Pipeline("p", flow, limits=SMALL).run()
    first = path.read_bytes()
    text = unpack(first).decode()
    assert text.startswith('id,note\n1,"a, 1"\n2,"a, 2"\n3,\n')
    assert text.count("\n") == 501
    await Pipeline("p", flow).run()
    assert path.read_bytes() == first


KILLED = """
import sys
from etl import Database, File, Limits, Pipeline
path, url = sys.argv[1:]
limits = Limits(batch_rows=10, group_rows=20, channel_batches=2)
Pipeline("p", Database(url).table("t").into(File(path).replace()), limits=limits).run_sync()
"""


@pytest.mark.parametrize("suffix", [".csv.gz", ".jsonl", ".parquet"])
@pytest.mark.parametrize("point", ["lane.mid_copy:3", "run.before_publish", "run.after_publish"])
async def test_a_killed_run_leaves_the_old_file_or_the_new_one(
    numbers: str, tmp_path: Path, suffix: str, point: str
) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, path, numbers],
        env={**os.environ, "PYTHONPATH": str(ROOT), "ETL_FAILPOINTS": point},
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 137, done.stderr
    is_in = point == "run.after_publish"
    assert (path.read_bytes() == b"old") is not is_in
    assert left_over(tmp_path) == ([] if is_in else [f".t{suffix}.etl-part"])
    await Pipeline("q", Database(numbers).table("t").into(File(path).replace())).run()
    assert left_over(tmp_path) == []
    target = tmp_path / "back.db"
    await Pipeline("r", File(path).rows().into(Database(f"sqlite:///{target}").append("t"))).run()
    rows = "SELECT * FROM t ORDER BY id"
    assert sqlite_kit.fetch(f"sqlite:///{target}", rows) == sqlite_kit.fetch(numbers, rows)


async def test_a_failed_and_a_drained_run_leave_the_old_file(numbers: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("old")

    def fails(row: Any) -> Any:
        if row["id"] == 400:
            raise ValueError("no")
        return row

    source = Database(numbers).table("t")
    with pytest.raises(PipelineFailedError):
        await Pipeline("p", source.map(fails).into(File(path).replace()), limits=SMALL).run()
    assert (path.read_text(), left_over(tmp_path)) == ("old", [])

    gate = asyncio.Event()

    @stage
    async def waits(batches: Any) -> AsyncGenerator[Batch[Any]]:
        async for batch in batches:
            yield batch
            await gate.wait()

    flow = source.through(waits).into(File(path).replace())
    run = await Pipeline("p", flow, limits=SMALL).start()
    run.request_drain()
    gate.set()
    assert (await run.wait()).status == "drained"
    assert (path.read_text(), left_over(tmp_path)) == ("old", [])


@pytest.mark.parametrize("step", ["put", "finish"])
@pytest.mark.parametrize("name", ["o.csv", "o.jsonl.gz", "o.parquet"])
async def test_a_full_disk_is_a_passing_failure_that_is_not_tried_again(
    numbers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, step: str
) -> None:
    writer = ParquetWriter if name.endswith("parquet") else TextWriter
    calls = 0

    def full(*_: Any) -> None:
        nonlocal calls
        calls += 1
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / name
    path.write_text("old")
    pipeline = Pipeline("p", Database(numbers).table("t").into(File(path).replace()))
    with monkeypatch.context() as patch:
        patch.setattr(writer, step, full)
        with pytest.raises(PipelineFailedError) as failed:
            await pipeline.run()
    assert calls == 1  # a part of the group may be in the file
    assert failed.value.retryable
    assert exit_code_of(failed.value) == EXIT_TEMPORARY
    assert path.read_text() == "old"
    assert not left_over(tmp_path)
    assert (await pipeline.run()).rows_written == 500


async def test_two_runs_do_not_write_one_file(numbers: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    gate = asyncio.Event()

    @stage
    async def waits(batches: Any) -> AsyncGenerator[Batch[Any]]:
        async for batch in batches:
            yield batch
            await gate.wait()

    source = Database(numbers).table("t")
    older = await Pipeline("p", source.through(waits).into(File(path).replace())).start()
    newer = Pipeline("q", source.into(File(path).replace()))
    with pytest.raises(AlreadyRunningError, match="another run writes"):
        await newer.run()
    await newer.run(take_over=True)
    whole = path.read_bytes()
    gate.set()
    with pytest.raises(PipelineFailedError, match="another run has taken over"):
        await older.wait()
    assert (path.read_bytes(), left_over(tmp_path)) == (whole, [])


async def test_the_old_files_mode_and_a_link_to_it_stay(numbers: str, tmp_path: Path) -> None:
    path, link, new = tmp_path / "t.csv", tmp_path / "link.csv", tmp_path / "new.csv"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    source = Database(numbers).table("t")
    before = os.umask(0o027)
    try:
        await Pipeline("p", source.into(File(link).replace())).run()
        await Pipeline("p", source.into(File(new).replace())).run()
    finally:
        os.umask(before)
    assert link.is_symlink()
    assert path.read_text().startswith("id,note\n")
    assert (path.stat().st_mode & 0o777, new.stat().st_mode & 0o777) == (0o640, 0o640)


async def test_links_that_name_each_other_are_a_wrong_set_up(tmp_path: Path) -> None:
    other, loop = tmp_path / "t.csv", tmp_path / "loop.csv"
    other.write_text("id\n1\n")
    loop.symlink_to(loop)
    for source, target in ((loop, tmp_path / "new.csv"), (other, loop)):
        with pytest.raises(EtlError) as caught:
            await plan_file_to_file(str(source), str(target), CopyOptions(), FileOptions()).run()
        assert isinstance(reason(caught), ConfigError)
        assert "loop.csv" in str(reason(caught))


async def test_what_cannot_be_written_is_refused_before_a_row(numbers: str, tmp_path: Path) -> None:
    source = Database(numbers).table("t")
    (tmp_path / "d.csv").mkdir()
    for path in (tmp_path / "missing" / "t.csv", tmp_path / "d.csv"):
        with pytest.raises(ConfigError, match=path.name):
            await Pipeline("p", source.into(File(path).replace())).run()
    with pytest.raises(ConfigError, match="no table for rows that are refused"):
        Pipeline("p", source.into(File("t.csv").replace()), on_error=DeadLetter())


async def test_skipped_rows_are_left_out(numbers: str, tmp_path: Path) -> None:
    def fails(row: Any) -> Any:
        return 1 // (row["id"] % 100) and row

    path = tmp_path / "t.jsonl"
    flow = Database(numbers).table("t").map(fails).filter(bool).into(File(path).replace())
    report = await Pipeline("p", flow, on_error="skip", limits=SMALL).run()
    assert report.rows_skipped == 5
    assert path.read_text().count("\n") == report.rows_written == 5


async def test_lanes_write_one_file_together(numbers: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    flow = Database(numbers).table("t").into(File(path).replace())
    limits = Limits(batch_rows=10, group_rows=20, lanes=3)
    report = await Pipeline("p", flow, limits=limits).run()
    lines = path.read_text().splitlines()
    assert report.flows[0].transactions > 3
    assert lines[0] == "id,note"
    assert sorted(int(line.split(",")[0]) for line in lines[1:]) == list(range(1, 501))


# -- the command --------------------------------------------------------------------------------


def etl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "etl", "copy", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_command_copies_tables_into_a_folder_and_a_file_into_another(
    numbers: str, tmp_path: Path
) -> None:
    sqlite_kit.script(numbers, 'CREATE TABLE "a/b" (x INT); INSERT INTO "a/b" VALUES (1)')
    done = etl(numbers, f"{tmp_path}/out/", "--format", "jsonl.gz")
    assert done.returncode == 0, done.stderr
    assert sorted(os.listdir(tmp_path / "out")) == ["a%2Fb.jsonl.gz", "t.jsonl.gz"]
    done = etl(tmp_path / "out" / "t.jsonl.gz", tmp_path / "t.csv")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "t.csv").read_text().startswith('id,note\n1,"a, 1"\n2,"a, 2"\n3,\n')
    refused = etl(numbers, tmp_path / "all.csv")
    assert refused.returncode == 2
    assert "2 tables do not go into one file" in refused.stderr
    refused = etl(numbers, tmp_path / "all.xls")
    assert refused.returncode == 2
    assert "A file is known by the end of its name: .csv, .tsv" in refused.stderr


async def test_options_of_a_database_are_refused(numbers: str, tmp_path: Path) -> None:
    odd: tuple[dict[str, Any], ...] = (
        {"mode": "append"}, {"rename": "x"}, {"force": True}, {"key": ("id",)}, {"limit": -1},
    )  # fmt: skip
    for options in odd:
        with pytest.raises(ConfigError):
            await plan_copy_to_files(
                Database(numbers), str(tmp_path / "t.csv"), CopyOptions(**options), FileOptions()
            )
    for target, form in (("x/", None), ("x/", "xls"), ("x.csv", "csv")):
        with pytest.raises(ConfigError, match="--format|is a folder"):
            await plan_copy_to_files(
                Database(numbers), f"{tmp_path}/{target}", CopyOptions(tables=("t",)),
                FileOptions(format=form),
            )  # fmt: skip
    with pytest.raises(ConfigError, match="onto itself"):
        plan_file_to_file("x.csv", "./x.csv", CopyOptions(), FileOptions())


def test_ctrl_c_leaves_the_old_file(sqlite_url: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("old")
    connection = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, note TEXT)")
    connection.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000)"
        " INSERT INTO t SELECT i, 'x' FROM n"
    )
    connection.commit()
    connection.close()
    process = subprocess.Popen(
        [sys.executable, "-m", "etl", "copy", sqlite_url, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    assert "starts" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "old ones are as they were" in said
    assert (path.read_text(), left_over(tmp_path)) == ("old", [])
