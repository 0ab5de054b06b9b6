"""Replacing a table: through a staging table, put in place at the end or not at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest

from etl.batch import Batch
from etl.databases.database import Database, ReadSpec
from etl.databases.postgres.staging import staging_name
from etl.errors import FencedError, SchemaMismatchError
from tests.integration.postgres_kit import lane, move, read, run_sql, texts, value

OLD = """
CREATE TABLE other (id int PRIMARY KEY);
INSERT INTO other VALUES (1), (2);
CREATE TABLE t (id serial, v text DEFAULT 'd', o int CONSTRAINT "my fk" REFERENCES other,
    n int GENERATED ALWAYS AS IDENTITY, g int GENERATED ALWAYS AS (id * 2) STORED,
    CONSTRAINT "my ""pk" PRIMARY KEY (id), CONSTRAINT positive CHECK (id > 0),
    CONSTRAINT uq UNIQUE (v, id)) WITH (fillfactor = 70);
CREATE INDEX "by v" ON t (v);
CREATE INDEX by_v_too ON t (v);
CREATE INDEX part ON t (v) WHERE id > 5;
CREATE INDEX expr ON t (lower(v));
COMMENT ON TABLE t IS 'a ''comment''';
INSERT INTO t (v, o) VALUES ('old', 1), ('old', 2);
"""
NAMES = """
SELECT c.relname, i.indisprimary, pg_get_indexdef(c.oid) FROM pg_index AS i
JOIN pg_class AS c ON c.oid = i.indexrelid WHERE i.indrelid = 't'::regclass ORDER BY 1"""
CONSTRAINTS = """
SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE conrelid = 't'::regclass AND contype <> 'n' ORDER BY 1"""
COLUMNS = """
SELECT attname, attnum, format_type(atttypid, atttypmod), attnotnull, attidentity, attgenerated,
    pg_get_expr(adbin, adrelid), pg_get_serial_sequence('t', attname)
FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE attrelid = 't'::regclass AND attnum > 0 ORDER BY attnum"""
TABLE = "SELECT reloptions, obj_description(oid, 'pg_class') FROM pg_class WHERE relname = 't'"
STAGING = staging_name("t", "p\nf")  # of the lanes here


def replace(url: str, swap: Literal["rename", "rewrite"] = "rename") -> Any:
    return Database(url).replace("t", swap=swap)


def batch(*rows: Any) -> Batch[Any]:
    return Batch(list(rows), position=("1",))


@pytest.mark.parametrize("swap", ["rename", "rewrite"])
async def test_what_belongs_to_the_table_is_kept(
    postgres_url: str, swap: Literal["rename", "rewrite"]
) -> None:
    await run_sql(postgres_url, OLD)
    parts = [NAMES, CONSTRAINTS, COLUMNS, TABLE]
    before = [await texts(postgres_url, part) for part in parts]
    async with lane(postgres_url, replace(postgres_url, swap)) as one:
        await one.write([batch({"id": 10, "v": "new", "n": 40, "o": 2})], ("1",))
        await one.write([batch({"id": 11, "v": "new", "n": 41, "o": None})], ("2",))
        assert await texts(postgres_url, "SELECT v FROM t") == ["(old)", "(old)"]
        await one.publish()
    assert [await texts(postgres_url, part) for part in parts] == before
    assert await texts(postgres_url, "SELECT id, v, o, n, g FROM t ORDER BY id") == [
        "(10,new,2,40,20)", "(11,new,,41,22)",
    ]  # fmt: skip
    assert await value(postgres_url, f"SELECT to_regclass('{STAGING}') IS NULL")
    # The serial and the identity go on behind what was copied.
    await run_sql(postgres_url, "INSERT INTO t (v) VALUES ('later')")
    assert await texts(postgres_url, "SELECT id, n FROM t WHERE v = 'later'") == ["(12,42)"]


async def test_a_missing_table_is_made_with_its_key(
    postgres_database: Callable[[], str],
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(
        source,
        "CREATE TABLE t (id int PRIMARY KEY, v text NOT NULL);"
        "INSERT INTO t SELECT i, 'v' FROM generate_series(1, 1000) AS i",
    )
    for swap in ("rename", "rewrite", "rename"):
        await move(source, target, ReadSpec(table="t"), replace(target, swap))
        for part in (NAMES, CONSTRAINTS, COLUMNS, "SELECT * FROM t ORDER BY id"):
            assert await texts(target, part) == await texts(source, part)
        await run_sql(source, "UPDATE t SET v = v || 'x'; DELETE FROM t WHERE id < 10")


async def test_no_rows_empty_the_table(postgres_url: str) -> None:
    for swap in ("rename", "rewrite"):
        await run_sql(
            postgres_url, "DROP TABLE IF EXISTS t; CREATE TABLE t AS SELECT 1 AS id, 'x' AS v"
        )
        async with lane(postgres_url, replace(postgres_url, swap), fresh=True) as one:
            await one.publish()
        assert await value(postgres_url, "SELECT count(*) FROM t") == 0


async def test_an_unfinished_load_is_resumed_and_a_finished_one_starts_anew(
    postgres_url: str,
) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (id int)")
    async with lane(postgres_url, replace(postgres_url)) as one:
        await one.write([batch({"id": 1})], ("1",))
    async with lane(postgres_url, replace(postgres_url)) as one:
        assert one.position == ("1",)
        await one.write([batch({"id": 2})], ("2",))
        await one.publish()
    assert await texts(postgres_url, "SELECT * FROM t ORDER BY id") == ["(1)", "(2)"]
    async with lane(postgres_url, replace(postgres_url)) as one:
        assert one.position is None
        await one.write([batch({"id": 3})], ("3",))
    async with lane(postgres_url, replace(postgres_url), fresh=True) as one:
        assert one.position is None
        await one.write([batch({"id": 4})], ("4",))
    await run_sql(postgres_url, f"DROP TABLE {STAGING}")
    async with lane(postgres_url, replace(postgres_url)) as one:
        assert one.position is None
        await one.write([batch({"id": 5})], ("5",))
        await one.publish()
    assert await texts(postgres_url, "SELECT * FROM t") == ["(5)"]


async def test_publishing_again_changes_nothing(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (id int)")
    async with lane(postgres_url, replace(postgres_url)) as one:
        await one.write([batch({"id": 1})], ("1",))
        await one.publish()
        await one.publish()
    assert await texts(postgres_url, "SELECT * FROM t") == ["(1)"]


async def test_a_fenced_run_does_not_publish(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (id int); INSERT INTO t VALUES (0)")
    async with lane(postgres_url, replace(postgres_url)) as old:
        await old.write([batch({"id": 1})], ("1",))
        async with lane(postgres_url, replace(postgres_url)):
            with pytest.raises(FencedError):
                await old.publish()
    assert await texts(postgres_url, "SELECT * FROM t") == ["(0)"]


async def test_a_dropped_staging_table_ends_the_run(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (id int)")
    async with lane(postgres_url, replace(postgres_url)) as one:
        await one.write([batch({"id": 1})], ("1",))
        await run_sql(postgres_url, f"DROP TABLE {STAGING}")
        for _ in range(2):
            with pytest.raises(SchemaMismatchError):
                await one.write([batch({"id": 2})], ("2",))
        assert await value(postgres_url, f"SELECT to_regclass('{STAGING}') IS NULL")


@pytest.mark.parametrize(
    ("ddl", "what"),
    [
        ("CREATE VIEW v AS SELECT * FROM t", r"break the view v\."),
        ("CREATE MATERIALIZED VIEW v AS SELECT id FROM t", "the view v"),
        ("CREATE TABLE u (t int REFERENCES t)", "the foreign key u_t_fkey of u"),
        (
            """CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
            CREATE TRIGGER tr AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()""",
            "its trigger tr",
        ),
        ("CREATE POLICY p ON t", "its row security"),
        ("GRANT SELECT ON t TO public", "rights that were granted"),
        ("GRANT SELECT (id) ON t TO public", "rights that were granted"),
        ("CREATE TABLE u () INHERITS (t)", "partitioning or inheritance"),
        ("CREATE TABLE u (x t)", "its row type"),
        ("CREATE FUNCTION f(t) RETURNS int LANGUAGE sql AS 'SELECT 1'", "a function"),
        ("ALTER TABLE t REPLICA IDENTITY FULL", "replica identity"),
        ("CREATE RULE r AS ON DELETE TO t DO INSTEAD NOTHING", "a rule"),
        ("CREATE PUBLICATION pub FOR TABLE t", "a publication"),
        ("CREATE TABLE u (id int DEFAULT nextval('t_s_seq'))", "a sequence of another table"),
    ],
)
@pytest.mark.filterwarnings("ignore")
async def test_what_a_rename_would_break_is_refused_first(
    postgres_url: str, ddl: str, what: str
) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE t (id int PRIMARY KEY, s serial); INSERT INTO t VALUES (1, 1);" + ddl,
    )
    with pytest.raises(SchemaMismatchError, match=what) as caught:
        async with lane(postgres_url, replace(postgres_url)):
            pass
    assert 'swap="rewrite"' in str(caught.value)
    if "RULE" in ddl or "REFERENCES" in ddl:
        return
    async with lane(postgres_url, replace(postgres_url, "rewrite")) as one:
        await one.write([batch({"id": 2, "s": 5})], ("1",))
        await one.publish()
    assert await texts(postgres_url, "SELECT * FROM t") == ["(2,5)"]


async def test_what_came_to_the_table_meanwhile_stops_the_publication(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (id int)")
    async with lane(postgres_url, replace(postgres_url)) as one:
        await one.write([batch({"id": 1})], ("1",))
        await run_sql(postgres_url, "CREATE VIEW v AS SELECT id FROM t")
        with pytest.raises(SchemaMismatchError, match="the view v"):
            await one.publish()
    assert await value(postgres_url, "SELECT count(*) FROM v") == 0


async def test_a_self_reference_is_made_anew(postgres_url: str) -> None:
    await run_sql(
        postgres_url, "CREATE TABLE t (id int PRIMARY KEY, boss int CONSTRAINT b REFERENCES t)"
    )
    async with lane(postgres_url, replace(postgres_url)) as one:
        await one.write([batch({"id": 1, "boss": 2}, {"id": 2, "boss": None})], ("1",))
        await one.publish()
    assert await texts(postgres_url, CONSTRAINTS) == [
        '(b,"FOREIGN KEY (boss) REFERENCES t(id)")', '(t_pkey,"PRIMARY KEY (id)")',
    ]  # fmt: skip


async def test_an_append_that_cannot_resume_appends_at_the_end(
    postgres_database: Callable[[], str],
) -> None:
    source, target = postgres_database(), postgres_database()
    await run_sql(source, "CREATE TABLE t (v int); INSERT INTO t SELECT generate_series(1, 300)")
    await run_sql(
        target,
        "CREATE TABLE t (id serial PRIMARY KEY, v int, at timestamptz DEFAULT now());"
        "INSERT INTO t (v) VALUES (0)",
    )
    found = await read(source, ReadSpec(table="t"))
    sink = Database(target).append("t")
    async with lane(target, sink, shape=found.shape, resumable=False) as one:
        await one.write(found.batches, ("x",))
        assert await value(target, "SELECT count(*) FROM t") == 1
    async with lane(target, sink, shape=found.shape, resumable=False, fresh=True) as one:
        await one.write(found.batches, ("x",))
        await one.publish()
    assert await texts(target, "SELECT count(*), sum(v), min(id), max(id), count(at) FROM t") == [
        f"(301,{sum(range(301))},1,301,301)"
    ]
    left = "SELECT count(*) FROM pg_class WHERE relname LIKE '%\\_\\_etl%'"
    assert await value(target, left) == 0


def test_staging_names_fit_and_tell_flows_apart() -> None:
    assert staging_name("t", "a").startswith("t__etl_new_")
    assert staging_name("t", "a") != staging_name("t", "b")
    long = [staging_name("ü" * 30 + c, owner) for c in "ab" for owner in ("a", "b")]
    assert len(set(long)) == 4
    assert all(len(name.encode()) <= 63 for name in long)
