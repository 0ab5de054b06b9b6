"""What ``etl`` offers: the names that people import from it."""

from etl.batch import Batch, Position, Token
from etl.connector import Sink
from etl.databases.database import Database
from etl.engine.run import Run
from etl.errors import (
    AlreadyRunningError,
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
    "AlreadyRunningError",
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
    "Run",
    "RunAbortedError",
    "SchemaMismatchError",
    "Sink",
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
