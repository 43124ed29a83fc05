"""Grid world with a hidden goal, over several trials in one episode."""

import torch
from jaxtyping import Float
from torch import Tensor

from weightloom.apps.rl.envs.batched import BatchedEnv, Contexts, States, Step


class GridWorld(BatchedEnv):
    """Navigation to a hidden goal on a 5 x 5 grid, 4 trials of 15 steps in one episode.

    The context is the goal's column and row, as numbers in [0, 5) that are rounded down. A step
    that ends on the goal has reward 1, any other -0.1. Each trial starts in the corner (0, 0). The
    goal is never in that corner or next to it.

    Source:
        Zintgraf et al., "VariBAD" (2020), section 5.1: grid, rewards, steps and trials.
    """

    name = "grid"
    parameters = ("column", "row")
    state_dim = 3
    observation_dim = 4
    actions = 5
    action_limit = None
    size = 5
    trial_steps = 15
    trials = 4
    max_steps = trial_steps * trials

    def goal(self, context: Contexts) -> Float[Tensor, "rows 2"]:
        """Return column and row of the goal, moved by (2, 2) if within a step of the corner."""
        goal = context.floor().clamp(0, self.size - 1)
        near = goal.sum(1) < 2
        return torch.where(near[:, None], goal + 2, goal)

    def start(self, context: Contexts, generator: torch.Generator) -> States:
        """Return the initial state, corner and step 0: (column, row, step)."""
        return context.new_zeros(len(context), 3)

    def advance(self, state: States, action: Tensor, context: Contexts) -> Step:
        """Take a step; actions 0 to 4 are stay, up, right, down, left, stopped by walls."""
        moves = state.new_tensor([[0, 0], [0, 1], [1, 0], [0, -1], [-1, 0]])
        place = (state[:, :2] + moves[action.long().flatten()]).clamp(0, self.size - 1)
        found = (place == self.goal(context)).all(1)
        reward = torch.where(found, 1.0, -0.1).to(state.dtype)
        time = state[:, 2] + 1
        anew = time % self.trial_steps == 0
        place = torch.where(anew[:, None], torch.zeros_like(place), place)
        return Step(
            torch.cat([place, time[:, None]], 1), reward, torch.zeros(len(state), dtype=torch.bool)
        )

    def observe(self, state: States, context: Contexts) -> Float[Tensor, "rows observation"]:
        """Return column, row, step within the trial and number of the trial, each in [-1, 1]."""
        place = 2 * state[:, :2] / (self.size - 1) - 1
        step = 2 * (state[:, 2] % self.trial_steps) / self.trial_steps - 1
        trial = 2 * (state[:, 2] / self.trial_steps).floor() / self.trials - 1
        return torch.cat([place, step[:, None], trial[:, None]], 1)

    def draw(self, states: Float[Tensor, "steps state"]) -> tuple[Tensor, list[str]]:
        """Return the path on the grid, (steps, 2), and the names of its axes."""
        return states[:, :2], ["column", "row"]
