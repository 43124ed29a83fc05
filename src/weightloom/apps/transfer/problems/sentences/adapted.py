"""A trained method, adapted to a user's own classes of sentences.

In:   a table of label and text.
Out:  `AdaptedSentences`, which classifies texts and writes the adapted layers.
Knows nothing of data sets, training and tables.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.apps.transfer.problems.sentences.methods import Method
from weightloom.apps.transfer.problems.sentences.states import States
from weightloom.apps.transfer.problems.sentences.tasks import Episode
from weightloom.errors import DataError
from weightloom.files import check_empty, make_folder, save_tensors, write_atomically
from weightloom.forms import Factored
from weightloom.tasks.text import name_in_words, rows_of_texts


class AdaptedSentences:
    """A method adapted to classes of sentences.

    Args:
        model: Trained method.
        layers: Number of last layers that it changes.
        path: Table with the columns ``label`` and ``text``, as CSV. The name of a class is its
            label, as words. A row without text describes its class by the name alone.

    Raises:
        DataError: If the table is missing or damaged, has fewer than two classes, or a text is
            longer than the model reads.
    """

    def __init__(self, model: Method, layers: int, path: Path) -> None:
        rows = rows_of_texts(path, ["label", "text"])
        self.classes = sorted({row["label"] for row in rows})
        """Labels, in the order of the outputs."""
        if len(self.classes) < 2 or not all(name_in_words(its) for its in self.classes):
            raise DataError(
                f"`{path}` holds the labels {self.classes}. A text is told apart by two or more "
                "classes, each with a name in words. Add rows of another class."
            )
        known = [row for row in rows if row["text"].strip()]
        texts = [row["text"] for row in known] + [name_in_words(its) for its in self.classes]
        labels = [self.classes.index(row["label"]) for row in known]
        y = torch.tensor([[*labels, *range(len(self.classes))]])
        self.layers = layers
        self.model = self._reading(model.eval(), texts)
        none = torch.zeros(1, 0, dtype=torch.int64)
        episode = Episode(torch.arange(len(texts))[None], y, none, none)
        with torch.no_grad():
            adapted = self.model.adapt(episode)
            self.params = self.model.fitted(episode, adapted, self.model.steps)
            features = self.model.features(episode.support, self.params)
            self.head = self.model.head(episode, features, self.params)
        self.about = (
            f"Adapted to {len(self.classes)} classes of sentences by their names and "
            f"{len(known)} examples."
        )
        """Description of the task, one sentence."""

    def _reading(self, model: Method, texts: Sequence[str]) -> Method:
        """Return the same method, which reads these texts."""
        found = copy.copy(model)
        found.states = States(texts, self.layers)
        return found

    @torch.no_grad()
    def predict_proba(self, texts: Sequence[str]) -> Tensor:
        """Return the probability of each class, (texts, classes).

        Args:
            texts: Texts to classify, at least one.

        Raises:
            DataError: If a text is longer than the model reads.
        """
        reader = self._reading(self.model, texts)
        features = reader.features(torch.arange(len(texts))[None], self.params)
        return self.head(features).softmax(2)[0]

    def predict_rows(self, inputs: Sequence[str]) -> list[dict[str, Any]]:
        """Classify typed texts; return one row of the printed table for each."""
        probabilities = self.predict_proba(inputs)
        best = probabilities.max(1)
        return [
            {"text": text, "class": self.classes[place], "probability": round(sure, 3)}
            for text, place, sure in zip(
                inputs, best.indices.tolist(), best.values.tolist(), strict=True
            )
        ]

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the adapted layers and the head to a folder.

        ``sentences.safetensors`` holds the weights of the last layers under their names in the
        BERT model of `transformers`, and ``head.weight`` and ``head.bias``, for features of unit
        length; ``sentences.json`` the classes in the order of the outputs.

        Args:
            folder: Folder to write, empty or missing.

        Returns:
            Contents of ``sentences.json``.

        Raises:
            ConfigError: If the folder is not empty, or cannot be read.
            CheckpointError: If a file cannot be written.
        """
        check_empty(folder, "--out")
        make_folder(folder, "--out")
        first = self.model.states.frozen
        values = {n: its[None] for n, its in self.model.shared().items()} | dict(self.params or {})
        tensors = {
            _in_bert(name, first): (its.dense() if isinstance(its, Factored) else its)[0]
            for name, its in values.items()
        }
        tensors |= {"head.weight": self.head.weight[0], "head.bias": self.head.bias[0]}
        facts = {"source": "all-MiniLM-L6-v2", "classes": self.classes, "layers": self.layers}
        whole = {name: its.detach().contiguous() for name, its in tensors.items()}
        save_tensors(folder / "sentences.safetensors", whole, facts)
        write_atomically(folder / "sentences.json", json.dumps(facts, indent=1) + "\n")
        return facts


def _in_bert(name: str, first: int) -> str:
    """Return the name of a weight of the last layers in the whole model.

    Example:
        >>> _in_bert("layer.0.output.dense.weight", 5)
        'encoder.layer.5.output.dense.weight'
    """
    _, number, rest = name.split(".", 2)
    return f"encoder.layer.{first + int(number)}.{rest}"
