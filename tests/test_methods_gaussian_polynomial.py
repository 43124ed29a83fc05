"""Polynomials under a Gaussian prior: the posterior in numpy, and a prior that is known."""

import numpy as np
import torch

from weightloom.learners.learner import Support
from weightloom.learners.polynomial import GaussianPolynomial
from weightloom.tasks import Tasks

MEAN = np.array([1.0, -2.0, 0.5])
FACTOR = np.array([[1.0, 0.0, 0.0], [0.7, 0.5, 0.0], [-0.3, 0.1, 0.2]])
NOISE = 0.09


def curves(tasks=3000, points=8, seed=0):
    """Parabolas whose coefficients have the prior above, observed with noise; half of the second half masked."""
    random = np.random.default_rng(seed)
    x = random.uniform(-1, 1, (tasks, points))
    weights = MEAN + random.standard_normal((tasks, 3)) @ FACTOR.T
    y = (weights[:, None] * x[..., None] ** np.arange(3)).sum(2)
    y += NOISE**0.5 * random.standard_normal(y.shape)
    mask = (np.arange(points) < points * 3 // 4) | (np.arange(tasks)[:, None] < tasks // 2)
    x, y, mask = (torch.from_numpy(values) for values in (x, y, mask))
    near, far = slice(0, points // 2), slice(points // 2, None)
    parts = [(x[:, part, None], y[:, part, None], mask[:, part]) for part in (near, far)]
    return Tasks(*(Support(*part) for part in parts))


def prior(learner, out=0):
    factor = learner.factor[out].numpy()
    return learner.mean[out].numpy(), factor @ factor.T, learner.noise[out].item()


def seen(tasks, task):
    """Powers and targets of a task's real points."""
    x, y, there = (
        torch.cat(pair, 1)[task].numpy() for pair in zip(tasks.support, tasks.query, strict=True)
    )
    return x[there] ** np.arange(3), y[there, 0]


def likelihood(learner, tasks):
    """Logarithm of the density of all targets, which are Gaussian, up to a constant."""
    mean, covariance, noise = prior(learner)
    total = 0.0
    for task in range(len(tasks.support_x)):
        design, y = seen(tasks, task)
        spread = design @ covariance @ design.T + noise * np.eye(len(y))
        miss = y - design @ mean
        total -= np.linalg.slogdet(spread)[1] + miss @ np.linalg.solve(spread, miss)
    return total


def test_the_prior_of_the_training_tasks_is_found():
    mean, covariance, noise = prior(GaussianPolynomial(curves(), degree=2, steps=100))
    np.testing.assert_allclose(mean, MEAN, atol=0.06)
    np.testing.assert_allclose(covariance, FACTOR @ FACTOR.T, atol=0.08)
    np.testing.assert_allclose(noise, NOISE, rtol=0.05)


def test_no_step_of_the_estimation_lowers_the_likelihood():
    tasks = curves(40)
    found = [likelihood(GaussianPolynomial(tasks, 2, steps), tasks) for steps in (0, 1, 2, 5, 20)]
    assert found == sorted(found) and found[-1] > found[0] + 10


def test_a_new_task_gets_the_posterior_mean_of_its_coefficients():
    learner, new = GaussianPolynomial(curves(200), degree=2), curves(6, seed=1)
    mean, covariance, noise = prior(learner)
    nothing = new._replace(query=new.query._replace(mask=torch.zeros(6, 4, dtype=torch.bool)))
    for task, weight in enumerate(learner.adapt(new.support)["weight"]):
        design, y = seen(nothing, task)
        gram = design @ covariance @ design.T + noise * np.eye(len(y))
        expected = mean + covariance @ design.T @ np.linalg.solve(gram, y - design @ mean)
        np.testing.assert_allclose(weight[0].numpy(), expected, atol=1e-8)


def test_two_targets_are_two_problems_of_one():
    tasks = curves(50)
    double = tasks._replace(
        support=tasks.support._replace(y=torch.cat([tasks.support_y, 3 - tasks.support_y], 2)),
        query=tasks.query._replace(y=torch.cat([tasks.query_y, 3 - tasks.query_y], 2)),
    )
    both = GaussianPolynomial(double, degree=2).answer(double)
    torch.testing.assert_close(both[..., :1], GaussianPolynomial(tasks, degree=2).answer(tasks))
    torch.testing.assert_close(both[..., 1:], 3 - both[..., :1])


def test_tasks_without_noise_or_variation_give_finite_answers():
    tasks = curves(20).map(lambda v: torch.ones_like(v) if v.is_floating_point() else v)
    answers = GaussianPolynomial(tasks, degree=3).answer(tasks)
    torch.testing.assert_close(answers, torch.ones_like(answers))
