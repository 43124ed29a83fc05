"""Rivals of a document's adapter: the document in the window, a prefix of it, fine-tuning on it.

In:   a frozen character model; documents and questions.
Out:  probabilities of the characters of each answer.
Knows nothing of adapters that are generated.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves

from weightloom.base import apply_per_task
from weightloom.forms import Factored, LowRank
from weightloom.forms.form import Parts
from weightloom.networks.character_model import CharacterModel
from weightloom.params import Params
from weightloom.tasks.facts import DIGITS, LENGTH, QUESTION, FactDocuments
from weightloom.training.optimiser import build_optimiser


class Rival(nn.Module):
    """A model that answers questions about documents.

    Args:
        base: The frozen model.
    """

    trained, reads = False, False

    def __init__(self, base: CharacterModel) -> None:
        super().__init__()
        self.base = base

    def answer(self, drawn: FactDocuments) -> Tensor:
        """Logits of the answers, (tasks, questions, DIGITS, characters). Here: from the question.

        Args:
            drawn: Documents and questions.
        """
        tasks, questions, length = drawn.questions.shape
        logits = self.base(drawn.questions.view(-1, length)[:, :-1])[:, -DIGITS:]
        return logits.unflatten(0, (tasks, questions))

    def adapt(self, pieces: Tensor) -> Params | None:
        """Return the changed weights for documents, (tasks, windows, window); None: no change."""
        return None


class Trained(Rival):
    """A copy of the model, of which some parameters are trained on the questions of all tasks.

    Args:
        base: The model; it is copied.
        layer: Name of the only layer that is trained; None: the whole model.
    """

    trained = True

    def __init__(self, base: CharacterModel, layer: str | None = None) -> None:
        super().__init__(copy.deepcopy(base))
        self.base.requires_grad_(layer is None)
        if layer is not None:
            self.base.get_submodule(layer).requires_grad_(True)

    def forward(self, drawn: FactDocuments) -> Tensor:
        """Cross-entropy of the answers, (tasks,)."""
        return answer_loss(self.answer(drawn), drawn)


class InWindow(Rival):
    """The part of the document around the fact stands before each question: the ceiling.

    The part is chosen by someone who knows where the fact is.
    """

    def answer(self, drawn: FactDocuments) -> Tensor:
        """Logits of the answers, read from the document."""
        room = self.base.window - QUESTION + 1
        length = drawn.pieces.shape[2]
        middle = drawn.places - LENGTH // 2
        window = drawn.places // length * length
        start = torch.minimum((middle - room // 2).clamp_min(window), window + length - room)
        read = start[..., None] + torch.arange(room)
        tasks, questions, _ = read.shape
        before = drawn.pieces.flatten(1).gather(1, read.flatten(1)).view(tasks, questions, room)
        return asked_after(self.base, before, drawn)


class Prefix(Rival):
    """The end of the document stands before each question.

    Args:
        base: The frozen model.
        numbers: Most numbers that may be kept of a document: keys and values of all layers of each
            token that is kept.
    """

    def __init__(self, base: CharacterModel, numbers: int) -> None:
        super().__init__(base)
        width = base.head.in_features
        self.tokens = min(numbers // (2 * width * len(base.blocks)), base.window - QUESTION + 1)

    def adapt(self, pieces: Tensor) -> None:
        """Read the end of documents, as is done once to keep its keys and values."""
        self.base(pieces.flatten(1)[:, -self.tokens :])

    def answer(self, drawn: FactDocuments) -> Tensor:
        """Logits of the answers, read from the end of the document."""
        questions = drawn.questions.shape[1]
        before = drawn.pieces.flatten(1)[:, None, -self.tokens :].expand(-1, questions, -1)
        return asked_after(self.base, before, drawn)


class FineTuned(Rival):
    """Low-rank changes of all layers of the blocks, trained on the document from scratch.

    Args:
        base: The frozen model.
        rank: Rank of each change.
        steps: Gradient steps, each on the whole document.
        rate: Learning rate of Adam.
    """

    def __init__(self, base: CharacterModel, rank: int, steps: int, rate: float) -> None:
        super().__init__(base)
        self.form, self.steps, self.rate = LowRank(rank), steps, rate

    @torch.enable_grad()
    def adapt(self, pieces: Tensor) -> Params:
        """Train the changes of each document on its next characters."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            params = self._start(len(pieces))
        optimiser = build_optimiser(tree_leaves(params), self.rate, decay=0.0)
        for _ in range(self.steps):
            logits = apply_per_task(self.base, params, pieces[..., :-1])
            loss = cross_entropy(logits.flatten(0, 2), pieces[..., 1:].flatten())
            optimiser.zero_grad()
            (loss * len(pieces)).backward()
            optimiser.step()
        return params.detach()

    def _start(self, tasks: int) -> Params:
        params = Params()
        for name, module in self.base.blocks.named_modules():
            if isinstance(module, nn.Linear):
                own = module.weight.detach()
                down = self.form.starts(tuple(own.shape))["down"].expand(tasks, -1, -1).clone()
                up = torch.zeros(tasks, len(own), self.form.rank)
                factors: Parts = {"up": nn.Parameter(up), "down": nn.Parameter(down)}
                params[f"blocks.{name}.weight"] = Factored(self.form, own, factors)
        return params

    def answer(self, drawn: FactDocuments) -> Tensor:
        """Logits of the answers by the fine-tuned models."""
        logits: Tensor = apply_per_task(
            self.base, self.adapt(drawn.pieces), drawn.questions[..., :-1]
        )
        return logits[..., -DIGITS:, :]


def asked_after(base: CharacterModel, before: Tensor, drawn: FactDocuments) -> Tensor:
    """Logits of the answers behind a text and the question.

    Args:
        base: The model.
        before: Text before each question, (tasks, questions, length).
        drawn: Questions.
    """
    rows = torch.cat([before, drawn.questions], 2).flatten(0, 1)
    logits: Tensor = base(rows[:, :-1])[:, -DIGITS:]
    return logits.unflatten(0, tuple(drawn.questions.shape[:2]))


def answer_loss(logits: Tensor, drawn: FactDocuments) -> Tensor:
    """Cross-entropy of the characters of the answers, mean per task, (tasks,)."""
    tasks = len(logits)
    answers = drawn.questions[..., -DIGITS:].reshape(tasks, -1)
    losses = cross_entropy(
        logits.reshape(tasks, answers.shape[1], -1).mT, answers, reduction="none"
    )
    return losses.mean(1)
