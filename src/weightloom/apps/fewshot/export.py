"""From a learner and one support set to a plain network, with nothing of this library left inside."""

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
        learner: The method, trained.
        problem: Where tasks come from.
        config: Options; the first of its shots and ways are drawn.
        task: The task's number.
        folder: Where to write; made if need be.

    Returns:
        Contents of ``network.json``.

    Raises:
        ConfigError: If ``task`` is no number of a task that was judged on, or ``folder`` holds a
            network already.
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
            f"from 0 to {config.test_tasks - 1}. The network of one of these is written. Type such "
            "a number, or more `--test-tasks`."
        )
    shots = config.shots[0]
    drawn = draw_judged_task(problem, shots, number, config.test_tasks)
    about: dict[str, Any] = {
        "task": f"meta-test task {task}, {problem.setting(shots, config.ways[0])}"
    }
    if isinstance(problem, ClassProblem):
        assert drawn.classes is not None
        about["classes"] = [problem.held_out.names[i] for i in drawn.classes[0].tolist()]
    return write_network(learner, drawn.support, folder, about)


def write_network(
    learner: Learner,
    support: Support,
    folder: Path,
    about: dict[str, Any],
    params: Params | None = None,
) -> dict[str, Any]:
    """Adapt a learner to one support set and write the resulting network.

    Writes ``network.safetensors`` (parameters), ``network.json`` (a description) and
    ``network.pt2`` (a program for ``torch.export.load``, for any batch size). Loading a program of
    a stranger can run code; the other two cannot.

    Args:
        learner: The method, trained.
        support: One task.
        folder: Where to write; made if need be.
        about: Facts for the description.
        params: What the learner made of the support set; None: it is asked.

    Returns:
        Contents of ``network.json``.

    Raises:
        ConfigError: If ``folder`` holds a network already, or the method's answer is not that of a
            plain network.
    """
    if kind_of(folder / "network.json") != "nothing":
        raise ConfigError(
            f"`{folder}` holds a network already. It is never written over. Pass another `--out`."
        )
    check_empty(folder, "--out")
    learner.eval()
    if params is None:
        with torch.no_grad():
            params = learner.adapt(support)
    net, sample = plain_network(learner, params, support), support.x[0]
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
        facts["largest_difference"] = float(
            (again - learner.predict(params, sample[None])[0]).abs().max()
        )
    save_tensors(folder / "network.safetensors", net.state_dict(), facts)
    write_atomically(folder / "network.json", json.dumps(facts, indent=1) + "\n")
    return facts


def plain_network(learner: Learner, params: Mapping[str, Tensor], support: Support) -> nn.Module:
    """Return the network of one task, held against the learner's own answers to the support set.

    Raises:
        ConfigError: If they differ: some methods do more than run their base with what they made.
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
            f"{type(learner).__name__} answers with more than a network of one task ({why}). A "
            "plain network holds the base and the parameters of the task alone. Train another "
            "method, such as `hypernetwork`."
        ) from error
    return net


def _save_program(net: nn.Module, sample: Tensor, path: Path) -> None:
    batch = sample.new_zeros(
        max(len(sample), 2), *sample.shape[1:]
    )  # plain strides: the program is traced with them
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            net, (batch,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        )
        torch.export.save(program, path)
