"""PPO with networks of ours: policy and value written by one hypernetwork, from the context or from a memory."""

from typing import Any

import torch
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from weightloom.apps.rl.agents.nets import Columns, GeneratedNetwork, network_of
from weightloom.apps.rl.agents.off_policy import NetPlan

SMALL = 0.01
"""What the last layer of a policy is multiplied by at the start, so that it begins without
preferences."""


class PolicyAndValue(nn.Module):
    """One network of ours in the place of Stable-Baselines3's extractor.

    It gives policy and value at once.

    Args:
        plan: Which networks.
        columns: What rows hold.
        actions: Numbers of a policy.
        memory: Whether the context is what was remembered.
    """

    def __init__(self, plan: NetPlan, columns: Columns, actions: int, memory: bool) -> None:
        super().__init__()
        self.latent_dim_pi, self.latent_dim_vf = actions, 1
        outputs = {"policy": actions, "value": 1}
        self.network = network_of(plan.kind, columns, outputs, plan.sizes, memory)
        side = (
            self.network.hyper.base
            if isinstance(self.network, GeneratedNetwork)
            else self.network.layers
        )
        last = [
            layer for layer in side.networks["policy"].modules() if isinstance(layer, nn.Linear)
        ][-1]  # type: ignore
        with torch.no_grad():
            last.weight.mul_(SMALL)
            last.bias.zero_()

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Give the policy's numbers, (rows, actions), and the value, (rows, 1)."""
        outputs = self.network(rows)
        return outputs[:, : self.latent_dim_pi], outputs[:, self.latent_dim_pi :]

    def forward_actor(self, rows: Tensor) -> Tensor:
        """Give the policy's numbers."""
        return self.forward(rows)[0]

    def forward_critic(self, rows: Tensor) -> Tensor:
        """Give the value."""
        return self.forward(rows)[1]


class GeneratedPolicy(ActorCriticPolicy):
    """PPO's policy with one network of ours.

    Args:
        *args: As for Stable-Baselines3's policy.
        plan: Which networks.
        **kwargs: As for Stable-Baselines3's policy.
    """

    def __init__(self, *args: Any, plan: NetPlan, **kwargs: Any) -> None:
        self.plan = plan
        super().__init__(*args, **{**kwargs, "ortho_init": False})

    def _build_mlp_extractor(self) -> None:
        actions = _numbers(self.action_space)
        self.mlp_extractor = PolicyAndValue(self.plan, self.plan.columns(), actions, False)  # type: ignore[assignment]

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net, self.value_net = nn.Identity(), nn.Identity()  # type: ignore[assignment]
        self.optimizer = self.optimizer_class(
            self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs
        )  # type: ignore[call-arg]


class Memory(nn.Module):
    """A GRU over state, last action and last reward, in the place of an LSTM.

    It gives its state and the row's own.

    Args:
        skip: Numbers in front of a row, the context, that it must not see.
        inputs: Numbers of a row behind them.
        state: How many of them are the state, which is passed on.
        hidden: Numbers it remembers.
    """

    num_layers = 1

    def __init__(self, skip: int, inputs: int, state: int, hidden: int) -> None:
        super().__init__()
        self.skip, self.state = skip, state
        self.input_size, self.hidden_size = skip + inputs, hidden
        self.gru = nn.GRU(inputs, hidden)

    def forward(
        self, x: Tensor, states: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Read a sequence, (steps, rows, numbers).

        Returns:
            What is remembered beside the state, for each step, and what to go on from. An LSTM has
            two states there, a GRU has one.
        """
        seen = x[..., self.skip :]
        remembered, last = self.gru(seen, states[0].contiguous())
        return torch.cat([remembered, seen[..., : self.state]], -1), (last, states[1])


class RecurrentGeneratedPolicy(RecurrentActorCriticPolicy):
    """Recurrent PPO's policy: what a GRU remembers takes the place of the context, for contexts that are not given.

    The value learns through its own parameters alone: Stable-Baselines3 lets a shared memory learn
    from the policy.

    Args:
        *args: As for sb3-contrib's policy.
        plan: Which networks.
        hidden: Numbers that the memory holds.
        **kwargs: As for sb3-contrib's policy.

    Source:
        Beck et al., "Recurrent hypernetworks are surprisingly strong in meta-RL" (2023), section 4:
        what a recurrent network remembers of states, actions and rewards is the condition, and the
        policy reads the state once more.
    """

    def __init__(self, *args: Any, plan: NetPlan, hidden: int = 64, **kwargs: Any) -> None:
        self.plan, self.hidden = plan, hidden
        options: dict[str, Any] = {
            "shared_lstm": True,
            "enable_critic_lstm": False,
            "lstm_hidden_size": hidden,
            "ortho_init": False,
        }
        super().__init__(*args, **{**kwargs, **options})
        memory = Memory(plan.context, plan.state + plan.extra, plan.state, hidden)
        self.lstm_actor = memory  # type: ignore[assignment]
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer = self.optimizer_class(
            self.parameters(), lr=learning_rate, **self.optimizer_kwargs
        )  # type: ignore[call-arg]

    def _build_mlp_extractor(self) -> None:
        columns = Columns(self.hidden, self.plan.state)
        actions = _numbers(self.action_space)
        self.mlp_extractor = PolicyAndValue(self.plan, columns, actions, True)  # type: ignore[assignment]

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net, self.value_net = nn.Identity(), nn.Identity()  # type: ignore[assignment]

    @staticmethod
    def _process_sequence(
        features: Tensor, lstm_states: Any, episode_starts: Tensor, lstm: Any
    ) -> Any:
        """Forget at the start of a sequence and read the rest in one pass.

        Step by step where an episode begins within.

        sb3-contrib reads step by step wherever any episode begins, which is always so while it
        learns.
        """
        rows = lstm_states[0].shape[1]
        starts = episode_starts.reshape(rows, -1)
        if bool((starts[:, 1:] == 0).all()):
            keep = (1.0 - starts[:, 0]).view(1, rows, 1)
            lstm_states = tuple(keep * state for state in lstm_states)
            episode_starts = torch.zeros_like(episode_starts)
        return RecurrentActorCriticPolicy._process_sequence(
            features, lstm_states, episode_starts, lstm
        )


def _numbers(space: Any) -> int:
    """How many numbers a policy gives.

    One per action where actions are discrete, else a mean for each of them.
    """
    return int(space.n) if hasattr(space, "n") else int(space.shape[0])
