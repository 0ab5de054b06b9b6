"""Lines that SQLite writes for PostgreSQL: the same as Python's for every value, or none at all."""

from __future__ import annotations

import math
import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl import Database, Pipeline, merge
from etl.connector import LineWriter
from etl.databases.database import ReadSpec
from etl.databases.sqlite.lines import Doubt, Lines
from etl.databases.sqlite.pages import Joined
from etl.databases.sqlite.reader import open_reader
from etl.databases.types import encode_column, from_sqlite, postgres_type, unescape
from etl.databases.url import parse_url
from etl.errors import DataError, PipelineFailedError
from etl.rows import Column, TextRows, Type, ValueRows
from tests.integration.postgres_kit import run_sql
from tests.integration.postgres_kit import sql as postgres
from tests.integration.sqlite_kit import INFO, fetch, insert, script

_NUMERIC_15_2 = (15 << 16 | 2) + 4
TARGETS: dict[str, Type] = {
    "smallint": postgres_type(name="smallint", base="int2"),
    "integer": postgres_type(name="integer", base="int4"),
    "bigint": postgres_type(name="bigint", base="int8"),
    "real": postgres_type(name="real", base="float4"),
    "double precision": postgres_type(name="double precision", base="float8"),
    "numeric": postgres_type(name="numeric", base="numeric"),
    "numeric(15,2)": postgres_type(name="numeric(15,2)", base="numeric", typmod=_NUMERIC_15_2),
    "numeric(30,4)": postgres_type(name="numeric(30,4)", base="numeric", typmod=(30 << 16 | 4) + 4),
    "numeric(9,0)": postgres_type(name="numeric(9,0)", base="numeric", typmod=(9 << 16) + 4),
    "boolean": postgres_type(name="boolean", base="bool"),
    "text": postgres_type(name="text", base="text"),
    "character varying(3)": postgres_type(
        name="character varying(3)", base="varchar", typmod=3 + 4
    ),
    "character(3)": postgres_type(name="character(3)", base="bpchar", typmod=3 + 4),
    "bytea": postgres_type(name="bytea", base="bytea"),
    "date": postgres_type(name="date", base="date"),
    "time without time zone": postgres_type(name="time without time zone", base="time"),
    "timestamp without time zone": postgres_type(
        name="timestamp without time zone", base="timestamp"
    ),
    "timestamp(0) without time zone": postgres_type(
        name="timestamp(0) without time zone", base="timestamp", typmod=0
    ),
    "timestamp with time zone": postgres_type(name="timestamp with time zone", base="timestamptz"),
    "interval": postgres_type(name="interval", base="interval"),
    "uuid": postgres_type(name="uuid", base="uuid"),
    "jsonb": postgres_type(name="jsonb", base="jsonb"),
    "inet": postgres_type(name="inet", base="inet"),
}
DECLARED = (
    "INTEGER",
    "TEXT",
    "TEXT COLLATE NOCASE",
    "VARCHAR(3) COLLATE RTRIM",
    "",
    "REAL",
    "DATE",
)


def shifted(digits: int, places: int) -> float:
    return float(digits / 10**places)


