"""PostgreSQL, a function of Arrow over whole columns, PostgreSQL."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv  # now, so that no clock sees the import

from etl import Database
from tests.benchmarks import lineitem, peers, postgres_functions
from tests.benchmarks.postgres_functions import BY_HAND, IN_SQL, LIMIT
from tests.benchmarks.with_etl import run
from tests.benchmarks.work import Contender, Goal, Place, Work

_MONEY = pa.decimal128(15, 2)
_ONE = pa.scalar(1, pa.decimal128(3, 0))


def changed(table: Any) -> Any:
    """The work of the functions benchmark, vectorised."""
    table = table.filter(pc.not_equal(table["l_returnflag"], "R"))
    price = pc.multiply(table["l_extendedprice"], pc.subtract(_ONE, table["l_discount"]))
    # All are positive, so this rounds as SQL does.
    price = pc.round(price, 2, "half_towards_infinity").cast(_MONEY)
    table = table.set_column(5, "l_extendedprice", price)
    return table.set_column(14, "l_shipmode", pc.utf8_lower(table["l_shipmode"]))


def etl_arrow(place: Place) -> None:
    lines = Database(place.source).table("lineitem")
    run(lines.map_arrow(changed).into(Database(place.target).append("lineitem")))


ARROW = "etl, map_arrow"
ADBC = "ADBC, vectorised, two threads"

WORK = Work(
    title="PostgreSQL → filter, computed decimal, lower case over columns of Arrow → PostgreSQL",
    contenders=(
        Contender(name=ARROW, run=etl_arrow),
        *(
            one
            for one in postgres_functions.WORK.contenders
            if one.name in {"etl, rows as mappings", BY_HAND, LIMIT}
        ),
        peers.scripted(ADBC, "adbc", "with_adbc.py", lambda p: (p.source, p.target, "functions")),
    ),
    reference=BY_HAND,
    rows=lambda place: place.rows,
    prepare=lineitem.make_postgres,
    reset=lineitem.empty_postgres,
    found=lambda place: lineitem.digest(place.target),
    expected=lambda place: lineitem.digest(place.source, IN_SQL),
    goals=(Goal(contender=ARROW, reference=ADBC, at_most=1.0),),
)
