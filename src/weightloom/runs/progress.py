"""Progress of a run on stderr: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from weightloom.progress import in_notebook as _in_notebook

BAR_EVERY_S = 0.1
"""Seconds between updates of a bar."""


class TrainingProgress:
    """Progress of a training: loss, speed and time left, as a bar on a terminal or as lines.

    Used as a context manager.

    Args:
        steps: Steps of the run.
        done: Steps done before, if the run is resumed.
        quiet: Print no output.
        every_s: Seconds between plain lines.
    """

    def __init__(
        self, steps: int, done: int = 0, quiet: bool = False, every_s: float = 10.0
    ) -> None:
        self.steps, self.done, self.quiet, self.every_s = steps, done, quiet, every_s
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.start_s = self.last_s = time.monotonic()
        self.first = done
        self.note = ""

    def __enter__(self) -> "TrainingProgress":
        if not self.quiet and (sys.stderr.isatty() or _in_notebook(self.console)):
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[facts]}"),
                console=self.console,
            )
            self.bar.start()
            self.task = self.bar.add_task(
                "training", total=self.steps, completed=self.done, facts=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()

    def step(self, step: int, loss: float) -> None:
        """Show that ``step`` steps are done, with the last loss."""
        if self.quiet:
            return
        now = time.monotonic()
        if now - self.last_s < (BAR_EVERY_S if self.bar else self.every_s) and step < self.steps:
            return
        self.last_s = now
        speed = (step - self.first) / max(now - self.start_s, 1e-9)
        facts = f"loss {loss:.4g}  {speed:.1f} steps/s{self.note}"
        if self.bar:
            self.bar.update(self.task, completed=step, facts=facts)
        else:
            left = (self.steps - step) / max(speed, 1e-9)
            print(
                f"step {step}/{self.steps}  {facts}  {left:.0f} s left", file=sys.stderr, flush=True
            )

    def evaluated(self, name: str, value: float) -> None:
        """Show a validation score next to the loss from now on."""
        self.note = f"  validation {name} {value:.4g}"

    def say(self, text: str) -> None:
        """Print a line above the bar, unless the progress is quiet."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
