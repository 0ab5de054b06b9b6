"""The plan: legs and channels, the division of the memory, and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from etl import Batch, ConfigError, Database, Limits, Pipeline, Stream, merge, stage
from etl.engine.plan import Plan
from etl.flow import Flow
from etl.policy import KIB, MIB
from etl.testing import MemorySink, MemorySource, MemoryTarget


def plus_one(row: int) -> int:
    return row + 1


async def same(rows: Sequence[int]) -> Sequence[int]:
    return rows


@stage
async def as_it_is(batches: Any, *, option: int = 0) -> AsyncGenerator[Batch[int], None]:
    async for batch in batches:
        yield batch


def source(name: str = "numbers", **options: Any) -> MemorySource[int]:
    return MemorySource([1, 2, 3], name=name, **options)


def plan_of(*flows: Flow, **limits: Any) -> Plan:
    return Pipeline("t", *flows, limits=Limits(**limits)).plan()


def test_row_functions_after_a_source_run_in_its_task_and_need_no_channel() -> None:
    plan = plan_of(source().map(plus_one).filter(bool).into(MemorySink[int]()))
    (flow,) = plan.flows
    assert len(flow.branches[0].inline) == 2
    assert flow.branches[0].legs == ()
    assert flow.channels == 1


def test_neighbours_share_a_task_and_each_map_batches_has_its_own() -> None:
    stream: Stream[int] = (
        source()
        .map_batches(same)
        .map(plus_one)
        .through(as_it_is)
        .filter(bool)
        .map_batches(same, concurrency=4)
        .map_batches(same)
    )
    (flow,) = plan_of(stream.into(MemorySink[int]())).flows
    labels = [leg.label for leg in flow.branches[0].legs]
    assert labels == [
        "map_batches same",
        "map plus_one > stage as_it_is > filter bool",
        "map_batches same x4",
        "map_batches same",
    ]
    assert flow.channels == 5


def test_a_merge_joins_its_branches_before_the_shared_steps() -> None:
    both = merge(source("a").map(plus_one), source("b").map_batches(same)).through(as_it_is)
    (flow,) = plan_of(both.into(MemorySink[int]())).flows
    assert [branch.partition for branch in flow.branches] == ["a", "b"]
    assert [len(branch.legs) for branch in flow.branches] == [0, 1]
    assert len(flow.shared) == 1
    assert flow.channels == 3


def test_the_memory_is_divided_over_channels_calls_and_lanes_of_all_flows() -> None:
    plan = plan_of(
        source("a").into(MemorySink[int]()),
        source("b").map_batches(same, concurrency=8).into(MemorySink[int]()),
        memory="16MiB",
    )
    # a: 1 channel + 3 of its lane; b: 2 channels + 8 calls + 3 of its lane
    assert [flow.parts for flow in plan.flows] == [4, 13]
    assert plan.share == 16 * MIB // 17
    assert plan.share * 17 <= 16 * MIB


def test_a_memory_that_is_too_small_is_refused_and_the_message_says_what_is_enough() -> None:
    flow = source().into(MemorySink[int]())
    with pytest.raises(ConfigError, match="too little.*at least 256 KiB"):
        plan_of(flow, memory=4 * 64 * KIB - 1)
    assert plan_of(flow, memory=4 * 64 * KIB).share == 64 * KIB


def test_sessions_are_counted_by_target() -> None:
    target = MemoryTarget()
    plan = plan_of(
        source("a").into(MemorySink[int](target=target, table="a")),
        source("b").into(MemorySink[int](target=target, table="b")),
        source("c").into(MemorySink[int]()),
    )
    assert sorted(plan.targets.values()) == [1, 2]


def test_two_flows_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"two flows called 'numbers'.*named"):
        plan_of(source().into(MemorySink[int]()), source().into(MemorySink[int]()))
    plan_of(source().into(MemorySink[int]()), source().named("x").into(MemorySink[int]()))


def test_one_table_twice_in_a_flow_is_refused() -> None:
    target = MemoryTarget()
    with pytest.raises(ConfigError, match="one table twice"):
        plan_of(source().into(MemorySink[int](target=target), MemorySink[int](target=target)))


@pytest.mark.parametrize("modes", [("append", "replace"), ("replace", "append")])
def test_a_replaced_table_has_one_sink_whatever_their_order(modes: tuple[str, str]) -> None:
    target = MemoryTarget()
    flows = [
        source(name).into(MemorySink[int](target=target, mode=mode))
        for name, mode in zip("ab", modes, strict=True)
    ]
    with pytest.raises(ConfigError, match="one of them as replace"):
        plan_of(*flows)


def test_two_flows_may_append_to_one_table() -> None:
    target = MemoryTarget()
    plan_of(
        source("a").into(MemorySink[int](target=target)),
        source("b").into(MemorySink[int](target=target)),
    )


def test_a_merge_of_an_incremental_and_a_full_source_is_refused() -> None:
    both = merge(source("a"), source("b", incremental=False))
    with pytest.raises(ConfigError, match="with a cursor and sources without"):
        plan_of(both.into(MemorySink[int]()))


def test_replace_of_an_incremental_source_is_refused() -> None:
    class Connected(MemorySource[int]):
        def connect(self, info: Any) -> Any:
            raise AssertionError("a plan connects to nothing")

    with pytest.raises(ConfigError, match="takes no"):
        plan_of(Connected([1]).into(MemorySink[int](mode="replace")))


def test_the_plan_explains_itself() -> None:
    stream = source().map(plus_one).map_batches(same, concurrency=4)
    sinks = MemorySink[int](mode="upsert", key=("id",))
    lines = plan_of(stream.into(sinks), memory="16MiB").explain()
    text = "\n".join(lines)
    assert "pipeline t: 1 flow together, 1 connection for reading, 1 for writing" in text
    assert "memory 16 MiB" in text
    assert "map plus_one (in the reading task)" in text
    assert "map_batches same x4 (own task)" in text
    assert "upsert by (id)" in text


# -- What a pipeline refuses when it is built ---------------------------------------------------


def test_a_pipeline_needs_a_name_and_flows() -> None:
    flow = source().into(MemorySink[int]())
    for wrong in ("", 5, None, flow):
        with pytest.raises(ConfigError, match="its name"):
            Pipeline(wrong, flow)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="has no flow"):
        Pipeline("t")
    with pytest.raises(ConfigError, match="is not a flow"):
        Pipeline("t", source())  # type: ignore[arg-type]


def test_a_flow_needs_sinks() -> None:
    with pytest.raises(ConfigError, match="at least one sink"):
        source().into()
    with pytest.raises(ConfigError, match=r"is not a sink; a database's are \.append"):
        source().into("table")  # type: ignore[arg-type]


async def an_async_function(row: int) -> int:
    return row


def test_steps_take_the_right_kind_of_function() -> None:
    with pytest.raises(ConfigError, match="map_batches"):
        source().map(an_async_function)
    with pytest.raises(ConfigError, match="takes a function"):
        source().filter(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="must be async"):
        source().map_batches(lambda rows: rows)  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigError, match="at least 1"):
        source().map_batches(same, concurrency=0)
    with pytest.raises(ConfigError, match="decorate"):
        source().through(an_async_function)  # type: ignore[arg-type]


def test_a_callable_object_with_an_async_call_is_taken() -> None:
    class Client:
        async def __call__(self, rows: Sequence[int]) -> Sequence[int]:
            return rows

    source().map_batches(Client())


def test_merge_takes_two_or_more_of_different_names() -> None:
    with pytest.raises(ConfigError, match="at least two"):
        merge(source())
    with pytest.raises(ConfigError, match="named"):
        merge(source(), source())
    with pytest.raises(ConfigError, match="merge of a merge|all streams at once"):
        merge(merge(source("a"), source("b")), source("c"))


def test_a_lookup_side_is_one_source_with_row_functions() -> None:
    def join(side: Stream[int]) -> None:
        source().lookup(side, side_key=plus_one, key=plus_one, combine=lambda row, match: row)

    join(source("side").map(plus_one))
    with pytest.raises(ConfigError, match="one source"):
        join(source("side").map_batches(same))
    with pytest.raises(ConfigError, match="one source"):
        join(merge(source("a"), source("b")))


def test_a_stage_has_only_the_options_of_its_function() -> None:
    assert as_it_is.configured(option=3).options == {"option": 3}
    with pytest.raises(ConfigError, match="no option 'other'"):
        as_it_is.configured(other=1)


def test_a_stage_that_lacks_an_option_is_refused_where_it_is_put_in() -> None:
    @stage
    async def every(
        batches: AsyncIterator[Batch[int]], *, nth: int, first: int = 0
    ) -> AsyncGenerator[Batch[int], None]:
        async for batch in batches:
            yield batch.derive(batch.rows[first::nth])

    with pytest.raises(ConfigError, match=r"every\.configured\(nth=\.\.\.\)"):
        source().through(every)
    assert source().through(every.configured(nth=2)).steps


def test_a_stream_is_immutable_and_may_be_shared() -> None:
    base = source()
    first, second = base.map(plus_one), base.filter(bool)
    assert len(base.steps) == 0
    assert len(first.steps) == len(second.steps) == 1
    assert (base | as_it_is).flow_name == "numbers"
    assert isinstance(base | MemorySink[int](), Flow)


def test_an_upsert_needs_a_key_and_only_an_upsert_takes_one() -> None:
    with pytest.raises(ConfigError, match="key="):
        MemorySink[int](mode="upsert")
    with pytest.raises(ConfigError, match="options of upsert"):
        MemorySink[int](mode="append", key=("id",))


@pytest.mark.parametrize(
    "make",
    [
        lambda: source().named(3),  # type: ignore[arg-type]
        lambda: merge([source(), source()]),  # type: ignore[arg-type]
        lambda: source().map_batches(same, concurrency="8"),  # type: ignore[arg-type]
        lambda: source().map_batches(same, retry=3),  # type: ignore[arg-type]
        lambda: source().lookup([1], side_key=str, key=str, combine=max),  # type: ignore[arg-type]
        lambda: source().lookup(source(), side_key="id", key=str, combine=max),  # type: ignore[arg-type]
        lambda: Database("sqlite:///a.db").table("t").where(3),  # type: ignore[arg-type]
        lambda: Database("postgresql://h/a").table("t", cursor="c", settle=30),  # type: ignore[call-overload]
    ],
)
def test_arguments_of_another_type_are_refused_when_they_are_given(
    make: Callable[[], object],
) -> None:
    with pytest.raises(ConfigError):
        make()
