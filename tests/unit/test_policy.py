"""Limits, sizes and retries: values that are checked when they are made."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl import ConfigError, DeadLetter, Limits, Retry
from etl.engine.retry import Attempts
from etl.policy import MIB, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("256MiB", 256 * MIB),
        ("256 mib", 256 * MIB),
        ("1g", 1024 * MIB),
        ("64MB", 64_000_000),
        ("1.5k", 1536),
        ("77", 77),
        (77, 77),
        (" 8 B ", 8),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MiB", "-1", "1TiB", "1 2", "0", 0, -5, "many", "1e3"])
def test_what_is_not_a_size_is_refused(text: str | int) -> None:
    with pytest.raises(ConfigError):
        parse_size(text)


def test_limits_know_their_bytes() -> None:
    limits = Limits(memory="8MiB", batch_bytes=1000)
    assert (limits.memory_bytes, limits.batch_nbytes) == (8 * MIB, 1000)


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory": "lots"},
        {"batch_bytes": 0},
        {"batch_rows": 0},
        {"channel_batches": 0},
        {"group_rows": -1},
        {"drain_s": -0.1},
        {"memory": 1.5},
        {"memory": True},
        {"memory": "9" * 400},
        {"batch_rows": "10"},
        {"lanes": 1.5},
        {"lanes": True},
        {"drain_s": None},
        {"stall_after_s": "60"},
        {"abort_grace_s": float("nan")},
    ],
)
def test_wrong_limits_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Limits(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"base_s": -1},
        {"cap_s": -1},
        {"total_s": -1},
        {"attempts": "3"},
        {"attempts": 2.5},
        {"base_s": float("nan")},
        {"total_s": None},
    ],
)
def test_a_wrong_retry_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Retry(**wrong)


@pytest.mark.parametrize("wrong", [{"max_rows": None}, {"max_share": "0.1"}, {"window_rows": 1.5}])
def test_a_wrong_dead_letter_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        DeadLetter(**wrong)


@given(
    attempts=st.integers(1, 20),
    base_s=st.floats(0, 10),
    cap_s=st.floats(0, 10),
)
def test_waits_are_bounded_and_so_is_their_number(
    attempts: int, base_s: float, cap_s: float
) -> None:
    tries = Attempts(Retry(attempts=attempts, base_s=base_s, cap_s=cap_s, total_s=1e9))
    waits: list[float] = []
    while (wait_s := tries.next_wait_s()) is not None:
        waits.append(wait_s)
    assert len(waits) == attempts - 1  # the first try counts
    for number, wait_s in enumerate(waits, start=1):
        assert 0 <= wait_s <= min(cap_s, base_s * 2**number)


def test_thousands_of_tries_do_not_overflow() -> None:
    tries = Attempts(Retry(attempts=3000, base_s=0.1, cap_s=0.0))
    for _ in range(2999):
        assert tries.next_wait_s() == 0.0
    assert tries.next_wait_s() is None


def test_no_try_after_the_total_time() -> None:
    tries = Attempts(Retry(attempts=100, base_s=0.0, total_s=0.0))
    tries.next_wait_s()  # the clock may stand still between two looks at it
    assert Attempts(Retry(attempts=100, base_s=1e9, cap_s=1e9, total_s=0.0)).next_wait_s() is None


def test_success_starts_the_count_again() -> None:
    tries = Attempts(Retry(attempts=2, base_s=0.0))
    assert tries.next_wait_s() is not None
    tries.succeeded()
    assert tries.failed == 0
    assert tries.next_wait_s() is not None
    assert tries.next_wait_s() is None
