"""Coordinate networks against closed forms: derivatives, kernels, and the theory of their start."""

import math

import pytest
import torch
from torch import nn
from torch.func import jacrev, vmap

from weightloom.base import apply_per_task
from weightloom.errors import ConfigError
from weightloom.hypernets import MLPHyperNetwork
from weightloom.networks import (
    FourierFeatures,
    FourierTrunk,
    FunctionNet,
    SineLayer,
    Siren,
    SirenTrunk,
    fourier_features,
)


def test_fourier_features_of_known_frequencies_are_sines_then_cosines():
    x = torch.tensor([[0.0, 0.0], [math.pi / 6, 0.0], [0.0, math.pi / 2]], dtype=torch.float64)
    frequencies = torch.tensor([[1.0, 3.0], [2.0, 1.0]], dtype=torch.float64)
    half, root = 0.5, math.sqrt(3) / 2
    expected = [[0, 0, 1, 1], [half, 1, root, 0], [0, 1, -1, 0]]
    torch.testing.assert_close(
        fourier_features(x, frequencies), torch.tensor(expected, dtype=torch.float64)
    )


def test_the_inner_product_of_random_features_is_the_gaussian_kernel():
    """Rahimi and Recht: the mean cosine of normal frequencies is exp(-spread**2 distance**2 / 2)."""
    torch.manual_seed(0)
    layer = FourierFeatures(2, 40_000, spread=1.5)
    x = torch.tensor([[0.0, 0.0], [0.3, 0.4], [-1.0, 0.2]])
    features = layer(x)
    assert features.shape == (3, layer.features)
    kernel = features @ features.T / 40_000
    expected = (-0.5 * 1.5**2 * torch.cdist(x, x).square()).exp()
    torch.testing.assert_close(kernel, expected, atol=0.02, rtol=0)
    assert torch.allclose(kernel.diagonal(), torch.ones(3))
    assert not list(layer.parameters()) and "frequencies" in layer.state_dict()


def test_a_trunk_mixes_the_features_of_its_frequencies():
    net = FunctionNet(2, 3, features=8)
    x = torch.randn(5, 2)
    assert isinstance(net.trunk, FourierTrunk)
    mixed = net.trunk.mix(fourier_features(x, net.trunk.frequencies)) / 8**0.5
    torch.testing.assert_close(net(x), net.head(mixed))
    bounded = FunctionNet(2, 1, bounds=(0.0, 0.01)).eval()(50 * x)
    assert bounded.min() >= 0 and bounded.max() <= 0.01


@pytest.mark.parametrize("first", [True, False])
def test_derivatives_of_a_sine_layer_are_those_of_the_sine(first):
    layer = SineLayer(3, 4, frequency=5.0, first=first).double()
    x = torch.randn(6, 3, dtype=torch.float64)
    weight = layer.linear.weight.detach()
    angle = 5.0 * (x @ weight.T + layer.linear.bias)
    torch.testing.assert_close(layer(x), angle.sin())
    slope = 5.0 * angle.cos()[..., None] * weight
    torch.testing.assert_close(vmap(jacrev(layer))(x), slope)
    bend = -25.0 * angle.sin()[..., None, None] * weight[:, :, None] * weight[:, None]
    torch.testing.assert_close(vmap(jacrev(jacrev(layer)))(x), bend)


def test_a_siren_starts_within_the_papers_bounds_with_arcsine_activations():
    """Sitzmann et al., theorem 1.8: activations are arcsine distributed, of variance one half."""
    torch.manual_seed(1)
    net = Siren(2, 1, hidden=(256, 256, 256, 256))
    first, *others = (layer.linear.weight.abs().max() for layer in net.trunk)
    assert 0.4 < first <= 1 / 2
    bound = math.sqrt(6 / 256) / 30
    assert all(0.95 * bound < its <= bound for its in others)
    assert net.head.weight.abs().max() <= bound
    x = 2 * torch.rand(1000, 2) - 1
    for layer in net.trunk:
        x = layer(x)
        assert abs(x.var().item() - 0.5) < 0.05
    assert net.trunk.features == 256


def test_a_siren_is_a_base_whose_parameters_are_generated():
    base = Siren(1, 1, hidden=(8, 8))
    params = MLPHyperNetwork(base, 4)(torch.randn(3, 4))
    x = torch.rand(3, 5, 1)
    outputs = apply_per_task(base, params, x)
    one = {name: value[1] for name, value in params.items()}
    torch.testing.assert_close(outputs[1], torch.func.functional_call(base, one, (x[1],)))


def test_a_siren_fits_a_fast_sine_that_a_network_of_relus_does_not():
    """Least squares on the features at step 0 alone; 20 radians per unit of position."""
    torch.manual_seed(2)
    x = torch.linspace(-1, 1, 200)[:, None].double()
    y = (20 * x).sin()

    def error(trunk):
        features = trunk.double()(x).detach()
        return (features @ torch.linalg.lstsq(features, y, driver="gelsd").solution - y).square()

    relus = nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    assert error(SirenTrunk(1, (64, 64))).mean() < 1e-3 < 0.01 < error(relus).mean()


def test_a_frequency_of_zero_and_a_trunk_without_layers_are_refused():
    with pytest.raises(ConfigError, match="such as 30"):
        SineLayer(2, 3, frequency=0.0)
    with pytest.raises(ConfigError, match=r"`hidden=\(64, 64\)`"):
        Siren(2, 1, hidden=())
    assert Siren(2, 1, hidden=(64, 64)).trunk.features == 64
