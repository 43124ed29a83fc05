"""The benchmark of one generator on many architectures, before any training."""

import math

import pytest
import torch

from benchmarks import architectures
from weightloom import AdapterHyperNetwork, LowRank

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


def test_a_quarter_turn_is_that_of_numpy():
    pictures = torch.rand(1, 5, 64)
    told = torch.tensor([[math.cos(math.pi / 2), math.sin(math.pi / 2)]])
    turned = architectures.turn(told, pictures).view(5, 8, 8)
    wanted = torch.rot90(pictures.view(5, 8, 8), 1, (1, 2))
    torch.testing.assert_close(turned, wanted, atol=1e-5, rtol=0)


def test_adapters_change_nothing_before_training_and_gains_keep_away_from_zero():
    digits, family = architectures.Digits(), architectures.FAMILIES["contrast"]
    net = architectures.trained_network((24,), digits, seed=0)
    hyper = AdapterHyperNetwork(net, condition_dim=1, generate="*.weight", form=LowRank(2))
    found = architectures.judge(hyper, architectures.Shared(net), family, digits)
    for method in ("generated", "shared", "shuffled condition", "mean condition"):
        assert torch.equal(found[method], found["frozen"])
    assert found["unchanged pictures"].mean() > 0.85
    gains = family.draw(1000, torch.Generator().manual_seed(0)).abs()
    assert gains.min() >= 0.3 and gains.max() <= 1.5
