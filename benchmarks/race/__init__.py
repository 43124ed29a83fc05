"""Time a step, beside other ways to do the same, in one process.

In:   ``python -m benchmarks.race core``, against the plain ways to do the same; or
      ``python -m benchmarks.race peers``, against other libraries for hypernetworks and adapters.
      `config` has the options of both.
Out:  tables on the terminal, a record of all numbers.
Knows nothing of how well anything learns.
"""
