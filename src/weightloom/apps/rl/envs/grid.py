"""A small grid world with a hidden goal: several trials to find it, and to go back to it."""

import torch
from jaxtyping import Float
from torch import Tensor

from weightloom.apps.rl.envs.batched import BatchedEnv, Contexts, States, Step


class GridWorld(BatchedEnv):
    """Walk a 5 x 5 grid to a goal that is not seen.

    15 steps a trial, 4 trials in one episode, the goal the same.

    The context is the goal's column and row, as numbers in [0, 5) that are rounded down. A step on
    the goal is worth 1, any other -0.1. After each trial the walker is back at its corner. The goal
    is never next to the corner.

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
        """Place of the goal, moved out of the corner where one starts."""
        goal = context.floor().clamp(0, self.size - 1)
        near = goal.sum(1) < 2
        return torch.where(near[:, None], goal + 2, goal)

    def start(self, context: Contexts, generator: torch.Generator) -> States:
        """Stand in the corner; no step was taken."""
        return context.new_zeros(len(context), 3)

    def advance(self, state: States, action: Tensor, context: Contexts) -> Step:
        """Stay, or go up, right, down or left; walls stop the walker."""
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
        """Place, step of the trial and number of the trial, each within [-1, 1]."""
        place = 2 * state[:, :2] / (self.size - 1) - 1
        step = 2 * (state[:, 2] % self.trial_steps) / self.trial_steps - 1
        trial = 2 * (state[:, 2] / self.trial_steps).floor() / self.trials - 1
        return torch.cat([place, step[:, None], trial[:, None]], 1)

    def draw(self, states: Float[Tensor, "steps state"]) -> tuple[Tensor, list[str]]:
        """Return the path on the grid."""
        return states[:, :2], ["column", "row"]
