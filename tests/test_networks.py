"""Ready-made base networks: shapes, and what an output depends on."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from weightloom.errors import ConfigError
from weightloom.networks import ConvNet, mlp


@pytest.mark.parametrize("sizes", [[3, 2], [1, 40, 40, 1]], ids=str)
def test_an_mlp_has_a_linear_layer_per_step_and_no_activation_behind_the_last(sizes):
    net = mlp(sizes, activation=nn.Tanh)
    linear = [layer for layer in net if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == list(pairwise(sizes))
    assert len(net) == 2 * len(linear) - 1 and all(
        isinstance(layer, nn.Tanh) for layer in net[1::2]
    )
    assert net(torch.randn(7, sizes[0])).shape == (7, sizes[-1])


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(
    ("size", "blocks", "levels"), [(8, 2, 1), (8, 2, 2), (9, 3, 2), (28, 4, 1), (32, 3, 3)]
)
def test_a_conv_net_takes_images_of_any_size(strided, size, blocks, levels):
    net = ConvNet(2, size, 5, channels=3, blocks=blocks, levels=levels, strided=strided)
    images = torch.rand(7, 2, size, size)
    assert net(images).shape == (7, 5)
    assert (
        net.trunk(images).shape == (7, net.trunk.features)
        and net.head.in_features == net.trunk.features
    )


@pytest.mark.parametrize("strided", [False, True])
def test_what_a_conv_net_says_of_an_image_depends_on_that_image_alone(strided):
    net = ConvNet(1, 8, 5, channels=3, blocks=2, strided=strided).double()
    images = torch.rand(4, 1, 8, 8, dtype=torch.float64)
    together = net(images)
    for number in range(4):
        torch.testing.assert_close(
            net(images[number : number + 1])[0], together[number], rtol=1e-12, atol=1e-12
        )
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize(("size", "blocks", "levels"), [(8, 4, 1), (8, 2, 0), (8, 2, 3)])
def test_an_image_too_small_or_levels_out_of_range_are_refused(size, blocks, levels):
    with pytest.raises(ConfigError, match="do not fit together"):
        ConvNet(1, size, 5, blocks=blocks, levels=levels)
    assert ConvNet(1, 8, 5, channels=4, blocks=2, levels=1)(torch.rand(2, 1, 8, 8)).shape == (2, 5)
