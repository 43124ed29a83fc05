"""Export of the network of one task: a plain torch network that needs no part of this library.

In:   a trained learner and the support set of one task.
Out:  ``network.pt2``, ``network.safetensors`` and ``network.json``.
"""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.fewshot.judge import draw_judged_task
from weightloom.apps.fewshot.problems import Problem
from weightloom.apps.fewshot.problems.classes import ClassProblem
from weightloom.base import specialise
from weightloom.errors import ConfigError
from weightloom.files import check_empty, make_folder, save_tensors, write_atomically
from weightloom.learners.learner import Learner, Support
from weightloom.params import Params
from weightloom.texts import kind_of


def export_task(
    learner: Learner, problem: Problem, config: FewShotOptions, task: str, folder: Path
) -> dict[str, Any]:
    """Adapt a learner to one meta-test task and write the resulting network.

    Args:
        learner: The trained method; put into eval mode.
        problem: Source of the meta-test tasks.
        config: Options; the task has the first of its shots and ways.
        task: Number of the task, from 0 to ``config.test_tasks`` - 1, as text.
        folder: Folder to write to; created if missing.

    Returns:
        Contents of ``network.json``.

    Raises:
        ConfigError: If ``task`` is not the number of a judged task, or ``folder`` already holds a
            network.
    """
    if not task.isdecimal():
        raise ConfigError(
            f"`--task {task}` is not a number. It counts meta-test tasks from 0. Type `--task 0`; "
            f"for a task of your own type `weightloom adapt RUN {task}`."
        )
    number = int(task[:20])
    if number >= config.test_tasks:
        raise ConfigError(
            f"`--task {task[:20]}` but the run was judged on {config.test_tasks:,} tasks, numbered "
            f"from 0 to {config.test_tasks - 1}. The network of one of these is written. Type one "
            "of these numbers, or more `--test-tasks`."
        )
    shots = config.shots[0]
    drawn = draw_judged_task(problem, shots, number, config.test_tasks)
    about: dict[str, Any] = {
        "task": f"meta-test task {task}, {problem.setting(shots, config.ways[0])}"
    }
    if isinstance(problem, ClassProblem):
        about["classes"] = drawn.names(problem.held_out.names)[0]
    raw = None
    if isinstance(problem, ClassProblem) and problem.read:
        about |= {"inputs": problem.inputs().facts(), **problem.facts()}
        raw = problem.read.reader, problem.pools.test.examples[:4, 0].float() / 255
    return write_network(learner, drawn.support, folder, about, raw=raw)


def write_network(
    learner: Learner,
    support: Support,
    folder: Path,
    about: dict[str, Any],
    params: Params | None = None,
    raw: tuple[nn.Module, Tensor] | None = None,
) -> dict[str, Any]:
    """Adapt a learner to one support set and write the resulting network.

    Writes ``network.safetensors`` (parameters), ``network.json`` (a description) and
    ``network.pt2`` (a program for ``torch.export.load``, for any batch size). Loading a program of
    a stranger can run code; the other two cannot.

    Args:
        learner: The trained method; put into eval mode.
        support: Support set of one task.
        folder: Folder to write to; created if missing.
        about: Further entries of the description.
        params: Adapted parameters; None adapts ``learner`` to ``support``.
        raw: Frozen network that turned examples into ``support.x``, and a few such examples,
            (batch, *event): it becomes the first part of the network that is written.

    Returns:
        Contents of ``network.json``.

    Raises:
        ConfigError: If ``folder`` already holds a network, or the method's prediction is not that
            of a plain network.
    """
    if kind_of(folder / "network.json") != "nothing":
        raise ConfigError(
            f"`{folder}` holds a network already. It is never overwritten. Pass another `--out`."
        )
    check_empty(folder, "--out")
    learner.eval()
    if params is None:
        with torch.no_grad():
            params = learner.adapt(support)
    net, sample = plain_network(learner, params, support), support.x[0]
    with torch.no_grad():
        inner = sample if raw is None else raw[0](raw[1])
        expected = learner.predict(params, inner[None])[0]
    if raw is not None:
        net, sample = nn.Sequential(raw[0], net), raw[1]
    facts = {
        "network": str(net),
        "input": ["batch", *sample.shape[1:]],
        "output": ["batch", *net(sample).shape[1:]],
        "parameters": {name: list(value.shape) for name, value in net.state_dict().items()},
        "files": ["network.safetensors", "network.json", "network.pt2"],
        **about,
    }
    make_folder(folder, "--out")
    _save_program(net, sample, folder / "network.pt2")
    with torch.no_grad():
        again = torch.export.load(folder / "network.pt2").module()(sample)
        facts["largest_difference"] = float((again - expected).abs().max())
    save_tensors(folder / "network.safetensors", net.state_dict(), facts)
    write_atomically(folder / "network.json", json.dumps(facts, indent=1) + "\n")
    return facts


def plain_network(learner: Learner, params: Mapping[str, Tensor], support: Support) -> nn.Module:
    """Build the network of one task, and check it against the learner on the support set.

    Args:
        learner: The trained method, in eval mode.
        params: Adapted parameters of the task.
        support: Support set of the task.

    Returns:
        The base network with ``params`` filled in, frozen and in eval mode.

    Raises:
        ConfigError: If the two predictions differ by more than 1e-4: some methods do more than run
            their base network with adapted parameters.
    """
    sample = support.x[0]
    try:
        net = specialise(learner.base, params).eval().requires_grad_(False)
        torch.testing.assert_close(
            net(sample), learner.predict(params, sample[None])[0], rtol=1e-4, atol=1e-4
        )
    except (ConfigError, AssertionError) as error:
        why = str(error).splitlines()[0].partition(". ")[0]
        raise ConfigError(
            f"{type(learner).__name__} predicts with more than a network of one task ({why}). A "
            "plain network holds the base and the parameters of the task alone. Train another "
            "method, such as `hypernetwork`."
        ) from error
    return net


def _save_program(net: nn.Module, sample: Tensor, path: Path) -> None:
    # Contiguous, since the program is traced with the strides of this input.
    batch = sample.new_zeros(max(len(sample), 2), *sample.shape[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            net, (batch,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        )
        torch.export.save(program, path)
