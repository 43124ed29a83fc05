"""The test of generating on families whose answer, and lowest loss, is known."""

import math

import pytest
import torch
from torch import nn

from weightloom.conditions import DeepSets
from weightloom.diagnostics import GeneratingPays, generating_pays
from weightloom.errors import ConfigError
from weightloom.networks import mlp
from weightloom.tasks import SinusoidTasks, Tasks, TaskSource

WIDTH = 4


class Family(TaskSource):
    """y = rule(x, A, b) with A and b of each task; the support set shows A, or b, without error."""

    def __init__(self, rule, shown="A"):
        self.rule, self.shown = rule, shown

    def sample(self, tasks, generator):
        a = torch.randn(tasks, WIDTH, WIDTH, generator=generator) / WIDTH**0.5
        b = torch.randn(tasks, 1, WIDTH, generator=generator)
        x = torch.randn(tasks, 16, WIDTH, generator=generator)
        noise = torch.randn(x.shape, generator=generator)
        shown = a if self.shown == "A" else b
        return Tasks.of(torch.zeros_like(shown), shown, x, self.rule(x, a, b, noise))


class Shown(nn.Module):
    """The code is the support set's targets as they are."""

    def forward(self, x, y, mask):
        return y.flatten(1)


def judged(family, base, minutes=0.04):
    return generating_pays(
        *(family, family, base, Shown),
        minutes=minutes,
        rates=[1e-2],
        seeds=2,
        test_tasks=200,
    )


def linear():
    return nn.Linear(WIDTH, WIDTH)


def test_where_the_code_multiplies_inputs_generating_wins(unchecked):
    """y = x A: the hypernetwork can be exact, 0. Without a code, E y² = 1; with another's, 2."""
    found = judged(Family(lambda x, a, b, noise: x @ a), linear)
    assert found.ahead == "weights" and found.pays
    assert found.weights.loss.mean < min(0.2, found.input.loss.mean / 2)
    assert abs(found.shared.loss.mean - 1) < 0.2
    assert abs(found.shuffled.loss.mean - 2) < 0.4
    assert "Generating pays: the loss of the code as input is higher by" in str(found)
    assert 0.1 < found.input.parameters / found.weights.parameters < 1.05
    assert 0.5 < found.input.cpu_time_s / found.weights.cpu_time_s < 2


def test_where_the_code_is_added_to_a_linear_map_both_are_level(unchecked):
    """y = x + b: both can be exact, 0. Without a code, E b² = 1."""
    found = judged(Family(lambda x, a, b, noise: x + b, shown="b"), linear)
    assert found.ahead == "level" and not found.pays
    assert max(found.weights.loss.mean, found.input.loss.mean) < 0.1
    assert abs(found.shared.loss.mean - 1) < 0.2
    assert "weights and input are level" in found.verdict


def test_where_the_code_is_added_to_a_bent_function_input_wins(unchecked):
    """y = |x| + b: no linear base is below var |x| = 1 - 2/pi; the plain network can be exact."""
    found = judged(Family(lambda x, a, b, noise: x.abs() + b, shown="b"), linear)
    assert found.ahead == "input" and not found.pays
    assert found.input.loss.mean < 0.3 < 1 - 2 / math.pi - 0.05 < found.weights.loss.mean
    assert "Generating does not pay: the loss of the code as weights is higher" in found.verdict


def test_where_tasks_do_not_differ_no_code_helps(unchecked):
    """y is noise of variance 1: no arm can be below 1, and the shared one starts there."""

    def zero():
        base = linear()
        nn.init.zeros_(base.weight)
        nn.init.zeros_(base.bias)
        return base

    found = judged(Family(lambda x, a, b, noise: noise), zero, minutes=0.01)
    assert found.ahead == "shared" and abs(found.shared.loss.mean - 1) < 0.1
    assert "No code helps" in found.verdict


def test_global_chance_is_as_before(unchecked):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    judged(Family(lambda x, a, b, noise: x), linear, minutes=0.001)
    assert torch.equal(torch.rand(3), expected)


def test_a_plain_network_of_ones_own_is_used_for_pictures():
    class Pictures(TaskSource):
        def sample(self, tasks, generator):
            x = torch.randn(tasks, 4, 1, 3, 3, generator=generator)
            y = torch.randint(2, (tasks, 4), generator=generator)
            return Tasks.of(x, y, x, y)

    class Plain(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.condition = nn.Parameter(torch.zeros(width), requires_grad=False)
            self.net = nn.Linear(9 + width, 2)

        def forward(self, x):
            return self.net(torch.cat([x.flatten(1), self.condition.expand(len(x), -1)], 1))

    class Mean(nn.Module):
        def forward(self, x, y, mask):
            return x.flatten(2).mean(1)

    def base():
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())

    known = {"minutes": 0.001, "rates": [1e-3], "seeds": 1, "test_tasks": 4}
    found = generating_pays(Pictures(), Pictures(), base, Mean, plain=Plain, **known)
    assert isinstance(found, GeneratingPays) and found.input.parameters == 2 * (9 + 9 + 1)
    with pytest.raises(ConfigError, match="Pass `plain`"):
        generating_pays(Pictures(), Pictures(), base, Mean, **known)


@pytest.mark.parametrize(
    "wrong", [{"minutes": 0.0}, {"rates": []}, {"seeds": 0}, {"test_tasks": 1}]
)
def test_numbers_out_of_range_are_named(wrong):
    (name,) = wrong
    source = SinusoidTasks(shots=3)
    with pytest.raises(ConfigError, match=f"`{name}="):
        generating_pays(source, source, lambda: mlp([1, 4, 1]), lambda: DeepSets(1, 1, 2), **wrong)


def test_a_module_in_place_of_its_builder_is_refused():
    source = SinusoidTasks(shots=3)
    with pytest.raises(ConfigError, match=r"`base` is a Sequential.*Pass a function"):
        generating_pays(source, source, mlp([1, 4, 1]), lambda: DeepSets(1, 1, 2))
