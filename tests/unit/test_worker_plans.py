"""Which flows go into worker processes, why others do not, and what is said to the processes."""

from __future__ import annotations

import re
import types
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etl import ConfigError, Database, DeadLetter, Limits, Pipeline, Row, stage
from etl.cli.discover import find_pipeline
from etl.engine import homes, wire
from etl.engine.bad_rows import BadRows
from etl.engine.plan import FlowPlan, Plan
from etl.engine.segments import make_route, taking
from etl.engine.turns import Turns
from etl.engine.workers import Worker
from etl.errors import DataError, EtlError, OutOfMemoryError, ResourceError, StageError
from etl.events import Event, Note
from etl.flow import Flow
from etl.policy import MIB, WORKER_BYTES

SOURCE, TARGET = Database("postgresql://a/source"), Database("postgresql://b/target")
ROWS = SOURCE.table("t")
APPEND = TARGET.append("copy")


def same(row: Row) -> Row:
    return row


def keeps(row: Row) -> bool:
    return row["id"] in {1, 2, 3}


@stage
async def through(batches: Any) -> Any:
    async for batch in batches:
        yield batch


def plan_of(*flows: Flow, **limits: Any) -> Plan:
    return Pipeline("t", *flows, limits=Limits(**limits)).plan()


def lanes_lines(plan: Plan) -> str:
    return " ".join(line for line in plan.explain() if line.startswith("  lanes"))


def test_functions_between_postgresql_databases_go_into_processes() -> None:
    plan = plan_of(ROWS.map(same).into(APPEND), processes=2)
    (flow,) = plan.flows
    assert (flow.jobs, flow.processes) == (2, 2)
    assert "2, each in a process" in lanes_lines(plan)
    assert "processor core" not in lanes_lines(plan)
    # The run has a connection of its own to each, with which it begins and ends the flow.
    assert plan.explain()[0].endswith("3 connections for reading, 3 for writing")


@pytest.mark.parametrize(
    ("flow", "why"),
    [
        (ROWS.into(APPEND), "no function looks at the rows"),
        (ROWS.where("id > 1").into(APPEND), "no function looks at the rows"),
        (
            ROWS.lookup(SOURCE.table("s"), key=keeps, side_key=keeps, combine=lambda row, _: row)
            .into(APPEND),
            "side table",
        ),
        (ROWS.map(same).into(Database("sqlite:///t.db").append("copy")), r"sqlite:///t\.db is not"),
        (
            Database("sqlite:///s.db").table("t").map(same).into(APPEND),
            r"s\.db table 't', .* is not read by several",
        ),
        (
            Database("mysql+asyncmy://a/b").table("t").map(same).into(APPEND),
            "is not read by several",
        ),
    ],
)  # fmt: skip
def test_the_plan_says_why_a_flow_stays_in_one_process(flow: Flow, why: str) -> None:
    plan = plan_of(flow, lanes=3, processes=2)
    (planned,) = plan.flows
    assert (planned.jobs, planned.processes) == (3, 1)
    assert plan.processes == plan.limits.processes == 1
    assert re.search(f"in one process: .*{why}", lanes_lines(plan)), lanes_lines(plan)
    alone = plan_of(flow, processes=2)
    assert alone.flows[0].jobs == 1
    assert re.search(f"in one process: .*{why}", lanes_lines(alone))


@pytest.mark.parametrize(
    ("flow", "why"),
    [
        (SOURCE.table("t", cursor="id").map(same).into(APPEND), "cursor"),
        (ROWS.through(through).into(APPEND), "per_partition=True"),
        (ROWS.map(same).into(TARGET.upsert("copy", key=["id"])), "may change the key"),
    ],
)
def test_what_has_one_lane_has_one_process(flow: Flow, why: str) -> None:
    plan = plan_of(flow, processes=2)
    assert (plan.flows[0].jobs, plan.flows[0].processes) == (1, 1)
    assert re.search(f"one: .*{why}", lanes_lines(plan))


def test_an_unread_reference_may_be_postgresql() -> None:
    database = Database("env:NOT_SET_ANYWHERE")
    plan = plan_of(database.table("t").map(same).into(database.append("copy")), processes=2)
    assert plan.processes == 2


def test_the_processes_count_in_a_memory_limit_that_was_given() -> None:
    flow = ROWS.map(same).into(APPEND)
    free, given = plan_of(flow, processes=2), plan_of(flow, processes=2, memory="256MiB")
    parts = free.flows[0].parts
    assert free.share == 64 * MIB // parts
    assert given.share == (256 * MIB - 2 * WORKER_BYTES) // parts
    assert given.limits.row_bytes == (256 * MIB - 2 * WORKER_BYTES) // 6
    assert "each counts as 40 MiB of the memory" in "\n".join(given.explain())
    assert "each takes about 40 MiB beside the memory" in "\n".join(free.explain())
    with pytest.raises(ConfigError, match="beside 2 worker processes; give it at least"):
        plan_of(flow, processes=2, memory="64MiB")
    # Where no flow needs them they count for nothing.
    assert plan_of(ROWS.into(APPEND), processes=2, memory="64MiB").limits.rows_bytes == 64 * MIB


def test_processes_are_at_least_one() -> None:
    with pytest.raises(ConfigError, match="processes"):
        Limits(processes=0)


# -- Found again, and the same --------------------------------------------------------------------


def flow_of(function: Callable[[Any], Any]) -> FlowPlan:
    return plan_of(ROWS.map(function).into(APPEND)).flows[0]


def compiled(body: str) -> Callable[[Any], Any]:
    module = types.ModuleType("made")
    exec(compile(body, "made.py", "exec"), module.__dict__)
    function: Callable[[Any], Any] = module.__dict__["f"]
    return function


