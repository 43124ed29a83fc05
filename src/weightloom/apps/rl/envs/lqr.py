"""Linear-quadratic control of a mass on a spring, with a known optimum in every context."""

import torch
from jaxtyping import Float
from torch import Tensor

from weightloom.apps.rl.envs.batched import BatchedEnv, Contexts, States, Step

DISCOUNT = 0.95
"""Default discount factor of `LQR.optimum`."""


class LQR(BatchedEnv):
    """Control of a mass on a damped spring: s' = A s + B u, reward -(sᵀQs + R u²).

    The state s is position and speed. The context is the spring's stiffness, negative for a spring
    that repels, and the motor's gain.

    Example:
        >>> env, context = LQR(), torch.tensor([[1.0, 1.0]])
        >>> env.advance(torch.tensor([[1.0, 0.0]]), torch.zeros(1, 1), context).reward
        tensor([-1.])
    """

    name = "lqr"
    parameters = ("stiffness", "motor")
    state_dim = 2
    observation_dim = 2
    actions = 1
    action_limit = 6.0
    max_steps = 40
    dt_s = 0.1
    damping = 0.2
    state_cost = (1.0, 0.1)
    action_cost = 0.2

    def matrices(
        self, context: Contexts
    ) -> tuple[Float[Tensor, "rows 2 2"], Float[Tensor, "rows 2 1"]]:
        """Return A, (rows, 2, 2), and B, (rows, 2, 1), of each context."""
        stiffness, motor = context.unbind(1)
        one = torch.ones_like(stiffness)
        dt = self.dt_s
        a = torch.stack(
            [one, dt * one, -dt * stiffness, (1 - dt * self.damping) * one], 1
        ).unflatten(1, (2, 2))
        return a, torch.stack([0 * one, dt * motor], 1)[..., None]

    def start(self, context: Contexts, generator: torch.Generator) -> States:
        """Draw position and speed, uniform in [-1, 1]."""
        return (2 * torch.rand(len(context), 2, generator=generator) - 1).to(context.dtype)

    def advance(self, state: States, action: Tensor, context: Contexts) -> Step:
        """Take a step of 0.1 s; the reward is of the state before it."""
        a, b = self.matrices(context)
        cost = (state.square() * state.new_tensor(self.state_cost)).sum(
            1
        ) + self.action_cost * action.square().sum(1)
        after = (a @ state[..., None] + b @ action[..., None])[..., 0]
        return Step(after, -cost, torch.zeros(len(state), dtype=torch.bool))

    def draw(self, states: Float[Tensor, "steps state"]) -> tuple[Tensor, list[str]]:
        """Return the path of position and speed, (steps, 2), and the names of its axes."""
        return states[:, :2], ["position", "speed"]

    def optimum(
        self, context: Contexts, discount: float = DISCOUNT, sweeps: int = 2000
    ) -> tuple[Float[Tensor, "rows 1 2"], Float[Tensor, "rows 2 2"]]:
        """Return gain K and matrix P of each context: optimal action -K s, value -sᵀPs.

        Args:
            context: Contexts, (rows, parameters).
            discount: Discount factor per step.
            sweeps: Maximum number of Riccati iterations.

        Source:
            Discounted Riccati equation, iterated to its fixed point: Bertsekas, "Dynamic
            programming and optimal control" (2012), volume 2, section 4.1, with √γA and √γB for A
            and B.
        """
        a, b = (part.double() for part in self.matrices(context))
        q = torch.diag(torch.tensor(self.state_cost, dtype=torch.float64))
        p = q.expand(len(context), 2, 2)
        for _ in range(sweeps):
            gain = discount * torch.linalg.solve(
                self.action_cost + discount * b.mT @ p @ b, b.mT @ p @ a
            )
            before, p = p, q + discount * a.mT @ p @ (a - b @ gain)
            if torch.allclose(before, p, rtol=1e-12, atol=0):
                break
        return gain.to(context.dtype), p.to(context.dtype)
