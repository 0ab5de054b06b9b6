"""Bad rows in real databases: the good ones are written, the bad ones are kept beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from etl import Database, DeadLetter, Limits, Pipeline, PipelineFailedError, Report, Row
from etl.connector import StoredReject
from etl.databases.database import driver_of
from etl.flow import Flow
from tests.integration import postgres_kit, sqlite_kit

SMALL = Limits(batch_rows=10, group_rows=40)
CENT = Decimal("0.01")


@dataclass(frozen=True, slots=True)
class Item:
    id: int
    name: str
    price: Decimal


@dataclass(frozen=True, slots=True)
class Priced:
    id: int
    name: str | None
    cents: int


class Place:
    """Two databases of one dialect."""

    def __init__(self, dialect: str, source: str, target: str) -> None:
        self.dialect = dialect
        self.source = source
        self.target = target

    async def script(self, url: str, statements: str) -> None:
        if self.dialect == "sqlite":
            sqlite_kit.script(url, statements)
        else:
            await postgres_kit.run_sql(url, statements)

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        if self.dialect == "sqlite":
            return [tuple(row) for row in sqlite_kit.fetch(self.target, query)]
        async with postgres_kit.sql(self.target) as connection:
            return [tuple(row) for row in await connection.fetch(query)]

    async def items(self, count: int, *, name: str = "'n' || {n}") -> None:
        names = ", ".join(f"({n}, {name.format(n=n)}, {n}.25)" for n in range(1, count + 1))
        await self.script(
            self.source,
            "CREATE TABLE items (id int PRIMARY KEY, name text, price numeric(10,2) NOT NULL);"
            f"INSERT INTO items VALUES {names}",
        )

    async def rejects(self) -> list[StoredReject]:
        url = Database(self.target).url
        async with driver_of(url).open_state(url) as store:
            return list(await store.rejects())

    async def run(self, flow: Flow, **options: Any) -> Report:
        on_error = options.pop("on_error", DeadLetter())
        return await Pipeline("p", flow, limits=SMALL, on_error=on_error).run(**options)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest) -> Place:
    make: Callable[[str], Any] = request.getfixturevalue
    if request.param == "sqlite":
        folder = make("tmp_path")
        return Place("sqlite", f"sqlite:///{folder}/source.db", f"sqlite:///{folder}/target.db")
    make_database = make("postgres_database")
    return Place("postgresql", make_database(), make_database())


def to_cents(row: Row) -> Priced:
    if row["id"] % 20 == 0:
        raise ValueError(f"no price for {row['name']}")
    return Priced(row["id"], row["name"], int(Decimal(row["price"]) * 100))


async def test_a_failing_function_keeps_the_row_as_it_entered(place: Place) -> None:
    await place.items(100)
    source, target = Database(place.source), Database(place.target)
    report = await place.run(source.table("items").map(to_cents).into(target.append("priced")))

    assert (report.rows_read, report.rows_written, report.rows_rejected) == (100, 95, 5)
    assert await place.rows("SELECT count(*), sum(id) FROM priced") == [(95, 5050 - 300)]
    rejects = await place.rejects()
    assert [json.loads(one.row_key or "") for one in rejects] == [
        {"id": n} for n in (20, 40, 60, 80, 100)
    ]
    first = rejects[0]
    assert first.step == "map to_cents"
    assert first.reason.startswith("ValueError (test_bad_rows.py:")
    assert first.detail == "no price for n20"
    row = first.restore(__name__)
    assert isinstance(row, Row)
    assert dict(row)["name"] == "n20"
    assert row["price"] == (Decimal("20.25") if place.dialect == "postgresql" else 20.25)


TABLE = (
    "CREATE TABLE priced (id int PRIMARY KEY, name {text} NOT NULL CHECK (name <> 'n7'),"
    " cents int UNIQUE)"
)


async def test_what_a_table_refuses_is_kept_and_the_rest_is_written(place: Place) -> None:
    # Row 3 has no name, row 7 breaks the check, row 12 has the cents of row 11, 30 is there.
    await place.items(60)
    await place.script(
        place.source,
        "UPDATE items SET name = NULL WHERE id = 3; UPDATE items SET price = 11.25 WHERE id = 12",
    )
    await place.script(
        place.target,
        TABLE.format(text="text") + "; INSERT INTO priced VALUES (30, 'old', -1)",
    )
    source, target = Database(place.source), Database(place.target)

    def priced(row: Row) -> Priced:
        return Priced(row["id"], row["name"], int(Decimal(row["price"]) * 100))

    report = await place.run(source.table("items").map(priced).into(target.append("priced")))

    assert (report.rows_read, report.rows_written, report.rows_rejected) == (60, 56, 4)
    found = await place.rows("SELECT id FROM priced ORDER BY id")
    assert [row[0] for row in found] == [n for n in range(1, 61) if n not in {3, 7, 12}]
    assert await place.rows("SELECT name FROM priced WHERE id = 30") == [("old",)]
    rejects = await place.rejects()
    assert [json.loads(one.row_key or "")["id"] for one in rejects] == [3, 7, 12, 30]
    assert {one.step for one in rejects} == {"write"}
    assert all(one.reason.startswith("DataError: ") for one in rejects)
    assert not any("11" in one.reason or "30" in one.reason for one in rejects)


@pytest.mark.parametrize("policy", ["fail", "skip"])
async def test_without_a_place_for_them_bad_rows_end_the_run_or_are_counted(
    place: Place, policy: str
) -> None:
    await place.items(60)
    source, target = Database(place.source), Database(place.target)
    flow = source.table("items").map(to_cents).into(target.append("priced"))
    if policy == "fail":
        with pytest.raises(PipelineFailedError, match=r"to_cents failed on row 10 of a batch"):
            await place.run(flow, on_error=policy)
    else:
        report = await place.run(flow, on_error=policy)
        assert (report.rows_written, report.rows_skipped, report.rows_rejected) == (57, 3, 0)
    assert await place.rejects() == []


@dataclass(frozen=True, slots=True)
class Full:
    id: int
    name: str
    price: Decimal


async def test_a_row_that_its_dataclass_cannot_hold_is_kept_as_it_was_read(place: Place) -> None:
    await place.items(30)
    await place.script(place.source, "UPDATE items SET name = NULL WHERE id IN (4, 25)")
    if place.dialect == "postgresql":  # a view does not say which columns can be NULL
        await place.script(place.source, "CREATE VIEW seen AS SELECT * FROM items")
    name = "seen" if place.dialect == "postgresql" else "items"
    source, target = Database(place.source), Database(place.target)
    flow = source.table(name, row=Full, key=["id"]).into(target.append("full_items"))
    report = await place.run(flow)

    assert (report.rows_read, report.rows_written, report.rows_rejected) == (30, 28, 2)
    assert await place.rows("SELECT count(*), sum(id) FROM full_items") == [(28, 465 - 29)]
    rejects = await place.rejects()
    assert [(one.step, one.column) for one in rejects] == [("row", "name"), ("row", "name")]
    assert [dict(one.restore(__name__))["id"] for one in rejects] == [4, 25]
