"""What a base keeps and follows: counters, attributes, buffers, configs, hooks, random numbers; as copies would."""

import array
import contextlib
import enum
import random
import re
from collections import deque
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from references import copies, gradients_of
from weightloom.base import apply_per_task, per_task, task_buffers
from weightloom.errors import BatchingError, ConfigError

TASKS, ROWS = 3, 4
ENGINES = ["auto", "vmap", "aligned", "loop"]
every_engine = pytest.mark.parametrize("engine", ENGINES)
MODE = SimpleNamespace(centred=False)
SCALE = 1.0


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def random_params(net, tasks=TASKS):
    return {
        name: torch.randn(tasks, *value.shape).double() for name, value in net.named_parameters()
    }


def inputs(tasks=TASKS, width=4):
    return torch.randn(tasks, ROWS, width).double()


def alone(nets, x):
    return torch.stack([net(its) for net, its in zip(nets, x, strict=True)]).detach()


class Counts(nn.Module):
    """Counts its calls in an attribute, and follows the count."""

    counts = True

    def __init__(self):
        super().__init__()
        self.inner, self.outer, self.calls = nn.Linear(4, 6).double(), nn.Linear(6, 2).double(), 0

    def forward(self, x):
        if self.counts:
            self.calls += 1
        return self.outer(torch.tanh(self.inner(x))) * (1.0 + 0.5 * self.calls)


@every_engine
def test_a_counter_goes_up_by_one_for_each_call_and_is_followed_as_by_copies(engine):
    net, call = Counts(), None
    params = random_params(net)
    nets, call = copies(net, params), per_task(net, engine=engine)
    for number in range(12):
        x = inputs()
        close(call(params, x), alone(nets, x))
        assert net.calls == number + 1
    call.explain(params, inputs())
    assert net.calls == 12


@pytest.fixture
def runs(monkeypatch):
    """One entry for each run of a linear layer, watched ones too, where no base can see it."""
    entries, forward = [], nn.Linear.forward

    def counted(self, x):
        entries.append(1)
        return forward(self, x)

    monkeypatch.setattr(nn.Linear, "forward", counted)
    return entries


def test_a_base_that_counts_is_run_no_oftener_than_one_that_does_not(runs):
    taken = []
    for counts in (True, False):
        net = Counts()
        net.counts = counts
        params, x, call = random_params(net), inputs(), per_task(net)
        for _ in range(10):
            call(params, x)
        runs.clear()
        for _ in range(20):
            call(params, x)
        taken.append(len(runs))
    assert taken == [40, 40]


class Remembers(nn.Module):
    """Keeps what it computed, and adds it the next time."""

    kept = None

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4).double()
        self.state = {"runs": 0}

    def forward(self, x):
        h = torch.tanh(self.layer(x))
        if self.kept is not None:
            h = h + 0.5 * self.kept[: len(h)]
        self.kept = h.detach()
        return h


@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_a_tensor_that_forward_assigns_is_given_back_to_each_task_as_to_copies(engine):
    net = Remembers()
    params = random_params(net)
    nets, call = copies(net, params), per_task(net, engine=engine)
    for _ in range(3):
        x = inputs()
        close(call(params, x), alone(nets, x))
        close(net.kept, torch.stack([one.kept for one in nets]))
    net.kept = None
    for one in nets:
        one.kept = None
    close(call(params, x), alone(nets, x))


def test_what_was_left_for_other_tasks_is_refused_where_it_is_read_and_the_advice_works():
    net = Remembers()
    call = per_task(net)
    call(random_params(net), inputs())
    with pytest.raises(
        BatchingError,
        match=r"of an earlier call of 3 tasks; this call is of 5.*Set `Remembers\.kept`",
    ):
        call(random_params(net, 5), inputs(5))
    net.kept = None
    assert call(random_params(net, 5), inputs(5)).shape == (5, ROWS, 4)


