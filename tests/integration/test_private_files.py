"""What etl writes is for its owner only; what stands beside a user's own file follows that one."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from etl import Database, DeadLetter, Pipeline, Row
from etl.databases.migrate import upgrade
from etl.databases.url import parse_url


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes_in(folder: Path) -> dict[str, int]:
    return {one.name: one.stat().st_mode & 0o777 for one in folder.iterdir() if one.is_file()}


def _source(folder: Path) -> Database:
    path = folder / "source.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)")
        connection.executemany("INSERT INTO t VALUES (?, ?)", [(n, f"n{n}") for n in range(2000)])
        connection.commit()
    return Database(f"sqlite:///{path}")


async def _run(folder: Path, target: str, mode: str) -> dict[str, set[int]]:
    """Load a table, with rejects; the modes of each file that was seen in the target's folder."""
    seen: dict[str, set[int]] = {}

    def look() -> None:
        for name, found in modes_in(Path(target).parent).items():
            seen.setdefault(name, set()).add(found)

    def looked(row: Row) -> Row:
        if row["id"] % 100 == 0:
            look()
        if row["id"] == 7:
            raise ValueError("bad")
        return row

    into = Database(f"sqlite:///{target}")
    sink = into.replace("t") if mode == "replace" else into.append("t")
    flow = _source(folder).table("t").map(looked).into(sink)
    pipeline = Pipeline("p", flow, on_error=DeadLetter(max_rows=5))
    await pipeline.run()
    look()
    return seen


@pytest.mark.parametrize("mode", ["append", "replace"])
async def test_a_new_database_and_all_beside_it_are_private(mode: str, tmp_path: Path) -> None:
    folder = tmp_path / "target"
    folder.mkdir()
    seen = await _run(tmp_path, str(folder / "new.db"), mode)
    assert {name for name in seen if name.endswith(".lock")}, seen
    assert {"new.db", "new.db-wal", "new.db-shm"} <= seen.keys()
    assert set().union(*seen.values()) == {0o600}, seen


@pytest.mark.parametrize("journal", ["wal", "delete"])
@pytest.mark.parametrize("mode", ["append", "replace"])
async def test_beside_a_database_of_the_user_s_files_have_its_mode(
    mode: str, journal: str, tmp_path: Path
) -> None:
    folder = tmp_path / "target"
    folder.mkdir()
    path = folder / "own.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.execute("CREATE TABLE mine (n)")
    path.chmod(0o664)
    seen = await _run(tmp_path, str(path), mode)
    locks = {name for name in seen if name.endswith(".lock")}
    assert locks
    for name, modes in seen.items():
        assert modes == ({0o600} if name in locks else {0o664}), seen
    assert {"own.db"} < seen.keys() - locks, "there is a journal"


async def test_a_database_that_migrate_makes_is_private(tmp_path: Path) -> None:
    await upgrade(parse_url(f"sqlite:///{tmp_path / 'new.db'}"))
    assert set(modes_in(tmp_path).values()) == {0o600}
