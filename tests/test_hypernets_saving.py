"""A hypernetwork in a file: what it holds, that it comes back as it was, and over which base only."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from cases import TASKS, Tied, conv, resnet
from weightloom.base import apply_per_task
from weightloom.errors import CheckpointError, ConfigError
from weightloom.files import load_tensors, save_tensors
from weightloom.forms import FiLM, Full, LowRank, RowScale, Template, budget
from weightloom.forms.factored import built
from weightloom.hypernets import (
    ChunkedHyperNetwork,
    GraphHyperNetwork,
    MLPHyperNetwork,
    StaticHyperNetwork,
    TransformerHyperNetwork,
)
from weightloom.networks import mlp


def as_it_is(name, parameter):
    return parameter.ndim == 1


BUILDERS = {
    "mlp": partial(MLPHyperNetwork, hidden=(8, 6)),
    "mlp linear": partial(MLPHyperNetwork, hidden=(), init="magnitude-invariant"),
    "mlp of forms": partial(
        MLPHyperNetwork, generate={"0.weight": LowRank(1), nn.Module: Template(2)}
    ),
    "mlp of a predicate": partial(
        MLPHyperNetwork, generate=as_it_is, form=FiLM(), freeze=nn.Module
    ),
    "mlp from zero": partial(MLPHyperNetwork, init="hyperfan-in", freeze="*.bias"),
    "chunked": partial(
        ChunkedHyperNetwork, slice_size=50, embedding_dim=3, hidden=(8,), init="hyperfan-out"
    ),
    "transformer": partial(
        TransformerHyperNetwork, slice_size=50, width=8, heads=2, form=RowScale(), freeze="*"
    ),
    "graph": partial(
        GraphHyperNetwork, hidden=8, rounds=1, tile=3, generate=["*.weight", "*bias"], form=FiLM()
    ),
    "graph of forms": partial(
        GraphHyperNetwork, hidden=8, generate={"0.weight": LowRank(1), "*": Full()}, freeze="*"
    ),
    "static": partial(StaticHyperNetwork, block=2, embedding_dim=3, hidden=5),
}


def trained(hyper, steps=3):
    """As after some steps of training on nothing in particular."""
    optimiser = torch.optim.Adam([p for p in hyper.parameters() if p.requires_grad], lr=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        sum(
            built(value).square().sum() for value in hyper(torch.randn(TASKS, 4)).values()
        ).backward()
        optimiser.step()
    return hyper


def assert_same(hyper, other, condition):
    for (name, value), its in zip(hyper(condition).items(), other(condition).values(), strict=True):
        assert torch.equal(built(value), built(its)), name


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("build", [resnet, conv])
@pytest.mark.parametrize("double", [False, True])
def test_what_is_loaded_is_what_was_saved_and_is_trained_on_alike(tmp_path, kind, build, double):
    base = build()
    fresh = copy.deepcopy(base)
    hyper = trained(BUILDERS[kind](base, condition_dim=4))
    if double:
        hyper, fresh = hyper.double(), fresh.double()
    hyper.save(tmp_path / "a.safetensors")
    before = torch.get_rng_state()
    other = type(hyper).load(str(tmp_path / "a.safetensors"), fresh)
    assert torch.equal(torch.get_rng_state(), before)
    condition, x = torch.randn(TASKS, 4), torch.randn(TASKS, 2, 2, 6, 6)
    if double:
        condition, x = condition.double(), x.double()
    assert_same(hyper, other, condition)
    for one in (hyper.eval(), other.eval()):
        one.outputs = apply_per_task(one.base, one(condition), x)
    assert torch.equal(hyper.outputs, other.outputs)
    needs = [[n for n, p in one.named_parameters() if p.requires_grad] for one in (hyper, other)]
    assert needs[0] == needs[1] and repr(hyper) == repr(other)
    assert_same(
        other, type(hyper).load(_saved(other, tmp_path / "b.safetensors"), fresh), condition
    )


def _saved(hyper, path):
    hyper.save(path)
    return path


def test_hypernetworks_of_one_layer_each_over_one_base_train_save_and_load(tmp_path):
    base = mlp([3, 40, 40, 1])
    fresh = copy.deepcopy(base)
    layers = ("0.*", "2.*", "4.*")
    several = nn.ModuleList(
        MLPHyperNetwork(base, 4, generate=layer, freeze="*") for layer in layers
    )
    before = {name: value.clone() for name, value in base.state_dict().items()}
    condition, x, y = torch.randn(TASKS, 4), torch.randn(TASKS, 8, 3), torch.randn(TASKS, 8, 1)
    optimiser = torch.optim.Adam(several.parameters(), lr=0.01)

    def predict(base, hypers):
        return apply_per_task(
            base, {n: v for hyper in hypers for n, v in hyper(condition).items()}, x
        )

    losses = []
    for _ in range(60):
        loss = (predict(base, several) - y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    for number, hyper in enumerate(several):
        hyper.save(tmp_path / f"{number}.safetensors")
    loaded = [
        MLPHyperNetwork.load(tmp_path / f"{number}.safetensors", fresh) for number in range(3)
    ]
    assert torch.equal(predict(fresh, loaded), predict(base, several))


def test_a_file_holds_the_own_numbers_and_what_was_trained_in_the_base_alone(tmp_path):
    base = nn.Sequential(nn.Linear(400, 400), nn.Linear(400, 10), nn.Linear(10, 2))
    own = {"": 4 * 8 + 8 + 8 * 22 + 22}
    for freeze, more in (("*", 0), (["0.*"], 4032), (["0.*", "1.*"], 22)):
        hyper = MLPHyperNetwork(copy.deepcopy(base), 4, generate="2.*", hidden=(8,), freeze=freeze)
        hyper.save(tmp_path / "a.safetensors")
        tensors, _ = load_tensors(tmp_path / "a.safetensors")
        assert sum(value.numel() for value in tensors.values()) == own[""] + more
        assert (tmp_path / "a.safetensors").stat().st_size < 4 * (own[""] + more) + 4000
    frozen_by_hand = MLPHyperNetwork(base.requires_grad_(False), 4, generate="2.*", hidden=(8,))
    frozen_by_hand.save(tmp_path / "a.safetensors")
    assert (
        sum(value.numel() for value in load_tensors(tmp_path / "a.safetensors")[0].values())
        == own[""]
    )


def test_statistics_that_moved_in_training_are_held_and_those_of_a_still_base_are_not(tmp_path):
    for base, freeze in ((resnet(), "*"), (resnet().eval(), "*conv*"), (resnet().eval(), "*")):
        fresh = copy.deepcopy(base)
        hyper = MLPHyperNetwork(base, 4, generate="*bn*", freeze=freeze).train()
        hyper.base(torch.randn(6, 2, 5, 5))
        hyper.save(tmp_path / "a.safetensors")
        other = MLPHyperNetwork.load(tmp_path / "a.safetensors", fresh)
        assert torch.equal(other.base[1].running_mean, base[1].running_mean)
        held = [name for name in load_tensors(tmp_path / "a.safetensors")[0] if "running" in name]
        assert bool(held) == base.training or freeze == "*conv*"


def test_a_tied_parameter_is_written_once_and_loaded_tied(tmp_path):
    hyper = trained(MLPHyperNetwork(Tied(), 4))
    hyper.save(tmp_path / "a.safetensors")
    assert (
        len(
            [
                n
                for n in load_tensors(tmp_path / "a.safetensors")[0]
                if n.endswith("weight") and ".base." in n
            ]
        )
        == 1
    )
    other = MLPHyperNetwork.load(tmp_path / "a.safetensors", Tied())
    assert other.base.first.weight is other.base.second.weight
    assert_same(hyper, other, torch.randn(TASKS, 4))


def test_several_bases_and_those_added_later_are_loaded_as_a_list(tmp_path):
    bases = [mlp([3, 4, 2]), mlp([3, 5, 5, 2])]
    hyper = GraphHyperNetwork(bases[0], 4, hidden=8)
    hyper.add(bases[1])
    fresh = copy.deepcopy(bases)
    trained(hyper).save(tmp_path / "a.safetensors")
    other = GraphHyperNetwork.load(tmp_path / "a.safetensors", fresh)
    for number in range(2):
        params, its = (one(torch.ones(TASKS, 4), architecture=number) for one in (hyper, other))
        assert all(torch.equal(value, its[name]) for name, value in params.items())
    unseen = mlp([3, 4, 4, 2])
    assert torch.equal(
        hyper(torch.ones(1, 4), base=unseen)["0.bias"],
        other(torch.ones(1, 4), base=unseen)["0.bias"],
    )
    with pytest.raises(
        CheckpointError, match=r"over 2 bases, and 1 were passed.*Pass them as a list"
    ):
        GraphHyperNetwork.load(tmp_path / "a.safetensors", fresh[0])


def test_another_base_is_refused_by_the_first_parameter_that_differs_and_left_as_it_is(tmp_path):
    base = mlp([3, 4, 2])
    hyper = MLPHyperNetwork(base, 4, generate="2.*", freeze="0.*")
    trained(hyper).save(tmp_path / "a.safetensors")
    other = copy.deepcopy(base)
    with torch.no_grad():
        other[0].weight[1, 2] += 1e-6
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(
        CheckpointError,
        match=r"`base` holds another `0\.weight`.*is frozen.*Load the original base",
    ):
        MLPHyperNetwork.load(tmp_path / "a.safetensors", other)
    for wrong, said in (
        (mlp([3, 5, 2]), r"`0\.bias` is of shape \(5,\) and was of shape \(4,\)"),
        (mlp([3, 4]), r"`2\.bias` is absent and was of shape \(2,\)"),
    ):
        with pytest.raises(
            CheckpointError, match=rf"`base` is another.*{said}.*Pass a base of the same layers"
        ):
            MLPHyperNetwork.load(tmp_path / "a.safetensors", wrong)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_file_of_another_kind_is_named_and_the_advice_works(tmp_path):
    path, base = tmp_path / "a.safetensors", mlp([3, 4, 2])
    ChunkedHyperNetwork(base, 4).save(path)
    with pytest.raises(
        CheckpointError, match=r"holds a ChunkedHyperNetwork, not a MLP.*`ChunkedHyperNetwork\.load"
    ):
        MLPHyperNetwork.load(path, base)
    assert ChunkedHyperNetwork.load(path, base).chunks == 1
    save_tensors(path, {}, {})
    with pytest.raises(
        CheckpointError, match=r"holds no hypernetwork \(kind None\).*`load_tensors`"
    ):
        MLPHyperNetwork.load(path, base)
    with pytest.raises(CheckpointError, match="There is no file"):
        MLPHyperNetwork.load(tmp_path / "none.safetensors", base)


class Mine(Full):
    """A form that no file can name."""


def test_what_is_code_is_asked_for_when_it_is_loaded_and_the_advice_works(tmp_path):
    path, base = tmp_path / "a.safetensors", mlp([3, 4, 2])
    hyper = trained(MLPHyperNetwork(base, 4, form=Mine()))
    hyper.save(path)
    with pytest.raises(
        ConfigError, match=r"does not hold `generate`.*`load\(path, base, generate=\.\.\.\)`"
    ):
        MLPHyperNetwork.load(path, base)
    assert_same(
        hyper, MLPHyperNetwork.load(path, base, generate={"*": Mine()}), torch.randn(TASKS, 4)
    )
    graph = GraphHyperNetwork(base, 4, hidden=8, generate=as_it_is, freeze=nn.Linear)
    graph.save(path)
    with pytest.raises(ConfigError, match="does not hold `generate`"):
        GraphHyperNetwork.load(path, base, freeze=nn.Linear)
    assert_same(
        graph,
        GraphHyperNetwork.load(path, base, freeze="*", generate=as_it_is),
        torch.randn(TASKS, 4),
    )


def test_other_options_than_those_that_were_saved_are_refused(tmp_path):
    path, base = tmp_path / "a.safetensors", mlp([3, 4, 2])
    MLPHyperNetwork(base, 4).save(path)
    with pytest.raises(
        CheckpointError,
        match=r"does not have in that shape.*Pass the options that it was built with",
    ):
        MLPHyperNetwork.load(path, base, hidden=(7,))
    with pytest.raises(CheckpointError, match=r"lacks 'trunk\.2\.bias'"):
        MLPHyperNetwork.load(path, base, hidden=(64, 64))


def test_a_plan_of_a_budget_is_saved_with_it(tmp_path):
    base = mlp([16, 24, 24, 4])
    hyper = MLPHyperNetwork(base, 4, generate=budget(base, 20_000))
    trained(hyper).save(tmp_path / "a.safetensors")
    other = MLPHyperNetwork.load(tmp_path / "a.safetensors", base)
    assert other.generated.forms == hyper.generated.forms
    assert_same(hyper, other, torch.randn(TASKS, 4))