dates = st.builds(
    "{:04}-{:02}-{:02}".format, st.integers(0, 9999), st.integers(0, 13), st.integers(0, 32)
)
times = st.builds(
    "{:02}:{:02}:{:02}".format, st.integers(0, 25), st.integers(0, 60), st.integers(0, 61)
)
fractions = st.sampled_from(["", "", ".5", ".500", ".123456", ".1234567"])
zones = st.sampled_from(["", "", "Z", "+02", "-0330", "+05:30", "+5"])
texts = st.one_of(
    st.text(st.sampled_from("aA0 \\N\t\n\r\0\x1d\x1e\x1f'\"%ä€😀-.:"), max_size=6),
    st.sampled_from(
        ["", "\\N", "\\", "\\x41", "N", "now", "infinity", "t", "%s", "{}", '{"a": 1.50}']
    ),
    dates,
    st.builds("{}{}".format, dates, st.sampled_from([" ", "\0", "\0x", "  "])),
    st.builds("{}{}{}{}{}".format, dates, st.sampled_from(" T_"), times, fractions, zones),
    st.builds("{}{}".format, times, fractions),
    st.uuids().map(str),
    st.uuids().map(lambda value: value.hex),
    st.decimals(allow_nan=False, allow_infinity=False, places=3).map(str),
    st.sampled_from(
        ["1.50", "-0.0", ".5", "5.", "1e5", "1.2.3", "--1", "-", "1_000", "0x1F", "NaN"]
    ),
    # What looks short only where SQLite finds no number at its beginning, or not all of it.
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["", "-", "+", " ", "\v", "0", "-0", "-1", "7_", "07", "9" * 19, "1\0"]),
        st.sampled_from(["", ".", ".0", ".00", ".5", ".50", ".05\0", ".1234", ".12345"]),
        st.sampled_from(["", "", " ", "\0"]),
    ),
)
numbers = st.one_of(
    st.integers(-3, 3),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([2**15, -(2**15), 2**31, -(2**31), 10**13, 2**53, 2**53 + 1, 10**15]),
    st.floats(allow_nan=False),
    st.builds(shifted, st.integers(-(10**16), 10**16), st.integers(0, 6)),
    st.sampled_from([-0.0, math.inf, -math.inf, 5e-324, 1e15, 9999999999999.99, -(2.0**63)]),
)
values = st.one_of(st.none(), numbers, texts, st.binary(max_size=4))


def column(name: str, type: Type, *, nullable: bool = True) -> Column:
    return Column(name=name, type=type, nullable=nullable)


def lite(declared: str) -> Type:
    return Type(kind="dynamic", name=declared, dialect="sqlite")


def by_sqlite(
    rows: Sequence[tuple[Any, ...]],
    declared: Sequence[str],
    targets: Sequence[Column],
    *,
    is_strict: bool,
) -> tuple[list[tuple[Any, ...]], list[str] | None]:
    """What SQLite holds of some rows, and the lines that it writes; None where it is in doubt."""
    names = [target.name for target in targets]
    sources = [column(name, lite(one)) for name, one in zip(names, declared, strict=True)]
    lines = Lines(sources, targets, is_strict=is_strict, are_own=True)
    with closing(sqlite3.connect(":memory:")) as connection:
        columns = ", ".join(f"{n} {d}" for n, d in zip(names, declared, strict=True))
        connection.execute(f"CREATE TABLE t ({columns})")
        marks = ", ".join("?" * len(names))
        connection.executemany(f"INSERT INTO t VALUES ({marks})", rows)
        held = connection.execute("SELECT * FROM t").fetchall()
        pieces = connection.execute(f"SELECT {', '.join(lines.select)} FROM t").fetchall()
    try:
        return held, lines.write(pieces).decode().split("\n")[:-1]
    except Doubt:
        return held, None


def by_python(rows: Sequence[tuple[Any, ...]], targets: Sequence[Column]) -> list[str]:
    """The lines of the path that looks at each value.

    Raises:
        DataError: It refuses one.
    """
    fields: list[list[str]] = []
    for found, target in zip(zip(*rows, strict=True), targets, strict=True):
        adapt = from_sqlite(target.type)
        fields.append(encode_column(adapt(found) if adapt else found, target))
    return list(map("\t".join, zip(*fields, strict=True)))


