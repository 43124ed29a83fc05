"""Policies for TD3 and SAC of Stable-Baselines3, with networks of this library."""

from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.sac.policies import Actor as SACActor
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import Actor as TD3Actor
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from weightloom.apps.rl.agents.nets import Columns, Kind, Sizes, network_of


@dataclass(frozen=True)
class NetPlan:
    """Kind, inputs and sizes of an agent's networks."""

    kind: Kind
    """Kind of network."""
    context: int
    """Number of context parameters, at the start of every observation."""
    state: int
    """Number of state variables, after the context."""
    sizes: Sizes
    """Sizes of the trunk and the generated networks."""
    huber: bool = True
    """Huber loss with threshold 1 for the critic; else the squared error."""
    extra: int = 0
    """Number of inputs of a memory after the state: last action, last reward, episode start."""

    def columns(self, action: int = 0) -> Columns:
        """Return the layout of a row, with ``action`` numbers of an action."""
        return Columns(self.context, self.state, action)


def policy_numbers(space: Any) -> int:
    """Return the number of outputs of a policy: one per discrete action, or per vector entry."""
    return int(space.n) if isinstance(space, spaces.Discrete) else int(space.shape[0])


def put_modules(owner: nn.Module, **modules: nn.Module) -> None:
    """Replace submodules by name, also by modules of another class."""
    for name, module in modules.items():
        owner.add_module(name, module)


class Critic(ContinuousCritic):
    """Critics of TD3 and SAC with networks of this library, and the gradient of the Huber loss.

    Stable-Baselines3 computes ``scale`` times the mean squared error. Its gradient with respect to
    a value is 2 · scale · d / rows for an error d; that of the Huber loss is clamp(d, -1, 1) /
    rows. With ``plan.huber`` a hook replaces the first by the second, so the algorithm stays
    unchanged. The hook is left out while the actor learns, which is when actions require gradients.

    Args:
        plan: Networks of the agent.
        scale: Factor of the algorithm on the mean squared error.
        **kwargs: Arguments of Stable-Baselines3's `ContinuousCritic`.
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
        """Return the value of states and actions, (rows, 1), from each critic."""
        values: tuple[Tensor, ...] = super().forward(obs, actions)
        if self.huber and torch.is_grad_enabled() and not actions.requires_grad:
            for value in values:
                value.register_hook(lambda gradient: huber_gradient(gradient, self.scale))
        return values


def huber_gradient(gradient: Tensor, scale: float = 1.0) -> Tensor:
    """Convert the gradient of ``scale`` times a mean squared error to that of a mean Huber loss.

    The threshold of the Huber loss is 1.

    Example:
        >>> value = torch.tensor([0.5, 3.0, -7.0], requires_grad=True)
        >>> squared = torch.autograd.grad(value.square().mean(), value)[0]
        >>> loss = torch.nn.functional.huber_loss(value, torch.zeros(3))
        >>> huber = torch.autograd.grad(loss, value)[0]
        >>> torch.allclose(huber_gradient(squared), huber)
        True
    """
    rows = gradient.numel()
    return (gradient * rows / (2 * scale)).clamp(-1.0, 1.0) / rows


class GeneratedTD3Policy(TD3Policy):
    """TD3's policy with networks of this library.

    Target networks are averaged over all parameters, those of hypernetworks included.

    Args:
        *args: Arguments of Stable-Baselines3's `TD3Policy`.
        plan: Networks of the agent.
        **kwargs: Arguments of Stable-Baselines3's `TD3Policy`.
    """

    def __init__(self, *args: Any, plan: NetPlan, **kwargs: Any) -> None:
        self.plan = plan
        super().__init__(*args, **kwargs)

    def make_actor(self, features_extractor: Any = None) -> TD3Actor:
        """Build the actor."""
        actor = super().make_actor(features_extractor)
        actions = policy_numbers(self.action_space)
        network = network_of(
            self.plan.kind, self.plan.columns(), {"policy": actions}, self.plan.sizes
        )
        actor.mu = nn.Sequential(network, nn.Tanh())
        return actor

    def make_critic(self, features_extractor: Any = None) -> ContinuousCritic:
        """Build the critics."""
        return Critic(
            self.plan,
            1.0,
            **self._update_features_extractor(self.critic_kwargs, features_extractor),
        )


class Part(nn.Module):
    """Selection of columns as a module.

    Args:
        columns: Columns to select.
    """

    def __init__(self, columns: slice) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, x: Tensor) -> Tensor:
        """Return the columns, (rows, numbers) to (rows, selected)."""
        return x[:, self.columns]


class GeneratedSACPolicy(SACPolicy):
    """SAC's policy with networks of this library; one network gives mean and log deviation.

    Args:
        *args: Arguments of Stable-Baselines3's `SACPolicy`.
        plan: Networks of the agent.
        **kwargs: Arguments of Stable-Baselines3's `SACPolicy`.
    """

    def __init__(self, *args: Any, plan: NetPlan, **kwargs: Any) -> None:
        self.plan = plan
        super().__init__(*args, **kwargs)

    def make_actor(self, features_extractor: Any = None) -> SACActor:
        """Build the actor."""
        actor = super().make_actor(features_extractor)
        actions = policy_numbers(self.action_space)
        columns = self.plan.columns()
        network = network_of(self.plan.kind, columns, {"policy": 2 * actions}, self.plan.sizes)
        put_modules(
            actor,
            latent_pi=network,
            mu=Part(slice(0, actions)),
            log_std=Part(slice(actions, None)),
        )
        return actor

    def make_critic(self, features_extractor: Any = None) -> ContinuousCritic:
        """Build the critics."""
        return Critic(
            self.plan,
            0.5,
            **self._update_features_extractor(self.critic_kwargs, features_extractor),
        )
