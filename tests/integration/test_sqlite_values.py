"""Values on their way into SQLite: what is stored exactly, and what is refused instead of bent."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from etl import Database, Pipeline
from etl.databases.database import ReadSpec
from etl.databases.sqlite.bind import Binder
from etl.databases.sqlite.horizon import upper_bound
from etl.databases.sqlite.schema import Affinity, TableColumn
from etl.errors import ConfigError, DataError
from etl.rows import Column, Kind, Layout, TextRows, Type
from tests.integration.postgres_kit import run_sql
from tests.integration.sqlite_kit import fetch, insert, lane, read, script


class Color(Enum):
    RED = "red"
    ONE = 1


def stored(value: Any, declared: str, url: str) -> list[tuple[Any, ...]]:
    """What SQLite itself holds, and of which class."""
    script(url, f"DROP TABLE IF EXISTS x; CREATE TABLE x (v {declared})")
    insert(url, "x", [(value,)])
    return fetch(url, "SELECT v, typeof(v) FROM x")


EXACT: Sequence[tuple[Any, str, Any]] = [
    (True, "BOOLEAN", 1),
    (2**63 - 1, "INTEGER", 2**63 - 1),
    (-(2**63), "TEXT", str(-(2**63))),
    (10**30, "TEXT", str(10**30)),
    (2**53, "REAL", float(2**53)),
    (1e300, "INTEGER", 1e300),
    (0.1 + 0.2, "TEXT", "0.30000000000000004"),
    (math.inf, "REAL", math.inf),
    ("a\x00b", "TEXT", "a\x00b"),
    ("", "INTEGER", ""),
    ("007", "TEXT", "007"),
    ("12", "INTEGER", 12),
    ("1.5", "NUMERIC", 1.5),
    ("abc", "INTEGER", "abc"),
    ("2024-01-01", "DATE", "2024-01-01"),
    (b"\x00\xff", "TEXT", b"\x00\xff"),
    (bytearray(b"x"), "INTEGER", b"x"),
    (Decimal("1.50"), "TEXT", "1.50"),
    (Decimal("1.50"), "", "1.50"),
    (Decimal("1.50"), "NUMERIC", 1.5),
    (Decimal("1E+3"), "INTEGER", 1000),
    (Decimal("NaN"), "TEXT", "NaN"),
    (date(1, 1, 1), "TEXT", "0001-01-01"),
    (time(1, 2, 3, 4), "TEXT", "01:02:03.000004"),
    (datetime(2024, 1, 2, 3, 4, 5), "TEXT", "2024-01-02 03:04:05"),  # noqa: DTZ001  naive on purpose
    (
        datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=timezone(timedelta(hours=2))),
        "DATETIME",
        "2024-01-02 01:04:05.000006+00:00",
    ),
    (timedelta(days=-1, microseconds=1), "TEXT", "P-1DT0.000001S"),
    (UUID(int=5), "UUID", "00000000-0000-0000-0000-000000000005"),
    ({"a": [1, "ä", Decimal("1.50")]}, "TEXT", '{"a": [1, "ä", 1.50]}'),
    ([], "JSON", "[]"),
    (Color.RED, "TEXT", "red"),
]


@pytest.mark.parametrize(("value", "declared", "expected"), EXACT)
async def test_a_value_is_stored_exactly(
    sqlite_url: str, value: Any, declared: str, expected: Any
) -> None:
    script(sqlite_url, f"CREATE TABLE t (v {declared})")
    async with lane(sqlite_url, lambda d: d.append("t")) as one:
        # Beside a NULL and in another order of kinds, too.
        await one.write([{"v": value}, {"v": None}, {"v": value}], (1,))
    found = fetch(sqlite_url, "SELECT v FROM t")
    assert found == [(expected,), (None,), (expected,)]
    assert type(found[0][0]) is type(expected)


@pytest.mark.parametrize(
    ("value", "declared", "why"),
    [
        (math.nan, "REAL", "NaN"),
        (math.nan, "TEXT", "NaN"),
        (2**63, "INTEGER", "64 bits"),
        (2**53 + 1, "REAL", "all digits"),
        ("007", "INTEGER", "looks like a number"),
        ("1.50", "JSON", "looks like a number"),
        (" 5 ", "NUMERIC", "looks like a number"),
        ("18446744073709551617", "DECIMAL(20)", "all its digits"),
        ("9" * 5000, "INTEGER", "all its digits|looks like"),
        (Decimal("0.1234567890123456789"), "NUMERIC", "all its digits"),
        (Decimal("NaN"), "NUMERIC", "not finite"),
        (Decimal("Infinity"), "REAL", "not finite"),
        ("\ud800", "TEXT", "lone surrogate"),
        ({"a": math.nan}, "TEXT", "not JSON"),
        ({1, 2}, "TEXT", "stores no set"),
        (Color.ONE, "TEXT", "Enum whose value is not text"),
        (1j, "TEXT", "stores no complex"),
    ],
)
async def test_a_value_that_would_be_bent_is_refused(
    sqlite_url: str, value: Any, declared: str, why: str
) -> None:
    script(sqlite_url, f"CREATE TABLE t (v {declared})")
    async with lane(sqlite_url, lambda d: d.append("t")) as one:
        with pytest.raises(DataError, match=why) as refused:
            await one.write([{"v": None}] * 2_500 + [{"v": value}], (1,))
        assert refused.value.column == "v"
        assert refused.value.row == 2_500
        assert "row 2501 of the batch" in str(refused.value)
    assert fetch(sqlite_url, "SELECT * FROM t") == []


def _column(declared: str, affinity: Affinity) -> TableColumn:
    return TableColumn(
        name="v", declared=declared, affinity=affinity, is_exact=False, nullable=True,
        required=False, generated=False,
    )  # fmt: skip


def _bound(field: str, kind: Kind, affinity: Affinity) -> Any:
    type_ = Type(kind=kind, name=kind, dialect="postgresql")
    layout = Layout([Column(name="v", type=type_)], [str], is_text=True)
    binder = Binder("sink", ["v"], [_column(affinity.upper(), affinity)])
    ways = [
        list(binder.tuples(TextRows(layout, [field, "\\N"], 0))),
        list(binder.tuples([layout.row([field]), layout.row(["\\N"])])),
        list(binder.tuples([layout.row([field]), layout.row(["x"], {"v": None})])),
    ]
    assert ways[0] == ways[1] == ways[2]
    assert ways[0][1] == (None,)
    return ways[0][0][0]


@pytest.mark.parametrize(
    ("field", "kind", "affinity", "expected"),
    [
        ("12", "int32", "integer", 12),
        ("12", "int64", "text", "12"),
        ("12", "int64", "real", 12),
        ("0.1", "float64", "real", 0.1),
        ("-Infinity", "float64", "real", -math.inf),
        ("NaN", "float64", "text", "NaN"),
        ("t", "bool", "numeric", 1),
        ("f", "bool", "text", "f"),
        ("\\\\x00ff", "bytes", "blob", b"\x00\xff"),
        ("\\\\x00ff", "bytes", "text", b"\x00\xff"),
        ("1.50", "numeric", "text", "1.50"),
        ("1.50", "numeric", "blob", "1.50"),
        ("1.50", "numeric", "numeric", 1.5),
        ("a\\tb\\\\N", "text", "text", "a\tb\\N"),
        ("a\\nb", "text", "integer", "a\nb"),
        ("infinity", "date", "text", "infinity"),
        ("0044-03-15 BC", "date", "numeric", "0044-03-15 BC"),
        ("2024-01-01 00:00:00+00", "timestamptz", "text", "2024-01-01 00:00:00+00:00"),
        ("infinity", "timestamptz", "text", "infinity"),
        ("1 mon", "interval", "text", "1 mon"),
        ('{"a": "\\\\"}', "json", "text", '{"a": "\\"}'),
        ("{1,2}", "other", "text", "{1,2}"),
    ],
)
def test_text_of_postgresql_binds_by_kind_and_affinity(
    field: str, kind: Kind, affinity: Affinity, expected: Any
) -> None:
    found = _bound(field, kind, affinity)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("field", "kind", "affinity"),
    [
        ("NaN", "float64", "real"),
        ("NaN", "numeric", "numeric"),
        ("0.12345678901234567890", "numeric", "real"),
        ("9223372036854775807", "int64", "real"),
        ("007", "text", "integer"),
        ("1.50", "json", "numeric"),
    ],
)
def test_text_of_postgresql_that_would_be_bent_is_refused(
    field: str, kind: Kind, affinity: Affinity
) -> None:
    with pytest.raises(DataError, match="cannot take the value in row 1"):
        _bound(field, kind, affinity)


VALUES = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.binary(max_size=20),
)
DECLARED = ["", "INTEGER", "TEXT", "REAL", "NUMERIC", "BLOB", "DATETIME", "BOOLEAN", "ANY"]


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(st.tuples(*[VALUES] * len(DECLARED)), min_size=1, max_size=30))
def test_a_copy_from_sqlite_to_sqlite_changes_no_value(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, ...]]
) -> None:
    directory: Path = tmp_path_factory.mktemp("copy")
    one, other = f"sqlite:///{directory}/one.db", f"sqlite:///{directory}/other.db"
    columns = ", ".join(f'"c{i}" {declared}' for i, declared in enumerate(DECLARED))
    script(one, f"CREATE TABLE t (id INTEGER PRIMARY KEY, {columns})")
    insert(one, "t", [(i, *row) for i, row in enumerate(rows)])

    async def copy() -> None:
        found = await read(one, ReadSpec(table="t"))
        async with lane(other, lambda d: d.replace("t"), shape=found.shape) as lane_:
            for batch in found.batches:
                assert batch.position is not None
                await lane_.write(batch.rows, batch.position)
            await lane_.publish()

    asyncio.run(copy())
    look = ", ".join(f"c{i}, typeof(c{i})" for i in range(len(DECLARED)))
    assert fetch(one, f"SELECT {look} FROM t") == fetch(other, f"SELECT {look} FROM t")


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("0123456789.+-eE \t", max_size=8), affinity=st.sampled_from(["integer", "real"])
)
def test_what_looks_like_a_number_to_sqlite_does_so_here(text: str, affinity: Affinity) -> None:
    """Whatever passes is stored by SQLite as it was meant; nothing is bent."""
    binder = Binder("sink", ["v"], [_column(affinity, affinity)])
    try:
        ((bound,),) = binder.tuples([{"v": text}])
    except DataError:
        return
    connection = sqlite3.connect(":memory:")
    try:
        connection.execute(f"CREATE TABLE t (v {affinity})")
        connection.execute("INSERT INTO t VALUES (?)", (bound,))
        ((kept,),) = connection.execute("SELECT v FROM t").fetchall()
    finally:
        connection.close()
    assert repr(kept) == repr(text) or repr(kept) == text


NOW = datetime(2024, 1, 2, 3, 4, 5, 600_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("newest", "settle", "bound"),
    [
        (None, None, None),
        (5, None, None),
        ("v1", None, None),
        ("2024-01-02 03:04:05", None, "2024-01-02 03:04:05"),
        ("2024-01-02T03:04:05Z", None, "2024-01-02T03:04:05"),
        ("2024-01-02T03:04", None, "2024-01-02T03:04"),
        ("2024-01-02 03:04:05.1", None, "2024-01-02 03:04:05.400000"),
        ("2024-01-02", None, "2024-01-02"),
        ("9999-12-31 00:00:00", 60, "2024-01-02 03:03:05"),
        ("2024-01-02T05:04:05+02:00", None, "2024-01-02T05:04:05"),
        ("2024-01-02T03:04:05-0330", None, "2024-01-01T23:34:05"),
        (1_704_164_000, 60, 1_704_164_585),
        (1_704_164_000_000, 60, 1_704_164_585_600),
    ],
)
def test_the_horizon_has_the_form_of_the_newest_value(
    newest: Any, settle: int | None, bound: Any
) -> None:
    wait = timedelta(seconds=settle) if settle else None
    assert upper_bound(newest, NOW, wait, where="x") == bound


@pytest.mark.parametrize("newest", [5, "v1", b"x", 1.5])
def test_settle_needs_times(newest: Any) -> None:
    with pytest.raises(ConfigError, match="settle= needs times"):
        upper_bound(newest, NOW, timedelta(seconds=1), where="x")


async def test_many_rows_of_one_statement_are_stored_as_single_ones(
    sqlite_url: str, postgres_url: str
) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE t (id bigint PRIMARY KEY, a integer, b text, c numeric, d smallint);"
        "INSERT INTO t SELECT i, CASE WHEN i % 7 <> 0 THEN -i END,"
        " CASE i % 5 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN E'a\\tb\\\\n' WHEN 3 THEN '\\N'"
        " ELSE '1.50' END, i + 0.10, i % 100 FROM generate_series(1, 1000) AS i;"
        "INSERT INTO t VALUES"
        " (-9223372036854775808, -2147483648, '-9223372036854775808', 'NaN', 0),"
        " (9223372036854775807, 2147483647, '9223372036854775807', 1e30, 0)",
    )
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, a INT, b TEXT, c, d DECIMAL)")

    flow = Database(postgres_url).table("t").into(Database(sqlite_url).append("t"))
    await Pipeline("p", flow).run()

    texts = [None, "", "a\tb\\n", "\\N", "1.50"]
    assert fetch(sqlite_url, "SELECT * FROM t WHERE id BETWEEN 1 AND 1000 ORDER BY id") == [
        (i, -i if i % 7 else None, texts[i % 5], f"{i}.10", i % 100) for i in range(1, 1001)
    ]
    assert fetch(sqlite_url, "SELECT * FROM t WHERE id NOT BETWEEN 1 AND 1000 ORDER BY id") == [
        (-(2**63), -(2**31), str(-(2**63)), "NaN", 0),
        (2**63 - 1, 2**31 - 1, str(2**63 - 1), str(10**30), 0),
    ]
