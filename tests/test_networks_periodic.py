"""Travelling waves: exact periods, the speed of a wave, and bad sizes."""

import math

import pytest
import torch

from weightloom.errors import ConfigError
from weightloom.hypernets import MLPHyperNetwork
from weightloom.networks import PeriodicLayer, PeriodicNet


def test_a_net_is_periodic_in_x_and_not_in_time():
    net = PeriodicNet((8, 8), modes=3).double()
    at = torch.rand(20, 2, dtype=torch.float64)
    turn = torch.tensor([2 * math.pi, 0.0], dtype=torch.float64)
    torch.testing.assert_close(net(at + turn), net(at), rtol=0, atol=1e-12)
    assert (net(at + turn.flip(0)) - net(at)).abs().max() > 1e-3


def test_a_wave_travels_at_its_rate_over_its_wave_number():
    layer = PeriodicLayer(3, modes=3).double()
    speed, passed = 0.7, 0.4
    with torch.no_grad():
        layer.rest.weight.copy_(-speed * layer.waves[:, None])
    at = torch.rand(9, 2, dtype=torch.float64)
    later = at + torch.tensor([speed * passed, passed], dtype=torch.float64)
    torch.testing.assert_close(layer(later), layer(at))


def test_units_take_wave_numbers_in_turn():
    x = torch.linspace(0, 1, 5)
    at = torch.stack([x, torch.zeros(5)], 1)
    layer = PeriodicLayer(4, modes=3)
    with torch.no_grad():
        layer.rest.bias.zero_()
    expected = torch.stack([(k * x).sin() for k in (1, 2, 3, 1)], 1)
    torch.testing.assert_close(layer(at), expected)


def test_several_other_coordinates_and_outputs():
    assert PeriodicNet((4,), others=2, outputs=5)(torch.rand(7, 3)).shape == (7, 5)


def test_generated_rates_give_each_task_its_own_speed():
    base = PeriodicNet((4, 4))
    names = set(MLPHyperNetwork(base, 3)(torch.randn(2, 3)))
    assert {"0.rest.weight", "0.rest.bias"} <= names
    assert not any("waves" in name for name in names)


@pytest.mark.parametrize("options", [{"units": 0}, {"units": 4, "modes": 0}])
def test_sizes_below_one_are_refused(options):
    with pytest.raises(ConfigError, match="Pass 1 or more"):
        PeriodicLayer(**options)


def test_a_net_without_layers_is_refused():
    with pytest.raises(ConfigError, match=r"hidden=\(32, 32\)"):
        PeriodicNet(())
