"""A generated head, corrected in closed form: against a loop that solves each task alone, and its gradient."""

import copy

import pytest
import torch

from weightloom.base import apply_per_task
from weightloom.conditions import DeepSets, GridEncoder
from weightloom.errors import ConfigError
from weightloom.learners.functions import GaussianFunction, HyperFunction
from weightloom.learners.learner import Support
from weightloom.learners.polynomial import GaussianPolynomial
from weightloom.networks import FunctionNet
from weightloom.tasks import SinusoidTasks, Tasks
from weightloom.tasks.functions import FunctionTasks, pixel_positions
from weightloom.training import TrainOptions

TASKS, SHOTS = 4, 7


def build(y_dim=1, moved=True, per_task=False):
    """A small one in double precision, whose hypernetwork says something.

    With ``per_task`` its prior is known, and it writes the noise of a task, too.
    """
    encoder = GridEncoder(2, y_dim, 6, size=5, hidden=(8,))
    base = FunctionNet(2, y_dim, features=12)
    if per_task:
        base = GaussianFunction(base.trunk, torch.randn(y_dim, 12), 0.01)
    learner = HyperFunction(base, encoder, hidden=(16,), noise=0.01).double()
    with torch.no_grad():
        for parameter in learner.hyper.head.parameters() if moved else ():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return learner


def support(y_dim=1, ragged=True, grid=False):
    x = 2 * torch.rand(TASKS, SHOTS, 2, dtype=torch.float64) - 1
    if grid:
        x = pixel_positions(5, 5).double()[torch.rand(TASKS, 25).argsort(1)[:, :SHOTS]]
    mask = torch.arange(SHOTS) < torch.tensor([SHOTS, 0, 1, 4])[:, None]
    return Support(
        x,
        torch.randn(TASKS, SHOTS, y_dim, dtype=torch.float64),
        mask if ragged else torch.ones_like(mask),
    )


def reference(learner, given):
    """Each task alone, by the textbook: weights of features have the variance one around their prior mean."""
    heads = []
    own, bias = learner.base.head.weight, learner.base.head.bias
    holder = learner if hasattr(learner, "log_noise") else learner.base
    for task, (x, y, mask) in enumerate(zip(*given, strict=True)):
        features, y = learner.base.trunk(x[mask]), y[mask]

        def posterior(mean, bias, log_noise, features=features, y=y):
            noise = log_noise.exp() + 1e-5
            precision = torch.eye(12, dtype=y.dtype) + features.T @ features / noise
            miss = features.T @ (y - features @ mean.T - bias) / noise
            return mean + torch.linalg.solve(precision, miss).T

        first = posterior(own, bias, holder.log_noise) - own
        condition = learner.encoder(*(field[task : task + 1] for field in given))
        generated = learner.hyper(torch.cat([condition, 4 * first.reshape(1, -1)], 1))
        weight, bias_of_task = generated["head.weight"][0], generated["head.bias"][0]
        weight = weight if hasattr(learner.base, "log_noise") else weight + first
        log_noise = generated.get("log_noise", holder.log_noise[None])[0]
        heads.append(
            torch.cat([posterior(weight, bias_of_task, log_noise), bias_of_task[:, None]], 1)
        )
    return torch.stack(heads)


def found(learner, given):
    params = learner.adapt(given)
    return torch.cat([params["head.weight"], params["head.bias"][..., None]], 2)


@pytest.mark.parametrize("y_dim", [1, 3])
@pytest.mark.parametrize(("grid", "per_task"), [(False, False), (True, False), (True, True)])
def test_the_head_is_that_of_a_loop_over_tasks_and_so_is_every_gradient(y_dim, grid, per_task):
    learner, given = build(y_dim, per_task=per_task), support(y_dim, grid=grid)
    actual, expected = found(learner, given), reference(learner, given)
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
    direction = torch.randn_like(actual)
    own = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    gradients = [
        torch.autograd.grad((heads * direction).sum(), own) for heads in (actual, expected)
    ]
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
        assert mine.abs().max() > 0


def test_a_large_grid_with_few_points_takes_the_other_way_to_the_same_products():
    learner, given = build(), support(ragged=False)
    few = Support(given.x[:1, :2], given.y[:1, :2], given.mask[:1, :2])
    torch.testing.assert_close(found(learner, few), reference(learner, few), rtol=1e-8, atol=1e-8)


