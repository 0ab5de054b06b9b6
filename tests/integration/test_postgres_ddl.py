"""Tables that somebody alters while a run goes on: nothing is bent or lost in PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from etl.batch import Batch
from etl.databases import postgres
from etl.databases.database import Database, ReadSpec
from etl.databases.url import parse_url
from etl.errors import DataError, EtlError, SchemaMismatchError
from tests.integration.postgres_kit import INFO, lane, read, run_sql, texts, value

TABLE = (
    "CREATE TABLE f (id bigint, v bigint); CREATE UNIQUE INDEX fi ON f (id);"
    "INSERT INTO f VALUES (7, 7);"
    "CREATE FUNCTION drop_all() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
)
TRIGGER = "CREATE TRIGGER d BEFORE INSERT ON f FOR EACH ROW EXECUTE FUNCTION drop_all()"
RULE = "CREATE RULE r AS ON INSERT TO f DO INSTEAD NOTHING"


def batch(row: int) -> Batch[Any]:
    return Batch([{"id": row, "v": row}])


@dataclass(frozen=True, slots=True)
class Change:
    """DDL, and what a sink must do about it: an error's type, or None: it goes on."""

    ddl: str
    append: type[EtlError] | None = SchemaMismatchError
    upsert: type[EtlError] | None = SchemaMismatchError


CHANGES = [
    Change("ALTER TABLE f RENAME TO g"),
    Change("ALTER TABLE f RENAME v TO w"),
    Change("ALTER TABLE f RENAME TO g; CREATE TABLE f (v bigint, id bigint PRIMARY KEY)"),
    Change("ALTER TABLE f ADD COLUMN n int NOT NULL DEFAULT 1"),
    Change("ALTER TABLE f ADD CHECK (v <> 3)", DataError, DataError),
    Change("DROP INDEX fi", None),
    Change("CREATE INDEX ON f (v)", None, None),
    Change("TRUNCATE f", None, None),
    Change(TRIGGER, DataError, DataError),
    Change(RULE, None, DataError),  # COPY passes rules by
]


