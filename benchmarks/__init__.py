"""Benchmarks of the library, run from the root of a clone.

Scripts, `benchmarks.race`, and the records that both write.
"""
