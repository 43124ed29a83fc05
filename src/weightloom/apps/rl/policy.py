"""The policy of one context as a plain network, with the context folded into its parameters.

In:   a trained model, and a context with training ranges mapped to [-1, 1].
Out:  a module from observations to actions in the environment's units, made of torch alone.
Knows nothing of runs. Start at `plain_policy`.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from jaxtyping import Float
from stable_baselines3 import SAC, TD3
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torch.nn.functional import linear, normalize, relu

from weightloom.apps.rl.agents.nets import (
    GeneratedNetwork,
    MatchedNetwork,
    PlainNetwork,
    ResidualMLP,
)
from weightloom.base import specialise

POLICY = "networks.policy."
"""Prefix of the policy's parameters in a generated `SideBySide`."""


def plain_policy(
    model: Any, told: Float[Tensor, " parameters"], own_actions: spaces.Space[Any]
) -> nn.Module:
    """Return the deterministic policy of one context as a plain module.

    Args:
        model: Model of Stable-Baselines3 with networks of this library and no memory.
        told: The context, (parameters,), training ranges mapped to [-1, 1].
        own_actions: The environment's action space.

    Returns:
        A `torch.fx.GraphModule` from observations (..., state) to actions (..., actions) in the
        units of ``own_actions``, or to indices (...). It shares no tensor with the model and needs
        torch alone, also when exported. Its parameters have ``requires_grad=False``.
    """
    if isinstance(model, TD3):
        network = model.actor.mu[0]
    else:
        network = (
            model.actor.latent_pi if isinstance(model, SAC) else model.policy.mlp_extractor.network
        )
    policy = nn.Sequential(
        _body(network, told), _Ending(own_actions, squash=isinstance(model, TD3 | SAC))
    )
    return symbolic_trace(copy.deepcopy(policy).eval().requires_grad_(False))


def _body(network: nn.Module, told: Tensor) -> nn.Module:
    """Return the network of one context, from (..., state)."""
    if isinstance(network, PlainNetwork):
        layers: Any = copy.deepcopy(network.layers.networks["policy"])
        if network.read.start == 0:
            layers[0] = _folded(layers[0], told)
        return layers
    if isinstance(network, MatchedNetwork):
        return _Matched(_folded_trunk(network.trunk, told), network.layers.networks["policy"])
    assert isinstance(network, GeneratedNetwork)
    if not network.repeats:
        return _Generated(network, told)
    rows = torch.cat([told, told.new_zeros(network.read.stop - len(told))])[None]
    with torch.no_grad():
        whole: Any = specialise(network.hyper.base, network.generate(rows))
    policy: nn.Module = whole.networks["policy"]
    return policy


def _folded(layer: nn.Linear, told: Tensor) -> nn.Linear:
    """Return a layer without its first inputs, which are constant and folded into the bias."""
    whole = nn.Linear(layer.in_features - len(told), layer.out_features)
    with torch.no_grad():
        whole.weight.copy_(layer.weight[:, len(told) :])
        whole.bias.copy_(layer.bias + layer.weight[:, : len(told)] @ told)
    return whole


def _folded_trunk(trunk: ResidualMLP, told: Tensor) -> ResidualMLP:
    trunk = copy.deepcopy(trunk)
    trunk.first = _folded(trunk.first, told)
    return trunk


class _Matched(nn.Module):
    """Plain layers that read trunk features and state, [features | state]."""

    def __init__(self, trunk: nn.Module, layers: nn.Module) -> None:
        super().__init__()
        self.trunk, self.layers = trunk, layers

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(torch.cat([self.trunk(x), x], -1))


class _Generated(nn.Module):
    """Policy whose parameters are generated from state and context: trunk, head, `ModulatedLayer`.

    `forward` computes the `ModulatedLayer` for any leading axes. Each of its parameters is own,
    generated in full, or own plus a generated change of low rank.
    """

    def __init__(self, network: GeneratedNetwork, told: Tensor) -> None:
        super().__init__()
        self.unit, generated = network.unit, network.hyper.generated
        self.trunk = _folded_trunk(network.trunk, told)
        ours = {
            name: shape
            for name, shape in generated.factors.shapes.items()
            if name.startswith(POLICY)
        }
        self.shapes = {name.removeprefix(POLICY): shape for name, shape in ours.items()}
        start, at = 0, []
        for name, size in zip(generated.factors.shapes, generated.factors.sizes, strict=True):
            at += [torch.arange(start, start + size)] if name in ours else []
            start += size
        rows = torch.cat(at)
        self.head = nn.Linear(network.hyper.head.in_features, len(rows))
        with torch.no_grad():
            self.head.weight.copy_(network.hyper.head.weight[rows])
            self.head.bias.copy_((network.hyper.head.bias + generated.start())[rows])
        for name, value in network.base.networks["policy"].named_parameters():
            if f"{name}/change" not in self.shapes:  # own, or own plus a change of low rank
                self.register_parameter(
                    name.replace(".", "_"), nn.Parameter(value.detach().clone())
                )

    def forward(self, x: Tensor) -> Tensor:
        features = self.trunk(x)
        flat = self.head(normalize(features, dim=-1) if self.unit else features)
        pieces = flat.split([torch.Size(shape).numel() for shape in self.shapes.values()], -1)
        written = {
            name: pieces[number].unflatten(-1, shape)
            for number, (name, shape) in enumerate(self.shapes.items())
        }
        hidden = (1 + self._value("gain", written)) * self._product("first.weight", x, written)
        hidden = relu(hidden + self._value("bias", written))
        return self._product("last.weight", hidden, written) + self._value("last.bias", written)

    def _value(self, name: str, written: Mapping[str, Tensor]) -> Tensor:
        change = f"{name}/change"
        return written[change] if change in self.shapes else getattr(self, name.replace(".", "_"))

    def _product(self, name: str, x: Tensor, written: Mapping[str, Tensor]) -> Tensor:
        if f"{name}/change" in self.shapes:
            return (written[f"{name}/change"] @ x[..., None])[..., 0]
        y = linear(x, getattr(self, name.replace(".", "_")))
        if f"{name}/up" not in self.shapes:
            return y
        return y + (written[f"{name}/up"] @ (written[f"{name}/down"] @ x[..., None]))[..., 0]


class _Ending(nn.Module):
    """Map the outputs of a policy network to actions of the environment.

    Args:
        own_actions: The environment's action space.
        squash: Apply tanh, as TD3 and SAC do; else clamp to [-1, 1].
    """

    def __init__(self, own_actions: spaces.Space[Any], squash: bool) -> None:
        super().__init__()
        self.squash, self.actions = squash, 0
        self.middle: Tensor
        self.reach: Tensor
        if isinstance(own_actions, spaces.Box):
            low, high = (
                torch.as_tensor(limit, dtype=torch.float32)
                for limit in (own_actions.low, own_actions.high)
            )
            self.actions = len(low)
            self.register_buffer("middle", (high + low) / 2)
            self.register_buffer("reach", (high - low) / 2)

    def forward(self, x: Tensor) -> Tensor:
        if not self.actions:
            return x.argmax(-1)
        mean = x[..., : self.actions]  # log deviations of SAC follow it
        return self.middle + self.reach * (mean.tanh() if self.squash else mean.clamp(-1.0, 1.0))
