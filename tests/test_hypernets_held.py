"""The base stays its caller's: what building, training, moving and copying a hypernetwork does to it, and does not."""

import copy
import gc
import pickle
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from cases import TASKS, Tied, resnet
from weightloom.base import apply_per_task
from weightloom.errors import ConfigError
from weightloom.forms import LowRank, Template
from weightloom.hypernets import (
    ChunkedHyperNetwork,
    GraphHyperNetwork,
    MLPHyperNetwork,
    StaticHyperNetwork,
    TransformerHyperNetwork,
)
from weightloom.hypernets.held import TWINS
from weightloom.networks import mlp

INITS = ["bias-hyperinit", "hyperfan-in", "hyperfan-out", "magnitude-invariant"]
BUILDERS = {
    **{f"mlp {init}": partial(MLPHyperNetwork, condition_dim=4, init=init) for init in INITS},
    **{
        f"chunked {init}": partial(ChunkedHyperNetwork, condition_dim=4, init=init)
        for init in INITS
    },
    "transformer": partial(TransformerHyperNetwork, condition_dim=4, width=8, init="hyperfan-in"),
    "frozen": partial(MLPHyperNetwork, condition_dim=4, form=LowRank(1), freeze="*"),
    "partly frozen": partial(
        MLPHyperNetwork, condition_dim=4, generate="*bias", freeze=["*weight"]
    ),
    "graph": partial(GraphHyperNetwork, condition_dim=4, hidden=8),
    "graph frozen": partial(GraphHyperNetwork, condition_dim=4, hidden=8, freeze="*"),
    "static": partial(StaticHyperNetwork, condition_dim=4, block=2),
}
every_builder = pytest.mark.parametrize("kind", BUILDERS)


def everything(module):
    """All that a module tree holds, by identity and by value."""
    return [
        (
            id(part),
            type(part),
            part.training,
            list(part._forward_hooks.items()),
            {name: id(its) for name, its in part._modules.items()},
            {
                name: (id(its), its.requires_grad, its.dtype, its.tolist())
                for name, its in part._parameters.items()
                if its is not None
            },
            {name: (id(its), its.dtype, its.tolist()) for name, its in part._buffers.items()},
            sorted(vars(part)),
        )
        for part in module.modules()
    ]


@every_builder
@pytest.mark.parametrize("train", [True, False])
def test_building_and_generating_leave_the_base_equal_to_the_last_byte(kind, train):
    base = resnet().train(train)
    base[0].weight.requires_grad_(False)
    base[1].register_forward_hook(lambda *_: None)
    before = everything(base)
    hyper = BUILDERS[kind](base)
    hyper(torch.randn(TASKS, 4))
    assert everything(base) == before


@every_builder
def test_the_base_and_what_the_hypernetwork_holds_of_it_compute_the_same(kind):
    base = resnet().eval()
    hyper = BUILDERS[kind](base)
    params, x = hyper(torch.randn(TASKS, 4)), torch.randn(TASKS, 2, 2, 5, 5)
    assert torch.equal(apply_per_task(base, params, x), apply_per_task(hyper.base, params, x))
    assert [name for name, _ in hyper.base.named_modules()] == [
        name for name, _ in base.named_modules()
    ]
    for name, value in base.state_dict().items():
        assert hyper.base.state_dict()[name].data_ptr() == value.data_ptr()


@every_builder
def test_an_optimiser_of_all_parameters_trains_what_is_trained_and_nothing_that_is_frozen(kind):
    base = resnet(track_running_stats=False)
    before = {name: value.detach().clone() for name, value in base.named_parameters()}
    hyper = BUILDERS[kind](base)
    optimiser = torch.optim.SGD(
        hyper.parameters(), lr=1.0, weight_decay=0.1
    )  # decay moves whatever is passed
    for _ in range(2):
        apply_per_task(
            hyper.base, hyper(torch.randn(TASKS, 4)), torch.randn(TASKS, 2, 2, 5, 5)
        ).square().mean().backward()
        optimiser.step()
    trained = {name for name, its in hyper.base.named_parameters() if its.requires_grad}
    moved = {name for name, its in base.named_parameters() if not torch.equal(its, before[name])}
    assert moved == trained
    assert all(hyper.base.get_parameter(name) is base.get_parameter(name) for name in trained)
    expected = {
        "frozen": set(),
        "graph frozen": set(),
        "partly frozen": {n for n in before if n.endswith("bias")},
    }
    if kind in expected:
        assert moved == expected[kind]
    if "hyperfan" in kind:
        assert not moved
    if kind in ("graph", "mlp bias-hyperinit", "chunked magnitude-invariant"):
        assert moved == set(before) and hyper.base is base


