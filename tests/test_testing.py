"""`check_hypernetwork` passes what keeps its promises, and says of everything else what is wrong with it."""

import copy

import pytest
import torch
from torch import nn

from cases import HYPERNETWORKS, TASKS, vectors
from weightloom.hypernets import HyperNetwork
from weightloom.params import ParamSpec
from weightloom.testing import check_hypernetwork


@pytest.mark.parametrize("hyper", HYPERNETWORKS)
def test_every_hypernetwork_passes_the_public_check_and_is_left_alone_by_it(hyper):
    network, condition = hyper.hyper(), hyper.condition(TASKS)
    before, state = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    check_hypernetwork(network, condition)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


class Own(HyperNetwork):
    """A hypernetwork that someone wrote themselves, with one thing wrong in it."""

    condition_dim = 4

    def __init__(self, wrong=""):
        super().__init__()
        self.wrong, self.spec = wrong, ParamSpec.of(nn.Linear(3, 2))
        self.layer = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8) if wrong == "batch norm" else nn.Identity()
        )
        self.idle = nn.Linear(2, 2) if wrong == "idle" else None
        self.dead = nn.Parameter(torch.ones(8)) if wrong == "dead" else None
        self.drop = nn.Dropout(0.5)
        if wrong != "dropout":
            self.drop.eval()

    def forward(self, condition):
        if self.wrong == "detached":
            condition = condition.detach()
        if self.wrong == "mixes":
            condition = condition + condition.flip(0)
        flat = self.drop(self.layer(condition))
        if self.wrong == "dead":
            flat = flat + 0 * self.dead
        if self.wrong == "constant in float32":
            flat = flat @ torch.eye(8)
        if self.wrong == "float32 out":
            flat = flat.float()
        if self.wrong == "infinite":
            flat = flat / 0
        if self.wrong == "square root":
            flat = flat + (flat - flat).abs().sqrt()
        params = self.spec.cut(flat)
        if self.wrong == "name":
            params["wait"] = params.pop("weight")
        if self.wrong == "shape":
            params["weight"] = params["weight"].mT
        if self.wrong == "first task only":
            params["bias"] = params["bias"][:1]
        return (
            list(params.values())
            if self.wrong == "list"
            else {}
            if self.wrong == "empty"
            else params
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            "mixes",
            r"Task 0 alone gets another 'weight' than in a batch of 3: .* Do not normalise or pool over axis 0",
        ),
        ("batch norm", r"`hyper` cannot read one task alone \(.*use nn\.LayerNorm"),
        ("detached", r"generated parameters do not depend on the condition.*`detach\(\)`"),
        (
            "idle",
            r"The parameter 'idle\.weight' is not used.*Remove it, use it, or call `requires_grad_\(False\)`",
        ),
        ("dead", r"The parameter 'dead' has the gradient zero everywhere"),
        ("dropout", r"differs between two calls with the same condition.*`hyper\.eval\(\)`"),
        (
            "constant in float32",
            r"cannot read a float64 condition \(.*dtype.*\)\..*`x\.new_zeros\(\.\.\.\)`",
        ),
        ("float32 out", r"generates 'weight' in torch\.float32"),
        ("infinite", r"\['weight'\]` holds NaN or infinity"),
        ("square root", r"The gradient of the parameter 'layer\.0\.weight' holds NaN or infinity"),
        ("name", r"differ in \['wait', 'weight'\]\..*Return exactly \['weight', 'bias'\]"),
        ("shape", r"\['weight'\]` has shape \(3, 3, 2\) for 3 tasks.*Return \(3, 2, 3\)"),
        ("first task only", r"\['bias'\]` has shape \(1, 2\) for 3 tasks.*Return \(3, 2\)"),
        ("list", r"`hyper\(condition\)` is a list\. Params are a dict.*`self\.spec\.cut\(flat\)`"),
        ("empty", r"`hyper\(condition\)` is an empty dict"),
    ],
)
def test_the_check_says_what_is_wrong_with_a_hypernetwork(wrong, message):
    check_hypernetwork(Own(), vectors(3)[0].float())
    hyper = Own(wrong)
    with pytest.raises(AssertionError, match=message):
        check_hypernetwork(hyper, vectors(3)[0].float())


def test_the_check_sees_a_leak_that_shows_only_in_gradients():
    class Leaks(Own):
        def forward(self, condition):
            other = condition.sum(0)
            return super().forward(condition + other - other.detach())

    with pytest.raises(
        AssertionError, match=r"parameters of task 0 depend on the conditions of tasks \[1, 2\]"
    ):
        check_hypernetwork(Leaks(), vectors(3)[0].float())


def test_the_advices_of_the_check_work():
    check_hypernetwork(Own("dropout").eval(), vectors(3)[0].float())
    check_hypernetwork(Own("batch norm").eval(), vectors(3)[0].float())
    frozen = Own("idle")
    frozen.idle.requires_grad_(False)
    check_hypernetwork(frozen, vectors(3)[0].float())


def test_the_check_reads_task_numbers_and_a_spec_of_its_own():
    class FromNumbers(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(3, 2)

        def forward(self, task):
            return {"bias": self.table(task)}

    check_hypernetwork(FromNumbers(), torch.arange(3), ParamSpec({"bias": (2,)}))
    with pytest.raises(AssertionError, match=r"has shape \(3, 2\) for 3 tasks.*Return \(3, 5\)"):
        check_hypernetwork(FromNumbers(), torch.arange(3), ParamSpec({"bias": (5,)}))


@pytest.mark.parametrize(
    "condition", [torch.randn(1, 4), (torch.randn(2, 4), torch.randn(3, 4)), torch.tensor(1.0)]
)
def test_the_check_needs_two_tasks_or_more(condition):
    with pytest.raises(
        AssertionError,
        match=r"`condition` holds \[.*\] tasks.*Pass a condition as in `torch\.randn\(3",
    ):
        check_hypernetwork(Own(), condition)
