"""Recomputing in the backward pass, in the base and around a call: gradients are those without it, or it is refused."""

import pytest
import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from references import copies, gradients_of
from weightloom import LowRank, MLPHyperNetwork
from weightloom.base import choose_engine, in_chunks, per_task
from weightloom.errors import BatchingError

TASKS, ROWS = 3, 4
ENGINES = ["auto", "vmap", "aligned", "loop"]
every_engine = pytest.mark.parametrize("engine", ENGINES)


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


class Recomputes(nn.Module):
    """A block of two layers, computed again in the backward pass."""

    def __init__(self, how="checkpoint"):
        super().__init__()
        self.first, self.second, self.last = (
            nn.Linear(*sizes).double() for sizes in ((4, 6), (6, 6), (6, 2))
        )
        self.how = how

    def block(self, x):
        return torch.tanh(self.second(torch.tanh(self.first(x))))

    def forward(self, x):
        if self.how == "checkpoint":
            h = checkpoint(self.block, x, use_reentrant=False)
        elif self.how == "two checkpoints":
            h = checkpoint(lambda x: torch.tanh(self.first(x)), x, use_reentrant=False)
            h = checkpoint(lambda h: torch.tanh(self.second(h)), h, use_reentrant=False)
        elif self.how == "in a checkpoint":
            h = checkpoint(
                lambda x: checkpoint(self.block, x, use_reentrant=False), x, use_reentrant=False
            )
        elif self.how == "save_on_cpu":
            with save_on_cpu():
                h = self.block(x)
        elif self.how == "re-entrant":
            h = checkpoint(self.block, x, use_reentrant=True)
        else:
            h = self.block(x)
        return self.last(h)


def parts(net):
    params = {
        name: torch.randn(TASKS, *v.shape).double().requires_grad_()
        for name, v in net.named_parameters()
    }
    return params, torch.randn(TASKS, ROWS, 4).double().requires_grad_()


def truth(net, params, x):
    """Outputs and gradients of copies that recompute nothing."""
    nets = copies(net, params)
    outputs = []
    for one, its in zip(nets, x.detach(), strict=True):
        one.how = "nothing"
        outputs.append(one(its))
        outputs[-1].sin().sum().backward()
    return torch.stack(outputs).detach(), gradients_of(nets, params)


