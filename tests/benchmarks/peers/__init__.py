"""Other people's tools as contenders, each in a Python environment of its own.

``python -m tests.benchmarks.peers`` makes the environments, in the folder that ``ETL_BENCH_PEERS``
names, else in ``.bench`` of the checkout. A tool whose environment is missing is left out.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks.work import Contender, Place

HERE = Path(__file__).resolve().parent
FOLDER = Path(os.environ.get("ETL_BENCH_PEERS") or HERE.parents[2] / ".bench")

ENVIRONMENTS = {
    "adbc": (
        "adbc-driver-manager==1.13.0",
        "adbc-driver-postgresql==1.13.0",
        "adbc-driver-sqlite==1.13.0",
        "pyarrow==26.0.1",
    ),
    "connectorx": (
        "adbc-driver-manager==1.13.0",
        "adbc-driver-postgresql==1.13.0",
        "connectorx==0.4.6",
        "pyarrow==26.0.1",
    ),
    "dlt": (
        "connectorx==0.4.6",
        "dlt[postgres,sql_database]==1.31.0",
        "psycopg2-binary",
        "pyarrow==26.0.1",
        "sqlalchemy<2.1",
    ),
    # Newer ones are a program that is fetched from elsewhere at first use.
    "ingestr": ("ingestr==0.15.9",),
    "polars": (
        "adbc-driver-manager==1.13.0",
        "adbc-driver-postgresql==1.13.0",
        "connectorx==0.4.6",
        "polars==2.1.0",
        "pyarrow==26.0.1",
    ),
    # The newest whose program is on PyPI; later ones fetch it from elsewhere when they first run.
    "sling": ("sling==1.4.11", "sling-linux-amd64==1.4.11"),
}

# Nobody counts us, and nothing waits for a network that is not there.
_QUIET = {
    "DISABLE_TELEMETRY": "true",
    "INGESTR_DISABLE_TELEMETRY": "true",
    "RUNTIME__DLTHUB_TELEMETRY": "false",
    "RUNTIME__LOG_LEVEL": "ERROR",
    "SLING_DISABLE_TELEMETRY": "true",
}


def scripted(
    name: str, environment: str, script: str, arguments: Callable[[Place], Sequence[str]]
) -> Contender:
    """One of the scripts in this folder, run by its environment's Python."""
    python = str(_program(environment, "python"))

    def run(place: Place) -> None:
        _run([python, str(HERE / script), *arguments(place)], place)

    return Contender(name=name, run=run, needs=(python,))


def ingestr(name: str, source: Callable[[Place], tuple[str, str]]) -> Contender:
    """``ingestr ingest`` from a URI and table into ``public.lineitem``."""
    program = str(_program("ingestr", "ingestr"))

    def run(place: Place) -> None:
        uri, table = source(place)
        _run(
            [
                program, "ingest", "--yes", "--progress", "log", "--page-size", "100000",
                "--source-uri", uri, "--source-table", table,
                "--dest-uri", place.target, "--dest-table", "public.lineitem",
            ],
            place,
        )  # fmt: skip

    return Contender(name=name, run=run, needs=(program,))


def sling(name: str, source: Callable[[Place], tuple[str, str]]) -> Contender:
    """``sling run`` from a connection and stream into ``public.lineitem``."""
    packages = "lib/python3*/site-packages/sling_linux_amd64/bin/sling-linux-amd64"
    found = sorted((FOLDER / "sling").glob(packages))
    program = str(found[0] if found else _program("sling", "sling-linux-amd64"))

    def run(place: Place) -> None:
        connection, stream = source(place)
        _run(
            [
                program, "run", "--mode", "full-refresh",
                "--src-conn", connection, "--src-stream", stream,
                "--tgt-conn", f"{place.target}?sslmode=disable", "--tgt-object", "public.lineitem",
            ],
            place,
        )  # fmt: skip

    return Contender(name=name, run=run, needs=(program,))


def _program(environment: str, name: str) -> Path:
    return FOLDER / environment / "bin" / name


def _run(command: Sequence[str], place: Place) -> None:
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=place.folder,
        env={**os.environ, **_QUIET, "HOME": place.folder},
    )