@every_engine
def test_features_that_forward_keeps_have_a_tasks_axis_and_a_gradient(engine):
    class Keeps(nn.Module):
        features = None

        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 6).double(), nn.Linear(6, 2).double()

        def forward(self, x):
            self.features = {"h": torch.tanh(self.inner(x)), "name": "h"}
            return self.outer(self.features["h"])

    net, x = Keeps(), inputs()
    params = {name: value.requires_grad_() for name, value in random_params(net).items()}
    nets = copies(net, params)
    per_task(net, engine=engine)(params, x)
    for one, its in zip(nets, x, strict=True):
        one(its)
        one.features["h"].sin().sum().backward()
    assert net.features["name"] == "h"
    close(net.features["h"], torch.stack([one.features["h"] for one in nets]))
    ours = torch.autograd.grad(
        net.features["h"].sin().sum(), [params["inner.weight"], params["inner.bias"]]
    )
    close(list(ours), [*gradients_of(nets, ["inner.weight", "inner.bias"]).values()])


def test_a_number_that_differs_from_task_to_task_is_not_kept_and_tensors_are_not_put_into_lists():
    class Sums(nn.Linear):
        total = 0.0

        def forward(self, x):
            y = super().forward(x)
            self.total = float(y.sum())
            return y

    class Logs(nn.Linear):
        def __init__(self):
            super().__init__(4, 2)
            self.log = []

        def forward(self, x):
            y = super().forward(x)
            self.log.append(y)
            return y

    net = Sums(4, 2).double()
    with pytest.raises(
        BatchingError, match=r"`total`, which `forward` of Sums assigns, differs from task to task"
    ):
        per_task(net)(random_params(net), inputs())
    assert net.total == 0.0
    net = Logs().double()
    with pytest.raises(
        BatchingError, match=r"`forward` of Logs puts tensors into a list that it keeps"
    ):
        per_task(net)(random_params(net), inputs())
    assert net.log == []


@pytest.mark.parametrize("what", ["layer", "parameter", "deleted"])
@every_engine
def test_a_forward_that_makes_layers_or_deletes_is_refused(what, engine):
    class Makes(nn.Linear):
        extra = "here"

        def forward(self, x):
            if what == "layer":
                self.new = nn.Tanh()
            elif what == "parameter":
                self.new = nn.Parameter(torch.ones(2))
            else:
                del self.there
            return super().forward(x)

    net = Makes(4, 2).double()
    net.there = 3
    keys = set(vars(net))
    with pytest.raises(
        BatchingError,
        match=r"makes or replaces its (layer|parameter) 'new'|deletes its attribute 't",
    ):
        per_task(net, engine=engine)(random_params(net), inputs())
    assert set(vars(net)) == keys and not list(net.children())


class Kind(enum.Enum):
    PLAIN = 0
    CENTRED = 1


@dataclass
class Config:
    centred: bool = False


class Follows(nn.Module):
    """Centres its batch where it is told to, which the aligned engine must not fold."""

    centred = False

    def __init__(self, how):
        super().__init__()
        self.inner, self.outer, self.how = nn.Linear(4, 6).double(), nn.Linear(6, 2).double(), how
        self.config = {
            "dataclass": Config, "object": lambda: SimpleNamespace(centred=False), "enum": lambda: Kind.PLAIN,
            "dict": lambda: {"centred": False}, "list": lambda: [False], "deque": lambda: deque([False]),
            "set": set, "tuple": lambda: (False,), "numpy": lambda: np.zeros(1), "array": lambda: array.array("d", [0]),
            "nested": lambda: {"a": [Config()]}, "closure": self.made,
        }.get(how, lambda: None)()  # fmt: skip

    def made(self):
        centred = [False]
        return lambda value=None: centred[0] if value is None else centred.__setitem__(0, value)

    def turn(self, on):
        how, config = self.how, self.config
        if how in ("dataclass", "object"):
            config.centred = on
        elif how == "enum":
            self.config = Kind(int(on))
        elif how == "dict":
            config["centred"] = on
        elif how in ("list", "deque", "numpy", "array"):
            config[0] = on
        elif how == "set":
            config.add("centred") if on else config.clear()
        elif how == "tuple":
            self.config = (on,)
        elif how == "nested":
            config["a"][0].centred = on
        elif how == "closure":
            config(on)
        elif how == "global":
            globals()["SCALE"] = 2.0 if on else 1.0
        elif how == "object behind a global":
            MODE.centred = on
        elif how == "class attribute":
            type(self).centred = on
        else:
            self.centred = on

    def on(self):
        how, config = self.how, self.config
        if how in ("dataclass", "object"):
            return config.centred
        if how == "enum":
            return config is Kind.CENTRED
        if how == "set":
            return "centred" in config
        if how == "dict":
            return config["centred"]
        if how in ("list", "deque", "numpy", "array", "tuple"):
            return config[0]
        if how == "nested":
            return config["a"][0].centred
        if how == "closure":
            return config()
        if how == "global":
            return SCALE > 1.0
        return MODE.centred if how == "object behind a global" else self.centred

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        return self.outer(h - h.mean(0) if self.on() else h)


