"""From a run and one support set to a plain network, with nothing of this library left inside."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weightloom.apps.fewshot.judge import draw_test_tasks
from weightloom.apps.fewshot.learner import Learner, Support
from weightloom.apps.fewshot.problems import Problem
from weightloom.apps.fewshot.problems.classes import ClassProblem
from weightloom.apps.fewshot.run import load_run
from weightloom.base import specialise
from weightloom.checkpoint import save_tensors, write_atomically
from weightloom.errors import ConfigError, DataError


def export_network(run: Path, task: str, folder: Path, shots: int | None = None) -> dict[str, Any]:
    """Adapt the run's hypernetwork to one task and write the resulting network.

    Writes ``network.safetensors`` (parameters), ``network.json`` (what they are) and ``network.pt2`` (a program for
    ``torch.export.load``, for any batch size).

    Args:
        run: The run's folder.
        task: The number of a meta-test task, or a ``.npz`` file with ``support_x`` and ``support_y``.
        folder: Where to write; made if need be.
        shots: Support points per class of a meta-test task. None: the first of the run.

    Returns:
        What was written into ``network.json``.

    Raises:
        ConfigError: If ``task`` is neither a number nor a file, or ``folder`` holds a network already.
        DataError: If the file does not hold a support set that fits the run.
    """
    if (folder / "network.json").exists():
        raise ConfigError(f"`{folder}` holds a network already. It is never written over. Pass another `--out`.")
    config, problem, learners = load_run(run, {"comparators": [], "rates": []})  # one method is all that is needed
    learner = learners[config.method].eval()
    assert config.shots
    support, about = _support(task, problem, shots or config.shots[0])
    with torch.no_grad():
        params = learner.adapt(support)
    net = specialise(learner.base, params).eval().requires_grad_(False)
    sample = support.x[0]
    _check_equal(net, learner, params, sample)
    facts = {
        "made_by": f"weightloom export {run} --task {task}",
        "network": str(net),
        "input": ["batch", *sample.shape[1:]],
        "output": ["batch", *net(sample).shape[1:]],
        "parameters": {name: list(value.shape) for name, value in net.state_dict().items()},
        **about,
    }
    folder.mkdir(parents=True, exist_ok=True)
    _save_program(net, sample, folder / "network.pt2")
    with torch.no_grad():
        again = torch.export.load(folder / "network.pt2").module()(sample)
        facts["largest_difference"] = float((again - learner.predict(params, sample[None])[0]).abs().max())
    save_tensors(folder / "network.safetensors", net.state_dict(), facts)
    write_atomically(folder / "network.json", json.dumps(facts, indent=1) + "\n")
    return facts


def _support(task: str, problem: Problem, shots: int) -> tuple[Support, dict[str, Any]]:
    """Take a support set from the meta-test tasks or from a file, and say what it is."""
    if task.isdecimal():
        drawn = draw_test_tasks(problem, shots, int(task) + 1).take(slice(int(task), None))
        about: dict[str, Any] = {
            "task": f"meta-test task {task}, {problem.setting(shots, (problem.config.ways or (1,))[0])}"
        }
        if isinstance(problem, ClassProblem):
            assert drawn.classes is not None
            about["classes"] = [problem.held_out.names[i] for i in drawn.classes[0].tolist()]
        return drawn.support, about
    path = Path(task)
    if not path.is_file():
        raise ConfigError(
            f"`--task {task}` is neither a number nor a file. A task is a meta-test task by number, or a support set "
            "of your own. Type `--task 0`, or `--task support.npz` with arrays `support_x` and `support_y`."
        )
    return _read_support(path, draw_test_tasks(problem, shots, 1).support_x, problem.kind), {"task": path.name}


def _read_support(path: Path, example: Tensor, kind: str) -> Support:
    """Read a support set; ``example`` shows what an input of this problem looks like."""
    try:
        with np.load(path, allow_pickle=False) as file:
            x, y = torch.from_numpy(file["support_x"]).float(), torch.from_numpy(file["support_y"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(
            f"`{path}` cannot be read as a support set ({error}). It is an .npz file with arrays `support_x` and "
            "`support_y`, without pickles. Write it with `numpy.savez(path, support_x=x, support_y=y)`."
        ) from error
    y = y.long() if kind == "classification" else y.float()
    if x.shape[1:] != example.shape[2:] or len(x) != len(y) or len(x) == 0:
        raise DataError(
            f"`support_x` has shape {tuple(x.shape)} and `support_y` {tuple(y.shape)}. This run takes "
            f"(shots, {', '.join(map(str, example.shape[2:]))}) with a target each. Reshape the arrays."
        )
    if not bool(x.isfinite().all()) or (y.is_floating_point() and not bool(y.isfinite().all())):
        raise DataError(f"`{path}` holds NaN or infinity. A network cannot be made of it. Clean the arrays.")
    if kind == "regression" and y.ndim == 1:
        y = y[:, None]
    return Support(x[None], y[None], torch.ones(1, len(x), dtype=torch.bool))


def _check_equal(net: nn.Module, learner: Learner, params: dict[str, Tensor], sample: Tensor) -> None:
    """Hold the plain network against the run's own answer before anything is written."""
    torch.testing.assert_close(net(sample), learner.predict(params, sample[None])[0], rtol=1e-4, atol=1e-4)


def _save_program(net: nn.Module, sample: Tensor, path: Path) -> None:
    batch = sample.new_zeros(max(len(sample), 2), *sample.shape[1:])  # plain strides: the program is traced with them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(net, (batch,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        torch.export.save(program, path)
