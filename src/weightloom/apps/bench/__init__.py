"""Benchmarks: how long a step takes and what it holds, beside other ways to do the same, in one process."""
