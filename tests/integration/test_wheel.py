"""The wheel, installed away from the checkout, holds all that it needs."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from zipfile import ZipFile

import asyncpg
import pytest

from etl.databases.migrate import HEAD

CHECKOUT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Run a program away from the checkout; return what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel. Without isolation: the tools to build are there, a network may not be."""
    directory = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", directory, CHECKOUT,
        cwd=directory,
    )  # fmt: skip
    (found,) = directory.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel in it, for ``PYTHONPATH``; its dependencies are this Python's."""
    directory = tmp_path_factory.mktemp("installed")
    run(
        sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--no-index", "--no-deps", "--target", directory, wheel,
        cwd=directory,
    )  # fmt: skip
    return directory


def test_the_wheel_holds_the_package_and_its_migrations(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    migrations = {
        f"etl/_migrations/{file.relative_to(CHECKOUT / 'migrations')}"
        for file in (CHECKOUT / "migrations").rglob("*.py")
    }
    assert migrations
    assert migrations <= names
    assert {"etl/__init__.py", "etl/py.typed"} <= names
    assert not {name for name in names if name.startswith(("tests/", "pipelines/", "migrations/"))}
    assert not {name for name in names if "__pycache__" in name}


def test_the_installed_package_is_the_one_that_runs(installed: Path, tmp_path: Path) -> None:
    code = (
        "import etl.databases.migrate as m; print(m.__file__); print(m._directory());"
        "import importlib.metadata; print(importlib.metadata.version('etl'))"
    )
    file, directory, version = run(
        sys.executable, "-c", code, cwd=tmp_path, path=installed
    ).splitlines()
    assert file == str(installed / "etl" / "databases" / "migrate.py")
    assert directory == str(installed / "etl" / "_migrations")
    assert version == "0.1.0"


def test_the_installed_command_migrates_sqlite(installed: Path, tmp_path: Path) -> None:
    run(installed / "bin" / "etl", "migrate", "sqlite:///new.db", cwd=tmp_path, path=installed)

    with closing(sqlite3.connect(tmp_path / "new.db")) as file:
        assert file.execute("SELECT version_num FROM etl_version").fetchall() == [(HEAD,)]
        assert file.execute("SELECT count(*) FROM etl_checkpoint").fetchall() == [(0,)]


def test_the_installed_command_migrates_postgres(
    installed: Path, tmp_path: Path, postgres_url: str
) -> None:
    run(installed / "bin" / "etl", "migrate", postgres_url, cwd=tmp_path, path=installed)

    async def read() -> tuple[str, int]:
        connection = await asyncpg.connect(postgres_url)
        try:
            return (
                await connection.fetchval("SELECT version_num FROM etl_version"),
                await connection.fetchval("SELECT count(*) FROM etl_checkpoint"),
            )
        finally:
            await connection.close()

    assert asyncio.run(read()) == (HEAD, 0)


def test_the_installed_command_prints_the_script(installed: Path, tmp_path: Path) -> None:
    text = run(
        installed / "bin" / "etl", "migrate", "sqlite:///never.db", "--sql",
        cwd=tmp_path, path=installed,
    )  # fmt: skip
    with closing(sqlite3.connect(":memory:")) as file:
        file.executescript(text)
        assert file.execute("SELECT version_num FROM etl_version").fetchall() == [(HEAD,)]
    assert not (tmp_path / "never.db").exists()
