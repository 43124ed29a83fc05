"""Baselines for functions: against the formula written out, and where the answer is known."""

import numpy as np
import pytest
import torch

from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.problems import problem_of
from weightloom.base import specialise
from weightloom.errors import ShapeError
from weightloom.learners.interpolation import GaussianCurves, GaussianPixels, Interpolation
from weightloom.learners.learner import Support
from weightloom.tasks import SinusoidTasks
from weightloom.tasks.functions import FunctionTasks, pixel_positions


def draw(images, shots, tasks=5, **options):
    return FunctionTasks(images, shots, **options).sample(tasks, torch.Generator().manual_seed(0))


def test_inverse_distance_is_the_formula_of_shepard():
    tasks = draw(torch.rand(5, 4, 6), 5, fewest_shots=1)
    outputs = Interpolation(power=3.0).answer(tasks)
    x = pixel_positions(4, 6).numpy().astype(np.float64)
    for task in range(5):
        there = tasks.support_mask[task].numpy()
        points, values = (
            tasks.support_x[task].numpy()[there],
            tasks.support_y[task, :, 0].numpy()[there],
        )
        for at, output in zip(x, outputs[task, :, 0].tolist(), strict=True):
            distances = np.linalg.norm(points - at, axis=1)
            expected = values[distances.argmin()]
            if distances.min() > 1e-9:
                expected = (values / distances**3).sum() / (1 / distances**3).sum()
            assert output == pytest.approx(expected, abs=1e-4)


def test_a_large_power_takes_the_nearest_value():
    given = Support(
        torch.tensor([[[-0.5, 0.0], [0.5, 0.0]]]),
        torch.tensor([[[3.0], [7.0]]]),
        torch.ones(1, 2, dtype=torch.bool),
    )
    learner = Interpolation(power=200.0)
    outputs = learner.predict(learner.adapt(given), torch.tensor([[[-0.1, 0.3], [0.1, 0.3]]]))
    assert outputs.flatten().tolist() == pytest.approx([3, 7], abs=1e-5)


def test_the_completed_image_is_the_conditional_mean_of_the_gaussian():
    images = torch.rand(60, 4, 5)
    tasks = draw(images, 9, fewest_shots=1)
    outputs = GaussianPixels(images, ridge=0.01).answer(tasks)
    flat = images.flatten(1).double().numpy()
    mean, covariance = flat.mean(0), np.cov(flat.T, bias=True)
    for task in range(5):
        there = tasks.support_mask[task]
        columns, rows = (
            (((tasks.support_x[task, there] + 1) * torch.tensor([5, 4]) - 1) / 2)
            .round()
            .long()
            .T.numpy()
        )
        seen = rows * 5 + columns
        gram = covariance[np.ix_(seen, seen)] + 0.01 * np.eye(len(seen))
        miss = tasks.support_y[task, there, 0].double().numpy() - mean[seen]
        expected = mean + covariance[:, seen] @ np.linalg.solve(gram, miss)
        np.testing.assert_allclose(outputs[task, :, 0].numpy(), expected, atol=1e-5)


def test_images_of_a_plane_are_completed_exactly_from_as_many_pixels_as_it_has_dimensions():
    plane = torch.rand(3, 6, 6)
    images = torch.einsum("nk,khw->nhw", torch.randn(100, 3), plane)
    tasks = draw(images, 8)
    outputs = GaussianPixels(images, ridge=1e-9).answer(tasks)
    torch.testing.assert_close(outputs, tasks.query_y, atol=1e-3, rtol=0)


def test_between_pixels_the_image_is_interpolated():
    images = torch.rand(30, 1, 2).mul(255).to(torch.uint8)
    learner, tasks = GaussianPixels(images), draw(images, 2, 3)
    params = learner.adapt(tasks.support)
    left, middle, right = learner.predict(
        params, torch.tensor([[-0.5, 0.0], [0.0, 0.0], [0.5, 0.0]]).repeat(3, 1, 1)
    ).unbind(1)
    torch.testing.assert_close(middle, (left + right) / 2)


def test_what_is_no_picture_is_refused():
    with pytest.raises(ShapeError, match=r"`support.x` is 1 wide and `support.y` 1"):
        GaussianPixels(torch.rand(9, 2, 2)).adapt(
            Support(torch.rand(2, 3, 1), torch.rand(2, 3, 1), torch.ones(2, 3, dtype=torch.bool))
        )


GRID = torch.linspace(-2, 3, 6, dtype=torch.float64)


def broken_lines(curves=400):
    """Curves of a Gaussian of two dimensions, every one linear between the points of the grid."""
    mean, one, other = torch.randn(3, 6, dtype=torch.float64)
    return mean + torch.randn(curves, 1).double() * one + torch.randn(curves, 1).double() * other


