"""Points become cells: what a cell holds, and what does not matter. That it is an encoder like others: the bank."""

import pytest
import torch

from weightloom.conditions.grid import GridEncoder
from weightloom.errors import ConfigError

D = torch.float64


def build(x_dim=2, y_dim=1, size=4, **options):
    return GridEncoder(x_dim, y_dim, condition_dim=5, size=size, hidden=(16,), **options).double()


def test_a_point_at_the_centre_of_a_cell_is_that_cells_alone():
    """Of 4 cells along [-1, 1], the centres are -0.75, -0.25, 0.25, 0.75."""
    grid = build().spread(
        torch.tensor([[[0.25, -0.75], [0.75, 0.75]]], dtype=D),
        torch.tensor([[[3.0], [5.0]]], dtype=D),
    )
    expected = torch.zeros(4, 4, dtype=D)
    expected[2, 0], expected[3, 3] = 3, 5
    torch.testing.assert_close(grid[0, :, 0].view(4, 4), expected)


def test_a_point_between_centres_is_shared_as_in_linear_interpolation():
    """Sharing is the adjoint of interpolation: a plane over the centres is met at the point itself."""
    encode, x = build(size=7), 0.8 * (2 * torch.rand(3, 20, 2, dtype=D) - 1)
    grid = encode.spread(x, torch.ones(3, 20, 1, dtype=D))
    torch.testing.assert_close(grid.sum(1), torch.full((3, 1), 20.0, dtype=D))
    centres = (2 * torch.arange(7, dtype=D) + 1) / 7 - 1
    for axis, along in [(0, centres.repeat_interleave(7)), (1, centres.repeat(7))]:
        torch.testing.assert_close((grid[..., 0] * along).sum(1), x[..., axis].sum(1))


def test_a_cell_holds_the_mean_of_its_targets_however_many_points_lie_in_it():
    seen = {}
    encode = build(x_dim=1, size=2)
    encode.read.register_forward_pre_hook(lambda module, given: seen.update(grid=given[0]))
    encode(
        torch.tensor([[[-0.5], [-0.5], [0.5]]], dtype=D),
        torch.tensor([[[1.0], [3.0], [7.0]]], dtype=D),
    )
    assert seen["grid"].tolist() == [[2, 1, 2, 7]]  # how many, then which mean


def test_a_point_outside_is_taken_to_the_edge_and_the_range_can_be_set():
    x, y = torch.tensor([[[-9.0], [9.0]]], dtype=D), torch.ones(1, 2, 1, dtype=D)
    assert build(x_dim=1).spread(x, y)[0, :, 0].tolist() == [1, 0, 0, 1]
    assert build(x_dim=1, low=-18.0, high=18.0).spread(x, y)[0, :, 0].tolist() == [0.5] * 4


def test_where_a_point_lies_has_a_gradient():
    x = (0.6 * torch.rand(2, 3, 2, dtype=D)).requires_grad_()
    y = torch.randn(2, 3, 1, dtype=D)
    assert torch.autograd.gradcheck(lambda at: build_once(at, y), x)


def build_once(x, y):
    torch.manual_seed(1)
    return build()(x, y)


@pytest.mark.parametrize("options", [{"size": 1}, {"low": 1.0}])
def test_what_makes_no_grid_is_refused(options):
    with pytest.raises(ConfigError, match="make no grid"):
        build(**options)
