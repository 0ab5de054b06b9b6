"""What ``etl copy`` makes of two URLs and its options; the source's tables are given here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from etl.cli import copy
from etl.cli.choose import find_table
from etl.cli.copy import CopyOptions, pipeline_name, plan_copy
from etl.databases.database import Database, DatabaseSource, TableInfo
from etl.databases.definition import TableDefinition
from etl.databases.url import Url, parse_url
from etl.errors import ConfigError
from etl.pipeline import Pipeline
from etl.rows import Column, Shape, Type

SHOP = "postgresql://me:s3cr3t-77@db.example/shop"
HOUSE = "postgresql://me:s3cr3t-77@db.example/house"


def table(name: str, schema: str | None = "public", key: tuple[str, ...] = ("id",)) -> TableInfo:
    kind = Type(kind="int64", name="bigint", dialect="postgresql")
    columns = tuple(Column(name=one, type=kind) for one in ("id", "Größe", "updated_at"))
    return TableInfo(name=name, schema=schema, shape=Shape(columns=columns, key=key))


TABLES = [
    table("orders"),
    table("customers"),
    table("orders", "old"),
    table("a.b", "old"),
    table("log", "audit", key=()),
    table("log", "trace"),
]


class Catalogue:
    def __init__(self, tables: Sequence[TableInfo]) -> None:
        self.tables = tables

    async def list_tables(self, url: Url) -> Sequence[TableInfo]:
        return self.tables

    async def describe(self, url: Url, tables: Sequence[TableInfo]) -> Sequence[TableDefinition]:
        return [
            TableDefinition(dialect="postgresql", schema=t.schema, name=t.name, columns=())
            for t in tables
        ]


@pytest.fixture(autouse=True)
def catalogue(monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    made = Catalogue(TABLES)

    def driver_of(url: Url) -> Catalogue:
        return made

    monkeypatch.setattr(copy, "driver_of", driver_of)
    return made


async def planned(source: str = SHOP, target: str = HOUSE, **options: Any) -> Pipeline:
    return (await plan_copy(Database(source), Database(target), CopyOptions(**options))).pipeline


async def refusal(source: str = SHOP, target: str = HOUSE, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        await planned(source, target, **options)
    assert "s3cr3t" not in str(caught.value)
    return str(caught.value)


def targets(pipeline: Pipeline) -> list[str]:
    return [flow.sinks[0].table for flow in pipeline.flows]


def read_key(pipeline: Pipeline) -> tuple[str, ...]:
    return cast("DatabaseSource[Any]", pipeline.flows[0].stream.origin).spec.key


async def test_all_tables_are_copied_unless_told(catalogue: Catalogue) -> None:
    pipeline = await planned()
    wanted = ["orders", "customers", "old.orders", 'old."a.b"', "audit.log", "trace.log"]
    assert targets(pipeline) == wanted
    assert [flow.name for flow in pipeline.flows] == wanted
    assert {flow.sinks[0].mode for flow in pipeline.flows} == {"replace"}

    catalogue.tables = []
    assert await refusal() == "postgresql://db.example/shop has no tables to copy"


async def test_schemas_are_dropped_where_the_target_has_none() -> None:
    pipeline = await planned(target="sqlite:///x.db", tables=("old.orders", "customers"))
    assert targets(pipeline) == ["orders", "customers"]
    text = await refusal(target="sqlite:///x.db", tables=("old.orders", "orders"))
    assert text.startswith("tables 'old.orders' and 'orders' would both be written to 'orders'")


def test_a_table_is_found_by_the_name_that_a_person_writes() -> None:
    source = Database(SHOP)
    for name, schema in (
        ("orders", "public"),
        ("public.orders", "public"),
        ("old.orders", "old"),
        ("a.b", "old"),
        ('old."a.b"', "old"),
    ):
        assert find_table(TABLES, name, source).schema == schema


async def test_an_unknown_table_is_answered_with_near_ones() -> None:
    text = await refusal(tables=("Order",))
    assert text.startswith("postgresql://db.example/shop has no table 'Order'; did you mean ")
    assert "orders" in text
    assert "it has public.orders, public.customers" in await refusal(tables=("zzz",))


async def test_a_table_in_two_schemas_must_be_named_with_one() -> None:
    text = await refusal(tables=("log",))
    assert "several tables 'log': audit.log, trace.log" in text


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (SHOP, "postgresql://you@DB.example:5432/shop"),
        ("postgresql://localhost/shop", "postgres://127.0.0.1/shop"),
        ("sqlite:///a/../x.db", "sqlite:///x.db"),
    ],
)
async def test_a_table_is_not_copied_onto_itself(source: str, target: str) -> None:
    text = await refusal(source, target, tables=("customers",))
    assert text.startswith("table 'customers' would be copied onto itself")
    assert targets(await planned(source, target, tables=("customers",), rename="c2")) == ["c2"]


async def test_as_names_one_table() -> None:
    assert "--as is for one table, but 6 are copied" in await refusal(rename="x")


async def test_upsert_takes_the_primary_key_unless_told() -> None:
    pipeline = await planned(tables=("orders",), mode="upsert")
    assert pipeline.flows[0].sinks[0].key == ("id",)
    pipeline = await planned(tables=("orders",), mode="upsert", key=("Größe",))
    assert pipeline.flows[0].sinks[0].key == ("Größe",)
    assert read_key(pipeline) == ("id",)
    assert "has no primary key, so --mode upsert needs --key" in await refusal(
        tables=("audit.log",), mode="upsert"
    )


async def test_key_orders_the_read_of_a_table_without_one() -> None:
    assert read_key(await planned(tables=("audit.log",), key=("id",))) == ("id",)


async def test_unknown_columns_are_named_with_those_there_are() -> None:
    assert await refusal(tables=("orders",), mode="upsert", key=("Id",)) == (
        "--key: table 'orders' has no column 'Id'; it has id, Größe, updated_at"
    )
    assert "--cursor: table 'orders' has no column 'x'" in await refusal(
        tables=("orders",), mode="append", cursor=("x",)
    )


async def test_options_that_do_not_go_together() -> None:
    assert "--settle leaves out" in await refusal(tables=("orders",), settle_s=5)
    assert "--mode replace would throw" in await refusal(tables=("orders",), cursor=("id",))
    assert "--swap says how" in await refusal(tables=("orders",), mode="append", swap="rewrite")


async def test_the_derived_name_is_stable_and_holds_no_secret() -> None:
    name = (await planned(tables=("orders", "customers"))).name
    assert name.startswith("copy-shop-house-")
    assert "s3cr3t" not in name
    assert "me" not in name.split("-")
    other_password = SHOP.replace("s3cr3t-77", "other")
    again = await planned(other_password, tables=("public.customers", "orders"))
    assert again.name == name
    assert (await planned(tables=("orders",))).name != name
    assert (await planned(tables=("orders", "customers"), name="mine")).name == "mine"


async def test_a_new_table_does_not_rename_a_copy_of_all(catalogue: Catalogue) -> None:
    name = (await planned()).name
    catalogue.tables = [*TABLES, table("new")]
    assert (await planned()).name == name


def test_names_tell_databases_apart() -> None:
    target = parse_url(HOUSE)
    names = {
        pipeline_name(parse_url(url), target, [], CopyOptions())
        for url in (SHOP, "postgresql://db.example:5433/shop", "postgresql://db2/shop", HOUSE)
    }
    assert len(names) == 4
