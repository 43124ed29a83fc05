"""Optimal linear control of a family of springs: the hypernetwork generates a gain per spring.

Training sees rollouts only, never the optimal gains.

Run:     python examples/linear_control.py
Takes:   less than a minute on one CPU core.
Expect:  on 200 springs whose stiffness or motor strength lies beyond the training range, gains
         within 10 % of the optimal ones on average; as a control, an error over 30 % when each
         spring gets the gain of another.
Shows:   conditions, hypernets, base, and the environments of apps.rl.
"""

import argparse

import torch
from torch import Tensor, nn

from weightloom import MLPHyperNetwork, apply_per_task
from weightloom.apps.rl.envs.context import ContextFamily, Varied
from weightloom.apps.rl.envs.lqr import DISCOUNT, LQR

FAMILY = ContextFamily(
    (Varied("stiffness", (0.0, 2.0), (2.0, 3.0)), Varied("motor", (0.5, 1.5), (1.5, 2.0)))
)
ROLLOUTS, STEPS = 8, 60


def main(steps: int) -> tuple[float, float]:
    """Train on rollout costs; return the gain error in held-out contexts and the control's."""
    torch.manual_seed(0)
    env, generator = LQR(), torch.Generator().manual_seed(0)
    policy = nn.Linear(2, 1, bias=False)  # its weight is minus the gain
    hyper = MLPHyperNetwork(policy, condition_dim=2, hidden=(64, 64))
    optimiser = torch.optim.Adam(hyper.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    discounts = DISCOUNT ** torch.arange(STEPS)

    for step in range(steps):
        context = FAMILY.sample(16, generator)  # (tasks, condition_dim)
        params = hyper(FAMILY.normalise(context))  # {"weight": (tasks, 1, 2)}
        physics = context.repeat_interleave(ROLLOUTS, 0)
        state, rewards = env.start(physics, generator), []
        for _ in range(STEPS):  # gradients pass through the environment
            action: Tensor = apply_per_task(
                policy, params, state.unflatten(0, (-1, ROLLOUTS))
            ).flatten(0, 1)
            state, reward, _ = env.advance(state, action, physics)
            rewards.append(reward)
        loss = -(discounts @ torch.stack(rewards)).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(hyper.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}  cost {loss.item():.3f}")

    unseen = FAMILY.sample(200, torch.Generator().manual_seed(1), held_out=True)
    best, _ = env.optimum(unseen)
    with torch.no_grad():
        gain = -hyper(FAMILY.normalise(unseen))["weight"]
    error, control = (distance(found, best) for found in (gain, gain.roll(1, 0)))
    print(
        f"gain error in held-out contexts {error:.3f}; with the gains of another context "
        f"{control:.3f}"
    )
    return error, control


def distance(gain: Tensor, best: Tensor) -> float:
    """Relative error of gains: norm of the difference over norm of the optimum, mean over tasks."""
    return ((gain - best).flatten(1).norm(dim=1) / best.flatten(1).norm(dim=1)).mean().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=500)
    torch.set_num_threads(1)
    error, control = main(parser.parse_args().steps)
    assert error < 0.1, error
    assert control > 0.3, control
