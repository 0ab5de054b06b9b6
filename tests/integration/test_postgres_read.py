"""Reading from PostgreSQL: order, resumption, horizons, and what is refused."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest

from etl import Database, Limits, Pipeline
from etl.batch import Batch, decode_position, encode_position
from etl.databases import postgres
from etl.databases.database import ReadSpec
from etl.databases.postgres import horizon
from etl.databases.url import parse_url
from etl.errors import ConfigError, DataError, PipelineFailedError, SchemaMismatchError
from etl.rows import Row
from tests.integration.postgres_kit import INFO, read, run_sql, sql, texts, value

ITEMS = """
CREATE TABLE items (a text COLLATE "C", b bigint, v text, PRIMARY KEY (a, b));
INSERT INTO items SELECT chr(65 + i % 3) || E'\\t\\\\' || chr(246), i, repeat('x', i % 40)
FROM generate_series(1, 500) AS i;
"""


async def test_a_read_comes_in_key_order_in_bounded_batches(postgres_url: str) -> None:
    await run_sql(postgres_url, ITEMS)
    found = await read(postgres_url, ReadSpec(table="items"))
    assert found.shape.key == ("a", "b")
    assert found.resumable
    assert len(found.rows) == 500
    assert len(found.batches) >= 5
    assert all(0 < len(batch.rows) <= INFO.batch_rows for batch in found.batches)
    keys = [(row["a"], row["b"]) for row in found.rows]
    assert keys == sorted(keys)


async def test_a_read_resumes_after_every_position(postgres_url: str) -> None:
    await run_sql(postgres_url, ITEMS)
    whole = await read(postgres_url, ReadSpec(table="items"))
    keys = [(row["a"], row["b"]) for row in whole.rows]
    seen = 0
    for batch in whole.batches:
        seen += len(batch.rows)
        after = decode_position(encode_position(batch.position))
        rest = await read(postgres_url, ReadSpec(table="items"), after=after)
        assert [(row["a"], row["b"]) for row in rest.rows] == keys[seen:]
        head = await read(postgres_url, ReadSpec(table="items"), until=after)
        assert [(row["a"], row["b"]) for row in head.rows] == keys[:seen]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("char(3)", ["'a'", "'ab'", "'abc'"]),
        ("date", ["'-infinity'", "'0044-03-15 BC'", "'2024-01-01'", "'12024-01-01'"]),
        ("numeric", ["'-Infinity'", "-1.50", "0.00", "12345678901234567890.1", "'NaN'"]),
        ("uuid", ["'00000000-0000-0000-0000-000000000001'", "gen_random_uuid()"]),
        ("double precision", ["'-Infinity'", "0.1", "1e300", "'NaN'"]),
        ("text", ["''", "E'\\\\N'", "E'a\\tb'", "'ä'", "'z'"]),
        ("interval", ["'1 day'", "'1 mon'", "'1 year 2 mons'"]),
        ("bytea", ["''", "'\\x00'", "'\\x5c'"]),
        ("timestamptz", ["'-infinity'", "'2024-01-01 00:00:00.000001+09'", "'infinity'"]),
        ("inet", ["'1.2.3.4'", "'::1'"]),
        ("int[]", ["'{}'", "'{1,NULL}'", "'[2:3]={1,2}'"]),
    ],
)  # fmt: skip
async def test_keys_of_any_type_resume_exactly(
    postgres_url: str, kind: str, values: list[str]
) -> None:
    rows = ", ".join(f"({one})" for one in values)
    await run_sql(
        postgres_url, f"CREATE TABLE t (k {kind} PRIMARY KEY); INSERT INTO t VALUES {rows}"
    )
    info = type(INFO)(pipeline="p", run_id="r", batch_rows=1, batch_bytes=1)
    whole = await read(postgres_url, ReadSpec(table="t"), info=info)
    assert len(whole.batches) == len(values)
    for i, batch in enumerate(whole.batches):
        rest = await read(postgres_url, ReadSpec(table="t"), after=batch.position)
        assert len(rest.rows) == len(values) - i - 1


async def test_an_enum_key_and_odd_names_resume(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        """
        CREATE SCHEMA "my.schema";
        CREATE TYPE "my.schema"."Mo od" AS ENUM ('z', 'a''"', 'm');
        CREATE TABLE "my.schema"."t ""x" (
            "K ""%s {} $1" "my.schema"."Mo od" PRIMARY KEY, "select" int);
        INSERT INTO "my.schema"."t ""x" VALUES ('m', 3), ('z', 1), ('a''"', 2);
        """,
    )
    spec = ReadSpec(table='"my.schema"."t ""x"')
    whole = await read(postgres_url, spec)
    assert whole.column("select") == [1, 2, 3]
    assert whole.column('K "%s {} $1') == ["z", "a'\"", "m"]
    assert (await read(postgres_url, spec, after=("a'\"",))).column("select") == [3]


async def test_a_table_without_a_key_is_read_in_one_piece(postgres_url: str) -> None:
    await run_sql(
        postgres_url, "CREATE TABLE t (v int); INSERT INTO t SELECT generate_series(1, 300)"
    )
    found = await read(postgres_url, ReadSpec(table="t"))
    assert not found.resumable
    assert [batch.position for batch in found.batches][-1] == (300,)
    assert "no primary key" in found.notes[0]
    assert sorted(found.column("v")) == list(range(1, 301))


async def test_empty_tables_give_no_batch(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (id int PRIMARY KEY)")
    assert (await read(postgres_url, ReadSpec(table="t"))).batches == []


# --- queries and views ---------------------------------------------------------------------


async def test_a_query_is_read_by_its_key(postgres_url: str) -> None:
    await run_sql(postgres_url, ITEMS)
    spec = ReadSpec(
        query="SELECT b AS id, v, '$1' AS money FROM items WHERE v <> '$2' -- all", key=("id",)
    )
    found = await read(postgres_url, spec)
    assert found.column("id") == list(range(1, 501))
    assert found.column("money")[0] == "$1"
    rest = await read(postgres_url, spec, after=("490",), until=("495",))
    assert rest.column("id") == [491, 492, 493, 494, 495]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT g % 10 AS id FROM generate_series(1, 30) AS g", "not unique"),
        ("SELECT nullif(g, 7) AS id FROM generate_series(1, 30) AS g", "is NULL"),
    ],
)
async def test_a_bad_key_of_a_query_is_found_in_the_stream(
    postgres_url: str, query: str, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        await read(postgres_url, ReadSpec(query=query, key=("id",)))


async def test_a_view_needs_no_index_but_a_unique_key(postgres_url: str) -> None:
    await run_sql(postgres_url, ITEMS + "CREATE VIEW v AS SELECT b, v FROM items;")
    assert len((await read(postgres_url, ReadSpec(table="v", key=("b",)))).rows) == 500
    with pytest.raises(DataError, match="not unique"):
        await read(postgres_url, ReadSpec(table="v", key=("v",)))


async def test_heirs_of_a_table_do_not_hide_double_keys(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE u () INHERITS (t);"
        "INSERT INTO t VALUES (1); INSERT INTO u VALUES (1)",
    )
    with pytest.raises(DataError, match="not unique"):
        await read(postgres_url, ReadSpec(table="t", key=("id",)))


# --- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (ReadSpec(table="nope"), "does not exist"),
        (ReadSpec(table="TT"), "there is 'public.tt'"),
        (ReadSpec(table="tt", key=("x",)), "no column 'x'"),
        (ReadSpec(table="tt", key=("n",)), "allows NULL"),
        (ReadSpec(table="tt", key=("p",)), "no unique index"),
        (ReadSpec(table="tt", key=("q",)), "no unique index"),
        (ReadSpec(table="tt", cursor=("n",)), "allows NULL"),
        (ReadSpec(table="tt", cursor=("f",)), "floating-point"),
        (ReadSpec(table="nokey", cursor=("v",)), "no primary key"),
        (ReadSpec(table="nocolumns"), "no columns"),
        (ReadSpec(query="SELECT 1 AS a, 2 AS a", key=("a",)), "two columns"),
        (ReadSpec(query="SELECT $1::int AS a", key=("a",)), "parameters"),
        (ReadSpec(query="SELEC 1", key=("a",)), "syntax error"),
        (ReadSpec(query="SELECT 1 AS a", key=("b",)), "no column 'b'"),
    ],
)
async def test_what_cannot_be_read_safely_is_refused_first(
    postgres_url: str, spec: ReadSpec, words: str
) -> None:
    await run_sql(
        postgres_url,
        """
        CREATE TABLE tt (id int PRIMARY KEY, n int UNIQUE, p int NOT NULL, q int NOT NULL,
            f float8 NOT NULL UNIQUE);
        CREATE UNIQUE INDEX ON tt (p) WHERE p > 0;
        ALTER TABLE tt ADD UNIQUE (q) DEFERRABLE;
        CREATE TABLE nokey (v timestamptz NOT NULL);
        CREATE TABLE nocolumns ();
        """,
    )
    with pytest.raises(ConfigError, match=words):
        await read(postgres_url, spec)


async def test_a_changed_table_is_not_read_on(postgres_url: str) -> None:
    await run_sql(postgres_url, ITEMS)

    async def emit(_: Batch[Any]) -> None:
        raise AssertionError("nothing may come")

    async with postgres.open_reader(parse_url(postgres_url), ReadSpec(table="items"), INFO) as r:
        await run_sql(postgres_url, "ALTER TABLE items ADD COLUMN w int")
        with pytest.raises(SchemaMismatchError, match="was changed"):
            await r.pump(None, None, emit)


async def test_row_security_is_an_error_and_not_a_short_read(postgres_url: str) -> None:
    async with sql(postgres_url) as connection:
        name = f"r{await connection.fetchval('SELECT pg_backend_pid()')}"
        await connection.execute(
            f"CREATE ROLE {name} LOGIN PASSWORD '{name}'; CREATE TABLE t (id int PRIMARY KEY);"
            f"INSERT INTO t VALUES (1); CREATE TABLE seen (id int PRIMARY KEY);"
            f"GRANT SELECT ON t, seen TO {name};"
            "ALTER TABLE t ENABLE ROW LEVEL SECURITY"
        )
    url = parse_url(postgres_url)
    other = replace(url, user=name, password=name)
    try:
        with pytest.raises(ConfigError, match="row-level security"):
            async with postgres.open_reader(other, ReadSpec(table="t"), INFO) as reader:
                await reader.pump(None, None, _ignore)
        with pytest.raises(ConfigError, match="settle="):
            async with postgres.open_reader(other, ReadSpec(table="seen", cursor=("id",)), INFO):
                pass
    finally:
        await run_sql(postgres_url, f"DROP OWNED BY {name}; DROP ROLE {name}")


async def _ignore(_: Batch[Any]) -> None:
    pass


# --- rows ----------------------------------------------------------------------------------


class Mood(Enum):
    GOOD = "good"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Thing:
    name: str | None
    price: Decimal
    mood: Mood
    at: datetime


THINGS = """
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE TABLE things (id bigint PRIMARY KEY, mood mood NOT NULL, price numeric(10, 2) NOT NULL,
    at timestamptz NOT NULL, name text, extra jsonb);
