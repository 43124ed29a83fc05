"""The run that `torch.export` writes down, for any number of tasks.

In:   a call whose sizes may be symbols.
Out:  its result, of operations that are known for any number of tasks.
Knows nothing of plans: nothing can be tried or timed while a program is written.
"""

from weightloom.base.engines import Call, Result, run_aligned, run_vmap
from weightloom.base.rows import WatchRows
from weightloom.errors import BatchingError


def run_exported(call: Call) -> Result:
    """Fold the tasks into the batch where every row is seen to be treated by itself; else run under ``vmap``.

    What ``vmap`` makes of convolutions, norms, pooling and embeddings holds for one number of tasks only, as torch
    writes that number into the shapes of its views (torch 2.13). Folded, they are those of any batch.
    """
    watch = WatchRows()
    try:
        result = run_aligned(call._replace(watch=watch, chunk_size=None))
    except (BatchingError, RuntimeError, ValueError, TypeError):
        watch.mixes = "an error"
    if watch.mixes or watch.sizes or call.randomness == "same":
        return run_vmap(call)
    return result
