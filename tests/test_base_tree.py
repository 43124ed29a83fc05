"""What goes into a base and comes out of it: tensors at any depth, each with a tasks axis, or refused by name."""

from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    Distribution,
    Independent,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    transforms,
)
from torch.nn.utils.rnn import pack_sequence

from references import copies, gradients_of
from weightloom import LowRank, MLPHyperNetwork
from weightloom.base import per_task
from weightloom.errors import BatchingError, ConfigError

TASKS, ROWS = 3, 4
ENGINES = ["auto", "vmap", "aligned", "loop"]
every_engine = pytest.mark.parametrize("engine", ENGINES)


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@dataclass
class Result:
    score: Tensor
    features: Any = None
    name: str = "result"
    extra: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Frozen:
    score: Tensor
    features: Tensor


@dataclass(slots=True)
class Slotted:
    score: Tensor
    features: Tensor


class Pair(NamedTuple):
    score: Tensor
    features: Tensor


Old = namedtuple("Old", ["score", "features"])


class Plain:
    def __init__(self, score, features):
        self.score, self.features = score, features


def default(score, features):
    out = defaultdict(list)
    out["score"], out["features"] = score, features
    return out


KINDS = {
    "tuple": (lambda a, b: (a, b), lambda out: (out[0], out[1])),
    "list": (lambda a, b: [a, [b]], lambda out: (out[0], out[1][0])),
    "deque": (lambda a, b: deque([a, b], 5), lambda out: (out[0], out[1])),
    "dict": (
        lambda a, b: {"score": a, "more": {"features": b}, "n": 3},
        lambda out: (out["score"], out["more"]["features"]),
    ),
    "dict of numbers": (lambda a, b: {0: a, 1: b}, lambda out: (out[0], out[1])),
    "ordered dict": (lambda a, b: OrderedDict(b=b, a=a), lambda out: (out["a"], out["b"])),
    "defaultdict": (default, lambda out: (out["score"], out["features"])),
    "dataclass": (Result, lambda out: (out.score, out.features)),
    "dataclass with more": (
        lambda a, b: Result(a, (b, None), "name", {"b": [b]}),
        lambda out: (out.score, out.extra["b"][0]),
    ),
    "frozen dataclass": (Frozen, lambda out: (out.score, out.features)),
    "dataclass of slots": (Slotted, lambda out: (out.score, out.features)),
    "named tuple": (Pair, lambda out: (out.score, out.features)),
    "namedtuple": (Old, lambda out: (out.score, out.features)),
    "namespace": (
        lambda a, b: SimpleNamespace(score=a, features=b),
        lambda out: (out.score, out.features),
    ),
    "plain object": (Plain, lambda out: (out.score, out.features)),
    "nested": (
        lambda a, b: (Result(a), [Pair({"x": a}, deque([b]))]),
        lambda out: (out[0].score, out[1][0].features[0]),
    ),
}


class Gives(nn.Module):
    """Takes something with two tensors in it, and gives the like."""

    def __init__(self, make, read=None):
        super().__init__()
        self.inner, self.outer = nn.Linear(5, 6).double(), nn.Linear(6, 2).double()
        self.make, self.read = make, read

    def forward(self, x):
        a, b = (x, 0.0) if self.read is None else self.read(x)
        features = torch.tanh(self.inner(a + b))
        return self.make(self.outer(features), features)


def random_params(net):
    return {
        name: torch.randn(TASKS, *v.shape).double().requires_grad_()
        for name, v in net.named_parameters()
    }


@pytest.mark.parametrize("kind", KINDS)
@every_engine
def test_it_is_opened_on_the_way_in_and_on_the_way_out_as_for_copies(kind, engine):
    make, read = KINDS[kind]
    net = Gives(make, read)
    params, (a, b) = random_params(net), torch.randn(2, TASKS, ROWS, 5).double()
    nets = copies(net, params)
    for given, of_one in (
        (lambda run: run(params, make(a, b)), lambda one, t: one(make(a[t], b[t]))),
        (lambda run: run(params, x=make(a, b)), lambda one, t: one(x=make(a[t], b[t]))),
    ):
        outputs = given(per_task(net, engine=engine, shared=()))
        alone = [of_one(one, task) for task, one in enumerate(nets)]
        assert type(outputs) is type(alone[0])
        found, expected = (
            read(outputs),
            [torch.stack(column) for column in zip(*map(read, alone), strict=True)],
        )
        close(list(found), expected)
    sum(y.sin().sum() for y in expected).backward()
    ours = torch.autograd.grad(sum(y.sin().sum() for y in found), [*params.values()])
    close(dict(zip(params, ours, strict=True)), gradients_of(nets, params))


