"""How methods run a network on the images of several tasks.

What its norms may see together, its trunk and its head.
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


def run_shared(trunk: nn.Module, x: Any) -> Tensor:
    """Run a network that all tasks share, (tasks, batch, *event) to (tasks, batch, features).

    Not in half precision.

    Inputs may be a tree of tensors, which the network then takes as its one argument.

    Where its norms go by the images that they see together, those are the images of one task.
    """
    if sees_a_task_together(trunk):
        return single(vmap(trunk, randomness="different")(x))
    if isinstance(x, Tensor):
        return single(apply_shared(trunk, x))
    outputs = trunk(tree_map(lambda values: values.flatten(0, 1), x))
    return single(outputs.unflatten(0, tree_flatten(x)[0][0].shape[:2]))


def run_per_task(base: nn.Module, params: Mapping[str, Tensor], x: Any) -> Tensor:
    """Run a network with each task's parameters, (tasks, batch, *event) to (tasks, batch, *out).

    Norms with running statistics go by the images of all tasks in training; those without by the
    images of one task.
    """
    outputs: Tensor = apply_per_task(
        base, params, x, statistics="task" if sees_a_task_together(base) else "shared"
    )
    return outputs


def single(x: Tensor) -> Tensor:
    """Bring half precision to single; what is finer stays so."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def sees_a_task_together(base: nn.Module) -> bool:
    """Whether norms go by the images that they see together, in eval mode too.

    Those of one task, then.
    """
    return any(
        isinstance(part, nn.BatchNorm2d) and not part.track_running_stats for part in base.modules()
    )


class Split(nn.Module):
    """A network in two parts, run one after the other: ``head(trunk(x))``.

    Args:
        trunk: What comes first.
        head: What comes last.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, x: Any) -> Tensor:
        """Run both."""
        outputs: Tensor = self.head(self.trunk(x))
        return outputs


def split(base: nn.Module, method: str) -> nn.Module:
    """Return a network as ``trunk`` and ``head``, with the parameters that it has.

    One with these two attributes, run one after the other, is returned as it is. Of any other the
    head is the linear layer that it ends in, and the trunk all that comes before. A sequence says
    itself what it ends in; other modules are traced (`torch.fx`), so that nothing is cut off that
    is not the end.

    Args:
        base: The network.
        method: Who asks, for the message.

    Raises:
        ConfigError: If there are no such parts, or it cannot be seen that there are.

    Example:
        >>> split(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)), "ANIL").head
        Linear(in_features=16, out_features=3, bias=True)
    """
    found = _parts(base)
    if found is None:
        raise ConfigError(
            f"`base` is a {type(base).__name__} that does not end in a linear layer, as far as can "
            f"be seen. {method} "
            "runs a trunk that all tasks share, then a linear head per task. Pass a network with "
            "attributes `trunk` and `head`, run one after the other, or `nn.Sequential(trunk, "
            "nn.Linear(features, ways))`."
        )
    return found


def split_or_features(base: nn.Module, method: str) -> nn.Module:
    """Split a network as `split` does.

    One that does not end in a linear layer is a trunk as a whole.

    Raises:
        ConfigError: If it is no network.
    """
    if not isinstance(base, nn.Module):
        fits = f"{method} trains a network that maps inputs to features."
        raise misfit(
            base, fits, "an `nn.Module`, such as `nn.Sequential(trunk, nn.Linear(features, ways))`"
        )
    return _parts(base) or Split(base, nn.Identity())


def misfit(base: object, fits: str, advice: str) -> ConfigError:
    """Return an error for a network that a method cannot use.

    Args:
        base: What was passed.
        fits: What fits, and why: a sentence.
        advice: What to pass.
    """
    return ConfigError(f"`base` is a {type(base).__name__}. {fits} Pass {advice}.")


def trunk_of(base: nn.Module) -> nn.Module:
    """The part of ``head(trunk(x))`` before the head."""
    return cast("nn.Module", base.trunk)


def head_of(base: nn.Module) -> nn.Module:
    """The head of ``head(trunk(x))``."""
    return cast("nn.Module", base.head)


def features_of(base: nn.Module) -> int | None:
    """How many numbers stand between trunk and head.

    The trunk's ``features``, or what its head reads.
    """
    known = getattr(trunk_of(base), "features", None)
    return known if isinstance(known, int) else getattr(head_of(base), "in_features", None)


def known_features(base: nn.Module, method: str) -> int:
    """Return how many numbers stand between trunk and head.

    Raises:
        ConfigError: If neither says it.
    """
    features = features_of(base)
    if features is None:
        raise ConfigError(
            f"`base` gives features, but it is not said how many. {method} builds a layer for "
            "them. Pass `nn.Sequential(trunk, nn.Linear(features, ways))`, or set `features` of "
            "the trunk to their number."
        )
    return features


def flat_features(trunk: nn.Module, x: Any) -> Tensor:
    """Run a shared trunk as `run_shared` does, to (tasks, batch, features).

    Raises:
        ShapeError: If features of an example are not a vector.
    """
    features = run_shared(trunk, x)
    if features.ndim != 3:
        raise ShapeError(
            f"The trunk gives features of shape {tuple(features.shape[2:])} for an example. A "
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
    """Name of the linear layer whose output is that of the network.

    None if there is none, or it is not seen.
    """
    if isinstance(base, nn.Linear):
        return ""
    if isinstance(base, nn.Sequential):
        *_, (name, last) = base.named_children() if len(base) else [("", nn.Identity())]
        inner = _last_linear(last)
        return None if inner is None else f"{name}.{inner}".rstrip(".")
    try:
        graph = torch.fx.symbolic_trace(base).graph
    except Exception:  # whatever a network does that cannot be traced
        return None
    (output,) = graph.find_nodes(op="output")
    last = output.args[0]
    calls = [node for node in graph.nodes if node.op == "call_module"]
    if last not in calls or not isinstance(base.get_submodule(last.target), nn.Linear):
        return None
    return str(last.target) if [node.target for node in calls].count(last.target) == 1 else None


def _without(base: nn.Module, name: str) -> nn.Module:
    """The same network, its parameters shared, with nothing in the place of one of its layers."""
    if not name:
        return nn.Identity()
    first, _, rest = name.partition(".")
    shared = copy.copy(base)
    shared._modules = {**base._modules, first: _without(base.get_submodule(first), rest)}
    return shared
