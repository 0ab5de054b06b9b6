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


# -- sent again ---------------------------------------------------------------------------------


def price_of(row: Row) -> Priced:
    return Priced(row["id"], row["name"], int(Decimal(row["price"]) * 100))


def in_upper_case(priced: Priced) -> Priced:
    if priced.id % 20 == 0 and not is_mended:
        raise ValueError("not yet")
    assert priced.name is not None
    return Priced(priced.id, priced.name.upper(), priced.cents)


is_mended = False


@pytest.fixture
def mended(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr("tests.integration.test_bad_rows.is_mended", True)


async def test_a_rejected_row_goes_on_from_the_step_that_refused_it(
    place: Place, mended: Callable[[], None]
) -> None:
    await place.items(60)
    await place.script(
        place.target, TABLE.format(text="text") + "; INSERT INTO priced VALUES (30, 'x', -1)"
    )
    source, target = Database(place.source), Database(place.target)
    flow = source.table("items").map(price_of).map(in_upper_case).into(target.append("priced"))
    pipeline = Pipeline("p", flow, limits=SMALL, on_error=DeadLetter())
    await pipeline.run()
    assert [one.step for one in await place.rejects()] == [
        "map in_upper_case", "write", "map in_upper_case", "map in_upper_case"
    ]  # fmt: skip

    (done,) = await pipeline.retry_rejects(module=__name__)
    assert (done.settled, done.rows_written, done.refused) == (0, 0, 4)
    assert [one.tries for one in await place.rejects()] == [1, 1, 1, 1]

    mended()
    await place.script(place.target, "DELETE FROM priced WHERE id = 30")
    before = await place.rows("SELECT position FROM etl_checkpoint")
    (done,) = await pipeline.retry_rejects(module=__name__)
    assert (done.settled, done.rows_written, done.refused) == (4, 4, 0)
    assert await place.rejects() == []
    found = await place.rows("SELECT id, name, cents FROM priced ORDER BY id")
    assert found == [(n, f"N{n}", n * 100 + 25) for n in range(1, 61)]
    assert await place.rows("SELECT position FROM etl_checkpoint") == before
    (done,) = await pipeline.retry_rejects(module=__name__)
    assert (done.settled, done.rows_written, done.refused) == (0, 0, 0)


async def test_rejects_of_a_replace_belong_to_its_generation(place: Place) -> None:
    await place.items(60)
    source, target = Database(place.source), Database(place.target)
    flow = source.table("items").map(to_cents).into(target.replace("priced"))
    pipeline = Pipeline("p", flow, limits=SMALL, on_error=DeadLetter())
    for _ in range(2):  # the second load throws the rows of the first away, and their rejects
        await pipeline.run()
        rejects = await place.rejects()
        assert [json.loads(one.row_key or "")["id"] for one in rejects] == [20, 40, 60]
        assert not any(one.staged for one in rejects)

    failing = Pipeline(
        "p",
        source.table("items").map(to_cents).map(fails_at_50).into(target.replace("priced")),
        limits=Limits(batch_rows=10, group_rows=1),
        on_error=DeadLetter(max_rows=2),
    )
    with pytest.raises(PipelineFailedError, match=r"max_rows=2"):
        await failing.run()
    staged = [one for one in await place.rejects() if one.staged]
    assert [json.loads(one.row_key or "")["id"] for one in staged] == [20, 40]
    await failing.retry_rejects(module=__name__)
    assert [one.number for one in await place.rejects() if one.staged] == [
        one.number for one in staged
    ]
    # The restart goes on with the staging table, so they stay; a new load drops them.
    await Pipeline("p", flow, limits=SMALL, on_error=DeadLetter()).run(full=True)
    rejects = await place.rejects()
    assert [json.loads(one.row_key or "")["id"] for one in rejects] == [20, 40, 60]
    assert not any(one.staged for one in rejects)


def fails_at_50(priced: Priced) -> Priced:
    if priced.id == 50:
        raise ValueError("50")
    return priced


async def test_the_last_row_of_a_key_wins_and_sums_are_exact_around_bad_rows(place: Place) -> None:
    await place.script(
        place.source,
        "CREATE TABLE events (id int PRIMARY KEY, k int NOT NULL, v int NOT NULL)",
    )
    rows = [(n, n % 7, n) for n in range(1, 101)]
    listed = ", ".join(map(str, rows))
    await place.script(place.source, f"INSERT INTO events VALUES {listed}")
    await place.script(
        place.target,
        "CREATE TABLE latest (k int PRIMARY KEY, v int NOT NULL CHECK (v % 10 <> 0));"
        "CREATE TABLE sums (k int PRIMARY KEY, v int NOT NULL CHECK (v <> 1000000))",
    )
    source, target = Database(place.source), Database(place.target)

    def pair(row: Row) -> dict[str, int]:
        return {"k": row["k"], "v": row["v"]}

    flow = (
        source.table("events")
        .map(pair)
        .into(target.upsert("latest", key=["k"]), target.upsert("sums", key=["k"], add=["v"]))
    )
    report = await place.run(flow)

    good = [(k, v) for _, k, v in rows if v % 10]
    assert report.rows_rejected == 10
    assert sorted(await place.rows("SELECT k, v FROM latest")) == sorted(dict(good).items())
    sums = {k: sum(v for _, one, v in rows if one == k) for k in range(7)}
    assert sorted(await place.rows("SELECT k, v FROM sums")) == sorted(sums.items())


async def test_a_full_upsert_that_reads_again_does_not_pile_up_rejects(place: Place) -> None:
    await place.items(40)
    source, target = Database(place.source), Database(place.target)
    await place.script(place.target, TABLE.format(text="text"))
    flow = source.table("items").map(to_cents).into(target.upsert("priced", key=["id"]))
    for _ in range(2):
        await place.run(flow)
        keys = [json.loads(one.row_key or "")["id"] for one in await place.rejects()]
        assert sorted(keys) == [7, 20, 40]


async def test_a_constraint_that_waits_for_the_commit_is_found_too(place: Place) -> None:
    await place.items(40)
    deferred = "DEFERRABLE INITIALLY DEFERRED" if place.dialect == "postgresql" else ""
    await place.script(
        place.target,
        "CREATE TABLE known (id int PRIMARY KEY);"
        f"CREATE TABLE priced (id int REFERENCES known (id) {deferred}, name text, cents int);"
        "INSERT INTO known VALUES " + ", ".join(f"({n})" for n in range(1, 41) if n not in {9, 33}),
    )
    source, target = Database(place.source), Database(place.target)
    report = await place.run(source.table("items").map(price_of).into(target.append("priced")))
    assert report.rows_rejected == 2
    keys = [json.loads(one.row_key or "")["id"] for one in await place.rejects()]
    assert sorted(keys) == [9, 33]
    assert await place.rows("SELECT count(*) FROM priced") == [(38,)]


async def test_a_row_that_cannot_be_kept_ends_the_run(place: Place) -> None:
    await place.items(20)

    def strange(row: Row) -> object:
        return (row["id"], object())

    def broken(row: object) -> object:
        raise ValueError

    source, target = Database(place.source), Database(place.target)
    flow = source.table("items").map(strange).map(broken).into(target.append("priced"))
    with pytest.raises(PipelineFailedError, match="cannot be kept in etl_reject.* class object"):
        await place.run(flow)
    assert await place.rejects() == []
