"""The plain tools: pipes of psql and sqlite3, as contenders to beat or to come close to."""

from __future__ import annotations

import shlex
import subprocess


def pipe(*commands: list[str]) -> None:
    """Run commands with each one's output piped into the next.

    Raises:
        subprocess.CalledProcessError: One of them failed.
    """
    line = " | ".join(map(shlex.join, commands))
    subprocess.run(["bash", "-o", "pipefail", "-c", line], check=True, stdout=subprocess.DEVNULL)


def psql(url: str, command: str) -> list[str]:
    """A psql that runs one command and stops at the first error."""
    return ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, "-c", command]
