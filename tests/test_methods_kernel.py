"""Kernel regression over known functions: against the formula, and where the answer is known."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from weightloom.apps.fewshot.comparison import GivenProblem
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.judge import draw_test_tasks, judge
from weightloom.apps.fewshot.problems import problem_of
from weightloom.base import specialise
from weightloom.errors import ConfigError, ShapeError
from weightloom.learners.interpolation import Interpolation, Picture
from weightloom.learners.kernel import (
    GridFunction,
    KernelRegression,
    kernel_of_images,
    shared_grid,
    tuned_kernel,
)
from weightloom.learners.learner import Support
from weightloom.learners.polynomial import RidgePolynomial
from weightloom.tasks import SinusoidTasks, Tasks
from weightloom.tasks.functions import FunctionTasks

IMAGES = torch.rand(30, 4, 5, generator=torch.Generator().manual_seed(0)).double()


def drawn(shots=6, tasks=5, **options):
    """Pixels of new images, of which one task has two."""
    new = torch.rand(tasks, 4, 5, generator=torch.Generator().manual_seed(1))
    source = FunctionTasks(new.double(), shots, **options)
    found = source.sample(tasks, torch.Generator().manual_seed(2))
    return found.map(lambda v: v.double() if v.is_floating_point() else v)


def kernel(temperature, images=IMAGES):
    return KernelRegression(Picture(4, 5), images.flatten(1)[..., None], temperature).double()


def seen(tasks, task):
    """Numbers and values of the observed pixels of a task, from their positions, in numpy."""
    x, y = tasks.support_x[task].numpy(), tasks.support_y[task, :, 0].numpy()
    there = tasks.support_mask[task].numpy()
    places = np.round((x[there] + 1) / 2 * [5, 4] - 0.5).astype(int)
    return places[:, 1] * 5 + places[:, 0], y[there]


def test_each_image_is_the_softmax_weighted_mean_with_observed_pixels_put_back():
    tasks = drawn(fewest_shots=1)
    outputs = kernel(0.03).answer(tasks)
    known = IMAGES.flatten(1).numpy()
    for task in range(5):
        at, values = seen(tasks, task)
        weights = np.exp(-((known[:, at] - values) ** 2).mean(1) / (2 * 0.03))
        expected = weights @ known / weights.sum()
        expected[at] = values
        np.testing.assert_allclose(outputs[task, :, 0].numpy(), expected, atol=1e-6)


def test_near_temperature_zero_it_is_the_nearest_image_and_at_infinity_the_mean():
    tasks = drawn()
    cold, hot = kernel(1e-300).answer(tasks), kernel(math.inf).answer(tasks)
    known = IMAGES.flatten(1)
    for task in range(5):
        at, values = seen(tasks, task)
        nearest = known[(known[:, at] - torch.from_numpy(values)).square().sum(1).argmin()]
        for output, expected in ((cold, nearest), (hot, known.mean(0))):
            expected = expected.clone()
            expected[at] = torch.from_numpy(values)
            torch.testing.assert_close(output[task, :, 0], expected)


def test_of_two_functions_it_is_the_posterior_mean_under_gaussian_noise():
    """The logarithm of the odds of b over a is ((y - a)² - (y - b)²) summed, over 2 variances."""
    x = torch.linspace(0, 1, 4).double()[:, None]
    a, b = x.square(), 1 - x
    variance = 0.2
    learner = KernelRegression(GridFunction(x), torch.stack([a, b]), variance / 3).double()
    y = torch.tensor([[0.3], [0.9], [0.1]], dtype=torch.float64)  # of the first three positions
    values = learner.adapt(Support.of(x[None, :3], y[None]))["values"][0]
    odds = ((y - a[:3]).square() - (y - b[:3]).square()).sum() / (2 * variance)
    chance = torch.sigmoid(odds)
    torch.testing.assert_close(values[3], chance * b[3] + (1 - chance) * a[3])
    assert torch.equal(values[:3], y)


def test_values_observed_twice_count_twice_and_are_averaged():
    x = torch.linspace(-1, 1, 3).double()[:, None]
    known = torch.randn(9, 3, 2, dtype=torch.float64)
    learner = KernelRegression(GridFunction(x, 2), known, 0.3).double()
    y = torch.randn(1, 3, 2, dtype=torch.float64)
    values = learner.adapt(Support.of(x[[0, 2, 0]][None], y))["values"][0]
    distance = (known[:, [0, 2, 0]] - y).square().sum((1, 2)) / 3
    expected = torch.einsum("n,npy->py", torch.softmax(-distance / 0.6, 0), known)
    torch.testing.assert_close(values[1], expected[1])
    torch.testing.assert_close(values[[0, 2]], torch.stack([y[0, [0, 2]].mean(0), y[0, 1]]))


def test_without_a_point_it_is_the_mean_of_the_known_functions():
    tasks = drawn()
    nothing = tasks.support._replace(mask=torch.zeros(5, 6, dtype=torch.bool))
    pixels = kernel(0.03).adapt(nothing)["pixels"]
    torch.testing.assert_close(pixels, IMAGES.mean(0).expand(5, -1, -1))


def test_a_temperature_per_number_of_points_is_interpolated_on_logarithmic_scales():
    found = kernel({4: 1.0, 16: 4.0, 64: 4.0}).temperature(torch.tensor([[1.0, 4, 8, 16, 32, 99]]))
    assert found[0].tolist() == pytest.approx([1, 1, 2, 4, 4, 4])
    assert kernel(0.7).temperature(torch.tensor([1.0, 50.0])).tolist() == pytest.approx([0.7] * 2)


def test_the_network_of_one_task_is_its_function():
    tasks, x = drawn(), torch.linspace(0, 1, 4)[:, None]
    net = specialise(Picture(4, 5), kernel(0.1).adapt(tasks.take(slice(1)).support))
    torch.testing.assert_close(net(tasks.query_x[0]), kernel(0.1).answer(tasks)[0])
    grid = GridFunction(x)
    grid.values.data = torch.arange(4.0)[:, None]
    assert grid(torch.tensor([[0.4], [-7.0], [9.0]])).flatten().tolist() == [1, 0, 3]


def test_the_temperature_of_noisy_copies_is_near_the_variance_of_the_noise_over_the_points():
    """Truth is one of the known functions, so the posterior mean is best, at variance / points."""
    generator = torch.Generator().manual_seed(0)
    x = torch.linspace(-1, 1, 40)[:, None]
    known = torch.randn(50, 40, 1, generator=generator)
    number = torch.randint(50, (2000,), generator=generator)
    points = torch.rand(2000, 40, generator=generator).topk(3).indices
    truth = known[number].gather(1, points[..., None])
    noisy = truth + 0.5**0.5 * torch.randn(truth.shape, generator=generator)
    rest = torch.ones(2000, 40, dtype=torch.bool).scatter(1, points, False)
    tasks = Tasks.of(x[points], noisy, x.expand(2000, -1, -1), known[number], query_mask=rest)
    learner = tuned_kernel(GridFunction(x), known, [tasks])
    assert learner.counts.tolist() == [3]
    assert 0.5 / 3 / 1.5 < learner.temperatures.item() < 0.5 / 3 * 1.5


def test_images_of_bytes_and_of_floats_are_the_same_functions():
    images = (255 * IMAGES).round().to(torch.uint8)
    batches = [FunctionTasks(images, n).sample(9, torch.Generator()) for n in (3, 12)]
    bytes_, floats = (kernel_of_images(known, batches) for known in (images, images.float() / 255))
    assert torch.equal(bytes_.functions, floats.functions)
    assert torch.equal(bytes_.temperatures, floats.temperatures) and len(bytes_.counts) == 2


def test_functions_temperatures_and_tasks_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"`functions` has shape \(30, 4, 5\).*the 20 pos"):
        KernelRegression(Picture(4, 5), IMAGES, 0.1)
    for wrong in (0.0, math.nan, {}, {5: -1.0}, {0: 1.0}):
        with pytest.raises(ConfigError, match=r"`temperature=.*Pass numbers above 0"):
            kernel(wrong)
    with pytest.raises(ShapeError, match=r"`support.x` is 1 wide and `support.y` 1.*width 2"):
        kernel(0.1).adapt(Support.of(torch.rand(2, 3, 1), torch.rand(2, 3, 1)))


class Dark(Interpolation):
    """Answers 0 wherever it is asked, and is off by 1 in one corner of the image."""

    def predict(self, params, x):
        return ((x[..., :1] > 0.7) & (x[..., 1:] > 0.7)).to(x.dtype)


def test_unobserved_points_are_scored_apart_where_observed_ones_are_queries():
    source = FunctionTasks(torch.zeros(200, 4, 4), 6)
    problem = GivenProblem(source, source, FewShotConfig("sinusoid").resolved())
    found = judge(Dark(), problem, 6, 200, at_once=200).row("dark", "6-shot")
    drawn = draw_test_tasks(problem, 6, 200)
    known = [
        bool((x == query[15]).all(1).any())
        for x, query in zip(drawn.support_x, drawn.query_x, strict=True)
    ]
    assert found["mean"] == pytest.approx(1 / 16) and 0 < sum(known) < 200
    assert found["also"]["unobserved"]["mean"] == pytest.approx((1 - np.mean(known)) / 10)


def test_a_task_without_an_unobserved_point_has_no_such_score_and_curves_have_none():
    whole, curves = FunctionTasks(torch.zeros(9, 2, 2), 4), SinusoidTasks(4)
    config = FewShotConfig("sinusoid").resolved()
    scores = judge(Dark(), GivenProblem(whole, whole, config), 4, 3).per_task
    assert scores["unobserved"].isnan().all() and not scores["mse"].isnan().any()
    line = RidgePolynomial(1, 1)
    assert [*judge(line, GivenProblem(curves, curves, config), 4, 3).per_task] == ["mse"]


def table(path, tasks=30, points=6, shift=0.0):
    """A CSV of lines of random slope, the rows of a task in random order; the inputs of the last task are shifted."""
    random = np.random.default_rng(0)
    lines = ["task,size,dose,y"]
    for task in range(tasks):
        slope = random.standard_normal()
        for at in random.permutation(points):
            size = at + shift * (task == tasks - 1)
            lines.append(f"{task},{size},{-size},{slope * at}")
    path.write_text("\n".join(lines))
    return FewShotConfig(str(path), shots=(2,), comparators=("kernel",)).resolved()


def test_a_table_whose_tasks_share_their_inputs_has_the_kernel_and_another_has_not(tmp_path):
    problem = problem_of(table(tmp_path / "same.csv"))
    learner = problem.learner("kernel")
    assert learner.functions.shape == (18, 6, 1) and learner.counts.tolist() == [2]
    task = problem.pools["train"].take(torch.tensor([5]))
    values = learner.adapt(Support.of(task.x[None, :3], task.y[None, :3]))
    found = learner.predict(values, task.x[None])
    torch.testing.assert_close(found[0, :3], task.y[:3])
    assert (found[0] - task.y).abs().max() < 0.5
    other = table(tmp_path / "other.csv", shift=0.5)
    with pytest.raises(ConfigError, match=r"`kernel` does not go with"):
        for split in range(9):  # the task with other inputs is in the training part of most
            problem_of(replace(other, split=split)).check_methods()


OWN = """
import torch
from weightloom import Tasks, TaskSource


