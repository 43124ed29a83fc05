"""Progress of long preparations on stderr: a bar on a terminal, plain lines elsewhere.

In:   a label, a number of items, and the count of those done.
Out:  a moving bar, or a line every few seconds.

Independent of torch and of runs; the progress of a training is `weightloom.runs.progress`.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def in_notebook(console: Console) -> bool:
    """Return True in Jupyter with the widgets of a moving bar; elsewhere lines are plain."""
    return console.is_jupyter and find_spec("ipywidgets") is not None


@contextmanager
def counting(label: str, total: int, every_s: float = 10.0) -> Iterator[Callable[[int], None]]:
    """Show the share of items that are done.

    Args:
        label: Name of the work, such as ``"encoding sentences"``.
        total: Number of items.
        every_s: Seconds between plain lines.

    Yields:
        A function of the number of items done so far; call it after each batch.

    Example:
        >>> with counting("encoding sentences", 512) as show:
        ...     for done in (256, 512):
        ...         show(done)
    """
    console = Console(stderr=True)
    if not (sys.stderr.isatty() or in_notebook(console)):
        yield _lines(label, total, every_s)
        return
    columns = (TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.update(task, completed=done)


def _lines(label: str, total: int, every_s: float) -> Callable[[int], None]:
    """Return a function that prints a line when ``every_s`` seconds have passed since the last."""
    start_s = last_s = time.monotonic()

    def show(done: int) -> None:
        nonlocal last_s
        now = time.monotonic()
        if now - last_s < every_s and done < total:
            return
        last_s = now
        left_s = (total - done) * (now - start_s) / max(done, 1)
        print(f"{label} {done:,}/{total:,}  {left_s:.0f} s left", file=sys.stderr, flush=True)

    return show
