"""Functions of Arrow between databases and files: exact values, refusals, tokens, bad rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from etl import Database, DeadLetter, File, Limits, Pipeline, Row
from etl.errors import PipelineFailedError, SchemaMismatchError
from tests.integration.postgres_kit import run_sql, texts, value

TYPES = r"""
CREATE TYPE mood AS ENUM ('ok', 'it''s "odd"');
CREATE DOMAIN short AS varchar(5) CHECK (value <> 'never');
CREATE TABLE odd (
    id bigint PRIMARY KEY, b boolean, i2 smallint, i4 integer, f4 real, f8 double precision,
    n numeric, n2 numeric(15, 2), n9 numeric(60, 20), n0 numeric(3, -2), t text, v varchar(20),
    c char(4), by bytea, d date, ti time, tz timetz, ts timestamp, tstz timestamptz, iv interval,
    u uuid, j json, jb jsonb, m mood, s short, a int[], a2 text[], r int4range, mr nummultirange,
    ip inet, mac macaddr, bits bit(3), vb varbit, p point, tsv tsvector, q tsquery,
    o oid, nm name, "Odd ""Name %s" text
);
"""
ROWS = r"""
INSERT INTO odd (id) VALUES (0);
INSERT INTO odd VALUES
(1, true, -32768, -2147483648, 1e-45, 5e-324, 'NaN', -0.01, -1e-20, 12300,
 E'tab\t nl\n cr\r bs\\ \\N \\. ü😀 \b\f\v \\\\n', '', 'ab', '\x5c780a', '0001-01-01',
 '23:59:59.999999', '23:59:59.999999-15:59', '9999-12-31 23:59:59.999999',
 '0001-01-01 00:00:00+00', '1 year 2 mons -3 days 04:05:06.789',
 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{"b": 1,  "a": 1e400, "a": 2}', '{"a": 1.10}',
 'it''s "odd"', 'x', '[2:3]={1,NULL}', ARRAY['a,b', NULL, 'NULL', '"', '{}', E'\\'], '[1,10)',
 '{[1.5,2),(3,]}', '10.1.2.3/8', '08:00:2b:01:02:03', '101', '1', '(1.5,-2)',
 $$'a':1A 'b c':2$$, $$'a' & !'b'$$, 4294967295, 'pg name', 'x'),
(2, false, 32767, 2147483647, 'NaN', '-Infinity', '123456789012345678901234567890.0000000001',
 9999999999999.99, 1234567890123456789012345678901234567890.12345678901234567890, 0, E'\ufeff',
 'it "quotes"', 'ä', '', '2024-02-29', '00:00', '00:00+00', '2024-02-29 12:00',
 '2024-02-29 12:00:00.5+02', '-1 microsecond', '00000000-0000-0000-0000-000000000000', 'null',
 'null', 'ok', '', '{}', '{{a,b},{c,d}}', 'empty', '{}', '::1', '00:00:00:00:00:00', '000', '',
 '(NaN,Infinity)', '', '', 0, '', E'\\N');
