"""What a verdict says of a column holds for every value, on every path.

``exact`` and ``widened``: every value arrives. ``checked``: it arrives, or its row is refused by
the column's name. ``lossy``: the run is refused before the first row; where the column is allowed
by name, the example of the verdict is bent as it says. The short form copies each type into some
others; ``make verdicts`` each into every one, and draws more values.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from etl import Database, DeadLetter, Limits, Pipeline, PipelineFailedError, Row
from etl.databases.database import DatabaseSource, driver_of
from etl.errors import EXIT_USAGE, SchemaMismatchError, exit_code_of
from etl.verdict import Verdict
from tests.integration import sqlite_kit, verdict_kit
from tests.integration.postgres_kit import run_sql, sql
from tests.integration.verdict_kit import FEW, POSTGRES, SQLITE, SQLITE_TARGETS, Outcome

LONG = os.environ.get("ETL_VERDICTS") == "long"
KEEP = DeadLetter(max_rows=100_000, max_share=1.0)
LIMITS = Limits(batch_rows=200, group_rows=1_000)
TABLES = ("a", "b", "c", "d")


class Bench:
    """A source and a target, and what goes from the one to the other."""

    def __init__(self, source: str, target: str) -> None:
        self.source = source
        self.target = target
        self._number = 0

    @property
    def from_sqlite(self) -> bool:
        return self.source.startswith("sqlite")

    @property
    def into_sqlite(self) -> bool:
        return self.target.startswith("sqlite")

    async def check(self, type_: str, values: Sequence[Any], targets: Sequence[str]) -> list[str]:
        """Copy values of a type into columns of others; what does not hold, in sentences."""
        await self._make(type_, values, targets)
        every = [f"c{i}" for i in range(len(targets))]
        verdicts = {one.column: one for one in await self._verdicts(every)}
        sound = [name for name in every if verdicts[name].fit.grade in {"exact", "widened"}]
        checked = [name for name in every if verdicts[name].fit.grade == "checked"]
        wrong: list[str] = []
        if sound:
            await self._pipeline("a", sound).run()
            await self._pipeline("b", sound, change=_touched).run()
            for table in "ab":
                wrong += await self._bent(type_, targets, table, sound)
        if checked:
            await self._pipeline("c", checked, on_error=KEEP).run()
            wrong += await self._bent(type_, targets, "c", checked)
            there = await self._ids("c")
            rejected = await self._rejected()
            for identity in self._ids_of(checked, len(values)):
                if (identity in there) == (identity in rejected):
                    wrong.append(f"row {identity} is both there and rejected, or neither")
            for identity, column in rejected.items():
                if column != f"c{identity // 1000}":
                    wrong.append(f"row {identity} is rejected for {column}")
            if LONG or self.from_sqlite:  # which writes lines where no row is kept
                await self._pipeline("d", checked, only=there).run()
                wrong += await self._bent(type_, targets, "d", checked)
        return [f"{type_}: {one}" for one in wrong]

    async def _make(self, type_: str, values: Sequence[Any], targets: Sequence[str]) -> None:
        self._number += 1
        names = [f"c{i}" for i in range(len(targets))]
        columns = ", ".join(f"{name} {type_}" for name in names)
        drop = "".join(f"DROP TABLE IF EXISTS {table};" for table in TABLES)
        wanted = ", ".join(f"c{i} {target}" for i, target in enumerate(targets))
        made = drop + "".join(
            f"CREATE TABLE {table} (id int PRIMARY KEY, {wanted});" for table in TABLES
        )
        start = f"DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, {columns})"
        if self.from_sqlite:
            sqlite_kit.script(self.source, start.replace("int PRIMARY", "INTEGER PRIMARY"))
            for i in range(len(targets)):
                rows = [(i * 1000 + j, value) for j, value in enumerate(values)]
                sqlite_kit.insert(self.source, f"t (id, c{i})", rows)
        else:
            async with sql(self.source) as connection:
                await connection.execute(start)
                for i in range(len(targets)):
                    await connection.execute(
                        f"INSERT INTO t (id, c{i}) SELECT {i * 1000} + n - 1, v::{type_}"
                        " FROM unnest($1::text[]) WITH ORDINALITY AS u(v, n)",
                        list(values),
                    )
        if self.into_sqlite:
            sqlite_kit.script(self.target, made.replace("int PRIMARY", "INTEGER PRIMARY"))
        else:
            await run_sql(self.target, made)

    def _read(self, columns: Sequence[str]) -> DatabaseSource[Row]:
        some = " OR ".join(f"{name} IS NOT NULL" for name in columns)
        return Database(self.source).table("t").where(some).select("id", *columns)

    def _pipeline(
        self,
        table: str,
        columns: Sequence[str],
        *,
        change: Callable[[Row], Row] | None = None,
        only: set[int] | None = None,
        **options: Any,
    ) -> Pipeline:
        rows = self._read(columns)
        if only is not None:
            rows = rows.where(f"id IN ({', '.join(map(str, only)) or '-1'})")
        sink = Database(self.target).append(table)
        flow = rows.into(sink) if change is None else rows.map(change).into(sink)
        name = f"check {self._number} {table}"
        return Pipeline(name, flow, limits=LIMITS, **options)

    async def _verdicts(self, columns: Sequence[str]) -> Sequence[Verdict]:
        (found,) = await self._pipeline("a", columns).survey()
        (sink,) = found.sinks
        assert sink.verdicts is not None
        return sink.verdicts

    async def values(self, url: str, table: str, columns: Sequence[str]) -> dict[int, list[Any]]:
        """The rows by id: PostgreSQL's own texts, SQLite's values as they are."""
        if url.startswith("sqlite"):
            names = ", ".join(columns)
            rows = sqlite_kit.fetch(url, f"SELECT id, {names} FROM {table}")
            return {row[0]: list(row[1:]) for row in rows}
        settings = "SET TimeZone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = 'hex'"
        async with sql(url) as connection:
            await connection.execute(settings)
            # What COPY writes; a cast to text may write it otherwise.
            text = "CASE WHEN num_nulls({0}) = 0 THEN format('%s', {0}) END"
            names = ", ".join(text.format(name) for name in columns)
            found = await connection.fetch(f"SELECT id, {names} FROM {table}")
        return {row[0]: list(row)[1:] for row in found}

    async def _ids(self, table: str) -> set[int]:
        return set(await self.values(self.target, table, ["id"]))

    @staticmethod
    def _ids_of(columns: Sequence[str], count: int) -> set[int]:
        return {int(name[1:]) * 1000 + j for name in columns for j in range(count)}

    async def _rejected(self) -> dict[int, str | None]:
        url = Database(self.target).url
        async with driver_of(url).open_state(url) as store:
            found = await store.rejects(f"check {self._number} c")
        return {one.restore("__main__")["id"]: one.column for one in found}

    async def _bent(
        self, type_: str, targets: Sequence[str], table: str, columns: Sequence[str]
    ) -> list[str]:
        """The values that arrived as others."""
        before = await self.values(self.source, "t", columns)
        after = await self.values(self.target, table, columns)
        wrong: list[str] = []
        for identity, cells in after.items():
            i = identity // 1000
            place = columns.index(f"c{i}")
            one = Outcome(
                column=targets[i], value=identity, before=before[identity][place],
                after=cells[place],
            )  # fmt: skip
            same = self._same
            if not same(type_, targets[i], one.before, one.after):
                wrong.append(f"{one.before!r} became {one.after!r} in {targets[i]} ({table})")
        if table in "ab" and set(after) != self._ids_in(before, columns):
            wrong.append(f"rows are missing in {table}")
        return wrong

    @staticmethod
    def _ids_in(rows: dict[int, list[Any]], columns: Sequence[str]) -> set[int]:
        return {one for one in rows if f"c{one // 1000}" in columns}

    def _same(self, source: str, target: str, before: Any, after: Any) -> Any:
        if self.into_sqlite:
            return verdict_kit.same_in_sqlite(source, before, after)
        if self.from_sqlite:
            return verdict_kit.same_from_sqlite(target, before, after)
        return verdict_kit.same(source, target, before, after)


def _touched(row: Row) -> Row:
    """As it is, but looked at: rows that a function has seen go another way."""
    assert row["id"] is not None
    return row.replace(id=row["id"])


@pytest.fixture
def urls(postgres_database: Callable[[], str], tmp_path: Any) -> Callable[[str, str], Bench]:
    def make(source: str, target: str) -> Bench:
        ends = [
            postgres_database() if one == "pg" else f"sqlite:///{tmp_path / f'{name}.db'}"
            for one, name in ((source, "source"), (target, "target"))
        ]
        return Bench(*ends)

    return make


async def test_verdicts_between_postgres_types_hold(urls: Callable[[str, str], Bench]) -> None:
    bench = urls("pg", "pg")
    wrong: list[str] = []
    for type_, values in POSTGRES.items():
        targets = [*POSTGRES] if LONG else list(dict.fromkeys([type_, *FEW]))
        wrong += await bench.check(type_, values, targets)
    assert wrong == []


async def test_verdicts_from_postgres_to_sqlite_hold(urls: Callable[[str, str], Bench]) -> None:
    bench = urls("pg", "lite")
    wrong: list[str] = []
    for type_, values in POSTGRES.items():
        wrong += await bench.check(type_, values, SQLITE_TARGETS)
    assert wrong == []


async def test_verdicts_from_sqlite_to_postgres_hold(urls: Callable[[str, str], Bench]) -> None:
    bench = urls("lite", "pg")
    wrong: list[str] = []
    for declared, values in SQLITE.items():
        wrong += await bench.check(declared, values, [*POSTGRES] if LONG else [*FEW, *MORE])
    assert wrong == []


MORE = ("bytea", "uuid", "json", "boolean", "time", "interval", "inet", "smallint")


async def test_verdicts_between_sqlite_columns_hold(urls: Callable[[str, str], Bench]) -> None:
    bench = urls("lite", "lite")
    wrong: list[str] = []
    for declared, values in SQLITE.items():
        wrong += await bench.check(declared, values, SQLITE_TARGETS)
    assert wrong == []


LOSSY = (
    ("timestamptz", "timestamp"),
    ("timestamptz", "date"),
    ("timestamptz", "time"),
    ("timestamp", "timestamptz"),
    ("timestamp", "date"),
    ("timestamp", "time"),
    ("date", "timestamptz"),
)


async def test_what_is_lossy_is_refused_unless_named_and_bent_as_it_says(
    urls: Callable[[str, str], Bench],
) -> None:
    bench = urls("pg", "pg")
    for source, target in LOSSY:
        for end, type_ in ((bench.source, source), (bench.target, target)):
            await run_sql(end, "DROP TABLE IF EXISTS t")
            await run_sql(end, f"CREATE TABLE t (id int PRIMARY KEY, v {type_})")
        rows = Database(bench.source).table("t")
        name = f"{source} {target}"
        refused = Pipeline(name, rows.into(Database(bench.target).append("t")))
        (survey,) = await refused.survey()
        assert survey.refusal is not None
        with pytest.raises(SchemaMismatchError) as error:
            await refused.run()
        assert exit_code_of(error.value) == EXIT_USAGE
        (verdict,) = [v for s in survey.sinks for v in s.verdicts or () if v.column == "v"]
        assert verdict.fit.grade == "lossy"
        assert verdict.fit.example is not None
        assert verdict.fit.becomes is not None
        for part in ("'v'", "'public.t'", verdict.source, verdict.target, verdict.fit.example):
            assert part in survey.refusal
            assert part in str(error.value)
        await run_sql(bench.source, f"INSERT INTO t VALUES (1, {verdict.fit.example})")
        await Pipeline(name, rows.into(Database(bench.target).append("t", lossy=["v"]))).run()
        found = await bench.values(bench.target, "t", ["v"])
        assert verdict.fit.becomes.startswith(f"'{found[1][0]}'")


@pytest.mark.parametrize(
    ("source", "value", "target", "becomes"),
    [
        ("double precision", "0.123456789", "real", "0.12345679"),
        ("double precision", "1.5", "integer", "2"),
        ("numeric", "1.005", "numeric(6,2)", "1.01"),
        ("timestamp", "2024-05-06 12:30:00.6", "timestamp(0)", "2024-05-06 12:30:01"),
        ("text", "abcdef", "varchar(4)", "abcd"),
        ("text", "a ", "char(4)", "a   "),
        ("text", "1.239", "money", "$1.24"),
        ("json", '{"a": 1, "a": 2}', "jsonb", '{"a": 2}'),
    ],
)
async def test_a_checked_column_bends_what_it_refused_where_it_is_named(
    urls: Callable[[str, str], Bench], source: str, value: str, target: str, becomes: str
) -> None:
    bench = urls("pg", "pg")
    await run_sql(bench.source, f"CREATE TABLE t (id int PRIMARY KEY, v {source})")
    await run_sql(bench.source, f"INSERT INTO t VALUES (1, '{value}')")
    await run_sql(bench.target, f"CREATE TABLE t (id int, v {target})")
    rows = Database(bench.source).table("t")
    with pytest.raises(PipelineFailedError, match="column 'v'"):
        await Pipeline("p", rows.into(Database(bench.target).append("t"))).run()
    await Pipeline("p", rows.into(Database(bench.target).append("t", lossy=["v*"]))).run()
    assert await bench.values(bench.target, "t", ["v"]) == {1: [becomes]}


@pytest.mark.parametrize("source", ["pg", "lite"])
async def test_null_is_no_number_that_sqlite_makes_up(
    urls: Callable[[str, str], Bench], source: str
) -> None:
    bench = urls(source, "lite")
    make = "CREATE TABLE t (k int PRIMARY KEY, id int); INSERT INTO t VALUES (1, NULL)"
    if source == "pg":
        await run_sql(bench.source, make)
    else:
        sqlite_kit.script(bench.source, make)
    sqlite_kit.script(bench.target, "CREATE TABLE t (k int, id INTEGER PRIMARY KEY)")
    rows = Database(bench.source).table("t")
    target = Database(bench.target)
    for sink in (target.append("t"), target.replace("t"), target.upsert("t", key=["id"])):
        with pytest.raises(PipelineFailedError, match="'id'"):
            await Pipeline(sink.mode, rows.into(sink)).run()
    assert sqlite_kit.fetch(bench.target, "SELECT * FROM t") == []


# -- drawn values -------------------------------------------------------------------------------

_ODD = "aB \t\n\r\\\"'{}[],:$/\u00e9\u20ac\U0001f600\x7f\x01"
_TEXTS = st.text(st.sampled_from(_ODD), max_size=8)
_NUMERALS = st.text(st.sampled_from("00123456789.-+eE"), max_size=8)
_DECIMALS = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False, places=4).map(str), st.just("NaN")
)
_STAMPS = st.datetimes().map(str)
DRAWN: dict[str, st.SearchStrategy[str]] = {
    "bigint": st.integers(-(2**63), 2**63 - 1).map(str),
    "real": st.floats(width=32).map(repr),
    "double precision": st.one_of(st.floats(), st.floats(width=32), st.just(-0.0)).map(repr),
    "numeric": _DECIMALS,
    "text": st.one_of(_TEXTS, _NUMERALS, _STAMPS, st.floats().map(repr)),
    "date": st.dates().map(str),
    "timestamp": _STAMPS,
    "timestamptz": _STAMPS.map(lambda text: f"{text}+05:30"),
    "time": st.times().map(str),
    "json": st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), _TEXTS),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(_TEXTS, inner)),
        max_leaves=5,
    ).map(json.dumps),
    "numeric[]": st.lists(_DECIMALS, max_size=3).map(lambda found: f"{{{','.join(found)}}}"),
}
_OF_SQLITE = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    *(_TEXTS, _NUMERALS, _STAMPS),
    st.binary(max_size=4),
)


@pytest.mark.parametrize("route", ["pg-pg", "pg-lite", "lite-pg"])
def test_verdicts_hold_for_drawn_values(urls: Callable[[str, str], Bench], route: str) -> None:
    source, target = route.split("-")
    bench = urls(source, target)
    kinds = st.sampled_from([*(DRAWN if source == "pg" else SQLITE)])

    @settings(
        max_examples=300 if LONG else 5,
        deadline=None,
        suppress_health_check=[*HealthCheck],
        derandomize=not LONG,
        database=None,
        phases=[*Phase] if LONG else [Phase.generate],  # a smaller example would take minutes
    )
    @given(st.data())
    def hold(data: st.DataObject) -> None:
        kind = data.draw(kinds)
        values = DRAWN[kind] if source == "pg" else _OF_SQLITE
        drawn = data.draw(st.lists(values, min_size=1, max_size=12))
        targets = SQLITE_TARGETS if target == "lite" else FEW
        assert asyncio.run(bench.check(kind, drawn, targets)) == []

    hold()
