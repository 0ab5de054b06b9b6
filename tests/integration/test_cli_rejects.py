"""``etl run --on-error`` and ``etl rejects``, in processes of their own."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

JOB = """\
from dataclasses import dataclass
from etl import Database, Pipeline

@dataclass(frozen=True, slots=True)
class Person:
    id: int
    name: str

@dataclass(frozen=True, slots=True)
class Greeting:
    id: int
    text: str

def check(person: Person) -> Person:
    if person.id {bad} 0:
        raise ValueError(f"do not know {{person.name}}")
    return person

def greet(person: Person) -> Greeting:
    return Greeting(person.id, "hello " + person.name)

people = Database("sqlite:///{folder}/people.db").table("people", row=Person)
target = Database("sqlite:///{folder}/target.db")
pipeline = Pipeline("greet", people.map(check).map(greet).into(target.append("greetings")))
"""


class Job:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "job.py"
        with closing(sqlite3.connect(folder / "people.db")) as db, db:
            db.execute("CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT NOT NULL)")
            db.executemany(
                "INSERT INTO people VALUES (?, ?)", [(n, f"secret{n}") for n in range(1, 31)]
            )
        self.write("% 10 ==")

    def write(self, bad: str) -> None:
        self.file.write_text(JOB.format(bad=bad, folder=self.folder))

    def etl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "etl", *arguments],
            cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    def greetings(self) -> list[int]:
        with closing(sqlite3.connect(self.folder / "target.db")) as db:
            return [n for (n,) in db.execute("SELECT id FROM greetings ORDER BY id")]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_rejected_rows_are_shown_and_sent_again(job: Job) -> None:
    ran = job.etl("run", str(job.file), "--on-error", "reject")
    assert ran.returncode == 3, ran.stderr
    assert "3 rejected" in ran.stdout
    assert "3 rows rejected, in etl_reject of " in ran.stderr
    assert "secret" not in ran.stdout + ran.stderr

    for place in (str(job.file), f"sqlite:///{job.folder}/target.db"):
        shown = job.etl("rejects", "show", place)
        assert shown.returncode == 0, shown.stderr
        assert "map check" in shown.stdout
        assert '{"id":20}' in shown.stdout
        assert "ValueError (job.py:16)" in shown.stdout
        assert "secret" not in shown.stdout
    record = json.loads(job.etl("rejects", "show", place, "--json").stdout.splitlines()[0])
    assert (record["key"], record["step"], record["tries"]) == ({"id": 10}, "map check", 0)
    assert "row" not in record
    assert "secret20" in job.etl("rejects", "show", place, "--values").stdout

    again = job.etl("rejects", "retry", str(job.file))
    assert again.returncode == 3, again.stderr
    assert "3 rows were refused again" in again.stderr

    job.write("% 20 ==")  # two of the three rows are good now
    again = job.etl("rejects", "retry", str(job.file))
    assert again.returncode == 3, again.stderr
    assert job.greetings() == [n for n in range(1, 31) if n != 20]
    job.write("==")
    again = job.etl("rejects", "retry", str(job.file))
    assert again.returncode == 0, again.stderr
    assert job.greetings() == list(range(1, 31))
    assert job.etl("rejects", "retry", str(job.file)).returncode == 0


def test_skipped_and_allowed_rows_have_their_exit_codes(job: Job) -> None:
    ran = job.etl("run", str(job.file), "--on-error", "skip", "--allow-rejects", "2")
    assert ran.returncode == 3, ran.stderr
    assert "3 rows skipped" in ran.stderr
    job.etl("state", "reset", f"sqlite:///{job.folder}/target.db", "greet", "--yes")
    ran = job.etl("run", str(job.file), "--on-error", "reject", "--allow-rejects", "3", "--full")
    assert ran.returncode == 0, ran.stderr
    assert job.etl("run", str(job.file), "--on-error", "fail", "--full").returncode == 1


def test_a_copy_keeps_the_rows_that_the_target_refuses(job: Job) -> None:
    with closing(sqlite3.connect(job.folder / "target.db")) as db, db:
        db.execute(
            "CREATE TABLE people (id INTEGER PRIMARY KEY, name TEXT CHECK (name <> 'secret7'))"
        )
    urls = [f"sqlite:///{job.folder}/{name}.db" for name in ("people", "target")]
    copied = job.etl("copy", *urls, "--mode", "append", "--on-error", "reject")
    assert copied.returncode == 3, copied.stderr
    shown = job.etl("rejects", "show", urls[1])
    assert '{"id":7}' in shown.stdout
    assert "write" in shown.stdout
