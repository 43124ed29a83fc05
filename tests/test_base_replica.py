"""The base is never touched: whatever happens in a call, and wherever the base keeps its parameters."""

import copy
import functools
import gc
import random
import threading
import types
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules import module as everywhere
from torch.utils._pytree import tree_leaves

from cases import BASES, Base, mlp
from references import copies, gradients_of
from weightloom.base import per_task, plan_cache
from weightloom.errors import BatchingError, WeightloomError
from weightloom.replica import scan

TASKS, ROWS = 3, 4
ENGINES = ["auto", "vmap", "aligned", "loop"]
every_engine = pytest.mark.parametrize("engine", ENGINES)
BANK = [case for case in BASES if case.id != "keras"]
QUICK = [
    "linear",
    "mlp",
    "layer_norm",
    "tied",
    "two_inputs",
    "attention_train",
    "batch_norm_without_statistics",
    "lstm",
]
LARGE = ("bert", "gpt2_norms", "vit", "resnet", "conv_net", "transformer_encoder")
GLOBAL = nn.Parameter(torch.randn(4, 4).double())


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def random_params(net, tasks=TASKS):
    return {
        name: torch.randn(tasks, *value.shape).double() for name, value in net.named_parameters()
    }


HOOKS = [name for name in vars(nn.Module()) if "hook" in name]


def picture(net):
    """Everything of a network: what it holds by identity, tensors by value and memory, modes, hooks, sources."""
    modules = {
        name: {
            key: (
                id(value),
                tuple((k, id(v)) for k, v in value.items()) if isinstance(value, dict) else value,
            )
            for key, value in vars(module).items()
        }
        for name, module in net.named_modules()
    }
    tensors = {
        name: (
            id(t),
            t.data_ptr(),
            t.detach().clone(),
            t._version,
            t.requires_grad,
            t.grad,
            len(vars(t)),
        )
        for name, t in net.state_dict(keep_vars=True).items()
    }
    hooks = {name: [list(vars(module)[key]) for key in HOOKS if isinstance(vars(module)[key], dict)]
             for name, module in net.named_modules()}  # fmt: skip
    return modules, tensors, hooks


def sources():
    return torch.get_rng_state(), random.getstate()


def assert_same(before, now):
    assert before[0] == now[0] and before[2] == now[2] and before[1].keys() == now[1].keys()
    for was, its in zip(before[1].values(), now[1].values(), strict=True):
        assert was[:2] == its[:2] and was[3:5] == its[3:5] and was[5] is its[5] and was[6] == its[6]
        assert was[2].numpy(force=True).tobytes() == its[2].numpy(force=True).tobytes()


class StopError(Exception):
    """Raised in the middle of a forward pass."""


def stops(*_):
    raise StopError


def interrupts(*_):
    raise KeyboardInterrupt


def too_wide(inputs):
    return tuple(torch.cat([x, x], -1) if x.is_floating_point() else x + 1000 for x in inputs)


def run(net, params, inputs, engine):
    """Run, whatever comes of it."""
    try:
        return per_task(net, engine=engine)(params, *inputs)
    except WeightloomError:
        assert engine in ("aligned", "vmap"), "the default and the loop run them all"
        return None


def bank_by_engine():
    """Most by the default; by the others some quickly, the rest slowly."""
    for engine in ENGINES:
        for case in BANK:
            is_slow = (engine != "auto" and case.id not in QUICK) or case.id.startswith(LARGE)
            marks = [*case.marks, *([pytest.mark.slow] if is_slow else [])]
            yield pytest.param(engine, *case.values, id=f"{engine}-{case.id}", marks=marks)


@pytest.mark.parametrize(("engine", "base"), [*bank_by_engine()])
def test_a_base_is_equal_to_the_last_byte_after_a_call_and_after_one_that_fails(engine, base):
    net, params, inputs = base.net(), base.params(), base.x()
    last = [module for module in net.modules() if module is not net][-1:] or [net]
    before, drawn = picture(net), sources()
    run(net, params, inputs, engine)
    run(net, params, inputs, engine)
    assert_same(before, picture(net))
    state, its = sources(), drawn
    assert torch.equal(state[0], its[0]) and state[1] == its[1]
    with suppress(RuntimeError, ValueError, IndexError, AssertionError):
        per_task(net, engine=engine)(params, *too_wide(inputs))
    assert_same(before, picture(net))
    for raises, kind in ((stops, StopError), (interrupts, KeyboardInterrupt)):
        handle = last[0].register_forward_hook(raises)
        hooked = picture(net)
        with pytest.raises((kind, WeightloomError)):
            per_task(net, engine=engine)(params, *inputs)
            raise WeightloomError  # a layer that is held, and not run
        assert_same(hooked, picture(net))
        handle.remove()
    assert_same(before, picture(net))
    assert (
        torch.equal(torch.get_rng_state(), drawn[0]) and torch.backends.mha.get_fastpath_enabled()
    )
    assert (
        not everywhere._global_forward_hooks and torch._C._functorch.maybe_current_level() is None
    )


