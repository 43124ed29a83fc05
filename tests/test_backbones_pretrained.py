"""Pretrained backbones: their weights, the pictures they read, and runs on a folder of pictures."""

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from weightloom.apps import fewshot
from weightloom.apps.fewshot import presets
from weightloom.apps.fewshot.app import FewShot
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.problems import backbones, pools, pretrained, problem_of
from weightloom.apps.fewshot.unseen import score_unknown
from weightloom.cli import main
from weightloom.errors import ConfigError, DataError, MissingExtraError
from weightloom.networks.backbone import Backbone
from weightloom.networks.efficientnet import EfficientNetLite0, weights_of
from weightloom.tasks import ClassPool, load_folder
from weightloom.tasks.folder import looks_coloured
from weightloom.tasks.pictures import ViewsReader, encoded_pool, thinned, views_of

Image = pytest.importorskip("PIL.Image")
LITE = "efficientnet-lite0"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Nothing is read from or left in the cache of whoever runs the tests."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("WEIGHTLOOM_DATA", raising=False)
    return tmp_path / "cache" / "weightloom"


@pytest.fixture
def tiny(monkeypatch):
    """A backbone whose features are the colours of the four quarters of a picture."""

    def build(pools, config):
        stem = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
        return Backbone(LITE, stem, nn.Identity(), 12, 8, "Tiny.", lambda x: 30 * x[:, :9])

    monkeypatch.setitem(backbones.BACKBONES, LITE, build)


@pytest.fixture
def photographs(tmp_path):
    """Six classes of pictures, each of one colour: red, green, blue and their pairs."""
    rng = np.random.default_rng(0)
    for kind, name in enumerate(("jay", "stone", "sky", "sand", "robin", "5")):
        colour = [200 if kind % 3 == channel else 40 for channel in range(3)]
        colour = colour if kind < 3 else [240 - its for its in colour]
        (tmp_path / "photographs" / name).mkdir(parents=True)
        for number in range(6):
            tint = np.array(colour) + rng.integers(-20, 20, (20, 24, 3))
            path = tmp_path / "photographs" / name / f"{number}.png"
            Image.fromarray(tint.astype(np.uint8)).save(path)
    return tmp_path / "photographs"


SMALL = {"ways": 2, "train_ways": 2, "shots": 1, "queries": 2, "steps": 2, "test_tasks": 4}
WORDS = [*("--ways", "2", "--train-ways", "2", "--shots", "1", "--queries", "2"), "--steps", "2"]
WORDS += ["--test-tasks", "4", "--run", "run"]


def options(data, **typed):
    known = {name: (its,) if name in ("ways", "shots") else its for name, its in SMALL.items()}
    return FewShotConfig(data=str(data), **known, **typed).resolved()


# The network and its weights