def meant(line: str, targets: Sequence[Column]) -> list[Any]:
    """A line's fields, those of a kind that has several texts for one value by their value."""
    found: list[Any] = []
    for text, target in zip(line.split("\t"), targets, strict=True):
        kind = target.type.kind
        if text == "\\N":
            found.append(None)
        elif kind == "numeric":
            # PostgreSQL has no minus zero here.
            found.append(Decimal(text) + 0)
        elif kind in {"float32", "float64"}:
            found.append(repr(float(text)))
        elif kind == "bool":
            found.append({"1": "t", "0": "f"}.get(text, text))
        elif kind == "bytes":
            found.append(text.lower())
        else:
            found.append(unescape(text))
    return found


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_lines_are_those_of_python_or_none(name: str, data: st.DataObject) -> None:
    declared = ["TEXT", data.draw(st.sampled_from(DECLARED)), "TEXT"]
    nullable = data.draw(st.booleans())
    targets = [
        column("a", TARGETS["text"]),
        column("b", TARGETS[name], nullable=nullable),
        column("c", TARGETS["character varying(3)"]),
    ]
    beside = st.one_of(st.none(), st.sampled_from(["x", "ab ", "abcd", "a\tb", "\\N", "\r", "a\0"]))
    rows = data.draw(st.lists(st.tuples(beside, values, beside), min_size=1, max_size=4))

    for is_strict in (False, True):
        held, lines = by_sqlite(rows, declared, targets, is_strict=is_strict)
        for row, line in zip(held, lines or (), strict=False):
            assert_same(row, line, targets)


def assert_same(row: tuple[Any, ...], line: str, targets: Sequence[Column]) -> None:
    """A line says what Python's says; where Python refuses a value, PostgreSQL does."""
    for value, field, target in zip(row, line.split("\t"), targets, strict=True):
        try:
            expected = by_python([(value,)], [target])[0]
        except DataError:
            assert is_refused_by_postgres(field, target)
        else:
            is_same = meant(field, [target]) == meant(expected, [target])
            # Of what has too many digits for its column, not all of them are right.
            assert is_same or is_refused_by_postgres(field, target)


def is_refused_by_postgres(field: str, target: Column) -> bool:
    """What PostgreSQL refuses is left to it; tests below see it do so."""
    type = target.type
    match type.kind:
        case "int16" | "int32":
            return (
                not -(2 ** (int(type.kind[3:]) - 1)) <= int(field) < 2 ** (int(type.kind[3:]) - 1)
            )
        case "numeric":
            if re.fullmatch(r"-?(\d+\.?\d*|\.\d+)(e-\d)?", field, re.ASCII) is None:
                return re.fullmatch(r"[-.\d]*", field, re.ASCII) is not None
            if type.precision is None or type.scale is None:
                return False
            return bool(abs(Decimal(field)) >= 10 ** (type.precision - type.scale))
        case "text":
            # It drops spaces at the end, so those it must not see.
            assert type.length is not None
            text = unescape(field)
            if type.name.startswith("character("):
                return len(text.rstrip(" ")) > type.length
            return len(text) > type.length and not text.endswith(" ")
        case _:
            return False


USUAL: Sequence[tuple[str, str, Sequence[Any]]] = [
    ("INTEGER", "bigint", [1, None, -(2**63)]),
    ("BOOLEAN", "boolean", [1, 0, None]),
    ("DECIMAL(15,2)", "numeric(15,2)", [17, 21168.23, -0.04, 0.07, None, 9999999999999.99]),
    ("DECIMAL", "numeric(30,4)", [0.0001, -12345678.9012, 5]),
    ("TEXT", "numeric(15,2)", ["1.50", "-12", None]),
    ("TEXT", "numeric", ["1.500", "-12", None]),
    ("REAL", "double precision", [0.1 + 0.2, -0.0, math.inf, 5e-324, None, 3.0]),
    ("DECIMAL", "numeric", [0.1 + 0.2, 5, 1e22]),
    ("TEXT", "text", ["ä€😀 ", "", None, "%s"]),
    ("VARCHAR(3)", "character varying(3)", ["abc", "", None]),
    ("CHAR(3)", "character(3)", ["ab", "a", None]),
    ("BLOB", "bytea", [b"", b"\x00\xff\\\n", None]),
    ("DATE", "date", ["2024-02-29", "0001-01-01", "9999-12-31", None]),
    ("TIME", "time without time zone", ["23:59:59", None]),
    ("DATETIME", "timestamp without time zone", ["2024-02-29 23:59:59", "2024-02-29", None]),
    ("DATETIME", "timestamp without time zone", ["2024-02-29T23:59:59.123456", None]),
    ("DATETIME", "timestamp with time zone", ["2024-02-29 23:59:59Z", "2024-02-29 01:02:03.5+00"]),
    ("UUID", "uuid", ["00000000-0000-0000-0000-00000000000A", None]),
    ("JSON", "jsonb", ['{"a": [1, 2.50]}', None]),
]