HOW = ["checkpoint", "two checkpoints", "in a checkpoint", "save_on_cpu"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("engine", ["auto", "aligned", "loop"])
def test_gradients_of_a_base_that_recomputes_are_those_of_copies_that_do_not(how, engine):
    net = Recomputes(how)
    params, x = parts(net)
    expected, gradients = truth(net, params, x)
    for _ in range(2):
        found = per_task(net, engine=engine)(params, x)
        close(found.detach(), expected)
        ours = torch.autograd.grad(found.sin().sum(), [*params.values()])
        close(dict(zip(params, ours, strict=True)), gradients)


@pytest.mark.parametrize("engine", ["auto", "aligned", "loop"])
def test_gradients_of_factors_are_those_without_recomputing(engine):
    found = []
    for how in ("checkpoint", "nothing"):
        torch.manual_seed(0)
        net = Recomputes(how)
        hyper = MLPHyperNetwork(net, condition_dim=5, form=LowRank(2)).double()
        nn.init.normal_(hyper.head.weight, std=0.3)
        y = per_task(net, engine=engine)(
            hyper(torch.randn(TASKS, 5).double()), torch.randn(TASKS, ROWS, 4).double()
        )
        y.sin().sum().backward()
        found.append({name: parameter.grad for name, parameter in hyper.named_parameters()})
    close(*found)


@pytest.mark.parametrize("how", HOW)
def test_vmap_refuses_it_before_anything_is_computed_and_the_advice_works(how):
    net, seen = Recomputes(how), []
    params, x = parts(net)
    with pytest.raises(
        BatchingError,
        match=r"recomputes, or packs.*Pass `engine=\"loop\"`, or `engine=\"aligned\"`",
    ):
        seen.append(per_task(net, engine="vmap")(params, x))
    assert not seen and choose_engine(net, params, x).engine == "loop"
    expected, _ = truth(net, params, x)
    for engine in ("loop", "aligned"):
        close(per_task(net, engine=engine)(params, x).detach(), expected)


@pytest.mark.parametrize("how", HOW)
@every_engine
def test_without_gradients_nothing_is_recomputed_and_every_engine_runs(how, engine):
    net = Recomputes(how)
    params, x = parts(net)
    expected, _ = truth(net, params, x)
    with torch.no_grad():
        close(per_task(net, engine=engine)(params, x), expected)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@every_engine
def test_a_re_entrant_checkpoint_is_refused_and_the_advice_works(engine):
    net = Recomputes("re-entrant")
    params, x = parts(net)
    if engine == "vmap":
        with pytest.raises(BatchingError):
            per_task(net, engine=engine)(params, x)
        return
    with pytest.raises(BatchingError, match=r"`use_reentrant=True`.*Pass `use_reentrant=False`"):
        per_task(net, engine=engine)(params, x)
    net.how = "checkpoint"
    expected, gradients = truth(net, params, x)
    found = per_task(net, engine=engine)(params, x)
    close(found.detach(), expected)
    ours = torch.autograd.grad(found.sin().sum(), [*params.values()])
    close(dict(zip(params, ours, strict=True)), gradients)


@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_layers_in_segments_are_recomputed(engine):
    class Segments(nn.Sequential):
        how = "segments"

        def forward(self, x):
            if self.how == "segments":
                return checkpoint_sequential(list(self), 2, x, use_reentrant=False)
            return super().forward(x)

    net = Segments(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    params, x = parts(net)
    expected, gradients = truth(net, params, x)
    found = per_task(net, engine=engine)(params, x)
    close(found.detach(), expected)
    ours = torch.autograd.grad(found.sin().sum(), [*params.values()])
    close(dict(zip(params, ours, strict=True)), gradients)


@pytest.mark.parametrize("inside", ["nothing", "checkpoint"])
@every_engine
def test_a_checkpoint_around_a_call_is_exact_the_first_time_and_later(inside, engine):
    if engine == "vmap" and inside == "checkpoint":
        pytest.skip("refused, as without one around it")
    net = Recomputes(inside)
    params, x = parts(net)
    expected, gradients = truth(net, params, x)
    run = per_task(net, engine=engine)
    for _ in range(3):  # it is watched in the first
        found = checkpoint(run, params, x, use_reentrant=False)
        close(found.detach(), expected)
        ours = torch.autograd.grad(found.sin().sum(), [*params.values()])
        close(dict(zip(params, ours, strict=True)), gradients)


@every_engine
def test_a_checkpoint_around_hypernetwork_and_call_is_exact(engine):
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.base = Recomputes("nothing")
            self.hyper = MLPHyperNetwork(self.base, condition_dim=5).double()
            nn.init.normal_(self.hyper.head.weight, std=0.3)

        def forward(self, condition, x):
            return per_task(self.base, engine=engine)(self.hyper(condition), x)

    found = []
    condition, x = torch.randn(TASKS, 5).double(), torch.randn(TASKS, ROWS, 4).double()
    for recomputes in (True, False):
        torch.manual_seed(0)
        whole = Whole()
        y = (
            checkpoint(whole, condition, x, use_reentrant=False)
            if recomputes
            else whole(condition, x)
        )
        y.sin().sum().backward()
        found.append({name: parameter.grad for name, parameter in whole.hyper.named_parameters()})
    close(*found)


@pytest.mark.parametrize("chunk_size", [1, 2, 5])
@every_engine
def test_in_chunks_gives_the_gradients_of_the_whole(engine, chunk_size):
    net = Recomputes("nothing")
    params, x = parts(net)
    expected, gradients = truth(net, params, x)
    for _ in range(2):
        found = in_chunks(per_task(net, engine=engine), params, x, chunk_size=chunk_size)
        close(found.detach(), expected)
        ours = torch.autograd.grad(found.sin().sum(), [*params.values()])
        close(dict(zip(params, ours, strict=True)), gradients)


def gpt2(recompute):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": 11, "n_positions": 6, "n_embd": 8, "n_layer": 2, "n_head": 2}
    drops = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    net = GPT2LMHeadModel(
        GPT2Config(use_cache=False, attn_implementation="eager", **sizes, **drops, **ends)
    )
    if recompute:
        net.gradient_checkpointing_enable({"use_reentrant": False})
    return net.double().train()


DEPRECATED = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning"
)


@DEPRECATED
@pytest.mark.parametrize("engine", ["auto", "aligned", "loop"])
def test_a_language_model_with_gradient_checkpointing_has_the_gradients_of_one_without(engine):
    pytest.importorskip("transformers")
    found = []
    for recompute in (True, False):
        net = gpt2(recompute)
        hyper = MLPHyperNetwork(net, condition_dim=5, generate="*.mlp.*.weight").double()
        nn.init.normal_(hyper.head.weight, std=0.2)
        ids = torch.randint(11, (TASKS, 2, 5))
        logits = per_task(net, engine=engine)(hyper(torch.randn(TASKS, 5).double()), ids).logits
        logits.square().mean().backward()
        found.append({name: parameter.grad for name, parameter in hyper.named_parameters()})
    close(*found)
    assert found[0]["head.weight"].abs().sum() > 0


@DEPRECATED
def test_a_language_model_with_gradient_checkpointing_is_refused_by_vmap():
    pytest.importorskip("transformers")
    net = gpt2(True)
    params = {
        "transformer.h.0.mlp.c_fc.weight": torch.randn(TASKS, 8, 32).double().requires_grad_()
    }
    with pytest.raises(BatchingError, match=r"recomputes, or packs|not with `engine='vmap'`"):
        per_task(net, engine="vmap")(params, torch.randint(11, (TASKS, 2, 5)))
