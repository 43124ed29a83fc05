"""Under autocast: what is generated stays whole, and every engine runs it."""

import pytest
import torch
from torch import nn

from cases import FORMS, HYPERNETWORKS, TASKS
from weightloom.base import apply_per_task, choose_engine
from weightloom.hypernets import MLPHyperNetwork


def normed():
    """Convolutions and norms, which take parameters in single precision only."""
    middle = nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.GroupNorm(2, 4), nn.PReLU(4)
    return nn.Sequential(*middle, nn.Flatten(), nn.Linear(12, 6), nn.LayerNorm(6)).eval()


def decoder():
    """A linear layer, which autocast lowers, before transposed convolutions, which it does not reach under vmap."""
    layers = (
        nn.Linear(5, 12),
        nn.ReLU(),
        nn.Unflatten(1, (3, 4)),
        nn.ConvTranspose1d(3, 4, 3, stride=2),
    )
    return nn.Sequential(*layers, nn.Conv1d(4, 2, 1))


@pytest.mark.parametrize("hyper", HYPERNETWORKS)
def test_what_is_generated_stays_of_the_dtype_of_the_hypernetwork(hyper):
    network = hyper.moved().float()
    condition = [x.float() if x.is_floating_point() else x for x in hyper.condition(TASKS)]
    with torch.autocast("cpu", torch.bfloat16):
        params = network(*condition)
    assert {value.dtype for value in params.values()} == {torch.float32}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("build", "event"), [(normed, (3, 5)), (decoder, (5,))])
def test_norms_and_convolutions_run_with_every_engine(build, event, form):
    torch.manual_seed(0)
    hyper = MLPHyperNetwork(build(), 4, form=form)
    nn.init.normal_(hyper.head.weight, std=0.1)
    condition, x = torch.randn(TASKS, 4), torch.randn(TASKS, 6, *event)
    expected = apply_per_task(hyper.base, hyper(condition), x, engine="loop")
    with torch.autocast("cpu", torch.bfloat16):
        params = hyper(condition)
        assert choose_engine(hyper.base, params, x).engine == "aligned"
        for engine in ("loop", "vmap", "aligned", "auto"):
            outputs = apply_per_task(hyper.base, params, x, engine=engine).float()
            assert (outputs - expected).abs().max() < 0.05 * expected.abs().max()
    gradients = torch.autograd.grad(outputs.square().sum(), list(hyper.parameters()))
    assert all(
        gradient.isfinite().all() and gradient.dtype == torch.float32 for gradient in gradients
    )