class Lines(TaskSource):
    apart = 0.0

    def sample(self, tasks, generator):
        slope = torch.randn(tasks, 1, 1, generator=generator)
        order = torch.rand(tasks, 8, generator=generator).argsort(1)[..., None]
        x = order + self.apart * torch.rand(tasks, 8, 1, generator=generator)
        return Tasks.of(x[:, :3], slope * x[:, :3], x[:, 3:], slope * x[:, 3:])


class Apart(Lines):
    apart = 1.0
"""


def test_an_own_source_on_one_grid_has_the_kernel_and_another_is_told_why_not(
    tmp_path, monkeypatch
):
    (tmp_path / "own_grids.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)

    def problem(name):
        config = FewShotConfig(f"own_grids:{name}", method="kernel", comparators=("ridge",))
        return problem_of(config.resolved())

    problem("Lines").check_methods()
    learner = problem("Lines").learner("kernel")
    assert learner.base.positions.flatten().tolist() == [*range(8)]
    slopes = learner.functions[..., 0] / torch.arange(8.0).clamp(min=1)
    torch.testing.assert_close(slopes[:, 1:], slopes[:, 1:2].expand(-1, 7))
    with pytest.raises(ConfigError, match=r"`kernel` with `--data own_grids:Apart`.*Leave `kern"):
        problem("Apart").check_methods()


def test_a_masked_point_is_no_position_of_a_shared_grid():
    x = torch.tensor([[[1.0], [2.0]], [[2.0], [9.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    tasks = Tasks.of(x[:, :1], x[:, :1], x, 2 * x, query_mask=mask)
    assert shared_grid(tasks) is None  # the second lacks position 1
    one = Tasks.of(x[:, :1], x[:, :1], x[:, :1], x[:, :1])
    assert shared_grid(one.take(slice(1, 2)))[0].tolist() == [[2.0]]
