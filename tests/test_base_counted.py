"""What is counted to choose an engine, and that nothing of it changes a number."""

import pytest
import torch
from torch import Tensor, nn

from cases import FORMS
from references import copies
from weightloom import Form, Full, LowRank, Params, RowScale, choose_forms, mlp, per_task
from weightloom.forms.calls import GROUPED_BYTES, TURN_BYTES
from weightloom.forms.factored import Factored
from weightloom.forms.sums import LARGE, add_to_own, sum_of_tasks


def net(channels: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2))


def generated(base: nn.Module, form: Form, tasks: int) -> Params:
    values = {}
    for name, its in choose_forms(base, "*.weight", form).items():
        own = base.get_parameter(name)
        shape = tuple(own.shape)
        factors = {
            n: torch.randn(tasks, *s, dtype=own.dtype) for n, s in its.factor_shapes(shape).items()
        }
        values[name] = its.value(
            own, factors, {n: value.to(own.dtype) for n, value in its.shared(shape).items()}
        )
    return Params(values)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("side", [2, 16])  # kernels larger, and smaller, than what they convolve
def test_kernels_that_are_built_give_what_their_factors_give(form, side):
    base = net().double()
    params, x = generated(base, form, 3), torch.randn(3, 2, 3, side, side, dtype=torch.float64)
    built = {
        n: value.dense() if isinstance(value, Factored) else value for n, value in params.items()
    }
    expected = torch.stack([one(its) for one, its in zip(copies(base, built), x, strict=True)])
    for engine in ("auto", "vmap", "aligned", "loop"):
        found = per_task(base, engine=engine)(params, x)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def largest(base: nn.Module, x: Tensor) -> list[int]:
    """Bytes of input or output of each convolution, for one task: by hand."""
    found = []
    for layer in base:
        y = layer(x)
        if isinstance(layer, nn.Conv2d):
            found.append(max(x.numel(), y.numel()) * x.element_size())
        x = y
    return found


@pytest.mark.parametrize("side", [4, 16, 64, 128])
def test_as_many_tasks_are_folded_as_stay_in_the_cache(side):
    base, tasks = net(8), 24
    params, x = generated(base, LowRank(2), tasks), torch.randn(tasks, 4, 3, side, side)
    run = per_task(base)
    run.explain(params, x[:, :, :, :8, :8])  # the plan is made for another size
    choice, one = run.explain(params, x), largest(base, x[0])
    if sum(one) / len(one) > TURN_BYTES:
        assert choice.engine == "loop"
        return
    at_once = choice.at_once or tasks
    assert choice.engine == "aligned"
    assert at_once * max(one) <= GROUPED_BYTES + max(one)
    assert at_once == tasks or (at_once + 1) * max(one) * 1.5 > GROUPED_BYTES


def test_pieces_give_what_all_at_once_give():
    base, tasks = net(8).double(), 30
    params, x = (
        generated(base, RowScale(), tasks),
        torch.randn(tasks, 4, 3, 24, 24, dtype=torch.float64),
    )
    run = per_task(base)
    assert run.explain(params, x).at_once is not None
    torch.testing.assert_close(
        run(params, x), per_task(base, engine="vmap")(params, x), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_a_sum_over_tasks_follows_memory_and_gives_the_sum(transposed):
    x = torch.randn(3, 5, 7, dtype=torch.float64)
    x = x.mT if transposed else x
    torch.testing.assert_close(sum_of_tasks(x), x.sum(0), rtol=1e-12, atol=1e-12)


def test_gradients_of_what_is_shared_are_those_of_a_plain_sum():
    own = torch.randn(600, 300, dtype=torch.float64, requires_grad=True)
    change = torch.randn(3, 600, 300, dtype=torch.float64, requires_grad=True)
    assert change.numel() > LARGE
    weights = torch.randn(3, 300, 600, dtype=torch.float64).mT
    ours = torch.autograd.grad(
        (add_to_own(own, change).tanh() * weights).sum(), (own, change), create_graph=True
    )
    plain = torch.autograd.grad(
        ((own + change).tanh() * weights).sum(), (own, change), create_graph=True
    )
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    twice = [torch.autograd.grad(its[0].square().sum(), change)[0] for its in (ours, plain)]
    torch.testing.assert_close(*twice, rtol=1e-10, atol=1e-10)


def test_a_large_sum_can_be_mapped():
    own, change = torch.randn(600, 300, requires_grad=True), torch.randn(2, 600, 300)
    assert torch.func.vmap(lambda its: add_to_own(own, its))(change[:, None]).shape == (
        2,
        1,
        600,
        300,
    )


def test_rows_that_are_made_alike_are_rows():
    """Token types, first states: the same for every row of the batch, whatever its size."""

    class Starts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("first", torch.randn(1, 4))

        def forward(self, x: Tensor) -> Tensor:
            state = torch.zeros(x.shape[0], 4, dtype=x.dtype) + self.first.expand(x.shape[0], -1)
            last = torch.arange(x.shape[0])
            return self.layer(x + state)[last, :]

    base = Starts().double()
    params, x = generated(base, Full(), 5), torch.randn(5, 3, 4, dtype=torch.float64)
    run = per_task(base)
    assert run.explain(params, x).engine == "aligned"
    torch.testing.assert_close(
        run(params, x), per_task(base, engine="loop")(params, x), rtol=1e-10, atol=1e-10
    )


def test_a_constant_of_as_many_rows_as_there_are_is_no_row():
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("each", torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.each  # the batch has three rows

    base = Adds().double()
    params, x = generated(base, Full(), 5), torch.randn(5, 3, 4, dtype=torch.float64)
    assert per_task(base).explain(params, x).engine == "vmap"
    expected = per_task(base, engine="loop")(params, x)
    torch.testing.assert_close(per_task(base)(params, x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tasks", [1, 2])
def test_few_tasks_choose_as_well(tasks):
    base = mlp([3, 4, 2])
    params, x = generated(base, LowRank(1), tasks), torch.randn(tasks, 2, 3)
    torch.testing.assert_close(per_task(base)(params, x), per_task(base, engine="loop")(params, x))