HOW = [
    "dataclass",
    "object",
    "enum",
    "dict",
    "list",
    "deque",
    "set",
    "tuple",
    "numpy",
    "array",
    "nested",
    "closure",
]
HOW += ["global", "object behind a global", "class attribute", "attribute"]


@pytest.mark.parametrize("how", HOW)
def test_what_a_base_follows_may_change_between_calls(how):
    net, x = Follows(how), inputs()
    params = random_params(net)
    call, seen = per_task(net), []
    for on in (False, True, False, True):
        net.turn(on)
        h = torch.tanh(x @ params["inner.weight"].mT + params["inner.bias"][:, None])
        h = h - h.mean(1, keepdim=True) if on else h
        expected = h @ params["outer.weight"].mT + params["outer.bias"][:, None]
        close(call(params, x), expected)
        close(per_task(net, engine="loop")(params, x), expected)
        seen.append(call.explain(params, x).engine)
        with contextlib.suppress(BatchingError):  # as asked for, it is right or refused
            close(per_task(net, engine="vmap")(params, x), expected)
    net.turn(False)
    assert seen[0] == "aligned" and seen[1] != "aligned"


class Centred(nn.Module):
    """Keeps a running mean by hand."""

    def __init__(self, how):
        super().__init__()
        self.register_buffer("mean", torch.zeros(4).double())
        self.register_buffer("count", torch.zeros(()).double())
        self.out, self.how = nn.Linear(4, 2).double(), how

    def forward(self, x):
        if self.training:
            mean = x.detach().mean(0)
            if self.how == "assigned":
                self.mean = 0.9 * self.mean + 0.1 * mean
                self.count = self.count + 1
            elif self.how == "in place":
                self.mean.mul_(0.9).add_(mean, alpha=0.1)
                self.count += 1
            else:
                self.mean[:] = 0.9 * self.mean + 0.1 * mean
                self.count.add_(1)
        return self.out(x - self.mean)


every_way = pytest.mark.parametrize("how", ["assigned", "in place", "slice"])


@every_way
@every_engine
def test_a_buffer_that_forward_writes_is_asked_about_and_nothing_is_written(how, engine):
    net = Centred(how)
    said = r"Centred (writes|assigns) its buffer"
    if engine == "aligned":
        said += r"|gives other numbers when tasks are folded"
    with pytest.raises(BatchingError, match=said):
        per_task(net, engine=engine)(random_params(net), inputs())
    assert not net.mean.any() and net.count == 0 and type(net.mean) is torch.Tensor
    net.eval()
    params, x = random_params(net), inputs()
    close(per_task(net, engine=engine)(params, x), alone(copies(net, params), x))


@every_way
@pytest.mark.parametrize("engine", ["auto", "vmap", "loop"])
def test_statistics_of_each_task_are_used_for_one_call_and_left_alone(how, engine):
    net = Centred(how)
    params = random_params(net)
    for _ in range(3):
        x = inputs()
        found = per_task(net, engine=engine, statistics="task")(params, x)
        close(found, alone(copies(net, params), x))  # fresh copies
        assert not net.mean.any()


@every_way
@pytest.mark.parametrize("engine", ["auto", "vmap", "loop"])
def test_buffers_of_tasks_are_those_of_copies_call_after_call(how, engine):
    net = Centred(how)
    params = random_params(net)
    with pytest.raises(BatchingError) as caught:
        per_task(net, engine=engine)(params, inputs())
    advice = re.search(r"`buffers=(task_buffers\(.*?\]\))`", str(caught.value)).group(1)
    buffers = eval(advice, {"task_buffers": task_buffers, "base": net, "tasks": TASKS})
    buffers = buffers if "count" in buffers else {**buffers, **task_buffers(net, TASKS, ["count"])}
    nets, call = copies(net, params), per_task(net, engine=engine, buffers=buffers)
    for _ in range(3):
        x = inputs()
        close(call(params, x), alone(nets, x))
        close(buffers["mean"], torch.stack([one.mean for one in nets]))
        close(buffers["count"], torch.stack([one.count for one in nets]))
    assert not net.mean.any() and net.count == 0


