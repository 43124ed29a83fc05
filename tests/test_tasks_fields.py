"""Fields of physics: the solver against exact solutions, balances and symmetries."""

import math

import pytest
import torch

from weightloom.errors import ConfigError, ShapeError
from weightloom.tasks.fields import (
    BurgersFields,
    draw_points,
    field_family,
    make_fields,
    relative_error,
    rolled,
)

NAMES = ["burgers", "burgers-mild", "advection-diffusion"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def circle(points):
    return torch.arange(points, dtype=torch.float64) * (2 * math.pi / points)


def cole_hopf(inputs, x, t):
    """Exact solution of Burgers' equation by quadrature of the formula of Cole (1951) and Hopf (1950).

    w = b u obeys w_t + w w_x = ν w_xx, so w = ∫ (x - y)/t e^{-G/2ν} dy / ∫ e^{-G/2ν} dy with
    G(y) = ∫_0^y w(s, 0) ds + (x - y)² / 2t.
    """
    speed, viscosity, k = inputs[0], inputs[1].exp(), torch.arange(1, 5)
    y = x[:, None] + torch.linspace(-12, 12, 24_001, dtype=torch.float64)
    angle = y[..., None] * k
    area = speed * ((angle.sin() * inputs[2:6] - angle.cos() * inputs[6:]) / k).sum(-1)
    weight = torch.softmax(-(area + (x[:, None] - y) ** 2 / (2 * t)) / (2 * viscosity), 1)
    return (weight * (x[:, None] - y) / t).sum(1) / speed


@pytest.mark.parametrize("viscosity", [0.03, 0.1, 0.3])
def test_burgers_equals_the_exact_solution_of_cole_and_hopf(viscosity):
    inputs = field_family("burgers").draw(2, seeded(1))
    inputs[:, 1] = math.log(viscosity)
    inputs[:, 0] = torch.tensor([1.5, 0.5])
    solved = field_family("burgers").solve(inputs, points=512, steps=384, times=3)
    x = circle(512)[::32]
    for number in range(2):
        for row, t in ((1, 0.5), (2, 1.0)):
            exact = cole_hopf(inputs[number], x, t)
            torch.testing.assert_close(solved[number, row, ::32], exact, atol=2e-5, rtol=0)


def test_a_mode_of_advection_and_diffusion_turns_and_decays():
    inputs = torch.zeros(1, 10, dtype=torch.float64)
    inputs[0, :2] = torch.tensor([1.3, math.log(0.07)], dtype=torch.float64)
    inputs[0, 8] = 1.0  # sin 3x
    solved = field_family("advection-diffusion").solve(inputs, points=64, steps=4, times=5)
    t = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    exact = torch.exp(-0.07 * 9 * t) * torch.sin(3 * (circle(64) - 1.3 * t))
    torch.testing.assert_close(solved[0], exact, atol=1e-13, rtol=0)


def test_the_error_of_a_time_step_falls_with_its_fourth_power():
    family = BurgersFields(viscosity=(0.2, 0.3))
    inputs = family.draw(3, seeded(2))
    fine, *coarse = (
        family.solve(inputs, points=128, steps=steps, times=2)[:, 1]
        for steps in (1024, 32, 64, 128)
    )
    errors = [float((one - fine).norm()) for one in coarse]
    assert 12 < errors[0] / errors[1] < 20 and 12 < errors[1] / errors[2] < 20


@pytest.mark.parametrize("name", NAMES)
def test_energy_falls_by_the_work_of_viscosity_and_the_mean_stays(name):
    """d/dt ∫ u² / 2 = -ν ∫ u_x², for both equations on a circle."""
    family = field_family(name)
    inputs = family.draw(4, seeded(3))
    values = family.solve(inputs, times=193)
    slopes = torch.fft.irfft(torch.fft.rfft(values) * 1j * torch.arange(129), n=256)
    energy = values.square().mean(-1) / 2
    work = torch.trapezoid(slopes.square().mean(-1), dx=1 / 192) * inputs[:, 1].exp()
    torch.testing.assert_close(energy[:, 0] - energy[:, -1], work, rtol=2e-3, atol=0)
    assert values.mean(-1).abs().max() < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_a_turned_equation_has_the_turned_solution(name):
    family = field_family(name)
    inputs = family.draw(3, seeded(4))
    steps = torch.tensor([5, 0, 100])
    turned = family.solve(rolled(inputs, steps.double() * (2 * math.pi / 128)), points=128, times=3)
    for one, other, step in zip(
        turned, family.solve(inputs, points=128, times=3), steps.tolist(), strict=True
    ):
        torch.testing.assert_close(one, other.roll(step, 1), atol=1e-11, rtol=0)


def test_any_angle_turns_the_initial_state():
    family, shift = field_family("burgers"), torch.tensor([0.3, -2.0, 9.9], dtype=torch.float64)
    inputs = family.draw(3, seeded(5))
    x = circle(40)
    expected = family.initial(inputs, x - shift[:, None])
    torch.testing.assert_close(family.initial(rolled(inputs, shift), x), expected)


def test_a_solution_starts_at_its_initial_state_and_kept_points_are_its_own():
    family = field_family("burgers")
    fields = make_fields(family, 5, seeded(6), times=9, points=32)
    assert fields.values.shape == (5, 9, 32) and fields.values.dtype == torch.float32
    assert fields.t.tolist() == [step / 8 for step in range(9)]
    torch.testing.assert_close(fields.values[:, 0], family.initial(fields.inputs, fields.x))
    whole = family.solve(fields.inputs, times=9)[..., ::8].float()
    torch.testing.assert_close(fields.values, whole, atol=1e-4, rtol=0)


def test_drawn_points_lie_on_the_turned_solutions():
    family = field_family("advection-diffusion")
    fields = make_fields(family, 6, seeded(7), times=5)
    points = draw_points(fields, torch.tensor([4, 1, 4]), 50, seeded(8))
    speed, decay = points.inputs[:, :1], points.inputs[:, 1:2].exp()
    x, t = points.at.unbind(-1)
    k = torch.arange(1, 5)
    angle = (x - speed * t)[..., None] * k
    a, b = points.inputs[:, None, 2:6], points.inputs[:, None, 6:]
    waves = (a * angle.cos() + b * angle.sin()) * torch.exp(-(decay * t)[..., None] * k**2)
    torch.testing.assert_close(points.values[..., 0], waves.sum(-1), atol=2e-5, rtol=0)
    assert points.at[..., 0].min() >= 0 and points.at[..., 0].max() <= 2 * math.pi
    still = draw_points(fields, torch.tensor([4]), 50, seeded(8), roll=False)
    assert torch.equal(still.inputs, fields.inputs[4:5])


def test_coefficients_lie_in_the_range_or_beyond_it():
    family = field_family("burgers")
    inside = family.draw(2000, seeded(9))
    beyond = family.draw(2000, seeded(9), beyond=True)
    speed, viscosity = inside[:, 0], inside[:, 1].exp()
    assert 0.5 <= speed.min() < 0.51 and 1.49 < speed.max() <= 1.5
    assert 0.03 <= viscosity.min() < 0.031 and 0.29 < viscosity.max() <= 0.3
    speed, viscosity = beyond[:, 0], beyond[:, 1].exp()
    assert (((speed >= 0.25) & (speed <= 0.5)) | ((speed >= 1.5) & (speed <= 2))).all()
    low, high = viscosity <= 0.03 + 1e-9, viscosity >= 0.3 - 1e-9
    assert (low | high).all() and viscosity.min() >= 0.015 and viscosity.max() <= 0.6
    assert float(low.double().mean()) == pytest.approx(0.5, abs=0.05)
    assert torch.equal(inside[:, 2:], beyond[:, 2:])


@pytest.mark.parametrize("name", NAMES)
def test_networks_read_inputs_of_mean_0_and_variance_1(name):
    family = field_family(name)
    inputs = family.draw(20_000, seeded(10))
    read = family.normalised(inputs)
    torch.testing.assert_close(family.from_normalised(read), inputs)
    assert read[:, :2].abs().max() == pytest.approx(math.sqrt(3), abs=1e-3)
    assert read.shape == (20_000, family.condition_dim)
    assert read.mean(0).abs().max() < 0.04 and (read.var(0) - 1).abs().max() < 0.05


def test_initial_states_have_a_mean_square_of_1_on_average():
    family = field_family("burgers")
    states = family.initial(family.draw(4000, seeded(11)), circle(32))
    assert float(states.square().mean()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_solutions_have_exact_derivatives_by_their_inputs(name):
    family = field_family(name)
    inputs = family.draw(2, seeded(12)).requires_grad_()

    def solve(inputs):
        return family.solve(inputs, points=16, steps=4, times=3)

    assert torch.autograd.gradcheck(solve, (inputs,))


def test_the_relative_error_of_a_scaled_field_is_the_scale():
    values = torch.randn(3, 4, 5, generator=seeded())
    scales = torch.tensor([1.1, 1.0, 0.5])
    found = relative_error(values * scales[:, None, None], values)
    torch.testing.assert_close(found, torch.tensor([0.1, 0.0, 0.5]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: field_family("burger"), "`burger` is no family .* Did you mean `burgers`"),
        (lambda: make_fields(field_family("burgers"), 0, seeded()), "`count=0`.* Pass a number"),
        (
            lambda: make_fields(field_family("burgers"), 1, seeded(), points=48),
            "`points=48`.*Pass a divisor",
        ),
        (
            lambda: make_fields(field_family("burgers"), 1, seeded(), times=1),
            "`times=1`.* from 2",
        ),
        (
            lambda: field_family("burgers").solve(torch.zeros(1, 10), steps=100),
            r"`steps=100` with `times=33`.*Pass `steps=192`",
        ),
        (
            lambda: field_family("burgers").solve(torch.zeros(1, 10), points=8),
            "`points=8`.*even number from 14",
        ),
        (lambda: BurgersFields(viscosity=(0.3, 0.03)), r"`viscosity=\(0.3, 0.03\)`.*smaller"),
    ],
)
def test_wrong_options_are_named_with_what_fits(call, words):
    with pytest.raises(ConfigError, match=words):
        call()


def test_wrong_shapes_are_named_with_what_fits():
    with pytest.raises(ShapeError, match=r"`inputs` has the shape \(3, 9\).*\(fields, 10\)"):
        rolled(torch.zeros(3, 9), torch.zeros(3))
    with pytest.raises(ShapeError, match=r"`shift` has the shape .* holds 3 fields.* 3 angles"):
        rolled(torch.zeros(3, 10), torch.zeros(2))