@pytest.mark.parametrize("size", [64, 75])
def test_efficientnet_equals_the_published_port_on_random_weights(size):
    port = pytest.importorskip("efficientnet_lite_pytorch")
    theirs = port.EfficientNet.from_name(LITE).eval()
    with torch.no_grad():
        for part in theirs.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.5, 1.5)
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 1.5)
    ours = EfficientNetLite0().eval()
    ours.load_state_dict(weights_of(theirs.state_dict()))
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        wanted = theirs.extract_features((x * 255 - 127) / 128).mean((2, 3))
        assert (ours(x) - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_weights_are_converted_once_and_again_if_the_copy_is_damaged(cache, monkeypatch):
    pytest.importorskip(pretrained.MODULE)
    first = pretrained.efficientnet_lite0(64)
    assert "Apache" in first.about and pretrained.PACKAGE in first.about
    kept = cache / "backbones" / pretrained.FILE
    whole = kept.read_bytes()
    kept.write_bytes(whole[: len(whole) // 2])
    again = pretrained.efficientnet_lite0(64)
    assert pretrained.version_of(first) == pretrained.version_of(again)
    monkeypatch.setitem(sys.modules, pretrained.MODULE, None)
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(pretrained.efficientnet_lite0(64)(x), first(x))


def test_a_missing_package_and_another_file_are_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, pretrained.MODULE, None)
    with pytest.raises(MissingExtraError, match=r"weightloom\[images\]"):
        pretrained.efficientnet_lite0(64)
    (tmp_path / "weights.pth").write_bytes(b"other")
    other = SimpleNamespace(get_model_file_path=lambda: str(tmp_path / "weights.pth"))
    package = ModuleType(pretrained.MODULE)
    package.EfficientnetLite0ModelFile = other
    monkeypatch.setitem(sys.modules, pretrained.MODULE, package)
    with pytest.raises(DataError, match="not the published file"):
        pretrained.efficientnet_lite0(64)


def test_a_timm_model_reads_pictures_as_it_was_trained(monkeypatch):
    class Means(nn.Module):
        def forward(self, x):
            if x.shape[-1] != 24:
                raise AssertionError("it takes 24 pixels")
            return x.mean((2, 3))

    def create_model(name, pretrained, num_classes):
        assert (name, pretrained, num_classes) == ("means", True, 0)
        return Means()

    facts = {"input_size": (3, 24, 24), "mean": (0.5, 0.4, 0.3), "std": (0.5, 0.1, 1.0)}
    timm, data = ModuleType("timm"), ModuleType("timm.data")
    timm.create_model, data.resolve_model_data_config = create_model, lambda model: facts
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setitem(sys.modules, "timm.data", data)
    backbone = pretrained.timm_model("means", None)
    assert (backbone.name, backbone.size, backbone.features) == ("timm:means", 24, 3)
    read = backbone(torch.full((1, 3, 24, 24), 0.5))
    assert torch.allclose(read, torch.tensor([[0.0, 1.0, 0.2]]))
    with pytest.raises(ConfigError, match="it takes 24 pixels"):
        pretrained.timm_model("means", 32)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match="pip install timm"):
        pretrained.timm_model("means", None)


# Reading pictures


def test_features_are_the_mean_over_views_and_a_grey_picture_is_one_in_colour():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 5))
    grey = torch.rand(4, 1, 8, 8)
    colour = grey.expand(-1, 3, -1, -1)
    each = ViewsReader(network, 3, 8)(colour)
    assert each.shape == (4, 3, 5)
    for view in range(3):
        seen = views_of(colour, 3, 8)[:, view]
        assert torch.allclose(each[:, view], network(seen), atol=1e-5)
    mean = ViewsReader(network, 3, 8, mean=True)(grey)
    assert torch.allclose(mean, each.mean(1, keepdim=True), atol=1e-5)
    assert ViewsReader(network, 3, 8)(torch.rand(2, 3, 1, 1)).isfinite().all()


def test_pictures_are_read_once_and_again_if_they_or_the_cache_change(cache):
    pool = ClassPool(
        torch.randint(0, 256, (3, 4, 3, 8, 8), dtype=torch.uint8),
        torch.tensor([4, 2, 3]),
        ("a",) * 3,
    )
    read = []

    def reader(x):
        read.append(len(x))
        return x.flatten(1)[:, :6]

    first = encoded_pool(pool, reader, "1")
    assert sum(read) == 9 and not first.examples[1, 2:].any()
    wanted = (pool.examples[0].flatten(1)[:, :6].float() / 255).half().float()
    assert torch.equal(first.examples[0], wanted)
    again = encoded_pool(pool, reader, "1")
    assert sum(read) == 9 and torch.equal(again.examples, first.examples)
    encoded_pool(pool, reader, "2")
    assert sum(read) == 18
    pool.examples[1, 0, 0, 0, 0] += 1
    encoded_pool(pool, reader, "1")
    assert sum(read) == 20  # the changed class alone
    for file in (cache / "features").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    encoded_pool(pool, reader, "1")
    assert sum(read) == 29


def test_a_large_class_is_thinned_evenly_and_named(photographs):
    pool = ClassPool(torch.arange(20).view(2, 10), torch.tensor([10, 3]), ("a", "b"))
    few = thinned(pool, 5)
    assert few.examples.tolist() == [[0, 2, 4, 6, 8], [10, 11, 12, 0, 0]]
    assert few.counts.tolist() == [5, 3]
    loaded = load_folder(photographs, size=8, most=3)
    every = load_folder(photographs, size=8)
    assert torch.equal(loaded.pool.examples, every.pool.examples[:, ::2])
    assert [its.why for its in loaded.skipped] == [
        "3 of its 6 pictures, since up to 3 are read"
    ] * 6


# Runs on a folder


