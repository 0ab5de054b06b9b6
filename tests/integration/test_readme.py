"""What README.md and docs/guide.md show runs as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/guide.md")


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page in one language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    """The etl commands of the README that need nothing but SQLite."""
    lines = [line for block in blocks("README.md", "console") for line in block.splitlines()]
    found = [line.removeprefix("$ ").partition("#")[0].strip() for line in lines]
    return [one for one in found if one.startswith(".venv/bin/etl ") and "postgresql" not in one]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/flights.db, as ``make demo`` leaves it."""
    folder = tmp_path_factory.mktemp("readme")
    url = f"sqlite:///{folder}/data/flights.db"
    run(folder, [sys.executable, "-m", "pipelines.flights", "build"], SOURCE_URL=url)
    return folder


def run(folder: Path, command: list[str], **variables: str) -> str:
    """Run a command in the folder; what it printed."""
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("page", "number"),
    [(page, n) for page in PAGES for n in range(len(blocks(page, "python")))],
)
def test_code_runs(page: str, number: int, folder: Path) -> None:
    code = blocks(page, "python")[number]
    run(folder, [sys.executable, "-c", code])


def test_commands_run(folder: Path) -> None:
    (folder / "speeds.py").write_text(blocks("README.md", "python")[0], encoding="utf-8")
    found = commands()
    assert len(found) >= 3
    printed = [
        run(folder, [sys.executable, "-m", "etl", *shlex.split(command)[1:]]) for command in found
    ]
    assert "327,346" in printed[0]  # the flights that have a time in the air
    assert "nothing new" in printed[1]
