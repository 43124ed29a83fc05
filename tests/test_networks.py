"""Ready-made base networks: shapes, and what an output depends on."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from weightloom.errors import ConfigError
from weightloom.networks import ConvNet, SpectrogramTrunk, UnitTrunk, mlp


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


def test_features_of_unit_length_have_mean_square_one_around_the_mean_of_all_batches():
    trunk = UnitTrunk(nn.Linear(6, 4), features=4).double()
    batches = [torch.randn(9, 6, dtype=torch.float64) + 5 for _ in range(3)]
    for batch in batches:
        trunk(batch)
    trunk.eval()
    features = trunk.trunk(torch.cat(batches))
    centre = features.mean(0)
    torch.testing.assert_close(trunk.last.centre, centre)
    outputs = trunk(torch.cat(batches))
    torch.testing.assert_close(outputs.square().mean(1), torch.ones(27, dtype=torch.float64))
    for scale in (0.01, 100.0):
        scaled = centre + scale * (features - centre)
        torch.testing.assert_close(trunk.last(scaled), outputs)
    torch.testing.assert_close(trunk.last.centre, centre)  # eval mode leaves the mean as it is


def test_the_mean_of_many_batches_forgets_the_first_at_its_speed():
    trunk = UnitTrunk(nn.Identity(), features=1)
    trunk.last.batches += 1000  # as after a thousand batches of zeros
    for _ in range(50):
        trunk(torch.ones(2, 1))
    torch.testing.assert_close(trunk.last.centre, torch.full((1,), 1 - 0.99**50))


def test_a_spectrogram_is_read_frame_by_frame_in_both_directions():
    trunk, x = SpectrogramTrunk(bands=3, hidden=2), torch.rand(5, 1, 3, 4)
    states = []
    for suffix, frames in (("", range(4)), ("_reverse", range(3, -1, -1))):
        cell, state = nn.GRUCell(3, 2), torch.zeros(5, 2)
        for name, value in cell.named_parameters():
            value.data = getattr(trunk.reader, f"{name}_l0{suffix}").data
        states.append(torch.stack([state := cell(x[:, 0, :, frame], state) for frame in frames]))
    forth, back = states
    expected = [
        part(of) for part in (lambda of: of.mean(0), lambda of: of.amax(0)) for of in (forth, back)
    ]
    features = torch.cat(expected, dim=1)
    spread = features.var(1, correction=0, keepdim=True).add(1e-5).sqrt()
    torch.testing.assert_close(trunk(x), (features - features.mean(1, keepdim=True)) / spread)
    assert trunk.features == trunk(x).shape[1]
