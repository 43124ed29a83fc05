"""Inverse problems: equations found from points of exact solutions that are written here."""

import math

import pytest
import torch

from weightloom.apps.fields.inverse import invert, through_solver
from weightloom.errors import ConfigError, ShapeError
from weightloom.tasks.fields import field_family

FAMILY = field_family("advection-diffusion")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def exact(inputs, at):
    """Solution of u_t + c u_x = κ u_xx: each mode turns by c t and decays by e^{-κ k² t}."""
    x, t = at.unbind(-1)
    k = torch.arange(1, 5)
    angle = (x - inputs[:, :1] * t)[..., None] * k
    waves = inputs[:, None, 2:6] * angle.cos() + inputs[:, None, 6:] * angle.sin()
    return (waves * torch.exp(-(inputs[:, 1:2].exp() * t)[..., None] * k**2)).sum(-1)


def scattered(problems, points):
    at = torch.rand(problems, points, 2, generator=seeded(1))
    return at * torch.tensor([2 * math.pi, 1.0])


def test_equations_are_found_from_points_of_their_exact_solutions():
    inputs, at = FAMILY.draw(3, seeded(2)).float(), scattered(3, 200)
    values = exact(inputs, at)
    found = invert(exact, FAMILY, at, values, noise=0.01, generator=seeded(3), starts=4, steps=400)
    torch.testing.assert_close(found.inputs, inputs, atol=0.03, rtol=0)
    assert found.misfit.max() < 0.2


def test_the_solver_in_the_loop_finds_what_the_exact_solution_finds():
    at = scattered(2, 12)
    values = exact(FAMILY.draw(2, seeded(2)).float(), at)
    found, same = (
        invert(
            predict, FAMILY, at, values, noise=0.1, generator=seeded(3), starts=2, steps=20
        ).inputs
        for predict in (through_solver(FAMILY, points=32, steps=32), exact)
    )
    torch.testing.assert_close(found, same, atol=1e-3, rtol=0)


@pytest.mark.parametrize("noise", [0.02, torch.tensor([0.02, 0.02, 0.02])])
def test_the_misfit_is_that_of_the_inputs_in_units_of_the_noise(noise):
    at = scattered(3, 12)
    values = exact(FAMILY.draw(3, seeded(2)).float(), at)
    found = invert(exact, FAMILY, at, values, noise=noise, generator=seeded(3), steps=5)
    expected = ((exact(found.inputs, at) - values) / 0.02).square().mean(1)
    torch.testing.assert_close(found.misfit, expected)


def test_more_starts_include_the_best_and_coefficients_stay_in_their_ranges():
    """Loss of the best of 6 starts, by hand; the data are those of a speed beyond the range."""
    inputs, at = FAMILY.draw(1, seeded(2)).float(), scattered(1, 12)
    inputs[:, 0] = 4.0
    values = exact(inputs, at)
    found = invert(exact, FAMILY, at, values, noise=0.1, generator=seeded(3), starts=6, steps=60)
    assert 0.5 <= found.inputs[0, 0] <= 1.5 and 0.03 <= found.inputs[0, 1].exp() <= 0.3

    def loss(inputs, misfit):
        return 12 * misfit + FAMILY.normalised(inputs)[:, 2:].square().sum(1)

    copies = [at.expand(6, -1, -1), values.expand(6, -1)]
    alone = invert(exact, FAMILY, *copies, noise=0.1, generator=seeded(3), starts=1, steps=60)
    torch.testing.assert_close(loss(*found)[0], loss(*alone).min())


def test_far_from_any_point_the_initial_state_is_the_most_probable_one():
    """With noise that says nothing, the Fourier coefficients are those of the prior: 0."""
    at = scattered(1, 3)
    found = invert(exact, FAMILY, at, torch.ones(1, 3), noise=1e4, generator=seeded(3), steps=300)
    assert FAMILY.normalised(found.inputs)[0, 2:].abs().max() < 0.02


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"values": torch.zeros(2, 5)}, ShapeError, r"`at` has the shape \(2, 4, 2\), `values`"),
        ({"noise": 0.0}, ConfigError, "`noise=0`.*above 0"),
        ({"starts": 0}, ConfigError, "`starts=0`.*from 1"),
        ({"steps": 0}, ConfigError, "`steps=0`.*from 1"),
    ],
)
def test_wrong_options_are_named_with_what_fits(changed, error, words):
    fits = {"at": torch.zeros(2, 4, 2), "values": torch.zeros(2, 4), "noise": 1.0}
    with pytest.raises(error, match=words):
        invert(exact, FAMILY, generator=seeded(), **{**fits, **changed})
