"""What authors of pipelines and connectors test with: memory, ``run_stage``, a broken network."""

from etl.testing.chaos import ChaosProxy
from etl.testing.memory import CountingSource, MemorySink, MemorySource, MemoryTarget
from etl.testing.stage import run_stage

__all__ = [
    "ChaosProxy",
    "CountingSource",
    "MemorySink",
    "MemorySource",
    "MemoryTarget",
    "run_stage",
]
