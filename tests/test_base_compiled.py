"""A step that is compiled, or exported: values, gradients and the base as in eager mode, call after call."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

PROLOGUE = """
import sys
import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from weightloom import LowRank, MLPHyperNetwork, apply_per_task, per_task

sys.path.insert(0, {tests!r})
torch.set_num_threads(1)


def close(found, expected, tolerance=1e-8):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def picture(net):
    return [(id(p), type(p), p.requires_grad, p.detach().clone()) for m in net.modules() for p in m._parameters.values()
            if p is not None]


def check(case, backend, name="", tolerance=1e-8):
    net, params, inputs = case.net(), case.params(), case.x()
    params = {{n: v.requires_grad_() for n, v in params.items()}}
    before, run = picture(net), per_task(net)
    expected = tree_leaves(run(params, *inputs))
    weights = [torch.randn_like(y) for y in expected]

    def step(params, *inputs):
        return run(params, *inputs)

    def gradients(outputs):
        loss = sum((y.sin() * w).sum() for y, w in zip(outputs, weights))
        return torch.autograd.grad(loss, list(params.values()), allow_unused=True, materialize_grads=True)

    truth = gradients(expected)
    torch._dynamo.reset()
    compiled = torch.compile(step, backend=backend)
    for call in range(2):
        found = tree_leaves(compiled(params, *inputs))
        close(found, expected, tolerance)
        close(gradients(found), truth, tolerance)
        now = picture(net)
        assert [row[:3] for row in now] == [row[:3] for row in before], name
        assert all(torch.equal(a[3], b[3]) for a, b in zip(now, before)), name
        assert all(kind is nn.Parameter for _, kind, *_ in now), name
    print(name, "right", flush=True)
"""


def in_a_process(program):
    """Without the checks of annotations, which cannot be compiled."""
    program = PROLOGUE.format(tests=str(TESTS)) + program
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


OWN = """
from cases import Base


class SharedLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.twice = nn.Sequential(self.mix, nn.Tanh(), self.mix)
        self.out = nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.twice(self.mix(x)))


class Tree(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        y = self.layer(x)
        return {"y": y, "more": (y.tanh(), [x])}


check(Base(SharedLayer, (4,)), "aot_eager", "a layer under two names")
check(Base(Tree, (4,)), "aot_eager", "a tree")
"""

BANK = """
from cases import BASES

for case in BASES:
    if case.id in {quick}:
        check(*case.values, {backend!r}, case.id, {tolerance})
"""
QUICK = ["layer_norm", "tied"]


def test_a_compiled_step_gives_values_and_gradients_of_eager_mode_twice_and_leaves_the_base():
    out = in_a_process(OWN + BANK.format(quick=QUICK, backend="aot_eager", tolerance=1e-8))
    assert out.count("right") == 2 + len(QUICK)


REST = """
from importlib.util import find_spec
from cases import BASES

for case in BASES:
    (base,) = case.values
    if case.id != "keras" and not (base.extra and find_spec(base.extra) is None):
        check(base, "aot_eager", case.id, 1e-6)
print("of", sum(case.id != "keras" for case in BASES))
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_base_is_compiled():
    assert in_a_process(REST).count("right") >= 40


FUSED = """
from cases import BASES

for case in BASES:
    if case.id in ("transformer_eval", "transformer_encoder_eval"):
        (base,) = case.values
        net, inputs = base.net(), base.x()
        params = {n: v.requires_grad_() for n, v in base.params().items()}
        run = per_task(net)
        expected = run(params, *inputs)

        def step(params, *inputs):
            return run(params, *inputs)

        try:
            torch.compile(step, backend="aot_eager", fullgraph=True)(params, *inputs)
        except torch._dynamo.exc.Unsupported as error:
            assert "BatchingError" in type(error.__cause__).__name__, error
        else:
            raise AssertionError("it was compiled as a whole")
        torch._dynamo.reset()
        close(torch.compile(step, backend="aot_eager")(params, *inputs), expected)  # not compiled, and right
        torch._dynamo.reset()
        torch.backends.mha.set_fastpath_enabled(False)
        found = torch.compile(step, backend="aot_eager", fullgraph=True)(params, *inputs)
        close(found, expected)
        close(*[torch.autograd.grad(y.sin().sum(), list(params.values())) for y in (found, expected)])
        torch.backends.mha.set_fastpath_enabled(True)
        print(case.id, "right")
"""


@pytest.mark.slow
def test_a_transformer_layer_on_its_fused_path_is_not_compiled_as_a_whole_and_the_advice_works():
    assert in_a_process(FUSED).count("right") == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_bases_are_compiled_to_machine_code():
    bases = ["mlp", "layer_norm", "tied", "conv2d_with_group_norm", "attention_train"]
    out = in_a_process(BANK.format(quick=bases, backend="inductor", tolerance=1e-6))
    assert out.count("right") == len(bases)


ENGINES = """
for engine in ("vmap", "aligned", "loop"):
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    hyper = MLPHyperNetwork(net, condition_dim=5, form=LowRank(1)).double()
    nn.init.normal_(hyper.head.weight, std=0.3)
    run, condition, x = per_task(net, engine=engine), torch.randn(3, 5).double(), torch.randn(3, 4, 4).double()

    def step(condition, x):
        return run(hyper(condition), x).sin().sum()

    compiled = torch.compile(step, backend="aot_eager")
    for call in range(2):
        losses = [compiled(condition, x), step(condition, x)]
        close(*losses)
        close(*[torch.autograd.grad(loss, list(hyper.parameters())) for loss in losses])
    print(engine, "right")
"""


@pytest.mark.slow
def test_an_engine_by_name_is_compiled_with_what_generates():
    assert in_a_process(ENGINES).count("right") == 3


EXPORTED = """
class Whole(nn.Module):
    def __init__(self, engine):
        super().__init__()
        self.base = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
        self.hyper = MLPHyperNetwork(self.base, condition_dim=5, form=LowRank(1)).double()
        nn.init.normal_(self.hyper.head.weight, std=0.1)
        self.engine = engine

    def forward(self, condition, x):
        return apply_per_task(self.base, self.hyper(condition), x, engine=self.engine)


def drawn(tasks):
    return torch.randn(tasks, 5).double(), torch.randn(tasks, 4, 4).double()


tasks = torch.export.Dim("tasks", min=2, max=100)
for engine in ("auto", "vmap"):
    whole, few, many = Whole(engine), drawn(3), drawn(7)
    fixed = torch.export.export(whole, few)
    close(fixed.module()(*few), whole(*few))
    free = torch.export.export(whole, few, dynamic_shapes=({0: tasks}, {0: tasks}))
    for inputs in (few, many):
        close(free.module()(*inputs), whole(*inputs))
    print(engine, "right")
"""


@pytest.mark.slow
def test_factors_and_base_are_exported_for_any_number_of_tasks():
    assert in_a_process(EXPORTED).count("right") == 2
