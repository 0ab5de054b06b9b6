"""connectorx reads Arrow batches, ADBC ingests them into a new table.

Run in its own environment: ``python with_connectorx.py SOURCE TARGET``.
"""

from __future__ import annotations

import sys

import adbc_driver_postgresql.dbapi
import connectorx
import pyarrow as pa

source, target = sys.argv[1:]
found = connectorx.read_sql(
    source, "SELECT * FROM lineitem", return_type="arrow_stream", batch_size=50_000
)
# ADBC cannot ingest its decimals of 38 digits; as texts it can.
schema = pa.schema(
    [(one.name, pa.string() if pa.types.is_decimal(one.type) else one.type) for one in found.schema]
)
batches = (
    pa.record_batch(
        [column.cast(kind) for column, kind in zip(batch.columns, schema.types, strict=True)],
        schema,
    )
    for batch in found
)
with adbc_driver_postgresql.dbapi.connect(target) as connection:
    with connection.cursor() as cursor:
        stream = pa.RecordBatchReader.from_batches(schema, batches)
        cursor.adbc_ingest("lineitem", stream, mode="replace")
    connection.commit()
