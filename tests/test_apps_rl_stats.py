"""Interquartile means and their intervals, against a trimmed mean by hand and against theory."""

import numpy as np
import pytest
import torch

from weightloom.runs.stats import interquartile


def test_the_middle_half_is_that_of_numpy_where_it_can_be_cut_evenly():
    returns = np.random.default_rng(0).normal(size=(3, 8))
    expected = np.sort(returns.flatten())[6:18].mean()
    assert interquartile(returns.tolist())["mean"] == pytest.approx(expected)


def test_numbers_at_the_ends_count_by_their_share():
    assert interquartile([[0.0, 1.0, 2.0]])["mean"] == pytest.approx(1.0)
    assert interquartile([[1.0, 2.0, 10.0, 20.0, 100.0]])["mean"] == pytest.approx(
        (0.75 * 2 + 10 + 0.75 * 20) / 2.5
    )


def test_one_wild_return_does_not_move_it():
    calm = torch.linspace(0, 1, 40).reshape(2, 20)
    wild = calm.clone()
    wild[0, 0] = -1e9
    assert interquartile(calm.tolist())["mean"] == pytest.approx(
        interquartile(wild.tolist())["mean"], abs=1e-9
    )


def test_the_interval_is_about_as_wide_as_seeds_are_apart():
    """Seeds that differ by a constant: the interval must see it although there are many contexts."""
    noise = torch.randn(5, 200, generator=torch.Generator().manual_seed(0))
    alike, apart = (
        interquartile(noise.tolist()),
        interquartile((noise + torch.arange(5.0)[:, None]).tolist()),
    )
    assert alike["low"] < alike["mean"] < alike["high"] and alike["high"] - alike["low"] < 0.4
    assert apart["high"] - apart["low"] > 1
