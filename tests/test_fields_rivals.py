"""Rivals that train nothing: kernels and interpolation against scikit-learn, scipy and closed forms."""

import math

import pytest
import torch

from weightloom.apps.fields.rivals import (
    Components,
    GridField,
    KernelScores,
    KnownFields,
    NearestScores,
    RivalSettings,
    fit_kernel,
    fit_nearest,
    grid_of,
    interpolated,
    matern,
    turned,
)
from weightloom.apps.fields.symmetry import canonical
from weightloom.errors import MissingExtraError, ShapeError
from weightloom.tasks.fields import field_family, make_fields, relative_error, rolled


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def lengths(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("smoothness", [1.5, 2.5, math.inf])
def test_kernel_regression_equals_scikit_learn(smoothness):
    kernels = pytest.importorskip("sklearn.gaussian_process.kernels")
    ridge = pytest.importorskip("sklearn.kernel_ridge")
    known, scores, asked = drawn(40, 3), drawn(40, 5, seed=1), drawn(7, 3, seed=2)
    settings = RivalSettings(lengths(1.0, 2.0, 4.0), smoothness, ridge=1e-3)
    kernel = kernels.Matern(length_scale=[1.0, 2.0, 4.0], nu=smoothness)
    rule = ridge.KernelRidge(alpha=1e-3, kernel="precomputed")
    rule.fit(kernel(known.numpy()), scores.numpy())
    expected = rule.predict(kernel(asked.numpy(), known.numpy()))
    found = KernelScores(known, scores, settings)(asked)
    torch.testing.assert_close(found, torch.from_numpy(expected))


@pytest.mark.parametrize("smoothness", [1.5, 2.5, math.inf])
def test_kernels_equal_those_of_scikit_learn(smoothness):
    kernels = pytest.importorskip("sklearn.gaussian_process.kernels")
    x = drawn(9, 2)
    expected = kernels.Matern(nu=smoothness)(x.numpy())
    torch.testing.assert_close(matern(torch.cdist(x, x), smoothness), torch.from_numpy(expected))


def test_a_kernel_too_smooth_for_its_ridge_gets_a_larger_one():
    twice = drawn(20, 2).repeat(2, 1)
    scores = drawn(20, 3, seed=1).repeat(2, 1)
    found = KernelScores(twice, scores, RivalSettings(lengths(1e3, 1e3), math.inf, ridge=1e-300))(
        twice
    )
    assert found.isfinite().all()


def test_nearest_solutions_are_joined_by_a_function_that_is_linear_where_they_are():
    pytest.importorskip("scipy")
    known, slope = drawn(60, 3), drawn(3, 4, seed=1)
    scores = NearestScores(known, known @ slope + 1, RivalSettings(lengths(1.0, 2.0, 3.0)))
    asked = drawn(8, 3, seed=2)
    torch.testing.assert_close(scores(asked), asked @ slope + 1)
    torch.testing.assert_close(scores(known[:5]), known[:5] @ slope + 1)


def test_few_components_hold_fields_of_few_shapes():
    shapes = drawn(3, 6, 8)
    values = torch.einsum("fs,stp->ftp", drawn(30, 3, seed=1), shapes) + 5
    parts = Components(values)
    assert parts.basis.shape == (48, 3)
    torch.testing.assert_close(parts(parts.scores(values)), values)
    torch.testing.assert_close(parts.basis.T @ parts.basis, torch.eye(3).double())


def test_interpolation_is_exact_for_waves_in_x_and_cubics_in_t():
    def field(x, t):
        return torch.cos(3 * x - 0.4) * (1 - 2 * t + t**3) + torch.sin(x) * t**2

    x = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    t = torch.linspace(0, 2, 6, dtype=torch.float64)
    values = torch.stack([field(x, t[:, None]), 2 * field(x, t[:, None])])
    at = torch.rand(2, 50, 2, generator=seeded(), dtype=torch.float64) * lengths(9.0, 2.0)
    at[0, :2, 1] = lengths(0.0, 2.0)
    at.requires_grad_()
    found = interpolated(values, at, end=2.0)
    expected = field(at[..., 0], at[..., 1]) * lengths(1.0, 2.0)[:, None]
    torch.testing.assert_close(found, expected)
    slopes = [torch.autograd.grad(its.sum(), at, retain_graph=True)[0] for its in (found, expected)]
    torch.testing.assert_close(*slopes)


@pytest.mark.parametrize("points", [16, 15])
def test_interpolation_at_a_point_of_the_grid_is_its_value(points):
    values = drawn(2, 5, points)
    x = torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)
    t = torch.linspace(0, 1, 5, dtype=torch.float64)
    at = torch.stack(torch.meshgrid(x, t, indexing="xy"), -1).flatten(0, 1).expand(2, -1, 2)
    torch.testing.assert_close(interpolated(values, at), values.flatten(1))