@every_engine
def test_what_is_no_tensor_comes_back_as_it_is(engine):
    net = Gives(
        lambda a, b: Result(
            a, None, "the name", {"three": 3, "kind": a.dtype, "deep": [(True, None, 2.5)]}
        )
    )
    found = per_task(net, engine=engine)(random_params(net), torch.randn(TASKS, ROWS, 5).double())
    assert found.name == "the name" and found.features is None
    assert found.extra == {"three": 3, "kind": torch.float64, "deep": [(True, None, 2.5)]}


@every_engine
def test_a_defaultdict_keeps_its_default_and_a_deque_its_length(engine):
    x = torch.randn(TASKS, ROWS, 5).double()
    net = Gives(default)
    assert per_task(net, engine=engine)(random_params(net), x)["new"] == []
    net = Gives(KINDS["deque"][0])
    assert per_task(net, engine=engine)(random_params(net), x).maxlen == 5


DISTRIBUTIONS = {
    "normal": lambda a, b: Normal(b[..., :2], a.exp()),
    "categorical": lambda a, b: Categorical(logits=a),
    "categorical of probabilities": lambda a, b: Categorical(probs=b.softmax(-1)),
    "bernoulli": lambda a, b: Bernoulli(logits=a),
    "independent": lambda a, b: Independent(Normal(b[..., :2], a.exp()), 1),
    "independent twice": lambda a, b: Independent(Independent(Normal(b[..., :2], a.exp()), 1), 0),
}


def sample_of(name):
    if "categorical" in name or name == "bernoulli":
        return torch.zeros(()).double()
    return torch.full((2,), 0.3).double()


@pytest.mark.parametrize("where", ["alone", "in a tuple", "in a dataclass in a list"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
@every_engine
def test_distributions_come_out_of_every_task_at_any_depth(name, where, engine):
    make = DISTRIBUTIONS[name]
    put, read = {
        "alone": (lambda d: d, lambda out: out),
        "in a tuple": (lambda d: (d, 1), lambda out: out[0]),
        "in a dataclass in a list": (
            lambda d: [Result(torch.zeros(4), d)],
            lambda out: out[0].features,
        ),
    }[where]
    if engine == "aligned" and "dataclass" in where:
        put = lambda d: [Result(None, d)]  # noqa: E731  # what has rows
    net = Gives(lambda a, b: put(make(a, b)))
    params, x = random_params(net), torch.randn(TASKS, ROWS, 5).double()
    found = read(per_task(net, engine=engine)(params, x))
    assert isinstance(found, Distribution)
    nets = copies(net, params)
    alone = [read(one(its)) for one, its in zip(nets, x, strict=True)]
    assert type(found) is type(alone[0]) and found.event_shape == alone[0].event_shape
    at = sample_of(name)
    expected = torch.stack([its.log_prob(at) for its in alone])
    close(found.log_prob(at), expected)
    close(found.entropy(), torch.stack([its.entropy() for its in alone]))
    expected.sum().backward()
    ours = torch.autograd.grad(
        found.log_prob(at).sum(), [*params.values()], materialize_grads=True, allow_unused=True
    )
    for value, (parameter, gradient) in zip(ours, [(n, [one.get_parameter(n).grad for one in nets]) for n in params],
                                            strict=True):  # fmt: skip
        none = torch.zeros_like(params[parameter][0])
        close(value, torch.stack([none if its is None else its for its in gradient]))


@every_engine
def test_distributions_go_into_every_task(engine):
    net = Gives(lambda a, b: a, lambda d: (d["prior"].base_dist.loc, d["prior"].base_dist.scale))
    params, (loc, scale) = random_params(net), torch.rand(2, TASKS, ROWS, 5).double()
    found = per_task(net, engine=engine)(
        params, {"prior": Independent(Normal(loc, scale + 0.1), 1)}
    )
    alone = [one({"prior": Independent(Normal(m, s + 0.1), 1)})
             for one, m, s in zip(copies(net, params), loc, scale, strict=True)]  # fmt: skip
    close(found, torch.stack(alone))


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: TransformedDistribution(Normal(a, 1.0 + 0 * a), [transforms.ExpTransform()]),
        lambda a, b: MultivariateNormal(a, torch.eye(2).double()),
    ],
    ids=["transformed", "multivariate"],
)
def test_distributions_whose_parameters_are_not_all_known_are_refused_or_right(make):
    net, x = Gives(make), torch.randn(TASKS, ROWS, 5).double()
    params = random_params(net)
    try:
        found = per_task(net)(params, x)
    except (ConfigError, BatchingError) as error:
        assert type(make(torch.zeros(2).double(), 0)).__name__ in str(error)
        return
    at = torch.full((2,), 0.3).double()
    alone = [one(its).log_prob(at) for one, its in zip(copies(net, params), x, strict=True)]
    close(found.log_prob(at), torch.stack(alone))


