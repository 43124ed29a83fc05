"""Second derivatives in the condition, held against central differences, for everything that makes or reads one."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from cases import ENCODERS, HYPERNETWORKS, TASKS
from weightloom.conditions import CombinedCondition, SupportAttention
from weightloom.conditions.attention import attention
from weightloom.forms.factored import built

STEP = 1e-5

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script:DeprecationWarning"
)  # torch calls it for forward mode


def close(actual, expected):
    torch.testing.assert_close(
        actual, expected, rtol=2e-4, atol=1e-6 * (1 + expected.abs().max().item())
    )


def check_second_derivatives(loss, x):
    """By reverse over reverse, forward over reverse and a Hessian, along a direction, against central differences."""
    x = x.detach().requires_grad_()
    along = torch.randn_like(x)

    def gradient(at):
        at = at.detach().requires_grad_()
        return torch.autograd.grad(loss(at), at)[0]

    expected = (gradient(x + STEP * along) - gradient(x - STEP * along)) / (2 * STEP)
    (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
    (second,) = torch.autograd.grad((first * along).sum(), x)
    close(second, expected)
    close(torch.func.jvp(torch.func.grad(loss), (x.detach(),), (along,))[1], expected)
    slope = (loss(x + STEP * along) - loss(x - STEP * along)) / (2 * STEP)
    close(torch.func.jvp(loss, (x.detach(),), (along,))[1], slope)
    if x.numel() < 30:
        hessian = torch.func.hessian(loss)(x.detach()).reshape(x.numel(), x.numel())
        close(hessian @ along.flatten(), expected.flatten())
        close(torch.func.jacrev(loss)(x.detach()), gradient(x))


def curved(params):
    """A loss with second derivatives of its own, by which nothing is linear."""
    dense = [built(value) for value in params]
    return sum(
        (value.sin() * torch.linspace(1, 2, value.numel()).reshape(value.shape)).sum()
        for value in dense
    )


@pytest.mark.parametrize("hyper", HYPERNETWORKS)
def test_what_is_generated_has_second_derivatives_in_the_condition(hyper):
    network, (condition, *others) = hyper.moved(), hyper.condition(2)
    check_second_derivatives(lambda x: curved(network(x, *others).values()), condition)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("masked", [False, True])
def test_a_condition_has_second_derivatives_in_the_support_set(encoder, masked):
    encode = encoder(x_dim=1, y_dim=1, condition_dim=4).double()
    x, y = torch.rand(2, 5, 1, dtype=torch.float64), torch.randn(2, 5, 1, dtype=torch.float64)
    mask = torch.tensor([[True, True, False, True, True], [True] * 5]) if masked else None
    check_second_derivatives(lambda targets: curved([encode(x, targets, mask)]), y)


def test_a_combined_condition_has_second_derivatives():
    parts = {"support": SupportAttention(1, 1, 8), "text": 3}
    combine, text = CombinedCondition(parts, 4).double(), torch.randn(2, 3).double()
    x, y = torch.randn(2, 5, 1).double(), torch.randn(2, 5, 1).double()
    check_second_derivatives(lambda targets: curved([combine(support=(x, targets), text=text)]), y)


@pytest.mark.parametrize("tokens", [1, 5, 67])
def test_attention_of_any_length_equals_torch_s_and_has_second_derivatives(tokens):
    q, k, v = (torch.randn(TASKS, 2, tokens, 4, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(TASKS, 1, 1, tokens) < 0.7
    mask[..., 0] = True
    weight = torch.randn_like(v)
    for read in (None, mask):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        expected = scaled_dot_product_attention(*leaves, attn_mask=read)
        wanted = torch.autograd.grad((expected * weight).sum(), leaves)
        found = attention(*leaves, read)
        close(found, expected)
        for kept in (False, True):
            got = torch.autograd.grad(
                (found * weight).sum(), leaves, create_graph=kept, retain_graph=True
            )
            for one, other in zip(got, wanted, strict=True):
                close(one, other)
    for at in range(3):

        def loss(x, at=at):
            return (
                (
                    attention(*[x if i == at else other for i, other in enumerate((q, k, v))], mask)
                    * weight
                )
                .sin()
                .sum()
            )

        check_second_derivatives(loss, (q, k, v)[at])
    with torch.no_grad():
        close(attention(q, k, v, mask), scaled_dot_product_attention(q, k, v, attn_mask=mask))


def test_attention_is_differentiated_under_checkpointing_and_twice_from_one_graph():
    encode = SupportAttention(1, 1, 4).double()
    x, y = torch.randn(2, 5, 1).double(), torch.randn(2, 5, 1).double().requires_grad_()
    (expected,) = torch.autograd.grad(encode(x, y).sin().sum(), y)
    loss = checkpoint(encode, x, y, use_reentrant=False).sin().sum()
    for kept in (True, False):
        close(torch.autograd.grad(loss, y, retain_graph=kept)[0], expected)
