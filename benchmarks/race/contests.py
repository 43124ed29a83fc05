"""Contests of ``python -m benchmarks.race core``: contenders, and bars for their ratios.

In:   the names of contests.
Out:  contests: steps, functions that do one forward and backward pass each; and their bars.
Independent of the clock.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import product
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.race.workloads import (
    cnn,
    cnn_by_hand,
    cut,
    make_generator,
    make_workload,
    mlp_by_hand,
)
from weightloom import (
    FiLM,
    Form,
    LowRank,
    MLPHyperNetwork,
    Params,
    RowScale,
    apply_per_task,
    choose_forms,
    mlp,
)
from weightloom.apps.rl.agents.nets import Columns, Kind, Sizes, network_of

Step = Callable[[], object]
BEST = "the best other"


@dataclass(frozen=True)
class Bar:
    """Bound on the ratio of ``of`` over ``against``, in time or in bytes."""

    of: str
    against: str
    relation: Literal["at most", "at least"]
    bound: float
    unit: Literal["time", "memory"] = "time"
    beyond: str | None = None
    """Contender whose memory is subtracted from both sides. Default: none."""


@dataclass(frozen=True)
class Contest:
    """One workload, its contenders by name, and the bars between them."""

    setting: str
    steps: Mapping[str, Step]
    bars: tuple[Bar, ...]
    memory: tuple[str, ...] = ()
    """Contenders whose peak memory is measured."""
    counted: str | None = None
    """Contender whose operations the workload needs: they set the shares of the core's rate."""
    label: str | None = None
    """Name in a table of several contests of one setting. Default: ``Bar.of``."""
    chosen: str | None = None
    """Engine that ``auto`` chose; if it is the best other, the ratio counts as 1."""


def low_rank(tasks: int, batch: int, width: int) -> Contest:
    """Three square layers: factored forms against bmm by hand and the plain base."""
    torch.manual_seed(0)
    base = mlp([width] * 4)
    own, x = list(base.parameters()), torch.randn(tasks, batch, width)
    factors = _factors(base, LowRank(4), "*.weight", tasks)
    leaves = [*own, *(leaf for parts in factors.values() for leaf in parts.values())]

    def by_hand() -> Tensor:
        y = x
        for number in (0, 2, 4):
            layer, parts = base[number], factors[f"{number}.weight"]
            assert isinstance(layer, nn.Linear)
            y = F.linear(y, layer.weight, layer.bias) + torch.bmm(
                torch.bmm(y, parts["down"].mT), parts["up"].mT
            )
            y = y if number == 4 else y.relu()
        return y

    def values() -> Params:
        return Params(
            {name: LowRank(4).value(base.get_parameter(name), its) for name, its in factors.items()}
        )

    steps = {
        "LowRank(4)": _step(lambda: apply_per_task(base, values(), x), leaves),
        "bmm by hand": _step(by_hand, leaves),
        "plain base": _step(lambda: base(x.flatten(0, 1)), own),
        "RowScale": _with_form(base, RowScale(), "*.weight", x),
        "FiLM": _with_form(base, FiLM(), "*", x),
    }
    return Contest(
        f"{tasks} tasks x {batch} x width {width}",
        steps,
        (
            Bar("LowRank(4)", "bmm by hand", "at most", 1.10),
            Bar("LowRank(4)", "plain base", "at most", 1.25),
            Bar("RowScale", "plain base", "at most", 1.15),
            Bar("FiLM", "plain base", "at most", 1.15),
        ),
        counted="plain base",
    )


def built_weights(tasks: int, batch: int, width: int) -> Contest:
    """Three square layers: applied factors against weights built per task under vmap."""
    few = low_rank(tasks, batch, width)
    torch.manual_seed(0)
    base = mlp([width] * 4)
    x, factors = torch.randn(tasks, batch, width), _factors(base, LowRank(4), "*.weight", tasks)
    leaves = [*base.parameters(), *(leaf for parts in factors.values() for leaf in parts.values())]

    def built() -> Tensor:
        values = {
            name: LowRank(4).dense(base.get_parameter(name), parts)
            for name, parts in factors.items()
        }
        output: Tensor = apply_per_task(base, values, x, engine="vmap")
        return output

    steps = {name: few.steps[name] for name in ("LowRank(4)", "plain base")} | {
        "built, then vmap": _step(built, leaves)
    }
    return Contest(
        f"{tasks} tasks x {batch} x width {width}, against weights built",
        steps,
        (
            Bar("built, then vmap", "LowRank(4)", "at least", 10.0),
            Bar("LowRank(4)", "built, then vmap", "at most", 0.1, "memory", beyond="plain base"),
        ),
        memory=tuple(steps),
        counted="plain base",
    )


