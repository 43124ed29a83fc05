"""Modular hypernetworks: codes are found again, layers keep to their own, and new combinations are solved."""

from collections import OrderedDict

import pytest
import torch
from torch import nn

from weightloom.errors import ShapeError
from weightloom.hypernets import MLPHyperNetwork
from weightloom.learners.learner import Support
from weightloom.learners.maml import ANIL
from weightloom.learners.modular import (
    LayerwiseHyperNetwork,
    ModularHyperNetwork,
)
from weightloom.losses import soft_cross_entropy_per_task
from weightloom.networks import mlp
from weightloom.tasks.hyperteacher import HyperteacherTasks
from weightloom.testing import check_hypernetwork
from weightloom.training import TrainOptions


def close(actual, expected, tolerance=1e-9):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def whole(x):
    return torch.ones(x.shape[:2], dtype=torch.bool)


@pytest.mark.parametrize("hidden", [(), (7,), (7, 6)])
def test_it_keeps_what_is_asked_of_every_hypernetwork(hidden):
    base = mlp([3, 6, 4])
    check_hypernetwork(LayerwiseHyperNetwork(base, code_dim=5, hidden=hidden), torch.randn(4, 10))


@pytest.mark.parametrize("hidden", [(), (7,)])
def test_a_layer_reads_its_own_code_and_the_length_of_a_code_says_nothing(hidden):
    hyper = LayerwiseHyperNetwork(mlp([3, 6, 4]), code_dim=5, hidden=hidden).double()
    assert hyper.names == ["0", "2"] and hyper.condition_dim == 10
    code = torch.randn(4, 10, dtype=torch.float64)
    other = torch.cat([code[:, :5], torch.randn(4, 5, dtype=torch.float64)], dim=1)
    params, changed, longer = hyper(code), hyper(other), hyper(3 * code)
    for name in params:
        assert torch.equal(params[name], changed[name]) == name.startswith("0.")
        close(longer[name], params[name], 1e-3 if hidden else 1e-9)  # a layer norm has its epsilon


def test_without_hidden_layers_parameters_are_a_mixture_of_templates():
    hyper = LayerwiseHyperNetwork(nn.Linear(3, 2), code_dim=4).double()
    templates = torch.stack(
        [hyper(torch.eye(4).double()[k : k + 1])["weight"][0] / 2 for k in range(4)]
    )
    code = torch.randn(5, 4, dtype=torch.float64)
    mixture = (
        code / code.square().mean(1, keepdim=True).sqrt()
    )  # unit vectors have the mean square 1/4
    close(hyper(code)["weight"], torch.einsum("tk,koi->toi", mixture, templates))


def test_what_is_generated_starts_with_the_variance_of_the_layers_own_values():
    base = mlp([50, 60, 8])
    own = {name: p.detach().square().mean() for name, p in base.named_parameters()}
    hyper = LayerwiseHyperNetwork(base, code_dim=16, hidden=(32,))
    params = hyper(torch.randn(200, 32))
    for name, power in own.items():
        assert params[name].square().mean().item() == pytest.approx(power.item(), rel=0.3)


def test_a_code_is_found_again_when_the_templates_are_known():
    """Schug et al. (2024), section 3: with the teacher's modules the student's code is the teacher's, up to scale."""
    base = nn.Linear(6, 4)
    hyper = LayerwiseHyperNetwork(base, code_dim=3)
    learner = ModularHyperNetwork(
        base, hyper, inner_steps=100, inner_lr=3.0, momentum=None
    ).double()
    truth = torch.randn(5, 3, dtype=torch.float64)
    x = torch.randn(5, 20, 6, dtype=torch.float64)
    with torch.no_grad():
        y = learner.predict(hyper(truth), x)
        code = learner.condition(Support(x, y, whole(x)))
    assert nn.functional.cosine_similarity(code, truth).min() > 1 - 1e-6


def test_the_code_starts_where_it_was_learned_to_and_decays_by_itself():
    base, x = nn.Linear(6, 4), torch.randn(5, 20, 6)
    learner = ModularHyperNetwork(
        base, LayerwiseHyperNetwork(base, 3), lambda out, _: 0 * out.flatten(1).sum(1)
    )
    support = Support(x, torch.randn(5, 20, 4), whole(x))
    close(learner.condition(support), learner.start.expand(5, 3), 1e-6)
    learner.weight_decay, learner.inner_lr, learner.inner_steps = 0.5, 0.1, 4
    close(learner.condition(support), 0.95**4 * learner.start.expand(5, 3), 1e-6)


def test_any_hypernetwork_can_be_asked_for_its_code():
    base, x = mlp([3, 6, 4]), torch.randn(5, 20, 3)
    learner = ModularHyperNetwork(base, MLPHyperNetwork(base, 4, init="hyperfan-in"))
    assert learner.adapt(Support(x, torch.randn(5, 20, 4), whole(x)))["0.weight"].shape == (5, 6, 3)


def test_a_code_of_another_width_is_said():
    with pytest.raises(ShapeError, match=r"reads \(tasks, 10\)"):
        LayerwiseHyperNetwork(mlp([3, 6, 4]), code_dim=5)(torch.randn(2, 9))


def test_soft_targets_that_are_certain_are_labels():
    logits, labels = torch.randn(3, 7, 4).double(), torch.randint(4, (3, 7))
    soft = nn.functional.one_hot(labels, 4).double()
    by_hand = -logits.log_softmax(2).gather(2, labels[..., None])[..., 0].mean(1)
    close(soft_cross_entropy_per_task(logits, soft), by_hand)


@pytest.mark.slow  # about 15 s of one core: the smallest form of benchmarks/hyperteacher.py
@pytest.mark.timeout(300)
def test_modules_that_were_never_seen_together_are_known_one_by_one_but_not_combined():
    """Schug et al. (2024), section 4: with one active module the support is not connected, and the order reverses."""
    options = TrainOptions(steps=120, tasks=16, outer_lr=3e-3, warmup_steps=10, seed=0)
    teacher = {"modules": 4, "active": 1, "width": 16, "shots": 64, "queries": 64}
    source, new = HyperteacherTasks(**teacher), HyperteacherTasks(**teacher, which="ood")
    base, trunk = mlp([16, 32, 32, 32, 8]), mlp([16, 64, 64, 64])
    hyper = LayerwiseHyperNetwork(base, code_dim=16, hidden=(32, 32))
    headed = nn.Sequential(
        OrderedDict(trunk=nn.Sequential(*trunk, nn.ReLU()), head=nn.Linear(64, 8))
    )
    learners = {
        "hyper": ModularHyperNetwork(base, hyper, soft_cross_entropy_per_task, inner_steps=5),
        "anil": ANIL(
            headed,
            soft_cross_entropy_per_task,
            inner_steps=20,
            inner_lr=0.03,
            momentum=(0.9, 0.999),
        ),
    }
    right = {}
    for name, learner in learners.items():
        learner.fit(source, options)
        for of, drawn in (("known", source), ("new", new)):
            tasks = drawn.sample(200, torch.Generator().manual_seed(1 << 40))
            with torch.no_grad():
                right[name, of] = (
                    (learner.answer(tasks).argmax(2) == tasks.query_y.argmax(2))
                    .float()
                    .mean()
                    .item()
                )
    assert right["hyper", "known"] > right["anil", "known"] + 0.02, right
    assert right["hyper", "new"] < right["anil", "new"] - 0.1, right
