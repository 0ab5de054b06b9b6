"""Move data between databases: exact after any stop, bounded in memory, no value bent in silence.

The architecture, from the outside in; a lower part may import an upper one, never the other way:

- ``errors``, ``batch``, ``policy``, ``rows``: values. What moves, and what can go wrong.
- ``connector``: what a source and a target database must offer.
- ``events``: what a run tells.
- ``flow``, ``stages``: descriptions of pipelines, and the functions that change rows.
- ``engine``: how a plan runs. It knows no dialect.
- ``pipeline``: a name, its flows, and the ways to run them.
- ``reading``: the rows of a stream in somebody's own ``async for``.
- ``databases``: one driver for each dialect, imported when it is first used.
- ``files``: CSV, JSON lines and Parquet, as sources and targets.
- ``verification``, ``repair``: whether two tables hold the same rows; rewriting those that differ.
- ``observe``, ``cli``: progress, and the command ``etl``.
- ``testing``: connectors in memory and tools to test pipelines with.

Importing ``etl`` opens nothing, reads no environment, and loads no driver.
"""

from etl.batch import Batch, Position, Token
from etl.databases.database import Database
from etl.errors import (
    ConfigError,
    DataError,
    EtlError,
    FencedError,
    PipelineFailedError,
    RunAbortedError,
    SchemaMismatchError,
    StageError,
    TransientError,
)
from etl.events import Report
from etl.files.file import File
from etl.flow import Flow, Source, Stage, Stream, merge
from etl.pipeline import Pipeline, gather
from etl.policy import DeadLetter, Limits, Retry
from etl.rows import Row
from etl.stages import stage
from etl.verification import Verdict, verify

__all__ = [
    "Batch",
    "ConfigError",
    "DataError",
    "Database",
    "DeadLetter",
    "EtlError",
    "FencedError",
    "File",
    "Flow",
    "Limits",
    "Pipeline",
    "PipelineFailedError",
    "Position",
    "Report",
    "Retry",
    "Row",
    "RunAbortedError",
    "SchemaMismatchError",
    "Source",
    "Stage",
    "StageError",
    "Stream",
    "Token",
    "TransientError",
    "Verdict",
    "gather",
    "merge",
    "stage",
    "verify",
]