def small_mlp(tasks: int = 32) -> Contest:
    """MLP 1-64-64-1, generation included: ours against bmm by hand, and plain vmap."""
    work = make_workload("mlp", tasks)
    hyper = MLPHyperNetwork(work.base, work.condition.shape[1], hidden=(64,))
    generator = make_generator(hyper.generated.size)
    shapes = {name: tuple(value.shape) for name, value in work.base.named_parameters()}

    def by_hand() -> Tensor:
        return mlp_by_hand(cut(generator(work.condition), shapes), work.x)

    ours = list(hyper.parameters())
    steps = {
        "ours": _step(lambda: apply_per_task(work.base, hyper(work.condition), work.x), ours),
        "bmm by hand": _step(by_hand, list(generator.parameters())),
        "plain vmap": _step(
            lambda: apply_per_task(work.base, hyper(work.condition), work.x, engine="vmap"), ours
        ),
    }
    bars = (Bar("ours", "bmm by hand", "at most", 1.10),)
    return Contest(f"MLP 1-64-64-1, {tasks} tasks, generated", steps, bars, counted="bmm by hand")


def kernels(name: str, tasks: int) -> Contest:
    """Convolutional base generated in full: auto against every engine and grouped convolutions.

    Args:
        name: ``cnn`` (3,818 parameters, 8 images of 1x16x16) or ``conv4`` (25 images of 1x28x28).
        tasks: Tasks of a step.
    """
    torch.manual_seed(0)
    base = cnn() if name == "cnn" else conv4()
    x = torch.randn(tasks, 8, 1, 16, 16) if name == "cnn" else torch.randn(tasks, 25, 1, 28, 28)
    noise = {n: 0.01 * torch.randn(tasks, *p.shape) for n, p in base.named_parameters()}
    params = {n: (p.detach() + noise[n]).requires_grad_() for n, p in base.named_parameters()}
    leaves, by_hand = list(params.values()), cnn_by_hand if name == "cnn" else conv4_by_hand
    steps = {
        "auto": _step(lambda: apply_per_task(base, params, x), leaves),
        "vmap": _step(lambda: apply_per_task(base, params, x, engine="vmap"), leaves),
        "vmap, 4 at a time": _step(
            lambda: apply_per_task(base, params, x, engine="vmap", chunk_size=4), leaves
        ),
        "loop": _step(lambda: apply_per_task(base, params, x, engine="loop"), leaves),
        "grouped by hand": _step(lambda: by_hand(params, x), leaves),
    }
    title = "CNN of 3,818 parameters" if name == "cnn" else "conv4-64, 28x28, 25 images"
    bars = (Bar("auto", BEST, "at most", 1.05),)
    return Contest(f"{title}, {tasks} tasks", steps, bars, counted="loop")


