"""Conditions from unlabelled sets, against numpy's statistics."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from weightloom.conditions.statistics import SetStatistics, set_statistics
from weightloom.errors import ShapeError


@given(tasks=st.integers(1, 3), examples=st.integers(2, 6), seed=st.integers(0, 1000))
def test_statistics_are_those_of_numpy(tasks, examples, seed):
    x = torch.randn(tasks, examples, 4, generator=torch.Generator().manual_seed(seed)).double()
    found = set_statistics(x)
    wanted = np.concatenate([x.numpy().mean(1), x.numpy().std(1)], axis=1)
    assert np.allclose(found.numpy(), wanted, atol=1e-12)


def test_order_and_copies_of_the_examples_do_not_matter():
    x = torch.randn(2, 5, 3, dtype=torch.double)
    torch.testing.assert_close(set_statistics(x.flip(1)), set_statistics(x))
    torch.testing.assert_close(set_statistics(torch.cat([x, x], 1)), set_statistics(x))


def test_a_constant_feature_has_a_finite_gradient():
    x = torch.tensor([[[1.0, 2.0], [1.0, 4.0]]], requires_grad=True)
    found = set_statistics(x)
    found.sum().backward()
    assert found.tolist() == [[1.0, 3.0, 0.0, 1.0]]
    # mean: 1/2 each; spread of (2, 4): (x - mean) / (n · spread) = -1/2 and 1/2
    assert x.grad.tolist() == [[[0.5, 0.0], [0.5, 1.0]]]


def test_a_set_of_one_example_is_refused():
    encode = SetStatistics(nn.Flatten(), width=4, condition_dim=2)
    with pytest.raises(ShapeError, match=r"holds 1.*two or more"):
        encode(torch.randn(3, 1, 4))
    assert encode(torch.randn(3, 2, 4)).shape == (3, 2)


def test_features_without_tasks_are_refused(unchecked):
    features = torch.randn(3, 4)
    with pytest.raises(ShapeError, match="features"):
        set_statistics(features)
    assert set_statistics(features[None]).shape == (1, 8)


def test_tasks_do_not_leak_into_each_other():
    encode = SetStatistics(nn.Linear(4, 3), width=3, condition_dim=2).double()
    x = torch.randn(3, 5, 4, dtype=torch.double)
    together = encode(x)
    for task in range(3):
        torch.testing.assert_close(encode(x[task : task + 1])[0], together[task])


def test_frozen_features_stay_frozen():
    features = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval().requires_grad_(False)
    encode = SetStatistics(features, width=3, condition_dim=2)
    encode.train()
    before = features[1].running_mean.clone()
    encode(torch.randn(2, 5, 4)).sum().backward()
    assert torch.equal(features[1].running_mean, before) and not features.training
    assert all(p.grad is None for p in features.parameters())
    assert all(p.grad is not None for p in encode.read.parameters())
