"""Signals that end a run: collected, so that a step is finished and its checkpoint written first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from weightloom.platforms import ending_signals

SIGNALS = ending_signals()
"""Those that end a run."""


@contextmanager
def collected_signals() -> Iterator[list[signal.Signals]]:
    """Collect Ctrl-C and SIGTERM instead of dying; a second Ctrl-C does what it always did."""
    caught: list[signal.Signals] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number))

    try:
        old = {number: signal.signal(number, handle) for number in SIGNALS}
    except ValueError:  # not in the main thread: whoever runs us handles signals
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
