"""The command ``etl`` many times over, each in a process that is forked and so starts at once.

``python -m tests.integration.forked_etl`` reads jobs, one JSON object a line: arguments, variables
of the environment, the file for its output. It answers with the exit code.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 180
"""A command that takes longer says where it stands, and ends."""


class ForkedEtl:
    """Runs commands, one at a time, in a folder of their own."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._jobs: IO[str] = process.stdin
        self._answers: IO[str] = process.stdout
        self._output = folder / "output"

    def __call__(self, *arguments: str, env: Mapping[str, str] | None = None) -> tuple[int, str]:
        """The exit code of a command, and what it wrote to stdout and stderr."""
        job = {"arguments": arguments, "env": dict(env or {}), "output": str(self._output)}
        self._jobs.write(json.dumps(job) + "\n")
        self._jobs.flush()
        answer = self._answers.readline()
        assert answer, "the process that forks has died"
        text = self._output.read_text()
        self._output.unlink()
        return int(answer), text


@contextmanager
def forked_etl(folder: Path, env: Mapping[str, str]) -> Generator[ForkedEtl]:
    """Commands that run in a folder, for the length of a block."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.integration.forked_etl"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(folder), **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        yield ForkedEtl(process, folder)
        process.stdin.close()


def _serve() -> None:
    # Only for the children, each of which would load them anew.
    import alembic.command
    import sqlalchemy.ext.asyncio

    import etl
    from etl.databases.postgres import connect

    for module in pkgutil.walk_packages(etl.__path__, "etl."):
        if module.name not in {"etl.__main__", "etl._migrations"}:
            importlib.import_module(module.name)
    connect._PATIENCE_S = 0.0  # a server that refuses is not about to start
    del alembic, sqlalchemy
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _work(json.loads(line))
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


def _work(job: Mapping[str, Any]) -> None:
    from etl.cli import main

    arguments: Sequence[str] = job["arguments"]
    os.environ.update(job["env"])
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((null, output, output)):
        os.dup2(file, number)
    faulthandler.dump_traceback_later(LIMIT_S, exit=True, file=2)
    sys.argv = ["etl", *arguments]
    code: object = 70
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        sys.excepthook(*sys.exc_info())  # as the end of a process shows it
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    _serve()
