"""Findings of `weightloom.diagnostics.generating.generating_pays`, with a verdict."""

from collections.abc import Sequence
from dataclasses import dataclass

from weightloom.diagnostics.table import Tabled
from weightloom.diagnostics.use import Arm
from weightloom.runs.words import time_text


@dataclass(frozen=True)
class GeneratingRow:
    """Loss of one arm over test tasks, averaged over seeds, and its size and cost."""

    name: str
    loss: Arm
    parameters: int
    """Trained numbers, including those of the encoder."""
    outer_lr: float | None = None
    """Learning rate with the lowest loss on validation tasks; None: not trained."""
    steps: int = 0
    """Training steps of each run."""
    cpu_time_s: float = 0.0
    """Processor time of one run, averaged over seeds."""


@dataclass(frozen=True)
class GeneratingPays(Tabled):
    """Losses of a code as weights, as input, and of controls; printed as a table and a sentence."""

    weights: GeneratingRow
    """Hypernetwork: the code of a task generates the parameters of the base."""
    input: GeneratingRow
    """Plain network that reads each input concatenated with the code."""
    shared: GeneratingRow
    """The base, trained on all tasks, without a code."""
    untrained: GeneratingRow
    """The hypernetwork at its start."""
    shuffled: GeneratingRow
    """The trained hypernetwork, each task with the code of another."""
    lead: Arm
    """Input less weights, task by task; positive if generating is ahead."""
    gain: Arm
    """Shared less the better of weights and input, task by task."""
    cost_of_shuffling: Arm
    """Shuffled less weights, task by task."""
    lead_per_seed: tuple[float, ...]
    tasks: int
    margin: float
    """Share of the gain that the lead must exceed."""

    @property
    def ahead(self) -> str:
        """``"weights"``, ``"input"``, ``"level"``; ``"shared"`` if no code helps.

        An arm is ahead if the interval of the paired difference excludes zero, the difference has
        the same sign in every seed, and it exceeds ``margin`` of the gain.
        """
        if self.gain.mean <= self.gain.ci95:
            return "shared"
        lead = self.lead
        is_clear = abs(lead.mean) > max(lead.ci95, self.margin * self.gain.mean)
        if not is_clear or any(seed * lead.mean <= 0 for seed in self.lead_per_seed):
            return "level"
        return "weights" if lead.mean > 0 else "input"

    @property
    def pays(self) -> bool:
        """True if generating is ahead and another task's code is worse."""
        return self.ahead == "weights" and self.cost_of_shuffling.mean > self.cost_of_shuffling.ci95

    @property
    def verdict(self) -> str:
        """The finding in a sentence."""
        lead, seeds = self.lead, len(self.lead_per_seed)
        over = f"paired over {self.tasks} tasks, with the same sign in {seeds} of {seeds} seeds"
        if self.pays:
            return f"Generating pays: the loss of the code as input is higher by {lead}, {over}."
        if self.ahead == "weights":
            return (
                "Generating is ahead, but its code is not used: with another task's code the loss "
                f"changes by {self.cost_of_shuffling}."
            )
        if self.ahead == "input":
            other = Arm(-lead.mean, lead.ci95)
            return (
                "Generating does not pay: the loss of the code as weights is higher by "
                f"{other}, {over}."
            )
        if self.ahead == "shared":
            return (
                "No code helps: neither arm is ahead of one shared network. The tasks do not "
                "differ, the encoder does not see it, or the time was too short."
            )
        return (
            f"Generating does not pay: weights and input are level, {lead} apart, where a code "
            f"gains {self.gain} over one shared network."
        )

    def cells(self) -> list[Sequence[str]]:
        """Return the rows of the table, its heading first."""
        head = ("arm", f"loss over {self.tasks} tasks", "parameters", "rate", "steps", "time")
        arms = (self.weights, self.input, self.shared, self.untrained, self.shuffled)
        rows: list[Sequence[str]] = [head]
        for row in arms:
            trained = ("", "", "")
            if row.outer_lr is not None:
                trained = (f"{row.outer_lr:g}", f"{row.steps:,}", time_text(row.cpu_time_s))
            rows.append((row.name, str(row.loss), f"{row.parameters:,}", *trained))
        return rows
