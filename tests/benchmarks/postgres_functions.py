"""PostgreSQL, three Python functions on each row, PostgreSQL."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import date
from decimal import ROUND_HALF_UP, Decimal

import asyncpg

from etl import Row
from tests.benchmarks.lineitem import COLUMNS, DEFINITION, digest, make_postgres
from tests.benchmarks.server import execute
from tests.benchmarks.shell import psql_pipe
from tests.benchmarks.with_etl import append, make_etl_tables
from tests.benchmarks.work import Contender, Goal, Place, Work

CENT = Decimal("0.01")
FETCH = 10_000
QUEUE = 4
# What the functions do, said in SQL: the result to compare with, and the fastest way there is.
IN_SQL = "SELECT " + ", ".join(
    {
        "l_extendedprice": "round(l_extendedprice * (1 - l_discount), 2)::numeric(15,2)"
        " AS l_extendedprice",
        "l_shipmode": "lower(l_shipmode) AS l_shipmode",
    }.get(name, name)
    for name in COLUMNS
) + " FROM lineitem WHERE l_returnflag <> 'R'"  # fmt: skip


def not_returned(row: Row) -> bool:
    return bool(row["l_returnflag"] != "R")


def discounted(row: Row) -> Row:
    price = row["l_extendedprice"] * (1 - row["l_discount"])
    return row.replace(l_extendedprice=price.quantize(CENT, ROUND_HALF_UP))


def lower_mode(row: Row) -> Row:
    return row.replace(l_shipmode=row["l_shipmode"].lower())


def with_rows(place: Place) -> None:
    def to_flow(stream):
        return stream.filter(not_returned).map(discounted).map(lower_mode)

    ...


@dataclass(frozen=True, slots=True)
class Line:
    l_orderkey: int
    l_partkey: int
    l_suppkey: int
    l_linenumber: int
    l_quantity: Decimal
    l_extendedprice: Decimal
    l_discount: Decimal
    l_tax: Decimal
    l_returnflag: str
    l_linestatus: str
    l_shipdate: date
    l_commitdate: date
    l_receiptdate: date
    l_shipinstruct: str
    l_shipmode: str
    l_comment: str
