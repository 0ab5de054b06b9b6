"""What authors of pipelines and connectors test with: memory connectors and ``run_stage``."""

from etl.testing.memory import CountingSource, MemorySink, MemorySource, MemoryTarget
from etl.testing.stage import run_stage

__all__ = ["CountingSource", "MemorySink", "MemorySource", "MemoryTarget", "run_stage"]
