"""The bank: everything that keeps the same promises. A new method, base, encoder or form adds one line to it.

Everything is float64, and `build` gives the same network every time it is called after the same seed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from weightloom.conditions import DeepSets, SupportAttention
from weightloom.forms import Full
from weightloom.hypernets import HeadHyperNetwork, MLPHyperNetwork
from weightloom.networks import ConvNet, mlp
from weightloom.params import ParamSpec

TASKS, BATCH = 3, 4
SLOW_ATTENTION = pytest.mark.filterwarnings("ignore:There is a performance drop because we have not yet implemented")


@dataclass(frozen=True)
class Base:
    """A base network, the inputs it takes, and which of its parameters are generated."""

    build: Callable[[], nn.Module]
    event: tuple[int, ...] = (5,)
    generate: str | tuple[str, ...] = "*"
    symbols: int = 0
    """Inputs are integers below this; 0 means that they are real numbers."""
    inputs: int = 1
    train: bool = True

    def net(self):
        torch.manual_seed(0)
        net = self.build().double().train(self.train)
        for module in net.modules():  # statistics that differ from those of a fresh network
            if isinstance(module, nn.BatchNorm1d | nn.InstanceNorm1d) and module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
        return net

    def params(self, tasks=TASKS):
        shapes = ParamSpec.of(self.net(), self.generate).shapes
        return {name: torch.randn(tasks, *shape, dtype=torch.float64) for name, shape in shapes.items()}

    def x(self, tasks=TASKS):
        shape = (tasks, BATCH, *self.event)
        one = (lambda: torch.randint(self.symbols, shape)) if self.symbols else (lambda: torch.randn(shape).double())
        return tuple(one() for _ in range(self.inputs))


class Tied(nn.Module):
    """Two layers of one weight: it goes by ``first.weight``."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


class TwoInputsTwoOutputs(nn.Module):
    """Takes two inputs, gives a dict, and has a parameter that is one number."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(5, 2), nn.Parameter(torch.ones(()))

    def forward(self, x, z):
        mixed = self.layer(x * z)
        return {"mixed": mixed * self.scale, "both": (x + z, mixed)}


def conv():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )


def conv1d():
    return nn.Sequential(nn.Conv1d(2, 3, 3, stride=2), nn.Tanh(), nn.ConvTranspose1d(3, 2, 3), nn.Flatten())


def layer_norm():
    return nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2))


def batch_norm(**options):
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6, **options), nn.ReLU(), nn.Linear(6, 2))


def instance_norm():
    return nn.Sequential(nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, affine=True, track_running_stats=True), nn.Flatten())


def dropout():
    return nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 2))


def embedding():
    return nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2))


def transformer():
    return nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)


def bank(**cases):
    """Name each case after what is special about it."""
    return [
        pytest.param(case, id=name, marks=SLOW_ATTENTION if "transformer" in name else ())
        for name, case in cases.items()
    ]


BASES = bank(
    linear_without_bias=Base(lambda: nn.Linear(5, 2, bias=False)),
    linear=Base(lambda: nn.Linear(5, 2)),
    mlp=Base(lambda: mlp([5, 6, 6, 2])),
    mlp_one_glob=Base(lambda: mlp([5, 6, 2]), generate="*.bias"),
    mlp_two_globs=Base(lambda: mlp([5, 6, 2]), generate=("0.weight", "2.*")),
    conv2d_with_group_norm=Base(conv, (2, 6, 6)),
    conv1d_there_and_back=Base(conv1d, (2, 7)),
    conv_net=Base(lambda: ConvNet(1, 8, 3, channels=4, blocks=2), (1, 8, 8)),
    conv_net_head=Base(lambda: ConvNet(1, 8, 3, channels=4, blocks=2), (1, 8, 8), generate="head.*"),
    layer_norm=Base(layer_norm),
    layer_norm_scale=Base(layer_norm, generate="1.*"),
    embedding=Base(embedding, (3,), symbols=7),
    attention_train=Base(SelfAttention, (3, 4)),
    attention_eval=Base(SelfAttention, (3, 4), train=False),
    transformer_eval=Base(transformer, (3, 4), train=False),
    tied=Base(Tied),
    tied_weight_only=Base(Tied, generate="first.weight"),
    batch_norm_eval=Base(batch_norm, train=False),
    batch_norm_without_statistics=Base(lambda: batch_norm(track_running_stats=False)),
    instance_norm_eval=Base(instance_norm, (2, 6), train=False),
    dropout_eval=Base(dropout, train=False),
    two_inputs=Base(TwoInputsTwoOutputs, inputs=2),
)


@dataclass(frozen=True)
class Hyper:
    """A hypernetwork and a condition that it reads."""

    build: Callable[[], nn.Module]
    condition: Callable[[int], tuple[torch.Tensor, ...]]
    """The number of tasks to what the hypernetwork takes."""

    def hyper(self):
        """As it is built, with nothing moved from where its initialisation put it."""
        torch.manual_seed(0)
        return self.build().double()

    def moved(self):
        """A generic state: nothing is zero by initialisation."""
        hyper = self.hyper()
        with torch.no_grad():
            for parameter in hyper.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return hyper


def vectors(tasks):
    return (torch.randn(tasks, 4, dtype=torch.float64),)


def labelled(tasks, ways=3, shots=4, features=6):
    """Features, labels and a mask that leaves classes with unequal shots."""
    labels = torch.arange(ways).repeat_interleave(shots).repeat(tasks, 1)
    there = torch.rand(tasks, ways * shots) < 0.8
    there[:, ::shots] = True
    return torch.randn(tasks, ways * shots, features, dtype=torch.float64), labels, there


HYPERNETWORKS = bank(
    mlp=Hyper(lambda: MLPHyperNetwork(mlp([5, 6, 2]), 4), vectors),
    mlp_part=Hyper(lambda: MLPHyperNetwork(conv(), 4, generate=["*.bias", "1.*"], hidden=(8, 8)), vectors),
    mlp_linear=Hyper(lambda: MLPHyperNetwork(Tied(), 4, hidden=()), vectors),
    mlp_scalar=Hyper(lambda: MLPHyperNetwork(TwoInputsTwoOutputs(), 4, generate="scale"), vectors),
    head=Hyper(HeadHyperNetwork, labelled),
)

ENCODERS = bank(
    deep_sets=DeepSets,
    attention=SupportAttention,
)
"""Each is built with ``x_dim``, ``y_dim`` and ``condition_dim``."""

FORMS = bank(
    full=Full,
)
