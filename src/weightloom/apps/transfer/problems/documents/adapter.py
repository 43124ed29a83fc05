"""An adapter of one layer, written from a document: one rank per token, values solved by ridge.

In:   states of a frozen model at every token of a document, and the next token of each.
Out:  Params of one linear layer of that model, per document.
Knows nothing of facts and questions.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from weightloom.conditions.documents import Alignment
from weightloom.forms import Factored, LowRank
from weightloom.forms.joined import join, solve_values
from weightloom.params import Params

RIDGE, SIZE = 10.0, 60.0
"""Ridge, and length of an answer, before training."""
FLOOR = 0.1
"""Least variance of a coordinate of a question, as a share."""
SHARPNESS, LEAST = 20.0, 1e-5
"""Steepness of the weights of tokens, and the least weight."""


class DocumentCondition(NamedTuple):
    """Tokens of documents as a frozen model sees them."""

    states: Tensor
    """State at every token, (tasks, windows, tokens, states)."""
    following: Tensor
    """Probability of each next token, one-hot for a known one, (tasks, windows, tokens, known)."""


class DocumentAdapter(nn.Module):
    """Writes an associative memory of a document into one linear layer.

    Each token becomes one rank: its key is its state, mapped to the state in which a question would
    ask for the next token; its value makes the model answer that token. The ranks of all pieces are
    joined, and the values solved again by ridge regression over the joined ranks.

    A new adapter takes the state of a token itself as its key, and all tokens alike. `follow` sets
    the maps by canonical correlation and the tokens' weights by least squares, in closed form;
    gradient descent goes on from there.

    Args:
        layer: The adapted layer; it has a bias.
        name: Its name in the base.
        answers: Change of the layer's output that makes the base say each token, (known, outputs).
        coordinates: Coordinates of a key, at most the inputs of the layer.
    """

    answers: Tensor
    document_mean: Tensor
    question_mean: Tensor

    def __init__(self, layer: nn.Linear, name: str, answers: Tensor, coordinates: int) -> None:
        super().__init__()
        self.name = name
        inputs = layer.in_features
        self.register_buffer("answers", answers)
        self.register_buffer("document_mean", torch.zeros(inputs))
        self.register_buffer("question_mean", torch.zeros(inputs))
        self.document = nn.Parameter(torch.eye(inputs, coordinates))
        self.question = nn.Parameter(torch.eye(inputs, coordinates))
        self.importance = nn.Linear(inputs, 1)
        nn.init.zeros_(self.importance.weight)
        nn.init.zeros_(self.importance.bias)
        self.log_ridge = nn.Parameter(torch.tensor(RIDGE).log())
        self.log_size = nn.Parameter(torch.tensor(SIZE).log())

    @torch.no_grad()
    def follow(self, found: Alignment) -> None:
        """Take over an alignment of states of documents and questions.

        A coordinate of correlation c is expected at c times the document's, with variance 1 - c²
        around it, so it counts 1 / (1 - c² + `FLOOR`).

        Args:
            found: The alignment.
        """
        coordinates = self.document.shape[1]
        correlations = found.correlations[:coordinates]
        scale = (1 - correlations.square() + FLOOR).rsqrt()
        self.document.copy_(found.document[:, :coordinates] * correlations * scale)
        self.question.copy_(found.question[:, :coordinates] * scale)
        self.document_mean.copy_(found.document_mean)
        self.question_mean.copy_(found.question_mean)

    @torch.no_grad()
    def weigh(self, states: Tensor, asked: Tensor) -> None:
        """Set the weights of tokens by least squares, such that tokens that are asked for count.

        Args:
            states: States of tokens, (rows, states).
            asked: 1 for tokens whose next token is asked for, else 0, (rows,).
        """
        inputs = nn.functional.pad(states - self.document_mean, (0, 1), value=1.0).double()
        square = inputs.mT @ inputs / len(inputs)
        square.diagonal().add_(1e-3 * square.diagonal().mean())
        found = torch.linalg.solve(square, inputs.mT @ asked.double() / len(inputs))
        self.importance.weight.copy_(SHARPNESS * found[None, :-1])
        self.importance.bias.copy_(SHARPNESS * (found[-1:] - 0.5))

    def forward(self, condition: DocumentCondition, layer: nn.Linear) -> Params:
        """Write the adapter of each document.

        Args:
            condition: The documents.
            layer: The adapted layer.
        """
        states, following = condition
        pieces = [
            self._piece(*its, layer.weight)
            for its in zip(states.unbind(1), following.unbind(1), strict=True)
        ]
        keys = torch.cat([keys for keys, _ in pieces], 1)
        joined = join([params for _, params in pieces])[self.name + ".weight"]
        assert isinstance(joined, Factored)
        weights = self.importance(states.flatten(1, 2) - self.document_mean)[..., 0].sigmoid()
        values = solve_values(
            keys.double(),
            joined.factors["up"].mT.double(),
            self.log_ridge.exp(),
            weights.clamp_min(LEAST).double(),
        )
        factors = {"up": values.mT.to(keys.dtype), "down": joined.factors["down"]}
        offset = factors["up"] @ (factors["down"] @ self.question_mean)[..., None]
        return Params(
            {
                self.name + ".weight": Factored(joined.form, joined.own, factors),
                self.name + ".bias": layer.bias.detach() - offset[..., 0],
            }
        )

    def _piece(self, states: Tensor, following: Tensor, own: Tensor) -> tuple[Tensor, Params]:
        """Keys of one piece in common coordinates, and its adapter with unsolved values."""
        keys = (states - self.document_mean) @ self.document
        targets = following @ self.answers * self.log_size.exp()
        factors = {"up": targets.mT, "down": keys @ self.question.mT}
        form = LowRank(keys.shape[1])
        return keys, Params({self.name + ".weight": Factored(form, own.detach(), factors)})
