"""Batched environments as gymnasium environments, one episode at a time."""

from typing import Any

import gymnasium
import numpy as np
import torch

from weightloom.apps.rl.envs.batched import BatchedEnv
from weightloom.apps.rl.envs.context import ContextFamily
from weightloom.apps.rl.envs.default_ranges import BATCHED, usual
from weightloom.apps.rl.envs.grid import GridWorld
from weightloom.apps.rl.envs.gyre import DoubleGyre
from weightloom.apps.rl.envs.lqr import LQR
from weightloom.apps.rl.envs.vector import physical, spaces_of

KINDS: dict[str, type[BatchedEnv]] = {"lqr": LQR, "gyre": DoubleGyre, "grid": GridWorld}
"""Batched environments of this library, by name."""


class SingleEnv(gymnasium.Env[Any, Any]):
    """A batched environment with one row, whose context is drawn at every reset.

    Observations begin with the context, training ranges mapped to [-1, 1]. To choose the context,
    pass ``options={"context": [...]}`` to ``reset``, in the environment's units.

    Args:
        name: `lqr`, `gyre` or `grid`.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (gymnasium's own annotation)

    def __init__(self, name: str) -> None:
        self.env = KINDS[name]()
        self.family = ContextFamily(usual(name))
        self.observation_space, self.action_space = spaces_of(self.env, self.family)
        self.generator = torch.Generator()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Start an episode in a drawn context, or in ``options["context"]``."""
        super().reset(seed=seed)
        self.generator.manual_seed(int(self.np_random.integers(2**63)))
        chosen = (options or {}).get("context")
        self.context = (
            self.family.sample(1, self.generator)
            if chosen is None
            else torch.tensor([chosen]).float()
        )
        self.state = self.env.start(self.context, self.generator)
        return self._observe(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a step; gymnasium's `TimeLimit` wrapper ends episodes."""
        step = self.env.advance(
            self.state, physical(self.env, torch.as_tensor(np.asarray(action))[None]), self.context
        )
        self.state = step.state
        return self._observe(), float(step.reward), bool(step.terminated), False, self._info()

    def _observe(self) -> Any:
        seen = self.env.observe(self.state, self.context)
        return torch.cat([self.family.normalise(self.context), seen], 1)[0].float().numpy()

    def _info(self) -> dict[str, Any]:
        return {"context": dict(zip(self.family.names, self.context[0].tolist(), strict=True))}


def register_all() -> None:
    """Register `weightloom/lqr-v0`, `weightloom/gyre-v0`, `weightloom/grid-v0` with gymnasium."""
    for name in BATCHED:
        if f"weightloom/{name}-v0" not in gymnasium.registry:
            gymnasium.register(
                f"weightloom/{name}-v0",
                entry_point="weightloom.apps.rl.envs.gymnasium_env:SingleEnv",
                max_episode_steps=KINDS[name].max_steps,
                kwargs={"name": name},
            )
