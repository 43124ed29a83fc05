"""Operations counted against closed forms."""

import time
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from benchmarks.race import contests
from benchmarks.race.roofline import SIDE, flops, product_rate
from benchmarks.race.workloads import cnn
from weightloom.networks import mlp


def test_a_layer_costs_two_products_more_backward_than_forward_and_the_first_only_one():
    """Forward 2 b i o; backward to weights 2 b i o, and to inputs 2 b i o where there is a layer below."""
    sizes, batch = [5, 7, 11, 3], 13
    net, x = mlp(sizes), torch.randn(batch, sizes[0])
    products = [2 * batch * i * o for i, o in pairwise(sizes)]
    assert flops(lambda: net(x)) == sum(products)
    step = lambda: torch.autograd.grad(net(x).sum(), list(net.parameters()))  # noqa: E731
    assert flops(step) == 3 * sum(products) - products[0]


def test_a_convolution_costs_two_operations_for_each_weight_and_pixel():
    images = 2
    first, second, head = 2 * 9 * 1 * 8 * 256, 2 * 9 * 8 * 16 * 64, 2 * 256 * 10
    net = cnn()
    assert flops(lambda: net(torch.randn(images, 1, 16, 16))) == images * (first + second + head)


def test_attention_on_a_cpu_is_counted():
    heads, tokens, width = 2, 16, 8
    x = torch.randn(1, heads, tokens, width, requires_grad=True)
    product = 2 * heads * tokens * tokens * width
    assert flops(lambda: F.scaled_dot_product_attention(x, x, x)) == 2 * product
    both = flops(lambda: torch.autograd.grad(F.scaled_dot_product_attention(x, x, x).sum(), x))
    assert both == (2 + 5) * product, "backward computes the scores once more"


def test_what_a_workload_needs_is_what_its_base_computes():
    tasks, batch, width = 2, 3, 16
    contest = contests.low_rank(tasks, batch, width)
    product = 2 * tasks * batch * width * width
    assert contest.counted and flops(contest.steps[contest.counted]) == 3 * 3 * product - product


@pytest.mark.parametrize(
    "build", [lambda: contests.small_mlp(2), lambda: contests.kernels("cnn", 2)]
)
def test_the_contender_that_is_counted_is_there(build):
    contest = build()
    assert contest.counted in contest.steps and flops(contest.steps[contest.counted]) > 0


def test_the_rate_is_that_of_one_product():
    assert product_rate(time.process_time, rounds=2) > 1e8
    ticks = iter(range(100))
    assert product_rate(lambda: 0.5 * next(ticks), rounds=2) == 2 * SIDE**3 / 0.5
