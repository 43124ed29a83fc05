"""Pictures by class: pairs against plain networks, scores of pictures that are known, folders."""

import json
from dataclasses import replace

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import avg_pool2d

from weightloom.adversarial import FunctionGenerator
from weightloom.adversarial.players import cell_centres
from weightloom.apps import gan
from weightloom.apps.experiment import run
from weightloom.apps.gan.app import Gan
from weightloom.apps.gan.config import GanConfig
from weightloom.apps.gan.export import export_generator, picture_grid
from weightloom.apps.gan.presets import PROBLEMS
from weightloom.apps.gan.problems.pairs import BUILDERS, Sizes, build_pair
from weightloom.apps.gan.problems.pictures import (
    Digits,
    Mnist,
    OwnPictures,
    Parts,
    Pictures,
    kernel_samples,
    split,
)
from weightloom.datasets import find_file
from weightloom.errors import ConfigError, DataError
from weightloom.report.pictures import encode_png

SIZES = Sizes((1, 6, 6), condition_dim=3, noise_dim=4, width=16, cell=2)
FUNCTIONS = ("generated", "function-film", "function-lowrank", "function-concat")


def bars(count, size=6, seed=0):
    """Pictures of two classes: a bright row, or a bright column, somewhere; with noise."""
    generator = torch.Generator().manual_seed(seed)
    pictures = 0.1 * torch.rand(2, count, 1, size, size, generator=generator)
    for number in range(count):
        pictures[0, number, 0, number % size] += 0.8
        pictures[1, number, 0, :, number % size] += 0.8
    return list(pictures)


@pytest.fixture(autouse=True, scope="module")
def _short_classifier():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pictures, "classifier_steps", 150)
        yield


@pytest.fixture(scope="module")
def problem():
    options = {"samples": 25, "noise_dim": 4, "width": 16, "batch": 16}
    config = GanConfig(steps=20, **options).resolved()
    return Pictures(config, split(bars(60)), ("row", "column"), "bars")