@every_engine
def test_an_interruption_in_forward_is_passed_on_in_the_first_call_and_in_later_ones(engine):
    class Interrupted(nn.Linear):
        stop = False

        def forward(self, x):
            y = super().forward(x)
            if self.stop:
                raise KeyboardInterrupt
            return y

    net = Interrupted(4, 2).double()
    params, x = random_params(net), torch.randn(TASKS, ROWS, 4).double()
    call = per_task(net, engine=engine)
    expected = call(params, x)
    for _ in range(2):
        net.stop = True
        before = picture(net)
        with pytest.raises(KeyboardInterrupt):
            call(params, x)
        assert_same(before, picture(net))
        net.stop = False
        assert torch.equal(call(params, x), expected)


class Box:
    """A plain object."""

    def __init__(self, **held):
        self.__dict__.update(held)


class Slots:
    __slots__ = ("bias", "weight")

    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias


@dataclass
class Pair:
    weight: Any
    bias: Any


def bound(net):
    return types.MethodType(lambda layer, x: F.linear(x, layer.weight, layer.bias), net.layer)


def closure(net):
    weight, bias = net.layer.weight, net.layer.bias
    return lambda x: F.linear(x, weight, bias)


def defaults(net):
    return lambda x, weight=net.layer.weight, *, bias=net.layer.bias: F.linear(x, weight, bias)


def own_forward(net):
    weight, bias = net.layer.weight, net.layer.bias
    net.layer.forward = lambda x: F.linear(x, weight, bias)
    return lambda x: None


KEPT = {
    "list": (lambda net: [net.layer.weight, net.layer.bias], lambda kept, x: F.linear(x, *kept)),
    "tuple": (lambda net: (net.layer.weight, (net.layer.bias,)), lambda kept, x: F.linear(x, kept[0], kept[1][0])),
    "deque": (lambda net: deque(net.layer.parameters()), lambda kept, x: F.linear(x, *kept)),
    "set": (lambda net: {net.layer}, lambda kept, x: next(iter(kept))(x)),
    "dict": (lambda net: dict(net.layer.named_parameters()), lambda kept, x: F.linear(x, **kept)),
    "dict of lists": (lambda net: {"all": [*net.layer.parameters()]}, lambda kept, x: F.linear(x, *kept["all"])),
    "list of layers": (lambda net: [net.layer], lambda kept, x: kept[0](x)),
    "partial": (lambda net: functools.partial(F.linear, weight=net.layer.weight, bias=net.layer.bias),
                lambda kept, x: kept(x)),
    "closure": (closure, lambda kept, x: kept(x)),
    "defaults": (defaults, lambda kept, x: kept(x)),
    "method of a layer": (lambda net: net.layer.forward, lambda kept, x: kept(x)),
    "function bound to a layer": (bound, lambda kept, x: kept(x)),
    "weak reference": (lambda net: weakref.ref(net.layer), lambda kept, x: kept()(x)),
    "weak reference in a list": (lambda net: [weakref.ref(net.layer.weight), net.layer.bias],
                                 lambda kept, x: F.linear(x, kept[0](), kept[1])),
    "proxy in a list": (lambda net: [weakref.proxy(net.layer)], lambda kept, x: kept[0](x)),
    "object": (lambda net: Box(weight=net.layer.weight, bias=net.layer.bias),
               lambda kept, x: F.linear(x, kept.weight, kept.bias)),
    "slots": (lambda net: Slots(net.layer.weight, net.layer.bias), lambda kept, x: F.linear(x, kept.weight, kept.bias)),
    "dataclass": (lambda net: Pair(net.layer.weight, net.layer.bias),
                  lambda kept, x: F.linear(x, kept.weight, kept.bias)),
    "object of objects": (lambda net: Box(a=Box(b=[net.layer])), lambda kept, x: kept.a.b[0](x)),
    "forward of an instance": (own_forward, None),
}  # fmt: skip


