"""`check_form` says of a form that breaks a promise which one it is."""

import pytest
import torch
from torch import nn

from weightloom.forms import Form, Full, LowRank
from weightloom.testing import check_form


class Own(Form):
    """θ = W + a bᵀ, as someone wrote it themselves, with one thing wrong in it."""

    needs = "two axes"

    def __init__(self, wrong=""):
        self.wrong = wrong

    def fit(self, shape, owner):
        if self.wrong == "fits nothing":
            return None
        if self.wrong == "says true":
            return True
        return self if len(shape) == 2 else None

    def factor_shapes(self, shape):
        if self.wrong == "no factors":
            return {}
        return {"a": (shape[0],), "b": (shape[1],)}

    def starts(self, shape):
        if self.wrong == "start of another name":
            return {"c": torch.ones(shape[1])}
        if self.wrong == "start of another shape":
            return {"b": torch.ones(shape[0] + 1)}
        if self.wrong == "starts away":
            return {"a": torch.ones(shape[0]), "b": torch.ones(shape[1])}
        return {"b": torch.ones(shape[1])}

    def shared(self, shape):
        return {"a": torch.zeros(shape)} if self.wrong == "shared is a factor" else {}

    def dense(self, own, parts):
        a, b = parts["a"], parts["b"]
        if self.wrong == "transposed":
            return (own + a[..., :, None] * b[..., None, :]).mT
        if self.wrong == "ignores b":
            b = torch.ones_like(b)
        if self.wrong == "leaks":
            a = a + a.sum(0, keepdim=True)
        if self.wrong == "counts from the front":
            return own + (a[:, :, None] * b[:, None, :] if a.ndim == 2 else 0)
        return own + a[..., :, None] * b[..., None, :]

    def linear(self, x, own, parts, bias=None):
        a, b = parts["a"], parts["b"]
        if self.wrong == "forgets the bias":
            bias = None
        if self.wrong == "no task axis only":
            a, b = a.view(-1), b.view(-1)
        if self.wrong == "detached":
            own = own.detach()
        if self.wrong == "sums the rows":
            x = x.sum(-2, keepdim=True)
        y = x @ own.mT + (x * b[..., None, :]).sum(-1, keepdim=True) * a[..., None, :]
        return y if bias is None else y + bias

    def embedding(self, ids, own, parts):
        if self.wrong != "embedding":
            return NotImplemented
        return nn.functional.embedding(ids, own)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("fits nothing", r"fits no parameter of any layer.*Let `fit` return the form"),
        ("says true", r"fit\(\(5, 6\), \.\.\.\)` returns a bool.*Return a form.*or None"),
        ("no factors", r"factor_shapes\(\(5, 6\)\)` is empty.*Name it, or let `fit` return None"),
        (
            "start of another name",
            r"starts\(\(5, 6\)\)` holds 'c' of shape \(6,\); the factors are .*Rename or reshape",
        ),
        ("start of another shape", r"holds 'b' of shape \(7,\)"),
        (
            "starts away",
            r"starts away from the own value, by .*Start one factor of a product at zero",
        ),
        (
            "shared is a factor",
            r"names \['a'\] as a factor and as shared.*Give them different names",
        ),
        ("transposed", r"dense` gives the shape \(3, 6, 5\) for 3 tasks.*Return \(3, 5, 6\)"),
        ("ignores b", r"dense` does not depend on 'b'.*Use it, or do not name it"),
        (
            "leaks",
            r"gives task 1 a parameter that depends on 'a' of tasks \[0, 2\].*Count axes from the back",
        ),
        (
            "counts from the front",
            r"builds another parameter from the factors of one task without a tasks axis",
        ),
        (
            "forgets the bias",
            r"gives other outputs in Linear\(.*`engine='loop'` than with the parameter built",
        ),
        (
            "no task axis only",
            r"cannot be used in Linear\(.*`engine='aligned'` .*same leading axes as the factors",
        ),
        ("detached", r"gives other a gradient of the own value in Linear"),
        (
            "sums the rows",
            r"gives outputs of shape \(3, 1, 5\) in Linear.*the shape is \(3, 2, 5\)\. Correct",
        ),
        ("embedding", r"gives other outputs in Embedding\(7, 4\)"),
    ],
)
def test_the_check_says_what_is_wrong_with_a_form(wrong, message):
    with pytest.raises(AssertionError, match=message):
        check_form(Own(wrong))


def test_a_form_of_ones_own_passes():
    check_form(Own())


def test_the_check_reads_layers_of_ones_own_and_leaves_them_alone():
    layer = nn.Linear(7, 3)
    check_form(LowRank(2), layers=[layer])
    assert layer.weight.dtype == torch.float32 and layer.weight.grad is None
    check_form(Full(), layers=[nn.LayerNorm(4), nn.PReLU(3)])
    with pytest.raises(
        AssertionError, match=r"LowRank\(rank=2\) fits no parameter.*pass `layers` that it fits"
    ):
        check_form(LowRank(2), layers=[nn.Linear(7, 2)])