INSERT INTO things VALUES (1, 'good', 1.50, '2024-01-01 09:00+09', E'a\\tb', '{}'),
    (2, 'bad', 2.00, '2024-01-02', NULL, NULL);
"""


async def test_a_dataclass_reads_just_its_columns(postgres_url: str) -> None:
    await run_sql(postgres_url, THINGS)
    found = await read(postgres_url, ReadSpec(table="things", row=Thing))
    assert found.shape.names == ("name", "price", "mood", "at")
    assert found.rows == [
        Thing("a\tb", Decimal("1.50"), Mood.GOOD, datetime(2024, 1, 1, tzinfo=UTC)),
        Thing(None, Decimal("2.00"), Mood.BAD, datetime(2024, 1, 2, tzinfo=UTC)),
    ]
    assert found.batches[-1].position == ("2",)


@dataclass
class NotNull:
    name: str


@dataclass
class WrongKind:
    price: int


@dataclass
class Unknown:
    colour: str


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (NotNull, r"NotNull.name .* allows NULL.* annotate it str \| None"),
        (WrongKind, r"WrongKind.price .* annotate it Decimal"),
        (Unknown, r"Unknown.colour: .* no column 'colour'"),
    ],
)
async def test_annotations_are_checked_before_the_first_row(
    postgres_url: str, row: type[Any], words: str
) -> None:
    await run_sql(postgres_url, THINGS)
    with pytest.raises(ConfigError, match=words):
        await read(postgres_url, ReadSpec(table="things", row=row))


async def test_a_null_from_a_query_is_an_error_of_its_column(postgres_url: str) -> None:
    await run_sql(postgres_url, THINGS)
    spec = ReadSpec(query="SELECT id, name FROM things", key=("id",), row=NotNull)
    with pytest.raises(DataError, match="'name' is NULL"):
        await read(postgres_url, spec)


async def test_a_value_that_python_cannot_hold_matters_only_when_touched(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE t (id int PRIMARY KEY, d date, i interval);"
        "INSERT INTO t VALUES (1, 'infinity', '1 mon')",
    )
    (row,) = (await read(postgres_url, ReadSpec(table="t"))).rows
    assert isinstance(row, Row)
    assert row["id"] == 1
    with pytest.raises(DataError, match="column 'd'"):
        row["d"]
    with pytest.raises(DataError, match="column 'i'"):
        row["i"]


# --- incremental reads ---------------------------------------------------------------------


async def test_a_time_cursor_stops_below_the_oldest_open_transaction(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE e (id serial PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())",
    )
    spec = ReadSpec(table="e", cursor=("at",))
    async with sql(postgres_url) as slow, sql(postgres_url) as quick:
        await quick.execute("INSERT INTO e DEFAULT VALUES")
        await asyncio.sleep(0.3)
        await slow.execute("BEGIN")
        await slow.execute("SELECT now()")
        await asyncio.sleep(0.3)
        await quick.execute("INSERT INTO e DEFAULT VALUES")
        await asyncio.sleep(0.3)

        first = await read(postgres_url, spec)
        assert first.column("id") == [1]
        assert first.shape.key == ("at", "id")

        await slow.execute("INSERT INTO e DEFAULT VALUES")
        await slow.execute("COMMIT")
        second = await read(postgres_url, spec, after=first.batches[-1].position)
        assert second.column("id") == [3, 2]


async def test_settle_leaves_young_rows_for_later(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE e (id int PRIMARY KEY, at timestamptz NOT NULL);"
        "INSERT INTO e VALUES (1, now() - interval '1 hour'), (2, now() - interval '5 minutes')",
    )
    spec = ReadSpec(table="e", cursor=("at", "id"), settle=timedelta(minutes=10))
    assert (await read(postgres_url, spec)).column("id") == [1]


async def test_ties_of_a_cursor_are_paged_by_the_key(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE e (id int PRIMARY KEY, at timestamptz NOT NULL);"
        "INSERT INTO e SELECT i, '2024-01-01' FROM generate_series(1, 400) AS i",
    )
    spec = ReadSpec(table="e", cursor=("at",))
    whole = await read(postgres_url, spec)
    assert any("no index serves" in note for note in whole.notes)
    middle = whole.batches[1].position
    assert middle is not None
    rest = await read(postgres_url, spec, after=middle)
    assert rest.column("id") == list(range(int(middle[1]) + 1, 401))


async def test_an_integer_cursor_waits_for_transactions_that_were_open(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE e (id serial PRIMARY KEY, v int)")
    spec = ReadSpec(table="e", cursor=("id",))
    async with sql(postgres_url) as slow, sql(postgres_url) as quick:
        await slow.execute("BEGIN")
        await slow.execute("INSERT INTO e (v) VALUES (1)")
        await quick.execute("INSERT INTO e (v) VALUES (2)")
        reading = asyncio.create_task(read(postgres_url, spec))
        await asyncio.sleep(0.5)
        assert not reading.done()
        await slow.execute("COMMIT")
        assert (await reading).column("id") == [1, 2]


async def test_a_read_of_etl_holds_no_cursor_back(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horizon, "WAIT_S", 0.3)
    await run_sql(
        postgres_url,
        ITEMS + "CREATE TABLE e (id int PRIMARY KEY, v int);INSERT INTO e VALUES (1, 1)",
    )
    reading, go_on = asyncio.Event(), asyncio.Event()

    async def emit(_: Batch[Any]) -> None:
        reading.set()
        await go_on.wait()

    async with postgres.open_reader(parse_url(postgres_url), ReadSpec(table="items"), INFO) as r:
        pumping = asyncio.create_task(r.pump(None, None, emit))
        await reading.wait()
        found = await read(postgres_url, ReadSpec(table="e", cursor=("id",)))
        go_on.set()
        await pumping
    assert found.column("id") == [1]


async def test_a_user_of_some_columns_reads_those(postgres_url: str) -> None:
    await run_sql(postgres_url, THINGS)
    async with sql(postgres_url) as connection:
        name = f"c{await connection.fetchval('SELECT pg_backend_pid()')}"
        await connection.execute(
            f"CREATE ROLE {name} LOGIN PASSWORD '{name}';"
            f"GRANT SELECT (id, mood, price, at, name) ON things TO {name}"
        )
    try:
        other = replace(parse_url(postgres_url), user=name, password=name)
        got: list[Any] = []

        async def emit(batch: Batch[Any]) -> None:
            got.extend(batch.rows)

        async with postgres.open_reader(other, ReadSpec(table="things", row=Thing), INFO) as r:
            await r.pump(None, None, emit)
        assert len(got) == 2
        with pytest.raises(ConfigError, match="no right"):
            async with postgres.open_reader(other, ReadSpec(table="things"), INFO) as r:
                await r.pump(None, None, emit)
    finally:
        await run_sql(postgres_url, f"DROP OWNED BY {name}; DROP ROLE {name}")


async def test_an_integer_cursor_moves_nothing_past_an_endless_transaction(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(horizon, "WAIT_S", 0.3)
    await run_sql(postgres_url, "CREATE TABLE e (id serial PRIMARY KEY, v int)")
    spec = ReadSpec(table="e", cursor=("id",))
    async with sql(postgres_url) as slow, sql(postgres_url) as quick:
        await slow.execute("SET application_name = 'the slow one'")
        await slow.execute("BEGIN")
        await slow.execute("INSERT INTO e (v) VALUES (1)")
        await quick.execute("INSERT INTO e (v) VALUES (2)")
        found = await read(postgres_url, spec)
        assert found.batches == []
        assert "the slow one" in found.notes[-1]
        await slow.execute("ROLLBACK")
    assert (await read(postgres_url, spec)).column("id") == [2]


async def test_a_prepared_transaction_holds_a_cursor_back(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if await value(postgres_url, "SELECT current_setting('max_prepared_transactions')") == "0":
        pytest.skip("the server allows no prepared transactions")
    monkeypatch.setattr(horizon, "WAIT_S", 0.3)
    await run_sql(postgres_url, "CREATE TABLE e (id serial PRIMARY KEY, v int)")
    spec = ReadSpec(table="e", cursor=("id",))
    async with sql(postgres_url) as slow, sql(postgres_url) as quick:
        await slow.execute("BEGIN")
        await slow.execute("INSERT INTO e (v) VALUES (1)")
        await slow.execute("PREPARE TRANSACTION 'held'")
        try:
            await quick.execute("INSERT INTO e (v) VALUES (2)")
            found = await read(postgres_url, spec)
            assert found.batches == []
            assert "'held'" in found.notes[-1]
        finally:
            await slow.execute("COMMIT PREPARED 'held'")
    assert (await read(postgres_url, spec)).column("id") == [1, 2]


async def test_a_second_incremental_read_finds_nothing(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE e (id uuid PRIMARY KEY); INSERT INTO e VALUES (gen_random_uuid())",
    )
    spec = ReadSpec(table="e", cursor=("id",))
    first = await read(postgres_url, spec)
    assert len(first.rows) == 1
    assert (await read(postgres_url, spec, after=first.batches[-1].position)).batches == []


@pytest.mark.parametrize("kind", ["timestamptz", "timestamp", "date"])
async def test_rows_of_later_times_are_told(kind: str, postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        f"CREATE TABLE e (id int PRIMARY KEY, at {kind} NOT NULL);"
        "INSERT INTO e VALUES (1, now() - interval '2 days')",
    )
    spec = ReadSpec(table="e", cursor=("at",))
    assert not any("later than now" in note for note in (await read(postgres_url, spec)).notes)
    await run_sql(
        postgres_url, "INSERT INTO e VALUES (2, now() + interval '2 days'), (3, 'infinity')"
    )
    found = await read(postgres_url, spec)
    assert found.column("id") == [1]
    (note,) = [note for note in found.notes if "later than now" in note]
    assert "later than now: 2. " in note
    assert "'infinity', which never comes: 1" in note


async def test_a_table_that_ends_before_the_position_is_told(postgres_url: str) -> None:
    await run_sql(
        postgres_url, "CREATE TABLE e (id int PRIMARY KEY); INSERT INTO e VALUES (1), (7)"
    )
    spec = ReadSpec(table="e", cursor=("id",))
    last = (await read(postgres_url, spec)).batches[-1].position
    same = await read(postgres_url, spec, after=last)
    assert not any("below the saved position" in note for note in same.notes)
    await run_sql(postgres_url, "DELETE FROM e WHERE id = 7")
    lower = await read(postgres_url, spec, after=last)
    assert any("below the saved position" in note for note in lower.notes)


@pytest.mark.parametrize("end", ["NaN", "Infinity"])
async def test_a_cursor_behind_which_nothing_comes_is_refused(end: str, postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE e (id int PRIMARY KEY, n numeric NOT NULL);"
        f"INSERT INTO e VALUES (1, 1), (2, '{end}')",
    )
    spec = ReadSpec(table="e", cursor=("n",))
    for after in (None, ("1", "1"), (end, "2")):
        with pytest.raises(DataError, match=rf"cursor 'n' \(numeric\) is {end} in some row"):
            await read(postgres_url, spec, after=after)


async def test_a_position_of_another_cursor_is_refused(postgres_url: str) -> None:
    await run_sql(postgres_url, ITEMS)
    with pytest.raises(ConfigError, match="position does not fit"):
        await read(postgres_url, ReadSpec(table="items"), after=("1",))


PLACES = """
CREATE TABLE places (a text, id int PRIMARY KEY, "b c" text, d date, e numeric, f text NOT NULL);
INSERT INTO places SELECT CASE i % 3 WHEN 0 THEN E'x\\ty\\\\' WHEN 1 THEN '' END, i,
    repeat('z', i % 5), CASE i % 4 WHEN 0 THEN 'infinity'::date WHEN 1 THEN '2024-02-29' END,
    i * 0.10, 'F' || i FROM generate_series(1, 500) AS i;
