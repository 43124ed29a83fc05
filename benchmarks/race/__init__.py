"""Step times of weightloom and of other ways to run the same step, in one process.

In:   ``python -m benchmarks.race core``, against plain torch; or
      ``python -m benchmarks.race peers``, against other libraries for hypernetworks and adapters.
      `config` has the options of both.
Out:  tables on the terminal, a record of all numbers.
Independent of the results of learning.
"""
