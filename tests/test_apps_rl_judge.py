"""How agents are judged: against optima in closed form."""

import numpy as np
import pytest
import torch

pytest.importorskip("sb3_contrib")

from weightloom.apps import experiment
from weightloom.apps.rl.agents.players import FittedOracle, Oracle, Still, least_squares
from weightloom.apps.rl.app import RL
from weightloom.apps.rl.config import RLConfig
from weightloom.apps.rl.envs.worlds import world_of
from weightloom.apps.rl.judge import judge, settings, value_accuracy


def test_the_optimum_has_no_errors_and_its_context_matters():
    world = world_of("lqr")
    (setting, beyond) = settings(world, 40)
    best = judge(Oracle(world, 0.95), world, setting, 0.95)
    assert best["gain_error"].max() < 1e-3 and best["value_error"].max() == 0
    idle = judge(Still(world), world, setting, 0.95)
    assert best["return"].mean() > idle["return"].mean() and (idle["gain_error"] == 1).all()

    class Shuffled(Oracle):
        def act(self, observations, rewards):
            observations = observations.copy()
            observations[:, :2] = observations[::-1, :2]
            return super().act(observations, rewards)

    for one in (setting, beyond):
        told = judge(Oracle(world, 0.95), world, one, 0.95)["return"].mean()
        assert judge(Shuffled(world, 0.95), world, one, 0.95)["return"].mean() < told


def test_a_cubic_through_optimal_gains_is_close_within_the_training_ranges_and_not_beyond():
    world = world_of("lqr")
    setting, beyond = settings(world, 200)
    cubic = FittedOracle(world, 0.95)
    inside, outside = (judge(cubic, world, one, 0.95) for one in (setting, beyond))
    assert inside["gain_error"].mean() < 0.006 and "value_error" not in inside
    assert 0.03 < outside["gain_error"].mean() < 0.06
    told = world.family.normalise(beyond.contexts).numpy().astype(float)
    terms = [(i, j) for i in range(4) for j in range(4 - i)]
    drawn = world.family.sample(1000, torch.Generator().manual_seed(0))
    x, y = (
        world.family.normalise(drawn).numpy().astype(float),
        world.env.optimum(drawn, 0.95)[0][:, 0].numpy(),
    )
    fitted = np.linalg.lstsq(
        np.stack([x[:, 0] ** i * x[:, 1] ** j for i, j in terms], 1), y, rcond=None
    )[0]
    expected = np.stack([told[:, 0] ** i * told[:, 1] ** j for i, j in terms], 1) @ fitted
    np.testing.assert_allclose(
        cubic.gains(torch.tensor(told).float())[:, 0], expected, rtol=1e-3, atol=1e-3
    )


def test_a_regression_gives_the_same_bits_whatever_lay_in_memory_before():
    """The driver that torch takes by itself gives two or three answers here."""
    world = world_of("lqr")
    terms = torch.randn(1000, 10, generator=torch.Generator().manual_seed(0))
    targets = (
        terms @ torch.randn(10, 2, generator=torch.Generator().manual_seed(1)) + terms[:, :2].sin()
    )
    solved, weights = [], []
    for number in range(30):
        left = [torch.full((10,), number + more, dtype=torch.int32) for more in range(8)]
        del left  # their memory is what the next call is given
        solved.append(least_squares(terms, targets))
        if number % 8 == 0:
            weights.append(FittedOracle(world, 0.95, contexts=200).weights)
    assert all(torch.equal(one, solved[0]) for one in solved) and all(
        torch.equal(one, weights[0]) for one in weights
    )
    expected = np.linalg.lstsq(terms.double().numpy(), targets.double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(solved[0], expected, rtol=1e-5, atol=1e-5)


def test_values_of_the_optimum_explain_all_that_follows(unchecked):
    """A player whose values are the closed form: explained variance of 1, up to where episodes are broken off."""
    world = world_of("lqr")

    class Known(Oracle):
        memory = False

        def value(self, seen):
            context = torch.tensor([0.0, 0.5]) + torch.tensor([2.0, 1.0]) * (seen[:, :2] + 1) / 2
            state, (_, curvature) = seen[:, 2:], world.env.optimum(context, 0.95)
            return -((state[:, None] @ curvature)[:, 0] * state).sum(1)

    (setting, beyond) = settings(world, 20)
    assert value_accuracy(Known(world, 0.95), world, setting, 0.95).item() > 0.999
    assert value_accuracy(Known(world, 0.95), world, beyond, 0.95).item() > 0.999


def test_first_and_last_trial_of_a_grid_world_are_told_apart():
    world = world_of("grid")
    (setting,) = settings(world, 5)
    found = judge(Still(world), world, setting, 0.95)
    assert found["first_trial"].tolist() == pytest.approx([-1.5] * 5) and found[
        "return"
    ].mean().item() == pytest.approx(-6)


@pytest.mark.slow
def test_an_agent_learns_linear_control_beyond_its_training_ranges(tmp_path):
    """Closed-form truth; about two minutes."""
    config = RLConfig(comparators=(), steps=8000, updates=1.0, test_contexts=50)
    record = experiment.run(RL(), config, tmp_path / "run", quiet=True)
    row = next(row for row in record["scores"] if row["setting"] == "held-out contexts")
    assert row["also"]["gain_error"]["mean"] < 0.3
