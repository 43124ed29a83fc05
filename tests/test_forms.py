"""What every form promises, and what each says of itself."""

import pytest
import torch

from cases import FORMS, TASKS
from weightloom.forms import Full

every_form = pytest.mark.parametrize("form", FORMS)
every_shape = pytest.mark.parametrize("shape", [(), (3,), (2, 3), (4, 2, 3, 3)], ids=str)


def factors_of(form, shape, draw=torch.randn):
    return {n: draw(TASKS, *s, dtype=torch.float64) for n, s in form.factor_shapes(shape).items()}


@every_form
@every_shape
def test_factors_of_zero_give_every_task_the_own_value(form, shape):
    own = torch.randn(shape, dtype=torch.float64)
    dense = form().dense(own, factors_of(form(), shape, torch.zeros))
    assert torch.equal(dense, own.expand(TASKS, *shape))


@every_form
@every_shape
def test_a_task_depends_on_its_own_factors_and_on_the_shared_value(form, shape):
    own = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    factors = {name: value.requires_grad_() for name, value in factors_of(form(), shape).items()}
    dense = form().dense(own, factors)
    assert dense.shape == (TASKS, *shape) and dense.dtype == torch.float64
    of_own, *of_factors = torch.autograd.grad((dense[1] * torch.randn_like(dense[1])).sum(), [own, *factors.values()])
    assert of_own.any()
    for gradient in of_factors:
        assert gradient[1].any() and not gradient[0].any() and not gradient[2].any()


@every_shape
def test_full_adds_a_change_to_every_number(shape):
    own, factors = torch.randn(shape, dtype=torch.float64), factors_of(Full(), shape)
    assert list(factors) == ["change"]
    dense = Full().dense(own, factors)
    for task in range(TASKS):
        pairs = zip(own.flatten().tolist(), factors["change"][task].flatten().tolist(), strict=True)
        assert dense[task].flatten().tolist() == [a + b for a, b in pairs]
