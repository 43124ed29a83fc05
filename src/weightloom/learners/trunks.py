"""Split a network into trunk and head, and run it on the images of several tasks.

In:   a network, its parameters per task, and inputs with a tasks axis.
Out:  features or outputs; or the same network in two parts.
"""

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.fx
from torch import Tensor, nn
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_map

from weightloom.base import apply_per_task, apply_shared
from weightloom.errors import ConfigError, ShapeError
from weightloom.networks.feedforward import UnitTrunk
from weightloom.params import sub


def run_shared(trunk: nn.Module, x: Any) -> Tensor:
    """Run a network shared by all tasks: (tasks, batch, *event) to (tasks, batch, features).

    The output is float32 or finer. Inputs may be a tree of tensors, passed to the network as one
    argument. Batch norms without running statistics normalise over the images of one task.
    """
    if sees_a_task_together(trunk):
        return single(vmap(trunk, randomness="different")(x))
    if isinstance(x, Tensor):
        return single(apply_shared(trunk, x))
    outputs = trunk(tree_map(lambda values: values.flatten(0, 1), x))
    return single(outputs.unflatten(0, tree_flatten(x)[0][0].shape[:2]))


def run_per_task(base: nn.Module, params: Mapping[str, Tensor], x: Any) -> Tensor:
    """Run a network with each task's parameters: (tasks, batch, *event) to (tasks, batch, *out).

    In training, batch norms with running statistics normalise over the images of all tasks. Without
    them, they always normalise over the images of one task. The running mean of a `UnitTrunk` is
    that of all tasks.
    """
    if isinstance(base, UnitTrunk):
        # Only some networks can change a buffer while they run with parameters per task.
        unit: Tensor = base.last(run_per_task(base.trunk, sub(params, "trunk"), x))
        return unit
    outputs: Tensor = apply_per_task(
        base, params, x, statistics="task" if sees_a_task_together(base) else "shared"
    )
    return outputs


def single(x: Tensor) -> Tensor:
    """Convert half precision to float32; finer dtypes are kept."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sees_a_task_together(base: nn.Module) -> bool:
    """Test for batch norms without running statistics, which normalise over one task's images."""
    return any(
        isinstance(part, nn.BatchNorm2d) and not part.track_running_stats for part in base.modules()
    )


