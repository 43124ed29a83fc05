"""Answers of heads to points left out, in closed form, and the temperature that fits them."""

import math

import pytest
import torch

from cases import labelled
from references import least_squares, squared_distances
from weightloom.conditions import class_statistics
from weightloom.hypernets.head import GAIN, HeadHyperNetwork, LearnedScale, ridge_head
from weightloom.hypernets.left_out import left_out_prototypes, temperature
from weightloom.learners.centroid import NearestCentroid, centroid_scale
from weightloom.learners.learner import Support
from weightloom.tasks import Tasks

TASKS = 3


def close(actual, expected, tolerance):
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("features", [3, 30])
def test_a_ridge_head_answers_points_left_out_as_one_fitted_without_them(features):
    x, labels, there = labelled(TASKS, features=features)
    ridge = torch.tensor([1e-2, 0.5, 20.0], dtype=torch.float64)
    left_out = ridge_head(x, labels, there, 3, ridge)[2]
    for task in range(TASKS):
        points, marks = x[task, there[task]], labels[task, there[task]].tolist()
        penalty = ridge[task] * (points - points.mean(0)).square().sum(1).mean()
        for place, found in enumerate(left_out[task, there[task]]):
            rest = torch.cat([points[:place], points[place + 1 :]])
            length = (rest - rest.mean(0)).square().sum(1).mean()
            weight, bias = least_squares(
                rest, marks[:place] + marks[place + 1 :], 3, (penalty / length).item()
            )
            close(found, weight @ points[place] + bias, 1e-9)


def test_class_means_answer_points_left_out_as_means_without_them_up_to_their_noise():
    """A mean of n - 1 is farther from a new point than one of n: 1 + 1 / (n - 1) to 1 + 1 / n."""
    x, labels, there = labelled(1)
    x, labels = x[there][None], labels[there][None]
    mean, _, shots = class_statistics(x, labels)
    left_out = left_out_prototypes(x, labels, mean, shots)[0]
    for place, label in enumerate(labels[0].tolist()):
        others = [other for other in range(len(labels[0])) if other != place]
        n = labels[0].tolist().count(label)
        if n > 1:
            expected = -squared_distances(x[0, others], labels[0, others], x[0, place][None], 3)[0]
            expected[label] *= (1 + 1 / n) / (1 + 1 / (n - 1))
            close(left_out[place], expected, 1e-9)


def test_the_distance_of_a_point_left_out_is_on_average_that_of_a_new_one():
    x, new = torch.randn(20_000, 4, 1).double(), torch.randn(20_000, 1).double()
    labels = torch.zeros(20_000, 4, dtype=torch.int64)
    mean, _, shots = class_statistics(x, labels)
    found = left_out_prototypes(x, labels, mean, shots).mean()
    close(found, -(new - mean[:, 0]).square().mean(), 0.05)
    close(found, torch.tensor(-1.25).double(), 0.05)  # 1 + 1 / n


def test_the_temperature_is_the_posterior_mean_of_log_beta():
    """The same integral by hand on a far finer grid."""
    logits, labels = torch.randn(2, 6, 3).double(), torch.randint(0, 3, (2, 6))
    there = torch.tensor([[True] * 6, [True] * 2 + [False] * 4])
    found = temperature(2 * logits, labels, there)
    for task in range(2):
        total = moment = 0.0
        for step in range(-2400, 2401, 10):
            log_beta = step / 1000
            likelihood = math.exp(-(log_beta**2) / (2 * 0.7**2))
            for point in range(6):
                if there[task, point]:
                    chances = (2 * math.exp(log_beta) * logits[task, point]).softmax(0)
                    likelihood *= chances[labels[task, point]].item()
            total, moment = total + likelihood, moment + likelihood * log_beta
        assert found[task].item() == pytest.approx(math.exp(moment / total), rel=1e-3)


def test_without_points_left_out_the_temperature_is_1():
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    found = temperature(9 * torch.randn(2, 4, 3), torch.zeros(2, 4, dtype=torch.int64), nothing)
    torch.testing.assert_close(found, torch.ones(2))


def test_many_points_bring_back_the_scale_that_drew_their_labels():
    logits = torch.randn(1, 4000, 5)
    labels = torch.distributions.Categorical(logits=0.4 * logits).sample()
    found = temperature(logits, labels, torch.ones(1, 4000, dtype=torch.bool))
    assert found.item() == pytest.approx(0.4, rel=0.1)


def tasks_of_clusters(shots, features=40, ways=5):
    """Classes around random middles, so near each other that some points are mistaken."""
    middle = torch.randn(60, ways, 1, features)
    support, query = (
        (middle + 2.5 * torch.randn(60, ways, count, features)).flatten(1, 2)
        for count in (shots, 10)
    )
    y, query_y = (torch.arange(ways).repeat_interleave(n).expand(60, -1) for n in (shots, 10))
    return Tasks.of(support, y, query, query_y)


@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
def test_heads_are_calibrated_whichever_scale_they_start_from(scale):
    """With ten shots a wrong scale costs next to nothing, as the task's own points correct it."""
    tasks = tasks_of_clusters(10)
    params = HeadHyperNetwork(start_scale=scale)(*tasks.support)
    logits = tasks.query_x @ params["head.weight"].mT + params["head.bias"][:, None]
    chance, chosen = logits.softmax(2).max(2)
    right = (chosen == tasks.query_y).float().mean().item()
    assert 0.5 < right < 0.95 and chance.mean().item() == pytest.approx(right, abs=0.05)


def test_a_learned_scale_is_interpolated_in_the_logarithm_of_the_shots():
    scale = LearnedScale(3.0, per_shots=True)
    with torch.no_grad():
        scale.moved[2] += 300 * 2e-4  # the most that 300 steps of Adam at 2e-4 move a number
    at = scale(torch.tensor([1.0, 2.0, math.sqrt(8), 4.0, 8.0, 1e6])).tolist()
    factor = math.exp(GAIN * 0.06)
    assert factor > 1.8 and at == pytest.approx([3, 3, 3 * factor**0.5, 3 * factor, 3, 3])


@pytest.mark.parametrize("shots", [1, 5])
def test_nearest_centroids_are_calibrated_in_any_unit_of_the_inputs(shots):
    tasks = tasks_of_clusters(shots)
    learner = NearestCentroid(40, centroid_scale(tasks_of_clusters(1)))
    chance, chosen = learner.answer(tasks).softmax(2).max(2)
    right = (chosen == tasks.query_y).float().mean().item()
    assert chance.mean().item() == pytest.approx(right, abs=0.08)
    larger = learner.predict(
        learner.adapt(Support(1000 * tasks.support_x, *tasks.support[1:])), 1000 * tasks.query_x
    )
    torch.testing.assert_close(larger.softmax(2).max(2).values, chance, atol=1e-3, rtol=1e-3)
