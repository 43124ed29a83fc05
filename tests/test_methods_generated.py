"""Encoder, hypernetwork and base as one learner: it is the three lines, and says what it asks of its parts."""

import pytest
import torch
from torch import nn

from weightloom.base import apply_per_task
from weightloom.conditions import DeepSets, TaskEmbedding
from weightloom.errors import ConfigError, ShapeError
from weightloom.hypernets import MLPHyperNetwork
from weightloom.learners.generated import GeneratedLearner
from weightloom.learners.learner import Support
from weightloom.networks import mlp
from weightloom.tasks import SinusoidTasks
from weightloom.training import TrainOptions

pytestmark = pytest.mark.usefixtures("unchecked")


def parts(condition_dim=4, **options):
    base = mlp([1, 8, 1])
    hyper = MLPHyperNetwork(base, condition_dim, **options)
    nn.init.normal_(hyper.head.weight, std=0.1)
    return base, DeepSets(1, 1, condition_dim), hyper


def tasks(count=5):
    return SinusoidTasks(shots=10, ragged=0.5).sample(count, torch.Generator().manual_seed(0))


def test_it_is_the_three_lines():
    base, encoder, hyper = parts()
    learner, new = GeneratedLearner(base, encoder, hyper), tasks()
    condition = encoder(new.support_x, new.support_y, new.support_mask)
    assert torch.equal(learner.condition(new.support), condition)
    params = hyper(condition)
    assert all(
        torch.equal(value, params[name]) for name, value in learner.adapt(new.support).items()
    )
    assert torch.equal(learner.answer(new), apply_per_task(base, params, new.query_x))


def test_it_learns():
    learner, new = GeneratedLearner(*parts()), tasks(100)
    with torch.no_grad():
        before = learner(new).mean()
    learner.fit(SinusoidTasks(shots=10), TrainOptions(steps=60, tasks=16, outer_lr=3e-3))
    with torch.no_grad():
        assert learner(new).mean() < 0.9 * before


def test_what_is_frozen_stays_as_it_was():
    base, encoder, hyper = parts(freeze="0.*", generate="2.*")
    frozen, shared = base[0].weight.clone(), base[2].weight.clone()
    learner = GeneratedLearner(base, encoder, hyper)
    learner.fit(SinusoidTasks(shots=10), TrainOptions(steps=3, tasks=4))
    assert torch.equal(base[0].weight, frozen)
    assert not torch.equal(base[2].weight, shared)


def test_without_an_encoder_the_support_is_the_condition():
    base, _, hyper = parts()
    learner = GeneratedLearner(base, None, hyper)
    condition, x = TaskEmbedding(5, 4)(torch.arange(5)), torch.randn(5, 7, 1)
    expected = apply_per_task(base, hyper(condition), x)
    support = Support(condition, torch.zeros(5, 0), torch.ones(5, 0, dtype=torch.bool))
    for known in (condition, support):
        assert torch.equal(learner.predict(learner.adapt(known), x), expected)


def test_widths_that_do_not_fit_are_refused_and_the_advice_fits():
    base, encoder, _ = parts(condition_dim=6)
    with pytest.raises(ShapeError, match="width 6, and the hypernetwork reads 4") as caught:
        GeneratedLearner(base, encoder, MLPHyperNetwork(base, condition_dim=4))
    assert "`condition_dim=6`" in str(caught.value)
    GeneratedLearner(base, encoder, MLPHyperNetwork(base, condition_dim=6))


def test_another_base_is_refused():
    base, encoder, _ = parts()
    with pytest.raises(ConfigError, match=r"over another base: its `0\.weight`"):
        GeneratedLearner(mlp([1, 8, 1]), encoder, MLPHyperNetwork(base, condition_dim=4))


def test_a_condition_in_the_place_of_a_support_set_is_refused():
    with pytest.raises(ConfigError, match=r"`support` is a tensor of shape \(5, 4\).*DeepSets"):
        GeneratedLearner(*parts()).adapt(torch.randn(5, 4))


class OneForAll(nn.Module):
    """An encoder that forgets the tasks axis."""

    def forward(self, x, y, mask):
        return torch.zeros(1, 4)


def test_an_encoder_that_loses_tasks_is_refused():
    base, _, hyper = parts()
    with pytest.raises(
        ShapeError, match=r"OneForAll, returned a condition of shape \(1, 4\) for 5 tasks"
    ):
        GeneratedLearner(base, OneForAll(), hyper).adapt(tasks().support)
