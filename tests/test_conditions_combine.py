"""Parts of a condition: whichever are there, each task is read by itself and what is absent is not read at all."""

import math
from functools import partial

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from weightloom.conditions import (
    CombinedCondition,
    DeepSets,
    MagnitudeInvariantEncoding,
    SupportAttention,
    TaskEmbedding,
)

TASKS, DIM = 5, 16
NAMES = ("task", "support", "attention", "rates", "text")


def build(seed=0):
    """Every kind of part, in a generic state."""
    torch.manual_seed(seed)
    parts = {
        "task": TaskEmbedding(TASKS, 3),
        "support": DeepSets(2, 1, condition_dim=8),
        "attention": SupportAttention(2, 1, condition_dim=8),
        "rates": MagnitudeInvariantEncoding([1e-4, 0.0], [1e-1, 1.0], [True, False]),
        "text": 7,
    }
    combined = CombinedCondition(parts, DIM).double()
    with torch.no_grad():
        for parameter in combined.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return combined


def everything(tasks=TASKS):
    def support():
        return (
            torch.randn(tasks, 6, 2).double(),
            torch.randn(tasks, 6, 1).double(),
            torch.rand(tasks, 6) < 0.7,
        )

    rates = 1e-3 + 0.05 * torch.rand(tasks, 2, dtype=torch.float64)
    text = torch.randn(tasks, 7, dtype=torch.float64)
    return {
        "task": torch.arange(tasks),
        "support": support(),
        "attention": support(),
        "rates": rates,
        "text": text,
    }


def rows(given, chosen):
    return tree_map(lambda value: value[chosen], given)


def ragged():
    """Which task has which part: one has all, one has none, and each part is there and absent."""
    present = {
        name: torch.arange(TASKS) != position for position, name in enumerate(reversed(NAMES))
    }
    present["text"] = torch.tensor([False, True, True, False, False])
    for mask in present.values():
        mask[3], mask[4] = False, True
    return present


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def by_hand(combined, given, present, task):
    """The sum of parts for one task: each projected and divided by its root mean square, or its learned vector."""
    total = 0
    for name, part in combined.parts.items():
        if name not in given or not present.get(name, torch.ones(TASKS, dtype=torch.bool))[task]:
            total = total + part.absent
            continue
        one = rows({name: given[name]}, slice(task, task + 1))[name]
        code = part.encoder(*one)[0] if isinstance(one, tuple) else part.encoder(one)[0]
        said = part.project.weight @ code + (0 if part.project.bias is None else part.project.bias)
        total = total + part.norm.weight * said / ((said**2).mean() + 1e-5).sqrt()
    return total / math.sqrt(len(combined.parts))


@pytest.mark.parametrize(
    "given", [NAMES, *[(name,) for name in NAMES], ("task", "text")], ids="-".join
)
def test_it_equals_a_sum_over_parts_written_out(given):
    combined, values = build(), everything()
    values = {name: values[name] for name in given}
    for present in ({}, {name: mask for name, mask in ragged().items() if name in given}):
        found = combined(present=present, **values)
        assert found.shape == (TASKS, DIM)
        for task in range(TASKS):
            close(found[task], by_hand(combined, values, present, task))


@pytest.mark.parametrize("masked", [True, False])
def test_a_task_alone_gets_what_it_gets_in_company(masked):
    combined, values, present = build(), everything(), ragged() if masked else {}
    together = combined(present=present, **values)
    for task in range(TASKS):
        one = slice(task, task + 1)
        close(combined(present=rows(present, one), **rows(values, one))[0], together[task])


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_part_is_the_same_as_none_and_as_not_given(name):
    combined, values = build(), everything()
    masked = combined(present={name: torch.zeros(TASKS, dtype=torch.bool)}, **values)
    close(combined(**{**values, name: None}), masked)
    values.pop(name)
    close(combined(**values), masked)


def test_present_everywhere_is_the_same_as_no_mask():
    combined, values = build(), everything()
    close(
        combined(present={name: torch.ones(TASKS, dtype=torch.bool) for name in NAMES}, **values),
        combined(**values),
    )


def test_tasks_that_lack_every_part_share_one_learned_prior():
    combined, values = build(), everything()
    prior = combined(
        present={name: torch.zeros(TASKS, dtype=torch.bool) for name in NAMES}, **values
    )
    close(prior[0], sum(part.absent for part in combined.parts.values()) / math.sqrt(len(NAMES)))
    close(prior, prior[:1].expand(TASKS, -1))


