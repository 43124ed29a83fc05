"""Transfer of ResNet-20 to few-shot pictures: the network, its targets, methods and answers."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal
from torch.func import functional_call
from torch.nn.functional import cross_entropy, normalize, pad, relu

from weightloom.apps.experiment import run
from weightloom.apps.transfer.app import Transfer
from weightloom.apps.transfer.config import TransferConfig
from weightloom.apps.transfer.problems.pictures import answers as picture_answers
from weightloom.apps.transfer.problems.pictures import images as pictures
from weightloom.apps.transfer.problems.pictures.answers import (
    calibrated,
    changes,
    from_table,
    one_by_one,
    read_all,
    stepped,
)
from weightloom.apps.transfer.problems.pictures.models import (
    FILM,
    FirstOrderMaml,
    Gaussian,
    GeneratedFilm,
    JoinedFeatures,
    LowRankTuned,
    PictureModel,
    Refreshed,
)
from weightloom.apps.transfer.problems.pictures.targets import (
    SCAN_FILE,
    Family,
    draw_places,
    families_to_test,
    read_grey,
)
from weightloom.errors import ConfigError, DataError, ShapeError
from weightloom.networks.resnet20 import CLASSES, Block, ResNet20, as_colour, load_resnet20
from weightloom.tasks import ClassTasks, load_cifar_fs

DATA = Path(os.environ.get("WEIGHTLOOM_DATA", "no folder"))
NEEDED = ("resnet20_cifar10", "cifar_fs", "pneumonia_mnist", "fashion_mnist_900")
has_data = pytest.mark.skipif(
    not all((DATA / name).is_dir() for name in NEEDED),
    reason=f"needs WEIGHTLOOM_DATA with {', '.join(NEEDED)}",
)
SCALE = 10.0


def network(seed=0):
    """A small-width stand-in would be another network: this one is whole, and random."""
    torch.manual_seed(seed)
    net = ResNet20().eval()
    for name, buffer in net.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    return net


@pytest.fixture(scope="module")
def features():
    return JoinedFeatures(network())


@pytest.fixture(scope="module")
def family():
    """Two targets of two classes, each class a colour with noise."""
    generator = torch.Generator().manual_seed(0)
    colour = torch.rand(3, 1, 3, 1, 1, generator=generator)
    noise = torch.rand(3, 20, 3, 32, 32, generator=generator)
    shown = (0.8 * colour + 0.2 * noise).flatten(0, 1)
    return Family("colours", shown, draw_places(torch.full((3,), 20), 2, 2, seed=0))


def support_of(family):
    return family.pictures[family.support]


@has_data
def test_weights_are_the_published_ones():
    net = load_resnet20()
    assert sum(its.numel() for its in net.parameters()) == 269_722
    pool, _ = load_cifar_fs()
    for name, fits, least in (
        ("pickup_truck", {"automobile", "truck"}, 90),
        ("bus", {"truck"}, 80),
    ):
        pictures_of = pool.examples[pool.names.index(name)]
        with torch.no_grad():
            answers = [CLASSES[its] for its in net(as_colour(pictures_of)).argmax(1)]
        assert sum(answer in fits for answer in answers) >= least  # of 100; CIFAR-10 has no such


def test_a_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    block = Block(4, 8).eval()
    torch.nn.init.zeros_(block.bn2.weight)  # nothing but the shortcut is left
    x = torch.randn(2, 4, 6, 6)
    expected = relu(pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
    assert torch.equal(block(x), expected)


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTLOOM_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError, match="resnet20_cifar10"):
        load_resnet20()
    (tmp_path / "resnet20_cifar10").mkdir()
    np.savez(tmp_path / "resnet20_cifar10" / "resnet20_cifar10.npz", conv1=np.zeros(3))
    with pytest.raises(DataError, match=r"97 arrays.*Put a whole copy"):
        load_resnet20()


def test_grey_pictures_are_scaled_and_stand_in_all_channels():
    white = torch.full((2, 1, 28, 28), 255, dtype=torch.uint8)
    assert torch.allclose(as_colour(white), torch.ones(2, 3, 32, 32))
    with pytest.raises(ShapeError, match=r"Pass grey pictures as `pictures\[:, None\]`"):
        as_colour(white[:, 0])


def test_targets_hold_different_pictures_of_different_classes():
    counts = torch.tensor([20, 25, 30])
    places = draw_places(counts, targets=4, ways=2, seed=7)
    classes = torch.bucketize(places, counts.cumsum(0), right=True)
    assert torch.equal(classes, classes[..., :1].expand_as(classes))
    assert (classes[:, 0, 0] != classes[:, 1, 0]).all()
    assert all(len(target.unique()) == target.numel() for target in places)
    assert torch.equal(places[:2], draw_places(counts, targets=2, ways=2, seed=7))


@has_data
def test_test_families_have_the_labels_of_their_files():
    photographs, scans, clothes = families_to_test(3, 2)
    assert [its.places.shape for its in (photographs, scans, clothes)] == [
        (3, 5, 20),
        (2, 2, 20),
        (2, 5, 20),
    ]
    with np.load(DATA / "pneumonia_mnist" / "pneumonia_balanced.npz") as file:
        images, labels = file["test_images"], file["test_labels"].reshape(-1)
    shown = as_colour(torch.from_numpy(images)[:, None])
    for row in scans.pictures[scans.places[0]]:  # the two classes in any order
        found = [int((shown == picture).flatten(1).all(1).nonzero()[0, 0]) for picture in row]
        assert len({int(labels[its]) for its in found}) == 1


def test_damaged_pictures_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTLOOM_DATA", str(tmp_path))
    folder, file = SCAN_FILE
    (tmp_path / folder).mkdir()
    np.savez(tmp_path / folder / file, images=np.zeros((3, 784)), labels=np.zeros(3))
    with pytest.raises(DataError, match=r"`images` has shape \(3, 784\).*Put a whole copy"):
        read_grey(SCAN_FILE, "images", "labels")


def test_film_trains_norms_alone_and_a_fine_tune_all_that_is_read(features):
    def trained(trains):
        model = PictureModel(JoinedFeatures(network()), SCALE, trains)
        return {name for name, its in model.features.named_parameters() if its.requires_grad}

    norms = {name for name, _ in features.named_parameters() if ".bn" in name}
    assert trained("") == set()
    assert trained(FILM) == norms
    assert sum(features.get_parameter(name).numel() for name in norms) == 1376
    every = {name for name, _ in features.named_parameters()}
    assert trained("*") == every - {"network.linear.weight", "network.linear.bias"}


def test_held_out_answers_are_those_of_a_support_without_the_shot(features, family):
    model = PictureModel(features, SCALE)
    with torch.no_grad():
        query, held = from_table(model, family, read_all(features, family.pictures))
        support = support_of(family)
        slow = model.answer(support[:, :, [0, 1, 3, 4]], support[:, :, 2])
        assert torch.allclose(held.unflatten(1, (2, 5))[:, :, 2], slow, atol=0.1)  # bfloat16
        again, folds = one_by_one(model, family, "own")
    assert torch.allclose(query, again, atol=0.1)
    assert torch.allclose(held, folds, atol=0.1)


def test_gaussian_classes_have_the_predictive_density_of_a_joint_normal(features):
    generator = torch.Generator().manual_seed(1)
    known = torch.randn(6, 9, 4, generator=generator, dtype=torch.float64)
    model = Gaussian(features, known, ridge=0.2)
    within, between = model.within.numpy(), model.between.numpy()
    support = torch.randn(1, 3, 2, 4, generator=generator, dtype=torch.float64)
    query = torch.randn(1, 5, 4, generator=generator, dtype=torch.float64)
    # a class mean m ~ N(mean, between), two shots and the query = m + N(0, within), jointly normal
    joint = np.kron(np.ones((3, 3)), between) + np.kron(np.eye(3), within)
    gain = joint[8:, :8] @ np.linalg.inv(joint[:8, :8])
    cover = joint[8:, 8:] - gain @ joint[:8, 8:]
    mean = model.mean.numpy()
    slow = [
        multivariate_normal(
            mean + gain @ (shots.numpy().reshape(-1) - np.tile(mean, 2)), cover
        ).logpdf(query[0].numpy())
        for shots in support[0]
    ]
    found = model.logits(support, query)[0].softmax(1)
    assert torch.allclose(found, torch.tensor(np.array(slow)).T.softmax(1), atol=1e-9)


def test_a_scale_is_that_of_the_lowest_loss(features):
    known = torch.randn(8, 20, 96, generator=torch.Generator().manual_seed(2))
    known = normalize(known + 2 * torch.randn(8, 1, 96), dim=-1)
    support, query = picture_answers.training_supports(known)
    model = calibrated(PictureModel(features, SCALE), support, query)
    cosines = normalize(query, dim=-1) @ normalize(support.mean(2), dim=-1).mT
    y = torch.arange(5).repeat_interleave(15).repeat(len(cosines))

    def loss(log_scale):
        return cross_entropy(np.exp(log_scale) * cosines.flatten(0, 1), y).item()

    best = minimize_scalar(loss, bounds=(-2, 6), method="bounded").x
    step = np.log(10) * 3.5 / 49
    assert model.log_scale.item() == pytest.approx(best, abs=step)


def test_statistics_are_those_of_the_support(features, family):
    support = support_of(family)
    with torch.no_grad():
        kept = Refreshed(features, SCALE, kept=1.0)
        known = support[0].flatten(0, 1)
        assert torch.allclose(kept.refreshed(known)(known), features(known), atol=1e-5)
        norm = Refreshed(features, SCALE, kept=0.0).refreshed(known).network.bn1
        net = features.network
        first = net.conv1((known - net.mean) / net.deviation)
    assert torch.allclose(norm.running_mean, first.mean((0, 2, 3)), atol=1e-2)
    assert torch.allclose(norm.running_var, first.var((0, 2, 3)), rtol=2e-2)


def test_a_generator_starts_at_the_source_and_writes_norms_of_each_target(features, family):
    torch.manual_seed(0)
    model = GeneratedFilm(features, SCALE, width=8)
    support, query = support_of(family), family.pictures[family.query[:, :3]]
    with torch.no_grad():
        start = model.answer(support, query)
        assert torch.allclose(start, PictureModel(features, SCALE).answer(support, query), atol=0.1)
        model.standardise(features(support.flatten(0, 2)).view(2, 2, 5, -1))
        model.hyper.head.weight.normal_(0, 0.5)
        both = model.answer(support, query)
        alone = model.answer(support[1:], query[1:])
        params = model.generated(model.condition(support))
        assert len(params) == 38
        own = {name: value[1] for name, value in params.items()}
        slow = [functional_call(features, own, its) for its in (support[1].flatten(0, 1), query[1])]
        expected = model.logits(slow[0].view(1, 2, 5, -1), slow[1][None])
    assert (both - start).abs().max() > 0.1
    assert torch.allclose(both[1:], alone, atol=0.05)
    assert torch.allclose(alone, expected, atol=0.05)


def test_conditions_are_standardised_and_their_mean_is_zero(features, family):
    model = GeneratedFilm(features, SCALE, width=8)
    with torch.no_grad():
        found = model.features(support_of(family).flatten(0, 2)).view(2, 2, 5, -1)
        model.standardise(found)
        conditions = model.condition(support_of(family))
        mean = picture_answers.conditions_of(model, family, "mean")
        swapped = picture_answers.conditions_of(model, family, "shuffled")
    assert torch.allclose(conditions.mean(0), mean[0], atol=1e-2)
    deviation = conditions.std(0)  # below 1 where the deviation of a feature is next to none
    assert (deviation < 1 + 1e-2).all()
    assert ((deviation - 1).abs() < 1e-2).float().mean() > 0.8
    assert torch.allclose(swapped, conditions.flip(0), atol=1e-4)


def test_changes_are_relative_to_the_source(features, family):
    torch.manual_seed(0)
    source = dict(features.named_parameters())
    model = GeneratedFilm(features, SCALE, width=8)
    with torch.no_grad():
        assert all((its == 0).all() for its in changes(model, source, family, "own").values())
        fine = PictureModel(JoinedFeatures(network()), SCALE, "*")
        fine.features.network.layer2[0].conv1.weight *= 1.5
        found = changes(fine, source, family, "own")
    stage = [its for name, its in source.items() if "layer2" in name]
    norm = sum(its.square().sum() for its in stage).sqrt()
    moved = 0.5 * source["network.layer2.0.conv1.weight"].norm()
    assert found["layer2"].tolist() == pytest.approx([float(moved / norm)] * 2, rel=1e-5)
    assert found["stem"].tolist() == found["layer3"].tolist() == [0, 0]


@pytest.mark.parametrize("tunes", ["", "*", "lora"])
def test_steps_start_at_class_means_and_lower_the_loss_of_the_support(features, family, tunes):
    torch.manual_seed(0)
    model = (
        LowRankTuned(features, SCALE, rank=2)
        if tunes == "lora"
        else PictureModel(features, SCALE, tunes=tunes)
    )
    support = support_of(family)[:1, :, :3]
    x, y = support.flatten(1, 2), torch.tensor([0, 0, 0, 1, 1, 1])

    def logits(steps):
        base, params = model.tuned(support, steps, rate=1e-3)
        own = {name: value[0] for name, value in params.items()}
        with torch.no_grad():
            return functional_call(base, own, x[0])

    before, after = logits(0), logits(2)
    with torch.no_grad():
        assert torch.allclose(before, model.answer(support, x)[0], atol=0.1)
    assert cross_entropy(after, y) < cross_entropy(before, y)


def test_steps_are_reported_without_a_support(features, family):
    model = PictureModel(features, SCALE, tunes="")
    with torch.no_grad():
        found = stepped(model, family, steps=1)
    assert found.query.shape == (2, 30, 2)
    assert found.support is None
    assert torch.allclose(found.query.sum(2), torch.ones(2, 30))


def test_maml_without_a_rate_is_the_loss_of_class_means(features):
    pool = torch.randint(0, 255, (3, 4, 3, 32, 32), dtype=torch.uint8)
    source = ClassTasks(pool, torch.full((3,), 4), ways=2, shots=2, queries=1)
    tasks = source.sample(1, torch.Generator().manual_seed(0))
    model = FirstOrderMaml(JoinedFeatures(network()), SCALE, inner_steps=1, inner_lr=0.0)
    plain = PictureModel(model.features, SCALE)
    with torch.no_grad():
        expected = plain(tasks)
    for parameter in model.features.parameters():
        parameter.requires_grad = True
    loss = model(tasks)
    assert torch.allclose(loss, expected, atol=0.05)
    loss.sum().backward()
    assert model.features.network.conv1.weight.grad.abs().max() > 0


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A run on colours in place of photographs, from a random network."""
    generator = torch.Generator().manual_seed(3)

    def coloured(classes):
        colour = torch.rand(classes, 1, 3, 1, 1, generator=generator)
        noise = torch.rand(classes, 20, 3, 32, 32, generator=generator)
        return 0.8 * colour + 0.2 * noise

    known = (255 * coloured(10)).to(torch.uint8)
    shown = coloured(6)

    def families(name, ways):
        places = draw_places(torch.full((6,), 20), 2, ways, seed=5)
        return Family(name, shown.flatten(0, 1), places)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pictures, "training_pictures", lambda: known)
        patched.setattr(pictures, "load_resnet20", network)
        patched.setattr(
            pictures, "families_to_test", lambda *_: [families("first", 3), families("second", 2)]
        )
        patched.setattr(pictures, "families_to_validate", lambda *_: [families("first", 3)])
        patched.setattr(pictures, "FIRST_CLASSES", 5)
        patched.setattr(picture_answers, "REPEATS", 1)
        patched.setattr(pictures, "STEPPED", {})
        patched.setattr(pictures, "OTHERS_STEPPED", {})
        config = TransferConfig(
            data="pictures",
            method="generated-after",
            comparators=("source", "multitask"),
            steps=1,
            tasks=1,
        )
        folder = tmp_path_factory.mktemp("pictures") / "run"
        return run(Transfer(), config, folder, quiet=True)


