"""Contests of ``auto`` against every engine, on twelve bases with four forms each.

In:   a base and a form, by name; forward only, or forward and backward.
Out:  a contest of the engines that can run them.
Independent of the clock.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.race.contests import BEST, Bar, Contest, Step, conv4
from weightloom import FiLM, Form, Full, LowRank, Params, Template, choose_forms, mlp, per_task
from weightloom.base import PerTask
from weightloom.base.engines import Engine
from weightloom.errors import BatchingError
from weightloom.networks.recurrent import GRU

ENGINES: tuple[Engine, ...] = ("vmap", "aligned", "loop")


@dataclass(frozen=True)
class Brought:
    """Base network with its inputs and the parameters to generate."""

    base: nn.Module
    inputs: tuple[Tensor, ...]
    """Each (tasks, batch, *event)."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    generate: Any = "*.weight"


class Sine(nn.Module):
    """Sine activation of coordinate networks (SIREN)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the sine of 30 x."""
        return torch.sin(30 * x)


class Residual(nn.Module):
    """Residual block: two convolutions with group norms, and a 1x1 convolution around them."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(4, out) for _ in range(2))
        self.around = nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, height, width) to (batch, out, height / stride, width / stride)."""
        y = self.norms[0](self.first(x)).relu()
        outputs: Tensor = (self.norms[1](self.second(y)) + self.around(x)).relu()
        return outputs


