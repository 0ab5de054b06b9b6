"""ADBC in two threads: one reads Arrow batches, the other ingests them into a new table.

Run in its own environment: ``python with_adbc.py SOURCE TARGET [functions]``. A source that is no
URL is a SQLite file. PostgreSQL's decimals come as texts and are stored as such: turning them
into decimals and back would only cost more. With ``functions`` they are turned, because they are
computed with.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterator
from typing import Any

import adbc_driver_postgresql.dbapi
import adbc_driver_sqlite.dbapi
import pyarrow as pa
import pyarrow.compute as pc

DECIMAL = pa.decimal128(15, 2)


def main() -> None:
    source, target, *rest = sys.argv[1:]
    batches: queue.Queue[Any] = queue.Queue(16)

    def read() -> None:
        driver = adbc_driver_postgresql.dbapi if "://" in source else adbc_driver_sqlite.dbapi
        try:
            with driver.connect(source) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT * FROM lineitem")
                for batch in cursor.fetch_record_batch():
                    batches.put(changed(plain(batch)) if rest else plain(batch))
        finally:
            batches.put(None)

    thread = threading.Thread(target=read)
    thread.start()
    first = batches.get()

    def arrived() -> Iterator[Any]:
        batch = first
        while batch is not None:
            yield batch
            batch = batches.get()

    with adbc_driver_postgresql.dbapi.connect(target) as connection:
        with connection.cursor() as cursor:
            stream = pa.RecordBatchReader.from_batches(first.schema, arrived())
            cursor.adbc_ingest("lineitem", stream, mode="replace")
        connection.commit()
    thread.join()


def plain(batch: Any) -> Any:
    """The batch without the types that only tell where a text came from."""
    columns = [
        column.storage if isinstance(column, pa.ExtensionArray) else column
        for column in batch.columns
    ]
    return pa.record_batch(columns, names=batch.schema.names)


def changed(batch: Any) -> Any:
    """The work of the functions benchmark, vectorised."""
    batch = batch.filter(pc.not_equal(batch["l_returnflag"], "R"))
    price = batch["l_extendedprice"].cast(DECIMAL)
    rest = pc.subtract(pa.scalar(1, pa.decimal128(3, 0)), batch["l_discount"].cast(DECIMAL))
    # All are positive, so this rounds as SQL does.
    price = pc.round(pc.multiply(price, rest), 2, "half_towards_infinity")
    batch = batch.set_column(5, "l_extendedprice", price.cast(pa.string()))
    return batch.set_column(14, "l_shipmode", pc.utf8_lower(batch["l_shipmode"]))


if __name__ == "__main__":
    main()
