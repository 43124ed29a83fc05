"""A few-shot model adapted to a user's own task: network, preprocessing and classes.

In:   a trained learner and a support set; or a folder that a network was saved to.
Out:  `AdaptedTask`, which predicts and saves.
"""

import copy
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from weightloom.apps.fewshot.export import plain_network, write_network
from weightloom.apps.fewshot.inputs import Inputs, Sentences, Targets, inputs_of, targets_of
from weightloom.apps.fewshot.problems import Problem
from weightloom.apps.fewshot.support import Given, read_inputs, read_support
from weightloom.errors import ConfigError, DataError, nearest
from weightloom.files import check_empty, make_folder, write_atomically
from weightloom.learners.learner import Learner, Support
from weightloom.tasks import name_in_words
from weightloom.texts import kind_of, read_json, shortened

WORD = re.compile(r"[^\W\d_]{2}")
"""Two letters in a row, without which a name is not read."""
AT_ONCE = 1000
"""Maximum batch size of predictions, in inputs."""
NUMBERS_AT_ONCE = 1_000_000
"""Numbers in a batch of predictions; larger inputs are answered in smaller batches."""


@dataclass
class AdaptedTask:
    """Network for one task, with its preprocessing and the meaning of its outputs."""

    network: Callable[[Tensor], Tensor]
    """Plain network: preprocessed inputs (batch, *event) to logits (batch, classes), or to scaled
    targets (batch, outputs)."""
    inputs: Inputs
    """Preprocessing of one example."""
    classes: tuple[Any, ...]
    """Class of each column of `predict_proba`; empty for a regression."""
    targets: Targets | None
    """Names and scale of the targets of a regression; None for a classification."""
    about: str
    """The task in a sentence."""
    write: Callable[[Path], dict[str, Any]]
    """Writes the network and its description to a folder and returns the description; called by
    `save`."""

    def predict(self, inputs: Any) -> Any:
        """Predict the class of each input, or its targets in a regression.

        Args:
            inputs: Paths, arrays, texts or rows, in the form used for training; or the path of a
                folder or file that holds them.

        Returns:
            Class names, a list; in a regression an array (inputs,), or (inputs, outputs) if the
            targets are several numbers.

        Raises:
            DataError: If an input cannot be read or has the wrong form.
        """
        items, names = read_inputs(inputs, self.inputs)
        if self.targets is not None:
            return self._values(items, names)
        return [
            self.classes[column] for column in self._probabilities(items, names).argmax(1).tolist()
        ]

    def predict_proba(self, inputs: Any) -> NDArray[np.float64]:
        """Return class probabilities, (inputs, classes), columns in the order of ``classes``.

        Raises:
            ConfigError: If the task is a regression.
            DataError: If an input cannot be read or has the wrong form.
        """
        return self._probabilities(*read_inputs(inputs, self.inputs))

    def predict_rows(self, inputs: Sequence[str]) -> list[dict[str, Any]]:
        """Predict typed inputs, one table row per input.

        Returns:
            Rows with the columns ``input``, ``class`` and ``probability``; in a regression the
            input and a column per target.

        Raises:
            DataError: If an input cannot be read or has the wrong form.
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
        """Write a plain network, its preprocessing and its classes to a folder.

        `load_adapted` reads the folder. The files are also usable without this library.

        Args:
            folder: Folder for ``network.pt2``, ``network.safetensors`` and ``network.json``;
                created if missing.

        Returns:
            Contents of ``network.json``.

        Raises:
            ConfigError: If ``folder`` already holds a network, or the method's prediction is not
                that of a plain network.
        """
        return self.write(Path(folder).expanduser())

    def _outputs(self, items: list[Any], names: list[str]) -> Tensor:
        x = self.inputs.encode(items, names)
        at_once = max(1, min(AT_ONCE, NUMBERS_AT_ONCE // max(1, x[0].numel())))
        with torch.no_grad():
            return torch.cat([self.network(part) for part in x.split(at_once)])

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


Names = bool | Mapping[Any, str] | None
"""True to read the names of classes as examples, or a description by class; None as in training."""


def adapt_to(learner: Learner, problem: Problem, support: Any, names: Names = None) -> AdaptedTask:
    """Adapt a trained learner to a task of the user's own.

    Args:
        learner: The trained method; put into eval mode.
        problem: The problem it was trained on, which defines the preprocessing.
        support: Support set, in a form that `read_support` accepts.
        names: True: the name of each class is one more example, for texts; or a mapping from
            classes to descriptions, read in place of their names. False: names are not read. None:
            as in training, if all classes have names with a word.

    Returns:
        The adapted network. If the method is more than a plain network, it still predicts, but
        `AdaptedTask.save` raises.

    Raises:
        DataError: If an example cannot be read or has the wrong form.
        ConfigError: If the method cannot be adapted to this number of classes, or ``names`` are to
            be read and the examples are no texts.
    """
    inputs, targets = problem.inputs(), problem.targets()
    examples = read_support(support, inputs, problem.kind, targets)
    given = inputs.encode(examples.x, examples.names)
    x, reader = problem.encode(given), problem.reader()
    items, item_names, y, classes, targets = prepare(
        learner, problem, examples, inputs, targets, names
    )
    if targets is None:
        about = f"{len(x)} examples of {len(set(examples.y))} classes"
        about += f": {', '.join(str(name) for name in classes)}" if len(classes) <= 20 else ""
    else:
        about = f"{len(x)} points, predicting {', '.join(targets.names)}"
    if len(items) > len(x):
        x = torch.cat([x, inputs.encode(items[len(x) :], item_names[len(x) :])])
        about += ", and the name of each as one more"
    one = Support(x[None], y[None], torch.ones(1, len(x), dtype=torch.bool))
    learner.eval()
    torch.manual_seed(0)  # for methods that start from a random network
    with torch.no_grad():
        params = learner.adapt(one)
    facts = facts_of(about, inputs, classes, targets) | problem.facts()
    try:
        network: Callable[[Tensor], Tensor] = plain_network(learner, params, one)
    except ConfigError:  # no plain network: it still predicts, and `save` raises this error
        network = partial(_answer, copy.deepcopy(learner), params)
    raw = None
    if reader is not None:
        network, raw = partial(_read, reader, network), (reader, given[:4])
    write = partial(write_network, learner, one, about=facts, params=params, raw=raw)
    return AdaptedTask(network, inputs, classes, targets, about, write)


class Prepared(NamedTuple):
    """Support set of a user's own task, before inputs are encoded."""

    items: list[Any]
    """Inputs, and the names of classes that are read as examples."""
    names: list[str]
    """Names of the inputs in messages."""
    y: Tensor
    """Label, or encoded targets, of each input."""
    classes: tuple[Any, ...]
    """Class of each label; empty for a regression."""
    targets: Targets | None
    """Names and scale of the targets of a regression."""


