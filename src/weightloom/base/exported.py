"""Run under `torch.export`, so that the exported program holds for any number of tasks.

In:   a call whose sizes may be symbols.
Out:  its result, computed by operations whose shapes do not fix the number of tasks.
Uses no plan: an export can neither try nor time an engine.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from weightloom.base.call import Call, Result
from weightloom.base.engines import run_aligned, run_vmap
from weightloom.base.watch_rows import WatchRows
from weightloom.errors import BatchingError


def run_exported(call: Call) -> Result:
    """Run folded into the batch if every row is seen to be treated by itself, else under ``vmap``.

    Convolutions, norms, pooling and embeddings exported under ``vmap`` hold for one number of tasks
    only, as torch writes that number into the shapes of its views (torch 2.13). Folded, they hold
    for any batch.
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
    """After an error, restore the module stack of torch's tracer, which forgets to (torch 2.13)."""
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
