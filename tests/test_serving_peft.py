"""Adapters in the format of `peft`: equal to its own load, both ways, and refused where they differ."""

import copy
import errno
import json
import os
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from weightloom.base import per_task, specialise
from weightloom.errors import CheckpointError, ConfigError, ShapeError
from weightloom.forms import Factored, FiLM, LowRank, add, to_rank
from weightloom.hypernets import AdapterHyperNetwork, MLPHyperNetwork
from weightloom.networks import mlp
from weightloom.params import Params
from weightloom.serving import load_peft, save_peft

peft = pytest.importorskip("peft")
from transformers.pytorch_utils import Conv1D  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:The following .* keys did not match:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'. .* have invalid shape"),  # biases of B
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
]
WIDTH, SYMBOLS = 12, 11


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)
        self.norm, self.fc, self.out = nn.LayerNorm(WIDTH), Conv1D(20, WIDTH), nn.Linear(20, WIDTH)

    def forward(self, x):
        x = x + torch.tanh(self.query(x)) * self.value(x)
        return x + self.out(torch.relu(self.fc(self.norm(x))))


class Net(nn.Module):
    """A layer of every kind that `peft` adapts as this library does."""

    def __init__(self):
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, WIDTH)
        self.image, self.line = nn.Conv2d(2, WIDTH, 3), nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.body = nn.Module()
        self.body.layers = nn.ModuleList(Block() for _ in range(2))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, ids, image):
        x = self.symbols(ids) + self.image(image).mean((2, 3))[:, None]
        x = torch.tanh(self.line(x.mT).mT)
        for layer in self.body.layers:
            x = layer(x)
        return self.head(x)


LAYERS = [
    *("symbols", "image", "line", "head"),
    *(f"body.layers.{n}.{leaf}" for n in (0, 1) for leaf in ("query", "value", "fc", "out")),
]


def net():
    torch.manual_seed(0)
    return Net().double().eval()


def inputs():
    return torch.randint(SYMBOLS, (3, 6)), torch.randn(3, 2, 4, 4).double()


def random_params(model, draw, layers, tasks=1, ranks=(1, 2, 4)):
    params = Params()
    for path in layers:
        own = model.get_parameter(f"{path}.weight").detach()
        rank, columns = draw.choice(ranks), own[0].numel()
        factors = {
            "up": 0.3 * torch.randn(tasks, len(own), rank).to(own),
            "down": 0.3 * torch.randn(tasks, rank, columns).to(own),
        }
        params[f"{path}.weight"] = Factored(LowRank(rank), own, factors)
    return params


def by_peft(model, folder):
    return peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


def assert_equal(found, expected, plain):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert (expected - plain).abs().max() > 1e-3  # the adapter does count


@pytest.mark.parametrize("seed", range(50))
def test_peft_loads_what_we_write_and_gives_the_same_logits(tmp_path, seed):
    draw, model = random.Random(seed), net()
    torch.manual_seed(seed)
    layers = draw.sample(LAYERS, draw.randint(1, len(LAYERS)))
    params = random_params(model, draw, layers, ranks=draw.choice([(2,), (1, 2, 4)]))
    if draw.random() < 0.5:
        names = [name for name, _ in model.named_parameters() if name.endswith(".bias")]
        for name in draw.sample(names, 3):
            params[name] = torch.randn_like(model.get_parameter(name))[None]
    alpha, rslora = draw.choice([None, 1.0, 6.0, 16.0]), draw.random() < 0.5
    (folder,) = save_peft(params, ["ann"], tmp_path, model, alpha=alpha, rslora=rslora)
    x = inputs()
    with torch.no_grad():
        found, plain = by_peft(model, folder)(*x), model(*x)
        assert_equal(found, specialise(model, params)(*x), plain)
    again = load_peft(folder, model)
    assert again.keys() == params.keys()
    for name, value in params.items():
        tensors = [its.factors.values() if isinstance(its, Factored) else [its]
                   for its in (value, again[name])]  # fmt: skip
        for mine, its in zip(*tensors, strict=True):
            if alpha is None:
                assert torch.equal(mine, its)  # bit for bit
            torch.testing.assert_close(mine, its, rtol=3e-16, atol=0)


