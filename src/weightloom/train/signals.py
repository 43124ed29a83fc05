"""Signals that end a run: collected, so that a step is finished and its checkpoint written first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from weightloom.train.processes import Processes


@contextmanager
def collected_signals() -> Iterator[list[signal.Signals]]:
    """Collect Ctrl-C and SIGTERM instead of dying; a second Ctrl-C does what it always did."""
    caught: list[signal.Signals] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(signal.Signals(number))

    try:
        old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever runs us handles signals
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def agreed_signal(fabric: Processes, caught: list[signal.Signals]) -> signal.Signals | None:
    """Return the signal that any process caught, so that all stop after the same step."""
    own = int(caught[0]) if caught else 0
    if fabric.world_size > 1:
        worst = fabric.all_reduce(torch.tensor(own), reduce_op="max")
        own = int(worst)
    return signal.Signals(own) if own else None


def agreed(fabric: Processes, well: bool) -> bool:
    """Say whether all is well with every process, so that none waits for one that gave up."""
    if fabric.world_size > 1:
        well = bool(fabric.all_reduce(torch.tensor(float(well)), reduce_op="min"))
    return well