class Keeps(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.layer = nn.Linear(4, 4).double()
        make, self_use = KEPT[how]
        self.kept = make(self)
        self.how = how
        assert self_use or how == "forward of an instance"

    def forward(self, x):
        use = KEPT[self.how][1]
        return torch.tanh(self.layer(x) if use is None else use(self.kept, x))


@pytest.mark.parametrize("how", KEPT)
@every_engine
def test_a_parameter_is_found_wherever_the_base_keeps_it(how, engine):
    net = Keeps(how)
    params, x = random_params(net), torch.randn(TASKS, ROWS, 4).double()
    params = {name: value.requires_grad_() for name, value in params.items()}
    before = picture(net)
    for _ in range(2):
        found = per_task(net, engine=engine)(params, x)
        leaves = {n: v.detach().clone().requires_grad_() for n, v in params.items()}
        pairs = zip(x, leaves["layer.weight"], leaves["layer.bias"], strict=True)
        expected = torch.stack([torch.tanh(one @ weight.T + bias) for one, weight, bias in pairs])
        close(found, expected)
        truth = torch.autograd.grad(expected.sin().sum(), [*leaves.values()])
        close(torch.autograd.grad(found.sin().sum(), [*params.values()]), truth)
        assert_same(before, picture(net))


class UsesGlobal(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = GLOBAL

    def forward(self, x):
        return x @ GLOBAL


class OfClass(nn.Module):
    held: Any = None

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4).double()
        type(self).held = [self.layer.weight]

    def forward(self, x):
        return x @ type(self).held[0]


@every_engine
def test_a_parameter_behind_a_class_attribute_is_refused_by_its_name_where_it_is_generated(engine):
    net, x = OfClass(), torch.randn(TASKS, ROWS, 4).double()
    with pytest.raises(BatchingError, match=r"uses its own 'layer\.weight'.*or do not generate it"):
        per_task(net, engine=engine)(random_params(net), x)
    close(
        per_task(net, engine=engine)({"layer.bias": torch.randn(TASKS, 4).double()}, x),
        x @ net.layer.weight,
    )


@every_engine
def test_a_parameter_behind_a_global_is_refused_by_its_name_where_it_is_generated(engine):
    net, x = UsesGlobal(), torch.randn(TASKS, ROWS, 4).double()
    with pytest.raises(
        BatchingError, match=r"uses its own 'weight'.*as `self\.weight`, or do not generate it"
    ):
        per_task(net, engine=engine)(random_params(net), x)
    close(per_task(net, engine=engine)({}, x), x @ net.weight)


class Child(nn.Module):
    """Holds its parent, not as a child."""

    def __init__(self, hold):
        super().__init__()
        self.scale, self.parent, self.hold = nn.Parameter(torch.ones(4).double()), None, hold

    def forward(self, x):
        parent = {
            "list": lambda: self.parent[0],
            "weak": lambda: self.parent(),
            "proxy": lambda: self.parent[0],
        }
        return self.scale * parent[self.hold]().shift + x


class Parent(nn.Module):
    def __init__(self, hold):
        super().__init__()
        self.shift, self.child = nn.Parameter(torch.zeros(4).double()), Child(hold)
        self.child.parent = {
            "list": [self],
            "weak": weakref.ref(self),
            "proxy": [weakref.proxy(self)],
        }[hold]

    def forward(self, x):
        return self.child(x).tanh()


@pytest.mark.parametrize("hold", ["list", "weak", "proxy"])
@every_engine
def test_a_child_that_holds_its_parent_reads_the_generated_values_of_it(hold, engine):
    net = Parent(hold)
    params, x = random_params(net), torch.randn(TASKS, ROWS, 4).double()
    expected = (params["child.scale"] * params["shift"])[:, None] + x
    close(per_task(net, engine=engine)(params, x), expected.tanh())


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated", "ignore:`torch.jit.trace` is deprecated"
)
@pytest.mark.filterwarnings("ignore:`torch.jit.trace_method` is deprecated")
@every_engine
def test_a_child_that_torch_jit_compiled_is_shared_and_refused_where_it_is_generated(engine):
    inner = nn.Linear(4, 4).double()
    net = nn.Sequential(nn.Linear(4, 4).double(), torch.jit.script(inner))
    x = torch.randn(TASKS, ROWS, 4).double()
    params = {"0.weight": torch.randn(TASKS, 4, 4).double()}
    with pytest.raises(
        BatchingError, match=r"'1\.weight' is in a module that `torch\.jit` compiled"
    ):
        per_task(net, engine=engine)({"1.weight": torch.randn(TASKS, 4, 4).double()}, x)
    try:
        found = per_task(net, engine=engine)(params, x)
    except BatchingError:
        assert engine in ("vmap", "aligned")
        return
    close(found, (x @ params["0.weight"].mT + net[0].bias) @ inner.weight.T + inner.bias)