def test_hyperfan_starts_are_learned_as_the_own_values_are_by_the_others():
    """They start at zero in the place of the own values, and a step of SGD moves them by their gradient."""
    base = mlp([3, 4, 2])
    hyper = MLPHyperNetwork(base, 4, init="hyperfan-in")
    condition = torch.randn(TASKS, 4)
    before = hyper(condition)
    sum(value.sum() for value in before.values()).backward()
    hyper.head.requires_grad_(False)
    hyper.trunk.requires_grad_(False)
    torch.optim.SGD([p for p in hyper.parameters() if p.requires_grad], lr=0.5).step()
    for name, value in hyper(condition).items():
        torch.testing.assert_close(value, before[name] - 0.5 * TASKS)


def test_two_hypernetworks_over_one_frozen_base_count_it_once():
    base = mlp([3, 64, 2])
    both = nn.ModuleList(
        MLPHyperNetwork(base, 4, generate=f"{layer}.*", freeze="*") for layer in (0, 2)
    )
    own = sum(
        p.numel() for hyper in both for p in [*hyper.trunk.parameters(), *hyper.head.parameters()]
    )
    assert sum(p.numel() for p in both.parameters()) == own + sum(
        p.numel() for p in base.parameters()
    )
    twins = len(TWINS)
    del both, base
    gc.collect()
    assert len(TWINS) <= twins - 4  # kept no longer than the base


def test_a_shared_layer_and_a_tied_parameter_stay_shared():
    shared = nn.Linear(3, 3)
    base = nn.Sequential(shared, nn.Tanh(), shared)
    hyper = MLPHyperNetwork(base, 4, freeze="*")
    assert hyper.base[0] is hyper.base[2] and hyper.base[0] is not shared
    tied = MLPHyperNetwork(Tied(), 4, freeze="second.weight").base
    assert tied.first.weight is tied.second.weight and not tied.first.weight.requires_grad


