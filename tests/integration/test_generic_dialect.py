"""A dialect that etl has no driver for: PostgreSQL by psycopg, with portable statements only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pytest

from etl import ConfigError, Database, Pipeline
from etl.databases.url import parse_url
from etl.errors import SchemaMismatchError
from tests.integration.mysql_kit import copy
from tests.integration.postgres_kit import run_sql, texts, value


@dataclass(frozen=True)
class Total:
    word: str
    amount: int


def generic(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


async def test_portable_statements_load_every_mode_exactly_once(postgres_url: str) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE t (id int PRIMARY KEY, word text, price numeric(10,2), day date);"
        " INSERT INTO t SELECT i, 'w' || i % 7, i / 4.0, date '2020-01-01' + i"
        " FROM generate_series(1, 60) i",
    )
    base = Database(generic(postgres_url))
    rows = base.table("t")
    totals = rows.map(lambda row: Total(row["word"], row["id"]))
    pipeline = Pipeline(
        "p",
        rows.named("append").into(base.append("appended")),
        rows.named("upsert").into(base.upsert("upserted", key=("id",))),
        rows.named("replace").into(base.replace("replaced")),
        totals.named("totals").into(base.upsert("totals", key=("word",), add=("amount",))),
    )

    await pipeline.run()
    await pipeline.run()

    for table in ("upserted", "replaced"):
        assert await texts(postgres_url, f"SELECT * FROM {table} ORDER BY id") == await texts(
            postgres_url, "SELECT * FROM t ORDER BY id"
        )
    assert await value(postgres_url, "SELECT count(*) FROM appended") in {60, 120}
    assert await value(postgres_url, "SELECT sum(amount) FROM totals") in {1830, 3660}


async def test_a_copy_goes_both_ways(postgres_url: str, sqlite_url: str) -> None:
    await run_sql(
        postgres_url,
        "CREATE TABLE t (id bigint PRIMARY KEY, ok boolean, price numeric(10,2), day date);"
        " INSERT INTO t VALUES (1, true, 1.50, '2020-01-31'), (2, NULL, NULL, NULL)",
    )

    await copy(generic(postgres_url), sqlite_url)
    await copy(sqlite_url, generic(postgres_url), rename="back", tables=("t",))

    found = await texts(postgres_url, "SELECT id, price, day FROM back ORDER BY id")
    assert found == ["(1,1.50,2020-01-31)", "(2,,)"]


async def test_without_sight_of_open_transactions_settle_is_asked_for(postgres_url: str) -> None:
    await run_sql(postgres_url, "CREATE TABLE t (id int PRIMARY KEY, at timestamptz NOT NULL)")
    base = Database(generic(postgres_url))

    with pytest.raises(ConfigError, match="settle="):
        await Pipeline("p", base.table("t", cursor="at").into(base.append("u"))).run()
    settled = base.table("t", cursor="at", settle=timedelta(seconds=1))
    await Pipeline("p", settled.into(base.append("u"))).run()


async def test_what_is_missing_is_told(postgres_url: str) -> None:
    base = Database(generic(postgres_url))
    with pytest.raises(SchemaMismatchError, match="has no table 'nosuch'"):
        await Pipeline("p", base.table("nosuch").into(base.append("u"))).run()
    with pytest.raises(ConfigError, match="SQLAlchemy knows no dialect 'nosuch\\+driver'"):
        await Pipeline("p", Database("nosuch+driver://h/x").table("t").into(base.append("u"))).run()


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("mysql://u:p@h/x", "mysql"),
        ("mariadb://u:p@h/x", "mysql"),
        ("mariadb+asyncmy://u:p@h/x", "mysql"),
        ("mysql+aiomysql://u:p@h/x", "mysql+aiomysql"),
        ("postgresql+psycopg://u:p@h/x", "postgresql+psycopg"),
    ],
)
def test_a_scheme_names_the_driver(text: str, dialect: str) -> None:
    url = parse_url(text)
    assert url.dialect == dialect
    assert "p@" not in url.name
