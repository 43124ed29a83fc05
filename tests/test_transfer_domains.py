"""Digits under domains: exact changes of pictures, models against torch, and a small run."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn
from torch.func import functional_call

from weightloom.apps.experiment import run
from weightloom.apps.transfer.app import Transfer
from weightloom.apps.transfer.config import TransferConfig
from weightloom.apps.transfer.problems.digits import domains as domains
from weightloom.apps.transfer.problems.digits import models as domain_models
from weightloom.apps.transfer.problems.digits import scans as scans
from weightloom.apps.transfer.problems.digits import unlabelled as unlabelled
from weightloom.apps.transfer.problems.digits.models import (
    Adaptation,
    DigitModel,
    Generated,
    SharedAdapter,
    SingleSources,
    Tent,
    digit_net,
)
from weightloom.errors import ConfigError, DataError
from weightloom.params import Params
from weightloom.tasks import load_digit_images
from weightloom.tasks.domains import (
    KINDS,
    MOST_KINDS,
    Domains,
    DomainTasks,
    compositions,
    sample_domains,
    warps,
)

NONE = torch.zeros(1, len(KINDS), dtype=torch.bool)


def warped(picture, angle=0.0, wide=1.0, high=1.0, right=0.0, down=0.0):
    size = picture.shape[-1]
    numbers = (torch.tensor([value]) for value in (angle, wide, high, right, down))
    return torch.einsum("phw,p->hw", warps(*numbers, size)[0], picture.flatten())


def test_turns_mirrors_and_shifts_are_those_of_torch():
    picture = torch.rand(8, 8)
    close = {"atol": 1e-5, "rtol": 0.0}
    torch.testing.assert_close(warped(picture), picture, **close)
    torch.testing.assert_close(warped(picture, math.pi / 2), picture.rot90(), **close)
    torch.testing.assert_close(warped(picture, math.pi), picture.rot90(2), **close)
    torch.testing.assert_close(warped(picture, wide=-1.0), picture.flip(1), **close)
    pixel = 2 / 8
    right, down = warped(picture, right=pixel), warped(picture, down=2 * pixel)
    torch.testing.assert_close(right[:, 1:], picture[:, :-1], **close)
    torch.testing.assert_close(down[2:], picture[:-2], **close)
    assert not right[:, 0].any() and not down[:2].any()  # no ink comes from outside


def test_a_stretch_keeps_the_middle_and_doubles_lengths():
    ramp = torch.arange(8.0).expand(8, 8)  # from the middle, 3.5, a value grows by 1 a pixel
    wide = warped(ramp, wide=2.0)
    torch.testing.assert_close(wide, (3.5 + (ramp - 3.5) / 2))


def one_kind(kind, seed=0):
    kinds = NONE.clone()
    kinds[0, KINDS.index(kind)] = True
    return sample_domains(kinds, 8, torch.Generator().manual_seed(seed))


def test_a_blur_is_that_of_scipy():
    dot = np.zeros((8, 8))
    dot[3, 4] = 1.0
    chance = torch.rand(1, 10, generator=torch.Generator().manual_seed(0))[0, 5].item()
    found = one_kind("blur").warp[0] @ torch.from_numpy(dot).float().flatten()
    wanted = gaussian_filter(dot, 0.4 + 0.6 * chance, mode="constant", truncate=8)
    inner = (slice(1, 6), slice(2, 7))  # rows at the edge are divided by less
    assert np.allclose(found.view(8, 8).numpy()[inner], wanted[inner], atol=2e-3)
    assert torch.allclose(one_kind("blur").warp[0].sum(1), torch.ones(64))


def test_contrast_shade_and_noise_do_what_their_numbers_say():
    picture = torch.rand(1, 1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    contrast = one_kind("contrast")
    torch.testing.assert_close(contrast.take(picture, generator), picture ** contrast.power.item())
    shade = one_kind("shade")
    added = (shade.take(picture, generator) - picture)[0, 0]
    across, along = added[0, 1:] - added[0, :-1], added[1:, 0] - added[:-1, 0]
    assert across.std() < 1e-6 and along.std() < 1e-6  # a plane
    assert added.mean().abs() < 1e-6 and added.abs().max() <= 2
    noisy = one_kind("noise")
    many = noisy.take(picture.expand(1, 2000, 8, 8), generator) - picture
    assert many.std().item() == pytest.approx(noisy.noise.item(), rel=0.02)


def test_compositions_are_all_subsets_without_refused_pairs():
    free = sum(math.comb(len(KINDS), size) for size in range(1, MOST_KINDS + 1))
    held = sum(math.comb(len(KINDS) - 2, size) for size in range(MOST_KINDS - 1))
    pair = ("turn", "noise")
    assert len(compositions()) == free
    assert len(compositions(within=[pair])) == held
    assert len(compositions(without=[pair])) == free - held
    with pytest.raises(ConfigError, match="No composition is left"):
        compositions(without=[pair], within=[pair])
    with pytest.raises(ConfigError, match=r"tilt.*no kind"):
        compositions(without=[("tilt", "noise")])


def numbered(pictures=60, classes=3):
    """Pictures whose every pixel is their own number."""
    number = torch.arange(pictures).float()
    return number[:, None, None].expand(-1, 8, 8) / pictures, torch.arange(pictures) % classes


def test_no_picture_of_a_task_is_drawn_twice_and_labels_are_theirs():
    images, labels = numbered()
    source = DomainTasks(images, labels, NONE, examples=20, shots=2, queries=34)
    tasks = source.sample(5, torch.Generator().manual_seed(0))
    number = torch.cat([tasks.support_x, tasks.query_x], 1)[..., 0, 4, 4] * 60
    assert all(len(set(row.round().tolist())) == 60 for row in number)
    known = torch.cat([tasks.support_y, tasks.query_y], 1)
    assert torch.equal(known[:, 20:], number.round().long()[:, 20:] % 3)
    assert (tasks.support_y[:, :20] == -1).all()
    assert tasks.support_y[:, 20:].tolist() == [[0, 0, 1, 1, 2, 2]] * 5


def test_a_share_of_tasks_is_a_part_of_all_and_fixed_domains_stay():
    images, labels = numbered()
    fixed = sample_domains(compositions()[:4], 8, torch.Generator().manual_seed(1))
    for its in (None, fixed):
        source = DomainTasks(images, labels, compositions(), 5, 0, 7, its)
        every = source.sample(4, torch.Generator().manual_seed(0))
        part = source.sample(4, torch.Generator().manual_seed(0), share=slice(1, None, 2))
        assert torch.equal(part.query_x, every.query_x[1::2])
    assert isinstance(fixed, Domains)
    mirror = sample_domains(compositions()[1:2], 8, torch.Generator())  # nothing random in it
    flat = torch.rand(60, 8, 8)
    seen = DomainTasks(flat, labels, compositions(), 0, 0, 60, mirror).sample(
        2, torch.Generator().manual_seed(0)
    )
    back = seen.query_x[1, :, 0].flip(-1)
    gaps = (back.flatten(1)[:, None] - flat.flatten(1)).abs().amax(2)
    assert gaps.amin(1).max() < 1e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [({"shots": 21}, "rarest class has 20"), ({"examples": 50, "queries": 11}, "of 60 pictures")],
)
def test_more_pictures_than_there_are_is_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        DomainTasks(*numbered(), NONE, **options)


@pytest.fixture(scope="module")
def problem():
    config = TransferConfig(data="domains", test_targets=8).resolved()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unlabelled, "SOURCE_STEPS", 20)
        made = domains.Domains(config)
        made.source()
    return made


def test_training_never_sees_the_pairs_of_the_targets(problem):
    columns = [
        [KINDS.index(kind) for kind in pair] for pairs in domains.UNSEEN.values() for pair in pairs
    ]
    assert not any(problem.trained_on[:, pair].all(1).any() for pair in columns)
    assert len(set(map(tuple, map(sorted, columns)))) == 6
    assert problem.families[:4] == [
        domains.SEEN,
        "turn + blur",
        "mirror + shade",
        "stretch + noise",
    ]


def test_targets_are_the_same_for_every_seed(problem):
    other = domains.Domains(TransferConfig(data="domains", test_targets=8, seed=7).resolved())
    assert torch.equal(other.targets.query_x, problem.targets.query_x)
    validation = TransferConfig(data="domains", test_targets=8, validation=True).resolved()
    assert domains.Domains(validation).targets.query_x.shape[1] == 126


def pictures_of(targets=3):
    return torch.rand(targets, 20, 1, 8, 8, generator=torch.Generator().manual_seed(3))


def test_a_new_generated_change_is_zero_and_targets_do_not_leak():
    base = digit_net(32)
    model = Generated(base, rank=4, width=16).eval()
    x = pictures_of()
    refreshed = DigitModel(base, refreshes=True).eval()
    plain = refreshed.logits(refreshed.adapt(x), x)
    torch.testing.assert_close(model.logits(model.adapt(x), x), plain)
    nn.init.normal_(model.hyper.head.weight, std=0.1)
    together = model.logits(model.adapt(x), x)
    assert (together - plain).abs().max() > 1e-2
    torch.testing.assert_close(model.logits(model.adapt(x[1:2]), x[1:2])[0], together[1])


def test_frozen_models_train_no_parameter_of_the_source():
    source = digit_net().eval()
    before = copy.deepcopy(source.state_dict())
    tasks = DomainTasks(*numbered(classes=10), compositions(), examples=10, queries=8)
    batch = tasks.sample(3, torch.Generator().manual_seed(0))
    for model in (
        Generated(copy.deepcopy(source), 4, 16, frozen=True),
        SharedAdapter(copy.deepcopy(source), 4),
    ):
        model.train()
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)
        for _ in range(2):
            optimiser.zero_grad()
            model(batch).mean().backward()
            optimiser.step()
        for name, value in model.net.named_parameters():
            assert torch.equal(value, before[name]), name
        adapted = model.eval().adapt(batch.support_x)
        assert all(its.max() > 0 for its in unlabelled.changes(model, adapted).values())


def test_refreshed_statistics_are_those_of_torch():
    base = digit_net(16).double()
    x = pictures_of().double()
    found = DigitModel(base, refreshes=True).eval().adapt(x).buffers
    for target in range(3):
        net = copy.deepcopy(base).train()
        net[2].momentum = net[5].momentum = 1.0
        net(x[target])
        for name in ("2.running_mean", "2.running_var", "5.running_mean", "5.running_var"):
            torch.testing.assert_close(found[name][target], net.get_buffer(name))
    assert base[2].running_mean.abs().max() == 0  # its own statistics stay


def test_tent_lowers_the_entropy_that_refreshing_leaves():
    base = digit_net(16)
    x = pictures_of()

    def entropy(model):
        log = model.logits(model.adapt(x), x).log_softmax(-1)
        return -(log.exp() * log).sum(-1).mean(1)

    assert (
        entropy(Tent(base).eval()) < entropy(DigitModel(base, refreshes=True).eval()) - 1e-3
    ).all()


def test_the_nearest_source_is_the_one_of_the_same_pictures(monkeypatch):
    monkeypatch.setattr(domain_models, "SOURCES", 3)
    model = SingleSources(digit_net().eval(), mean=False).eval()
    x = torch.stack([pictures_of(1)[0] ** power for power in (0.3, 1.0, 3.0)])
    model.signatures.copy_(model._signature(x))
    for name, its in model.models.items():
        its.data += torch.arange(3.0).view(-1, *[1] * (its.ndim - 1))
        assert its.shape[0] == 3, name
    order = torch.tensor([2, 0, 1])
    bias = model.adapt(x[order]).params["7.bias"]
    torch.testing.assert_close(bias, model.models["7/bias"][order])
    model.mean = True
    torch.testing.assert_close(model.adapt(x).params["7.bias"][0], model.base[7].bias + 1.0)


def test_simulated_neighbours_read_pictures_they_hold(monkeypatch):
    monkeypatch.setattr(domain_models, "CANDIDATES", 4)
    monkeypatch.setattr(domain_models, "NEAREST", 1)
    images, labels = torch.rand(60, 8, 8), torch.arange(60) % 10
    fixed = sample_domains(
        compositions()[[0, 1, 2, 3]], 8, torch.Generator().manual_seed(0)
    )  # turned, mirrored, shifted, stretched
    tasks = DomainTasks(images, labels, compositions(), 20, 0, 40, fixed)
    model = domain_models.Simulated(tasks, seed=0)
    same = tasks.sample(4, torch.Generator().manual_seed(0))
    logits = model.logits(model.adapt(same.support_x), same.query_x)
    assert torch.equal(logits.argmax(-1), same.query_y)
    assert logits.amax(-1).abs().max() < 1e-2  # at no distance


def test_steps_on_the_last_layer_are_those_of_adam():
    base = digit_net(16)
    model = DigitModel(base, scope="head").eval()
    x, y = pictures_of(2)[:, :10], torch.arange(10).expand(2, -1)
    found = unlabelled.fine_tuned(model, Adaptation(Params(), {}), x, y, 5)
    assert set(found.params) == {"7.weight", "7.bias"}
    for target in range(2):
        net = copy.deepcopy(base).eval()
        optimiser = torch.optim.Adam(net[7].parameters(), domain_models.RATES["head"])
        for _ in range(5):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[target]), y[target]).backward()
            optimiser.step()
        torch.testing.assert_close(
            found.params["7.weight"][target], net[7].weight.detach(), atol=1e-4, rtol=1e-3
        )


def test_steps_on_everything_start_at_the_generated_weights():
    model = Generated(digit_net(32), rank=4, width=16, frozen=False).eval()
    nn.init.normal_(model.hyper.head.weight, std=0.05)
    x = pictures_of(2)[:, :10]
    start = model.adapt(x)
    full = unlabelled._moved(model, start.params, 2)
    assert set(full) == set(dict(model.net.named_parameters()))
    one = {name: value[1] for name, value in {**full, **start.buffers}.items()}
    torch.testing.assert_close(functional_call(model.net, one, x[1]), model.logits(start, x)[1])


def test_a_held_out_picture_does_not_move_its_own_output():
    model = DigitModel(digit_net(16), scope="all").eval()
    x, y = pictures_of(2)[:, :10], torch.arange(10).expand(2, -1).clone()
    start = Adaptation(Params(), {})
    before = unlabelled.held_out(model, start, x, y, 3)
    y[:, [0, 5]] = 9  # of one fold
    after = unlabelled.held_out(model, start, x, y, 3)
    torch.testing.assert_close(after[:, [0, 5]], before[:, [0, 5]])
    assert (after - before)[:, 1].abs().max() > 1e-4


def test_scores_of_known_outputs(problem):
    y = problem.targets.query_y
    sure = nn.functional.one_hot(y, 10).float()
    setting = problem.settings()[0]
    perfect = problem.scores(setting, sure)
    assert perfect["accuracy"].tolist() == [1.0] * 8 and perfect["log_loss"].abs().max() < 1e-6
    even = problem.scores(setting, torch.full_like(sure, 0.1))
    assert even["log_loss"].tolist() == pytest.approx([math.log(10)] * 8)
    assert problem.support_loss(setting, torch.full((8, 10, 10), 0.1)).mean().item() == (
        pytest.approx(math.log(10))
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": 1}, "one way only"),
        ({"rank": 20}, "--rank 18"),
        ({"test_targets": 1}, "2 or more"),
    ],
)
def test_options_that_the_digits_cannot_fill_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        domains.Domains(TransferConfig(data="domains", **options).resolved())


def test_a_small_run_has_rows_of_every_kind(tmp_path, monkeypatch):
    monkeypatch.setattr(unlabelled, "SOURCE_STEPS", 5)
    monkeypatch.setattr(unlabelled, "STEPS", (0, 1))
    config = TransferConfig(
        data="domains",
        comparators=("source", "finetune", "shared"),
        steps=2,
        test_targets=4,
        width=16,
    )
    record = run(Transfer(), config, tmp_path / "run", quiet=True)
    rows = {(its["setting"], its["method"], its.get("role", "method")) for its in record["scores"]}
    first, labelled = "64 unlabelled", "1 of each digit"
    assert {(first, "generated", "method"), (first, "generated", "untrained")} <= rows
    controls = {f"generated, {its} condition" for its in ("shuffled", "mean")}
    assert {(first, name, "control") for name in controls} <= rows
    assert (first, "checked", "method") not in rows  # nothing to check on
    assert {(labelled, "checked", "method"), (f"{labelled}, 1 step", "finetune", "method")} <= rows
    assert "change of 1.weight" in record["scores"][0]["also"]


def test_a_plain_scan_keeps_ink_and_a_mirrored_order():
    picture = torch.zeros(1, 1, 28, 28)
    picture[..., 7:14, 7:14] = 1.0  # a square that ends on the borders of blocks
    way = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 0.01]])
    found = scans.scanned(picture, way)[0, 0]
    wanted = torch.zeros(8, 8)
    wanted[2:4, 2:4] = 1.0
    torch.testing.assert_close(found, wanted, atol=0.2, rtol=0)  # samples beside the borders
    assert found.sum().item() == pytest.approx(4.0, rel=0.05)


def test_a_threshold_makes_ink_or_paper():
    picture = torch.rand(1, 1, 28, 28)
    way = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.5, 1e6, 0.01]])
    quarters = scans.scanned(picture, way) * 4
    assert (quarters - quarters.round()).abs().max() < 1e-3
    lower = way.clone()
    lower[0, 5] = 0.3
    assert scans.scanned(picture, lower).mean() > scans.scanned(picture, way).mean()


def test_scans_of_a_task_differ_and_carry_their_labels():
    images, labels = numbered()
    images = images.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, 2:30, 2:30]
    way = torch.tensor([[0.6, 0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 0.01]])
    source = scans.ScanTasks(images, labels, 20, 40, way)
    tasks = source.sample(2, torch.Generator().manual_seed(0))
    number = (torch.cat([tasks.support_x, tasks.query_x], 1)[..., 0, 4, 4] * 60).round().long()
    assert all(len(set(row.tolist())) == 60 for row in number)
    assert torch.equal(tasks.query_y, number[:, 20:] % 3)


def test_mnist_without_labels_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "mnist"
    folder.mkdir()
    empty = np.zeros((2, 5, 5), np.uint8)
    parts = {f"{part}_images": empty for part in ("train", "test")}
    np.savez(folder / "mnist_20k_10k.npz", **parts)
    monkeypatch.setenv("WEIGHTLOOM_DATA", str(tmp_path))
    with pytest.raises(DataError, match="with labels"):
        scans.load_labelled_mnist()


def test_targets_of_scans_are_parts_of_the_digits_in_order():
    images, labels = load_digit_images()
    found = scans._digit_targets(7)
    together = torch.cat([found.unlabelled, found.query_x], 1).flatten(0, 1)[:, 0]
    assert torch.equal((together * 255).round().to(torch.uint8), images[: len(together)])
    assert torch.equal(found.query_y[1], labels[256 + 64 : 512])
    with pytest.raises(ConfigError, match="20 or fewer"):
        scans.Scans(TransferConfig(data="scans", test_targets=21).resolved())
