"""Fields from Python: train a surrogate, predict with it, write the network of one equation.

In:   the name of a family and options, or the folder of a run.
Out:  `TrainedField`, which predicts solutions; `AdaptedField`, the plain network of one.
"""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.apps.experiment import load as load_run
from weightloom.apps.experiment import train_model
from weightloom.apps.fields.app import FieldsApp
from weightloom.apps.fields.config import FieldsConfig, FieldsOptions
from weightloom.apps.fields.methods import GeneratedField, Surrogate
from weightloom.apps.fields.problem import FieldProblem, predict_grid
from weightloom.apps.fields.symmetry import canonical
from weightloom.base import specialise
from weightloom.errors import ConfigError, DataError, ShapeError
from weightloom.files import check_empty, make_folder, save_tensors, write_atomically
from weightloom.runs.loggers import MetricLogger
from weightloom.tasks.fields import COEFFICIENTS, MODES
from weightloom.texts import TextError, kind_of, read_json

INPUTS = COEFFICIENTS + 2 * MODES
"""Inputs of an equation."""
EXAMPLE = '{"speed": 1.0, "viscosity": 0.1, "cosines": [0, 0, 0, 0], "sines": [1, 0, 0, 0]}'
"""A file of inputs: u(x, 0) = sin x."""


@dataclass(frozen=True)
class TrainedField:
    """A trained surrogate, with its problem and options."""

    model: Surrogate
    """The trained method; differentiable by inputs and positions."""
    problem: FieldProblem
    """The family of equations."""
    config: FieldsOptions
    """Options of the training, all filled in."""

    def predict(self, inputs: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Predict solutions on a grid, (fields, times, points).

        Args:
            inputs: Speed, logarithm of the viscosity, cosines and sines, (fields, 10).
            x: Positions, (points,).
            t: Times, (times,).

        Raises:
            ShapeError: If ``inputs`` has another shape.
        """
        if inputs.ndim != 2 or inputs.shape[1] != INPUTS:
            raise ShapeError(
                f"`inputs` has the shape {tuple(inputs.shape)}. Each row describes one equation: "
                "speed, logarithm of the viscosity, four cosines and four sines. Pass "
                f"(fields, {INPUTS})."
            )
        return predict_grid(self.model, inputs, x, t)

    def network(self, inputs: Tensor) -> nn.Module:
        """Return the plain network of one equation, from (x, t) to u.

        Args:
            inputs: Inputs of the equation, (10,).
        """
        return plain_network(self.model, inputs)


class AdaptedField:
    """The plain network of one equation.

    Args:
        model: A trained method that generates all parameters of a network.
        inputs: Inputs of the equation, (10,).
        about: Description of the equation.

    Raises:
        ConfigError: If the method writes no network of its own for an equation.
    """

    def __init__(self, model: Any, inputs: Tensor, about: str) -> None:
        self.model, self.inputs, self.about = model, inputs, about
        self.net = plain_network(model, inputs)

    def predict_rows(self, inputs: Sequence[str]) -> list[dict[str, Any]]:
        """Return one row, with x, t and u, for each typed ``"x,t"``.

        Raises:
            ConfigError: If a text is not two numbers.
        """
        rows = []
        for text in inputs:
            try:
                x, t = (float(number) for number in text.split(","))
            except ValueError as error:
                raise ConfigError(
                    f"`{text}` cannot be read as a position. It is x, in radians, and t, separated "
                    "by a comma. Type for instance `1.57,0.5`."
                ) from error
            with torch.no_grad():
                rows.append({"x": x, "t": t, "u": self.net(torch.tensor([[x, t]])).item()})
        return rows

    def save(self, folder: Path) -> dict[str, Any]:
        """Write the network as a program, its parameters and a description into a folder.

        ``network.pt2`` is the program, for ``torch.export.load`` and any number of positions;
        ``network.safetensors`` holds its parameters and ``network.json`` the description. A program
        from an unknown source can run code when it is loaded.

        Args:
            folder: Folder to write, empty or missing.

        Returns:
            Contents of ``network.json``.

        Raises:
            ConfigError: If the folder is not empty.
            CheckpointError: If a file cannot be written.
        """
        if kind_of(folder / "network.json") != "nothing":
            raise ConfigError(
                f"`{folder}` holds a network already. It is never overwritten. Pass another "
                "`--out`."
            )
        check_empty(folder, "--out")
        make_folder(folder, "--out")
        at = torch.rand(8, 2, generator=torch.Generator().manual_seed(0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sizes = ({0: torch.export.Dim.DYNAMIC},)
            program = torch.export.export(self.net, (at,), dynamic_shapes=sizes)
            torch.export.save(program, folder / "network.pt2")
        with torch.no_grad():
            expected = self.model.predict(self.inputs[None], at[None])[0]
            off = (torch.export.load(folder / "network.pt2").module()(at)[:, 0] - expected).abs()
        speed, viscosity, *state = self.inputs.tolist()
        facts = {
            "task": self.about,
            "inputs": {
                "speed": speed,
                "log_viscosity": viscosity,
                "cosines": state[:MODES],
                "sines": state[MODES:],
            },
            "input": ["batch", 2],
            "output": ["batch", 1],
            "files": ["network.safetensors", "network.json", "network.pt2"],
            "largest_difference": float(off.max()),
        }
        save_tensors(folder / "network.safetensors", self.net.state_dict(), facts)
        write_atomically(folder / "network.json", json.dumps(facts, indent=1) + "\n")
        return facts


def plain_network(model: Any, inputs: Tensor) -> nn.Module:
    """Return the plain network of one equation: mirror and shift, the base, scale.

    Args:
        model: A trained method.
        inputs: Inputs of the equation, (10,).

    Raises:
        ConfigError: If the method writes no network of its own for an equation.
    """
    net = getattr(model, "net", None)
    if not isinstance(net, GeneratedField):
        raise ConfigError(
            "This method writes no network for an equation: it has one network for all, or looks "
            "solutions up. A network of one equation is generated. Train `--method generated`."
        )
    with torch.no_grad():
        known = canonical(model.family, inputs[None].float())
        own = specialise(net.hyper.base, net.params(known.condition))
        before, after = nn.Linear(2, 2), nn.Linear(1, 1, bias=False)
        sign, shift = known.sign.item(), known.shift.item()
        before.weight.copy_(torch.tensor([[sign, 0.0], [0.0, 1.0]]))
        before.bias.copy_(torch.tensor([-sign * shift, 0.0]))
        after.weight.fill_(known.scale.item())
    return nn.Sequential(before, own, after).eval().requires_grad_(False)


def read_inputs(path: str) -> Tensor:
    """Read the inputs of one equation, (10,), from a JSON file.

    Args:
        path: The file: ``speed``, ``viscosity``, and lists of 4 ``cosines`` and 4 ``sines``.

    Raises:
        DataError: If the file cannot be read, or lacks a number.
    """
    try:
        found = read_json(Path(path))
        numbers = [found["speed"], found["viscosity"], *found["cosines"], *found["sines"]]
        inputs = torch.tensor([float(number) for number in numbers])
    except (TextError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"`{path}` cannot be read as the inputs of an equation "
            f"({type(error).__name__}: {error}). They are a JSON object of numbers. Write one like "
            f"`{EXAMPLE}`."
        ) from error
    if len(inputs) != INPUTS or not bool(inputs.isfinite().all()) or not inputs[1] > 0:
        raise DataError(
            f"`{path}` holds {len(inputs)} numbers, with a viscosity of {inputs[1]:g}. An equation "
            f"has {INPUTS} finite ones, and a viscosity above 0. Write them like `{EXAMPLE}`."
        )
    inputs[1] = inputs[1].log()
    return inputs


def inputs_of_task(problem: FieldProblem, task: str) -> tuple[Tensor, str]:
    """Return the inputs of a test function, (10,), and its description.

    Args:
        problem: The test functions.
        task: Number of a function in range, from 0, as text.

    Raises:
        ConfigError: If it is not the number of a test function.
    """
    setting, fields = next(iter(problem.settings.items()))
    if not task.isdecimal() or int(task[:20]) >= len(fields.inputs):
        raise ConfigError(
            f"`--task {task[:40]}` is no number of a test function. There are "
            f"{len(fields.inputs)}, numbered from 0 to {len(fields.inputs) - 1}. Type one of them, "
            "as in `--task 0`; for an equation of your own, `weightloom adapt RUN inputs.json`."
        )
    return fields.inputs[int(task)], f"test function {task}, {setting}, of {problem.config.data}"


def train(
    data: str,
    *,
    run: str | Path | None = None,
    quiet: bool = False,
    loggers: Sequence[str | MetricLogger] = (),
    **options: Any,
) -> TrainedField:
    """Train one surrogate of a family of equations.

    Args:
        data: A name from `weightloom list fields`, or ``module:Class``.
        run: Folder to keep the run in; None keeps no files.
        quiet: Show no progress.
        loggers: Loggers of metrics, by name (`weightloom.runs.loggers.LOGGERS`) or as objects.
        **options: Fields of `FieldsConfig`, such as ``method``, ``minutes`` or ``width``.

    Raises:
        ConfigError: If an option is unknown or does not fit.
        NonFiniteError: If a loss or gradient is NaN or infinite.
    """
    config = FieldsConfig.from_dict({"data": data, **options})
    folder = None if run is None else Path(run).expanduser()
    loaded = train_model(FieldsApp(), config, folder, quiet, loggers=loggers)
    return TrainedField(loaded.model.eval(), loaded.problem, loaded.config)


def load(run: str | Path, *, trust: bool = False) -> TrainedField:
    """Load the trained method of a run of `weightloom fields`.

    Args:
        run: Folder of the run.
        trust: Import the code that the run's options name as ``module:Class``.

    Raises:
        ConfigError: If the options name code and ``trust`` is False.
        DataError: If the folder holds no run.
        CheckpointError: If the checkpoint is missing or damaged.
    """
    loaded = load_run(FieldsApp(), Path(run).expanduser(), only=True, trust=trust)
    return TrainedField(loaded.model.eval(), loaded.problem, loaded.config)