class Referring(nn.Module):
    """Reaches its layers by a list, a dict, a bound method and a partial function, past its own attributes."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(3))
        self.kept = [self.layer], {"same": self.layer}
        self.run, self.part = self.layer.forward, partial(self.other, scale=2.0)

    def other(self, x, scale):
        return self.layer(x) * scale

    def forward(self, x):
        return (
            self.kept[0][0](x) + self.kept[1]["same"](x) + self.run(x) + self.part(x) * self.scale
        )


def test_what_refers_to_a_layer_by_another_way_refers_to_its_twin():
    base = Referring()
    hyper = MLPHyperNetwork(base, 4, freeze="layer.weight")
    with torch.no_grad():
        hyper.head.weight.normal_()
    params, x = hyper(torch.randn(TASKS, 4)), torch.randn(TASKS, 5, 3)
    found = apply_per_task(hyper.base, params, x, engine="loop")
    torch.testing.assert_close(found, apply_per_task(base, params, x, engine="loop"))
    assert (
        hyper.base.kept[0][0] is hyper.base.layer is not base.layer
        and base.run.__self__ is base.layer
    )


def test_a_frozen_base_moves_with_the_hypernetwork_and_with_its_caller():
    base = mlp([3, 4, 2])
    hyper = MLPHyperNetwork(base, 4, generate="2.*", freeze="*").double()
    assert all(its.dtype == torch.float64 for its in base.parameters())
    condition, x = torch.randn(TASKS, 4).double(), torch.randn(TASKS, 5, 3).double()
    assert apply_per_task(base, hyper(condition), x).dtype == torch.float64
    for own, its in zip(base.parameters(), hyper.base.parameters(), strict=True):
        assert own.data_ptr() == its.data_ptr() and own.requires_grad and not its.requires_grad
    base.float()
    hyper(condition)
    assert all(its.dtype == torch.float32 for its in hyper.base.parameters())
    with torch.no_grad():
        base[0].weight.fill_(3.0)
    assert (hyper.base[0].weight == 3.0).all()


def test_a_frozen_base_in_eval_mode_stays_there_and_another_follows():
    still = resnet().eval()
    hyper = MLPHyperNetwork(still, 4, generate="*bn*", freeze="*").train()
    assert hyper.training and hyper.trunk.training
    assert not any(part.training for tree in (still, hyper.base) for part in tree.modules())
    for base, freeze in ((resnet().eval(), "*conv*"), (resnet(), "*"), (resnet().eval(), None)):
        hyper = MLPHyperNetwork(base, 4, generate="*bn*", freeze=freeze)
        for mode in (True, False, True):
            hyper.train(mode)
            assert all(
                part.training == mode for tree in (base, hyper.base) for part in tree.modules()
            )
    asked = MLPHyperNetwork(resnet().eval().requires_grad_(False), 4, generate="*bn*").train()
    assert not any(part.training for part in asked.base.modules())


@every_builder
@pytest.mark.parametrize("how", ["copied", "pickled"])
def test_a_copy_generates_the_same_and_leaves_the_base_alone(kind, how):
    base = resnet()
    hyper, condition = BUILDERS[kind](base), torch.randn(TASKS, 4)
    other = copy.deepcopy(hyper) if how == "copied" else pickle.loads(pickle.dumps(hyper))
    before = everything(base)
    for name, value in hyper(condition).items():
        assert torch.equal(other(condition)[name] + 0, value + 0)
    other.double().train()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other(condition.double())
    assert everything(base) == before
    assert [p.requires_grad for p in other.parameters()] == [
        p.requires_grad for p in hyper.parameters()
    ]


def replaced(base):
    base[2] = nn.Linear(8, 5)


def replaced_alike(base):
    base[0] = nn.Linear(4, 8)


def reshaped(base):
    base[2].bias.data = torch.zeros(7)


def renamed(base):
    base[0].other = base[0].weight
    del base[0].weight


CHANGES = {
    "replaced": (replaced, r"`2\.weight` has shape \(5, 8\) and had \(2, 8\)"),
    "replaced alike": (replaced_alike, "was replaced"),
    "pruned": (lambda base: prune.l1_unstructured(base[0], "weight", 0.5), r"`0\.weight` is gone"),
    "parametrised": (lambda base: parametrizations.weight_norm(base[0]), r"`0\.weight` is gone"),
    "reshaped": (reshaped, r"`2\.bias` has shape \(7,\) and had \(2,\)"),
    "renamed": (renamed, r"`0\.weight` is gone"),
    "removed": (lambda base: base.pop(2), r"`2\.weight` is gone"),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "build",
    [
        partial(MLPHyperNetwork, condition_dim=5),
        partial(MLPHyperNetwork, condition_dim=5, freeze="*", generate="0.*"),
        partial(MLPHyperNetwork, condition_dim=5, init="hyperfan-in", form=Template(2)),
        partial(ChunkedHyperNetwork, condition_dim=5),
        partial(TransformerHyperNetwork, condition_dim=5),
        partial(GraphHyperNetwork, condition_dim=5),
        partial(StaticHyperNetwork, condition_dim=5, block=2, window=()),
    ],
)
def test_a_base_that_was_changed_after_building_is_refused_and_the_advice_works(build, change):
    base = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    hyper = build(base)
    how, said = CHANGES[change]
    how(base)
    with pytest.raises(
        ConfigError,
        match=rf"was changed after this hypernetwork was built: .*{said}.*build a new hypernetwork",
    ):
        hyper(torch.randn(TASKS, 5))
    if change == "replaced":
        assert build(base)(torch.randn(TASKS, 5))["0.weight"].shape == (TASKS, 8, 4)


def test_a_copy_of_a_hypernetwork_watches_its_own_base():
    hyper = copy.deepcopy(MLPHyperNetwork(mlp([4, 8, 2]), 5, freeze="0.*"))
    hyper(torch.randn(TASKS, 5))
    hyper.base[2] = nn.Linear(8, 5)
    with pytest.raises(ConfigError, match="was changed after"):
        hyper(torch.randn(TASKS, 5))


def test_a_parameter_that_was_loaded_by_assignment_is_read_and_where_it_has_a_twin_refused():
    base, state = mlp([4, 8, 2]), mlp([4, 8, 2]).state_dict()
    trained, frozen = MLPHyperNetwork(base, 5), MLPHyperNetwork(base, 5, freeze="0.*")
    base.load_state_dict(state, assign=True)
    assert torch.equal(trained(torch.randn(TASKS, 5))["0.weight"][1], state["0.weight"])
    with pytest.raises(ConfigError, match="was replaced"):
        frozen(torch.randn(TASKS, 5))


def test_a_hypernetwork_runs_with_parameters_that_are_passed_in():
    base = mlp([4, 8, 2])
    for freeze in (None, "0.*"):
        hyper, condition = MLPHyperNetwork(base, 5, freeze=freeze), torch.randn(TASKS, 5)
        values = {name: value.detach() + 1 for name, value in hyper.named_parameters()}
        params = torch.func.functional_call(hyper, values, (condition,))
        for name, value in hyper(condition).items():
            assert not torch.allclose(params[name], value)
        both = {name: torch.stack([value, value]) for name, value in values.items()}
        run = partial(torch.func.functional_call, hyper, args=(condition,))
        found = torch.func.vmap(run)(both)
        torch.testing.assert_close(found["2.bias"][1], params["2.bias"])


def test_a_frozen_base_may_be_compiled_and_one_of_torch_jit_is_told_what_to_do(recwarn):
    base = torch.compile(mlp([3, 4, 2]), backend="eager")
    hyper = MLPHyperNetwork(base, 4, freeze="*")
    with torch.no_grad():
        hyper.head.weight.normal_()
    params, x = hyper(torch.randn(1, 4)), torch.randn(6, 3)
    one = {name: value[0] for name, value in params.items()}
    plain = {name.removeprefix("_orig_mod."): value for name, value in one.items()}
    found = torch.func.functional_call(hyper.base, one, (x,))
    torch.testing.assert_close(found, torch.func.functional_call(base._orig_mod, plain, (x,)))
    scripted = nn.Sequential(torch.jit.trace(nn.Linear(3, 2), torch.randn(1, 3)))
    with pytest.raises(
        ConfigError, match=r"made by `torch\.jit`.*Call `base\.requires_grad_\(False\)` yourself"
    ):
        MLPHyperNetwork(scripted, 4, freeze="*")
    assert MLPHyperNetwork(scripted.requires_grad_(False), 4)(torch.randn(2, 4))[
        "0.weight"
    ].shape == (2, 2, 3)


class Holder:
    def __init__(self, layer):
        self.layer = layer


class Hidden(nn.Module):
    """Reaches its layer through a closure, or through an object of its own."""

    def __init__(self, how):
        super().__init__()
        layer = self.layer = nn.Linear(3, 2)
        self.run = {"closure": lambda x: layer(x), "object": Holder(layer)}[how]

    def forward(self, x):
        return self.run.layer(x) if isinstance(self.run, Holder) else self.run(x)


@pytest.mark.parametrize("how", ["closure", "object"])
def test_a_frozen_twin_reaches_its_own_layers_wherever_the_base_keeps_them(how):
    base = Hidden(how).double()
    hyper = MLPHyperNetwork(base, 4, generate="layer.weight", freeze="*").double()
    nn.init.normal_(hyper.head.weight)
    params, x = hyper(torch.randn(3, 4).double()), torch.randn(3, 5, 3).double()
    expected = torch.stack([x[t] @ params["layer.weight"][t].T + base.layer.bias for t in range(3)])
    for net in (base, hyper.base):
        torch.testing.assert_close(apply_per_task(net, params, x), expected)
