"""polars reads with connectorx, and writes a new table with ADBC.

Run in its own environment: ``python with_polars.py SOURCE TARGET``.
"""

from __future__ import annotations

import sys

import polars

source, target = sys.argv[1:]
frame = polars.read_database_uri("SELECT * FROM lineitem", source, engine="connectorx")
decimals = [name for name, kind in frame.schema.items() if kind.is_decimal()]
frame = frame.with_columns(polars.col(decimals).cast(polars.String))
frame.write_database("lineitem", target, engine="adbc", if_table_exists="replace")
