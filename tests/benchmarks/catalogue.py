"""The works by name. A work's module is imported only by who runs it."""

from __future__ import annotations

import importlib
from typing import cast

from tests.benchmarks.work import Work

NAMES = (
    "engine",
    "postgres_functions",
    "postgres_arrow",
    "postgres_untouched",
    "postgres_upsert",
    "sqlite_to_postgres",
    "postgres_to_sqlite",
    "memory",
)


def load(name: str) -> Work:
    """The work of that name."""
    return cast("Work", importlib.import_module(f"tests.benchmarks.{name}").WORK)
