"""Finding the pipeline in a file, and saying in one sentence why not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from etl.cli.discover import files_in, find_pipeline, split_target
from etl.errors import ConfigError, EtlError

HEAD = """\
from etl import Database, Pipeline
db = Database("sqlite:///a.db")
def flow(name):
    return db.table(name).into(db.append(name + "_copy"))
"""


@pytest.fixture(autouse=True)
def same_path() -> Iterator[None]:
    """A loaded file leaves its folder and its module behind, as a process wants it."""
    path, modules = sys.path[:], set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(folder: Path, body: str, *, name: str = "orders.py", head: str = HEAD) -> Path:
    path = folder / name
    path.write_text(head + dedent(body))
    return path


def refusal(target: str | Path, kind: type[EtlError] = ConfigError) -> str:
    with pytest.raises(kind) as caught:
        find_pipeline(str(target))
    return str(caught.value)


def test_the_only_pipeline_is_found(tmp_path: Path) -> None:
    path = write(tmp_path, 'p = Pipeline("orders", flow("a"))\nsame = p\n')
    assert find_pipeline(str(path)).name == "orders"


@pytest.mark.parametrize("name", ["first", "one"])
def test_one_of_several_is_found_by_variable_or_by_its_own_name(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, 'first = Pipeline("one", flow("a"))\nx = Pipeline("two", flow("b"))\n')
    assert find_pipeline(f"{path}:{name}").name == "one"


def test_several_without_a_name_are_listed(tmp_path: Path) -> None:
    path = write(tmp_path, 'x = Pipeline("one", flow("a"))\ny = Pipeline("two", flow("b"))\n')
    assert refusal(path) == f"{path} has 2 pipelines: x, y; say which one: {path}:x"


def test_an_unknown_name_is_answered_with_those_there_are(tmp_path: Path) -> None:
    path = write(tmp_path, 'orders = Pipeline("one", flow("a"))\n')
    assert refusal(f"{path}:order") == (
        f"{path} has no pipeline 'order'; it has orders; did you mean orders?"
    )


def test_no_pipeline(tmp_path: Path) -> None:
    assert "has no Pipeline; make one" in refusal(write(tmp_path, ""))
    text = refusal(write(tmp_path, 'f = flow("a")\n'))
    assert text.endswith('pipeline = Pipeline("name", f)')


def test_a_missing_file_is_answered_with_a_near_one(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    assert refusal(tmp_path / "order.py") == (
        f"there is no file {tmp_path / 'order.py'}; did you mean {path}?"
    )
    assert refusal("nowhere/at/all.py") == "there is no file nowhere/at/all.py"


def test_what_is_not_a_python_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "", name="orders.txt")
    assert refusal(path).endswith("is not a Python file: its name does not end in .py")
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("body", "end"),
    [
        ("x = 1\nnothing\n", ":6: NameError: name 'nothing' is not defined"),
        ("def f(:\n", ":5: SyntaxError: invalid syntax"),
        ("import json\njson.loads('{')\n", ":6: JSONDecodeError: Expecting property name enclosed"),
        ('Pipeline("")\n', ":5: Pipeline(): the first argument is its name, a text"),
        ("raise SystemExit(0)\n", ":5: the file ends the process while it is loaded;"),
        ("exit('no URL')\n", ":5: the file ends the process while it is loaded (no URL);"),
        ("raise GeneratorExit\n", ":5: GeneratorExit"),
        ("raise ValueError\n", ":5: ValueError"),
    ],
)
def test_an_error_in_the_file_is_told_with_its_line(tmp_path: Path, body: str, end: str) -> None:
    path = write(tmp_path, body)
    assert refusal(path).startswith(f"{path}{end}")


def test_an_error_in_a_file_that_it_imports_names_its_own_line(tmp_path: Path) -> None:
    write(tmp_path, "def f():\n    raise RuntimeError('no')\n", name="etl_test_part.py", head="")
    path = write(tmp_path, "import etl_test_part\netl_test_part.f()\n")
    assert refusal(path) == f"{path}:6: RuntimeError: no"


def test_files_beside_it_can_be_imported_and_dataclasses_work(tmp_path: Path) -> None:
    write(tmp_path, "TABLE = 'beside'\n", name="etl_test_beside.py", head="")
    body = """
        from __future__ import annotations
        from dataclasses import dataclass
        from etl import Database, Pipeline
        from etl_test_beside import TABLE
        @dataclass(frozen=True, slots=True)
        class Order:
            id: int
            note: str | None
        db = Database("sqlite:///a.db")
        p = Pipeline("p", db.table(TABLE, row=Order).into(db.append("c")))
    """
    assert find_pipeline(str(write(tmp_path, body, head=""))).flows[0].name == "beside"


def test_a_file_named_like_a_module_does_not_replace_it(tmp_path: Path) -> None:
    import json

    path = write(tmp_path, 'p = Pipeline("p", flow("a"))\n', name="json.py")
    assert find_pipeline(str(path)).name == "p"
    assert sys.modules["json"] is json


def test_the_name_is_split_off_behind_the_last_colon(tmp_path: Path) -> None:
    odd = tmp_path / "a:b"
    odd.write_text("")
    assert split_target("x.py:y") == (Path("x.py"), "y")
    assert split_target("x.py") == (Path("x.py"), None)
    assert split_target("x.py:") == (Path("x.py"), None)
    assert split_target("x.py:the one") == (Path("x.py"), "the one")
    assert split_target(str(odd)) == (odd, None)


def test_private_files_of_a_folder_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    write(tmp_path, "", name="_private.py")
    write(tmp_path, "", name="notes.txt")
    assert files_in(tmp_path) == [path]
