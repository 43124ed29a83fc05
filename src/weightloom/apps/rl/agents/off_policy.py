"""TD3 and SAC with networks of ours for actor and critics.

The algorithms are Stable-Baselines3's.
"""

from dataclasses import dataclass
from typing import Any

import torch
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.sac.policies import Actor as SACActor
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import Actor as TD3Actor
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from weightloom.apps.rl.agents.nets import Columns, Kind, Sizes, network_of


@dataclass(frozen=True)
class NetPlan:
    """Which networks an agent has."""

    kind: Kind
    context: int
    """Numbers of a context, in front of every observation."""
    state: int
    """Numbers of a state, behind it."""
    sizes: Sizes
    huber: bool = True
    """Whether errors of the critic count as in the Huber loss: squared when small, linear from 1
    on."""
    extra: int = 0
    """Numbers behind the state that only a memory reads: last action, last reward, whether an
    episode began."""

    def columns(self, action: int = 0) -> Columns:
        """Say what rows hold."""
        return Columns(self.context, self.state, action)


class Critic(ContinuousCritic):
    """Two critics with networks of ours.

    Stable-Baselines3 computes the mean squared error, ``scale`` times. Its gradient with respect to
    a value is 2 · scale · d / rows for an error d; the gradient of the Huber loss is the same with
    d cut to [-1, 1] and without the factor 2 · scale. So with ``huber`` that gradient is what is
    sent back into the networks, and the algorithm is left as it is. Where actions have a gradient,
    it is the actor that learns, and nothing is cut.

    Args:
        plan: Which networks.
        scale: By what the algorithm multiplies the mean squared error.
        **kwargs: As for Stable-Baselines3's critic.
    """

    def __init__(self, plan: NetPlan, scale: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.huber, self.scale = plan.huber, scale
        columns = plan.columns(int(kwargs["action_space"].shape[0]))
        for number in range(len(self.q_networks)):
            network = network_of(plan.kind, columns, {"value": 1}, plan.sizes)
            self.q_networks[number] = network
            self.add_module(f"qf{number}", network)

    def forward(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
        """Value states and actions, (rows, 1) from each critic."""
        values: tuple[Tensor, ...] = super().forward(obs, actions)
        if self.huber and torch.is_grad_enabled() and not actions.requires_grad:
            for value in values:
                value.register_hook(lambda gradient: huber_gradient(gradient, self.scale))
        return values


def huber_gradient(gradient: Tensor, scale: float = 1.0) -> Tensor:
    """Turn the gradient of a scaled mean squared error into that of the mean Huber loss with threshold 1.

    Example:
        >>> value = torch.tensor([0.5, 3.0, -7.0], requires_grad=True)
        >>> squared = torch.autograd.grad(value.square().mean(), value)[0]
        >>> huber = torch.autograd.grad(torch.nn.functional.huber_loss(value, torch.zeros(3)), value)[0]
        >>> torch.allclose(huber_gradient(squared), huber)
        True
    """
    rows = gradient.numel()
    return (gradient * rows / (2 * scale)).clamp(-1.0, 1.0) / rows


class GeneratedTD3Policy(TD3Policy):
    """TD3's policy with networks of ours.

    Averaging and targets act on all they are made of, hypernetworks included.

    Args:
        *args: As for Stable-Baselines3's policy.
        plan: Which networks.
        **kwargs: As for Stable-Baselines3's policy.
    """

    def __init__(self, *args: Any, plan: NetPlan, **kwargs: Any) -> None:
        self.plan = plan
        super().__init__(*args, **kwargs)

    def make_actor(self, features_extractor: Any = None) -> TD3Actor:
        """Build an actor."""
        actor = super().make_actor(features_extractor)
        actions = int(self.action_space.shape[0])  # type: ignore[index]  # a Box has one
        network = network_of(
            self.plan.kind, self.plan.columns(), {"policy": actions}, self.plan.sizes
        )
        actor.mu = nn.Sequential(network, nn.Tanh())
        return actor

    def make_critic(self, features_extractor: Any = None) -> ContinuousCritic:
        """Build two critics."""
        return Critic(
            self.plan,
            1.0,
            **self._update_features_extractor(self.critic_kwargs, features_extractor),
        )


class Part(nn.Module):
    """Some columns of what came in.

    Args:
        columns: Which.
    """

    def __init__(self, columns: slice) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, x: Tensor) -> Tensor:
        """Take them."""
        return x[:, self.columns]


class GeneratedSACPolicy(SACPolicy):
    """SAC's policy with networks of ours: one network gives mean and log deviation.

    Args:
        *args: As for Stable-Baselines3's policy.
        plan: Which networks.
        **kwargs: As for Stable-Baselines3's policy.
    """

    def __init__(self, *args: Any, plan: NetPlan, **kwargs: Any) -> None:
        self.plan = plan
        super().__init__(*args, **kwargs)

    def make_actor(self, features_extractor: Any = None) -> SACActor:
        """Build an actor."""
        actor = super().make_actor(features_extractor)
        actions = int(self.action_space.shape[0])  # type: ignore[index]  # a Box has one
        columns = self.plan.columns()
        network = network_of(self.plan.kind, columns, {"policy": 2 * actions}, self.plan.sizes)
        actor.latent_pi = network  # type: ignore[assignment]
        actor.mu, actor.log_std = Part(slice(0, actions)), Part(slice(actions, None))  # type: ignore[assignment]
        return actor

    def make_critic(self, features_extractor: Any = None) -> ContinuousCritic:
        """Build two critics."""
        return Critic(
            self.plan,
            0.5,
            **self._update_features_extractor(self.critic_kwargs, features_extractor),
        )
