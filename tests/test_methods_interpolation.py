"""Baselines for functions: against the formula written out, and where the answer is known."""

import numpy as np
import pytest
import torch

from weightloom.apps.fewshot.learner import Support
from weightloom.apps.fewshot.methods.interpolation import GaussianPixels, Interpolation
from weightloom.errors import ShapeError
from weightloom.tasks.functions import FunctionTasks, pixel_positions


def draw(images, shots, tasks=5, **options):
    return FunctionTasks(images, shots, **options).sample(tasks, torch.Generator().manual_seed(0))


def test_inverse_distance_is_the_formula_of_shepard():
    tasks = draw(torch.rand(5, 4, 6), 5, fewest_shots=1)
    outputs = Interpolation(power=3.0).answer(tasks)
    x = pixel_positions(4, 6).numpy().astype(np.float64)
    for task in range(5):
        there = tasks.support_mask[task].numpy()
        points, values = tasks.support_x[task].numpy()[there], tasks.support_y[task, :, 0].numpy()[there]
        for at, output in zip(x, outputs[task, :, 0].tolist(), strict=True):
            distances = np.linalg.norm(points - at, axis=1)
            expected = values[distances.argmin()]
            if distances.min() > 1e-9:
                expected = (values / distances**3).sum() / (1 / distances**3).sum()
            assert output == pytest.approx(expected, abs=1e-4)


def test_a_large_power_takes_the_nearest_value():
    given = Support(
        torch.tensor([[[-0.5, 0.0], [0.5, 0.0]]]), torch.tensor([[[3.0], [7.0]]]), torch.ones(1, 2, dtype=torch.bool)
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
        columns, rows = (((tasks.support_x[task, there] + 1) * torch.tensor([5, 4]) - 1) / 2).round().long().T.numpy()
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
    params = learner.adapt(Support.of(tasks))
    left, middle, right = learner.predict(
        params, torch.tensor([[-0.5, 0.0], [0.0, 0.0], [0.5, 0.0]]).repeat(3, 1, 1)
    ).unbind(1)
    torch.testing.assert_close(middle, (left + right) / 2)


def test_what_is_no_picture_is_refused():
    with pytest.raises(ShapeError, match=r"`support.x` is 1 wide and `support.y` 1"):
        GaussianPixels(torch.rand(9, 2, 2)).adapt(
            Support(torch.rand(2, 3, 1), torch.rand(2, 3, 1), torch.ones(2, 3, dtype=torch.bool))
        )