@pytest.mark.parametrize("how", ["in place", "slice"])
@pytest.mark.parametrize("engine", ["auto", "aligned"])
def test_shared_statistics_are_those_of_all_tasks_as_one_batch(how, engine):
    net = Centred(how)
    params, mean = random_params(net), torch.zeros(4).double()
    for number in range(3):
        x = inputs()
        mean = 0.9 * mean + 0.1 * x.mean((0, 1))
        found = per_task(net, engine=engine, statistics="shared")(params, x)
        close(found, (x - mean) @ params["out.weight"].mT + params["out.bias"][:, None])
        close(net.mean, mean)
        assert net.count == number + 1
    for engine in ("vmap", "loop"):
        with pytest.raises(ConfigError, match=r"`statistics=\"shared\"` does not work"):
            per_task(net, engine=engine, statistics="shared")(params, x)


@pytest.mark.parametrize("first", [nn.Tanh, lambda: nn.BatchNorm1d(6, track_running_stats=False)])
def test_a_hook_sees_one_task_after_the_other_and_what_it_keeps_can_be_read(first):
    net = nn.Sequential(nn.Linear(4, 6), first(), nn.Linear(6, 2)).double()
    params, x, kept = random_params(net), inputs(), []
    nets = copies(net, params)
    net[1].register_forward_hook(lambda module, args, output: kept.append(output))
    call = per_task(net)
    call.explain(params, x)
    assert not kept
    for _ in range(2):
        kept.clear()
        close(call(params, x), alone(nets, x))
        assert len(kept) == TASKS
        close(
            torch.stack(kept), torch.stack([one[:2](its) for one, its in zip(nets, x, strict=True)])
        )


def test_hooks_by_other_engines_see_what_they_run_or_are_refused():
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    params, x, shapes, kept = random_params(net), inputs(), [], []
    expected = alone(copies(net, params), x)
    handle = net[1].register_forward_hook(
        lambda module, args, output: shapes.append(tuple(output.shape))
    )
    for engine, seen in (
        ("loop", [(ROWS, 6)] * TASKS),
        ("vmap", [(ROWS, 6)]),
        ("aligned", [(TASKS * ROWS, 6)]),
    ):
        per_task(net, engine=engine)(params, x)
        shapes.clear()
        close(per_task(net, engine=engine)(params, x), expected)
        assert shapes == seen
    handle.remove()
    net[1].register_forward_hook(lambda module, args, output: kept.append(output))
    with pytest.raises(
        BatchingError, match=r"A hook on Sequential keeps tensors.*Pass `engine=\"loop\"`"
    ):
        per_task(net, engine="vmap")(params, x)
    kept.clear()
    per_task(net, engine="loop")(params, x)
    assert len(kept) == TASKS


@pytest.mark.parametrize("engine", ["auto", "loop"])
@pytest.mark.parametrize("how", ["forward hook", "pre hook", "backward hook"])
def test_hooks_that_change_what_passes_change_it_as_in_copies(engine, how):
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    if how == "forward hook":
        net[0].register_forward_hook(lambda module, args, output: output - output.mean(0))
    elif how == "pre hook":
        net[2].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    else:
        net[1].register_full_backward_hook(lambda module, gradients, _: (3 * gradients[0],))
    params, x = {n: v.requires_grad_() for n, v in random_params(net).items()}, inputs()
    nets = copies(net, params)
    found = per_task(net, engine=engine)(params, x)
    expected = torch.stack([one(its) for one, its in zip(nets, x, strict=True)])
    close(found, expected)
    expected.sin().sum().backward()
    ours = torch.autograd.grad(found.sin().sum(), [*params.values()])
    close(dict(zip(params, ours, strict=True)), gradients_of(nets, params))


