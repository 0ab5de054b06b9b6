"""The process of one contender: ``python -m tests.benchmarks.alone WORK CONTENDER < place``."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from tests.benchmarks.catalogue import load
from tests.benchmarks.measure import measure_here
from tests.benchmarks.work import Place


def main() -> None:
    name, wanted = sys.argv[1:]
    place = Place(**json.load(sys.stdin))
    work = load(name)
    contender = next(one for one in work.contenders if one.name == wanted)
    print(json.dumps(asdict(measure_here(work, contender, place))))


if __name__ == "__main__":
    main()
