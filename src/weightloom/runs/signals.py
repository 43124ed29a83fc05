"""Signals that end a run, collected so that the step and its checkpoint are finished first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from weightloom.platforms import ending_signals

SIGNALS = ending_signals()
"""Signals that end a run."""


@contextmanager
def collected_signals() -> Iterator[list[signal.Signals]]:
    """Collect signals that end a run in a list; a second one raises `KeyboardInterrupt`.

    Outside the main thread, signals cannot be handled and the list stays empty.
    """
    caught: list[signal.Signals] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number))

    try:
        old = {number: signal.signal(number, handle) for number in SIGNALS}
    except ValueError:  # not in the main thread
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
