"""What the loop of ``worker_kills`` runs with ``etl run``; the environment names the database."""

from __future__ import annotations

import hashlib

from etl import Database, Limits, Pipeline, Row

database = Database("env:KILL_DATABASE")
LIMITS = Limits(batch_rows=200, group_rows=400, abort_grace_s=2.0)


def digested(row: Row) -> Row:
    return row.replace(v=hashlib.sha256(row["v"].encode()).hexdigest())


def is_kept(row: Row) -> bool:
    return bool(row["id"] % 3)


rows = database.table("items")
append = Pipeline(
    "append", rows.filter(is_kept).map(digested).into(database.append("copies")), limits=LIMITS
)
replace = Pipeline(
    "replace", rows.filter(is_kept).map(digested).into(database.replace("copies")), limits=LIMITS
)
upsert = Pipeline(
    "upsert", rows.filter(is_kept).into(database.upsert("copies", key=["id"])), limits=LIMITS
)