@pytest.mark.parametrize("is_strict", [False, True])
@pytest.mark.parametrize(("declared", "target", "given"), USUAL)
def test_usual_values_are_no_doubt(
    declared: str, target: str, given: Sequence[Any], is_strict: bool
) -> None:
    targets = [column("a", TARGETS["text"]), column("b", TARGETS[target])]
    rows = [("x", value) for value in given]
    if target == "timestamp with time zone":
        rows.pop()  # half a fraction is left to Python

    held, lines = by_sqlite(rows, ["TEXT", declared], targets, is_strict=is_strict)

    assert lines is not None
    expected = by_python(held, targets)
    assert [meant(one, targets) for one in lines] == [meant(one, targets) for one in expected]


SPECIAL = ["a\tb", "a\nb", "a\rb", "a\\b", "\\N", "\\", "\\\t", "\\n"]


@pytest.mark.parametrize("odd", SPECIAL)
def test_texts_with_special_characters_are_escaped_when_they_are_seen(odd: str) -> None:
    targets = [column("a", TARGETS["text"]), column("b", TARGETS["text"])]
    rows = [("x", None), (odd, odd)]

    _, plain = by_sqlite(rows, ["TEXT", "TEXT"], targets, is_strict=False)
    held, strict = by_sqlite(rows, ["TEXT", "TEXT"], targets, is_strict=True)

    assert plain is None
    assert strict == by_python(held, targets)


@pytest.mark.parametrize("odd", ["\x1d", "a\x1d", "\x1e", "\x1f", "a\0", "\0", "\\N\0"])
@pytest.mark.parametrize("nullable", [True, False])
def test_a_text_is_never_taken_for_a_null_or_for_the_end_of_a_field(
    odd: str, nullable: bool
) -> None:
    targets = [column(n, TARGETS["text"], nullable=nullable) for n in "ab"]

    for is_strict in (False, True):
        held, lines = by_sqlite(
            [(odd, "x"), ("x", odd)], ["TEXT", "TEXT"], targets, is_strict=is_strict
        )
        assert lines is None or lines == by_python(held, targets)
        assert lines is None or not is_strict


async def batches_of(
    url: str, targets: Sequence[Column], spec: ReadSpec | None = None
) -> list[Any]:
    """What a reader gives that was asked for lines: the rows of its batches."""
    found: list[Any] = []

    async def emit(batch: Any) -> None:
        found.append(batch.rows)

    async with open_reader(parse_url(url), spec or ReadSpec(table="t"), INFO) as reader:
        assert isinstance(reader, LineWriter)
        reader.write_lines(targets)
        await reader.pump(None, None, emit)
    return found


async def test_one_odd_value_costs_one_page(sqlite_url: str) -> None:
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, at DATE)")
    insert(sqlite_url, "t", [(i, f"2024-01-{i % 28 + 1:02}") for i in range(1000)])
    script(sqlite_url, "UPDATE t SET at = 'soon' WHERE id = 500")

    found = await batches_of(
        sqlite_url, [column("id", TARGETS["bigint"]), column("at", TARGETS["date"])]
    )

    kinds: list[Any] = [type(rows) for rows in found]
    # As values it takes more room.
    assert 1 <= kinds.count(ValueRows) <= 5
    assert (kinds[0], kinds[-1]) == (TextRows, TextRows)
    assert sum(map(len, found)) == 1000


async def test_texts_that_need_escapes_stay_lines(sqlite_url: str) -> None:
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, at TEXT)")
    insert(sqlite_url, "t", [(i, "a\tb" if i == 500 else "ab") for i in range(1000)])

    found = await batches_of(
        sqlite_url, [column("id", TARGETS["bigint"]), column("at", TARGETS["text"])]
    )

    assert {type(rows) for rows in found} == {TextRows}
    assert sum(map(len, found)) == 1000