class Cell(nn.Module):
    """A recurrent cell; its state is a tuple."""

    def __init__(self):
        super().__init__()
        self.new, self.old = nn.Linear(5, 6).double(), nn.Linear(6, 6).double()

    def forward(self, x, state):
        h, c = state
        c = 0.5 * c + torch.tanh(self.new(x) + self.old(h))
        return torch.tanh(c), c


@every_engine
def test_a_state_that_is_a_tuple_is_passed_from_step_to_step(engine):
    net = Cell()
    params, x, zero = (
        random_params(net),
        torch.randn(5, TASKS, ROWS, 5).double(),
        torch.zeros(TASKS, ROWS, 6).double(),
    )
    for shared, by_name in ((None, False), ((), True)):
        run, state = per_task(net, engine=engine, shared=shared), (zero, zero)
        for step in x:
            state = run(params, step, state=state) if by_name else run(params, step, state)
        for task, one in enumerate(copies(net, params)):
            its = (zero[task], zero[task])
            for step in x:
                its = one(step[task], its)
            close([part[task] for part in state], list(its))


def test_outputs_of_transformers_are_opened_and_keep_their_kind():
    pytest.importorskip("transformers")
    from transformers.modeling_outputs import BaseModelOutput

    net = Gives(lambda a, b: BaseModelOutput(last_hidden_state=a, hidden_states=(b, a)))
    params, x = random_params(net), torch.randn(TASKS, ROWS, 5).double()
    alone = [one(its) for one, its in zip(copies(net, params), x, strict=True)]
    for engine in ENGINES:
        found = per_task(net, engine=engine)(params, x)
        assert type(found) is BaseModelOutput and list(found) == [
            "last_hidden_state",
            "hidden_states",
        ]
        close(found.last_hidden_state, torch.stack([its.last_hidden_state for its in alone]))
        close(found["hidden_states"][0], torch.stack([its.hidden_states[0] for its in alone]))


@every_engine
def test_a_cache_of_keys_and_values_that_comes_back_gives_the_logits_of_the_whole_sequence(engine):
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 11, "n_positions": 8, "n_embd": 8, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(
        bos_token_id=0, eos_token_id=0, attn_implementation="eager", **sizes
    )
    net = transformers.GPT2LMHeadModel(config).double().eval()
    hyper = MLPHyperNetwork(
        net, condition_dim=5, generate="*.mlp.*.weight", form=LowRank(2)
    ).double()
    nn.init.normal_(hyper.head.weight, std=0.3)
    ids = torch.randint(11, (TASKS, 2, 6))
    with torch.no_grad():
        params = hyper(torch.randn(TASKS, 5).double())
        dense = {name: value.dense() for name, value in params.items()}
        whole = [
            one(row, use_cache=False).logits
            for one, row in zip(copies(net, dense), ids, strict=True)
        ]
        run, cache, logits = per_task(net, engine=engine, shared=()), None, []
        for part in (ids[:, :, :3], ids[:, :, 3:5], ids[:, :, 5:]):
            try:
                out = run(params, part, past_key_values=cache)
            except BatchingError:
                assert engine == "vmap"
                return
            cache = out.past_key_values
            logits.append(out.logits)
    close(torch.cat(logits, 2), torch.stack(whole))


REFUSED = {
    "generator": (
        lambda a, b: (row for row in a),
        r"is a generator, which cannot be opened: it can be read only once",
    ),
    "set of tensors": (
        lambda a, b: {a, b},
        r"is a set, which cannot be opened: tensors in a set have no order",
    ),
    "array": (
        lambda a, b: np.ones((TASKS, ROWS)),
        r"is a ndarray, which cannot be opened.*`torch\.as_tensor\(x\)`",
    ),
    "packed sequence": (
        lambda a, b: pack_sequence([torch.ones(3, 2), torch.ones(2, 2)]),
        r"is a PackedSequence, which",
    ),
    "sparse tensor": (
        lambda a, b: torch.eye(TASKS).double().to_sparse(),
        r"is a Tensor, which cannot be opened: it is no plain",
    ),
    "closure over a tensor": (
        lambda a, b: lambda: a,
        r"is a function, which cannot be opened: it is a function that",
    ),
    "map": (
        lambda a, b: map(torch.sin, [a]),
        r"is a map, which cannot be opened: it can be read only once",
    ),
    "tensors as keys": (
        lambda a, b: {a: 1},
        r"is a dict, which cannot be opened: tensors are keys",
    ),
}


