"""Where a pipeline is found again by a worker process, and whether it is the same one there.

Functions cannot be sent to another process, so the module that made them is imported there once
more, and the pipeline is the variable that it is here.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast

from etl.connector import Ordered, Reader
from etl.engine.plan import FlowPlan, step_label
from etl.errors import ConfigError, EtlError
from etl.flow import Filter, Lookup, Step
from etl.foreign import because_of, named
from etl.stages import codes_of

_BY_FILE = "_etl_pipeline_"
"""How the names of modules begin that are loaded from a file and stand in no package."""

folders: dict[str, str] = {}
"""The working directory in which a module was imported that has left it since, by its name."""

_is_loading = False  # this is a worker process that imports the pipeline's module


def home_of(pipeline: object, name: str) -> dict[str, str]:
    """Where a worker process finds a pipeline: plain data for :func:`load`.

    Raises:
        ConfigError: Nowhere.
    """
    for module in list(sys.modules.values()):
        found = vars(module) if isinstance(module, ModuleType) else {}
        variable = next((key for key, value in list(found.items()) if value is pipeline), None)
        if variable is None:
            continue
        spec, file = found.get("__spec__"), found.get("__file__")
        is_file = module.__name__ == "__main__" and spec is None
        if is_file and not file:
            break
        if is_file or module.__name__.startswith(_BY_FILE):
            own = _BY_FILE + "main" if is_file else module.__name__
            home = {"module": own, "file": str(file), "variable": variable}
            return home | ({"folder": folders[own]} if own in folders else {})
        # Of ``python -m package.module`` only the specification knows the name.
        own = spec.name if spec is not None else module.__name__
        return {"module": own, "variable": variable}
    raise ConfigError(
        f"pipeline {name!r} cannot run in worker processes, because they cannot find it: they"
        " import its module again, and it must be a variable at the top level of one that has a"
        " file (not made in a function, a notebook or at a prompt). Move it there, or leave"
        " processes= at 1. Nothing was moved"
    )


def load(home: Mapping[str, str]) -> Any:
    """The pipeline, in a worker process.

    Raises:
        ConfigError: Its module cannot be imported again, or has it no more.
    """
    global _is_loading
    where = home.get("file", home["module"])
    _is_loading = True
    try:
        if folder := home.get("folder"):
            os.chdir(folder)
        module = _module(home)
        return getattr(module, home["variable"])
    except EtlError:
        raise
    except (Exception, SystemExit) as error:
        raise because_of(
            error,
            ConfigError(
                f"a worker process could not import the pipeline again from {where}:"
                f" {named(error)}."
                " It must come out the same at each import; or run it in one process (--processes"
                " 1, Limits(processes=1))"
            ),
        ) from error
    finally:
        _is_loading = False


def _module(home: Mapping[str, str]) -> ModuleType:
    name, file = home["module"], home.get("file")
    if file is None:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up here
    spec.loader.exec_module(module)
    return module


def check_not_loading(pipeline: str) -> None:
    """Refuse a run that a module begins while a worker process imports it.

    Raises:
        ConfigError: It does.
    """
    if _is_loading:
        raise ConfigError(
            f"pipeline {pipeline!r} is run where its module is imported, and worker processes"
            ' import it again; put what runs it under: if __name__ == "__main__":'
        )


def mark_of(plan: FlowPlan) -> str:
    """What a flow is, its functions' code included: the same text where it is the same flow."""
    steps = [step for one in plan.flow.branches.values() for step in one.steps]
    steps += plan.flow.stream.steps
    said = {
        "sources": [
            [one.source.summary, dict(one.source.fingerprint), _name(one.source.row_type)]
            for one in plan.branches
        ],
        "steps": [[step_label(step), *_code_of(step)] for step in steps],
        "sinks": [[one.target.name, one.table, dict(one.fingerprint)] for one in plan.sinks],
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def seen_by(reader: Reader[Any]) -> str:
    """The columns of a source, and what orders it: what each process must see alike."""
    order = list(reader.ordered_by) if isinstance(reader, Ordered) else []
    return f"{reader.shape!r} {order!r}"


def _name(row_type: type[Any] | None) -> str:
    return "" if row_type is None else row_type.__qualname__


def _code_of(step: Step) -> list[str]:
    match step:
        case Filter():
            functions: tuple[object, ...] = (step.predicate,)
        case Lookup():
            functions = (step.key, step.side_key, step.combine)
        case _:
            functions = (step.function,)
    return [text for one in functions for text in _texts(one, set())]


def _texts(function: object, seen: set[int]) -> Iterator[str]:
    """The code of a function, and that of helpers in its module."""
    if isinstance(function, partial):
        yield from _texts(function.func, seen)
    elif isinstance(function, MethodType):
        yield from _texts(function.__func__, seen)
    elif isinstance(function, FunctionType) and id(function) not in seen:
        seen.add(id(function))
        for code in codes_of(function.__code__):
            yield code.co_code.hex()
            yield ",".join(code.co_names)
            yield from (_shown(one) for one in code.co_consts if not isinstance(one, CodeType))
            for name in code.co_names:
                helper = function.__globals__.get(name)
                if isinstance(helper, FunctionType) and helper.__module__ == function.__module__:
                    yield from _texts(helper, seen)


def _shown(constant: object) -> str:
    if isinstance(constant, tuple):
        return f"({','.join(map(_shown, cast('tuple[object, ...]', constant)))})"
    if isinstance(constant, frozenset):  # its order is another one in each process
        return f"{{{','.join(sorted(map(_shown, cast('frozenset[object]', constant))))}}}"
    return repr(constant)