def random_config(draw):
    targets = draw.choice(
        [
            draw.sample(LAYERS, 4),
            ["query", "value"],
            ["fc", "symbols", "image"],
            r"body\.layers\.\d\.(query|out)|line",
            "all-linear",
        ]
    )
    options = {"r": draw.choice([1, 2, 3, 8]), "lora_alpha": draw.choice([1, 4, 7, 16])}
    options |= {
        "use_rslora": draw.random() < 0.5,
        "bias": draw.choice(["none", "all", "lora_only"]),
    }
    if draw.random() < 0.5:
        options["rank_pattern"] = {"query": 3, r"^body\.layers\.1\.value": 2, "image": 1}
        options["alpha_pattern"] = {r"layers\.0\.\w+": 5}
    if isinstance(targets, list) and draw.random() < 0.3:
        options["exclude_modules"] = ["body.layers.1.query"]
    if targets == ["query", "value"] and draw.random() < 0.7:
        options |= {"layers_to_transform": [1]} | draw.choice([{}, {"layers_pattern": "layers"}])
    if targets != ["query", "value"] and draw.random() < 0.2 and "value" not in str(targets):
        options["lora_bias"] = targets not in ("all-linear", ["fc", "symbols", "image"])
    return peft.LoraConfig(target_modules=targets, init_lora_weights=False, **options)


@pytest.mark.parametrize("seed", range(50))
def test_we_load_what_peft_writes_and_give_the_same_logits(tmp_path, seed):
    draw, model = random.Random(seed), net()
    torch.manual_seed(seed)
    theirs = peft.get_peft_model(copy.deepcopy(model), random_config(draw)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:  # as if trained, biases too
                parameter.add_(0.2 * torch.randn_like(parameter))
        theirs.save_pretrained(tmp_path)
        x = inputs()
        params = load_peft(tmp_path, model)
        expected, plain = theirs(*x), model(*x)
        assert_equal(specialise(model, params)(*x), expected, plain)
        found = per_task(model, shared=())(params, *(its[None] for its in x))
    torch.testing.assert_close(found[0], expected, rtol=1e-9, atol=1e-9)


def test_the_program_of_the_page_runs_on_a_masked_bert(tmp_path):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False).eval()
    hyper = AdapterHyperNetwork(
        model, generate="*.query.weight", form=LowRank(8), condition_dim=384
    )
    assert hyper.generator.kinds == ["attention.self.query"]
    nn.init.normal_(hyper.generator.up.weight, std=10.0)  # attention of a fresh BERT is flat
    users, user_of_row = torch.randn(2, 384), torch.tensor([1, 0, 1])
    texts = {"input_ids": torch.randint(50, (3, 7)), "attention_mask": torch.ones(3, 7).long()}
    texts["attention_mask"][1, 4:] = 0
    with torch.no_grad():
        params = hyper(users)
        out = per_task(model, shared=()).by_row(params, user_of_row, **texts)
        folders = save_peft(params, ["ann", "bob"], tmp_path / "adapters")
        for row, user in enumerate(user_of_row):
            one = {name: its[row : row + 1] for name, its in texts.items()}
            expected = by_peft(model, folders[user])(**one).last_hidden_state
            torch.testing.assert_close(
                out.last_hidden_state[row], expected[0], rtol=1e-5, atol=1e-5
            )
    assert (expected - model(**one).last_hidden_state).abs().max() > 1e-2


def test_several_folders_are_tasks_whatever_they_adapt(tmp_path):
    model, draw = net(), random.Random(0)
    sets = [random_params(model, draw, ["head", "line"], ranks=(2,)),
            random_params(model, draw, ["head", "body.layers.0.query"], ranks=(3,))]  # fmt: skip
    sets[1]["body.layers.1.norm.bias"] = torch.ones(1, WIDTH).double()
    folders = [save_peft(its, [str(n)], tmp_path, model)[0] for n, its in enumerate(sets)]
    both, x = load_peft(folders, model), inputs()
    assert both.tasks == 2 and both["head.weight"].form == LowRank(3)
    for task in (0, 1):
        alone = specialise(model, sets[task])(*x)
        torch.testing.assert_close(specialise(model, both, task)(*x), alone)