def prepare(
    learner: Learner,
    problem: Problem,
    examples: Given,
    inputs: Inputs,
    targets: Targets | None,
    names: Names = None,
) -> Prepared:
    """Number the classes of a task, or scale its targets.

    Args:
        learner: As for `adapt_to`.
        problem: As for `adapt_to`.
        examples: The support set.
        inputs: Preprocessing of the problem.
        targets: Targets of the problem.
        names: As for `adapt_to`.

    Raises:
        DataError, ConfigError: As by `adapt_to`.
    """
    names = problem.config.names == "support" if names is None else names
    if targets is not None:
        _texts_of((), inputs, names)  # raises if they were asked for
        y = _centred(targets, examples)
        return Prepared(examples.x, examples.names, y, (), targets.of_task(examples.y))
    y, classes = problem.labels(examples.y)
    _check_classes(learner, classes)
    texts = _texts_of(classes, inputs, names)
    if texts:
        y = torch.cat([y, torch.arange(len(classes))])
    items, names_of = [*examples.x, *texts.values()], [*examples.names, *texts]
    return Prepared(items, names_of, y, classes, None)


def load_adapted(folder: str | Path) -> AdaptedTask:
    """Load an adapted network from the folder that `AdaptedTask.save` wrote.

    The run and its data are not needed.

    Args:
        folder: Folder of the network, written by you or by somebody you trust: ``network.pt2`` is
            a program, and ``torch.export.load`` can run code contained in it.

    Raises:
        DataError: If the folder holds no network, or a file of it is damaged.
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
    """Return the task, preprocessing and outputs of a network as entries of ``network.json``.

    Args:
        about: The task in a sentence.
        inputs: Preprocessing.
        classes: Classes in the order of the logits; empty for a regression.
        targets: Names and scale of a regression's targets; None for a classification.
    """
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
            f"The support set has examples of {len(classes)} classes. A classification needs two "
            "or more to choose from. Give two classes or more."
        )
    if learner.ways not in (None, len(classes)):
        raise ConfigError(
            f"The support set has {len(classes)} classes, but the head of this method has "
            f"{learner.ways} rows, a number fixed in training. Give {learner.ways} classes, train "
            f"with `ways={len(classes)}`, or choose a method that makes a head for each task, such "
            "as `hypernetwork` or `protonet`."
        )


def _texts_of(
    classes: Sequence[Any], inputs: Inputs, names: bool | Mapping[Any, str]
) -> dict[str, Any]:
    """Return the description or name of each class by its name in messages; empty for none.

    Numbers and single letters say nothing about a class. All names are read or none, since a class
    with one more example than the others would be favoured.

    Raises:
        ConfigError: If names are to be read and the examples are no texts, or a description is of
            no class of the support set.
    """
    if not names:
        return {}
    if not isinstance(inputs, Sentences):
        raise ConfigError(
            f"`names={names!r}` but an example is {inputs.takes}. Names are encoded like texts. "
            "Leave `names` out."
        )
    described = names if isinstance(names, Mapping) else {}
    if unknown := [name for name in described if name not in classes]:
        raise ConfigError(
            f"`names` describes {str(unknown[0])[:60]!r}, which is no class of the support set. "
            f"{nearest(str(unknown[0])[:60], [str(name) for name in classes])}"
        )
    if not all(name in described or WORD.search(str(name)) for name in classes):
        return {}
    return {
        f"the name of `{name}`": described.get(name, name_in_words(str(name))) for name in classes
    }


def _read(reader: nn.Module, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return network(reader(x))


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
    """Copy a loaded network to another folder."""
    if kind_of(folder / "network.json") != "nothing":
        raise ConfigError(
            f"`{folder}` holds a network already. It is never overwritten. Pass another folder."
        )
    check_empty(folder, "folder")
    make_folder(folder, "folder")
    for name in facts["files"]:
        if name != "network.json":
            shutil.copyfile(source / name, folder / name)
    write_atomically(folder / "network.json", json.dumps(facts, indent=1) + "\n")
    return facts
