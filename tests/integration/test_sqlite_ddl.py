"""Tables that somebody alters while a run goes on: nothing is bent or lost in SQLite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from etl.batch import Batch
from etl.databases import sqlite
from etl.databases.database import ReadSpec
from etl.databases.url import parse_url
from etl.errors import DataError, EtlError, SchemaMismatchError
from etl.rows import shape_of
from tests.integration.sqlite_kit import INFO, fetch, lane, script


@dataclass(frozen=True, slots=True)
class Item:
    id: int
    v: str


ITEM = shape_of(Item, key=("id",))
TABLE = (
    "CREATE TABLE t (id INT, v TEXT); CREATE UNIQUE INDEX i ON t (id);"
    "INSERT INTO t VALUES (100, 'old')"
)
MODES: dict[str, Any] = {
    "append": lambda out: out.append("t"),
    "upsert": lambda out: out.upsert("t", key=("id",)),
    "replace": lambda out: out.replace("t"),
    "gather": lambda out: out.append("t"),
}
IGNORE = "CREATE TRIGGER g BEFORE INSERT ON t BEGIN SELECT RAISE(IGNORE); END"
WRITTEN = ("append", "upsert")
STAGED = ("replace", "gather")


@pytest.mark.parametrize(
    ("modes", "ddl", "error"),
    [
        (("append", "upsert", "replace", "gather"), "ALTER TABLE t DROP COLUMN v", True),
        (("append", "upsert", "replace", "gather"), "ALTER TABLE t RENAME v TO w", True),
        (("append", "upsert", "replace", "gather"), "ALTER TABLE t ADD COLUMN n INT", False),
        (("append", "upsert", "replace", "gather"), IGNORE, True),
        (WRITTEN, "ALTER TABLE t RENAME TO u", True),
        (WRITTEN, "DROP TABLE t", True),
        (("upsert",), "DROP INDEX i", True),
        (STAGED, "DROP TABLE STAGING", True),
        # Staged as text: as a number, '007' would lose its noughts.
        (STAGED, "DROP TABLE t; CREATE TABLE t (id INT, v INT)", True),
        (STAGED, "CREATE INDEX j ON t (v)", False),
    ],
)
async def test_a_target_that_is_changed_meanwhile(
    sqlite_url: str, modes: tuple[str, ...], ddl: str, error: bool
) -> None:
    for mode in modes:
        script(sqlite_url, "DROP TABLE IF EXISTS t; DROP TABLE IF EXISTS u")
        script(sqlite_url, TABLE)
        resumable = mode != "gather"
        async with lane(
            sqlite_url, MODES[mode], shape=ITEM, resumable=resumable, fresh=True
        ) as one:

            async def on(one: Any = one, mode: str = mode) -> None:
                await one.write([Item(2, "x8")], (2,))
                if mode in STAGED:
                    await one.publish()

            await one.write([Item(1, "007")], (1,))
            staging = one.session.loads[0].staging
            script(sqlite_url, ddl.replace("STAGING", f'"{staging}"'))
            if error:
                with pytest.raises((SchemaMismatchError, DataError)):
                    await on()
            else:
                await on()
                rows = fetch(sqlite_url, "SELECT id, v FROM t WHERE id < 100")
                assert rows == [(1, "007"), (2, "x8")]


async def test_staged_rows_that_do_not_fit_any_more_are_loaded_anew(sqlite_url: str) -> None:
    script(sqlite_url, TABLE)
    async with lane(sqlite_url, MODES["replace"], shape=ITEM) as one:
        await one.write([Item(1, "007")], (1,))
        script(sqlite_url, "DROP TABLE t; CREATE TABLE t (id INT, v INT)")
        with pytest.raises(SchemaMismatchError, match="begun to be staged"):
            await one.publish()
    async with lane(sqlite_url, MODES["replace"], shape=ITEM) as one:
        assert one.position is None


@pytest.mark.parametrize(
    "spec",
    [
        ReadSpec(table="t"),
        ReadSpec(query="SELECT * FROM t", key=("id",)),
        ReadSpec(query="SELECT id, v FROM t", key=("id",)),
        ReadSpec(table="t", row=Item),
    ],
    ids=["table", "star", "query", "class"],
)
@pytest.mark.parametrize(
    "ddl",
    [
        # SQLite itself would read the text 'v' in each row, and not complain.
        "ALTER TABLE t DROP COLUMN v",
        "ALTER TABLE t RENAME v TO w",
        "ALTER TABLE t RENAME TO u",
        "DROP TABLE t",
        "DROP TABLE t; CREATE TABLE t (id INTEGER PRIMARY KEY, v INTEGER)",
    ],
)
async def test_a_source_that_is_changed_before_it_is_read_is_refused(
    sqlite_url: str, ddl: str, spec: ReadSpec
) -> None:
    script(
        sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t VALUES (1, 'a')"
    )
    seen: list[Any] = []

    async def emit(batch: Batch[Any]) -> None:
        seen.extend(batch.rows)

    async with sqlite.open_reader(parse_url(sqlite_url), spec, INFO) as reader:
        script(sqlite_url, ddl)
        with pytest.raises(EtlError, match="was changed|no such"):
            await reader.pump(None, None, emit)
    assert not seen


async def test_a_column_that_is_added_to_a_source_changes_nothing(sqlite_url: str) -> None:
    script(
        sqlite_url, "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT); INSERT INTO t VALUES (1, 'a')"
    )
    seen: list[Any] = []

    async def emit(batch: Batch[Any]) -> None:
        seen.extend(map(dict, batch.rows))

    async with sqlite.open_reader(parse_url(sqlite_url), ReadSpec(table="t"), INFO) as reader:
        script(sqlite_url, "ALTER TABLE t ADD COLUMN n INT DEFAULT 5")
        await reader.pump(None, None, emit)
    assert seen == [{"id": 1, "v": "a"}]
