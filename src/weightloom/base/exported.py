"""The run that `torch.export` writes down, for any number of tasks.

In:   a call whose sizes may be symbols.
Out:  its result, of operations that are known for any number of tasks.
Knows nothing of plans: nothing can be tried or timed while a program is written.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from weightloom.base.call import Call, Result
from weightloom.base.engines import run_aligned, run_vmap
from weightloom.base.watch_rows import WatchRows
from weightloom.errors import BatchingError


def run_exported(call: Call) -> Result:
    """Fold the tasks into the batch where every row is seen to be treated by itself.

    Else run under ``vmap``.

    What ``vmap`` makes of convolutions, norms, pooling and embeddings holds for one number of tasks
    only, as torch writes that number into the shapes of its views (torch 2.13). Folded, they are
    those of any batch.
    """
    if call.randomness == "same" or call.chunk_size is not None:
        return run_vmap(call)
    watch = WatchRows()
    try:
        with _modules_left():
            result = run_aligned(call._replace(watch=watch))
    except (BatchingError, RuntimeError, ValueError, TypeError):
        return run_vmap(call)
    return run_vmap(call) if watch.mixes or watch.sizes else result


@contextmanager
def _modules_left() -> Iterator[None]:
    """Leave every module that was entered when an error passed.

    Torch's tracer forgets to (torch 2.13).
    """
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    tracer = getattr(get_proxy_mode(), "tracer", None)
    entered = getattr(tracer, "module_stack", None)
    before = dict(entered or {})
    try:
        yield
    except BaseException:
        if entered is not None:
            entered.clear()
            entered.update(before)
        raise
