"""dlt with the fastest settings found: from PostgreSQL connectorx and CSV files between.

Run in its own environment: ``python with_dlt.py SOURCE TARGET BACKEND FILES``, where FILES may be
``default``. A source that is no URL is a SQLite file.
"""

from __future__ import annotations

import sys
import tempfile

import dlt
from dlt.sources.sql_database import sql_table

source, target, backend, files = sys.argv[1:]
# It takes no URL without a password, also where the server asks for none.
source, target = (url.replace("postgres@", "postgres:none@") for url in (source, target))
with tempfile.TemporaryDirectory() as folder:
    table = sql_table(
        credentials=source if "://" in source else f"sqlite:///{source}",
        table="lineitem",
        backend=backend,
        backend_kwargs={"return_type": "arrow_stream"} if backend == "connectorx" else {},
        reflection_level="full_with_precision",
    )
    pipeline = dlt.pipeline(
        "lineitem",
        destination=dlt.destinations.postgres(target),
        dataset_name="public",
        pipelines_dir=folder,
    )
    options = {} if files == "default" else {"loader_file_format": files}
    pipeline.run(table, write_disposition="replace", **options)
