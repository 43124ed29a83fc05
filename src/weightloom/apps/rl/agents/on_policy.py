"""Policies for PPO and recurrent PPO: one hypernetwork generates policy and value network."""

from collections.abc import Callable
from typing import Any

import torch
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from weightloom.apps.rl.agents.nets import Columns, GeneratedNetwork, network_of
from weightloom.apps.rl.agents.off_policy import NetPlan, policy_numbers, put_modules

SMALL = 0.01
"""Factor on the initial weights of a policy's last layer, so that it starts near-uniform."""


class PolicyAndValue(nn.Module):
    """Network for policy and value, in the place of Stable-Baselines3's `MlpExtractor`.

    Args:
        plan: Networks of the agent.
        columns: Layout of a row.
        actions: Number of outputs of the policy.
        memory: The context is the state of a recurrent layer.
    """

    def __init__(self, plan: NetPlan, columns: Columns, actions: int, memory: bool) -> None:
        super().__init__()
        self.latent_dim_pi, self.latent_dim_vf = actions, 1
        outputs = {"policy": actions, "value": 1}
        self.network = network_of(plan.kind, columns, outputs, plan.sizes, memory)
        network: Any = self.network
        side = network.base if isinstance(network, GeneratedNetwork) else network.layers
        layers = side.networks["policy"].modules()
        last = [layer for layer in layers if isinstance(layer, nn.Linear)][-1]
        with torch.no_grad():
            last.weight.mul_(SMALL)
            last.bias.zero_()

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs of the policy, (rows, actions), and the value, (rows, 1)."""
        outputs = self.network(rows)
        return outputs[:, : self.latent_dim_pi], outputs[:, self.latent_dim_pi :]

    def forward_actor(self, rows: Tensor) -> Tensor:
        """Return the outputs of the policy, (rows, actions)."""
        return self.forward(rows)[0]

    def forward_critic(self, rows: Tensor) -> Tensor:
        """Return the value, (rows, 1)."""
        return self.forward(rows)[1]


class GeneratedPolicy(ActorCriticPolicy):
    """PPO's policy with one network of this library for policy and value.

    Args:
        *args: Arguments of Stable-Baselines3's `ActorCriticPolicy`.
        plan: Networks of the agent.
        **kwargs: Arguments of Stable-Baselines3's `ActorCriticPolicy`.
    """

    def __init__(self, *args: Any, plan: NetPlan, **kwargs: Any) -> None:
        self.plan = plan
        super().__init__(*args, **{**kwargs, "ortho_init": False})

    def _build_mlp_extractor(self) -> None:
        actions = policy_numbers(self.action_space)
        extractor = PolicyAndValue(self.plan, self.plan.columns(), actions, False)
        put_modules(self, mlp_extractor=extractor)

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        put_modules(self, action_net=nn.Identity(), value_net=nn.Identity())
        self.optimizer = _optimiser(self, lr_schedule(1))


class Memory(nn.Module):
    """GRU over state, last action and last reward, with the interface of sb3-contrib's LSTM.

    Args:
        skip: Number of context parameters at the start of a row, which it must not read.
        inputs: Number of inputs after them: state, last action, last reward, episode start.
        state: Number of state variables, the first of the inputs.
        hidden: Number of hidden units.
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
        """Run a sequence, (steps, rows, numbers).

        Returns:
            [hidden | state] of each step, (steps, rows, hidden + state), and the recurrent states.
            A GRU has one recurrent state, an LSTM two; the second is passed through unchanged.
        """
        seen = x[..., self.skip :]
        remembered, last = self.gru(seen, states[0].contiguous())
        return torch.cat([remembered, seen[..., : self.state]], -1), (last, states[1])


class RecurrentGeneratedPolicy(RecurrentActorCriticPolicy):
    """Recurrent PPO's policy for hidden contexts: the state of a GRU replaces the context.

    The memory learns from the policy's loss alone: sb3-contrib detaches a shared memory from the
    value's loss.

    Args:
        *args: Arguments of sb3-contrib's `RecurrentActorCriticPolicy`.
        plan: Networks of the agent.
        hidden: Number of hidden units of the memory.
        **kwargs: Arguments of sb3-contrib's `RecurrentActorCriticPolicy`.

    Source:
        Beck et al., "Recurrent hypernetworks are surprisingly strong in meta-RL" (2023), section 4:
        the condition is the state of a recurrent network over states, actions and rewards, and the
        policy also reads the current state.
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
        put_modules(self, lstm_actor=memory)
        self.optimizer = _optimiser(self, self.optimizer.param_groups[0]["lr"])

    def _build_mlp_extractor(self) -> None:
        columns = Columns(self.hidden, self.plan.state)
        actions = policy_numbers(self.action_space)
        put_modules(self, mlp_extractor=PolicyAndValue(self.plan, columns, actions, True))

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        put_modules(self, action_net=nn.Identity(), value_net=nn.Identity())

    @staticmethod
    def _process_sequence(
        features: Tensor, lstm_states: Any, episode_starts: Tensor, lstm: Any
    ) -> Any:
        """Run sequences in one pass, after a reset of the state where an episode begins.

        Sequences in which an episode begins later run step by step. sb3-contrib runs step by step
        as soon as any episode begins, which in training is always the case.
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


def _optimiser(policy: ActorCriticPolicy, learning_rate: float) -> torch.optim.Optimizer:
    """Build an optimiser over the current parameters of a policy."""
    make: Callable[..., torch.optim.Optimizer] = policy.optimizer_class
    return make(policy.parameters(), lr=learning_rate, **policy.optimizer_kwargs)