def test_a_run_holds_a_check_of_every_family(record):
    first, second = "first, 3-way 5-shot", "second, 2-way 5-shot"
    settings = list(dict.fromkeys(row["setting"] for row in record["scores"]))
    assert settings == [first, second]
    checks = {row["setting"]: row["check"] for row in record["scores"] if "check" in row}
    assert set(checks[second]["families"]) == {"second"}
    assert set(checks[first]["weights"]) == {"generated-after", "source", "multitask"}


def test_a_run_holds_the_controls_of_the_generator_alone(record):
    controls = {row["method"] for row in record["scores"] if row.get("role") == "control"}
    assert controls == {
        "generated-after, shuffled condition",
        "generated-after, mean condition",
    }


def test_an_unknown_method_is_refused(monkeypatch):
    monkeypatch.setattr(pictures, "training_pictures", lambda: None)
    monkeypatch.setattr(
        pictures,
        "families_to_test",
        lambda *_: [Family("none", torch.zeros(1, 3, 32, 32), torch.zeros(1, 2, 20).long())],
    )
    problem = pictures.Pictures(TransferConfig(data="pictures").resolved())
    with pytest.raises(ConfigError, match=r"no method of `--data pictures`.*maml"):
        problem.build("tent")


def test_features_of_a_shared_network_are_read_once(features, family):
    """Answers from a table of features are those of the pictures themselves."""
    model = PictureModel(features, SCALE)
    with torch.no_grad():
        table = read_all(features, family.pictures)
        own = features(family.pictures[family.query[1]])
        query, _ = from_table(model, family, table)
        direct = model.answer(support_of(family), family.pictures[family.query])
    assert torch.allclose(table[family.query[1]], own, atol=1e-2)
    assert torch.equal(query.argmax(2), direct.argmax(2))
