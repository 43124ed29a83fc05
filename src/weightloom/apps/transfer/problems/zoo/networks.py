"""The zoo as a transfer problem: sources of digits, and targets that turn or relabel their task."""

import time
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from weightloom.apps.app import Training
from weightloom.apps.transfer.config import TransferOptions
from weightloom.apps.transfer.problems.problem import Condition, Outputs, Setting, TransferProblem
from weightloom.apps.transfer.problems.zoo.data import (
    FAMILIES,
    PIXELS,
    SOURCES,
    TRAINED_FAMILIES,
    WAYS,
    Batch,
    Digits,
    Targets,
    Tasks,
    Zoo,
    by_name,
    change_tasks,
    draw_labels,
    draw_targets,
    hidden_of,
    train_zoo,
)
from weightloom.apps.transfer.problems.zoo.methods import (
    INNER_STEPS,
    METHODS,
    TUNING_RATES,
    USUAL_RATE,
    Generated,
    Maml,
    Method,
    Read,
    Reconstructed,
    change_of,
)
from weightloom.apps.transfer.ranking import closeness, kendall, leep, logme
from weightloom.apps.transfer.recipe import Start, evaluate, fine_tune, tuned_change
from weightloom.apps.transfer.training import fit
from weightloom.base import apply_per_task
from weightloom.hypernets.canonical import canonical
from weightloom.learners.learner import Support
from weightloom.params import Params
from weightloom.runs.record import Better
from weightloom.training import History

SHOTS = (1, 2, 5, 10)
"""Examples per class of a target, in the table and in training."""
STEPS, STEPS_SHOTS = (1, 5, 20, 100), 5
"""Gradient steps on a target in the table, and the examples per class with which they are taken."""
QUERIES = 10
"""Pictures per class by which a target is judged."""
TRAIN_QUERIES = 5
"""The same for a training target."""
FOLDS = 5
"""Maximum number of folds of the labelled examples, each held out once for the check."""
TRAINED, TRAINED_SHOTS, TRAINED_STEPS, TRAINED_RATE = 512, 40, 200, 0.03
"""Trained changes that reconstruction has as targets: number, digits per class, steps and rate."""
MEAN_OVER = 8
"""Training batches over which the mean condition is taken."""
VALIDATED = 48
"""Validation targets that are scored during training."""
TIMED = 3
"""Timed repetitions of adapting to one target, of which the median is kept."""
LEAST = 1e-6
"""Smallest probability of which a logarithm is taken."""
RANKED_TARGETS, RANKED_STEPS = 24, 20
"""Targets for which all sources are ranked, and the gradient steps of true transfer."""