def test_adapters_are_joined_lowered_in_rank_and_merged(tmp_path):
    model, draw, x = net(), random.Random(1), inputs()
    params = random_params(model, draw, ["head", "body.layers.0.out"], ranks=(1,))
    (folder,) = save_peft(params, ["ann"], tmp_path, model)
    joined, error = to_rank(add(load_peft(folder, model), params), 1)  # the same one twice
    assert error.max() < 1e-5
    (twice,) = save_peft(joined, ["twice"], tmp_path, model)
    expected = by_peft(model, folder)
    for module in expected.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 2)
    with torch.no_grad():
        torch.testing.assert_close(by_peft(model, twice)(*x), expected(*x))
        merged = by_peft(model, folder).merge_and_unload()
        torch.testing.assert_close(specialise(model, params)(*x), merged(*x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_bit_for_bit_and_into_a_wider_model(tmp_path, dtype):
    model = mlp([8, 16, 4]).to(dtype)
    hyper = AdapterHyperNetwork(model, condition_dim=3, form=LowRank(2))
    nn.init.normal_(hyper.generator.up.weight)
    params = hyper(torch.randn(1, 3))
    (folder,) = save_peft(params, ["ann"], tmp_path, model)
    for wide in (False, True):
        found = load_peft(folder, copy.deepcopy(model).float() if wide else model)["0.weight"]
        assert found.dtype == (torch.float32 if wide else dtype)
        for name, its in params["0.weight"].factors.items():
            assert torch.equal(found.factors[name].to(dtype), its)


def test_targets_that_end_other_names_reach_their_own_layers_only(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.inner = nn.Linear(4, 4), nn.ModuleDict({"fc": nn.Linear(4, 4)})

        def forward(self, x):
            return self.inner["fc"](torch.tanh(self.fc(x)))

    model, draw, x = Twice(), random.Random(0), torch.randn(3, 4)
    params = random_params(model, draw, ["fc"], ranks=(2,))
    (folder,) = save_peft(params, ["ann"], tmp_path, model)
    assert json.loads((folder / "adapter_config.json").read_text())["target_modules"] == "fc"
    with torch.no_grad():
        torch.testing.assert_close(by_peft(model, folder)(x), specialise(model, params)(x))
    assert load_peft(folder, model).keys() == {"fc.weight"}


@pytest.fixture
def written(tmp_path):
    """A model, its adapter of two layers, and the adapter's folder."""
    model = net()
    params = random_params(model, random.Random(0), ["head", "body.layers.0.query"], ranks=(2,))
    (folder,) = save_peft(params, ["ann"], tmp_path, model)
    return model, params, folder


def edited(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "type 'IA3'.*merge_and_unload"),
        ({"use_dora": True}, "uses `use_dora`"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4"),
        ({"modules_to_save": ["head"]}, "uses `modules_to_save`"),
        ({"kasa_config": {"beta": 1}}, "uses `kasa_config`"),
        ({"target_modules": ["q_proj"]}, "layers `q_proj`, which match none of Net"),
        (
            {"target_modules": ["head", "query"]},
            r"lacks `body.layers.1.query.lora_A.weight`, .*lora_B",
        ),
        ({"target_modules": ["head"]}, r"holds `body.layers.0.query.lora_A.weight`, .*no place"),
        ({"target_modules": "head|("}, "cannot be read as the configuration.*missing"),
        ({"rank_pattern": {"head": 3}}, r"shapes \(2, 12\) and \(5, 2\) for `head`"),
        ({"r": 0}, "the rank 0 and alpha"),
        ({"lora_alpha": "two"}, "alpha 'two'"),
        ({"lora_alpha": float("nan")}, "alpha nan"),
        ({"rank_pattern": ["head"]}, "cannot be read as the configuration"),
        ({"layers_to_transform": "1"}, "`layers_to_transform` is '1'"),
        ({"target_modules": {"head": 1}}, "`target_modules` is {'head': 1}"),
    ],
)
def test_other_methods_and_configurations_that_do_not_fit_are_refused(written, changes, message):
    model, _, folder = written
    edited(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_peft(folder, model)


def test_an_adapter_of_another_architecture_lists_missing_and_extra_tensors(written):
    _, _, folder = written
    other = net()
    other.body.layers[0].query = nn.Linear(WIDTH, 7)
    with pytest.raises(
        CheckpointError, match=r"`body.layers.0.query`. A weight of shape \(7, 12\)"
    ):
        load_peft(folder, other)
    del other.body.layers[0]
    other.body.layers = nn.ModuleList([*other.body.layers])
    other.body.layers[0].query = nn.Identity()
    with pytest.raises(CheckpointError, match=r"holds `body.layers.0.query.lora_A.weight`"):
        load_peft(folder, other)
    with pytest.raises(CheckpointError, match="match none of Sequential"):
        load_peft(folder, mlp([4, 4, 4]))


def test_weights_that_changed_since_are_noticed_and_other_weights_may_change(written):
    model, params, folder = written
    with torch.no_grad():
        model.line.weight.add_(1)
        load_peft(folder, model)
        model.head.weight[0, 0] += 1e-3
    with pytest.raises(CheckpointError, match=r"another `head.weight`.*check=False"):
        load_peft(folder, model)
    assert load_peft(folder, model, check=False).keys() == params.keys()
    load_peft(folder, copy.deepcopy(model).half())  # too narrow to compare


@pytest.mark.parametrize(
    "damage",
    ["no folder", "no config", "list", "cut", "pickle", '{"own": 1}', '{"own": {"a": ["x"]}}'],
)
def test_missing_and_damaged_files_are_named(written, damage):
    model, _, folder = written
    weights = folder / "adapter_model.safetensors"
    if damage == "no folder":
        folder = folder / "none"
    elif damage == "no config":
        (folder / "adapter_config.json").unlink()
    elif damage == "list":
        (folder / "adapter_config.json").write_text("[1]")
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif damage == "pickle":
        weights.rename(folder / "adapter_model.bin")
    else:
        save_file(load_file(weights), weights, {"weightloom": damage})
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_peft(folder, model)


def test_a_full_disk_leaves_no_half_adapter_and_keeps_the_old_one(tmp_path, monkeypatch, written):
    model, params, folder = written
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    params = Params.cat([params, params, params])
    calls = []

    def full(number):
        calls.append(number)
        if len(calls) == 4:  # the second file of the second user
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        CheckpointError, match=r"bob.*No space left.* 1 users before it are complete"
    ):
        save_peft(params, ["amy", "bob", "cyd"], tmp_path, model)
    assert {its.name for its in tmp_path.iterdir()} == {"ann", "amy"}
    load_peft(tmp_path / "amy", model)
    calls.clear()
    with pytest.raises(CheckpointError, match=r"ann.*No space left"):
        save_peft(params, ["ben", "ann", "cyd"], tmp_path, model, overwrite=True)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    monkeypatch.undo()
    save_peft(params, ["x", "ann", "y"], tmp_path, model, overwrite=True)
    assert {its.name for its in tmp_path.iterdir()} == {"ann", "amy", "ben", "x", "y"}


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b", ".hidden", "C:x"])
def test_names_that_are_no_folders_are_refused(written, tmp_path, name):
    model, params, _ = written
    with pytest.raises(ConfigError, match="cannot be folders"):
        save_peft(params, [name], tmp_path, model)


def test_wrong_calls_say_so(written, tmp_path):
    model, params, _ = written
    with pytest.raises(ShapeError, match="holds 2 names for 1 tasks"):
        save_peft(params, ["a", "b"], tmp_path, model)
    with pytest.raises(ConfigError, match="`a`, which cannot be folders"):
        save_peft(Params.cat([params, params]), ["a", "a"], tmp_path, model)
    with pytest.raises(ConfigError, match=r"already holds `ann`.*overwrite=True"):
        save_peft(params, ["ann"], tmp_path, model)
    with pytest.raises(ConfigError, match=r"`alpha=0.0`"):
        save_peft(params, ["b"], tmp_path, model, alpha=0.0)
    tied = net()
    tied.body.layers[0].query.weight = tied.body.layers[1].query.weight
    with pytest.raises(ConfigError, match=r"`body.layers.0.query.weight` is tied"):
        save_peft(params, ["b"], tmp_path, tied)
    with pytest.raises(CheckpointError, match="holds no folder"):
        load_peft([], model)
    assert {its.name for its in tmp_path.iterdir()} == {"ann"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": FiLM()}, r"`0.weight` is held as RowScale.*to_rank"),
        ({}, "`0.weight` is held as a plain tensor"),
        ({"generate": "*.bias"}, r"no low-rank change, only `0.bias`, `2.bias`"),
    ],
)
def test_parameters_that_are_no_adapters_are_refused(tmp_path, options, message):
    model = mlp([8, 16, 4])
    params = MLPHyperNetwork(model, condition_dim=3, **options)(torch.randn(1, 3))
    with pytest.raises(ConfigError, match=message):
        save_peft(params, ["a"], tmp_path, model)


@pytest.mark.parametrize("options", [{"groups": 2}, {"dilation": 2}, {"padding_mode": "circular"}])
def test_convolutions_that_peft_runs_otherwise_are_refused(tmp_path, options):
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, **options))
    params = random_params(model, random.Random(0), ["0"], ranks=(2,))
    with pytest.raises(ConfigError, match=r"`0.weight` is not the weight of a layer"):
        save_peft(params, ["a"], tmp_path, model)
