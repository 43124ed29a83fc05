"""Double gyre: steer a slow vehicle to a target in an oscillating current of two vortices."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from weightloom.apps.rl.envs.batched import BatchedEnv, Contexts, States, Step


class DoubleGyre(BatchedEnv):
    """Navigation in [0, 2] x [0, 1] against a current with stream function A sin(πf) sin(πy).

    f(x, t) = ε sin(ωt) x² + (1 - 2ε sin(ωt)) x, with ε = 0.25. The context is the current's
    amplitude A and its angular frequency ω in rad/s. An action u is the vehicle's velocity, at most
    0.2 per axis, while the current reaches πA. It is held for four steps of 0.1 s; an episode is
    200 actions, 80 s. The reward is -|p - target|² - 0.1 |u|² at the position p reached. Walls
    stop the vehicle.

    Observations are the position and the phase of the current, as sin and cos of ωt.

    Source:
        Equations, ranges and reward: Botteghi et al., "HypeRL: Parameter-informed reinforcement
        learning for parametric PDEs" (2026), the double-gyre flow. Three choices are unpublished
        and ours: a uniform initial position, the target in the middle of the right vortex, and the
        observed phase. A planner that knows the current can hold that target in all contexts, also
        held-out ones. A target between the vortices cannot be held, so it would not separate good
        from bad policies.
    """

    name = "gyre"
    parameters = ("amplitude", "frequency")
    state_dim = 3
    observation_dim = 4
    actions = 2
    action_limit = 0.2
    max_steps = 200
    dt_s = 0.1
    held = 4
    swing = 0.25
    target = (1.5, 0.5)

    def start(self, context: Contexts, generator: torch.Generator) -> States:
        """Draw a uniform position, at time 0: (x, y, time_s)."""
        unit = torch.rand(len(context), 2, generator=generator).to(context.dtype)
        return torch.cat([unit * unit.new_tensor([2.0, 1.0]), unit.new_zeros(len(context), 1)], 1)

    def advance(self, state: States, action: Tensor, context: Contexts) -> Step:
        """Take four Runge-Kutta steps of fourth order; the reward is of the final position."""
        place, time_s = state[:, :2], state[:, 2]
        for _ in range(self.held):
            first = self.current(place, time_s, context) + action
            second = (
                self.current(place + self.dt_s / 2 * first, time_s + self.dt_s / 2, context)
                + action
            )
            third = (
                self.current(place + self.dt_s / 2 * second, time_s + self.dt_s / 2, context)
                + action
            )
            last = self.current(place + self.dt_s * third, time_s + self.dt_s, context) + action
            place = self.inside(place + self.dt_s / 6 * (first + 2 * second + 2 * third + last))
            time_s = time_s + self.dt_s
        away = (place - place.new_tensor(self.target)).square().sum(1)
        reward = -away - 0.1 * action.square().sum(1)
        return Step(
            torch.cat([place, time_s[:, None]], 1),
            reward,
            torch.zeros(len(state), dtype=torch.bool),
        )

    def current(
        self, place: Float[Tensor, "rows 2"], time_s: Float[Tensor, " rows"], context: Contexts
    ) -> Float[Tensor, "rows 2"]:
        """Return the velocity of the current, (-∂ψ/∂y, ∂ψ/∂x) of the stream function ψ."""
        x, y = place.unbind(1)
        amplitude, frequency = context.unbind(1)
        tilt = self.swing * torch.sin(frequency * time_s)
        f = math.pi * (tilt * x.square() + (1 - 2 * tilt) * x)
        slope = 2 * tilt * x + (1 - 2 * tilt)
        along = -math.pi * amplitude * torch.sin(f) * torch.cos(math.pi * y)
        across = math.pi * amplitude * torch.cos(f) * torch.sin(math.pi * y) * slope
        return torch.stack([along, across], 1)

    def inside(self, place: Float[Tensor, "rows 2"]) -> Float[Tensor, "rows 2"]:
        """Clip positions to the basin."""
        return torch.minimum(place.clamp(min=0.0), place.new_tensor([2.0, 1.0]))

    def observe(self, state: States, context: Contexts) -> Float[Tensor, "rows observation"]:
        """Return (x - 1, 2y - 1, sin ωt, cos ωt)."""
        phase = context[:, 1] * state[:, 2]
        return torch.stack([state[:, 0] - 1, 2 * state[:, 1] - 1, phase.sin(), phase.cos()], 1)

    def draw(self, states: Float[Tensor, "steps state"]) -> tuple[Tensor, list[str]]:
        """Return the path in the basin, (steps, 2), and the names of its axes."""
        return states[:, :2], ["x", "y"]
