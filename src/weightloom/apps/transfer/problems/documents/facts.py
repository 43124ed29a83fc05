"""Documents into adapters: facts among plays are read once, then asked for without the document.

In:   options.
Out:  `Documents`, a `TransferProblem` whose targets are documents.
Knows nothing of tables and reports.
"""

import math
import time
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from weightloom.apps.app import Adapted, Training
from weightloom.apps.transfer.problems.documents.adapter import DocumentAdapter, DocumentCondition
from weightloom.apps.transfer.problems.documents.base import character_base
from weightloom.apps.transfer.problems.documents.rivals import (
    FineTuned,
    InWindow,
    Prefix,
    Rival,
    Trained,
    answer_loss,
)
from weightloom.apps.transfer.problems.problem import Condition, Outputs, Setting, TransferProblem
from weightloom.apps.transfer.training import fit
from weightloom.base import apply_per_task
from weightloom.conditions.documents import align, layer_inputs
from weightloom.errors import ConfigError
from weightloom.networks.character_model import CharacterModel
from weightloom.params import Params
from weightloom.tasks.facts import (
    CHARACTERS,
    DIGITS,
    QUESTION,
    FactDocuments,
    FactTasks,
    Split,
    encode,
    plays,
)

if TYPE_CHECKING:
    from weightloom.apps.transfer.config import TransferOptions
    from weightloom.training import History

BASE: dict[str, Any] = {"steps": 2400, "rows": 16, "rate": 3e-3, "layers": 3}
"""Training of the character model."""
LAYER = "blocks.1.down"
"""The adapted layer."""
STEPS = {"lora": 1, "lora-50x": 50}
"""Gradient steps of fine-tuning on a document, about once and 50 times as long as generating."""
LORA_RANK = 8
"""Rank of fine-tuning on a document."""
ALIGNED, PART, MEANT = 1500, 300, 64
"""Training documents of the alignment, those that are read at a time, and those of the mean
condition."""
AT_ONCE = 10
"""Documents that are judged at a time."""
TRAINED_ON = ((1, 4), (2, 4), (4, 4), (8, 2))
"""Windows and facts per window of training documents, in turn."""


class Case(NamedTuple):
    """Documents and questions of a row group."""

    windows: int
    """Windows per document."""
    facts: int
    """Facts per window."""
    asked: int = 0
    """Wording of the questions."""


CASES = {
    "4 facts in 1 window": Case(1, 4),
    "4 facts in each of 2 windows": Case(2, 4),
    "4 facts in each of 4 windows": Case(4, 4),
    "4 facts in each of 8 windows": Case(8, 4),
    "2 facts in each of 4 windows": Case(4, 2),
    "1 fact in each of 8 windows": Case(8, 1),
    "4 facts in 1 window, reworded": Case(1, 4, 1),
    "4 facts in 1 window, wording never met": Case(1, 4, 3),
}
"""Row groups of the table."""


