"""Workloads that generate a whole base network, and contenders in plain torch.

In:   the name of a workload, the number of tasks.
Out:  its base network, conditions, inputs and loss; contenders whose step generates, runs forward
      and backward.
Independent of the peers.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap

from weightloom import MLPHyperNetwork, Params, apply_per_task, mlp

CONDITION_DIM = 16
HIDDEN = 64

Way = Literal["ours", "documented", "recipe", "undocumented", "plain torch"]
"""Origin of a contender's code: ours; a library's reference or quick start (documented); an
advanced recipe of its README; undocumented; plain torch."""


@dataclass(frozen=True)
class Workload:
    """Base network and the data of one step."""

    name: str
    base: nn.Module
    condition: Tensor
    """Conditions, (tasks, 16)."""
    x: Tensor
    """Inputs, (tasks, batch, *event)."""
    targets: Tensor
    """Numbers like the outputs, for a squared error; or classes, for a cross entropy."""
    by_hand: Callable[[Params, Tensor], Tensor]
    """Forward pass of all tasks, written by hand for this base."""

    def loss(self, outputs: Tensor) -> Tensor:
        """Return the mean loss over all tasks."""
        if self.targets.is_floating_point():
            return F.mse_loss(outputs, self.targets)
        return F.cross_entropy(outputs.flatten(0, 1), self.targets.flatten())


@dataclass(frozen=True)
class Contender:
    """One way to run a step."""

    name: str
    way: Way
    how: str
    """Description for the record: functions called, and differences from the others."""
    module: nn.Module
    """Module whose parameters get gradients."""
    outputs: Callable[[], Tensor]
    """Generate parameters for all tasks and run them: (tasks, batch, *out)."""

    def step(self, workload: Workload) -> Tensor:
        """Generate, run forward, take the loss, run backward; return the loss. No optimiser."""
        self.module.zero_grad(set_to_none=True)
        loss = workload.loss(self.outputs())
        loss.backward()
        return loss.detach()


def make_workload(name: str, tasks: int = 32, seed: int = 0) -> Workload:
    """Build a workload, reproducible by seed.

    Args:
        name: ``mlp`` (1-64-64-1 on 16 points) or ``cnn`` (8 images of 1x16x16, ten classes).
        tasks: Tasks of a step.
        seed: Seed of weights, conditions and data.

    Example:
        >>> bases = [make_workload(name).base for name in ("mlp", "cnn")]
        >>> [sum(p.numel() for p in base.parameters()) for base in bases]
        [4353, 3818]
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        condition = torch.rand(tasks, CONDITION_DIM)
        if name == "mlp":
            x, targets = torch.randn(tasks, 16, 1), torch.randn(tasks, 16, 1)
            return Workload(name, mlp([1, 64, 64, 1]), condition, x, targets, mlp_by_hand)
        images, classes = torch.randn(tasks, 8, 1, 16, 16), torch.randint(10, (tasks, 8))
        return Workload(name, cnn(), condition, images, classes, cnn_by_hand)


def cnn() -> nn.Sequential:
    """Build a CNN of 3,818 parameters for images of 1x16x16 and ten classes."""
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 10)),
    )


def mlp_by_hand(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Run the MLP with one batched matrix product per layer."""
    for layer in ("0", "2", "4"):
        x = torch.baddbmm(
            params[f"{layer}.bias"][:, None], x, params[f"{layer}.weight"].transpose(1, 2)
        )
        x = x if layer == "4" else x.relu()
    return x


def cnn_by_hand(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Run the CNN with one grouped convolution per layer; tasks are groups."""
    tasks, batch = x.shape[:2]
    x = x.transpose(0, 1).flatten(1, 2)
    for layer in ("0", "3"):
        weight, bias = params[f"{layer}.weight"].flatten(0, 1), params[f"{layer}.bias"].flatten()
        x = F.max_pool2d(F.conv2d(x, weight, bias, padding=1, groups=tasks).relu(), 2)
    features = x.view(batch, tasks, -1).transpose(0, 1)
    return torch.baddbmm(params["7.bias"][:, None], features, params["7.weight"].transpose(1, 2))


def run_loop(base: nn.Module, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Run the base in a loop over tasks."""
    rows = [
        functional_call(base, {name: value[i] for name, value in params.items()}, x[i])
        for i in range(len(x))
    ]
    return torch.stack(rows)


def run_vmap(base: nn.Module, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Run all tasks in one pass of ``vmap``."""
    outputs: Tensor = vmap(lambda one_params, one_x: functional_call(base, one_params, (one_x,)))(
        params, x
    )
    return outputs


def make_generator(size: int) -> nn.Sequential:
    """Build the hypernetwork 16-64-``size``, common to all contenders that permit it."""
    return mlp([CONDITION_DIM, HIDDEN, size])


def cut(flat: Tensor, shapes: Mapping[str, Sequence[int]]) -> Params:
    """Split a flat tensor, (..., size), into parameters, each (..., *shape)."""
    pieces = flat.split([math.prod(shape) for shape in shapes.values()], dim=-1)
    named = zip(shapes.items(), pieces, strict=True)
    return Params({name: piece.view(*piece.shape[:-1], *shape) for (name, shape), piece in named})


def ours(workload: Workload) -> Contender:
    """Build our contender: the documented path of README's first code block."""
    base = copy.deepcopy(workload.base)
    hyper = MLPHyperNetwork(base, CONDITION_DIM, hidden=(HIDDEN,))
    return Contender(
        "weightloom",
        "ours",
        "hyper(condition), apply_per_task(base, params, x)",
        hyper,
        lambda: apply_per_task(base, hyper(workload.condition), workload.x),
    )


def plain_torch(workload: Workload) -> list[Contender]:
    """Build the contenders in plain torch: a loop, vmap, and kernels by hand for this base."""
    base = copy.deepcopy(workload.base).requires_grad_(False)
    shapes = {name: value.shape for name, value in base.named_parameters()}
    generator = make_generator(sum(math.prod(shape) for shape in shapes.values()))

    def contender(name: str, how: str, run: Callable[[Params, Tensor], Tensor]) -> Contender:
        return Contender(
            name,
            "plain torch",
            how,
            generator,
            lambda: run(cut(generator(workload.condition), shapes), workload.x),
        )

    return [
        contender(
            "torch, loop",
            "functional_call, task after task",
            lambda params, x: run_loop(base, params, x),
        ),
        contender(
            "torch, vmap", "vmap(functional_call)", lambda params, x: run_vmap(base, params, x)
        ),
        contender(
            "torch, by hand",
            "baddbmm and grouped convolutions, for this base only",
            workload.by_hand,
        ),
    ]
