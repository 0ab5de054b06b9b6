"""Benchmarks: etl beside what a good programmer writes by hand, on the same work in one run.

``python -m tests.benchmarks`` runs all of them, ``python -m tests.benchmarks engine`` one. pytest
does not collect them: a wall time is no test on a machine that others share. What counts is the
ratio between two contenders of one run. Each contender has a process of its own, and each result
is compared with what SQL makes of the same rows before its time counts.
"""