def served(base, threads, calls, engine="auto"):
    """Answers of many threads with parameters of their own that differ from what each gets alone; and errors."""
    net, inputs = base.net(), base.x()
    before = picture(net)
    sets = [base.params() for _ in range(threads)]
    with torch.no_grad():
        alone = [tree_leaves(per_task(net, engine=engine)(params, *inputs)) for params in sets]
    wrong, start = [], threading.Barrier(threads)

    def serve(which):
        try:
            torch.set_grad_enabled(False)
            start.wait()
            for call in range(calls):
                found = tree_leaves(per_task(net, engine=engine)(sets[which], *inputs))
                if not all(
                    torch.allclose(a, b, rtol=1e-9, atol=1e-9)
                    for a, b in zip(found, alone[which], strict=True)
                ):
                    wrong.append((which, call))
        except BaseException as error:
            wrong.append((which, repr(error)))

    workers = [threading.Thread(target=serve, args=(which,)) for which in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert_same(before, picture(net))
    return wrong


SERVED = ["mlp", "layer_norm", "attention_eval", "conv2d_with_group_norm", "two_inputs", "lstm"]


@pytest.mark.parametrize("base", [case for case in BANK if case.id in SERVED[:3]])
def test_threads_that_share_a_base_get_their_own_answers(base):
    assert served(base, 16, 10) == []


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("base", [case for case in BANK if case.id in SERVED])
def test_threads_that_share_a_base_for_long_get_their_own_answers(base, engine):
    if engine == "aligned" and base.inputs == 2:
        pytest.skip("a parameter that is one number")
    if engine == "aligned" and base.event in ((3, 4), (4, 2)):
        pytest.skip(
            "attention, and a sequence on the first axis, which the aligned engine does not know"
        )
    assert served(base, 16, 5000 // 16 // len(ENGINES) + 1, engine) == []


def test_threads_that_share_a_base_with_parameters_in_a_list_get_their_own_answers():
    assert served(Base(lambda: Keeps("list"), (4,)), 16, 10) == []


@every_engine
def test_a_base_answers_as_ever_while_another_thread_generates(engine):
    net, x = mlp([5, 6, 2]).double(), torch.randn(TASKS, ROWS, 5).double()
    params, expected, before = random_params(net), net(x[0]).detach(), picture(net)
    alone, wrong = per_task(net, engine=engine)(params, x), []

    def generate():
        found = [per_task(net, engine=engine)(params, x) for _ in range(20)]
        wrong.extend("generated" for one in found if not torch.equal(one, alone))

    worker = threading.Thread(target=generate)
    worker.start()
    while worker.is_alive():
        if not torch.equal(net(x[0]), expected):
            wrong.append("the base")
    worker.join()
    assert wrong == []
    assert_same(before, picture(net))


@every_engine
def test_two_forward_passes_before_one_backward_pass_have_their_own_gradients(engine):
    net = mlp([5, 6, 2]).double()
    sets = [{n: v.requires_grad_() for n, v in random_params(net).items()} for _ in range(2)]
    xs = [torch.randn(TASKS, ROWS, 5).double() for _ in range(2)]
    call = per_task(net, engine=engine)
    first, second = call(sets[0], xs[0]), call(sets[1], xs[1])
    (first.sin().sum() + (2 * second).sin().sum()).backward()
    for params, x, times in ((sets[0], xs[0], 1), (sets[1], xs[1], 2)):
        nets = copies(net, params)
        for one, its in zip(nets, x, strict=True):
            (times * one(its)).sin().sum().backward()
        close({name: value.grad for name, value in params.items()}, gradients_of(nets, params))


class Normalised(nn.Linear):
    """Normalises its weight in place before it is used."""

    how = "method"

    def forward(self, x):
        with torch.no_grad():
            length = self.weight.norm(dim=1, keepdim=True)
            if self.how == "method":
                self.weight.div_(length)
            elif self.how == "copy":
                self.weight.copy_(self.weight / length)
            else:
                self.weight[:] = self.weight / length
        return super().forward(x)


@pytest.mark.parametrize("how", ["method", "copy", "slice"])
@pytest.mark.parametrize("engine", ["auto", "vmap", "loop"])
def test_a_weight_that_is_normalised_in_place_is_as_of_a_copy_and_what_was_generated_is_left(
    how, engine
):
    net = nn.Sequential(Normalised(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    net[0].how = how
    params, x = random_params(net), torch.randn(TASKS, ROWS, 4).double()
    params = {name: value.requires_grad_() for name, value in params.items()}
    given, before = {name: value.detach().clone() for name, value in params.items()}, picture(net)
    nets = copies(net, params)
    expected = torch.stack([one(its) for one, its in zip(nets, x, strict=True)])
    expected.sin().sum().backward()
    for _ in range(2):
        found = per_task(net, engine=engine)(params, x)
        close(found, expected)
        close(dict(zip(params, torch.autograd.grad(found.sin().sum(), [*params.values()]), strict=True)),
              gradients_of(nets, params))  # fmt: skip
        assert all(torch.equal(params[name], value) for name, value in given.items())
        assert_same(before, picture(net))


class Writes(nn.Module):
    """Changes something in place that all tasks share."""

    def __init__(self, what):
        super().__init__()
        self.layer, self.what = nn.Linear(4, 4).double(), what
        self.scale, self.kept = nn.Parameter(torch.ones(4).double()), torch.zeros(4).double()

    def forward(self, x, shift):
        with torch.no_grad():
            {"parameter": self.scale, "argument": shift, "kept tensor": self.kept}[self.what].add_(
                1.0
            )
        return self.layer(x) * self.scale + shift + self.kept


@pytest.mark.parametrize("what", ["parameter", "argument", "kept tensor"])
@every_engine
def test_what_all_tasks_share_is_not_changed_in_place(what, engine):
    net, x, shift = Writes(what), torch.randn(TASKS, ROWS, 4).double(), torch.zeros(4).double()
    params = {"layer.weight": torch.randn(TASKS, 4, 4).double()}
    said = {
        "parameter": "its own 'scale'",
        "argument": "an argument",
        "kept tensor": "a tensor that it keeps",
    }[what]
    with pytest.raises(BatchingError, match=rf"changes {said} in place, which all tasks share"):
        per_task(net, engine=engine, shared={"shift"})(params, x, shift)


class SparseInPlace(nn.Linear):
    def forward(self, x):
        doubled = self.weight.detach().to_sparse().mul_(2.0).to_dense()
        return super().forward(x) + doubled.sum()


def test_a_sparse_tensor_may_be_changed_in_place():
    net, x = SparseInPlace(4, 4).double(), torch.randn(TASKS, ROWS, 4).double()
    bias = torch.randn(TASKS, 4).double()
    expected = x @ net.weight.mT + bias[:, None] + 2.0 * net.weight.sum()
    torch.testing.assert_close(per_task(net)({"bias": bias}, x), expected)


def plans_kept(net):
    """Everything that is remembered of a base."""
    its, last = plan_cache._of_base.get(net), scan._last.get(net)
    return [len(its.known), len(its.watched), len(last.plans) if last is not None else 0]


def objects_after(net, calls, engine="auto"):
    """How many objects there are after calls of shapes and parameters that change."""
    call = per_task(net, engine=engine)
    for number in range(calls):
        tasks, rows = 2 + number % 37, 2 + number % 23
        call(random_params(net, tasks), torch.randn(tasks, rows, 4).double())
    gc.collect()
    return len(gc.get_objects())


class Reads(nn.Linear):
    """Looks at sizes, so that what was found out holds for them only."""

    def forward(self, x):
        return super().forward(x) / (x.shape[0] + self.weight.shape[0])


def many_shapes(nets, calls, warm):
    for net in nets:
        objects_after(net, warm)
        first = objects_after(net, warm)
        last = objects_after(net, calls)
        assert last - first < 200, f"{type(net).__name__}: {last - first} objects more"
        assert max(plans_kept(net)) <= plan_cache.PLANS_KEPT


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_calls_of_many_shapes_leave_nothing_behind_for_long():
    many_shapes([mlp([4, 6, 2]).double(), Reads(4, 2).double(), Keeps("list")], 20_000 // 3, 1_000)


def test_calls_of_changing_shapes_leave_nothing_behind(monkeypatch):
    monkeypatch.setattr(plan_cache, "PLANS_KEPT", 10)
    many_shapes([mlp([4, 6, 2]).double()], 200, 10)
    many_shapes([Reads(4, 2).double()], 60, 10)


def test_a_base_goes_when_nobody_holds_it():
    net = mlp([4, 6, 2]).double()
    params, x = random_params(net), torch.randn(TASKS, ROWS, 4).double()
    call = per_task(net)
    call(params, x)
    gone = weakref.ref(net)
    del net, call
    gc.collect()
    assert gone() is None


def test_a_base_that_was_run_can_be_copied_and_saved():
    for how in ("list", "dataclass", "partial"):
        net = Keeps(how)
        params, x = random_params(net), torch.randn(TASKS, ROWS, 4).double()
        expected = per_task(net)(params, x)
        close(per_task(copy.deepcopy(net))(params, x), expected)