"""


@pytest.fixture
def two(postgres_database: Callable[[], str]) -> tuple[str, str]:
    """A source and a target."""
    return postgres_database(), postgres_database()


@dataclass(frozen=True, slots=True)
class Priced:
    id: int
    price: Decimal


def identity(table: Any) -> Any:
    return table


def copied(table: Any) -> Any:
    """The same values in new arrays and fields, without what etl noted beside them."""
    return pa.table([column.combine_chunks() for column in table.columns], table.column_names)


@pytest.mark.parametrize("function", [identity, copied])
async def test_every_value_that_arrow_holds_comes_back_as_it_was(
    two: tuple[str, str], function: Callable[[Any], Any]
) -> None:
    source, target = two
    await run_sql(source, TYPES + ROWS)
    await run_sql(target, TYPES)

    flow = Database(source).table("odd").map_arrow(function).into(Database(target).append("odd"))
    await Pipeline("p", flow).run()

    wanted = await texts(source, "SELECT * FROM odd ORDER BY id")
    assert await texts(target, "SELECT * FROM odd ORDER BY id") == wanted


async def copy(source: str, target: str, function: Callable[[Any], Any], **limits: Any) -> Any:
    flow = Database(source).table("t").map_arrow(function).into(Database(target).append("t"))
    return await Pipeline("p", flow, limits=Limits(**limits)).run()


async def test_texts_of_a_table_that_is_all_text_and_empty_lines_stay(two: tuple[str, str]) -> None:
    source, target = two
    rows = r"('', ''), (E'\ufeff', NULL), (E'\ufeffx', E'\\N'), (NULL, E'a\nb'), ('\t', E'\t')"
    await run_sql(
        source, f"CREATE TABLE t (a text); INSERT INTO t SELECT a FROM (VALUES {rows}) v(a, b)"
    )
    await run_sql(target, "CREATE TABLE t (a text)")

    await copy(source, target, identity)

    # Without a key rows have no order.
    query = "SELECT convert_to(a, 'UTF8') FROM t ORDER BY 1"
    assert await texts(target, query) == await texts(source, query)


async def test_values_that_arrow_does_not_hold_go_as_text_where_that_is_declared(
    two: tuple[str, str],
) -> None:
    source, target = two
    await run_sql(
        source,
        """
        CREATE TABLE t (id int PRIMARY KEY, d date, ts timestamp, n numeric(9, 2));
        INSERT INTO t VALUES (1, 'infinity', '0044-03-15 12:00 BC', 'NaN'),
            (2, '2024-01-01', '2024-01-01', 1);
        """,
    )
    await run_sql(
        target, "CREATE TABLE t (id int PRIMARY KEY, d date, ts timestamp, n numeric(9, 2))"
    )

    with pytest.raises(
        PipelineFailedError, match=r"'d' \(date\), row 1 of the batch.*cast\("
    ) as refused:
        await copy(source, target, identity)
    assert "infinity" not in str(refused.value)
    assert await value(target, "SELECT count(*) FROM t") == 0

    stream = Database(source).table("t").cast(d="text", ts="text", n="text").map_arrow(identity)
    await Pipeline("q", stream.into(Database(target).append("t"))).run()
    query = "SELECT * FROM t ORDER BY id"
    assert await texts(target, query) == await texts(source, query)


NUMBERS = """
CREATE TABLE t (id int PRIMARY KEY, price numeric(15, 2) NOT NULL, off numeric(15, 2), mode text);
INSERT INTO t SELECT n, n / 7.0, n % 10 / 100.0, chr(65 + n % 26)
FROM generate_series(1, 1000) AS n;
"""


def worked(table: Any) -> Any:
    """Filter, compute, add, drop, change."""
    table = table.filter(pc.not_equal(pc.bit_wise_and(table["id"], 3), 0))
    one = pa.scalar(1, pa.decimal128(3, 0))
    net = pc.multiply(table["price"], pc.subtract(one, table["off"]))
    net = pc.round(net, 2, "half_towards_infinity")
    table = table.drop_columns(["off"]).append_column("net", net)
    return table.set_column(table.column_names.index("mode"), "mode", pc.utf8_lower(table["mode"]))


WORKED = """
SELECT id, price, lower(mode) AS mode, round(price * (1 - off), 2) AS net FROM t WHERE id & 3 <> 0
ORDER BY id
"""
NET = "CREATE TABLE t (id int PRIMARY KEY, price numeric(15, 2), mode text, net numeric(15, 2));"


@pytest.mark.parametrize("batch_rows", [1, 7, 1000])
@pytest.mark.parametrize("lanes", [1, 3])
async def test_columns_are_dropped_added_and_changed(
    two: tuple[str, str], batch_rows: int, lanes: int
) -> None:
    source, target = two
    await run_sql(source, NUMBERS.replace("1000", "1000" if batch_rows > 1 else "60"))
    await run_sql(target, NET)

    report = await copy(source, target, worked, batch_rows=batch_rows, lanes=lanes)

    wanted = await texts(source, WORKED)
    assert await texts(target, "SELECT * FROM t ORDER BY id") == wanted
    assert report.flows[0].rows_written == len(wanted)


async def test_a_function_sees_the_batches_limits_and_the_order_of_the_key(
    two: tuple[str, str],
) -> None:
    source, target = two
    await run_sql(source, NUMBERS)
    seen: list[list[int]] = []

    def noted(table: Any) -> Any:
        seen.append(table["id"].to_pylist())
        return table.select(["mode"])  # without the key: positions are the source's

    await copy(source, target, noted, batch_rows=64)

    assert max(map(len, seen)) <= 64
    assert [one for batch in seen for one in batch] == list(range(1, 1001))
    assert await value(target, "SELECT count(mode) FROM t") == 1000


async def test_declared_steps_before_are_done_by_the_source(two: tuple[str, str]) -> None:
    source, target = two
    await run_sql(source, NUMBERS)
    await run_sql(target, "CREATE TABLE t (mode text, total numeric(20, 4))")
    types: list[str] = []

    def noted(table: Any) -> Any:
        types.extend(map(str, table.schema.types))
        return table

    stream = Database(source).table("t").where("id > 990").select("mode", total="price * 2")
    await Pipeline("p", stream.map_arrow(noted).into(Database(target).append("t"))).run()

    assert types == ["string", "string"]  # of what an expression makes the digits are not known
    wanted = "SELECT mode, (price * 2)::numeric(20, 4) FROM t WHERE id > 990 ORDER BY id"
    assert await texts(target, "SELECT * FROM t") == await texts(source, wanted)


async def test_incremental_reads_upserts_and_new_tables(two: tuple[str, str]) -> None:
    source, target = two
    await run_sql(source, NUMBERS)
    orders = Database(source).table("t", cursor="id").map_arrow(worked)
    pipeline = Pipeline("p", orders.into(Database(target).upsert("t", key=["id"])))

    await run_sql(target, "CREATE TABLE t (id int, price numeric, mode text, net numeric)")
    with pytest.raises(SchemaMismatchError, match="unique index"):
        await pipeline.run()
    await run_sql(target, "DROP TABLE t; " + NET)
    await pipeline.run()
    await run_sql(
        source, "INSERT INTO t VALUES (2001, 5, 0.1, 'Z'); UPDATE t SET price = 0 WHERE id = 1"
    )
    report = await pipeline.run()

    assert report.flows[0].rows_read == 1
    assert await texts(target, "SELECT * FROM t WHERE id > 1000") == ["(2001,5.00,z,4.50)"]


async def test_a_missing_table_is_made_of_the_first_tables_columns(two: tuple[str, str]) -> None:
    source, target = two
    await run_sql(source, NUMBERS + TYPES + ROWS + "UPDATE odd SET j = NULL")  # it becomes jsonb
    flows = [
        Database(source).table(name).map_arrow(identity).into(Database(target).replace(name))
        for name in ("t", "odd")
    ]
    await Pipeline("p", *flows).run()

    declared = (
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute"
        " WHERE attrelid = 't'::regclass AND attnum > 0 ORDER BY attnum"
    )
    assert await texts(target, declared) == [
        "(id,bigint)", "(price,numeric)", "(off,numeric)", "(mode,text)",
    ]  # fmt: skip
    query = "SELECT id, n, n2, t, by, ts, tstz, iv, u, r::text, a::text FROM odd ORDER BY id"
    assert await texts(target, query) == await texts(source, query)


async def test_a_type_that_the_table_does_not_take_is_refused_before_anything_is_written(
    two: tuple[str, str],
) -> None:
    source, target = two
    await run_sql(source, NUMBERS)
    await run_sql(target, "CREATE TABLE t (id int, price numeric(15, 2), off numeric, mode date)")

    def days(table: Any) -> Any:
        return table.set_column(3, "mode", pc.cast(table["id"], pa.float64()))

    with pytest.raises(PipelineFailedError, match="'mode' is double in the rows and date"):
        await copy(source, target, days)
    assert await value(target, "SELECT count(*) FROM t") == 0


async def test_a_float_goes_into_a_numeric_exactly_or_not_at_all(two: tuple[str, str]) -> None:
    source, target = two
    await run_sql(source, NUMBERS)
    await run_sql(target, "CREATE TABLE t (half numeric(9, 1))")

    def halves(table: Any) -> Any:
        return pa.table({"half": pc.divide(pc.cast(table["id"], pa.float64()), 2)})

    def thirds(table: Any) -> Any:
        return pa.table({"half": pc.divide(pc.cast(table["id"], pa.float64()), 3)})

    await copy(source, target, halves)
    assert await value(target, "SELECT sum(half) FROM t") == 250250
    flow = Database(source).table("t").map_arrow(thirds).into(Database(target).append("t"))
    with pytest.raises(PipelineFailedError, match="digits after the point"):
        await Pipeline("thirds", flow).run()
    assert await value(target, "SELECT count(*) FROM t") == 1000


async def test_a_text_that_the_server_would_store_otherwise_is_refused(
    two: tuple[str, str],
) -> None:
    source, target = two
    await run_sql(
        source,
        "CREATE TABLE t (id int PRIMARY KEY, m text);"
        "INSERT INTO t VALUES (1, '$1.50'), (2, '1.50');",
    )
    await run_sql(target, "CREATE TABLE t (id int, m money)")

    with pytest.raises(PipelineFailedError, match=r"column 'm' \(money\)"):
        await copy(source, target, identity)
    assert await value(target, "SELECT count(*) FROM t") == 0


async def test_several_databases_get_the_same_tables(two: tuple[str, str], tmp_path: Path) -> None:
    source, target = two
    await run_sql(source, NUMBERS)
    await run_sql(target, NET)
    lite = Database(f"sqlite:///{tmp_path}/t.db")
    stream = Database(source).table("t").map_arrow(worked)
    await Pipeline("p", stream.into(Database(target).append("t"), lite.replace("t"))).run()

    back = lite.table("t").map_arrow(identity).into(Database(target).replace("back"))
    await Pipeline("back", back).run()
    wanted = await texts(source, WORKED)
    assert await texts(target, "SELECT * FROM t ORDER BY id") == wanted
    assert (
        await texts(
            target,
            "SELECT id, price::numeric(15,2), mode, net::numeric(15,2) FROM back ORDER BY id",
        )
        == wanted
    )


@pytest.mark.parametrize("ending", ["parquet", "csv", "csv.gz", "jsonl"])
async def test_files_are_source_and_target(
    two: tuple[str, str], tmp_path: Path, ending: str
) -> None:
    source, target = two
    await run_sql(source, NUMBERS)
    await run_sql(target, NET)
    file = File(tmp_path / f"t.{ending}")
    stream = Database(source).table("t").map_arrow(worked)
    await Pipeline("out", stream.into(file.replace())).run()
    await Pipeline("in", file.rows().map_arrow(identity).into(Database(target).append("t"))).run()

    assert await texts(target, "SELECT * FROM t ORDER BY id") == await texts(source, WORKED)


async def test_a_parquet_files_own_types_reach_the_function(
    two: tuple[str, str], tmp_path: Path
) -> None:
    table = pa.table(
        {"n": pa.array([1, 2], pa.int32()), "s": pa.array(["a", "b"]).dictionary_encode()}
    )
    pq.write_table(table, tmp_path / "t.parquet")
    seen: list[Any] = []

    def noted(table: Any) -> Any:
        seen.append(table.schema.types)
        return table

    flow = File(tmp_path / "t.parquet").rows().map_arrow(noted)
    await Pipeline("p", flow.into(Database(two[1]).replace("t"))).run()

    assert seen == [table.schema.types]
    assert await texts(two[1], "SELECT * FROM t ORDER BY n") == ["(1,a)", "(2,b)"]


async def test_sqlite_values_are_typed_by_what_the_columns_hold(tmp_path: Path) -> None:
    import sqlite3

    with sqlite3.connect(tmp_path / "s.db") as db:
        db.execute(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, n DECIMAL(9,2), r REAL, s TEXT, b BLOB, x)"
        )
        db.execute(
            "INSERT INTO t VALUES (1, 1.5, 2.5, 'a', x'00', 7), (2, NULL, NULL, '', NULL, 8)"
        )
    lite = Database(f"sqlite:///{tmp_path}/s.db")
    seen: list[str] = []

    def noted(table: Any) -> Any:
        seen.extend(map(str, table.schema.types))
        return table

    await Pipeline("p", lite.table("t").map_arrow(noted).into(lite.replace("u"))).run()

    assert seen == ["int64", "string", "double", "string", "binary", "int64"]
    with sqlite3.connect(tmp_path / "s.db") as db:
        assert [tuple(map(str, row)) for row in db.execute("SELECT * FROM u ORDER BY id")] == [
            tuple(map(str, row)) for row in db.execute("SELECT * FROM t ORDER BY id")
        ]
        db.execute("INSERT INTO t (id, x) VALUES (3, 'text')")
    with pytest.raises(SchemaMismatchError, match="'x' holds values of several kinds"):
        await Pipeline("q", lite.table("t").map_arrow(noted).into(lite.replace("v"))).run()


async def test_rows_of_sqlite_that_a_function_changed_are_typed_in_the_same_way(
    tmp_path: Path,
) -> None:
    import sqlite3

    lite = Database(f"sqlite:///{tmp_path}/s.db")
    with sqlite3.connect(tmp_path / "s.db") as db:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER, s TEXT)")
        db.execute("INSERT INTO t VALUES (1, 5, 'a'), (2, 6, NULL)")
    seen: list[list[str]] = []

    def changed(row: Row) -> Row:
        return row.replace(n=row["n"] + 1)

    def noted(table: Any) -> Any:
        seen.append(list(map(str, table.schema.types)))
        return table

    await Pipeline("p", lite.table("t").map(changed).map_arrow(noted).into(lite.append("u"))).run()

    assert seen == [["int64", "int64", "string"]]
    with sqlite3.connect(tmp_path / "s.db") as db:
        assert list(db.execute("SELECT * FROM u ORDER BY id")) == [(1, 6, "a"), (2, 7, None)]


async def test_rows_of_a_function_behind_it_are_values(two: tuple[str, str]) -> None:
    source, target = two
    await run_sql(source, NUMBERS)
    await run_sql(target, NET)

    def changed(row: Row) -> Row:
        return row.replace(net=row["net"] + 1)

    stream = Database(source).table("t").map_arrow(worked).map(changed)
    await Pipeline("p", stream.into(Database(target).append("t"))).run()

    wanted = f"SELECT id, price, mode, net + 1 FROM ({WORKED}) AS w"
    assert await texts(target, "SELECT * FROM t ORDER BY id") == await texts(source, wanted)


async def test_bad_rows_are_kept_and_sent_again(two: tuple[str, str]) -> None:
    source, target = two
    await run_sql(source, NUMBERS)
    await run_sql(target, NET + "ALTER TABLE t ADD CHECK (id <> 13)")
    bad = {7, 13, 501}

    def picky(table: Any) -> Any:
        if not bad.isdisjoint(table["id"].to_pylist()):
            raise ValueError("as it was told")
        return worked(table)

    stream = Database(source).table("t").map_arrow(picky)
    flow = stream.into(Database(target).append("t"), on_error=DeadLetter())
    pipeline = Pipeline("p", flow, limits=Limits(batch_rows=100))
    report = await pipeline.run()

    assert report.rows_rejected == 3
    kept = await texts(target, "SELECT row_key, step FROM etl_reject ORDER BY id")
    step = f"map_arrow {picky.__qualname__}"
    assert kept == [f'("{{""id"":{number}}}","{step}")' for number in (7, 13, 501)]
    bad.clear()
    (done,) = await pipeline.retry_rejects()
    assert (done.settled, done.refused) == (2, 1)  # the table refuses one
    await run_sql(target, "ALTER TABLE t DROP CONSTRAINT t_id_check")
    (done,) = await pipeline.retry_rejects()
    assert (done.settled, done.refused) == (1, 0)
    assert await texts(target, "SELECT * FROM t ORDER BY id") == await texts(source, WORKED)


async def test_a_value_that_arrow_does_not_hold_is_a_bad_row(two: tuple[str, str]) -> None:
    source, target = two
    await run_sql(source, NUMBERS + "UPDATE t SET off = 'NaN' WHERE id = 501")
    await run_sql(target, NET)
    stream = Database(source).table("t").map_arrow(worked)
    flow = stream.into(Database(target).append("t"), on_error=DeadLetter())
    report = await Pipeline("p", flow).run()

    assert report.rows_rejected == 1
    reasons = "SELECT step, reason, column_name FROM etl_reject"
    assert await texts(target, reasons) == [
        '("map_arrow worked","DataError: Arrow\'s decimal128(15, 2) does not hold the value",off)'
    ]
    wanted = f"SELECT * FROM ({WORKED}) AS w WHERE id <> 501"
    assert await texts(target, "SELECT * FROM t ORDER BY id") == await texts(source, wanted)


async def test_the_survey_tells_the_path_and_what_is_not_known(
    two: tuple[str, str], tmp_path: Path
) -> None:
    source, target = two
    await run_sql(source, NUMBERS)
    await run_sql(target, NET)
    lite = Database(f"sqlite:///{tmp_path}/t.db")
    stream = Database(source).table("t").map_arrow(worked)

    (told,) = await Pipeline("p", stream.into(Database(target).append("t"))).survey()
    assert told.path == "tables of Arrow, parsed in C++; written in C++"
    assert told.not_faster == "functions look at the rows"
    assert told.refusal is None
    assert told.sinks[0].verdicts is None
    assert any("behind map_arrow worked is known when it has run" in note for note in told.notes)

    (told,) = await Pipeline("p", stream.into(lite.replace("t"))).survey()
    assert told.path.endswith("; then rows, because its target takes rows of Python's values")
    built = Database(source).table("t", row=Priced).map_arrow(identity)
    (told,) = await Pipeline("p", built.into(lite.replace("t"))).survey()
    assert told.path.startswith("tables of Arrow, made of Python's values")
    (told,) = await Pipeline("p", stream.map(dict).into(lite.replace("t"))).survey()
    assert told.path.endswith("for the steps behind map_arrow")
    assert not any("is known when it has run" in note for note in told.notes)


async def test_rows_may_be_read_without_a_target(two: tuple[str, str]) -> None:
    await run_sql(two[0], NUMBERS)
    async with Database(two[0]).table("t").map_arrow(worked).open() as rows:
        found = [row["id"] async for row in rows]
    assert found == [n for n in range(1, 1001) if n & 3]


async def test_mysql_takes_part_row_by_row(two: tuple[str, str], mysql_url: str) -> None:
    source, target = two
    await run_sql(source, NUMBERS)
    await run_sql(target, NET)
    mysql = Database(mysql_url)
    stream = Database(source).table("t").map_arrow(worked)
    await Pipeline("out", stream.into(mysql.upsert("t", key=["id"]))).run()
    back = mysql.table("t").map_arrow(identity).into(Database(target).append("t"))
    await Pipeline("in", back).run()

    assert await texts(target, "SELECT * FROM t ORDER BY id") == await texts(source, WORKED)
