"""Families of time series under a frozen forecasting model, `weightloom transfer --data series`.

In:   the config.
Out:  methods, their training, quantiles for every family, losses relative to the source model's.
Knows nothing of tables and reports.
"""

import time
from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from weightloom.apps.transfer.problems.problem import Condition, Outputs, Setting, TransferProblem
from weightloom.apps.transfer.problems.series.methods import (
    Blend,
    Changed,
    Forecaster,
    GeneratedWeights,
    Given,
    Plain,
    SharedHead,
    Tuned,
)
from weightloom.apps.transfer.problems.series.pool import (
    CANDIDATES,
    LEAST,
    WINDOWS,
    Pool,
    condition_of,
    load_pool,
    losses,
)
from weightloom.apps.transfer.training import fit
from weightloom.tasks.series import HORIZON, QUERIES, SUPPORTS, folds

if TYPE_CHECKING:
    from weightloom.apps.app import Training
    from weightloom.apps.transfer.config import TransferOptions
    from weightloom.training import History

PARTS = 2
"""Parts that the support is divided into: each is forecast by a method that saw the others."""
FEWEST = 6
"""Fewest windows of a condition in training."""
TUNING_STEPS = 20
"""Gradient steps of `finetune` and `lora` on a family."""
TIMED = 5
"""Families whose adaptation is timed."""


