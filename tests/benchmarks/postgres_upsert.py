"""Upsert by primary key: a tenth as many rows as the table has, half of them changed, half new."""

from __future__ import annotations

from etl import Database
from tests.benchmarks import lineitem
from tests.benchmarks.server import execute, fetch_value
from tests.benchmarks.shell import pipe, psql
from tests.benchmarks.with_etl import run
from tests.benchmarks.work import Contender, Goal, Place, Work

KEY = ("l_orderkey", "l_linenumber")
_CHANGED = ", ".join(
    {"l_comment": "'changed'", "l_quantity": "l_quantity + 1"}.get(name, name)
    for name in lineitem.COLUMNS
)
_NEW = ", ".join(
    {"l_orderkey": "l_orderkey + 1000000000"}.get(name, name) for name in lineitem.COLUMNS
)


def make(place: Place) -> None:
    """The changes in the source database, the table as it was in the target database."""
    lineitem.make_postgres(place)
    if fetch_value(place.source, "SELECT to_regclass('changes')::text") is not None:
        return
    some = "FROM lineitem WHERE hashint8(l_orderkey) % 20 = 0"
    execute(
        place.source,
        "CREATE TABLE changes (LIKE lineitem)",
        f"INSERT INTO changes SELECT {_CHANGED} {some} UNION ALL SELECT {_NEW} {some}",
        f"ALTER TABLE changes ADD PRIMARY KEY ({', '.join(KEY)})",
        "VACUUM ANALYZE changes",
    )


def reset(place: Place) -> None:
    """The whole table with its primary key in the target database."""
    lineitem.empty_postgres(place)
    pipe(
        psql(place.source, "COPY lineitem TO STDOUT (FORMAT binary)"),
        psql(place.target, "COPY lineitem FROM STDIN (FORMAT binary)"),
    )
    execute(
        place.target,
        f"ALTER TABLE lineitem ADD {lineitem.KEY}",
        "VACUUM ANALYZE lineitem",
        "CHECKPOINT",
    )


def etl_upsert(place: Place) -> None:
    changes = Database(place.source).table("changes")
    run(changes.into(Database(place.target).upsert("lineitem", key=KEY)))


def psql_upsert(place: Place) -> None:
    sets = ", ".join(f"{n} = excluded.{n}" for n in lineitem.COLUMNS if n not in KEY)
    execute(place.target, "CREATE TABLE staging (LIKE lineitem)")
    pipe(
        psql(place.source, "COPY changes TO STDOUT (FORMAT binary)"),
        psql(place.target, "COPY staging FROM STDIN (FORMAT binary)"),
    )
    execute(
        place.target,
        "INSERT INTO lineitem SELECT * FROM staging"
        f" ON CONFLICT ({', '.join(KEY)}) DO UPDATE SET {sets}",
        "DROP TABLE staging",
    )


def expected(place: Place) -> object:
    same = " AND ".join(f"changes.{name} = lineitem.{name}" for name in KEY)
    kept = f"SELECT * FROM lineitem WHERE NOT EXISTS (SELECT FROM changes WHERE {same})"
    return lineitem.digest(place.source, f"{kept} UNION ALL SELECT * FROM changes")


BY_HAND = "psql: staging, ON CONFLICT"

WORK = Work(
    title="Upsert by primary key: a tenth of the table's rows, half changed, half new",
    contenders=(
        Contender(name="etl, upsert", run=etl_upsert),
        Contender(name=BY_HAND, run=psql_upsert, needs=("psql",)),
    ),
    reference=BY_HAND,
    rows=lambda place: place.rows // 10,
    prepare=make,
    reset=reset,
    found=lambda place: lineitem.digest(place.target),
    expected=expected,
    goals=(Goal(contender="etl, upsert", reference=BY_HAND, at_most=1.0),),
)