class Split(nn.Module):
    """Network in two parts, run one after the other: ``head(trunk(x))``.

    Args:
        trunk: First part.
        head: Last part.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, x: Any) -> Tensor:
        """Outputs of the head, (batch, *out)."""
        outputs: Tensor = self.head(self.trunk(x))
        return outputs


def split(base: nn.Module, method: str) -> nn.Module:
    """Split a network into ``trunk`` and ``head``, which share its parameters.

    A network with these two attributes is returned unchanged; it must run one after the other.
    Otherwise the head is the final linear layer, and the trunk is all before it. The final layer of
    a sequence is its last; other modules are traced by `torch.fx`, to be sure that the layer's
    output is the network's.

    Args:
        base: The network.
        method: Name of the method that needs the parts, for the message.

    Raises:
        ConfigError: If no linear layer at the end is found.

    Example:
        >>> split(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), "ANIL").head
        Linear(in_features=16, out_features=3, bias=True)
    """
    found = _parts(base)
    if found is None:
        raise ConfigError(
            f"`base` is a {type(base).__name__} that does not end in a linear layer, as far as can "
            f"be seen. {method} runs a trunk that all tasks share, then a linear head per task. "
            "Pass a network with attributes `trunk` and `head`, run one after the other, or "
            "`nn.Sequential(trunk, nn.Linear(features, ways))`."
        )
    return found


def split_or_features(base: nn.Module, method: str) -> nn.Module:
    """Split a network as `split` does; without a final linear layer, all of it is the trunk.

    Raises:
        ConfigError: If ``base`` is not a module.
    """
    if not isinstance(base, nn.Module):
        fits = f"{method} trains a network that maps inputs to features."
        raise misfit(
            base, fits, "an `nn.Module`, such as `nn.Sequential(trunk, nn.Linear(features, ways))`"
        )
    return _parts(base) or Split(base, nn.Identity())


def misfit(base: object, fits: str, advice: str) -> ConfigError:
    """Error for a network that a method cannot use.

    Args:
        base: The network as passed.
        fits: Sentence on the requirement and its reason.
        advice: Phrase after "Pass", without a full stop.
    """
    return ConfigError(f"`base` is a {type(base).__name__}. {fits} Pass {advice}.")


def trunk_of(base: nn.Module) -> nn.Module:
    """The part of ``head(trunk(x))`` before the head."""
    return cast("nn.Module", base.trunk)


def head_of(base: nn.Module) -> nn.Module:
    """The head of ``head(trunk(x))``."""
    return cast("nn.Module", base.head)


def features_of(base: nn.Module) -> int | None:
    """Width of the features: ``features`` of the trunk, or else ``in_features`` of the head.

    None if neither is known.
    """
    known = getattr(trunk_of(base), "features", None)
    return known if isinstance(known, int) else getattr(head_of(base), "in_features", None)


def known_features(base: nn.Module, method: str) -> int:
    """Width of the features, as in `features_of`.

    Args:
        base: A network with a trunk and a head.
        method: Name of the method, for the message.

    Raises:
        ConfigError: If neither trunk nor head tells it.
    """
    features = features_of(base)
    if features is None:
        raise ConfigError(
            f"`base` returns features of unknown width. {method} builds a layer for them. Pass "
            "`nn.Sequential(trunk, nn.Linear(features, ways))`, or set `features` of the trunk to "
            "their number."
        )
    return features


def with_unit_length(base: nn.Module, x: Any) -> nn.Module:
    """Network whose trunk returns features centred and scaled to one length, by `UnitTrunk`.

    The base is split into trunk and head as by `split_or_features`, and shares its parameters.

    Args:
        base: Any network.
        x: Inputs of the network, (batch, *event). It runs on them once, in eval mode, if neither
            trunk nor head tells the width of the features.

    Raises:
        ConfigError: If ``base`` is not a module.
        ShapeError: If the features of an example are not a vector.

    Example:
        >>> base = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        >>> features = trunk_of(with_unit_length(base, torch.zeros(1, 8)))(torch.rand(7, 8))
        >>> features.norm(dim=1).detach()
        tensor([4.0000, 4.0000, 4.0000, 4.0000, 4.0000, 4.0000, 4.0000])
    """
    parts = split_or_features(base, "A trunk with features of unit length")
    features = features_of(parts) or _width(trunk_of(parts), x)
    return Split(UnitTrunk(trunk_of(parts), features), head_of(parts))


def _width(trunk: nn.Module, x: Any) -> int:
    """Width of the features, by a run on inputs, (batch, *event)."""
    was_training = trunk.training
    with torch.no_grad():
        features = flat_features(trunk.eval(), tree_map(lambda values: values[None], x))
    trunk.train(was_training)
    return features.shape[2]


def flat_features(trunk: nn.Module, x: Any) -> Tensor:
    """Features of a shared trunk, as in `run_shared`, checked to be (tasks, batch, features).

    Raises:
        ShapeError: If the features of an example are not a vector.
    """
    features = run_shared(trunk, x)
    if features.ndim != 3:
        raise ShapeError(
            f"The trunk returns features of shape {tuple(features.shape[2:])} for an example. A "
            "linear head reads a vector. End the trunk in `nn.Flatten()`."
        )
    return features


def _parts(base: nn.Module) -> nn.Module | None:
    if not isinstance(base, nn.Module):
        return None
    if all(isinstance(getattr(base, name, None), nn.Module) for name in ("trunk", "head")):
        return base
    name = _last_linear(base)
    return None if name is None else Split(_without(base, name), base.get_submodule(name))


def _last_linear(base: nn.Module) -> str | None:
    """Name of the linear layer whose output is that of the network; None if none is found."""
    if isinstance(base, nn.Linear):
        return ""
    if isinstance(base, nn.Sequential):
        *_, (name, last) = base.named_children() if len(base) else [("", nn.Identity())]
        inner = _last_linear(last)
        return None if inner is None else f"{name}.{inner}".rstrip(".")
    return _traced_linear(base)


def _traced_linear(base: nn.Module) -> str | None:
    """Name of the last linear layer by a trace of the network; None if none, or untraceable."""
    try:
        graph = torch.fx.symbolic_trace(base).graph
    except Exception:  # any error of a network that cannot be traced
        return None
    (output,) = graph.find_nodes(op="output")
    last = output.args[0]
    calls = [node for node in graph.nodes if node.op == "call_module"]
    if last not in calls or not isinstance(base.get_submodule(last.target), nn.Linear):
        return None
    return str(last.target) if [node.target for node in calls].count(last.target) == 1 else None


def _without(base: nn.Module, name: str) -> nn.Module:
    """The network with one layer replaced by an identity; parameters are shared."""
    if not name:
        return nn.Identity()
    first, _, rest = name.partition(".")
    shared = copy.copy(base)
    shared._modules = {**base._modules, first: _without(base.get_submodule(first), rest)}
    return shared
