"""Scalars in known ranges become codes of one norm: against the formula, number by number."""

import math
import re

import pytest
import torch

from weightloom.conditions import MagnitudeInvariantEncoding
from weightloom.errors import ConfigError, ShapeError

LOW, HIGH, LOG = [1e-4, -2.0, 0.0], [1e-1, 3.0, 0.7], [True, False, False]


def build(**options):
    return MagnitudeInvariantEncoding(LOW, HIGH, LOG, **options).double()


def values(tasks=6):
    """Uniform in each range."""
    low, high = torch.tensor(LOW, dtype=torch.float64), torch.tensor(HIGH, dtype=torch.float64)
    return low + (high - low) * torch.rand(tasks, 3, dtype=torch.float64)


def test_it_equals_the_formula_number_by_number():
    given = values()
    found = build()(given)
    for task, row in enumerate(given.tolist()):
        for scalar, (value, low, high, log) in enumerate(zip(row, LOW, HIGH, LOG, strict=True)):
            g = (
                math.log(value / low) / math.log(high / low)
                if log
                else (value - low) / (high - low)
            )
            assert found[task, scalar].item() == pytest.approx(math.cos(g * math.pi / 2), abs=1e-6)
            assert found[task, 3 + scalar].item() == pytest.approx(
                math.sin(g * math.pi / 2), abs=1e-6
            )


def test_the_norm_is_the_root_of_the_count_whatever_the_values():
    norms = build()(values(100)).norm(dim=1)
    torch.testing.assert_close(
        norms, torch.full((100,), math.sqrt(3), dtype=torch.float64), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("log", [True, False])
def test_the_ends_and_the_middle_of_a_range_are_where_they_should_be(log):
    middle = 1e-2 if log else (1e-3 + 1e-1) / 2
    encode = MagnitudeInvariantEncoding([1e-3], [1e-1], log).double()
    found = encode(torch.tensor([[1e-3], [middle], [1e-1]], dtype=torch.float64))
    half = math.sqrt(0.5)
    expected = torch.tensor([[1.0, 0.0], [half, half], [0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ranges", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_a_range_belong_to_it_in_either_precision(ranges, dtype):
    low, high = [0.1, 1e-6, -0.7, 1000.0], [0.7, 0.3, -0.1, 1000.1]
    encode = MagnitudeInvariantEncoding(low, high).to(ranges)
    assert encode(torch.tensor([low, high], dtype=dtype)).shape == (2, 8)


def test_the_gradient_agrees_with_finite_differences_also_where_the_logarithm_does_not_exist():
    given = values()
    given[0, 1], given[1, 1] = 0.0, -1.0
    assert torch.autograd.gradcheck(build(), given.requires_grad_())


@pytest.mark.parametrize(
    ("task", "scalar", "value"), [(1, 0, 0.0), (0, 1, 3.01), (2, 2, math.nan), (2, 0, math.inf)]
)
def test_a_value_outside_its_range_is_named_and_the_advice_works(task, scalar, value):
    given = values(3)
    given[task, scalar] = value
    message = rf"`values\[{task}, {scalar}\]` is .*range of scalar {scalar} is .*`clamp=True`"
    with pytest.raises(ConfigError, match=message) as caught:
        build()(given)
    assert f"{LOW[scalar]:g} to {HIGH[scalar]:g}" in str(caught.value)
    assert torch.isfinite(build(clamp=True)(given)).all() or math.isnan(value)


def test_clamped_values_get_the_code_of_the_end_they_lie_beyond():
    beyond = torch.tensor([[0.0, -9.0, -1.0], [1.0, 9.0, 9.0]], dtype=torch.float64)
    torch.testing.assert_close(
        build(clamp=True)(beyond), build()(torch.tensor([LOW, HIGH], dtype=torch.float64))
    )
    inside = values()
    assert torch.equal(build(clamp=True)(inside), build()(inside))


def test_another_count_is_refused_and_the_advice_works():
    with pytest.raises(
        ShapeError, match=r"shape \(4, 2\)\..*ranges for 3 scalars.*Pass .* \(tasks, 3\)"
    ):
        build()(values(4)[:, :2])
    assert build()(values(4)).shape == (4, build().condition_dim)
    assert build()(values(0)).shape == (0, 6)


@pytest.mark.parametrize(
    ("low", "high", "log", "message"),
    [
        ([0.0], [1.0, 2.0], False, "`low` holds 1 numbers, `high` 2 and `log` 1"),
        ([0.0], [1.0], [True, False], "`low` holds 1 numbers, `high` 1 and `log` 2"),
        ([], [], False, "at least one scalar is encoded"),
        ([0.0, 1.0], [1.0, 1.0], False, r"scalar 1 is 1 to 1\..*the lower first"),
        ([0.0], [math.inf], False, "two finite ends"),
        ([math.nan], [1.0], False, "two finite ends"),
        ([0.0], [1.0], True, r"`log=True`.*Pass a positive `low\[0\]`"),
    ],
)
def test_ranges_that_cannot_work_are_refused_when_it_is_built(low, high, log, message):
    with pytest.raises(ConfigError, match=message):
        MagnitudeInvariantEncoding(low, high, log)


def test_the_ranges_travel_with_the_state_and_nothing_is_trained():
    encode = build()
    other = MagnitudeInvariantEncoding([0.5] * 3, [1.0] * 3).double()
    other.load_state_dict(encode.state_dict())
    given = values()
    assert torch.equal(other(given), encode(given))
    assert not list(encode.parameters()) and re.fullmatch(
        "low,high,log", ",".join(encode.state_dict())
    )
