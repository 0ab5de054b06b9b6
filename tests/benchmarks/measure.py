"""How long a contender takes, how much CPU and how much memory: each in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from tests.benchmarks.server import server_cpu_s
from tests.benchmarks.work import Contender, Place, Work

ROOT = Path(__file__).resolve().parents[2]
TIME_LIMIT_S = 1800
_LOOK_S = 0.02


class ContenderFailedError(Exception):
    """A contender ended with an error; the message has the end of what it printed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What one run of a contender took.

    Attributes:
        wall_s: From the first connection to the last; imports do not count.
        cpu_s: User and system time of the client, with the programs that it started.
        server_s: The same of the PostgreSQL server, everything that went on in it included; 0 where
            it is not on this machine.
        peak_mib: Peak resident memory of the client, Python and imports included, and of the
            processes that it starts: the most that all of them had together, looked at often.
            Where other programs do the work: of those alone.
    """

    wall_s: float
    cpu_s: float
    server_s: float
    peak_mib: float


def measure_apart(work: str, contenders: Sequence[Contender], place: Place) -> list[Measure]:
    """Run contenders one after the other in a new Python.

    Raises:
        ContenderFailedError: One failed.
    """
    names = [one.name for one in contenders]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.alone", work, *names],
        input=json.dumps(asdict(place)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=TIME_LIMIT_S,
    )
    if done.returncode != 0:
        raise ContenderFailedError(f"{work}, {', '.join(set(names))}: {done.stderr[-1500:]}")
    lines = done.stdout.splitlines()[-len(names) :]
    return [Measure(**json.loads(line)) for line in lines]


def measure_here(work: Work, contender: Contender, place: Place) -> Measure:
    """Run a contender in this process, which does nothing else meanwhile."""
    at_first = server_cpu_s(place.target)
    # A short one starts no programs, and would feel the thread that looks for them.
    watched = nullcontext(list[float]()) if work.is_short else _children_watched()
    with watched as peaks:
        cpu, start = _cpu_s(), perf_counter()
        result = contender.run(place)
        wall, used = perf_counter() - start, _cpu_s() - cpu
    served = server_cpu_s(place.target) - at_first
    peak = max(peaks, default=0.0) + (0.0 if contender.needs else _peak_mib())
    work.check(result)
    return Measure(wall_s=wall, cpu_s=used, server_s=served, peak_mib=peak)


def middle(measures: list[Measure]) -> Measure:
    """The medians; of the memory the highest."""

    def each(figure: Callable[[Measure], float]) -> float:
        return median(map(figure, measures))

    return Measure(
        wall_s=each(lambda one: one.wall_s),
        cpu_s=each(lambda one: one.cpu_s),
        server_s=each(lambda one: one.server_s),
        peak_mib=max(one.peak_mib for one in measures),
    )


@contextmanager
def _children_watched() -> Generator[list[float], None, None]:
    """Fills a list with the resident memory of all descendants, in MiB, while it goes on.

    It looks fifty times a second, which takes about a thousandth of a core.
    """
    found: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_LOOK_S):
            found.append(sum(map(_resident_mib, _descendants(os.getpid()))))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


def _descendants(pid: int) -> Iterator[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return
    for child in map(int, text.split()):
        yield child
        yield from _descendants(child)


def _resident_mib(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:  # it has ended
        return 0.0
    return pages * resource.getpagesize() / 1024**2


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