class Clipped(nn.Module):
    """Clips and keeps gradients on the way back."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.outer, self.how = nn.Linear(4, 6).double(), nn.Linear(6, 2).double(), how

    def forward(self, x):
        h = torch.tanh(self.inner(x))
        if self.how == "retain_grad":
            h.retain_grad()
        else:
            h.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1) / (1 + gradient.norm()))
        return self.outer(h)


@pytest.mark.parametrize("how", ["register_hook", "retain_grad"])
def test_gradient_hooks_see_each_tasks_own_gradient(how):
    net, x = Clipped(how), inputs()
    params = {name: value.requires_grad_() for name, value in random_params(net).items()}
    nets = copies(net, params)
    for one, its in zip(nets, x, strict=True):
        one(its).sin().sum().backward()
    for engine in ("auto", "loop"):
        found = per_task(net, engine=engine)(params, x)
        ours = torch.autograd.grad(found.sin().sum(), [*params.values()])
        close(dict(zip(params, ours, strict=True)), gradients_of(nets, params))
    for engine in ("vmap", "aligned"):
        with pytest.raises(
            BatchingError,
            match=rf"registers a hook for gradients in `forward` \(`{how}`\).*\"loop\"",
        ):
            per_task(net, engine=engine)(params, x)


class Draws(nn.Module):
    """Draws numbers from a source in every run."""

    def __init__(self, source):
        super().__init__()
        self.layer, self.source = nn.Linear(4, 2).double(), source
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, x):
        number = {
            "torch": lambda: torch.rand(()).double(),
            "python": random.random,
            "numpy": lambda: float(np.random.rand()),
            "generator": lambda: torch.rand((), generator=self.generator).double(),
        }[self.source]()
        return self.layer(x) * number


def states(net):
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        np.random.get_state()[2],
        net.generator.get_state().tolist(),
    ]


@pytest.mark.parametrize("source", ["torch", "python", "numpy", "generator"])
def test_sources_of_random_numbers_are_where_one_run_of_each_task_leaves_them(source):
    def begin():
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        net.generator.manual_seed(5)

    net, x = Draws(source), inputs()
    params = random_params(net)
    nets = copies(net, params)
    for one in nets:
        one.generator = net.generator
    for engine in ("auto", "loop") if source != "torch" else ("loop",):
        begin()
        call = per_task(net, engine=engine)
        call.explain(params, x)
        found = [call(params, x) for _ in range(2)]
        ours = states(net)
        begin()
        close(found, [alone(nets, x) for _ in range(2)])
        assert states(net) == ours
    if source != "torch":
        for engine in ("vmap", "aligned"):
            begin()
            before = states(net)
            with pytest.raises(
                BatchingError,
                match=r"draws random numbers in `forward` that are not torch's.*\"loop\"",
            ):
                per_task(net, engine=engine)(params, x)
            assert states(net) == before


def test_each_task_draws_its_own_by_default_and_watching_uses_none_up():
    net, x = Draws("torch"), inputs()
    params = random_params(net)
    net.layer.bias.data.zero_()
    for engine in ("auto", "vmap"):
        firsts = []
        for _ in range(2):  # watched in the first call alone
            torch.manual_seed(7)
            firsts.append(per_task(net, engine=engine)(params, x))
        close(*firsts)
        y = x @ params["layer.weight"].mT + params["layer.bias"][:, None]
        drawn = (firsts[0] / y).mean((1, 2))
        assert len({round(float(number), 6) for number in drawn}) == TASKS


def test_a_cache_by_version_is_refused_and_one_that_is_cleared_is_right():
    class ByVersion(nn.Linear):
        kept, version = None, -1

        def forward(self, x):
            if self.version != self.weight._version:
                self.kept, self.version = self.weight.softmax(-1), self.weight._version
            return x @ self.kept.T

    class Cleared(nn.Linear):
        kept = None

        def forward(self, x):
            if self.kept is None:
                self.kept = self.weight.softmax(-1).detach()
            return x @ self.kept.T

    net, x = ByVersion(4, 2).double(), inputs()
    for engine in ENGINES:
        with pytest.raises(
            BatchingError, match=r"asks in `forward` how often a tensor was changed \(`_version`\)"
        ):
            per_task(net, engine=engine)(random_params(net), x)
    net = Cleared(4, 2, bias=False).double()
    for _ in range(3):
        params = random_params(net)
        net.kept = None
        close(apply_per_task(net, params, x), x @ params["weight"].softmax(-1).mT)