@pytest.mark.parametrize("rubbish", [1e6, math.nan, math.inf])
def test_what_an_absent_row_holds_changes_neither_values_nor_gradients(rubbish):
    combined, values, present = build(), everything(), ragged()
    expected = combined(present=present, **values)
    weights = torch.randn_like(expected)
    of_own = torch.autograd.grad((expected * weights).sum(), list(combined.parameters()))

    def spoil(value, mask):
        if value.dtype == torch.bool:
            return value
        absent = ~mask.view(-1, *[1] * (value.ndim - 1))
        return (
            value.masked_fill(absent, rubbish).requires_grad_()
            if value.is_floating_point()
            else value - 99 * absent
        )

    spoilt = {
        name: tree_map(partial(spoil, mask=present[name]), value) for name, value in values.items()
    }
    found = combined(present=present, **spoilt)
    assert torch.equal(found, expected)
    leaves = [
        (name, leaf)
        for name, value in spoilt.items()
        for leaf in tree_leaves(value)
        if leaf.requires_grad
    ]
    of_leaves = torch.autograd.grad(
        (found * weights).sum(), [leaf for _, leaf in leaves], retain_graph=True
    )
    for (name, _), gradient in zip(leaves, of_leaves, strict=True):
        assert gradient.isfinite().all()
        assert (
            not gradient[~present[name]].any() and gradient[present[name]].flatten(1).any(1).all()
        )
    for gradient, own in zip(
        torch.autograd.grad((found * weights).sum(), list(combined.parameters())),
        of_own,
        strict=True,
    ):
        assert torch.equal(gradient, own)


def test_tasks_do_not_leak_into_each_other():
    combined, values, present = build(), everything(), ragged()
    text, rates = values["text"].requires_grad_(), values["rates"].requires_grad_()
    found = combined(present=present, **values)
    for task in range(TASKS):
        gradients = torch.autograd.grad(
            found[task].sum(), [text, rates], retain_graph=True, materialize_grads=True
        )
        others = torch.arange(TASKS) != task
        assert not any(gradient[others].any() for gradient in gradients)


def test_every_parameter_gets_a_finite_gradient():
    combined = build()
    found = combined(present=ragged(), **everything())
    gradients = torch.autograd.grad(
        (found * torch.randn_like(found)).sum(), list(combined.parameters())
    )
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


@pytest.mark.parametrize("count", [1, 4, 16])
@pytest.mark.parametrize("given", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("size", [0.01, 1.0, 1000.0])
def test_the_scale_is_one_however_many_parts_there_are_and_however_large(count, given, size):
    combined = CombinedCondition({f"part{n}": 8 for n in range(count)}, 256).double()
    values = {f"part{n}": size * torch.randn(20, 8, dtype=torch.float64) for n in range(count)}
    present = {name: torch.rand(20) < given for name in values}
    assert combined(present=present, **values).square().mean().sqrt().item() == pytest.approx(
        1, abs=0.15
    )


def test_every_part_matters_from_the_start():
    """Exchanged between tasks, each moves the condition by a fair share of the distance that all together move it."""
    torch.manual_seed(0)
    tasks, exchange = 64, torch.randperm(64)
    parts = {
        "task": TaskEmbedding(64, 8),
        "support": DeepSets(1, 1, 8),
        "attention": SupportAttention(1, 1, 8),
    }
    parts |= {"rates": MagnitudeInvariantEncoding([0.0], [1.0]), "text": 300, "one": 1}
    combined = CombinedCondition(parts, condition_dim=32)
    x = torch.rand(tasks, 10, 1) * 10 - 5
    support = x, (0.1 + 5 * torch.rand(tasks, 1, 1)) * torch.sin(x + 3 * torch.rand(tasks, 1, 1))
    text = 100 * torch.randn(tasks, 300)
    values = {
        "task": torch.arange(tasks),
        "support": support,
        "attention": support,
        "rates": torch.rand(tasks, 1),
    }
    values |= {"text": text, "one": torch.randn(tasks, 1)}
    start = combined(**values)
    whole = (combined(**rows(values, exchange)) - start).square().mean()
    for name in values:
        moved = (combined(**{**values, name: rows(values, exchange)[name]}) - start).square().mean()
        assert moved / whole > 0.005, name


def test_under_autocast_the_dtype_may_differ():
    with torch.autocast("cpu", torch.bfloat16):
        found = build().float()(
            text=torch.randn(2, 7).bfloat16(), present={"text": torch.tensor([True, False])}
        )
    assert found.isfinite().all()