@pytest.mark.parametrize(
    ("key", "index", "is_joined"),
    [
        ("id INTEGER PRIMARY KEY", "", True),
        ("id TEXT COLLATE NOCASE PRIMARY KEY", "", True),
        ("a TEXT, id INTEGER, PRIMARY KEY (a, id)", "", True),
        ("a TEXT, id INTEGER, PRIMARY KEY (a, id)) WITHOUT ROWID; SELECT (1", "", True),
        ("id INTEGER PRIMARY KEY", "CREATE INDEX i ON t (n, id)", True),
        # Each page would go through all rows, or sort them.
        ("id INTEGER PRIMARY KEY", "-- by n", False),
        ("a TEXT COLLATE NOCASE, id INTEGER, PRIMARY KEY (a, id)", "", False),
        # The key is not in the lines.
        ("id DECIMAL PRIMARY KEY", "", False),
        ("id INTEGER", "", False),
    ],
)
async def test_sqlite_joins_the_lines_of_a_page_where_the_next_one_can_be_found(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch, key: str, index: str, is_joined: bool
) -> None:
    script(sqlite_url, f"CREATE TABLE t (n INTEGER NOT NULL, {key}\n)")
    script(sqlite_url, index)
    columns = ("n", "a", "id") if key.startswith("a ") else ("n", "id")
    rows = [(i % 50, i // 100, i) if len(columns) == 3 else (i % 50, i) for i in range(1000)]
    insert(sqlite_url, "t", rows)
    fetch, pages = Joined.fetch, list[int]()

    def counted(self: Joined, cursor: sqlite3.Cursor) -> Any:
        found = fetch(self, cursor)
        pages.append(found[0] if found is not None else 0)
        return found

    monkeypatch.setattr(Joined, "fetch", counted)
    spec = ReadSpec(table="t", cursor=("n",) if "n" in index else ())
    types = {"n": "bigint", "a": "text", "id": "text" if "id TEXT" in key else "bigint"}
    if "DECIMAL" in key:
        types["id"] = "numeric"

    found = await batches_of(
        sqlite_url, [column(name, TARGETS[types[name]]) for name in columns], spec
    )

    assert {type(one) for one in found} == {TextRows}
    assert (pages[-1:], sum(pages)) == (([0], 1000) if is_joined else ([], 0))
    texts = [line for one in found for line in one.lines]
    assert sorted(texts) == sorted("\t".join(map(str, row)) for row in rows)


async def test_pages_shrink_where_rows_grow(sqlite_url: str) -> None:
    sizes = [10] * 3000 + [3000] * 300 + [60_000] * 40 + [2_000_000] * 2 + [10] * 3000
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    insert(sqlite_url, "t", [(i, "ä" * (size // 2)) for i, size in enumerate(sizes)])

    found = await batches_of(
        sqlite_url, [column("id", TARGETS["bigint"]), column("v", TARGETS["text"])]
    )

    assert [type(rows) for rows in found[:10]] == [TextRows] * 10
    assert [len(row["v"]) for rows in found for row in rows] == [size // 2 for size in sizes]
    assert max(rows.nbytes for rows in found if isinstance(rows, TextRows)) < 3 * INFO.batch_bytes


async def test_a_number_in_a_view_is_not_taken_for_a_text(sqlite_url: str) -> None:
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
    script(sqlite_url, "CREATE VIEW w AS SELECT id, v FROM t UNION ALL SELECT 2, 5")
    insert(sqlite_url, "t", [(1, "a")])

    found = await batches_of(
        sqlite_url,
        [column("id", TARGETS["bigint"]), column("v", TARGETS["text"])],
        ReadSpec(table="w", key=("id",)),
    )

    assert [row["v"] for rows in found for row in rows] == ["a", 5]


ODD: Sequence[tuple[str, str, Any, Any]] = [
    ("TEXT", "text", "back\\slash\tand\nmore\r", None),
    ("TEXT", "text", "\\N", None),
    ("DATETIME", "timestamp", "2024-01-02T03:04", "2024-01-02 03:04:00"),
    ("TEXT", "numeric(10,2)", "1e2", "100.00"),
    ("DECIMAL", "numeric(10,2)", None, None),
    ("REAL", "float8", 0.1 + 0.2, "0.30000000000000004"),
    ("", "float8", -0.0, "-0"),
    ("TEXT", "varchar(5000)", "long " * 1000, None),
    ("TEXT", "text", "w" * 1_500_000, None),
]


@pytest.mark.parametrize(("declared", "target", "odd", "expected"), ODD)
async def test_odd_values_among_many_arrive_as_they_are(
    sqlite_url: str,
    postgres_url: str,
    declared: str,
    target: str,
    odd: Any,
    expected: Any,
) -> None:
    usual: Any = {"DATETIME": "2024-01-01 00:00:00", "TEXT": "1"}.get(declared, 1.25)
    script(sqlite_url, f"CREATE TABLE t (id INTEGER PRIMARY KEY, v {declared}, w TEXT)")
    insert(sqlite_url, "t", [(i, odd if i % 997 == 3 else usual, "é") for i in range(3000)])
    await run_sql(postgres_url, f"CREATE TABLE t (id bigint, v {target}, w text)")

    await Pipeline(
        "p", Database(sqlite_url).table("t").into(Database(postgres_url).append("t"))
    ).run()

    async with postgres(postgres_url) as connection:
        rows = await connection.fetch("SELECT id::int AS id, v::text AS v, w FROM t ORDER BY 1")
    assert [row["id"] for row in rows] == list(range(3000))
    assert {row["w"] for row in rows} == {"é"}
    wanted = expected if expected is not None or odd is None else odd
    assert {row["v"] for row in rows if row["id"] % 997 == 3} == {wanted}
    assert len({row["v"] for row in rows if row["id"] % 997 != 3}) == 1


KEYS: Sequence[tuple[str, str, Callable[[int], Any]]] = [
    ("id TEXT PRIMARY KEY", "text", lambda i: f"a\\{i:04}" if i % 7 else f"\t{i:04}"),
    ("id REAL PRIMARY KEY", "float8", lambda i: i + 0.1),
    ("id DECIMAL PRIMARY KEY", "numeric(10,1)", lambda i: i + 0.5),
    ("id BLOB PRIMARY KEY", "bytea", lambda i: i.to_bytes(2, "big")),
    ("id DATE PRIMARY KEY", "date", lambda i: f"{1000 + i}-01-01"),
    ("id INTEGER PRIMARY KEY DESC", "bigint", lambda i: -i),
    ("id INT", "bigint", lambda i: i),
]


@pytest.mark.parametrize(("declared", "target", "key_of"), KEYS)
async def test_a_read_goes_on_after_the_last_line_whatever_the_key(
    sqlite_url: str, postgres_url: str, declared: str, target: str, key_of: Callable[[int], Any]
) -> None:
    script(sqlite_url, f"CREATE TABLE t ({declared}, n INTEGER, v TEXT)")
    # Odd values make the read start again after a key, at several places.
    rows = [(key_of(i), i, "1e2" if i % 601 == 5 else str(i)) for i in range(3000)]
    insert(sqlite_url, "t", rows)
    await run_sql(postgres_url, f"CREATE TABLE t (id {target}, n bigint, v numeric)")
    database = Database(sqlite_url)
    is_view = "DESC" in declared
    source = (
        database.query("SELECT * FROM t", name="t", key=["id"]) if is_view else database.table("t")
    )

    await Pipeline("p", source.into(Database(postgres_url).append("t"))).run()

    async with postgres(postgres_url) as connection:
        found = await connection.fetch("SELECT n, v FROM t ORDER BY n")
    assert [tuple(row) for row in found] == [(n, Decimal(v)) for _, n, v in rows]


@pytest.mark.parametrize(
    ("declared", "target", "bad"),
    [
        ("INTEGER", "integer", "abc"),
        ("INTEGER", "integer", 2.5),
        ("INTEGER", "integer", 2**40),
        ("TEXT", "text", b"blob"),
        ("TEXT", "text", "nul\0"),
        ("DATE", "date", "now"),
        ("DATE", "date", "2024-02-30"),
        ("DECIMAL", "numeric(10,2)", 0.125),
        ("DECIMAL", "numeric(10,2)", math.inf),
        ("DECIMAL", "numeric(15,2)", 1e15),
        ("TEXT", "varchar(3)", "ab  "),
        ("TEXT", "varchar(3)", "abcd"),
        ("TEXT", "varchar(3)", "abc\t"),
        ("TEXT", "numeric", "1.2.3"),
        ("TEXT", "numeric", "--1"),
        ("TEXT", "numeric", "1-2"),
        ("TEXT", "numeric", ""),
        ("TEXT", "numeric", "."),
        ("BOOLEAN", "boolean", 2),
        ("REAL", "real", 1e300),
    ],
)
async def test_what_does_not_fit_is_refused_and_nothing_after_it_written(
    sqlite_url: str, postgres_url: str, declared: str, target: str, bad: Any
) -> None:
    script(sqlite_url, f"CREATE TABLE t (id INTEGER PRIMARY KEY, v {declared})")
    insert(sqlite_url, "t", [(i, bad if i == 2500 else None) for i in range(3000)])
    await run_sql(postgres_url, f"CREATE TABLE t (id bigint, v {target})")
    flow = Database(sqlite_url).table("t").into(Database(postgres_url).append("t"))

    with pytest.raises(PipelineFailedError) as failure:
        await Pipeline("p", flow).run()

    (error,) = failure.value.errors
    assert isinstance(error, DataError)
    assert error.column == "v"
    async with postgres(postgres_url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM t WHERE id >= 2500") == 0


async def test_decimals_arrive_as_the_shortest_text_of_their_number(
    sqlite_url: str, postgres_url: str
) -> None:
    cents = [n * 7919 % 10**12 * (-1) ** n for n in range(20_000)]
    script(sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, a DECIMAL(15,2), b DECIMAL(15,6))")
    insert(sqlite_url, "t", [(i, n / 100, n / 10**6) for i, n in enumerate(cents)])
    await run_sql(postgres_url, "CREATE TABLE t (id bigint, a numeric(15,2), b numeric(15,6))")

    await Pipeline(
        "p", Database(sqlite_url).table("t").into(Database(postgres_url).append("t"))
    ).run()

    async with postgres(postgres_url) as connection:
        rows = await connection.fetch("SELECT a, b FROM t ORDER BY id")
    assert [(row["a"], row["b"]) for row in rows] == [
        (Decimal(repr(n / 100)), Decimal(repr(n / 10**6))) for n in cents
    ]


async def test_merged_tables_make_a_table_that_holds_the_rows_of_all(
    sqlite_url: str, postgres_url: str
) -> None:
    script(
        sqlite_url,
        """
        CREATE TABLE a (id INTEGER PRIMARY KEY, v DECIMAL(9,2), at DATE, note TEXT NOT NULL);
        CREATE TABLE b (id INTEGER PRIMARY KEY, v DECIMAL(9,2), at DATE, note TEXT);
        INSERT INTO a VALUES (1, 2, '2024-01-01', 'x');
        INSERT INTO b VALUES (1, 2.5, NULL, NULL);
        """,
    )
    source, target = Database(sqlite_url), Database(postgres_url)
    both = merge(source.table("a"), source.table("b")).named("both")
    pipeline = Pipeline("p", both.into(target.append("t"), Database(sqlite_url).append("t")))

    (survey,) = await pipeline.survey()
    assert survey.refusal is None
    await pipeline.run()

    async with postgres(postgres_url) as connection:
        rows = await connection.fetch("SELECT id, v, at, note FROM t ORDER BY v")
    assert [tuple(row) for row in rows] == [
        (1, Decimal(2), date(2024, 1, 1), "x"),
        (1, Decimal("2.5"), None, None),
    ]
    assert fetch(sqlite_url, "SELECT id, v FROM t ORDER BY v") == [(1, 2), (1, 2.5)]