def points_on(curves, shots=7, tasks=5):
    """Observe some curves anywhere, with noise; what lies between grid points is left to numpy."""
    x = 5 * torch.rand(tasks, shots, 1, dtype=torch.float64) - 2
    values = [np.interp(at[:, 0], GRID, curve) for at, curve in zip(x, curves[:tasks], strict=True)]
    y = torch.tensor(np.array(values))[..., None]
    mask = torch.arange(shots) < torch.tensor([shots, 1, 2, 4, shots])[:, None]
    return Support(x, y + 0.1 * torch.randn_like(y), mask)


def test_the_curve_is_the_posterior_mean_of_bayesian_linear_regression():
    """In numpy, from the singular vectors of the curves: weights of variance one and noise of variance 0.01."""
    curves = broken_lines()
    given, x = (
        points_on(curves),
        torch.linspace(-2, 3, 31, dtype=torch.float64)[None, :, None].expand(5, -1, -1),
    )
    learner = GaussianCurves(curves, (-2.0, 3.0), components=2, ridge=0.01)
    outputs = learner.predict(learner.adapt(given), x)
    flat = curves.numpy()
    _, scale, rows = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
    features = (scale[:, None] * rows)[:2] / np.sqrt(len(flat))

    def at(places):
        return np.stack([np.interp(places, GRID, curve) for curve in [flat.mean(0), *features]])

    for task in range(5):
        there = given.mask[task]
        mean, *of_points = at(given.x[task, there, 0].numpy())
        design = np.stack(of_points, axis=1)
        precision = np.eye(2) + design.T @ design / 0.01
        weights = np.linalg.solve(
            precision, design.T @ (given.y[task, there, 0].numpy() - mean) / 0.01
        )
        expected = at(x[task, :, 0].numpy())
        np.testing.assert_allclose(
            outputs[task, :, 0], expected[0] + weights @ expected[1:], atol=1e-9
        )


def test_the_order_of_the_points_and_what_is_masked_do_not_move_the_curve():
    curves = broken_lines()
    learner, given = GaussianCurves(curves, (-2.0, 3.0)), points_on(curves)
    expected = learner.adapt(given)["scores"]
    turned = Support(*(field.flip(1) for field in given))
    torch.testing.assert_close(learner.adapt(turned)["scores"], expected)
    garbage = Support(
        *(field.masked_fill(~given.mask[..., None], 77.0) for field in given[:2]), given.mask
    )
    torch.testing.assert_close(learner.adapt(garbage)["scores"], expected)
    alone = Support(*(field[1:2, :1] for field in given))
    torch.testing.assert_close(learner.adapt(alone)["scores"], expected[1:2])


def test_with_no_point_the_curve_is_the_mean_and_beyond_its_span_it_is_level():
    curves = broken_lines()
    learner = GaussianCurves(curves, (-2.0, 3.0))
    nothing = points_on(curves)._replace(mask=torch.zeros(5, 7, dtype=torch.bool))
    outputs = learner.predict(
        learner.adapt(nothing), torch.tensor([-9.0, -2.0, 3.0, 9.0]).double().expand(5, 1, 4).mT
    )
    first, last = curves.mean(0)[[0, -1]]
    torch.testing.assert_close(outputs[0, :, 0], torch.stack([first, first, last, last]))


@pytest.mark.parametrize(("shots", "bound"), [(10, 1e-6), (5, 1e-6), (1, 2.0)])
def test_sinusoids_lie_in_two_dimensions_so_that_a_few_points_tell_all(shots, bound):
    tasks = SinusoidTasks(shots).sample(500, torch.Generator().manual_seed(5))
    learner = problem_of(FewShotConfig("sinusoid").resolved()).learner("gaussian")
    error = (learner.answer(tasks) - tasks.query_y).square().mean()
    assert error < bound  # the mean of a sinusoid's square is about 4
    net, x = (
        specialise(learner.base, learner.adapt(tasks.take(slice(3, 4)).support)),
        tasks.query_x[3],
    )
    torch.testing.assert_close(net(x), learner.answer(tasks)[3])


def test_the_gaussian_of_sinusoids_does_not_depend_on_the_seed_nor_draw_from_it():
    problem = problem_of(FewShotConfig("sinusoid").resolved())
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    one = problem.learner("gaussian")
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(one.base.curves, problem.learner("gaussian").base.curves)


def test_what_is_no_curve_is_refused():
    with pytest.raises(ShapeError, match=r"`support.x` is 2 wide and `support.y` 1"):
        GaussianCurves(broken_lines(), (-2.0, 3.0)).adapt(
            Support(torch.rand(2, 3, 2), torch.rand(2, 3, 1), torch.ones(2, 3, dtype=torch.bool))
        )
