"""Params in a file: equal numbers in the same forms, each tensor once, nothing damaged or foreign read."""

import copy

import pytest
import torch
from torch import nn

from cases import FORMS, Tied
from weightloom.base import apply_per_task
from weightloom.errors import CheckpointError, ConfigError
from weightloom.files import load_tensors, save_tensors
from weightloom.forms import Factored, Form, LowRank, RowScale
from weightloom.forms.files import load_params, save_params
from weightloom.hypernets import MLPHyperNetwork
from weightloom.networks import mlp

every_form = pytest.mark.parametrize("form", FORMS)


class Doubled(Form):
    """A form of a user's own."""

    needs = "a parameter of any shape"

    def fit(self, shape, owner):
        return self

    def factor_shapes(self, shape):
        return {"half": shape}

    def dense(self, own, parts):
        return own + 2 * parts["half"]


def generated(form, base=None):
    hyper = MLPHyperNetwork(base or mlp([6, 5, 4]), 3, form=form).double()
    nn.init.normal_(hyper.head.weight)
    with torch.no_grad():
        return hyper, hyper(torch.randn(3, 3, dtype=torch.float64))


def assert_same(loaded, params):
    assert list(loaded) == list(params)
    for name, value in params.items():
        assert isinstance(loaded[name], Factored) == isinstance(value, Factored)
        if isinstance(value, Factored):
            assert loaded[name].form == value.form and loaded[name].own.equal(value.own)
            for part, tensor in value.parts.items():
                assert loaded[name].parts[part].equal(tensor)
        else:
            assert loaded[name].equal(value)
        assert not loaded[name].requires_grad and loaded[name].dtype == value.dtype


@every_form
@pytest.mark.parametrize("with_own", [True, False])
def test_params_come_back_in_their_forms_with_equal_numbers(form, with_own, tmp_path):
    hyper, params = generated(form)
    save_params(tmp_path / "a.safetensors", params, with_own)
    loaded = load_params(
        tmp_path / "a.safetensors", None if with_own else hyper.base.requires_grad_(False)
    )  # nothing to learn: as loaded
    assert_same(loaded, params)
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    assert torch.equal(apply_per_task(hyper.base, loaded, x), apply_per_task(hyper.base, params, x))


def test_what_is_held_together_is_written_once_and_loaded_as_one(tmp_path):
    _, params = generated(LowRank(2), Tied())
    weight = params["first.weight"]
    twice = {
        "a": weight,
        "b": Factored(weight.form, weight.own, {n: 2 * f for n, f in weight.factors.items()}),
    }
    save_params(tmp_path / "a.safetensors", twice)
    loaded = load_params(tmp_path / "a.safetensors")
    assert loaded["a"].own is loaded["b"].own
    assert_same(loaded, twice)
    assert sorted(load_tensors(tmp_path / "a.safetensors")[0]) == [
        "a/down",
        "a/own",
        "a/up",
        "b/down",
        "b/up",
    ]


def test_own_values_that_are_given_take_the_place_of_those_in_the_file(tmp_path):
    hyper, params = generated(RowScale())
    save_params(tmp_path / "a.safetensors", params)
    loaded = load_params(tmp_path / "a.safetensors", hyper.base)
    assert loaded["0.weight"].own is hyper.base.get_parameter("0.weight")


def test_a_form_of_your_own_is_saved_built(tmp_path):
    own, half = torch.randn(2), torch.randn(3, 2)
    save_params(tmp_path / "a.safetensors", {"bias": Factored(Doubled(), own, {"half": half})})
    loaded = load_params(tmp_path / "a.safetensors")["bias"]
    assert type(loaded) is torch.Tensor and torch.equal(loaded, own + 2 * half)


def test_no_params_are_fine(tmp_path):
    save_params(tmp_path / "a.safetensors", {})
    assert load_params(tmp_path / "a.safetensors") == {}


def test_another_base_is_noticed_and_a_missing_one_asked_for(tmp_path):
    hyper, params = generated(LowRank(2))
    save_params(tmp_path / "a.safetensors", params, with_own=False)
    with pytest.raises(ConfigError, match=r"written without own values.*Pass `own=base`"):
        load_params(tmp_path / "a.safetensors")
    other = copy.deepcopy(hyper.base)
    with torch.no_grad():
        other[0].weight[0, 0] += 1e-6
    with pytest.raises(CheckpointError, match=r"`own` holds another '0.weight'.*`with_own=True`"):
        load_params(tmp_path / "a.safetensors", other)


def test_damage_is_noticed_anywhere(tmp_path):
    _, params = generated(LowRank(2))
    path, broken = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_params(path, {"0.weight": params["0.weight"]})
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        broken.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            load_params(broken)
    for length in range(0, len(whole), 61):
        broken.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated"):
            load_params(broken)


def test_files_of_another_kind_are_named(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"w": torch.zeros(2)}, {"step": 1})
    with pytest.raises(CheckpointError, match=r"holds no Params \(kind None\).*`load_tensors`"):
        load_params(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("form", "options", "said"),
    [
        ("Quantum", {}, "which this version of the library does not have"),
        ("budget", {}, "which this version of the library does not have"),
        ("Form", {}, "which this version of the library does not have"),
        ("LowRank", {"depth": 2}, "that this version of the library does not take"),
        ("LowRank", {"rank": 0}, "`rank=0` is below 1"),
    ],
)
def test_forms_that_are_not_known_are_refused(form, options, said, tmp_path):
    held = {
        "name": "w",
        "form": form,
        "options": options,
        "factors": {},
        "shared": {},
        "own": "own",
        "own_digest": "",
    }
    facts = {"kind": "params-1", "values": [held]}
    save_tensors(tmp_path / "a.safetensors", {"own": torch.zeros(2, 2)}, facts)
    with pytest.raises(CheckpointError, match=said):
        load_params(tmp_path / "a.safetensors")
