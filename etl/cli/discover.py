"""Finds the pipelines in a Python file."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from etl.engine import homes
from etl.errors import ConfigError, EtlError
from etl.flow import Flow
from etl.pipeline import Pipeline

_MAKE_ONE = 'pipeline = Pipeline("name", source.into(sink))'


def find_pipeline(target: str) -> Pipeline:
    """The one pipeline of ``FILE``, or the one called so of ``FILE:name``.

    ``name`` is the variable, or the pipeline's own name.

    Raises:
        ConfigError: No such file, an error in it, or not exactly one pipeline to choose.
    """
    if "://" in target or target.startswith("env:"):
        raise ConfigError("a URL names a database; here the file of a pipeline is needed")
    path, name = split_target(target)
    module = load(path)
    found = pipelines_in(module)
    if name is not None:
        chosen = found.get(name) or next((p for p in found.values() if p.name == name), None)
        if chosen is None:
            raise ConfigError(f"{path} has no pipeline {name!r}{_listing(found, name)}")
        return chosen
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise ConfigError(
            f"{path} has {len(found)} pipelines: {', '.join(found)};"
            f" say which one: {path}:{next(iter(found))}"
        )
    flows = [name for name, value in vars(module).items() if isinstance(value, Flow)]
    if flows:
        raise ConfigError(
            f"{path} has {_named('flow', flows)} but no Pipeline; make one at the top level of the"
            f' file: pipeline = Pipeline("name", {", ".join(flows)})'
        )
    raise ConfigError(f"{path} has no Pipeline; make one at the top level of the file: {_MAKE_ONE}")


def split_target(target: str) -> tuple[Path, str | None]:
    """The file and the name in ``FILE[:name]``."""
    file, colon, name = target.rpartition(":")
    if colon and file and name.isidentifier() and not Path(target).exists():
        return Path(file), name
    if colon and file.endswith(".py") and not Path(target).exists():
        return Path(file), name or None
    return Path(target), None


def pipelines_in(module: ModuleType) -> dict[str, Pipeline]:
    """Each pipeline among the module's variables once, under its first name."""
    found: dict[str, Pipeline] = {}
    for name, value in vars(module).items():
        if isinstance(value, Pipeline) and not any(value is other for other in found.values()):
            found[name] = value
    return found


def load(path: Path) -> ModuleType:
    """Run a Python file as a module of its own, with its folder first on ``sys.path``.

    Raises:
        ConfigError: It is missing, no Python file, or raises; the message names the line.
    """
    _check(path)
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up here
    began_in = _working_directory()
    try:
        spec.loader.exec_module(module)
    except SystemExit as error:
        why = f" ({error.code})" if isinstance(error.code, str) else ""
        raise ConfigError(
            f"{_place(path, error)}: the file ends the process while it is loaded{why}; put what"
            ' only a script does under: if __name__ == "__main__":'
        ) from error
    except EtlError as error:
        # A set-up error of etl, raised by a line of this file: keep its class and exit code.
        raise _at(error, f"{_place(path, error)}: {error}") from error
    except (Exception, GeneratorExit) as error:
        what = error.msg if isinstance(error, SyntaxError) else str(error)
        kind = type(error).__name__
        raise ConfigError(
            f"{_place(path, error)}: {kind}: {what}" if what else f"{_place(path, error)}: {kind}"
        ) from error
    if began_in is not None and _working_directory() != began_in:
        homes.folders[name] = began_in  # its relative paths are meant from there at each import
    return module


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def module_name(path: Path) -> str:
    """The name of the module that a file is loaded as.

    Private, so that a pipeline file called json.py does not stand in for the real one.
    """
    digest = hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape")).hexdigest()[:8]
    return f"_etl_pipeline_{path.stem}_{digest}"


def files_in(place: Path) -> Sequence[Path]:
    """The file itself, or the Python files of a folder; names that begin with ``_`` are private.

    Raises:
        ConfigError: Neither.
    """
    if place.is_dir():
        return sorted(p for p in place.glob("*.py") if not p.name.startswith(("_", ".")))
    if not place.exists():
        raise ConfigError(f"there is no file or folder {place}; say where the pipelines are")
    _check(place)
    return [place]


def _check(path: Path) -> None:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file in it (etl list {path} shows them)")
    if not path.exists():
        near = difflib.get_close_matches(path.name, _siblings(path), n=3)
        hint = f"; did you mean {' or '.join(str(path.parent / name) for name in near)}?"
        raise ConfigError(f"there is no file {path}{hint if near else ''}")
    if path.suffix != ".py":
        raise ConfigError(f"{path} is not a Python file: its name does not end in .py")
    if not path.is_file():
        raise ConfigError(f"{path} is not a file")


def _siblings(path: Path) -> list[str]:
    try:
        return [one.name for one in path.parent.iterdir() if one.suffix == ".py"]
    except OSError:
        return []


def _place(path: Path, error: BaseException) -> str:
    """``file:line`` of the last line of this file that took part in an error."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_short(error.filename, path)}:{error.lineno}"
    here = path.resolve()
    line = None
    for frame, number in traceback.walk_tb(error.__traceback__):
        if Path(frame.f_code.co_filename).resolve() == here:
            line = number
    return f"{path}:{line}" if line else str(path)


def _short(filename: str, path: Path) -> str:
    return str(path) if Path(filename).resolve() == path.resolve() else filename


def _at(error: EtlError, message: str) -> EtlError:
    kind = type(error)
    return kind(message) if kind.__init__ is Exception.__init__ else ConfigError(message)


def _listing(found: Mapping[str, Pipeline], name: str) -> str:
    if not found:
        return f", and no other; make one at the top level of the file: {_MAKE_ONE}"
    near = difflib.get_close_matches(name, [*found, *(p.name for p in found.values())], n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"; it has {', '.join(found)}{hint}"


def _named(thing: str, names: Sequence[str]) -> str:
    return f"the {thing}{'s' if len(names) > 1 else ''} {', '.join(names)}"
