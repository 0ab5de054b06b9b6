"""Both type checkers accept the examples in ``api.py`` and refuse the lines that are wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
API = "tests/typing/api.py"


@pytest.mark.parametrize("checker", [("mypy", "--strict"), ("pyright",)], ids=lambda one: one[0])
def test_the_checker_refuses_the_wrong_lines_and_no_other(checker: tuple[str, ...]) -> None:
    assert (ROOT / API).read_text().count("# type: ignore[") > 15
    done = subprocess.run(
        [sys.executable, "-m", *checker, API], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
