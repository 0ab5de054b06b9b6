"""Writing into PostgreSQL: exact values, upserts, tables that are made, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import pytest

from etl.batch import Batch
from etl.databases import postgres
from etl.databases.database import Database, ReadSpec
from etl.databases.types import text_decoder
from etl.databases.url import parse_url
from etl.errors import (
    EXIT_TEMPORARY,
    ConfigError,
    DataError,
    FencedError,
    SchemaMismatchError,
    TargetWentBackError,
)
from etl.rows import Column, Layout, Row, Type, ValueRows
from tests.integration.postgres_kit import INFO, lane, move, read, run_sql, sql, texts, value

AWKWARD = r"""
CREATE TYPE mood AS ENUM ('ok', 'it''s "odd"');
CREATE DOMAIN short AS varchar(5) CHECK (value <> 'never');
CREATE TABLE odd (
    id bigint PRIMARY KEY, b boolean, i2 smallint, i4 integer, f4 real, f8 double precision,
    n numeric, n2 numeric(15, 2), t text, v varchar(20), c char(4), by bytea, d date, ti time,
    tz timetz, ts timestamp, ts3 timestamp(3), tstz timestamptz, iv interval, u uuid, j json,
    jb jsonb, m mood, s short, a int[], a2 text[], r int4range, mr nummultirange, ip inet,
    mac macaddr, bits bit(3), vb varbit, mon money, p point, tsv tsvector, q tsquery,
    o oid, nm name, "Odd ""Name %s" text
);
INSERT INTO odd (id) VALUES (0);
INSERT INTO odd VALUES
(1, true, -32768, -2147483648, 1e-45, 5e-324, 'NaN', -0.01, E'tab\t nl\n cr\r bs\\ \\N \\. ü😀',
 '', 'ab', '\x5c780a', 'infinity', '24:00:00', '23:59:59.999999-15:59', 'infinity',
 '2024-01-01 00:00:00.123', '-infinity', '1 year 2 mons -3 days 04:05:06.789', gen_random_uuid(),
 '{"b": 1,  "a": 1e400, "a": 2}', '{"a": 1.10}', 'it''s "odd"', 'x', '[2:3]={1,NULL}',
 ARRAY['a,b', NULL, 'NULL', '"', '{}', E'\\'], '[1,10)', '{[1.5,2),(3,]}', '10.1.2.3/8',
 '08:00:2b:01:02:03', '101', '1', -1234.56, '(1.5,-2)',
 $$'a':1A 'b c':2$$, $$'a' & !'b'$$, 4294967295, 'pg name', 'x'),
(2, false, 32767, 2147483647, 'NaN', '-Infinity', '123456789012345678901234567890.0000000001',
 9999999999999.99, '', 'ä', '', '', '0044-03-15 BC', '00:00', '00:00+00', '0001-01-01 BC',
 '294276-12-31 23:59:59.999', '294276-12-31 23:59:59.999999+00', '-1 microsecond',
 '00000000-0000-0000-0000-000000000000', 'null', 'null', 'ok', '', '{}', '{{a,b},{c,d}}',
 'empty', '{}', '::1', '00:00:00:00:00:00', '000', '', 0, '(NaN,Infinity)', '', '',
 0, '', '');