@pytest.mark.parametrize("mode", ["append", "upsert"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.ddl)
async def test_a_target_that_is_changed_between_transactions(
    postgres_url: str, change: Change, mode: str
) -> None:
    await run_sql(postgres_url, TABLE)
    out = Database(postgres_url)
    sink = out.append("f") if mode == "append" else out.upsert("f", key=("id",))
    expected = change.append if mode == "append" else change.upsert
    async with lane(postgres_url, sink) as one:
        await one.write([batch(1)], ("1",))
        await run_sql(postgres_url, change.ddl)
        if expected is None:
            await one.write([batch(3)], ("3",))
            assert await value(postgres_url, "SELECT v FROM f WHERE id = 3") == 3
        else:
            with pytest.raises(expected):
                await one.write([batch(3)], ("3",))
            assert (await one.session.load(one.keys))[one.keys[0]].position == ("1",)


@pytest.mark.parametrize("frames", [True, False])
@pytest.mark.parametrize(
    ("type_", "into", "v"),
    [
        ("bigint", "float8", "123456789"),  # as wide: the bytes would be taken for a number
        ("numeric(12,4)", "numeric(12,2)", "1.2345"),
        ("timestamptz", "timestamp", "'2024-01-01 00:00+05'"),
        ("varchar(10)", "char(3)", "'ab'"),
    ],
)
async def test_a_target_that_is_changed_before_the_first_row_gets_no_bent_value(
    postgres_database: Callable[[], str], type_: str, into: str, v: str, frames: bool
) -> None:
    source, target = postgres_database(), postgres_database()
    table = f"CREATE TABLE f (id bigint PRIMARY KEY, v {type_})"
    await run_sql(source, f"{table}; INSERT INTO f VALUES (1, {v})")
    await run_sql(target, table)
    batches: list[Batch[Any]] = []

    async def emit(batch: Batch[Any]) -> None:
        batches.append(batch)

    async with postgres.open_reader(parse_url(source), ReadSpec(table="f"), INFO) as reader:
        if frames:
            assert await reader.offers_frames()
            assert reader.use_frames(reader.shape.columns)
        await reader.pump(None, None, emit)
        shape = reader.shape
    async with lane(target, Database(target).append("f"), shape=shape) as one:
        await run_sql(target, f"ALTER TABLE f ALTER v TYPE {into}")
        with pytest.raises(SchemaMismatchError, match="was changed"):
            await one.write(batches, ("1",))
    # A new run looks at the table anew: it knows what the column is, or refuses.
    if into == "float8":
        await run_sql(target, "DELETE FROM etl_checkpoint")
        found = await read(source, ReadSpec(table="f"))
        async with lane(target, Database(target).append("f"), shape=found.shape) as one:
            await one.write(found.batches, ("1",))
        assert await value(target, "SELECT v FROM f") == 123456789.0


LIKENESS_LOST = [
    "ALTER TABLE f ADD COLUMN n int",
    "ALTER TABLE f DROP COLUMN v",
    "ALTER TABLE f ALTER v TYPE text",
    "ALTER TABLE f ALTER v SET DEFAULT 7",
    "ALTER TABLE f ALTER v SET NOT NULL",
    "ALTER TABLE f ADD CHECK (v < 100)",
    "ALTER TABLE f RENAME v TO w",
    "DROP TABLE f; CREATE TABLE f (id bigint, w int)",
]
TYPES_LOST = [
    "ALTER TABLE f DROP COLUMN v",
    "ALTER TABLE f ALTER v TYPE text",
    "ALTER TABLE f RENAME v TO w",
]


@pytest.mark.parametrize(
    ("swap", "ddl"),
    [("rename", ddl) for ddl in LIKENESS_LOST] + [("rewrite", ddl) for ddl in TYPES_LOST],
)
async def test_a_replaced_table_that_is_changed_meanwhile_keeps_the_change(
    postgres_url: str, swap: Any, ddl: str
) -> None:
    await run_sql(postgres_url, TABLE)
    sink = Database(postgres_url).replace("f", swap=swap)
    async with lane(postgres_url, sink) as one:
        await one.write([batch(1)], ("1",))
        await run_sql(postgres_url, ddl)
        was = await texts(postgres_url, "SELECT * FROM f")
        with pytest.raises(SchemaMismatchError, match="changed .* after its new rows"):
            await one.publish()
    assert await texts(postgres_url, "SELECT * FROM f") == was
    async with lane(postgres_url, sink) as one:
        assert one.position is None  # what was staged does not fit any more


async def test_an_index_that_is_added_to_a_replaced_table_is_carried_over(
    postgres_url: str,
) -> None:
    await run_sql(postgres_url, TABLE)
    async with lane(postgres_url, Database(postgres_url).replace("f")) as one:
        await one.write([batch(1)], ("1",))
        await run_sql(postgres_url, "CREATE INDEX late ON f (v)")
        await one.publish()
    assert await texts(postgres_url, "SELECT * FROM f") == ["(1,1)"]
    assert await value(postgres_url, "SELECT 'late'::regclass::text") == "late"


async def test_what_rewriting_keeps_may_come_meanwhile(postgres_url: str) -> None:
    await run_sql(postgres_url, TABLE)
    async with lane(postgres_url, Database(postgres_url).replace("f", swap="rewrite")) as one:
        await one.write([batch(1)], ("1",))
        await run_sql(
            postgres_url,
            "ALTER TABLE f ADD COLUMN n int DEFAULT 5, ADD CHECK (v < 9); CREATE INDEX ON f (v)",
        )
        await one.publish()
    assert await texts(postgres_url, "SELECT * FROM f") == ["(1,1,5)"]


@pytest.mark.parametrize("drops", [TRIGGER, RULE])
async def test_staged_rows_that_the_table_drops_fail_the_publication(
    postgres_url: str, drops: str
) -> None:
    await run_sql(postgres_url, TABLE)
    async with lane(postgres_url, Database(postgres_url).replace("f", swap="rewrite")) as one:
        await one.write([batch(1)], ("1",))
        await run_sql(postgres_url, drops)
        with pytest.raises(DataError, match="took 0 of 1 rows"):
            await one.publish()
    assert await texts(postgres_url, "SELECT * FROM f") == ["(7,7)"]