class Recommender(nn.Module):
    """Embedding of items, and an MLP on the embeddings of a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(500, 32)
        self.head = mlp([64, 64, 1])

    def forward(self, pairs: Tensor) -> Tensor:
        """Map pairs of items, (batch, 2), to scores, (batch, 1)."""
        scores: Tensor = self.head(self.items(pairs).flatten(1))
        return scores


class Vision(nn.Module):
    """Small vision transformer: 4x4 patches, two encoder layers, mean, linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 4, 4)
        layer = nn.TransformerEncoderLayer(
            64, 4, 128, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, height, width) to (batch, 10)."""
        scores: Tensor = self.head(self.encoder(self.patches(x).flatten(2).mT).mean(1))
        return scores


class Last(nn.Module):
    """GRU with a linear head on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = GRU(16, 32, batch_first=True)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, steps, 16) to (batch, 4)."""
        outputs: Tensor = self.head(self.layer(x)[0][:, -1])
        return outputs


def _temporal() -> nn.Module:
    layers: list[nn.Module] = []
    for number, channels in enumerate((8, 32, 32, 32)):
        layers += [nn.Conv1d(channels, 32, 3, padding=2**number, dilation=2**number), nn.GELU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 6))


def _decoder() -> nn.Module:
    up = [nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1)]
    return nn.Sequential(nn.Linear(16, 32 * 49), nn.ReLU(), nn.Unflatten(1, (32, 7, 7)), *up)


def _residual() -> nn.Module:
    blocks = [Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 64, 2)]
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def _bert(width: int, layers: int, tokens: int, tasks: int, batch: int, masked: bool) -> Brought:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=1000,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    base: nn.Module = BertModel(config, add_pooling_layer=False)
    base.eval().requires_grad_(False)
    ids = torch.randint(1000, (tasks, batch, tokens))
    kwargs: dict[str, Any] = {"return_dict": False}
    if masked:
        lengths = torch.randint(tokens // 2, tokens + 1, (tasks, batch, 1))
        kwargs["attention_mask"] = (torch.arange(tokens) < lengths).long()
    return Brought(base, (ids,), kwargs, ["*.query.weight", "*.value.weight"])


def _mlp(sizes: list[int], tasks: int, batch: int) -> Brought:
    return Brought(mlp(sizes), (torch.randn(tasks, batch, sizes[0]),))


def _field() -> Brought:
    layers = [
        nn.Linear(2, 64),
        Sine(),
        nn.Linear(64, 64),
        Sine(),
        nn.Linear(64, 64),
        Sine(),
        nn.Linear(64, 3),
    ]
    return Brought(nn.Sequential(*layers), (torch.rand(16, 1024, 2),))


def _fed(base: nn.Module, *shape: int, generate: Any = "*.weight") -> Brought:
    return Brought(base, (torch.randn(*shape),), generate=generate)


def _recommender() -> Brought:
    return Brought(Recommender(), (torch.randint(500, (32, 16, 2)),))


BASES: dict[str, Callable[[], Brought]] = {
    "actor, a row a task": lambda: _mlp([17, 256, 256, 6], 256, 1),
    "wide MLP": lambda: _mlp([512] * 4, 16, 64),
    "field": _field,
    "conv4": lambda: _fed(conv4(), 8, 25, 1, 28, 28),
    "residual net": lambda: _fed(_residual(), 8, 8, 3, 32, 32),
    "temporal convolutions": lambda: _fed(_temporal(), 16, 8, 8, 128),
    "decoder": lambda: _fed(_decoder(), 16, 8, 16),
    "vision transformer": lambda: _fed(Vision(), 16, 8, 3, 16, 16),
    "GRU": lambda: _fed(Last(), 16, 8, 20, 16, generate=["layer.weight_*", "head.weight"]),
    "recommender": _recommender,
    "BERT": lambda: _bert(128, 4, 16, 16, 4, masked=False),
    "BERT with a mask": lambda: _bert(384, 6, 16, 32, 1, masked=True),
}

FORMS: dict[str, Form] = {
    "Full": Full(),
    "LowRank(4)": LowRank(4),
    "FiLM": FiLM(),
    "Template(4)": Template(4),
}


def cells(learns: bool = True) -> Iterator[Contest]:
    """Yield the contest of every base with every form; without BERT if transformers is missing."""
    for base in BASES:
        if base.startswith("BERT") and find_spec("transformers") is None:
            continue
        for form in FORMS:
            yield cell(base, form, learns)


def cell(base: str, form: str, learns: bool = True) -> Contest:
    """Build the contest of one base with one form: ``auto`` against the engines that run it.

    Args:
        base: A name of `BASES`.
        form: A name of `FORMS`.
        learns: Forward and backward; otherwise forward only.
    """
    torch.manual_seed(0)
    brought = BASES[base]()
    params = _Generated(brought, FORMS[form], learns)

    def step(run: PerTask) -> object:
        with torch.set_grad_enabled(learns):
            outputs = run(params.values(), *brought.inputs, **brought.kwargs)
            outputs = outputs if isinstance(outputs, Tensor) else outputs[0]
            return (
                torch.autograd.grad(outputs.square().mean(), params.leaves) if learns else outputs
            )

    steps: dict[str, Step] = {"auto": partial(step, per_task(brought.base, shared=()))}
    for engine in ENGINES:
        its = partial(step, per_task(brought.base, shared=(), engine=engine))
        try:
            its()
        except BatchingError:  # this engine cannot run the base
            continue
        steps[engine] = its
    with torch.set_grad_enabled(learns):
        choice = per_task(brought.base, shared=()).explain(
            params.values(), *brought.inputs, **brought.kwargs
        )
    bars = (Bar("auto", BEST, "at most", 1.10),)
    setting = "auto over the best engine" + ("" if learns else ", forward only")
    return Contest(setting, steps, bars, label=f"{base}, {form}", chosen=choice.engine)


class _Generated:
    """Small random factors of the generated parameters, and the leaves that get gradients."""

    def __init__(self, brought: Brought, form: Form, learns: bool) -> None:
        self.base, self.forms = brought.base, choose_forms(brought.base, brought.generate, form)
        tasks = len(brought.inputs[0])
        self.factors: dict[str, dict[str, Tensor]] = {}
        self.shared: dict[str, dict[str, Tensor]] = {}
        for name, its in self.forms.items():
            shape = tuple(self.base.get_parameter(name).shape)
            shapes = its.factor_shapes(shape).items()
            self.factors[name] = {
                n: (0.05 * torch.randn(tasks, *s)).requires_grad_(learns) for n, s in shapes
            }
            self.shared[name] = {
                n: value.requires_grad_(learns) for n, value in its.shared(shape).items()
            }
        generated = [
            leaf
            for parts in (*self.factors.values(), *self.shared.values())
            for leaf in parts.values()
        ]
        self.leaves = [*generated, *(p for p in self.base.parameters() if p.requires_grad)]

    def values(self) -> Params:
        forms = self.forms.items()
        own = self.base.get_parameter
        return Params({n: its.value(own(n), self.factors[n], self.shared[n]) for n, its in forms})