def test_a_folder_in_colour_is_read_by_a_backbone_if_its_package_is_there(
    photographs, tmp_path, monkeypatch
):
    chosen = options(photographs)
    assert (chosen.backbone, chosen.size, chosen.views) == (LITE, 144, 3)
    assert chosen.comparators == ("protonet", "protonet-unit", "probe", "centroid")
    assert options(photographs, backbone="none").size == 32
    monkeypatch.setattr(presets, "backbone_is_here", lambda: False)
    assert options(photographs).backbone == "none"
    monkeypatch.setattr(pools, "backbone_is_here", lambda: False)
    assert "weightloom[images]" in problem_of(options(photographs)).notices[-1]
    for path in photographs.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    monkeypatch.undo()
    assert not looks_coloured(photographs) and not looks_coloured(tmp_path / "nowhere")
    assert options(photographs).backbone == "none"


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ({"backbone": LITE, "data": "sinusoid"}, "--backbone efficientnet-lite0"),
        ({"backbone": LITE, "base": "mine:Net", "data": "digits"}, "--base mine:Net"),
        ({"size": 64, "data": "digits"}, "--size 64"),
        ({"size": 5000, "data": "digits", "backbone": LITE}, "--size 5000"),
        ({"views": 4, "data": "digits"}, "--views 4"),
    ],
)
def test_options_that_no_picture_uses_are_refused(typed, told):
    with pytest.raises(ConfigError, match=told):
        FewShotConfig(**typed)


def test_an_unknown_backbone_is_refused_with_the_names(photographs):
    with pytest.raises(ConfigError, match=r"`--backbone resnet` is unknown.*efficientnet-lite0"):
        problem_of(options(photographs, backbone="resnet"))


def test_training_classes_are_read_after_the_first_table(photographs, tiny, monkeypatch):
    counted = []
    encode = backbones.encoded_pool

    def counting(pool, *rest):
        counted.append(pool.names)
        return encode(pool, *rest)

    monkeypatch.setattr(backbones, "encoded_pool", counting)
    monkeypatch.setattr(backbones, "CENTRE", 2)
    problem = problem_of(options(photographs))
    assert not counted
    FewShot().preview(problem, problem.config)
    assert counted[0] == problem.pools.test.names
    problem.train_source()
    assert counted[-1] == problem.pools.train.names
    assert problem.read.seen.examples.shape[1] == 6
    assert torch.equal(problem.held_out.counts, problem.pools.test.counts)


def test_methods_are_scored_on_classes_that_the_backbone_does_not_know(photographs, tiny):
    problem = problem_of(options(photographs))
    names = problem.held_out.names
    facts = score_unknown({"protonet": problem.learner("protonet")}, problem, problem.config)
    known = facts["backbone"]["known"]
    assert set(known) | set(facts["backbone"]["unknown"]) == set(names)
    assert all(name in known for name in names if name in ("jay", "robin"))
    assert not facts["backbone"]["scores"] or known == []


def test_a_run_on_photographs_is_judged_adapted_and_exported_without_reading_them_again(
    photographs, tiny, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    main(["fewshot", "--data", str(photographs), *WORDS, "--comparators", "protonet-unit"])
    told = capsys.readouterr()
    assert "Before training:" in told.err and "(untrained)" in told.err
    assert "Tiny." in told.err and "`efficientnet-lite0` seems to know" in told.out
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["config"]["backbone"] == LITE and record["backbone"]["name"] == LITE
    assert "No figure could be drawn" not in (tmp_path / "run" / "report.html").read_text()

    def fails(*_):
        raise AssertionError("read again")

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with monkeypatch.context() as patched:
        patched.setattr(ViewsReader, "forward", fails)
        main(["eval", "../run", "--test-tasks", "3"])
    new = str(photographs / "sand" / "1.png")
    main(["adapt", "../run", str(photographs), "--predict", new, "--out", "net"])
    assert "sand" in capsys.readouterr().out
    network = fewshot.load_adapted("net")
    assert network.predict([new, np.full((30, 20, 3), [210, 50, 30], np.uint8)]) == ["sand", "jay"]
    main(["export", "../run", "--task", "0"])
    facts = json.loads((tmp_path / "run" / "export" / "0" / "network.json").read_text())
    assert facts["inputs"]["size"] == 144 and "3 views" not in facts["backbone"]
    assert facts["backbone"].startswith("`efficientnet-lite0` reads")
    assert facts["input"] == ["batch", 3, 144, 144] and facts["largest_difference"] < 1e-4