def adapters(steps_long: int, examples: int = 32) -> Contest:
    """BERT of 6 layers, 384 wide, with a mask and a rank-4 adapter per example: one pass, loop."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=1000,
        hidden_size=384,
        num_hidden_layers=6,
        num_attention_heads=6,
        intermediate_size=1536,
    )
    base: nn.Module = BertModel(config, add_pooling_layer=False)
    base.eval().requires_grad_(False)
    ids = torch.randint(1000, (examples, 1, steps_long))
    lengths = torch.randint(steps_long // 2, steps_long + 1, (examples, 1, 1))
    kwargs = {"attention_mask": (torch.arange(steps_long) < lengths).long(), "return_dict": False}
    factors = _factors(base, LowRank(4), ["*.query.weight", "*.value.weight"], examples)
    leaves = [leaf for parts in factors.values() for leaf in parts.values()]

    def run(engine: Any) -> Tensor:
        params = {
            name: LowRank(4).value(base.get_parameter(name), parts)
            for name, parts in factors.items()
        }
        output: Tensor = apply_per_task(base, params, ids, kwargs=kwargs, shared=(), engine=engine)[
            0
        ]
        return output

    steps = {
        "one pass": _step(lambda: run("aligned"), leaves),
        "loop over examples": _step(lambda: run("loop"), leaves),
    }
    bars = (Bar("loop over examples", "one pass", "at least", 2.0),)
    title = f"{examples} adapters in a BERT with a mask, {steps_long} tokens"
    return Contest(title, steps, bars, counted="loop over examples")


def actor(acts: bool, rows: int = 256) -> Contest:
    """Actor generated for every row from its state and context, against the plain MLP.

    Args:
        acts: Forward only, as in acting; otherwise forward and backward, as in learning.
        rows: States, each with another context.
    """
    torch.manual_seed(0)
    columns, z = Columns(context=2, state=17), torch.randn(rows, 19)
    kinds: dict[str, Kind] = {"generated actor": "hypernetwork", "plain MLP": "concat"}
    nets = {name: network_of(kind, columns, {"policy": 6}, Sizes()) for name, kind in kinds.items()}

    def step(net: nn.Module) -> Step:
        return (
            torch.no_grad()(partial(net, z))
            if acts
            else _step(lambda: net(z), list(net.parameters()))
        )

    title = f"actor, {rows} states with {rows} contexts, {'acting' if acts else 'learning'}"
    bars = (Bar("generated actor", "plain MLP", "at most", 2.0),)
    return Contest(
        title, {name: step(net) for name, net in nets.items()}, bars, counted="plain MLP"
    )


def contests(names: tuple[str, ...]) -> Iterator[Contest | str]:
    """Build contests one after the other; a missing package yields a sentence instead.

    Args:
        names: Names of contests, without ``scale``.
    """
    for name in names:
        if name == "forms":
            yield low_rank(64, 16, 512)
            yield low_rank(32, 8, 1024)
        elif name == "built":
            yield built_weights(64, 16, 512)
            yield built_weights(32, 8, 1024)
        elif name == "mlp":
            yield small_mlp()
        elif name == "kernels":
            for base, tasks in product(("cnn", "conv4"), (8, 32)):
                yield kernels(base, tasks)
        elif name == "actor":
            yield actor(acts=True)
            yield actor(acts=False)
        elif name == "choice":
            from benchmarks.race.grid import cells

            yield from cells()
        elif find_spec("transformers"):
            yield adapters(16)
            yield adapters(64)
        else:
            command = 'pip install "weightloom[transformers]"'
            yield f"adapters: transformers is not installed; type `{command}`"


def conv4() -> nn.Sequential:
    """Build conv4-64 of few-shot papers: four blocks, images of 1x28x28, five classes."""
    layers: list[nn.Module] = []
    for channels in (1, 64, 64, 64):
        layers += [
            nn.Conv2d(channels, 64, 3, padding=1),
            nn.GroupNorm(8, 64),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 5))


def conv4_by_hand(params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Run conv4 with one grouped convolution and one group norm per block; tasks are groups."""
    tasks, batch = x.shape[:2]
    x = x.transpose(0, 1).flatten(1, 2)
    for block in range(4):
        weight, bias = (
            params[f"{4 * block}.weight"].flatten(0, 1),
            params[f"{4 * block}.bias"].flatten(),
        )
        x = F.conv2d(x, weight, bias, padding=1, groups=tasks)
        scale, shift = (
            params[f"{4 * block + 1}.weight"].flatten(),
            params[f"{4 * block + 1}.bias"].flatten(),
        )
        x = F.max_pool2d(F.group_norm(x, 8 * tasks, scale, shift).relu(), 2)
    features = x.view(batch, tasks, -1).transpose(0, 1)
    return torch.baddbmm(params["17.bias"][:, None], features, params["17.weight"].mT)


def _factors(
    base: nn.Module, form: Form, generate: Any, tasks: int
) -> dict[str, dict[str, Tensor]]:
    """Draw small random factors for every generated parameter."""
    shapes = {
        name: its.factor_shapes(tuple(base.get_parameter(name).shape))
        for name, its in choose_forms(base, generate, form).items()
    }
    return {
        name: {
            factor: (0.05 * torch.randn(tasks, *shape)).requires_grad_()
            for factor, shape in its.items()
        }
        for name, its in shapes.items()
    }


def _with_form(base: nn.Module, form: Form, generate: Any, x: Tensor) -> Step:
    forms, factors = choose_forms(base, generate, form), _factors(base, form, generate, len(x))
    leaves = [*base.parameters(), *(leaf for parts in factors.values() for leaf in parts.values())]

    def run() -> Tensor:
        params = {
            name: forms[name].value(base.get_parameter(name), parts)
            for name, parts in factors.items()
        }
        output: Tensor = apply_per_task(base, params, x)
        return output

    return _step(run, leaves)


def _step(forward: Callable[[], Tensor], leaves: list[Any]) -> Step:
    """Return a step: forward, mean square as the loss, gradients of every leaf."""

    def step() -> object:
        return torch.autograd.grad(forward().square().mean(), leaves)

    return step