class ZooProblem(TransferProblem):
    """Zoo of source networks of digits, and targets that turn and relabel the task of a source.

    Args:
        config: Resolved options.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
    """

    score: ClassVar[str] = "accuracy"
    better: ClassVar[Better] = "higher"

    def __init__(self, config: TransferOptions) -> None:
        self.config, self.rank, self.width = config, config.rank, config.width
        self.digits = Digits(config.split)
        self.zoos = {
            part: train_zoo(self.digits, SOURCES[part], seed) for seed, part in enumerate(SOURCES)
        }
        self.targets = self._targets("validation" if config.validation else "test")
        self.families = [FAMILIES[number] for number in self.targets.family.tolist()]
        self.names = [f"{its} {number}" for number, its in enumerate(self.families)]
        self.found: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
        self.notices = (
            f"{SOURCES['train']} source networks of {PIXELS}-32-{WAYS} neurons for training, "
            f"others for {len(self.names)} targets, which show other digits.",
        )
        self.protocol = (
            "Sources are trained on 900 digits; targets show 597 others under the "
            "task of a source of which they change the labels, the turn, or both; in the family "
            "`crossed` all pixels are exchanged, and no source is related. The check holds out up "
            f"to {FOLDS} folds of the labelled examples, none with one example per class."
        )

    def settings(self) -> list[Setting]:
        """Return the numbers of examples, and of gradient steps at 5 examples per class."""
        return [Setting(f"{shots}-shot", shots) for shots in SHOTS] + [
            Setting(f"{STEPS_SHOTS}-shot", STEPS_SHOTS, steps) for steps in STEPS
        ]

    def build(self, method: str) -> Method:
        """Build the model of a method."""
        return METHODS[method](self, method)

    def train(
        self, model: nn.Module, config: TransferOptions, training: Training[nn.Module]
    ) -> History:
        """Train a model on targets drawn from the training sources."""
        assert isinstance(model, Method)
        draw = self.draw_trained if isinstance(model, Reconstructed) else self.draw
        return fit(
            model,
            draw,
            config,
            training,
            score=lambda: self._validated(model),
            score_name="accuracy",
        )

    def draw(self, step: int, generator: torch.Generator) -> Batch:
        """Draw a batch of training targets; sources get new labels at every step."""
        zoo = self.zoos["train"]
        numbers = torch.randint(len(zoo.means), (self.config.tasks,), generator=generator)
        family = torch.randint(len(TRAINED_FAMILIES), (len(numbers),), generator=generator)
        source = zoo.take(numbers).relabelled(draw_labels(len(numbers), generator))
        tasks = change_tasks(source.tasks, family, generator)
        return self._shown(source.networks, tasks, generator, Params())

    def draw_trained(self, step: int, generator: torch.Generator) -> Batch:
        """Draw a batch of training targets for which a change was trained.

        Both sides get new labels, which permutes the output map alike.
        """
        numbers = torch.randint(TRAINED, (self.config.tasks,), generator=generator)
        zoo, all_tasks, changes = self.trained_changes
        source, tasks = zoo.take(numbers), all_tasks.take(numbers)
        names, of_source = (draw_labels(len(numbers), generator) for _ in range(2))
        change = changes.take(numbers)
        output = by_name(change["output.weight"], names.argsort(1))
        output = by_name(output.mT, of_source.argsort(1)).mT
        tasks = tasks._replace(labels=names.gather(1, tasks.labels))
        changed = change | {"output.weight": output}
        return self._shown(source.relabelled(of_source).networks, tasks, generator, changed)

    def _shown(
        self, source: Params, tasks: Tasks, generator: torch.Generator, trained: Params
    ) -> Batch:
        """Show digits of training writers in tasks, with a random number of examples."""
        shots = SHOTS[int(torch.randint(len(SHOTS), (), generator=generator))]
        drawn = self.digits.draw("train", tasks, shots + TRAIN_QUERIES, generator)
        support, query = (
            Support(*(its[:, part] for its in drawn))
            for part in (slice(WAYS * shots), slice(WAYS * shots, None))
        )
        return Batch(source, support, query, trained)

    @cached_property
    def trained_changes(self) -> tuple[Zoo, Tasks, Params]:
        """Sources, tasks, and canonical changes of the ends, trained on many digits of each."""
        generator = torch.Generator().manual_seed(2)
        zoo = self.zoos["train"]
        zoo = zoo.take(torch.randint(len(zoo.means), (TRAINED,), generator=generator))
        family = torch.randint(len(TRAINED_FAMILIES), (TRAINED,), generator=generator)
        tasks = change_tasks(zoo.tasks, family, generator)
        down = torch.randn(self.rank, PIXELS, generator=generator) / PIXELS**0.5
        found = []
        for part in torch.arange(TRAINED).split(64):
            known = self.digits.draw("train", tasks.take(part), TRAINED_SHOTS, generator)
            zero = change_of(
                torch.zeros(len(part), PIXELS, self.rank),
                down.expand(len(part), -1, -1),
                torch.eye(WAYS).expand(len(part), -1, -1),
            )
            start = Start(zoo.networks.take(part), zero)
            base = self.build("source").base
            found.append(tuned_change(base, start, known, TRAINED_STEPS, TRAINED_RATE))
        return zoo, tasks, canonical(Params.cat(found))

    def outputs(self, model: nn.Module, setting: Setting, condition: Condition = "own") -> Outputs:
        """Adapt a model to every target, and return its probabilities."""
        assert isinstance(model, Method)
        known = self.targets.shots(setting.shots)
        told = None if condition == "own" else self._told(model, known, condition)
        source, x, steps = self.targets.source, self.targets.query.x, setting.steps
        change: dict[str, Tensor] = {}
        if model.adapts:
            params = model.adapt(source, known, steps, told)
            query, change = model.run(params, x), self._change(params)
        else:
            query = model.predict(source, known, x, steps)
        if condition == "own":
            self._note(model.name, setting, query)
        held = model.weighed and condition == "own" and setting.shots > 1
        support = self._held_out(model, known, setting) if held else None
        return Outputs(query, support, self._time(model, known, steps), change)

    def _held_out(self, model: Method, known: Support, setting: Setting) -> Tensor:
        """Return probabilities of labelled examples, each from a network adapted without it."""
        shot = torch.arange(known.y.shape[1]) // WAYS
        folds = min(setting.shots, FOLDS)
        found = torch.zeros(*known.y.shape, WAYS)
        for fold in range(folds):
            out = shot % folds == fold
            rest = known._replace(mask=known.mask & ~out)
            found[:, out] = model.predict(self.targets.source, rest, known.x[:, out], setting.steps)
        return found

    def _told(self, model: Method, known: Support, condition: Condition) -> Any:
        """Return the condition of another target for each, or the mean one for all."""
        assert isinstance(model, Generated)
        with torch.no_grad():
            if condition == "shuffled":
                read = model.read(self.targets.source, known)
                return Read(*(its.roll(1 + len(FAMILIES), 0) for its in read))
            reads = []
            for number in range(MEAN_OVER):
                batch = self.draw(0, torch.Generator().manual_seed(number))
                reads.append(model.read(batch.source, batch.support))
            means = [torch.cat(parts).mean(0, keepdim=True) for parts in zip(*reads, strict=True)]
            count = len(known.y)
            mean = (its.expand(count, *its.shape[1:]) for its in means)
            return Read(*mean)

    def _time(self, model: Method, known: Support, steps: int) -> float:
        """Return the seconds to adapt to one target and read one picture, after a first call."""
        one = Support(*(its[:1] for its in known))
        source, x = self.targets.source.take([0]), self.targets.query.x[:1, :1]
        times = []
        for _ in range(1 + TIMED):
            began = time.perf_counter()
            model.predict(source, one, x, steps)
            times.append(time.perf_counter() - began)
        return sorted(times[1:])[TIMED // 2]

    def _change(self, params: Params) -> dict[str, Tensor]:
        """Return the relative change of each weight of the source."""
        own = {name: its.flatten(1) for name, its in self.targets.source.items() if its.ndim > 2}
        return {
            name: (params[name].flatten(1) - its).norm(dim=1) / its.norm(dim=1)
            for name, its in own.items()
        }

    def scores(self, setting: Setting, query: Tensor) -> dict[str, Tensor]:
        """Return accuracy and log loss of each target."""
        right = (query.argmax(2) == self.targets.query.y).float().mean(1)
        return {"accuracy": right, "log_loss": log_loss(query, self.targets.query.y).mean(1)}

    def support_loss(self, setting: Setting, support: Tensor) -> Tensor:
        """Return the log loss of each labelled example."""
        return log_loss(support, self.targets.shots(setting.shots).y)

    def _targets(self, part: str, count: int | None = None) -> Targets:
        count = self.config.test_targets if count is None else count
        return draw_targets(self.digits, self.zoos[part], part, count, max(SHOTS), QUERIES)

    def _validated(self, model: Method) -> float:
        """Return the accuracy on validation targets, without gradient steps but for MAML's."""
        targets = self._targets("validation", VALIDATED)
        steps = INNER_STEPS if isinstance(model, Maml) else 0
        query = model.predict(targets.source, targets.shots(STEPS_SHOTS), targets.query.x, steps)
        return (query.argmax(2) == targets.query.y).float().mean().item()

    def _note(self, name: str, setting: Setting, query: Tensor) -> None:
        """Keep the mean scores of each family, of the first model of a name."""
        scores = self.scores(setting, query)
        by_family = {
            family: {
                score: its[self.targets.family == number].mean().item()
                for score, its in scores.items()
            }
            for number, family in enumerate(FAMILIES)
        }
        self.found.setdefault(setting.title, {}).setdefault(name, by_family)

    def facts(self) -> dict[str, Any]:
        """Return scores by family, steps to the loss of fine-tuning, and the ranking of sources."""
        return {
            "by_family": self.found,
            "steps_to_finetuned_loss": self._steps_to_loss(),
            "rank_correlation": self.rank_correlation(),
        }

    def _steps_to_loss(self) -> dict[str, dict[str, int | None]]:
        """Return the fewest judged steps by which each start reaches the loss of 100 fine-tuned."""
        titles = {its.steps: its.title for its in self.settings() if its.shots == STEPS_SHOTS}
        found = {steps: self.found.get(title, {}) for steps, title in titles.items()}
        goals = found[max(titles)].get("finetune", {})
        return {
            name: {
                family: next(
                    (
                        steps
                        for steps in sorted(titles)
                        if found[steps][name][family]["log_loss"] <= goal["log_loss"]
                    ),
                    None,
                )
                for family, goal in goals.items()
            }
            for name in found[0]
        }

    def rank_correlation(self) -> dict[str, float]:
        """Return the mean Kendall's tau of each ranking of all sources against true transfer.

        True transfer is the accuracy of each source after gradient steps on all weights.
        """
        zoo, count = self.zoos["validation" if self.config.validation else "test"], RANKED_TARGETS
        sources = len(zoo.means)
        known, query = self.targets.shots(STEPS_SHOTS), self.targets.query
        base = METHODS["source"](self, "source").base
        scores: dict[str, list[Tensor]] = {"leep": [], "logme": [], "closeness": []}
        truth = []
        for target in range(min(count, len(self.names))):
            support, held = (
                Support(*(its[[target]].expand(sources, *its.shape[1:]) for its in part))
                for part in (known, query)
            )
            hidden = hidden_of(zoo.networks, support.x)
            logits = apply_per_task(base, zoo.networks, support.x)
            scores["leep"].append(leep(logits.softmax(2), support.y))
            scores["logme"].append(logme(hidden, support.y))
            scores["closeness"].append(closeness(hidden, zoo.feature_mean, zoo.feature_spread))
            start = Start(zoo.networks, Params())
            rate = TUNING_RATES.get("finetune", USUAL_RATE)
            tuned = fine_tune(base, start, support, RANKED_STEPS, rate)
            truth.append(evaluate(base, tuned, held).accuracy)
        true = torch.stack(truth)
        return {
            name: kendall(torch.stack(its).float(), true).nanmean().item()
            for name, its in scores.items()
        }


def log_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the negative logarithm of the probability of each label, (targets, pictures)."""
    chosen = probabilities.gather(2, labels[..., None])[..., 0]
    return -chosen.clamp(min=LEAST).log()
