"""MiniLM in two parts: frozen lower layers, read once per text, and the last layers, adapted.

In:   texts.
Out:  states of their tokens before the last layers; features of unit length from these.
Knows nothing of classes, tasks and methods.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import normalize

from weightloom.errors import ConfigError, DataError
from weightloom.progress import counting
from weightloom.tasks.text import MOST_TOKENS, sentence_model
from weightloom.texts import shortened

AT_ONCE = 256
"""Texts that the lower layers read at a time."""


class Tail(nn.Module):
    """The last layers of MiniLM, with the mean over tokens and unit length.

    The base network of every method: from states of tokens, as `States.read` gives them, to the
    feature of each text.

    Args:
        model: A BERT model of `transformers`, such as `sentence_model` loads.
        layers: Number of layers.

    Raises:
        ConfigError: If the model has fewer layers.

    Source:
        Reimers and Gurevych, "Sentence-BERT" (2019): the mean over tokens.
    """

    def __init__(self, model: Any, layers: int = 1) -> None:
        super().__init__()
        _check_layers(model, layers)
        self.layer = nn.ModuleList(model.encoder.layer[-layers:])

    def forward(
        self, states: Float[Tensor, "texts tokens width"], there: Bool[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts width"]:
        """Return the features of texts; tokens that are not there change nothing."""
        far = torch.finfo(states.dtype).min
        hidden = far * (~there)[:, None, None, :].to(states.dtype)
        for layer in self.layer:
            states = layer(states, attention_mask=hidden)
        counts = there.sum(1, keepdim=True)
        return normalize((states * there[..., None]).sum(1) / counts, dim=-1)


class States:
    """States of the tokens of texts before the last layers of MiniLM, in float16, without padding.

    Args:
        texts: Texts in English.
        tail: Number of last layers that are left out.

    Raises:
        DataError: If a text has more tokens than the model was trained on. It is not cut.
        ConfigError: If the model has fewer layers.
        MissingExtraError: If the model is not installed.
    """

    def __init__(self, texts: Sequence[str], tail: int = 1) -> None:
        tokenise, model = sentence_model()
        _check_layers(model, tail)
        rows: list[list[int]] = tokenise(list(texts), truncation=False)["input_ids"]
        self.lengths = torch.tensor([len(row) for row in rows])
        """Tokens of each text, (texts,)."""
        _check_lengths(texts, self.lengths)
        self._start = self.lengths.cumsum(0) - self.lengths
        self.width: int = model.config.hidden_size
        """Numbers in the state of a token."""
        self._flat = torch.zeros(int(self.lengths.sum()), self.width, dtype=torch.float16)
        self.frozen = len(model.encoder.layer) - tail
        """Number of layers below the adapted ones."""
        with counting("encoding sentences", len(rows)) as show:
            for done, texts_now in self._batches(AT_ONCE):
                show(done)
                self._keep(
                    texts_now, _lower(model, self.frozen, [rows[i] for i in texts_now.tolist()])
                )

    def __len__(self) -> int:
        return len(self.lengths)

    def read(
        self, texts: Int[Tensor, "*batch"]
    ) -> tuple[Float[Tensor, "*batch tokens width"], Bool[Tensor, "*batch tokens"]]:
        """Return the states of texts by number, padded to the longest, and True for their tokens.

        Args:
            texts: Numbers of texts.
        """
        lengths = self.lengths[texts]
        place = torch.arange(int(lengths.max()))
        there = place < lengths[..., None]
        at = (self._start[texts][..., None] + place).where(there, 0)
        return self._flat[at].float() * there[..., None], there

    def _batches(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the number of texts before, and numbers of texts of similar length."""
        order = self.lengths.argsort()
        for start in range(0, len(order), size):
            yield start, order[start : start + size]

    def _keep(self, texts: Tensor, states: Tensor) -> None:
        for text, its in zip(texts.tolist(), states, strict=True):
            start, length = int(self._start[text]), int(self.lengths[text])
            self._flat[start : start + length] = its[:length]


def _lower(model: Any, layers: int, rows: Sequence[Sequence[int]]) -> Tensor:
    """Return the states of tokenised texts after the first layers, (texts, tokens, width)."""
    lengths = torch.tensor([len(row) for row in rows])
    there = torch.arange(int(lengths.max())) < lengths[:, None]
    tokens = torch.zeros(there.shape, dtype=torch.int64)
    tokens[there] = torch.tensor([number for row in rows for number in row])
    with torch.inference_mode():
        states: Tensor = model.embeddings(input_ids=tokens)
        hidden = torch.finfo(states.dtype).min * (~there)[:, None, None, :].to(states.dtype)
        for layer in model.encoder.layer[:layers]:
            states = layer(states, attention_mask=hidden)
    return states


def _check_layers(model: Any, layers: int) -> None:
    most = len(model.encoder.layer)
    if not 1 <= layers <= most:
        raise ConfigError(
            f"{layers} last layers were asked for. The model has {most}, and one at least is "
            f"adapted. Pass 1 to {most}."
        )


def _check_lengths(texts: Sequence[str], lengths: Tensor) -> None:
    if len(lengths) and int(lengths.max()) > MOST_TOKENS:
        number = int(lengths.argmax())
        raise DataError(
            f"Text {number}, {shortened(texts[number])!r}, has {int(lengths[number])} tokens. "
            f"The model reads up to {MOST_TOKENS}, and a text is not cut: its end may decide its "
            "class. Shorten it, or split it into several texts of the same class."
        )
