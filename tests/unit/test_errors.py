"""Errors leave the process that they happened in: pools pickle them, libraries copy them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from etl import DataError, EtlError, PipelineFailedError, Report, RunAbortedError, TransientError
from etl.errors import AlreadyRunningError, OutOfMemoryError, TargetWentBackError, classify

REPORT = Report(pipeline="p", run_id="1", status="failed", started_at="", seconds=1.0)


def pickled(error: EtlError) -> EtlError:
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, EtlError)
    return again


@pytest.mark.parametrize("again", [pickled, copy.copy, copy.deepcopy])
@pytest.mark.parametrize(
    "error",
    [
        DataError("bad", column="amount", row=3, reason="too large", detail="1e99"),
        RunAbortedError("aborted", REPORT),
        TargetWentBackError("shop"),
        OutOfMemoryError("shop"),
        AlreadyRunningError.told("busy"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_comes_back_as_it_was(error: EtlError, again: Callable[[Any], EtlError]) -> None:
    error.add_note("seen by the caller")
    copied = again(error)
    assert type(copied) is type(error)
    assert str(copied) == str(error)
    assert vars(copied) == vars(error)


@pytest.mark.parametrize("again", [pickled, copy.copy, copy.deepcopy])
def test_a_failed_run_comes_back_with_its_causes(again: Callable[[Any], Any]) -> None:
    copied = again(PipelineFailedError("failed", [TransientError("lost")], REPORT))
    assert str(copied) == "failed"
    assert [str(cause) for cause in copied.errors] == ["lost"]
    assert copied.retryable
    assert copied.report == REPORT


@pytest.mark.parametrize(
    ("state", "message", "schema", "expected"),
    [
        ("XX000", "could not open relation with OID 53824", None, "transient"),
        ("XX000", "cache lookup failed for index 5", None, "transient"),
        ("XX000", "tuple concurrently updated", None, "transient"),
        ("XX000", "unexpected state", None, "unknown"),
        ("23505", "duplicate key value", "pg_catalog", "transient"),
        ("23505", "duplicate key value", "public", "data"),
    ],
)
def test_what_meets_the_ddl_of_another_session_passes(
    state: str, message: str, schema: str | None, expected: str
) -> None:
    class ServerError(Exception):
        sqlstate = state
        schema_name = schema

    assert classify(ServerError(message)) == expected
