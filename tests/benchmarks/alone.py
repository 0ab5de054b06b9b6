"""A process for contenders: ``python -m tests.benchmarks.alone WORK CONTENDER ... < place``.

They run once each, in the order in which they are named; a line for each says what it took.
"""

from __future__ import annotations

import gc
import json
import sys
from dataclasses import asdict

from tests.benchmarks.catalogue import load
from tests.benchmarks.measure import measure_here
from tests.benchmarks.work import Place


def main() -> None:
    name, *wanted = sys.argv[1:]
    place = Place(**json.load(sys.stdin))
    work = load(name)
    contenders = {one.name: one for one in work.contenders}
    for one in wanted:
        print(json.dumps(asdict(measure_here(work, contenders[one], place))))
        gc.collect()  # what one has left is not to be the next one's work


if __name__ == "__main__":
    main()