def test_turned_fields_are_those_of_turned_equations_and_turn_back():
    fields = make_fields(field_family("advection-diffusion"), 3, seeded(1), times=5, points=32)
    shift = torch.tensor([0.3, 2.0, -1.0])
    sign = torch.tensor([1.0, 1.0, -1.0])
    one = turned(fields.values, shift, sign)
    expected = field_family("advection-diffusion").solve(rolled(fields.inputs, -shift), times=5)
    torch.testing.assert_close(one[:2].double(), expected[:2, :, ::8], atol=1e-5, rtol=0)
    mirrored = expected[2, :, ::8].flip(-1).roll(1, -1)
    torch.testing.assert_close(one[2].double(), mirrored, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned(one, -sign * shift, sign), fields.values, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["burgers-mild", "advection-diffusion"])
def test_a_representative_solves_the_equation_and_gives_its_solution_back(name):
    """v(x, t) on the grid, at the points of u, times the scale, is u: from `canonical`'s own way."""
    family = field_family(name)
    fields = make_fields(family, 6, seeded(2), times=5, points=128)
    known, its = grid_of(family, fields), canonical(family, fields.inputs.double())
    x, t = fields.x.double(), fields.t.double()
    at = torch.cartesian_prod(t, x).flip(1).expand(6, -1, 2)
    back = its.outward(interpolated(known.values, its.inward(at)))
    torch.testing.assert_close(back.float(), fields.values.flatten(1), atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def solved():
    """Solutions without their symmetries: 300 known, 40 for the search, and 40 to test on."""
    family = field_family("advection-diffusion")
    fields = make_fields(family, 380, seeded(3), times=5, points=16)
    every = grid_of(family, fields)
    cuts = [slice(0, 300), slice(300, 340), slice(340, 380)]
    return [KnownFields(*(part[cut] for part in every)) for cut in cuts]


@pytest.fixture(scope="module")
def kernel(solved):
    return fit_kernel(*solved[:2])


def plain_error(known, test):
    """Error of the nearest known solution: a rule without settings."""
    nearest = torch.cdist(test.condition, known.condition).argmin(1)
    return float(relative_error(known.values[nearest], test.values).mean())


def test_the_kernel_predicts_new_solutions(solved, kernel):
    known, _, test = solved
    found = float(relative_error(kernel.on_grid(test.condition), test.values).mean())
    assert found < 0.03 and found < plain_error(known, test) / 5


def test_searched_settings_are_better_on_validation_than_those_of_the_start(solved, kernel):
    known, validation, _ = solved
    parts = Components(known.values)
    start = KernelScores(
        known.condition,
        parts.scores(known.values),
        RivalSettings(torch.full((known.condition.shape[1],), 6.0).double()),
    )
    before, after = (
        float(relative_error(its.on_grid(validation.condition), validation.values).mean())
        for its in (GridField(start, parts, 1.0), kernel)
    )
    assert after < before


def test_nearest_solutions_predict_new_ones(solved):
    pytest.importorskip("scipy")
    known, validation, test = solved
    few = KnownFields(*(part[:25] for part in validation))
    found = fit_nearest(known, few).on_grid(test.condition)
    assert float(relative_error(found, test.values).mean()) < plain_error(known, test) / 2


def test_values_at_points_of_the_grid_are_those_of_the_grid_and_have_gradients(solved, kernel):
    condition = solved[2].condition[:20].double().requires_grad_()
    at = torch.zeros(20, 3, 2, dtype=torch.float64)
    at[:, 0, 1], at[:, 1, 0] = 0.5, math.pi
    found = kernel(condition, at)
    grid = kernel.on_grid(condition)
    expected = torch.stack([grid[:, 2, 0], grid[:, 0, 8], grid[:, 0, 0]], 1)
    torch.testing.assert_close(found, expected)
    (slope,) = torch.autograd.grad(found.sum(), condition)
    step = 1e-5 * drawn(*condition.shape, seed=5)
    with torch.no_grad():
        change = (kernel(condition + step, at) - kernel(condition - step, at)).sum() / 2
    torch.testing.assert_close((slope * step).sum(), change, rtol=1e-4, atol=0)


def test_wrong_shapes_are_named_with_what_fits(solved):
    known, validation, _ = solved
    with pytest.raises(ShapeError, match=r"`known` has conditions of the shape \(3, 9\).* Pass"):
        fit_kernel(known._replace(condition=known.condition[:3]), validation)
    with pytest.raises(ShapeError, match=r"`validation` on one of \(4, 16\).*same `make_fields`"):
        fit_nearest(known, validation._replace(values=validation.values[:, :4]))
    with pytest.raises(ShapeError, match="four times are needed"):
        interpolated(torch.zeros(1, 3, 8), torch.zeros(1, 1, 2))


def test_without_scipy_the_nearest_say_what_to_install(solved, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr("weightloom.apps.fields.rivals.import_module", missing)
    with pytest.raises(MissingExtraError, match=r"needs scipy.*pip install 'weightloom\[digits\]'"):
        fit_nearest(*solved[:2])
