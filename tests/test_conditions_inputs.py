"""Statistics of the inputs of a support set."""

import numpy as np
import pytest
import torch

from weightloom.conditions import input_statistics, statistics_of
from weightloom.errors import ConfigError, ShapeError

TASKS, POINTS, INPUTS, CLASSES = 2, 11, 6, 4


@pytest.fixture
def drawn():
    torch.manual_seed(0)
    y = torch.randint(CLASSES - 1, (TASKS, POINTS))  # the last class is never shown
    return torch.randn(TASKS, POINTS, INPUTS).double(), y, torch.rand(TASKS, POINTS) < 0.7


def test_statistics_are_those_of_a_slow_reference(drawn):
    x, y, mask = drawn
    known = input_statistics(x, y, mask, classes=CLASSES, quantiles=5, least_spread=1e-9)
    assert known.tokens.shape[2] == statistics_of(CLASSES, 5)
    for task in range(TASKS):
        kept, labels = x[task][mask[task]].numpy(), y[task][mask[task]].numpy()
        mean, spread = kept.mean(0), kept.std(0)
        z = (kept - mean) / spread
        middle = np.sort(spread)[(INPUTS - 1) // 2]
        np.testing.assert_allclose(known.mean[task], mean)
        np.testing.assert_allclose(known.scale[task], spread)
        correlation = z.T @ z / len(z)
        for relation, expected in zip(
            known.relations[task], (correlation**2, correlation), strict=True
        ):
            np.testing.assert_allclose(
                relation, expected / (np.abs(expected).sum(1, keepdims=True) + 1e-3)
            )
        for j in range(INPUTS):
            shown = [np.any(labels == c) for c in range(CLASSES)]
            means = [z[labels == c, j].mean() if there else 0.0 for c, there in enumerate(shown)]
            quantiles = np.quantile(z[:, j], np.linspace(0, 1, 5))
            expected = [*means, *shown, np.log(spread[j] / middle + 1e-3), *quantiles, 1 / len(z)]
            np.testing.assert_allclose(
                known.tokens[task, j], np.array(expected, dtype=float), atol=1e-12
            )


def test_masked_points_and_the_order_of_points_do_not_matter(drawn):
    x, y, mask = drawn
    order = torch.randperm(POINTS)
    spoilt = x.masked_fill(~mask[..., None], 1e6)
    for one, other in zip(
        input_statistics(x, y, mask, classes=CLASSES),
        input_statistics(spoilt[:, order], y[:, order], mask[:, order], classes=CLASSES),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_gain_sign_and_offset_of_an_input_are_taken_out(drawn):
    x, y, _ = drawn
    gain, offset = (
        torch.tensor([3.0, 0.2, 1.0, 5.0, 1.0, 2.0]).double(),
        torch.randn(INPUTS).double(),
    )
    one = input_statistics(x, y, classes=CLASSES, least_spread=1e-9)
    other = input_statistics(gain * x + offset, y, classes=CLASSES, least_spread=1e-9)
    torch.testing.assert_close(one.relations, other.relations)
    spread = 2 * CLASSES  # the only statistic that sees a gain
    rest = [place for place in range(one.tokens.shape[2]) if place != spread]
    torch.testing.assert_close(one.tokens[..., rest], other.tokens[..., rest])
    negated = input_statistics(-x, y, classes=CLASSES)
    torch.testing.assert_close(
        negated.tokens[..., :CLASSES],
        -input_statistics(x, y, classes=CLASSES).tokens[..., :CLASSES],
    )


def test_unknown_labels_leave_all_that_needs_none(drawn):
    x, y, _ = drawn
    known = input_statistics(x, torch.full_like(y, -1), classes=CLASSES)
    assert not known.tokens[..., : 2 * CLASSES].any()
    labelled = input_statistics(x, y, classes=CLASSES)
    torch.testing.assert_close(known.relations, labelled.relations)
    torch.testing.assert_close(
        known.tokens[..., 2 * CLASSES :], labelled.tokens[..., 2 * CLASSES :]
    )


@pytest.mark.parametrize("x", [torch.zeros(1, 3, 4), torch.ones(1, 3, 4), torch.eye(3, 4)[None]])
def test_inputs_that_never_change_stay_finite_and_so_do_empty_support_sets(x):
    for mask in (None, torch.zeros(1, 3, dtype=torch.bool)):
        for value in input_statistics(x, torch.tensor([[0, 1, 1]]), mask, classes=2):
            assert value.isfinite().all()


def test_what_does_not_fit_is_refused(drawn, unchecked):
    x, y, mask = drawn
    with pytest.raises(ShapeError, match=r"`classes=3`"):
        input_statistics(x, y, classes=2)
    with pytest.raises(ShapeError, match=r"x.flatten\(2\)"):
        input_statistics(x[:, :, None], y, classes=CLASSES)
    with pytest.raises(ShapeError, match="`support_mask` "):
        input_statistics(x, y, mask[:, :2], classes=CLASSES)
    with pytest.raises(ConfigError, match="`classes=0`"):
        input_statistics(x, y, classes=0)