"""


def is_wanted(row: Row) -> bool:
    return row["id"] % 7 != 0 and (row["id"] % 2 == 0 or row["b c"] is not None)


def lowered(row: Row) -> Row:
    return row.replace(f=row["f"].lower(), e=None if row["e"] > 40 else row["e"] * 2)


def with_a(row: Row) -> Row:
    name = "".join(["a"])  # no constant of the function: nobody can guess it
    return row.replace(**{name: "new"}) if row[name] is None else row


@pytest.mark.parametrize("exists", [False, True])
async def test_what_functions_look_at_is_read_first_and_nothing_else_changes(
    postgres_url: str, exists: bool
) -> None:
    await run_sql(postgres_url, PLACES)
    if exists:  # in another order, and with a type that takes a look at each value
        await run_sql(
            postgres_url,
            'CREATE TABLE there (f varchar(9), e numeric(9,3), d date, a text, id int, "b c" text)',
        )
    database = Database(postgres_url)
    flow = database.table("places").filter(is_wanted).map(lowered).map(with_a)
    limits = Limits(batch_rows=50)
    await Pipeline("t", flow.into(database.append("there")), limits=limits).run()
    columns = 'id, a, "b c", d, round(e, 1) AS e, f'
    expected = """SELECT id, coalesce(a, 'new') AS a, "b c", d,
        round(CASE WHEN e <= 40 THEN e * 2 END, 1) AS e, lower(f) AS f
        FROM places WHERE id % 7 <> 0 ORDER BY id"""
    found = await texts(postgres_url, f"SELECT {columns} FROM there ORDER BY id")
    assert found == await texts(postgres_url, expected)
    if not exists:
        names = await texts(
            postgres_url,
            "SELECT attname FROM pg_attribute WHERE attrelid = 'there'::regclass AND attnum > 0"
            " ORDER BY attnum",
        )
        assert names == ["(a)", "(id)", '("b c")', "(d)", "(e)", "(f)"]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_a_row_function_that_would_end_the_program_fails_the_run(
    kind: type[BaseException], postgres_url: str
) -> None:
    """The driver hands rows on in a task of its own, through which it would end the event loop."""
    await run_sql(postgres_url, ITEMS.replace("500", "20000"))

    def rude(row: Row) -> Row:
        if row["b"] == 10_000:
            raise kind(0)
        return row

    database = Database(postgres_url)
    flow = database.table("items").map(rude).into(database.replace("u"))
    with pytest.raises(PipelineFailedError, match=f"raised {kind.__name__}"):
        await Pipeline("p", flow).run()
