"""Parquet of other programs: exact, or refused by column and type; on from where one stopped."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etl import Database, DataError, EtlError, File, Limits, Pipeline, PipelineFailedError
from etl.errors import SchemaMismatchError
from tests.integration import sqlite_kit
from tests.integration.postgres_kit import value

SMALL = Limits(batch_rows=10, group_rows=20, channel_batches=2)


def reason(error: pytest.ExceptionInfo[EtlError]) -> BaseException:
    found = error.value
    return found.errors[0] if isinstance(found, PipelineFailedError) else found


async def rows_of(path: Path) -> list[dict[str, Any]]:
    """What a function sees."""
    seen: list[dict[str, Any]] = []

    def look(row: Any) -> bool:
        seen.append(dict(row))
        return False

    other = path.with_name("seen.jsonl")
    await Pipeline("p", File(path).rows().filter(look).into(File(other).replace())).run()
    return seen


async def test_each_type_of_arrow_is_the_value_that_it_was(tmp_path: Path) -> None:
    values: dict[str, tuple[Any, Any, Any]] = {
        "u64": (pa.uint64(), 1 << 63, Decimal(1 << 63)),
        "i8": (pa.int8(), -128, -128),
        "f32": (pa.float32(), 0.5, 0.5),
        "dec": (pa.decimal256(60, 5), Decimal("1.10000"), Decimal("1.10000")),
        "text": (pa.dictionary(pa.int8(), pa.large_string()), "ä", "ä"),
        "fixed": (pa.binary(2), b"\0\xff", b"\0\xff"),
        "day": (pa.date32(), date(1, 1, 1), date(1, 1, 1)),
        "at": (pa.time64("ns"), 1_000, time(microsecond=1)),
        "ns": (pa.timestamp("ns"), 1_000, datetime.fromisoformat("1970-01-01 00:00:00.000001")),
        "tz": (
            pa.timestamp("ms", "Asia/Kolkata"), 0, datetime(1970, 1, 1, tzinfo=UTC),
        ),
        "list": (pa.list_(pa.decimal128(3, 1)), [Decimal("1.5"), None], [Decimal("1.5"), None]),
        "struct": (pa.struct({"a": pa.int8()}), {"a": 1}, {"a": 1}),
        "none": (pa.null(), None, None),
    }  # fmt: skip
    columns = [pa.array([given, None], type_) for type_, given, _ in values.values()]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns, names=list(values)), path)
    first, second = await rows_of(path)
    assert first == {name: wanted for name, (_, _, wanted) in values.items()}
    assert set(second.values()) == {None}


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (pa.timestamp("ns"), 1),
        (pa.timestamp("us"), 1 << 62),
        (pa.list_(pa.binary()), [b"x"]),
        (pa.list_(pa.float64()), [float("nan")]),
    ],
)
async def test_a_value_that_no_column_keeps_is_refused_by_row(
    tmp_path: Path, type_: Any, value: Any
) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table([pa.array([None, None, value], type_)], names=["v"]), path)
    with pytest.raises(EtlError) as caught:
        await rows_of(path)
    assert isinstance(reason(caught), DataError)
    assert "t.parquet, row 3: column 'v'" in str(reason(caught))


async def test_lists_with_a_zero_that_has_a_sign_go_into_a_table_that_is_made(
    postgres_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"v": [[-0.0, 1.5], None]}), path)
    await Pipeline("p", File(path).rows().into(Database(postgres_url).replace("t"))).run()
    assert await value(postgres_url, "SELECT v::text FROM t WHERE v IS NOT NULL") == "[-0.0, 1.5]"
    lines = tmp_path / "t.jsonl"
    await Pipeline("q", File(path).rows().into(File(lines).replace())).run()
    assert lines.read_text() == '{"v":[-0.0, 1.5]}\n{"v":null}\n'


async def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1 nothing PAR1")
    with pytest.raises(EtlError) as caught:
        await rows_of(path)
    assert "is no Parquet file" in str(reason(caught))


async def test_a_damaged_page_is_no_passing_failure(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"v": [f"x{number}" for number in range(5000)]}), path)
    content = bytearray(path.read_bytes())
    content[1000:3000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(EtlError) as caught:
        await rows_of(path)
    assert isinstance(reason(caught), DataError)
    assert "damaged" in str(reason(caught))
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), path)
    with pytest.raises(EtlError) as caught:
        await rows_of(path)
    assert isinstance(reason(caught), SchemaMismatchError)
    assert "two columns are called 'a'" in str(reason(caught))


async def test_a_stopped_read_goes_on_at_the_next_row(sqlite_url: str, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"id": list(range(200)), "at": [0] * 155 + [1] + [0] * 44})
    pq.write_table(table, path, row_group_size=70)
    sqlite_kit.script(sqlite_url, "CREATE TABLE t (id INTEGER, at INTEGER CHECK (at = 0))")
    flow = File(path).rows().into(Database(sqlite_url).append("t"))
    with pytest.raises(PipelineFailedError):
        await Pipeline("p", flow, limits=SMALL).run()
    there = sqlite_kit.value(sqlite_url, "SELECT count(*) FROM t")
    assert 70 < there < 156
    sqlite_kit.script(
        sqlite_url, "CREATE TABLE u (id INTEGER, at INTEGER); INSERT INTO u SELECT * FROM t;"
        " DROP TABLE t; ALTER TABLE u RENAME TO t"
    )  # fmt: skip
    report = await Pipeline("p", flow, limits=SMALL).run()
    assert report.rows_written == 200 - there
    rows = sqlite_kit.fetch(sqlite_url, "SELECT id FROM t ORDER BY rowid")
    assert rows == [(number,) for number in range(200)]
