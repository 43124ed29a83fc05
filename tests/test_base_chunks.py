"""Some tasks at a time: the same numbers, and memory that does not grow with tasks."""

import pytest
import torch
from torch import nn

from benchmarks.race.timing import peak_memory_bytes
from weightloom.base import apply_per_task, in_chunks
from weightloom.errors import ConfigError, ShapeError
from weightloom.hypernets import MLPHyperNetwork
from weightloom.networks import mlp


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def run_of(hyper):
    return lambda condition, x: apply_per_task(hyper.base, hyper(condition), x)


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 10])
def test_values_and_gradients_are_those_of_all_tasks_at_once(chunk_size):
    hyper = MLPHyperNetwork(mlp([5, 6, 2]), 4).double()
    condition, x = torch.randn(7, 4).double().requires_grad_(), torch.randn(7, 3, 5).double()
    leaves = [condition, *hyper.parameters()]
    whole, chunked = (
        run_of(hyper)(condition, x),
        in_chunks(run_of(hyper), condition, x, chunk_size=chunk_size),
    )
    weights = torch.randn_like(whole)
    close(chunked, whole)
    truth, found = (torch.autograd.grad((y * weights).sum(), leaves) for y in (whole, chunked))
    close(found, truth)


def test_trees_go_in_and_come_out_and_constants_are_passed_on():
    params, x = {"weight": torch.randn(5, 2, 3)}, torch.randn(5, 4, 3)

    def run(params, x, name):
        return {
            "y": apply_per_task(nn.Linear(3, 2, bias=False), params, x),
            "tasks": x[:, 0, 0],
        }, params

    outputs, same = in_chunks(run, params, x, "any", chunk_size=2)
    assert torch.equal(same["weight"], params["weight"]) and torch.equal(
        outputs["tasks"], x[:, 0, 0]
    )
    close(outputs["y"], x @ params["weight"].mT, 1e-6)


def test_dropout_is_drawn_again_as_it_was_in_the_backward_pass():
    x = torch.ones(6, 50).requires_grad_()
    y = in_chunks(lambda x: nn.functional.dropout(x, 0.5), x, chunk_size=2)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient != 0, y != 0)


@pytest.mark.parametrize("train", [False, True])
def test_memory_does_not_grow_with_the_number_of_tasks(train):
    hyper = MLPHyperNetwork(mlp([32, 64, 64, 1]), 4)

    def reduced(condition, x):
        return apply_per_task(hyper.base, hyper(condition), x).square().mean((1, 2))

    def measure(tasks):
        condition, x = torch.randn(tasks, 4), torch.randn(tasks, 2, 32)

        def step():
            with torch.set_grad_enabled(train):
                loss = in_chunks(reduced, condition, x, chunk_size=8).sum()
            if train:
                loss.backward()

        step()
        return peak_memory_bytes(step)

    few, many = measure(64), measure(512)
    assert many < 1.25 * few + 400_000, (few, many)


def test_chunks_of_none_and_inputs_that_disagree_are_refused_and_the_advice_works():
    with pytest.raises(ConfigError, match=r"`chunk_size=0` is below 1.*Pass 1 or more"):
        in_chunks(torch.exp, torch.ones(3), chunk_size=0)
    with pytest.raises(
        ShapeError,
        match=r"The inputs hold \[3, 4\] tasks.*tensors that all tasks share inside the function",
    ):
        in_chunks(torch.add, torch.ones(3), torch.ones(4), chunk_size=2)
    assert torch.equal(
        in_chunks(lambda x: x + torch.ones(()), torch.ones(3), chunk_size=2), 2 * torch.ones(3)
    )
