"""Policies that a pipeline states: limits, retries, bad rows. Values only, checked when made."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import isnan
from numbers import Integral, Real
from typing import Literal, TypeAlias

from etl.errors import ConfigError

KIB = 1024
MIB = 1024 * KIB
_MEMORY = 64 * MIB
WORKER_BYTES = 40 * MIB
"""What a worker process takes for itself, before it holds a row."""
COPIES_OF_A_ROW = 3
"""How often a row may exist at once: as it is read, as it is written, in a driver's buffers."""

_DIGITS = 30
"""Of a size; a float has no room for several hundred of them."""

_UNITS = {
    "b": 1,
    "k": KIB, "kb": 1000, "kib": KIB,
    "m": MIB, "mb": 1000**2, "mib": MIB,
    "g": 1024 * MIB, "gb": 1000**3, "gib": 1024 * MIB,
}  # fmt: skip


def parse_size(text: str | int) -> int:
    """Bytes from ``256MiB``, ``64MB``, ``1g`` or a plain number of bytes.

    Raises:
        ConfigError: Not a size.
    """
    if isinstance(text, bool) or not isinstance(text, str | int):
        raise ConfigError(f"{text!r} is not a size; write for example 256MiB")
    if isinstance(text, int):
        size = text
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
        unit = _UNITS.get((match[2] or "b").lower()) if match else None
        if match is None or unit is None or len(match[1]) > _DIGITS:
            raise ConfigError(f"{text!r} is not a size; write for example 256MiB")
        size = int(float(match[1]) * unit)
    if size <= 0:
        raise ConfigError(f"a size must be positive, not {text!r}")
    return size


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one run.

    Attributes:
        memory: Bytes that rows in flight may take, over all flows; divided over the channels. A
            row that does not fit into it three times fails the run. None: 64 MiB, and such a row
            goes through alone.
        batch_rows: Most rows of a batch.
        batch_bytes: A batch is cut when its rows reach this size; one row may exceed it.
        channel_batches: Most batches that wait in a channel.
        group_rows: Most rows of one transaction.
        flows: How many flows of the pipeline go on at once; each has connections and a share of the
            memory while it does. The others wait for their turn, in the pipeline's order.
        lanes: How many key ranges of a full read are read and written at once, where the flow
            allows it; ``etl plan`` says where not, and why.
        processes: In how many worker processes that is done for a flow with functions, one key
            range at a time in each, so that they use as many processor cores; ``etl plan`` says
            where not, and why. With a ``memory``, each counts as 40 MiB of it.
        drain_s: Seconds that a drain may take before it becomes an abort.
        abort_grace_s: Seconds that a stage or source may go on after it was cancelled; then it is
            left behind and the run ends with an error that names it. As long is the answer to a
            COMMIT waited for; then the run ends and says that the outcome is not known.
        stall_after_s: Seconds without any movement after which a note says who holds the run up.
    """

    memory: str | int | None = None
    batch_rows: int = 10_000
    batch_bytes: str | int = "256KiB"
    channel_batches: int = 16
    group_rows: int = 200_000
    flows: int = 6
    lanes: int = 1
    processes: int = 1
    drain_s: float = 25.0
    abort_grace_s: float = 5.0
    stall_after_s: float = 60.0
    memory_bytes: int = field(init=False)
    batch_nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        memory = _MEMORY if self.memory is None else parse_size(self.memory)
        object.__setattr__(self, "memory_bytes", memory)
        object.__setattr__(self, "batch_nbytes", parse_size(self.batch_bytes))
        for name in ("batch_rows", "channel_batches", "group_rows", "flows", "lanes", "processes"):
            if _whole(self, name) < 1:
                raise ConfigError(f"Limits({name}=...) must be at least 1")
        for name in ("stall_after_s", "abort_grace_s"):
            if _number(self, name) <= 0:
                raise ConfigError(f"Limits({name}=...) must be positive")
        if _number(self, "drain_s") < 0:
            raise ConfigError("Limits(drain_s=...) must not be negative")

    @property
    def row_bytes(self) -> int:
        """The largest row that a run with these limits moves."""
        if self.memory is None:
            return 1 << 62
        # Each worker process may hold such a row at the same time.
        return max(0, self.rows_bytes) // (COPIES_OF_A_ROW * self.processes)

    @property
    def workers_bytes(self) -> int:
        """What the worker processes take of a memory limit for themselves."""
        return (
            WORKER_BYTES * self.processes if self.memory is not None and self.processes > 1 else 0
        )

    @property
    def rows_bytes(self) -> int:
        """What is left for rows in flight; not positive where the worker processes take it all."""
        return self.memory_bytes - self.workers_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often a passing failure is tried again, with full jitter.

    The n-th wait is a random number of seconds between 0 and ``min(cap_s, base_s * 2**n)``.
    Source: Marc Brooker, "Exponential Backoff And Jitter" (2015).

    Attributes:
        attempts: Most tries, the first included.
        base_s: Scale of the waits.
        cap_s: Longest wait.
        total_s: No further try once this much time has gone by since the first.
    """

    attempts: int = 5
    base_s: float = 0.2
    cap_s: float = 10.0
    total_s: float = 60.0

    def __post_init__(self) -> None:
        if _whole(self, "attempts") < 1:
            raise ConfigError("Retry(attempts=...) counts the first try too; it is at least 1")
        if min(_number(self, name) for name in ("base_s", "cap_s", "total_s")) < 0:
            raise ConfigError("Retry: times must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """Bad rows go into the table ``etl_reject`` of the target, and the run goes on.

    The bounds are those of one flow in one run: a feed that is wholly broken ends the run. Of
    ``max_share`` nothing is judged before ``max_share_from`` rows were refused, so that one bad row
    among the first ten does not end it.

    Attributes:
        max_rows: Most rows that may be refused.
        max_share: Most of the last ``window_rows`` rows that may be refused, as a part of 1.
        window_rows: How many rows ``max_share`` looks back at.
    """

    max_rows: int = 10_000
    max_share: float = 0.1
    window_rows: int = 10_000
    max_share_from: int = 100

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_share_from"):
            if _whole(self, name) < 0:
                raise ConfigError(f"DeadLetter({name}=...) must not be negative")
        if _whole(self, "window_rows") < 1:
            raise ConfigError("DeadLetter(window_rows=...) must be at least 1")
        if not 0 <= _number(self, "max_share") <= 1:
            raise ConfigError(
                "DeadLetter(max_share=...) is a part of 1; 0.1 is a tenth of the rows"
            )


OnError: TypeAlias = Literal["fail", "skip"] | DeadLetter
"""What becomes of a bad row: it ends the run, or is counted and left out, or is kept.

``"skip"`` has the bounds of ``DeadLetter()``.
"""


def check_policies(
    where: str, *, limits: object = None, retry: object = None, on_error: object = None
) -> None:
    """Refuse what is no policy; None is one that was not given.

    Args:
        where: What they were given to, for the message.

    Raises:
        ConfigError: One is of another type.
    """
    if limits is not None and not isinstance(limits, Limits):
        raise ConfigError(
            f"{where}: limits= takes Limits(...), as Limits(memory='128MiB'), not {limits!r}"
        )
    if retry is not None and not isinstance(retry, Retry):
        raise ConfigError(f"{where}: retry= takes Retry(...), as Retry(attempts=3), not {retry!r}")
    if on_error not in (None, "fail", "skip") and not isinstance(on_error, DeadLetter):
        raise ConfigError(
            f'{where}: on_error={on_error!r} is neither "fail", "skip" nor a DeadLetter(...)'
        )


def _whole(policy: object, name: str) -> int:
    value = getattr(policy, name)
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ConfigError(
            f"{type(policy).__name__}({name}=...) takes a whole number, not {value!r}"
        )
    return int(value)


def _number(policy: object, name: str) -> float:
    value = getattr(policy, name)
    if isinstance(value, bool) or not isinstance(value, Real) or isnan(value):
        raise ConfigError(f"{type(policy).__name__}({name}=...) takes a number, not {value!r}")
    return float(value)
