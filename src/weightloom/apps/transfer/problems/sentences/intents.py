"""MiniLM to new classes of sentences, described by their names and a few examples.

In:   options of a run.
Out:  `SentenceProblem`, trained on CLINC150, judged on Banking77 or the SMS Spam Collection.
Knows nothing of tables and reports.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from weightloom.apps.app import Training
from weightloom.apps.transfer.config import TransferOptions
from weightloom.apps.transfer.problems.problem import Condition, Outputs, Setting, TransferProblem
from weightloom.apps.transfer.problems.sentences.adapted import AdaptedSentences
from weightloom.apps.transfer.problems.sentences.methods import (
    FineTune,
    GeneratedAdapter,
    GeneratedStep,
    LastLayer,
    LowRankFineTune,
    Method,
    Probe,
    SharedAdapter,
    SharedFineTune,
    SharedThenFineTune,
    Source,
)
from weightloom.apps.transfer.problems.sentences.states import States, Tail
from weightloom.apps.transfer.problems.sentences.tasks import (
    Episode,
    Pool,
    check_enough,
    intents,
    pool_of,
    spam,
)
from weightloom.apps.transfer.training import fit
from weightloom.forms import Factored
from weightloom.params import Params
from weightloom.tasks.text import sentence_model
from weightloom.training import History

LAYERS = 1
"""Last layers of MiniLM that methods change."""
SHOTS = (0, 1, 5)
"""Examples per class of the row groups; 0: the names of the classes alone."""
TRAIN_WAYS, TRAIN_QUERIES, TRAIN_TOKENS = 30, 3, 16
"""Classes of a training task, its queries per class, and the tokens of its longest examples."""
NEAR_DOMAINS = (1, 2)
"""CLINC150's domains of banking and of credit cards, the validation classes."""
FOLDS = 2
"""Parts of the examples that are left out in turn for the check."""
CONTROLS = 16
"""Training tasks behind the mean condition."""
TARGET_SEED, CONTROL_SEED, LOOK_SEED = 11, 12, 13
LOOKS = 4
"""Targets that are scored during training."""


class Loaded(NamedTuple):
    """The source, and all classes."""

    states: States
    tail: Tail
    train: Pool
    target: Pool


class _Answered(NamedTuple):
    """Outputs for one target."""

    query: Tensor
    support: Tensor | None
    time_s: float
    change: dict[str, Tensor]


