"""Joined low-rank changes against their dense sum, and solved values against numpy."""

import numpy as np
import pytest
import torch
from torch import nn

from weightloom.base import apply_per_task
from weightloom.errors import ConfigError, ShapeError
from weightloom.forms import Factored, Full, LowRank
from weightloom.forms.joined import join, solve_values

OWN = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def piece(rank, seed, own=OWN, tasks=2):
    chance = torch.Generator().manual_seed(seed)
    factors = {
        "up": torch.randn(tasks, own.shape[0], rank, dtype=own.dtype, generator=chance),
        "down": torch.randn(tasks, rank, own.shape[1], dtype=own.dtype, generator=chance),
    }
    return {"weight": Factored(LowRank(rank), own, factors)}


def test_joined_pieces_are_the_sum_of_their_changes_at_any_rank():
    pieces = [piece(3, 1), piece(5, 2), piece(1, 3)]
    joined = join(pieces)
    wanted = OWN + sum(its["weight"].dense() - OWN for its in pieces)
    assert joined["weight"].form == LowRank(9)  # above both sides of the matrix
    torch.testing.assert_close(joined["weight"].dense(), wanted, atol=1e-12, rtol=0)
    base = nn.Linear(3, 4, bias=False).double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(apply_per_task(base, joined, x), x @ wanted.mT)


def test_join_refuses_pieces_that_do_not_belong_together():
    with pytest.raises(ShapeError, match="`pieces` is empty"):
        join([])
    with pytest.raises(ShapeError, match=r"differ in \['bias'\]"):
        join([piece(1, 1), {**piece(1, 1), "bias": torch.zeros(2, 4)}])
    with pytest.raises(ConfigError, match="'weight' of piece 1 is held as Tensor"):
        join([piece(1, 1), {"weight": torch.zeros(2, 4, 3)}])
    full = {"weight": Factored(Full(), OWN, {"change": torch.zeros(2, 4, 3)})}
    with pytest.raises(ConfigError, match=r"is held as Full\(\)"):
        join([full])
    with pytest.raises(ConfigError, match="changes another own value"):
        join([piece(1, 1), piece(1, 1, OWN + 1)])


def test_solved_values_are_those_of_weighted_ridge_regression():
    """Normal equations of numpy, in the space of the keys; more ranks than dimensions."""
    chance = np.random.default_rng(0)
    keys, targets = chance.normal(size=(2, 7, 3)), chance.normal(size=(2, 7, 2))
    weights, ridge = chance.uniform(0.5, 2, size=(2, 7)), 0.3
    values = solve_values(*map(torch.from_numpy, (keys, targets)), ridge, torch.from_numpy(weights))
    for task in range(2):
        left = keys[task].T * weights[task]
        change = np.linalg.solve(left @ keys[task] + ridge * np.eye(3), left @ targets[task])
        np.testing.assert_allclose(keys[task].T @ values[task].numpy(), change, atol=1e-10)


def test_a_memory_of_similar_keys_answers_exactly_only_after_its_values_are_solved():
    angles = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    keys = torch.stack([angles.cos(), angles.sin(), angles**2], 1)[None]
    targets = torch.eye(3, dtype=torch.float64)[None]
    solved = solve_values(keys, targets, ridge=1e-9)
    torch.testing.assert_close(keys @ keys.mT @ solved, targets, atol=1e-6, rtol=0)
    assert (keys @ keys.mT @ targets - targets).abs().max() > 0.5


def test_solve_values_refuses_a_ridge_of_zero_and_unequal_ranks():
    keys = torch.ones(1, 2, 3)
    with pytest.raises(ConfigError, match=r"`ridge=0.0`\. Similar keys have no exact solution"):
        solve_values(keys, keys, 0.0)
    with pytest.raises(ShapeError, match="Pass equal numbers of both"):
        solve_values(keys, keys[:, :1], 0.1)