class DocumentWriter(Rival):
    """The base, and the adapter that is written from a document.

    Args:
        base: The frozen model.
        layer: Name of the adapted layer.
        coordinates: Coordinates of a key.
    """

    trained, reads = True, True

    def __init__(self, base: CharacterModel, layer: str, coordinates: int) -> None:
        super().__init__(base)
        self.layer = layer
        self.adapter = DocumentAdapter(self.owner, layer, answers_of(base), coordinates)

    @property
    def owner(self) -> nn.Linear:
        """The adapted layer."""
        owner = self.base.get_submodule(self.layer)
        assert isinstance(owner, nn.Linear)
        return owner

    def forward(self, drawn: FactDocuments) -> Tensor:
        """Cross-entropy of the answers, (tasks,)."""
        return answer_loss(self.answer(drawn), drawn)

    def read(self, pieces: Tensor) -> DocumentCondition:
        """States of documents, each token attending as far back as a question is long.

        Args:
            pieces: Documents, (tasks, windows, window).
        """
        with torch.no_grad():
            states = layer_inputs(self.base, self.layer, pieces.flatten(0, 1), reach=QUESTION)
        following = nn.functional.one_hot(pieces[..., 1:], len(CHARACTERS)).to(states.dtype)
        return DocumentCondition(states[:, :-1].unflatten(0, pieces.shape[:2]), following)

    def adapt(self, pieces: Tensor, mean: DocumentCondition | None = None) -> Params:
        """Adapter of each document.

        Args:
            pieces: Documents, (tasks, windows, window).
            mean: Condition of one task that all tasks read in place of their own.
        """
        if mean is None:
            params: Params = self.adapter(self.read(pieces), self.owner)
            return params
        return Params(self.adapter(mean, self.owner)).take([0] * len(pieces))

    def answer(self, drawn: FactDocuments) -> Tensor:
        """Logits of the answers by the adapted base, without the document."""
        return self.answered(self.adapt(drawn.pieces), drawn)

    def answered(self, params: Params, drawn: FactDocuments) -> Tensor:
        """Logits of the answers by the base with given adapters."""
        logits: Tensor = apply_per_task(self.base, params, drawn.questions[..., :-1])
        return logits[..., -DIGITS:, :]

    def align(self, seed: int) -> None:
        """Set the maps of the adapter from pairs of states, in closed form.

        Args:
            seed: Seed of the training documents and of their questions, in any wording.
        """
        chance = torch.Generator().manual_seed(seed)
        parts = [self._pairs(PART, chance) for _ in range(ALIGNED // PART)]
        of_document, of_question = (torch.cat([part[side] for part in parts]) for side in (0, 1))
        self.adapter.follow(align(of_document, of_question))
        self.adapter.weigh(*parts[0][2:])

    @torch.no_grad()
    def _pairs(self, documents: int, chance: torch.Generator) -> tuple[Tensor, ...]:
        """States before the digits of facts, those of questions for them; all states, and labels.

        The last is 1 where the next token is a digit that is asked for.
        """
        drawn = FactTasks(asked=None).sample(documents, chance)
        states = self.read(drawn.pieces).states.flatten(1, 2)
        before = torch.arange(DIGITS) - 1  # the state before each digit predicts it
        places = (drawn.places[..., None] + before).flatten(1)
        asked = torch.zeros(states.shape[:2]).scatter(1, places, 1.0)
        of_document = states.gather(1, places[..., None].expand(-1, -1, states.shape[-1]))
        rows = drawn.questions.flatten(0, 1)[:, :-1]
        of_question = layer_inputs(self.base, self.layer, rows)[:, -DIGITS:]
        pairs = of_document.flatten(0, 1), of_question.flatten(0, 1)
        return *pairs, states.flatten(0, 1), asked.flatten()


def answers_of(base: CharacterModel) -> Tensor:
    """Direction in the residual stream that makes a model say each character, of length 1.

    Args:
        base: The model.
    """
    directions = base.head.weight.detach() * base.norm.weight.detach()
    directions = directions - directions.mean(0)
    return nn.functional.normalize(directions, dim=1)


def adapting_s(model: Rival, pieces: Tensor) -> float:
    """Median seconds to adapt to one document.

    Args:
        model: A model.
        pieces: Documents, (tasks, windows, window).
    """
    times: list[float] = []
    for number in range(3):
        start = time.perf_counter()
        model.adapt(pieces[number % len(pieces)][None])
        times.append(time.perf_counter() - start)
    return median(times)


class Documents(TransferProblem):
    """Documents of facts whose names were never seen, and questions about them.

    Args:
        config: Resolved options; ``rank`` is the number of coordinates of a key.

    Raises:
        ConfigError: If ``rank`` is above the width of a state, or there is only one test target.
        DataError: If the plays are not found.
    """

    score = "exact match"
    better = "higher"
    protocol = (
        "Exact match of all digits of the answer, without the document in the window. Names and "
        "plays of the test documents are in no training document. The check has no support, since "
        "a document holds no labelled answers."
    )

    def __init__(self, config: "TransferOptions") -> None:
        if config.test_targets < 2:
            raise ConfigError(
                f"`--test-targets {config.test_targets}`. The control reads the document of "
                "another target, so there are two or more. Pass 2 or more."
            )
        self.config = config
        self.names = [f"document {number}" for number in range(config.test_targets)]
        self.families = ["documents"] * config.test_targets
        self.base = character_base(**BASE)
        owner = self.base.get_submodule(LAYER)
        assert isinstance(owner, nn.Linear)
        self.layer, self.owner = LAYER, owner
        if config.rank > owner.in_features:
            raise ConfigError(
                f"`--rank {config.rank}` coordinates of a key. A key is a state of {LAYER}, which "
                f"has {owner.in_features}. Pass {owner.in_features} or less."
            )
        self._drawn: dict[str, FactDocuments] = {}

    def settings(self) -> list[Setting]:
        """Return the row groups: numbers of facts and windows, and rewordings."""
        return [Setting(name) for name in CASES]

    def drawn(self, name: str) -> FactDocuments:
        """Return the documents of a row group, the same for every method.

        Args:
            name: Name of the row group.
        """
        if name not in self._drawn:
            case = CASES[name]
            split: Split = "validation" if self.config.validation else "test"
            source = FactTasks(case.windows, case.facts, split, case.asked)
            chance = torch.Generator().manual_seed(self.config.seed)
            self._drawn[name] = source.sample(self.config.test_targets, chance)
        return self._drawn[name]

    def build(self, method: str) -> nn.Module:
        """Build the model of a method."""
        if method == "generated":
            return DocumentWriter(self.base, self.layer, self.config.rank)
        if method in ("shared", "shared-finetune"):
            return Trained(self.base, self.layer if method == "shared" else None)
        if method in STEPS:
            return FineTuned(self.base, LORA_RANK, STEPS[method], self.config.rate_of(method))
        if method == "prefix":
            return Prefix(self.base, sum(its.numel() for its in self.owner.parameters()))
        return InWindow(self.base) if method == "window" else Rival(self.base)

    def train(
        self, model: nn.Module, config: "TransferOptions", training: Training[nn.Module]
    ) -> "History":
        """Train a model on documents with names of the training split, asked in any wording.

        The maps of a generated adapter are set in closed form first.
        """
        assert isinstance(model, Rival)
        if isinstance(model, DocumentWriter):
            model.align(config.seed)
        sources = [FactTasks(windows, facts, asked=None) for windows, facts in TRAINED_ON]

        def draw(step: int, generator: torch.Generator) -> FactDocuments:
            return sources[step % len(sources)].sample(config.tasks, generator)

        history = fit(
            model,
            draw,
            config,
            training,
            score=lambda: self._validation(model),
            score_name=self.score,
        )
        model.cpu()  # judged on the CPU, wherever it was trained
        return history

    def _validation(self, model: Rival) -> float:
        """Exact match on documents of the validation split."""
        drawn = FactTasks(4, 4, "validation").sample(20, torch.Generator().manual_seed(0))
        with torch.no_grad():
            right = model.answer(drawn).argmax(-1) == drawn.questions[..., -DIGITS:]
        return right.all(-1).float().mean().item()

    def outputs(self, model: nn.Module, setting: Setting, condition: Condition = "own") -> Outputs:
        """Answer the questions of every document, some documents at a time."""
        assert isinstance(model, Rival)
        drawn = self.drawn(setting.name)
        read = drawn.pieces.roll(1, 0) if condition == "shuffled" else drawn.pieces
        mean = self._mean_condition(model, read.shape[1]) if condition == "mean" else None
        logits: list[Tensor] = []
        changes: list[Tensor] = []
        with torch.no_grad():
            for first in range(0, len(read), AT_ONCE):
                some = slice(first, first + AT_ONCE)
                asked = FactDocuments(read[some], drawn.questions[some], drawn.places[some])
                if isinstance(model, DocumentWriter):
                    params = model.adapt(asked.pieces, mean)
                    logits.append(model.answered(params, asked))
                    changes.append(self._change(params))
                else:
                    logits.append(model.answer(asked))
            time_s = adapting_s(model, drawn.pieces)
        query = torch.cat(logits).softmax(-1).flatten(1, 2)
        change = {self.layer: torch.cat(changes)} if changes else {}
        return Outputs(query, None, time_s, change)

    def _change(self, params: Params) -> Tensor:
        """Norm of the change of the adapted layer divided by that of its weight, (tasks,)."""
        own = self.owner.weight.detach()
        change: Tensor = params[self.layer + ".weight"] - own
        return change.flatten(1).norm(dim=1) / own.norm()

    def _mean_condition(self, model: Rival, windows: int) -> DocumentCondition:
        """Mean condition of training documents of some windows, for one task."""
        assert isinstance(model, DocumentWriter)
        source = FactTasks(windows, 4)
        found = model.read(source.sample(MEANT, torch.Generator().manual_seed(0)).pieces)
        return DocumentCondition(*(its.mean(0, keepdim=True) for its in found))

    def scores(self, setting: Setting, query: Tensor) -> dict[str, Tensor]:
        """Exact match, share of right digits, and log loss of the digits, each (targets,)."""
        answers = self.drawn(setting.name).questions[..., -DIGITS:]
        answers = answers.expand(len(query), -1, -1)
        said = query.view(*answers.shape, -1)
        right = said.argmax(-1) == answers
        losses = -said.gather(-1, answers[..., None]).clamp_min(1e-30).log()
        return {
            self.score: right.all(-1).float().mean(1),
            "digit accuracy": right.float().mean((1, 2)),
            "log loss of digits": losses.mean((1, 2, 3)),
        }

    def adapt(self, model: nn.Module, target: str) -> Adapted:
        """Adapt the character model to a document of one's own.

        Args:
            model: A model of the method `generated`.
            target: Path of a text file, or the text itself.

        Raises:
            ConfigError: If the model is of another method.
            DataError: If the document is empty, too long, or holds unknown characters.
        """
        from weightloom.apps.transfer.problems.documents.adapted import AdaptedModel

        if not isinstance(model, DocumentWriter):
            raise ConfigError(
                f"The run's method is {type(model).__name__}, which reads no document. A document "
                "becomes an adapter by the method `generated`. Type `--method generated`."
            )
        return AdaptedModel(model, target)

    def facts(self) -> dict[str, Any]:
        """Return the size of the source, and its bits per character of plays without facts."""
        rows = encode(plays("test")[: 128 * 200]).view(200, 128)
        with torch.no_grad():
            losses = nn.functional.cross_entropy(self.base(rows[:, :-1]).mT, rows[:, 1:])
        return {
            "source_parameters": sum(its.numel() for its in self.base.parameters()),
            "source_bits_per_character": losses.item() / math.log(2),
            "source_training": BASE,
        }