class SentenceProblem(TransferProblem):
    """Frozen MiniLM and classes of sentences that it was not trained on.

    A target is a draw of examples and queries of all classes of Banking77 (77 intents), or of the
    SMS Spam Collection. Methods are trained on tasks of CLINC150. With ``validation``, targets
    are drawn from two domains of CLINC150, and methods are trained on the others.

    Args:
        config: Resolved options.

    Raises:
        DataError: If a data set is missing or damaged.
        MissingExtraError: If MiniLM is not installed.
    """

    score, better = "accuracy", "higher"
    protocol = (
        "A target is a draw of examples and queries of all classes. The shuffled condition is that "
        "of a training task, since all targets have the same classes."
    )

    def __init__(self, config: TransferOptions) -> None:
        self.config = config
        self.states, self.tail, self.train_pool, self.target_pool = loaded(
            config.data, config.validation
        )
        ways = len(self.target_pool.examples)
        self.queries = 5 if ways > 2 else 100
        most = max(SHOTS) + self.queries
        check_enough(self.target_pool, ways, most, f"--data {config.data}")
        self.targets = self._drawn(self.target_pool, ways, config.test_targets, TARGET_SEED)
        family = "CLINC150, two domains" if config.validation else TARGETS[config.data].name
        self.names = [f"{family} {number}" for number in range(config.test_targets)]
        self.families = [family] * config.test_targets
        longest = int(self.states.lengths.max())
        self.notices = (
            f"MiniLM is frozen but for its last layer; {ways} classes of {family} are never "
            f"trained on. Names of classes count as one more example. No text is cut: the longest "
            f"has {longest} tokens. Training tasks draw texts of up to {TRAIN_TOKENS} tokens.",
        )

    def settings(self) -> list[Setting]:
        """Return names alone, 1 and 5 examples per class."""
        return [Setting(f"{shots}-shot" if shots else "names alone", shots) for shots in SHOTS]

    def build(self, method: str) -> nn.Module:
        """Build the model of a method."""
        parts, rank = (self.states, self.tail), self.config.rank
        made: dict[str, Callable[[], Method]] = {
            "generated": lambda: GeneratedStep(*parts),
            "source": lambda: Source(*parts),
            "probe": lambda: Probe(*parts),
            "last-layer": lambda: LastLayer(*parts),
            "shared-finetune": lambda: SharedFineTune(*parts),
            "shared-then-finetune": lambda: SharedThenFineTune(*parts),
            "generated-adapter": lambda: GeneratedAdapter(*parts, rank, self.config.width),
            "shared": lambda: SharedAdapter(*parts, rank),
            "finetune": lambda: FineTune(*parts),
            "lora": lambda: LowRankFineTune(*parts, rank),
        }
        return made[method]()

    def train(
        self, model: nn.Module, config: TransferOptions, training: Training[nn.Module]
    ) -> History:
        """Train a method on tasks of CLINC150 with 0 to 5 examples per class."""
        pool = self.train_pool.shorter(self.states.lengths, TRAIN_TOKENS)
        looks = self._looks()

        def draw(step: int, generator: torch.Generator) -> Episode:
            shots = int(torch.randint(max(SHOTS) + 1, (), generator=generator))
            return pool.draw(TRAIN_WAYS, shots, TRAIN_QUERIES, generator, config.tasks)

        def score() -> float:
            assert isinstance(model, Method)
            right = [self._answer(model, its, 0)[0].argmax(2) == its.query_y for its in looks]
            return torch.stack(right).float().mean().item()

        return fit(
            model,
            draw,
            config,
            training,
            score=score,
            score_name="accuracy",
            warmup_steps=(config.steps or 0) // 8,
        )

    def _looks(self) -> list[Episode]:
        """Return tasks of the validation domains to score during training."""
        near = torch.isin(self.train_pool.groups, torch.tensor(NEAR_DOMAINS))
        pool = self.target_pool if self.config.validation else self.train_pool.pick(near)
        drawn = self._drawn(pool, len(pool.examples), LOOKS, LOOK_SEED)
        return [its.with_shots(max(SHOTS)) for its in drawn]

    def _drawn(self, pool: Pool, ways: int, count: int, seed: int) -> list[Episode]:
        generator = torch.Generator().manual_seed(seed)
        queries = getattr(self, "queries", 5)
        return [pool.draw(ways, max(SHOTS), queries, generator) for _ in range(count)]

    @torch.no_grad()
    def outputs(self, model: nn.Module, setting: Setting, condition: Condition = "own") -> Outputs:
        """Adapt a method to every target, one after another, and classify its queries.

        For the check, the examples are left out in two parts, and a method that was adapted to the
        other part, with a head of all others, classifies them. It takes two examples per class, and
        no gradient steps: with these, a method is no candidate of the check.
        """
        assert isinstance(model, Method)
        others = self._conditions(model, setting.shots, condition)
        found = [
            self._one(model, target.with_shots(setting.shots), setting, other)
            for target, other in zip(self.targets, others, strict=True)
        ]
        query, support, times, changes = zip(*found, strict=True)
        return Outputs(
            torch.cat(query),
            None if support[0] is None else torch.cat(support),
            median(times),
            {name: torch.stack([its[name] for its in changes]) for name in changes[0]},
        )

    def _one(
        self, model: Method, episode: Episode, setting: Setting, other: Params | None
    ) -> _Answered:
        """Adapt a method to one target, and classify its queries and left-out examples."""
        steps = setting.steps or model.steps
        start = time.perf_counter()
        logits, params = self._answer(model, episode, steps, other)
        seconds = time.perf_counter() - start
        leaves_out = other is None and setting.shots >= FOLDS and not (model.fits and steps)
        left = self._left_out(model, episode, params).softmax(2) if leaves_out else None
        return _Answered(logits.softmax(2), left, seconds, self._change(model, params))

    def _answer(
        self, model: Method, episode: Episode, steps: int, other: Params | None = None
    ) -> tuple[Tensor, Params | None]:
        """Return logits of the queries of a task, and its parameters."""
        params = model.fitted(episode, model.adapt(episode, other), steps)
        known = episode.support.shape[1]
        features = model.features(torch.cat([episode.support, episode.query], 1), params)
        head = model.head(episode, features[:, :known], params)
        return head(features[:, known:]), params

    def _left_out(self, model: Method, episode: Episode, params: Params | None) -> Tensor:
        """Return logits of the examples, (1, examples, ways), each left out."""
        examples = episode.support.shape[1] - episode.ways
        if params is None:  # the encoder is not adapted, so the head alone leaves out
            features = model.features(episode.support)
            return model.head(episode, features, None).left_out[:, :examples]
        fold = torch.arange(examples) % episode.shots % FOLDS
        names = torch.zeros(episode.ways, dtype=torch.bool)
        found = torch.zeros(1, examples, episode.ways)
        for number in range(FOLDS):
            out = fold == number
            adapted = model.adapt(episode.without(torch.cat([out, names])))
            features = model.features(episode.support, adapted)
            found[:, out] = model.head(episode, features, adapted).left_out[:, :examples][:, out]
        return found

    def _conditions(
        self, model: Method, shots: int, condition: Condition
    ) -> Sequence[Params | None]:
        """Return the condition to read in place of its own for each target; None for its own."""
        count = len(self.targets)
        if condition == "own":
            return [None] * count
        if condition == "shuffled":
            return list(self._of_training_tasks(model, shots, count))
        every = list(self._of_training_tasks(model, shots, CONTROLS))
        mean = {name: torch.stack([its[name] for its in every]).mean(0) for name in every[0]}
        return [Params(mean)] * count

    def _of_training_tasks(self, model: Method, shots: int, count: int) -> Iterator[Params]:
        """Yield the conditions of training tasks, the same ones for every method."""
        generator = torch.Generator().manual_seed(CONTROL_SEED)
        for _ in range(count):
            episode = self.train_pool.draw(TRAIN_WAYS, shots, TRAIN_QUERIES, generator)
            read = model.condition(episode)
            assert read is not None
            yield read

    def _change(self, model: Method, params: Params | None) -> dict[str, Tensor]:
        """Return the relative size of the change of every matrix of the last layer."""
        now = model.shared() | dict(params or {})
        sizes: dict[str, Tensor] = {}
        for name, own in self.tail.named_parameters():
            value = now[name]
            moved = ((value.dense() if isinstance(value, Factored) else value) - own).norm()
            if own.ndim == 2:
                sizes[name.removeprefix("layer.0.").removesuffix(".weight")] = moved / own.norm()
        return sizes if any(bool(size > 0) for size in sizes.values()) else {}

    def scores(self, setting: Setting, query: Tensor) -> dict[str, Tensor]:
        """Return accuracy and log loss in nats."""
        labels = torch.cat([its.query_y for its in self.targets])
        right = (query.argmax(2) == labels).float().mean(1)
        return {"accuracy": right, "log_loss": _log_loss(query, labels).mean(1)}

    def support_loss(self, setting: Setting, support: Tensor) -> Tensor:
        """Return the log loss of every example, (targets, examples), in nats."""
        labels = torch.cat([its.with_shots(setting.shots).support_y for its in self.targets])
        return _log_loss(support, labels[:, : support.shape[1]])

    def adapt(self, model: nn.Module, target: str) -> AdaptedSentences:
        """Adapt a method to classes in a table of label and text; errors as `AdaptedSentences`."""
        assert isinstance(model, Method)
        return AdaptedSentences(model, LAYERS, Path(target).expanduser())

    def facts(self) -> dict[str, Any]:
        """Return the sizes of the source and of the tasks."""
        return {
            "classes": len(self.target_pool.examples),
            "queries_per_class": self.queries,
            "adapted_layers": LAYERS,
            "training_classes": len(self.train_pool.examples),
        }


def _log_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    return -probabilities.gather(2, labels[..., None])[..., 0].clamp(min=1e-6).log()


class _Target(NamedTuple):
    name: str
    load: Any


TARGETS = {
    "intents": _Target("Banking77", lambda: intents("banking77")),
    "spam": _Target("SMS spam", spam),
}
"""Test classes of each data set."""


@lru_cache(maxsize=1)
def loaded(data: str, validation: bool) -> Loaded:
    """Load MiniLM and the classes of training and judging, and read all texts once.

    Args:
        data: ``intents`` or ``spam``.
        validation: Judge on held-out domains of CLINC150.

    Raises:
        DataError: If a data set is missing or damaged.
        MissingExtraError: If MiniLM is not installed.
    """
    known = intents("clinc150")
    texts = [*known.texts, *known.names]
    train = pool_of(known, 0)
    near = torch.isin(train.groups, torch.tensor(NEAR_DOMAINS))
    if validation:
        train, target = train.pick(~near), train.pick(near)
    else:
        unseen = TARGETS[data].load()
        target = pool_of(unseen, len(texts))
        texts += [*unseen.texts, *unseen.names]
    states = States(texts, LAYERS)
    return Loaded(states, Tail(sentence_model()[1].float(), LAYERS), train, target)