BODY = "def g(x):\n    return x + 1\ndef f(row):\n    return g(row) in {'a', 'b', ('c', 1)}\n"


def test_a_flow_has_the_same_mark_wherever_it_is_imported() -> None:
    assert homes.mark_of(flow_of(compiled(BODY))) == homes.mark_of(flow_of(compiled(BODY)))
    # Comments and lines say nothing of what it does.
    assert homes.mark_of(flow_of(compiled("\n# x\n" + BODY))) == homes.mark_of(
        flow_of(compiled(BODY))
    )


@pytest.mark.parametrize(
    ("old", "new"), [("x + 1", "x + 2"), ("x + 1", "x - 1"), ("'b'", "'d'"), ("g(row)", "h(row)")]
)
def test_another_function_or_helper_has_another_mark(old: str, new: str) -> None:
    changed = compiled(BODY.replace(old, new))
    assert homes.mark_of(flow_of(changed)) != homes.mark_of(flow_of(compiled(BODY)))


@pytest.mark.parametrize(
    "flow",
    [
        SOURCE.table("u").map(same).into(APPEND),
        ROWS.where("id > 1").map(same).into(APPEND),
        ROWS.map(same).into(TARGET.append("other")),
        ROWS.map(same).into(TARGET.replace("copy")),
        ROWS.filter(keeps).map(same).into(APPEND),
        ROWS.filter(keeps).into(APPEND),
    ],
)
def test_another_source_step_or_sink_has_another_mark(flow: Flow) -> None:
    assert homes.mark_of(plan_of(flow).flows[0]) != homes.mark_of(flow_of(same))


found_here = Pipeline("here", ROWS.map(same).into(APPEND))


def test_a_pipeline_is_found_as_a_variable_of_its_module() -> None:
    home = homes.home_of(found_here, "here")
    assert home == {"module": __name__, "variable": "found_here"}
    assert homes.load(home) is found_here


def test_a_file_that_leaves_its_working_directory_is_imported_from_there_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "moves.py").write_text(
        "import os\nfrom etl import Database, Pipeline\nos.chdir('below')\n"
        "at = Database('sqlite:///a.db')\n"
        "moves = Pipeline('moves', at.table('t').into(at.append('u')))\n"
    )
    monkeypatch.chdir(tmp_path)
    home = homes.home_of(find_pipeline("moves.py"), "moves")
    assert Path.cwd() == tmp_path / "below"
    assert homes.load(home).name == "moves"
    assert Path.cwd() == tmp_path / "below"


def test_a_pipeline_that_no_module_has_is_not_found() -> None:
    pipeline = Pipeline("lost", ROWS.map(same).into(APPEND))
    with pytest.raises(ConfigError, match="pipeline 'lost' cannot run in worker processes"):
        homes.home_of(pipeline, "lost")


# -- What is said ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        StageError("a"),
        ConfigError("b"),
        ResourceError("c"),
        OutOfMemoryError("d"),
        DataError("e", column="c", row=3, reason="r", detail="d"),
    ],
)
def test_an_error_is_the_same_on_the_other_side(error: EtlError) -> None:
    got = wire.error_of(wire.decode(wire.encode(wire.of_error(error))))
    assert type(got) is type(error)
    assert str(got) == str(error)
    assert got.detail == error.detail
    assert vars(got).get("column") == vars(error).get("column")
    assert isinstance(got.__cause__, wire.WorkerTraceback)


def test_a_strangers_error_tells_its_class_and_place_but_not_its_values() -> None:
    try:
        raise ValueError("a row's value")
    except ValueError as error:
        sent = wire.of_error(error)
    assert sent["class"] == "StageError"
    assert "ValueError" in sent["text"]
    assert "a row's value" not in str({**sent, "attributes": {}})
    assert "test_worker_plans.py" in sent["trace"]


def test_routes_limits_and_policies_pass_unchanged() -> None:
    route = make_route("main/2", {0: ("a", None, 3), 1: None}, [("a", None, 3)], until=("\udcff",))
    assert wire.route_of(wire.decode(wire.encode({"r": wire.of_route(route)}))["r"]) == route
    limits = Limits(memory="1g", processes=3, batch_rows=7)
    assert wire.limits_of(wire.decode(wire.encode(wire.of_limits(limits)))) == limits
    for policy in ("fail", "skip", DeadLetter(max_rows=3)):
        assert (
            wire.policy_of(wire.decode(wire.encode({"p": wire.of_policy(policy)}))["p"]) == policy
        )


async def test_some_flows_follow_each_other_in_an_order_that_waits_for_nobody_in_vain() -> None:
    turns = Turns({"a": ["c"], "b": [], "c": [], "d": []}, 4)
    turns.one_by_one(["a", "c", "d"])
    begun: list[str] = []
    turns.begin()
    for _ in range(3):
        now = [name for name in "abcd" if turns._started[name].is_set() and name not in begun]
        assert len([name for name in now if name != "b"]) == 1
        begun += now
        turns.ended(next(name for name in now if name != "b"))
        turns.begin()
    assert begun.index("c") < begun.index("a")


def test_what_else_failed_in_a_worker_is_told_beside_its_first_error() -> None:
    told: list[Event] = []
    worker = Worker(
        "worker 1 of flow 't'",
        {"flow": "t"},
        taking(deque()),
        grace_s=1,
        bad_rows=BadRows("fail", "t"),
        claims=(),
        tell=told.append,
    )
    errors = [DataError("a row is bad"), StageError("and a stage, too")]
    first = worker.failure({"errors": [wire.of_error(one) for one in errors]})
    assert (type(first), str(first)) == (DataError, "a row is bad")
    assert told == [Note(flow="t", message="worker 1 of flow 't', also: and a stage, too")]