@pytest.mark.parametrize("method", BUILDERS)
def test_a_pair_of_every_method_makes_and_judges_pictures_of_its_size(method):
    pair = build_pair(method, SIZES)
    players = pair.players(torch.eye(3))
    made = players.generate(torch.randn(3, 4, 4))
    assert made.shape == (3, 4, 1, 6, 6)
    assert made.min() > 0 and made.max() < 1
    judged = pair._packed(made)
    assert pair._scores(players, judged).shape == (3, 4 // pair.packing)


@pytest.mark.parametrize("size", [28, 32, 33])
@pytest.mark.parametrize("method", ["picture-generated", "picture-concat"])
def test_players_of_larger_pictures_take_any_size(size, method):
    pair = build_pair(method, replace(SIZES, shape=(3, size, size)))
    made = pair.sample(torch.eye(3), 2)
    assert made.shape == (3, 2, 3, size, size)
    assert pair.players(torch.eye(3)).judge(made).shape[:2] == (3, 2)


@pytest.mark.parametrize("method", FUNCTIONS)
def test_a_pixel_is_the_mean_of_the_positions_in_its_cell(method):
    made = build_pair(method, SIZES).generator.double()
    noise, condition = torch.randn(3, 2, 4, dtype=torch.float64), torch.eye(3).double()
    larger = made(condition, noise, size=(12, 12))
    reduced = avg_pool2d(larger.flatten(0, 1), 2).unflatten(0, (3, 2))
    torch.testing.assert_close(made(condition, noise), reduced, rtol=1e-9, atol=1e-9)


def test_a_sample_is_the_network_of_its_own_parameters():
    made = build_pair("generated", replace(SIZES, cell=1)).generator.double()
    noise, condition = torch.randn(3, 2, 4, dtype=torch.float64), torch.eye(3).double()
    params = made.hyper(torch.cat([condition[1], noise[1, 0]])[None])
    one = {name: its[0] for name, its in params.items()}
    expected = functional_call(made._run.base, one, (cell_centres((6, 6)).double().flatten(0, 1),))
    found = made(condition, noise)[1, 0, 0]
    torch.testing.assert_close(found.flatten(), expected[:, 0], rtol=1e-9, atol=1e-9)


def test_concatenation_is_one_network_of_position_condition_and_noise():
    made = build_pair("function-concat", replace(SIZES, cell=1)).generator
    features, first, *rest = made._run.base.net
    condition, noise = torch.eye(3), torch.randn(3, 1, 4)
    known = torch.cat([condition, noise[:, 0]], dim=1)[1].expand(36, -1)
    joined = torch.cat([features(cell_centres((6, 6)).flatten(0, 1)), known], dim=1)
    weight = torch.cat([first.weight, made.hyper.head.weight], dim=1)
    hidden = joined @ weight.mT + first.bias + made.hyper.head.bias
    expected = torch.sigmoid(torch.nn.Sequential(*rest)(hidden))
    torch.testing.assert_close(made(condition, noise)[1, 0, 0].flatten(), expected[:, 0])


def test_matched_has_the_parameters_of_generated_and_few_more():
    counts = {
        name: sum(its.numel() for its in build_pair(name, SIZES).parameters())
        for name in ("generated", "matched")
    }
    assert counts["generated"] <= counts["matched"] < 1.1 * counts["generated"]


def test_held_out_pictures_have_every_score_of_the_data_itself(problem):
    found = {name: its.tolist() for name, its in problem.scores("", problem.held_out).items()}
    for name in ("accuracy", "recall", "precision", "coverage"):
        assert found[name] == [1.0, 1.0]
    assert found["nearer to training"] == [0.5, 0.5]


def test_pictures_of_another_class_are_all_wrong(problem):
    found = problem.scores("", problem.held_out.flip(0))
    assert found["accuracy"].tolist() == found["recall"].tolist() == [0.0, 0.0]
    assert found["kernel distance, bars classifier"].min() > 0.5


def test_copies_of_training_pictures_are_nearer_to_training(problem):
    copies = torch.stack([its[:12] for its in problem.parts.train])
    assert problem.scores("", copies)["nearer to training"].tolist() == [1.0, 1.0]


def test_collapse_to_one_picture_keeps_accuracy_and_loses_recall(problem):
    one = problem.held_out[:, :1].expand(-1, 12, -1, -1, -1)
    found = problem.scores("", one)
    assert found["accuracy"].tolist() == [1.0, 1.0]
    assert found["recall"].max() < 0.1


def test_parts_of_a_class_share_no_picture_and_hold_all():
    images = [torch.arange(40.0).view(40, 1, 1, 1) + 100 * row for row in range(2)]
    images[1] = images[1][:30]
    parts = split(images)
    assert parts.test.shape[:2] == parts.validation.shape[:2] == (2, 6)
    for row, its in enumerate(images):
        found = torch.cat([part[row].flatten() for part in parts])
        assert sorted(found.tolist()) == its.flatten().tolist()


def test_the_bandwidth_is_the_spread_of_held_out_pictures_around_one_of_training():
    generator = torch.Generator().manual_seed(0)
    centre = torch.full((1, 1, 8, 8), 0.5)
    held = centre + 0.1 * torch.randn(1, 50, 1, 8, 8, generator=generator)
    drawn = kernel_samples(Parts([centre], held, held), 100, generator)
    assert drawn.std().item() == pytest.approx(0.1, rel=0.12)  # a grid of factors 1.2


def test_a_batch_holds_training_pictures_of_every_class(problem):
    condition, real = problem.draw(0, torch.Generator().manual_seed(0))
    assert condition.tolist() == [[1, 0], [0, 1]] and real.shape == (2, 8, 1, 6, 6)
    for its, train in zip(real, problem.parts.train, strict=True):
        assert (its[:, None] == train).flatten(2).all(2).any(1).all()


@pytest.mark.parametrize("method", ["generated", "picture-generated"])
def test_the_report_gets_samples_a_walk_and_the_nearest_pictures(problem, method):
    pair = problem.build(method).eval()
    tensors, facts = problem.show({method: pair})
    assert tensors[f"samples/{method}"].shape == (2, 8, 1, 6, 6)
    walk = tensors[f"walk/{method}"]
    assert walk.shape == (3, 1, 6, 6)
    noise = torch.randn(1, 1, 4, generator=torch.Generator().manual_seed(3)).expand(2, -1, -1)
    ends = pair.players(torch.eye(2)).generate(noise)[:, 0]
    torch.testing.assert_close(walk[[0, 2]], ends)
    sample, near = tensors[f"nearest/{method}"][0]
    assert facts["nearest"][method][0] == pytest.approx((sample - near).norm().item())
    sizes = [its.shape[-1] for name, its in tensors.items() if name.startswith("resolutions/")]
    assert sizes == ([14, 28, 112, 224] if isinstance(pair.generator, FunctionGenerator) else [])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("method", ["generated", "picture-generated"])
def test_the_exported_program_draws_the_pictures_of_its_class(problem, tmp_path, method):
    pair = problem.build(method).eval()
    facts = export_generator(pair, problem, "column", tmp_path / "out")
    assert facts == json.loads((tmp_path / "out" / "generator.json").read_text())
    assert facts["largest_difference"] < 1e-5
    noise = torch.randn(3, 4)
    program = torch.export.load(tmp_path / "out" / "generator.pt2").module()
    expected = pair.players(torch.eye(2)[1:]).generate(noise[None])[0]
    torch.testing.assert_close(program(noise), expected)


def test_export_refuses_an_unknown_class_and_a_full_folder(problem, tmp_path):
    pair = problem.build("generated")
    with pytest.raises(ConfigError, match=r"`--task rows` is no condition .* Did you mean `row`"):
        export_generator(pair, problem, "rows", tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--out"):
        export_generator(pair, problem, "row", tmp_path)


def test_a_grid_keeps_each_picture_at_its_place():
    pictures = torch.arange(6.0).view(6, 1, 1, 1).expand(-1, -1, 2, 3) / 255
    grid = picture_grid(pictures, columns=3)
    assert grid[0, [0, 3], :][:, [0, 4, 8]].tolist() == [[0, 1, 2], [3, 4, 5]]


def own_folder(root, counts, size=10):
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number, its in enumerate(bars(count, size)[len(name) % 2]):
            (root / name / f"{number}.png").write_bytes(encode_png((its * 255).byte()))
    return root


def test_a_folder_of_ones_own_is_trained_on_and_drawn_larger(tmp_path):
    pytest.importorskip("PIL")
    folder = own_folder(tmp_path / "bars", {"row": 31, "column": 40})
    options = {"size": 8, "width": 16, "noise_dim": 4, "batch": 8, "samples": 8}
    trained = gan.train(str(folder), steps=4, quiet=True, run=tmp_path / "run", **options)
    assert trained.problem.names == ("column", "row")
    assert trained.problem.notices[0].startswith("2 classes, 71 pictures, cropped")
    assert [len(its) for its in trained.problem.parts.train] == [28, 19]
    assert trained.sample("row", 3, size=(20, 20)).shape == (3, 1, 20, 20)
    again = gan.load(tmp_path / "run")
    torch.testing.assert_close(again.sample("row", 3, seed=1), trained.sample("row", 3, seed=1))


@pytest.mark.parametrize("count", [0, 29])
def test_a_class_with_too_few_pictures_is_named(tmp_path, count):
    pytest.importorskip("PIL")
    folder = own_folder(tmp_path / "bars", {"row": 40, "column": 31, "other": count})
    config = GanConfig(data=str(folder), steps=2).resolved()
    with pytest.raises(DataError, match=rf"Class `other` of .* has {count} pictures .* 30 or more"):
        OwnPictures(config)


def test_one_class_is_too_few(tmp_path):
    folder = own_folder(tmp_path / "bars", {"row": 30})
    with pytest.raises(DataError, match="holds 1 folders of pictures"):
        OwnPictures(GanConfig(data=str(folder), steps=2).resolved())


def test_a_file_that_is_no_picture_is_told(tmp_path):
    pytest.importorskip("PIL")
    folder = own_folder(tmp_path / "bars", {"row": 30, "column": 31})
    (folder / "row" / "broken.png").write_bytes(b"no picture")
    opened = OwnPictures(GanConfig(data=str(folder), steps=2, size=8).resolved())
    assert any("broken.png" in its for its in opened.notices)


def test_digits_run_to_a_table_of_two_sizes(tmp_path):
    pytest.importorskip("sklearn")
    config = GanConfig(comparators=(), steps=4, samples=40, width=16, evaluate_every=4)
    record = run(Gan(), config, tmp_path / "run", quiet=True)
    rows = {(its["method"], its["setting"], its.get("role")): its for its in record["scores"]}
    sizes = ("8 x 8", "32 x 32, reduced")
    assert {setting for _, setting, _ in rows} == set(sizes)
    real = rows["training pictures", "8 x 8", "ceiling"]
    assert real["mean"] > 0.85
    assert real["also"]["recall"]["mean"] > 0.8
    assert 0.8 < record["facts"]["classifier_accuracy"] < 1
    assert all(("generated, shuffled condition", its, "control") in rows for its in sizes)


def test_digits_are_divided_within_each_class():
    pytest.importorskip("sklearn")
    opened = Digits(GanConfig(steps=2).resolved())
    assert opened.parts.test.shape == opened.parts.validation.shape == (10, 34, 1, 8, 8)
    assert sum(map(len, opened.parts.train)) == 1797 - 680


@pytest.mark.skipif(find_file("mnist", "mnist_20k_10k.npz") is None, reason="no data folder")
def test_mnist_holds_out_pictures_of_both_parts():
    opened = Mnist(GanConfig(data="mnist", steps=2).resolved())
    assert opened.parts.test.shape == (10, 200, 1, 28, 28)
    assert sum(map(len, opened.parts.train)) == 18_000


@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_every_listed_method_has_a_builder(data):
    assert set(PROBLEMS[data].methods) <= set(BUILDERS)
