"""How long a contender takes, how much CPU and how much memory: each in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from tests.benchmarks.work import Contender, Place, Work

ROOT = Path(__file__).resolve().parents[2]
TIME_LIMIT_S = 1800


class ContenderFailedError(Exception):
    """A contender ended with an error; the message has the end of what it printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What one run of a contender took.

    Attributes:
        wall_s: From the first connection to the last; imports do not count.
        cpu_s: User and system time of the client, with the programs that it started.
        peak_mib: Peak resident memory of the client, Python and imports included; None where
            other programs did the work.
    """

    wall_s: float
    cpu_s: float
    peak_mib: float | None


def measure_apart(work: str, contender: Contender, place: Place) -> Measure:
    """Run a contender in a new Python.

    Raises:
        ContenderFailedError: It failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.alone", work, contender.name],
        input=json.dumps(asdict(place)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=TIME_LIMIT_S,
    )
    if done.returncode != 0:
        raise ContenderFailedError(f"{work}, {contender.name!r}: {done.stderr[-1500:]}")
    return Measure(**json.loads(done.stdout.splitlines()[-1]))


def measure_here(work: Work, contender: Contender, place: Place) -> Measure:
    """Run a contender in this process, which does nothing else."""
    cpu, start = _cpu_s(), perf_counter()
    result = contender.run(place)
    wall, used = perf_counter() - start, _cpu_s() - cpu
    peak = None if contender.needs else _peak_mib()
    work.check(result)
    return Measure(wall_s=wall, cpu_s=used, peak_mib=peak)


def middle(measures: list[Measure]) -> Measure:
    """The medians; of the memory the highest."""

    def each(figure: Callable[[Measure], float]) -> float:
        return median(map(figure, measures))

    peaks = [one.peak_mib for one in measures if one.peak_mib is not None]
    return Measure(
        wall_s=each(lambda one: one.wall_s),
        cpu_s=each(lambda one: one.cpu_s),
        peak_mib=max(peaks) if peaks else None,
    )


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _peak_mib() -> float:
    try:
        # Not ru_maxrss: on Linux a process inherits that of the process that started it.
        status = Path("/proc/self/status").read_text()
    except OSError:
        unit = 1024**2 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return next(
        int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM:")
    )
