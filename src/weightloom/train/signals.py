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


def agreed(fabric: Processes, well: bool, caught: list[signal.Signals]) -> tuple[bool, signal.Signals | None]:
    """Say whether all is well with every process, and which signal any of them has caught: one exchange a step.

    So none waits for one that gave up, and all stop after the same step.
    """
    bad, number = float(not well), float(caught[0]) if caught else 0.0
    if fabric.world_size > 1:
        bad, number = fabric.all_reduce(torch.tensor([bad, number]), reduce_op="max").tolist()
    return not bad, signal.Signals(int(number)) if number else None
