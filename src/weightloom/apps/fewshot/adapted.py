"""A few-shot model adapted to a user's own task.

A plain network, and what goes before and after it.

In:   a trained learner and a support set; or a folder that a network was saved to.
Out:  `AdaptedTask`, which predicts and saves.
"""

import copy
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weightloom.apps.fewshot.export import plain_network, write_network
from weightloom.apps.fewshot.inputs import Inputs, Targets, inputs_of, targets_of
from weightloom.apps.fewshot.problems import Problem
from weightloom.apps.fewshot.support import Given, read_inputs, read_support
from weightloom.errors import ConfigError, DataError
from weightloom.files import check_empty, make_folder, write_atomically
from weightloom.learners.learner import Learner, Support
from weightloom.texts import kind_of, read_json, shortened

AT_ONCE = 1000
"""Inputs that go through the network together."""


@dataclass
class AdaptedTask:
    """A network for one task."""

    network: Callable[[Tensor], Tensor]
    """A plain network: inputs (batch, *event) to logits (batch, classes), or numbers (batch,
    outputs)."""
    inputs: Inputs
    """Preprocessing."""
    classes: tuple[Any, ...]
    """Class of each column of `predict_proba`; empty for a regression."""
    targets: Targets | None
    """Unit of a regression; None for a classification."""
    about: str
    """The task in a sentence."""
    write: Callable[[Path], dict[str, Any]]
    """Writes the network and all that belongs to it to a folder; `save` calls it."""

    def predict(self, inputs: Any) -> Any:
        """Name the class of each input; or predict its numbers.

        Args:
            inputs: Given as in training: paths, arrays, texts or rows; or the path of a folder or
                file of them.

        Returns:
            Class names, a list; of a regression an array (inputs,), or (inputs, outputs) where
            there are several.

        Raises:
            DataError: If an input cannot be read, or does not fit.
        """
        items, names = read_inputs(inputs, self.inputs)
        if self.targets is not None:
            return self._values(items, names)
        return [
            self.classes[column] for column in self._probabilities(items, names).argmax(1).tolist()
        ]

    def predict_proba(self, inputs: Any) -> NDArray[np.float64]:
        """Return the probability of each class, (inputs, classes).

        The columns are those of ``classes``.

        Raises:
            ConfigError: If it is a regression.
            DataError: If an input cannot be read, or does not fit.
        """
        return self._probabilities(*read_inputs(inputs, self.inputs))

    def predict_rows(self, inputs: Sequence[str]) -> list[dict[str, Any]]:
        """Answer inputs that a person typed.

        A row each, with class and probability, or with its numbers.
        """
        items, names = read_inputs(inputs, self.inputs)
        if self.targets is None:
            sure = self._probabilities(items, names)
            chosen = sure.argmax(1)
            return [
                {"input": name, "class": self.classes[column], "probability": float(row[column])}
                for name, column, row in zip(names, chosen.tolist(), sure, strict=True)
            ]
        values = self._values(items, names).reshape(len(items), -1)
        columns = getattr(self.inputs, "names", ())
        return [
            (dict(zip(columns, _shown(item), strict=True)) if columns else {"input": name})
            | dict(zip(self.targets.names, map(float, row), strict=True))
            for item, name, row in zip(items, names, values, strict=True)
        ]

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write a plain network, its preprocessing and its classes.

        `load_adapted` reads it, and so can others.

        Args:
            folder: Where to write ``network.pt2``, ``network.safetensors`` and ``network.json``;
                made if need be.

        Returns:
            Contents of ``network.json``.

        Raises:
            ConfigError: If ``folder`` holds a network already.
        """
        return self.write(Path(folder).expanduser())

    def _outputs(self, items: list[Any], names: list[str]) -> Tensor:
        with torch.no_grad():
            return torch.cat(
                [self.network(part) for part in self.inputs.encode(items, names).split(AT_ONCE)]
            )

    def _values(self, items: list[Any], names: list[str]) -> NDArray[np.float64]:
        assert self.targets is not None
        values: NDArray[np.float64] = self.targets.decode(self._outputs(items, names)).numpy()
        return values[:, 0] if values.shape[1] == 1 else values

    def _probabilities(self, items: list[Any], names: list[str]) -> NDArray[np.float64]:
        if self.targets is not None:
            raise ConfigError(
                "`predict_proba` was asked of a regression. It predicts numbers, not classes. Call "
                "`predict`."
            )
        sure: NDArray[np.float64] = self._outputs(items, names).double().softmax(1).numpy()
        return sure


def adapt_to(learner: Learner, problem: Problem, support: Any) -> AdaptedTask:
    """Adapt a trained learner to a task of the user's own.

    Args:
        learner: The method, trained.
        problem: What it was trained on.
        support: As `read_support` takes it.

    Raises:
        DataError: If the examples cannot be read or do not fit.
        ConfigError: If the method cannot be adapted to so many classes.
    """
    inputs, targets = problem.inputs(), problem.targets()
    examples = read_support(support, inputs, problem.kind, targets)
    x = inputs.encode(examples.x, examples.names)
    classes: tuple[Any, ...] = ()
    if targets is None:
        y, classes = problem.labels(examples.y)
        _check_classes(learner, classes)
        about = f"{len(x)} examples of {len(set(examples.y))} classes"
        about += f": {', '.join(str(name) for name in classes)}" if len(classes) <= 20 else ""
    else:
        targets, y = targets.of_task(examples.y), _centred(targets, examples)
        about = f"{len(x)} points, predicting {', '.join(targets.names)}"
    one = Support(x[None], y[None], torch.ones(1, len(x), dtype=torch.bool))
    learner.eval()
    torch.manual_seed(0)  # for methods that start from a random network
    with torch.no_grad():
        params = learner.adapt(one)
    facts = facts_of(about, inputs, classes, targets)
    try:
        network: Callable[[Tensor], Tensor] = plain_network(learner, params, one)
    except ConfigError:  # it answers all the same; `save` says that it cannot be written
        network = partial(_answer, copy.deepcopy(learner), params)
    write = partial(write_network, learner, one, about=facts, params=params)
    return AdaptedTask(network, inputs, classes, targets, about, write)


def load_adapted(folder: str | Path) -> AdaptedTask:
    """Load an adapted network from the folder that it was saved to; nothing else is needed.

    Args:
        folder: What `AdaptedTask.save` wrote, for you or for somebody whom you trust: its
            ``network.pt2`` is a program, and ``torch.export.load`` can run code that stands in one.

    Raises:
        DataError: If there is none, or a file of it is damaged.
    """
    place = Path(folder).expanduser()
    try:
        facts = read_json(place / "network.json")
        inputs, targets = inputs_of(facts["inputs"]), facts["targets"]
        program = torch.export.load(place / "network.pt2").module()
    except Exception as error:  # torch and zipfile raise a dozen types for a damaged program
        raise DataError(
            f"`{shortened(place)}` holds no adapted network that can be read "
            f"({type(error).__name__}: {error}). It "
            "holds `network.json` and `network.pt2`, as `save` wrote them. Pass such a folder."
        ) from error
    classes = tuple(facts["classes"])
    return AdaptedTask(
        program,
        inputs,
        classes,
        targets and targets_of(targets),
        facts["task"],
        partial(_copy, place, facts),
    )


def facts_of(
    about: str, inputs: Inputs, classes: Sequence[Any], targets: Targets | None
) -> dict[str, Any]:
    """Return what ``network.json`` says of a task, its preprocessing and its answers."""
    words = "Logits, one for each of `classes`; their softmax is the probability."
    return {
        "task": about,
        "inputs": inputs.facts(),
        "classes": list(classes),
        "targets": targets.facts() if targets else None,
        "answers": targets.facts()["in_words"] if targets else words,
    }


def _check_classes(learner: Learner, classes: Sequence[Any]) -> None:
    if len(classes) < 2:
        raise DataError(
            f"The support set is of {len(classes)} classes. There is nothing to tell apart. Give "
            "two classes or more."
        )
    if learner.ways not in (None, len(classes)):
        raise ConfigError(
            f"The support set has {len(classes)} classes, but the head of this method has "
            f"{learner.ways} rows, and it knows no others. Give {learner.ways} classes, train with "
            f"`ways={len(classes)}`, or with a method whose "
            "head is made for each task, as `hypernetwork` or `protonet`."
        )


def _answer(learner: Learner, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return learner.predict(params, x[None])[0]


def _centred(targets: Targets, examples: Given) -> Tensor:
    return (
        targets.of_task(examples.y).encode(examples.y)
        if targets.centred
        else targets.encode(examples.y)
    )


def _shown(item: Any) -> list[float]:
    if isinstance(item, str):
        return [float(cell) for cell in item.split(",")]
    return [float(value) for value in np.asarray(item, dtype=float).reshape(-1)]


def _copy(source: Path, facts: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write a loaded network once more."""
    if kind_of(folder / "network.json") != "nothing":
        raise ConfigError(
            f"`{folder}` holds a network already. It is never written over. Pass another folder."
        )
    check_empty(folder, "folder")
    make_folder(folder, "folder")
    for name in facts["files"]:
        if name != "network.json":
            shutil.copyfile(source / name, folder / name)
    write_atomically(folder / "network.json", json.dumps(facts, indent=1) + "\n")
    return facts