@pytest.mark.parametrize(
    ("kind", "depth"),
    [
        *((kind, "deep") for kind in REFUSED),
        *((k, "alone") for k in REFUSED if k != "sparse tensor"),
    ],
)
def test_what_cannot_be_opened_is_refused_by_name_on_the_way_in(kind, depth, unchecked):
    make, said = REFUSED[kind]
    net, ones = Gives(lambda a, b: a, lambda x: (x, x)), torch.ones(TASKS, ROWS, 5).double()
    given, path = make(ones, ones), r"`x`"
    if depth == "deep":
        given, path = {"deep": [given]}, r"`x\['deep'\]\[0\]`"
    with pytest.raises(ConfigError, match=rf"{path} {said}"):
        per_task(net)(random_params(net), given)


@pytest.mark.parametrize(
    "kind", [kind for kind in REFUSED if kind not in ("tensors as keys", "sparse tensor")]
)
@every_engine
def test_what_cannot_be_opened_is_refused_by_name_on_the_way_out(kind, engine):
    make, said = REFUSED[kind]
    net, x = Gives(make), torch.randn(TASKS, ROWS, 5).double()
    with pytest.raises((ConfigError, BatchingError), match=rf"The output of the base {said}"):
        per_task(net, engine=engine)(random_params(net), x)


def test_what_holds_itself_is_refused():
    loop: list[Any] = [torch.ones(TASKS, ROWS, 5).double()]
    loop.append(loop)
    net = Gives(lambda a, b: a)
    with pytest.raises(
        ConfigError, match=r"`x\[1\]` is a list, which cannot be opened: it holds itself"
    ):
        per_task(net)(random_params(net), loop)


@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_a_number_that_differs_from_task_to_task_is_refused_and_the_advice_works(engine):
    net, x = Gives(lambda a, b: (a, float(a.detach().sum()))), torch.randn(TASKS, ROWS, 5).double()
    params = random_params(net)
    with pytest.raises(
        BatchingError,
        match=r"differs from task to task.*Return a tensor in its place, as in `torch",
    ):
        per_task(net, engine=engine)(params, x)
    net.make = lambda a, b: (a, torch.tensor(float(a.detach().sum())))
    alone = [one(its)[1] for one, its in zip(copies(net, params), x, strict=True)]
    close(per_task(net, engine=engine)(params, x)[1], torch.stack(alone))


@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_shapes_that_differ_from_task_to_task_are_refused_and_the_advice_works(engine):
    net, x = Gives(lambda a, b: a[a[:, 0] > 0]), torch.randn(TASKS, ROWS, 5).double()
    params = random_params(net)
    assert len({len(one(its)) for one, its in zip(copies(net, params), x, strict=True)}) > 1
    with pytest.raises(
        BatchingError,
        match=r"different shapes or dtypes for different tasks.*Pad them, or run these",
    ):
        per_task(net, engine=engine)(params, x)
    net.make = lambda a, b: nn.functional.pad(
        a[a[:, 0] > 0], (0, 0, 0, ROWS - int((a[:, 0] > 0).sum()))
    )
    alone = [one(its) for one, its in zip(copies(net, params), x, strict=True)]
    close(per_task(net, engine=engine)(params, x), torch.stack(alone))


@pytest.mark.parametrize("engine", ["auto", "loop"])
def test_a_structure_that_differs_from_task_to_task_is_refused(engine):
    net, x = (
        Gives(lambda a, b: {"a": a} if a.sum() > 0 else {"b": a}),
        torch.randn(8, TASKS, ROWS, 5).double(),
    )
    params = random_params(net)
    nets = copies(net, params)
    its = next(
        one for one in x if len({tuple(n(row)) for n, row in zip(nets, one, strict=True)}) > 1
    )
    with pytest.raises(
        BatchingError, match=r"differs from task to task in a value that is no tensor"
    ):
        per_task(net, engine=engine)(params, its)