def test_the_order_of_the_points_and_what_is_masked_do_not_matter():
    learner, given = build(), support()
    expected = found(learner, given)
    turned = Support(*(field.flip(1) for field in given))
    torch.testing.assert_close(found(learner, turned), expected, rtol=1e-9, atol=1e-9)
    y = given.y.masked_fill(~given.mask[..., None], 77.0)
    torch.testing.assert_close(found(learner, given._replace(y=y)), expected)


def test_shared_positions_are_answered_as_those_of_each_task_and_by_the_base_itself():
    learner, given = build(y_dim=2), support(y_dim=2)
    params, x = learner.adapt(given), torch.rand(9, 2, dtype=torch.float64)
    together = learner.predict(params, x.expand(TASKS, -1, -1))
    apart = learner.predict(params, x.expand(TASKS, -1, -1).contiguous())
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(
        together, apply_per_task(learner.base, params, x.repeat(TASKS, 1, 1))
    )


def test_the_less_noise_is_expected_the_closer_the_function_comes_to_what_was_observed():
    learner, given = build(), support(ragged=False)
    misses = []
    for noise in (1e2, 1e-1, 1e-3, 0.0):
        learner.log_noise.data.copy_(torch.tensor(noise).log())
        misses.append(
            (learner.predict(learner.adapt(given), given.x) - given.y).square().mean().item()
        )
    assert misses == sorted(misses, reverse=True) and misses[-1] < 0.05 * misses[0]


def test_known_bounds_are_kept_when_it_is_judged_and_not_in_training():
    learner, given = build(), support(grid=True)
    x = pixel_positions(5, 5).double().expand(TASKS, -1, -1)
    free = learner.predict(learner.adapt(given), x)
    learner.base.bounds = (-0.1, 0.2)
    assert torch.equal(learner.predict(learner.adapt(given), x), free)
    learner.eval()
    for positions in (x, x.contiguous()):
        torch.testing.assert_close(
            learner.predict(learner.adapt(given), positions), free.clamp(-0.1, 0.2)
        )


def test_half_precision_around_it_changes_little():
    learner, given = (
        build().float(),
        Support(*(f.float() if f.is_floating_point() else f for f in support(grid=True))),
    )
    x = pixel_positions(5, 5).expand(TASKS, -1, -1)
    expected = learner.predict(learner.adapt(given), x)
    with torch.autocast("cpu", torch.bfloat16):
        actual = learner.predict(learner.adapt(given), x)
    assert (
        actual.dtype == torch.float32
        and (actual - expected).abs().mean() < 0.05 * expected.abs().mean()
    )


def test_training_beats_ridge_regression_on_its_own_features():
    """Stripes of any phase across 8x8 pixels, from 6 of them."""
    phase = torch.rand(500, 1, 1) * 6
    images = (0.5 + 0.5 * torch.sin(phase + torch.arange(8) * 0.9)).expand(500, 8, 8)
    learner = HyperFunction(
        FunctionNet(2, 1, 32), GridEncoder(2, 1, 16, size=8, hidden=(32,)), hidden=(32,)
    )
    tasks = FunctionTasks(images, 6).sample(200, torch.Generator().manual_seed(1))
    before = copy.deepcopy(learner)(tasks).mean()
    learner.fit(
        FunctionTasks(images, 9, fewest_shots=3, together=True),
        TrainOptions(60, tasks=32, outer_lr=3e-3),
    )
    assert learner(tasks).mean() < 0.2 * before


def test_before_training_on_curves_it_is_the_gaussian_over_polynomials():
    source = SinusoidTasks(6, 9, ragged=1.0)
    gaussian = GaussianPolynomial(source.sample(99, torch.Generator().manual_seed(0)), 2, steps=9)
    encoder = DeepSets(1, 1, 4, hidden=8)
    learner = HyperFunction(gaussian.function(), encoder, hidden=(8,))
    tasks = source.sample(20, torch.Generator().manual_seed(1))
    torch.testing.assert_close(learner.answer(tasks), gaussian.answer(tasks), rtol=1e-3, atol=1e-3)
    twice = (tasks.support_x, tasks.support_y.repeat(1, 1, 2), tasks.query_x)
    both = GaussianPolynomial(Tasks.of(*twice, tasks.query_y.repeat(1, 1, 2)), 1, steps=1)
    with pytest.raises(ConfigError, match=r"Targets have 2 numbers.*Fit .* to one of"):
        both.function()
