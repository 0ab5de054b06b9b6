"""The house: a lower part imports an upper one, never the other way, and imports stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "etl"

# From the top: a part may import those above it, and itself.
HOUSE = (
    "figures",
    "errors",
    "secrets",
    "foreign",
    "batch",
    "policy",
    "rows",
    "arrow",
    "verdict",
    "connector",
    "events",
    "flow",
    "stages",
    "engine",
    "pipeline",
    "reading",
    "databases",
    "files",
    "verification",
    "repair",
    "api",
    "observe",
    "etl",  # the package itself, which gives the names of "api"
    "cli",
    "testing",
)
FILES = sorted(PACKAGE.rglob("*.py"))

# (importing file, imported part): why this one may look down.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("flow.py", "reading"): "Stream.open stands where people look for it, and starts the engine",
}

HEAVY = ("typer", "rich", "sqlalchemy", "alembic", "asyncpg", "aiosqlite", "pyarrow", "uvloop")
"""What no name of ``etl`` may load: a program that only describes pipelines pays for none."""

MODULES_AT_MOST = 250
"""Modules that they load beyond a bare interpreter, the standard library's included."""


def part_of(file: Path) -> str:
    """The part of the house that a file belongs to."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return {"__init__": "etl", "__main__": "cli"}.get(parts[0], parts[0])


def imported_parts(file: Path) -> Iterator[tuple[int, str]]:
    """Each import of a part of etl in a file, inside functions and TYPE_CHECKING too."""
    package = ("etl", *file.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        modules: list[str] = []
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            # "from etl import x" is an import of the part x where there is one.
            modules = [f"etl.{alias.name}" for alias in node.names] if module == "etl" else [module]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # importlib.import_module takes names as texts.
            modules = [node.value] if node.value.startswith("etl.") else []
        for module in modules:
            names = module.split(".")
            if names[0] == "etl":
                part = names[1] if len(names) > 1 else "etl"
                if part in HOUSE:
                    yield line, part
                elif isinstance(node, ast.ImportFrom):
                    yield line, "etl"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE.parent)))
def test_a_file_imports_only_what_stands_above_it(file: Path) -> None:
    part = part_of(file)
    assert part in HOUSE, f"{part} has no place in the house; give it one in HOUSE"
    name = str(file.relative_to(PACKAGE))
    wrong = [
        f"line {line}: etl.{imported}"
        for line, imported in imported_parts(file)
        if HOUSE.index(imported) > HOUSE.index(part) and (name, imported) not in EXCEPTIONS
    ]
    assert not wrong, f"{name} imports downwards: {wrong}"


def test_nothing_imports_the_tools_for_testing() -> None:
    users = [
        str(file.relative_to(PACKAGE))
        for file in FILES
        if part_of(file) != "testing" and any(p == "testing" for _, p in imported_parts(file))
    ]
    assert not users


def test_every_exception_is_still_needed() -> None:
    needed = {
        (str(file.relative_to(PACKAGE)), imported)
        for file in FILES
        for _, imported in imported_parts(file)
        if HOUSE.index(imported) > HOUSE.index(part_of(file))
    }
    assert needed == set(EXCEPTIONS)


def test_importing_etl_loads_nothing_until_a_name_of_it_is_used() -> None:
    assert loaded_by("import etl") <= {"etl"} | loaded_by("import importlib, typing")


def test_the_names_of_etl_load_no_driver_and_stay_few() -> None:
    bare = loaded_by("pass")
    loaded = loaded_by("from etl import *; Pipeline")
    assert not {name.partition(".")[0] for name in loaded} & set(HEAVY)
    assert len(loaded - bare) <= MODULES_AT_MOST, sorted(loaded - bare)


def test_the_names_of_etl_are_found_in_every_way() -> None:
    import etl
    from etl import api

    assert set(dir(etl)) >= set(api.__all__) == set(etl.__all__)
    assert etl.Pipeline is api.Pipeline
    assert etl.__version__ == version("etl")
    with pytest.raises(AttributeError, match="'etl' has no attribute 'Pipelines'"):
        etl.Pipelines  # type: ignore[attr-defined]  # noqa: B018


def test_migrating_code_is_imported_only_to_migrate() -> None:
    loaded = loaded_by("import etl.databases.migrate")
    assert not {name.partition(".")[0] for name in loaded} & {"sqlalchemy", "alembic"}


def loaded_by(statement: str) -> set[str]:
    """The modules that a new interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PACKAGE.parent, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return set(done.stdout.split())