class SeriesForecasts(TransferProblem):
    """Families of series: the latest windows of each are forecast, after adapting to earlier ones.

    The families of a source are never split: those of a test family's source are not in training.
    For validation, the windows to be judged on in the end are left out: of those to adapt on, the
    later half is judged.

    Args:
        config: Options of the run; ``split`` is the fold of the sources.
    """

    score: ClassVar[str] = "loss_ratio"
    better: ClassVar = "lower"
    prior: Mapping[str, float] = {"blend": 3.0, "generated-weights": 3.0}
    protocol = (
        "Quantile loss of the last 8 windows of each family relative to that of `fracast`; 16 "
        "earlier windows are known. No family of a test family's source is in training."
    )

    def __init__(self, config: "TransferOptions") -> None:
        self.config = config
        self.all = load_pool()
        train, validation, test = folds(self._together(), config.split)
        self.train_families, self.validation_families = (
            torch.tensor(train),
            torch.tensor(validation),
        )
        chosen = validation if config.validation else test
        self.names = [self.all.names[number] for number in chosen]
        self.families = [self.all.groups[number] for number in chosen]
        self.chosen = torch.tensor(chosen)
        sources = sorted(set(self.families))
        self.notices = [
            f"{len(train)} families to train on, {len(chosen)} to judge, of the sources "
            f"{', '.join(sources)}."
        ]
        everything = self.all.pool.take(self.train_families, torch.arange(WINDOWS))
        conditions = condition_of(everything)
        self.mean, self.deviation = conditions.mean(0), conditions.std(0)

    def _together(self) -> list[str]:
        """Return a name for each family; those of one name are never split."""
        return self.all.groups

    def settings(self) -> list[Setting]:
        """Return the only row group."""
        windows = SUPPORTS // 2 if self.config.validation else SUPPORTS
        return [Setting(f"{windows} windows", windows)]

    def build(self, method: str) -> nn.Module:
        """Build a method."""
        config, known = self.config, (self.mean, self.deviation)
        if method in CANDIDATES:
            return Plain(method)
        if method == "generated":
            return Changed(*known, config.rank, config.width)
        if method == "shared":
            return Changed(*known, config.rank, 0)
        if method in {"finetune", "lora"}:
            rank = config.rank if method == "lora" else 0
            return Tuned(rank, config.rate_of(method), TUNING_STEPS)
        if method == "generated-weights":
            return GeneratedWeights(*known, config.width)
        return Blend() if method == "blend" else SharedHead()

    def train(
        self, model: nn.Module, config: "TransferOptions", training: "Training[nn.Module]"
    ) -> "History":
        """Train a method on families drawn at random, each with a random part of its windows known.

        Raises:
            NonFiniteError: If a loss or gradient is not finite.
        """
        assert isinstance(model, Forecaster)

        def draw(step: int, generator: torch.Generator) -> Given:
            picks = torch.randint(len(self.train_families), (config.tasks,), generator=generator)
            order = torch.rand(config.tasks, WINDOWS, generator=generator).argsort(1)
            known = int(torch.randint(FEWEST, SUPPORTS + 1, (), generator=generator))
            families = self.train_families[picks]
            support = self.all.pool.take(families, order[:, :known])
            query = self.all.pool.take(families, order[:, -QUERIES:])
            return Given(condition_of(support), support, query)

        def score() -> float:
            numbers = self.validation_families
            support, query = self._windows(numbers, True)
            with torch.no_grad():
                found = model.predict(model.adapt(condition_of(support), support), query)
            return _ratios(found, query).mean().item()

        return fit(model, draw, config, training, score=score, score_name="loss ratio")

    @torch.no_grad()
    def outputs(self, model: nn.Module, setting: Setting, condition: Condition = "own") -> Outputs:
        """Forecast the judged windows of every family, and each known one from the others."""
        assert isinstance(model, Forecaster)
        support, query = self._windows(self.chosen, self.config.validation)
        read = self._condition(support, condition)
        state = model.adapt(read, support)
        found = model.predict(state, query).flatten(1, 2)
        if condition != "own":
            return Outputs(found, None, 0.0, {})
        held = self._held_out(model, support).flatten(1, 2)
        return Outputs(found, held, _adapt_time_s(model, support), model.change(state))

    def scores(self, setting: Setting, query: Tensor) -> dict[str, Tensor]:
        """Return the loss relative to the source's, the loss, and the share in 80 % intervals."""
        _, windows = self._windows(self.chosen, self.config.validation)
        found = _by_window(query)
        inside = (found[..., 0] <= windows.y) & (windows.y <= found[..., -1]) & windows.there
        return {
            self.score: _ratios(found, windows),
            "loss": losses(found, windows.y, windows.there).mean(1),
            "coverage of 80 %": inside.sum((1, 2)) / windows.there.sum((1, 2)),
        }

    def support_loss(self, setting: Setting, support: Tensor) -> Tensor:
        """Return the quantile loss of each known window, (families, windows)."""
        windows, _ = self._windows(self.chosen, self.config.validation)
        return losses(_by_window(support), windows.y, windows.there)

    def facts(self) -> dict[str, Any]:
        """Return the test families and their sources."""
        return {"targets": list(self.names), "sources": list(self.families)}

    def _windows(self, families: Tensor, validation: bool) -> tuple[Pool, Pool]:
        """Return the windows to adapt on and those to be judged on."""
        support = torch.arange(SUPPORTS)
        query = torch.arange(SUPPORTS, WINDOWS)
        if validation:
            query, support = support.chunk(2)
        return self.all.pool.take(families, support), self.all.pool.take(families, query)

    def _condition(self, support: Pool, condition: Condition) -> Tensor:
        own = condition_of(support)
        if condition == "mean":
            return self.mean.expand_as(own)
        return own.roll(len(own) // 2, 0) if condition == "shuffled" else own

    def _held_out(self, model: Forecaster, support: Pool) -> Tensor:
        """Forecast each known window with a method that was adapted without its part."""
        windows = torch.arange(support.y.shape[1])
        everyone = torch.arange(len(support.y))
        if not (model.alone or model.reads):
            return model.predict(model.adapt(condition_of(support), support), support)
        parts: list[Tensor] = []
        for part in windows.chunk(PARTS):
            others = support.take(everyone, windows[~torch.isin(windows, part)])
            state = model.adapt(condition_of(others), others)
            parts.append(model.predict(state, support.take(everyone, part)))
        return torch.cat(parts, 1)


class KnownSources(SeriesForecasts):
    """The same with other families of a test family's source in training.

    Args:
        config: Options of the run; ``split`` is the fold of the families.
    """

    protocol = (
        "Quantile loss of the last 8 windows of each family relative to that of `fracast`; 16 "
        "earlier windows are known. Other families of a test family's source are in training."
    )

    def _together(self) -> list[str]:
        return self.all.names


def _by_window(outputs: Tensor) -> Tensor:
    """Divide the examples of `Outputs` into windows and steps."""
    return outputs.unflatten(1, (-1, HORIZON))


def _ratios(found: Tensor, windows: Pool) -> Tensor:
    """Return each family's loss relative to the source model's, (families,)."""
    ours = losses(found, windows.y, windows.there).mean(1)
    source = losses(windows.candidates[:, :, 0], windows.y, windows.there).mean(1)
    return ours.clamp_min(LEAST) / source.clamp_min(LEAST)


def _adapt_time_s(model: Forecaster, support: Pool) -> float:
    """Return the median time to describe a family and adapt to it alone, in seconds."""
    times: list[float] = []
    for number in range(min(TIMED, len(support.y))):
        one = Pool(*(its[number : number + 1] for its in support))
        started_s = time.perf_counter()
        model.adapt(condition_of(one), one)
        times.append(time.perf_counter() - started_s)
    return median(times)