"""


def db(url: str) -> Database:
    return Database(url)


@pytest.fixture
def two(postgres_database: Callable[[], str]) -> tuple[str, str]:
    """A source and a target."""
    return postgres_database(), postgres_database()


@pytest.mark.parametrize("mode", ["append", "upsert", "replace"])
async def test_every_awkward_type_arrives_unchanged(two: tuple[str, str], mode: str) -> None:
    source, target = two
    await run_sql(source, AWKWARD)
    sinks = {
        "append": db(target).append("odd"),
        "upsert": db(target).upsert("odd", key=("id",)),
        "replace": db(target).replace("odd"),
    }
    await move(source, target, ReadSpec(table="odd"), sinks[mode])
    query = "SELECT * FROM odd ORDER BY id"
    assert await texts(target, query) == await texts(source, query)
    described = """
        SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute
        WHERE attrelid = 'odd'::regclass AND attnum > 0 AND attname <> 's' ORDER BY attnum"""
    assert await texts(target, described) == await texts(source, described)
    keys = "SELECT conname FROM pg_constraint WHERE conrelid = 'odd'::regclass AND contype = 'p'"
    assert await texts(target, keys) == ["(odd_pkey)"]


async def test_touched_values_arrive_unchanged_too(two: tuple[str, str]) -> None:
    source, target = two
    await run_sql(
        source,
        """
        CREATE TABLE t (id bigint PRIMARY KEY, f4 real, f8 double precision, n numeric(15, 2),
            t text, by bytea, d date, ti time, ts timestamp, tstz timestamptz, iv interval,
            u uuid, jb jsonb, b boolean, a int[]);
        INSERT INTO t VALUES (1, 0.1, 0.1, -0.01, E'tab\\t\\n\\\\N', '\\x5c00', '2024-02-29',
            '23:59:59.999999', '2024-01-01 00:00:00.000001', '2024-01-01 00:00+09',
            '-3 days 04:05:06.789', gen_random_uuid(), '{"a": [1.10, "\\n", null]}', true,
            '{1,NULL}');
        INSERT INTO t (id) VALUES (2);
        """,
    )

    def touch_all(row: Row) -> Row:
        return row.replace(**{name: row[name] for name in row})

    sink = db(target).append("t")
    await move(source, target, ReadSpec(table="t"), sink, change=touch_all)
    query = "SELECT * FROM t ORDER BY id"
    assert await texts(target, query) == await texts(source, query)


async def test_changes_mix_with_untouched_rows_and_reordered_columns(two: tuple[str, str]) -> None:
    source, target = two
    await run_sql(
        source,
        "CREATE TABLE t (id int PRIMARY KEY, a text, b numeric);"
        "INSERT INTO t SELECT i, 'x' || i, i / 4.0 FROM generate_series(1, 1000) AS i",
    )
    await run_sql(target, "CREATE TABLE t (extra int DEFAULT 7, b numeric, id bigint, a text)")

    def some(row: Row) -> Row:
        if row["id"] % 3 == 0:
            return row.replace(a="\t" + row["a"])
        if row["id"] % 3 == 1:
            return row.replace(b=None)
        return row

    await move(source, target, ReadSpec(table="t"), db(target).append("t"), change=some)
    expected = """
        SELECT 7, CASE WHEN id % 3 <> 1 THEN b END AS b, id::bigint,
            CASE WHEN id % 3 = 0 THEN E'\\t' ELSE '' END || a AS a
        FROM t ORDER BY id"""
    assert await texts(target, "SELECT * FROM t ORDER BY id") == await texts(source, expected)


@dataclass(frozen=True, slots=True)
class Fact:
    id: int
    price: Decimal | None
    at: datetime


class Pair(NamedTuple):
    price: Decimal | None
    id: int


NOW = datetime(2024, 1, 1, tzinfo=UTC)


def batch(*rows: Any) -> Batch[Any]:
    return Batch(list(rows), position=("1",))


async def test_rows_of_every_form_are_written_by_name(postgres_url: str) -> None:
    await run_sql(
        postgres_url, "CREATE TABLE f (at timestamptz, price numeric, id int, g int DEFAULT 1)"
    )
    layout = Layout(
        [
            Column(name="id", type=Type(kind="int64", name="INTEGER", dialect="sqlite")),
            Column(name="price", type=Type(kind="text", name="TEXT", dialect="sqlite")),
        ],
        [lambda raw: raw, lambda raw: None if raw is None else Decimal(raw)],
        is_text=False,
    )
    values = ValueRows(layout, [(5, "1.5"), (6, None)], 10)
    async with lane(postgres_url, db(postgres_url).append("f")) as one:
        await one.write([batch(Fact(1, Decimal("1.50"), NOW), Fact(2, None, NOW))], ("1",))
    for rows in (
        [batch(Pair(Decimal(3), 3))],
        [batch({"id": 4, "price": 4})],
        [Batch(values, position=("3",))],
        [batch(values[0].replace(id=7))],
    ):
        async with lane(postgres_url, db(postgres_url).append("f")) as one:
            await one.write(rows, ("1",))
    assert await texts(postgres_url, "SELECT id, price, at IS NULL FROM f ORDER BY id") == [
        "(1,1.50,f)", "(2,,f)", "(3,3,t)", "(4,4,t)", "(5,1.5,t)", "(6,,t)", "(7,1.5,t)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([(1, 2)], "does not name its columns"),
        ([5], "does not name its columns"),
        ([{"id": 1}, {"id": 2, "price": 1}], "differs from the first in 'price'"),
        ([{"id": 1, "colour": 1}], "no column 'colour'"),
        ([{"price": 1}], "have no 'id'"),
        ([{"id": 1}, Pair(None, 1)], "several types"),
    ],
)
async def test_rows_that_do_not_fit_are_refused_and_nothing_stays(
    postgres_url: str, rows: list[Any], words: str
) -> None:
    await run_sql(postgres_url, "CREATE TABLE f (id int NOT NULL, price numeric)")
    async with lane(postgres_url, db(postgres_url).append("f")) as one:
        with pytest.raises(SchemaMismatchError, match=words):
            await one.write([batch(*rows)], ("1",))
        await one.write([batch({"id": 1, "price": None})], ("1",))
    assert await value(postgres_url, "SELECT count(*) FROM f") == 1


@pytest.mark.parametrize(
    ("definition", "row", "words"),
    [
        ("id int, price numeric(5, 2)", {"id": 1, "price": Decimal("1.005")}, "digits after"),
        ("id int, price numeric(3, 2)", {"id": 1, "price": Decimal(100)}, "overflow"),
        ("id int CHECK (id > 5)", {"id": 1}, 'check constraint "f_id_check"'),
        ("id int PRIMARY KEY", {"id": 9}, 'unique constraint "f_pkey"'),
        ("id int, price int NOT NULL", {"id": 1, "price": None}, "does not allow NULL"),
        ("id int, m date", {"id": 1, "m": "2024-02-31"}, "out of range"),
        ("id int, t text", {"id": 1, "t": "a\x00b"}, "NUL"),
        ("id int, t text", {"id": 1, "t": "\ud800"}, "lone surrogate"),
    ],
)
async def test_bad_rows_are_named_without_their_values(
    postgres_url: str, definition: str, row: dict[str, Any], words: str
) -> None:
    await run_sql(postgres_url, f"CREATE TABLE f ({definition})")
    if "PRIMARY" in definition:
        await run_sql(postgres_url, "INSERT INTO f VALUES (9)")
    before = await value(postgres_url, "SELECT count(*) FROM f")
    async with lane(postgres_url, db(postgres_url).append("f")) as one:
        with pytest.raises(DataError, match=words) as caught:
            await one.write([batch(row)], ("1",))
        assert "2024-02-31" not in str(caught.value)
        assert (await one.session.load(one.keys))[one.keys[0]].position is None
    assert await value(postgres_url, "SELECT count(*) FROM f") == before


async def test_the_line_and_column_of_a_refused_row_are_attributes(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE f (id int, e char(2))")
    async with lane(postgres_url, db(postgres_url).append("f")) as one:
        rows = [{"id": i, "e": "x"} for i in range(10)]
        rows[7]["e"] = "abc"
        with pytest.raises(DataError) as caught:
            await one.write([batch(*rows)], ("1",))
    assert (caught.value.row, caught.value.column) == (7, "e")


async def test_a_trigger_that_drops_rows_fails_the_group(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        """
        CREATE TABLE f (id int PRIMARY KEY, v int);
        CREATE FUNCTION drop_odd() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF NEW.id % 2 = 1 THEN RETURN NULL; END IF; RETURN NEW; END $$;
        CREATE TRIGGER d BEFORE INSERT ON f FOR EACH ROW EXECUTE FUNCTION drop_odd();
        """,
    )
    rows = [{"id": i, "v": i} for i in range(10)]
    for sink in (db(postgres_url).append("f"), db(postgres_url).upsert("f", key=("id",))):
        async with lane(postgres_url, sink) as one:
            with pytest.raises(DataError, match="took 5 of 10 rows"):
                await one.write([batch(*rows)], ("1",))
    assert await value(postgres_url, "SELECT count(*) FROM f") == 0


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE f ALTER v TYPE float8",
        "ALTER TABLE f DROP COLUMN v; ALTER TABLE f ADD COLUMN v bigint",
        "ALTER TABLE f ALTER v SET NOT NULL",
        "DROP TABLE f; CREATE TABLE f (id int, v bigint)",
        "DROP TABLE f",
        "DROP TABLE f; CREATE VIEW f AS SELECT 1 AS id, 2::bigint AS v",
    ],
)
async def test_ddl_between_groups_stops_the_run(postgres_url: str, change: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE f (id int, v bigint)")
    async with lane(postgres_url, db(postgres_url).append("f")) as one:
        await one.write([batch({"id": 1, "v": 123456789})], ("1",))
        await run_sql(postgres_url, change)
        with pytest.raises(ConfigError):
            await one.write([batch({"id": 2, "v": 123456789})], ("2",))
        assert (await one.session.load(one.keys))[one.keys[0]].position == ("1",)


async def test_identity_and_generated_columns(two: tuple[str, str]) -> None:
    source, target = two
    table = """
        CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, v int,
            w int GENERATED ALWAYS AS (v * 2) STORED);
        """
    await run_sql(source, table + "INSERT INTO t (v) SELECT generate_series(1, 5)")
    await run_sql(target, table)
    await move(source, target, ReadSpec(table="t"), db(target).append("t"))
    await move(source, target, ReadSpec(table="t"), db(target).upsert("t", key=("id",)))
    assert await texts(target, "SELECT * FROM t ORDER BY id") == [
        f"({i},{i},{2 * i})" for i in range(1, 6)
    ]


# --- upsert --------------------------------------------------------------------------------


async def test_the_last_row_of_a_key_wins(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE f (a int, b text, v int, kept int DEFAULT 1, PRIMARY KEY (b, a));"
        "INSERT INTO f VALUES (1, 'x', 0, 9)",
    )
    sink = db(postgres_url).upsert("f", key=("a", "b"))
    async with lane(postgres_url, sink) as one:
        rows = [{"v": v, "a": v % 3, "b": "x"} for v in range(20)]
        await one.write([batch(*rows[:10]), batch(*rows[10:])], ("1",))
        await one.write([batch({"v": 100, "a": 0, "b": "x"})], ("2",))
    assert await texts(postgres_url, "SELECT * FROM f ORDER BY a") == [
        "(0,x,100,1)", "(1,x,19,9)", "(2,x,17,1)",
    ]  # fmt: skip


async def test_two_writes_in_one_transaction_do_not_repeat_the_first(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE f (k int PRIMARY KEY, n int)")
    async with lane(postgres_url, db(postgres_url).upsert("f", key=("k",), add=("n",))) as one:
        await one.session.begin()
        await one.session.write(0, [batch({"k": 1, "n": 1})])
        await one.session.write(0, [batch({"k": 1, "n": 10})])
        await one.session.commit()
    assert await texts(postgres_url, "SELECT * FROM f") == ["(1,11)"]


async def test_added_columns_add_up_and_null_adds_nothing(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE f (k text PRIMARY KEY, n smallint, s numeric(10, 2), i interval, t text);"
        "INSERT INTO f VALUES ('old', 5, NULL, '1 hour', 'before'), ('null', NULL, NULL, NULL, '')",
    )
    sink = db(postgres_url).upsert("f", key=("k",), add=("n", "s", "i"))
    rows: list[dict[str, Any]] = [
        {"k": "old", "n": 1, "s": Decimal("0.10"), "i": None, "t": "first"},
        {"k": "old", "n": 2, "s": None, "i": None, "t": "last"},
        {"k": "new", "n": 7, "s": Decimal(1), "i": None, "t": "new"},
        {"k": "null", "n": None, "s": None, "i": None, "t": "null"},
    ]
    async with lane(postgres_url, sink) as one:
        await one.write([batch(*rows)], ("1",))
        await one.write([batch(*rows)], ("2",))
        with pytest.raises(DataError, match="out of range"):
            await one.write([batch(*[{**rows[0], "n": 30000}] * 2)], ("3",))
    assert await texts(postgres_url, "SELECT * FROM f ORDER BY k") == [
        "(new,14,2.00,,new)", "(null,,,,null)", "(old,11,0.20,01:00:00,last)",
    ]  # fmt: skip


async def test_keys_only_and_null_keys(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE f (k int UNIQUE)")
    async with lane(postgres_url, db(postgres_url).upsert("f", key=("k",))) as one:
        await one.write([batch({"k": 1}, {"k": 1})], ("1",))
        await one.write([batch({"k": 1}, {"k": 2})], ("2",))
        with pytest.raises(DataError, match="NULL in its key"):
            await one.write([batch({"k": 3}, {"k": None})], ("3",))
    assert await texts(postgres_url, "SELECT k FROM f ORDER BY k") == ["(1)", "(2)"]


@pytest.mark.parametrize(
    ("ddl", "key", "add", "words"),
    [
        ("CREATE TABLE f (k int, v int)", "k", (), "no unique index"),
        ("CREATE TABLE f (k int, v int, PRIMARY KEY (k, v))", "k", (), "no unique index"),
        ("CREATE TABLE f (k int, v int, UNIQUE (k) DEFERRABLE)", "k", (), "no unique index"),
        (
            "CREATE TABLE f (k int, v int); CREATE UNIQUE INDEX ON f (k) WHERE v > 0",
            "k",
            (),
            "no unique index",
        ),
        ("CREATE TABLE f (k int PRIMARY KEY)", "x", (), "no column 'x'"),
        ("CREATE TABLE f (k int PRIMARY KEY, t text)", "k", ("t",), "cannot be added up"),
        ("CREATE VIEW f AS SELECT 1 AS k", "k", (), "is not a table"),
    ],
)
async def test_upserts_without_a_fitting_key_are_refused_first(
    postgres_url: str, ddl: str, key: str, add: tuple[str, ...], words: str
) -> None:
    await run_sql(postgres_url, ddl)
    with pytest.raises(SchemaMismatchError, match=words):
        async with lane(postgres_url, db(postgres_url).upsert("f", key=(key,), add=add)):
            pass


# --- making tables -------------------------------------------------------------------------


async def test_a_dataclass_makes_the_table_that_is_missing(postgres_url: str) -> None:
    async with lane(postgres_url, db(postgres_url).upsert("f", key=("id",))) as one:
        await one.write([batch(Fact(1, None, NOW))], ("1",))
    described = """
        SELECT attname, format_type(atttypid, atttypmod), attnotnull FROM pg_attribute
        WHERE attrelid = 'f'::regclass AND attnum > 0 ORDER BY attnum"""
    assert await texts(postgres_url, described) == [
        "(id,bigint,t)", "(price,numeric,f)", '(at,"timestamp with time zone",t)',
    ]  # fmt: skip
    assert await texts(postgres_url, "SELECT id FROM f") == ["(1)"]


async def test_dicts_do_not_make_a_table_but_suggest_one(postgres_url: str) -> None:
    async with lane(postgres_url, db(postgres_url).append('s."T x"')) as one:
        with pytest.raises(SchemaMismatchError, match='CREATE TABLE "s"."T x"') as caught:
            await one.write([batch({"id": 1, "at": NOW})], ("1",))
    assert '"at" timestamp with time zone' in str(caught.value)


async def test_missing_schemas_types_and_forbidden_tables_are_refused(two: tuple[str, str]) -> None:
    source, target = two
    await run_sql(
        source,
        "CREATE TYPE pair AS (a int, b int);"
        "CREATE TABLE t (id int PRIMARY KEY, p pair); CREATE TABLE e (id int PRIMARY KEY);",
    )
    shape = (await read(source, ReadSpec(table="t"))).shape
    for sink, words in (
        (db(target).append("t"), "type public.pair, which does not exist"),
        (db(target).append("nowhere.t"), "schema 'nowhere' does not exist"),
        (db(target).append("t", create=False), "create=False"),
    ):
        with pytest.raises(SchemaMismatchError, match=words):
            async with lane(target, sink, shape=shape):
                pass
    assert await value(target, "SELECT to_regclass('t') IS NULL")


async def test_an_enum_with_other_labels_is_refused(two: tuple[str, str]) -> None:
    source, target = two
    await run_sql(
        source,
        "CREATE TYPE mood AS ENUM ('a', 'b'); CREATE TABLE t (id int PRIMARY KEY, m mood)",
    )
    await run_sql(target, "CREATE TYPE mood AS ENUM ('b', 'a')")
    shape = (await read(source, ReadSpec(table="t"))).shape
    with pytest.raises(SchemaMismatchError, match="other labels"):
        async with lane(target, db(target).append("t"), shape=shape):
            pass


async def test_types_without_an_exact_way_are_refused_before_the_first_row(
    two: tuple[str, str],
) -> None:
    source, target = two
    await run_sql(source, "CREATE TABLE t (id int PRIMARY KEY, at timestamp)")
    await run_sql(target, "CREATE TABLE t (id int PRIMARY KEY, at timestamptz)")
    shape = (await read(source, ReadSpec(table="t"))).shape
    with pytest.raises(SchemaMismatchError, match="'at' is timestamp without time zone"):
        async with lane(target, db(target).append("t"), shape=shape):
            pass


async def test_narrowing_is_checked_value_by_value(two: tuple[str, str]) -> None:
    source, target = two
    await run_sql(
        source, "CREATE TABLE t (id int PRIMARY KEY, n numeric); INSERT INTO t VALUES (1, 1.50)"
    )
    await run_sql(target, "CREATE TABLE t (id int PRIMARY KEY, n numeric(5, 2))")
    await move(source, target, ReadSpec(table="t"), db(target).upsert("t", key=("id",)))
    assert await texts(target, "SELECT n FROM t") == ["(1.50)"]
    await run_sql(source, "UPDATE t SET n = 1.505")
    with pytest.raises(DataError, match="column 'n'"):
        await move(source, target, ReadSpec(table="t"), db(target).upsert("t", key=("id",)))


async def test_names_that_postgresql_would_cut_are_refused(postgres_url: str) -> None:
    name = "ü" * 40
    with pytest.raises(ConfigError, match="63 bytes"):
        async with lane(postgres_url, db(postgres_url).append(name)):
            pass


async def test_an_injected_name_is_only_a_name(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE canary (id int)")
    name = 'x"; DROP TABLE canary; --'
    table = '"' + name.replace('"', '""') + '"'
    async with lane(postgres_url, db(postgres_url).append(table)) as one:
        await one.write([batch(Fact(1, None, NOW))], ("1",))
    assert await value(postgres_url, "SELECT to_regclass('canary') IS NOT NULL")
    assert await value(postgres_url, f"SELECT count(*) FROM {table}") == 1


# --- checkpoints ---------------------------------------------------------------------------


async def test_an_older_run_is_fenced(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE f (id int)")
    sink = db(postgres_url).append("f")
    async with lane(postgres_url, sink) as old:
        await old.write([batch({"id": 1})], ("1",))
        async with lane(postgres_url, sink) as new:
            assert new.position == ("1",)
            with pytest.raises(FencedError):
                await old.write([batch({"id": 2})], ("2",))
            await new.write([batch({"id": 3})], ("3",))
    assert await texts(postgres_url, "SELECT id FROM f ORDER BY id") == ["(1)", "(3)"]


@pytest.mark.parametrize(
    "back", ["UPDATE etl_checkpoint SET position = NULL", "DELETE FROM etl_checkpoint"]
)
async def test_a_target_that_fell_back_is_not_taken_for_one_that_another_run_has(
    postgres_url: str, back: str
) -> None:
    """A standby that lacked the last transactions has rows and positions of an earlier moment."""
    await run_sql(postgres_url, "CREATE TABLE f (id int)")
    async with lane(postgres_url, db(postgres_url).append("f")) as one:
        await one.write([batch({"id": 1})], ("1",))
        await run_sql(postgres_url, f"DELETE FROM f; {back}")
        with pytest.raises(TargetWentBackError) as failure:
            await one.write([batch({"id": 2})], ("2",))
    assert failure.value.exit_code == EXIT_TEMPORARY
    assert failure.value.is_final  # this run's rows do not join on to what is there
    assert await texts(postgres_url, "SELECT id FROM f") == []


async def test_the_settled_checkpoint_is_that_of_the_last_commit(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE f (id int)")
    async with lane(postgres_url, db(postgres_url).append("f")) as one:
        await one.write([batch({"id": 1})], ("1",))
        found = await one.session.settle(one.keys)
        assert found[one.keys[0]].position == ("1",)
        await one.write([batch({"id": 2})], ("2",))


async def test_state_is_shown_set_and_reset(postgres_url: str) -> None:
    url = parse_url(postgres_url)
    async with postgres.open_state(url) as state:
        assert await state.states() == []
    await run_sql(postgres_url, "CREATE TABLE f (id int)")
    async with lane(postgres_url, db(postgres_url).replace("f")) as one:
        await one.write([batch({"id": 1})], ("1",))
        async with postgres.open_state(url) as state:
            (found,) = await state.states("p")
            assert found.key == one.keys[0]
            assert found.checkpoint.position == ("1",)
            await state.set_position(found.key, ("9",))
            (changed,) = await state.states()
            assert changed.checkpoint.position == ("9",)
            assert changed.checkpoint.epoch == found.checkpoint.epoch + 1
            assert await state.states("other") == []
            await state.reset([found.key])
            assert await state.states() == []
            with pytest.raises(ConfigError, match="no checkpoint"):
                await state.set_position(found.key, None)
    assert await value(
        postgres_url, "SELECT count(*) = 0 FROM pg_tables WHERE tablename ~ '^f__etl'"
    )


# --- inspection ----------------------------------------------------------------------------


async def test_tables_are_listed_without_those_of_etl(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE a (id int PRIMARY KEY, v text); CREATE VIEW v AS SELECT 1;"
        "CREATE TABLE p (id int) PARTITION BY LIST (id);"
        "CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)",
    )
    async with lane(postgres_url, db(postgres_url).append("a")):
        pass
    found = await postgres.list_tables(parse_url(postgres_url))
    assert [(one.schema, one.name, one.shape.key, one.kind) for one in found] == [
        ("public", "a", ("id",), "table"), ("public", "p", (), "table"),
        ("public", "p1", (), "partition"), ("public", "v", (), "view"),
    ]  # fmt: skip


async def test_check_says_what_is_there(postgres_url: str) -> None:
    found = {one.subject: one for one in await postgres.check(parse_url(postgres_url))}
    assert found["version"].state == "ok"
    assert found["incremental reads"].state == "ok"
    assert found["etl's tables"].message == "made at the first run"


async def test_untouched_rows_of_a_dataclass_source_go_back(two: tuple[str, str]) -> None:
    source, target = two
    await run_sql(
        source,
        "CREATE TABLE f (id int PRIMARY KEY, price numeric(9,2), at timestamptz NOT NULL);"
        "INSERT INTO f SELECT i, i / 7.0, now() FROM generate_series(1, 500) AS i",
    )
    spec = ReadSpec(table="f", row=Fact)
    await move(source, target, spec, db(target).append("f"))
    query = "SELECT * FROM f ORDER BY id"
    assert await texts(target, query) == await texts(source, query)


def test_decoders_say_none_for_null() -> None:
    decode = text_decoder(Type(kind="text", name="text", dialect="postgresql"), nullable=True)
    assert decode("\\N") is None


async def test_a_connection_is_not_left_by_an_unknown_option(postgres_url: str) -> None:
    mark = "&" if "?" in postgres_url else "?"
    url = parse_url(f"{postgres_url}{mark}sslmod=require")
    with pytest.raises(ConfigError, match="unknown option 'sslmod'"):
        async with postgres.open_reader(url, ReadSpec(table="t"), INFO):
            pass
    async with sql(postgres_url) as connection:
        assert await connection.fetchval("SELECT 1") == 1
