"""Pretraining of a trunk, its cache, and the backbone `trained`, on pictures of 8 pixels."""

import signal
from dataclasses import replace

import pytest
import torch

from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.problems.pools import Pools
from weightloom.apps.fewshot.problems.trained import digest_of, trained_backbone
from weightloom.learners import pretraining
from weightloom.learners.pretraining import ClassTrainer, LabelledPictures, pretrain
from weightloom.networks.feedforward import ConvTrunk
from weightloom.tasks import ClassPool
from weightloom.training import TrainOptions

OPTIONS = TrainOptions(steps=30, tasks=16, outer_lr=0.05, checkpoint_every=10, optimiser="sgd")


@pytest.fixture
def pool():
    """Classes of one brightness each, of 5 and of 6 pictures."""
    levels = torch.arange(4)[:, None, None, None, None] * 60
    noise = torch.randint(0, 40, (4, 6, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    return ClassPool((levels + noise).byte(), torch.tensor([6, 5, 6, 6]), tuple("abcd"))


def trunk(seed=0):
    torch.manual_seed(seed)
    return ConvTrunk(1, 8, 4, 2, norm="batch")


def trained(pool, folder, options=OPTIONS, identity="one"):
    network = trunk()
    pretrain(network, pool, None, options, folder, identity)
    return network


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_the_loss_is_cross_entropy_with_smoothed_labels():
    model = ClassTrainer(trunk().eval(), classes=3, smoothing=0.3)
    x, y = torch.rand(5, 1, 8, 8), torch.tensor([0, 2, 1, 1, 0])
    targets = 0.7 * torch.eye(3)[y] + 0.1
    logs = model.head(model.trunk(x)).log_softmax(1)
    expected = -(targets * logs).sum(1)
    assert torch.allclose(model(LabelledPictures(x, y)), expected, atol=1e-6)


def test_a_pretrained_trunk_tells_its_classes_apart_and_is_loaded_the_next_time(
    pool, tmp_path, monkeypatch
):
    network = trained(pool, tmp_path / "a")
    assert not network.training
    features = network(pool.examples[:, :5].flatten(0, 1).float() / 255).unflatten(0, (4, 5))
    apart = torch.cdist(features[:, 1:].flatten(0, 1), features[:, 0]).argmin(1)
    assert torch.equal(apart, torch.arange(4).repeat_interleave(4))
    monkeypatch.setattr(pretraining, "train", None)  # would fail if it were called
    assert same(trained(pool, tmp_path / "a"), network)


def test_a_stopped_training_goes_on_where_it_was(pool, tmp_path, monkeypatch):
    whole = trained(pool, tmp_path / "whole")
    draw_of = pretraining._batches

    def stopping(*options):
        draw = draw_of(*options)

        def drawn(step, generator):
            if step == 17:
                signal.raise_signal(signal.SIGTERM)
            return draw(step, generator)

        return drawn

    with monkeypatch.context() as patched:
        patched.setattr(pretraining, "_batches", stopping)
        with pytest.raises(KeyboardInterrupt):
            trained(pool, tmp_path / "stopped")
    steps = []
    monkeypatch.setattr(
        pretraining,
        "_batches",
        lambda *options: (
            lambda step, generator: steps.append(step) or draw_of(*options)(step, generator)
        ),
    )
    assert same(trained(pool, tmp_path / "stopped"), whole)
    assert steps[0] in (17, 18)


def test_a_damaged_file_or_one_of_another_training_is_made_again(pool, tmp_path):
    whole = trained(pool, tmp_path)
    kept = tmp_path / "checkpoints" / "last.safetensors"
    kept.write_bytes(kept.read_bytes()[:-5])
    assert same(trained(pool, tmp_path), whole)
    assert same(trained(pool, tmp_path, identity="two"), whole)


def pools_of(pool):
    return Pools(pool, pool, pool)


def test_the_digest_depends_on_pictures_seed_and_steps_and_not_on_padding(pool):
    pools = pools_of(pool)
    first = digest_of(pools, OPTIONS)
    assert digest_of(pools_of(pool._replace(names=tuple("efgh"))), OPTIONS) == first
    changed = pool.examples.clone()
    changed[0, 0, 0, 0, 0] += 1
    others = [
        digest_of(pools_of(pool._replace(examples=changed)), OPTIONS),
        digest_of(replace(pools, augment=abs), OPTIONS),
        digest_of(pools, replace(OPTIONS, seed=1)),
        digest_of(pools, replace(OPTIONS, steps=31)),
        digest_of(pools, OPTIONS, half=True),
    ]
    assert len({first, *others}) == 6


def test_upright_classes_and_their_augmentation_are_used_where_they_are_given(pool):
    upright = replace(pools_of(pool.pick([0, 1])), augment=abs)
    both = replace(pools_of(pool), upright=pool.pick([0, 1]), upright_augment=abs)
    assert digest_of(both, OPTIONS) == digest_of(upright, OPTIONS)


def test_half_precision_learns_too(pool, tmp_path):
    network = trunk()
    pretrain(network, pool, None, OPTIONS, tmp_path, "half", half=True)
    assert network.blocks[0][0].weight.dtype == torch.float32
    assert not same(network, trained(pool, tmp_path / "single"))


def test_runs_of_one_seed_share_a_backbone_and_its_parts_are_the_whole(pool, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = FewShotConfig(data="digits", backbone="trained", backbone_steps=5).resolved()
    assert config.views == 2
    before = torch.get_rng_state()
    backbone = trained_backbone(pools_of(pool), config)
    assert torch.equal(torch.get_rng_state(), before)
    again = trained_backbone(pools_of(pool), replace(config, steps=7))
    other = trained_backbone(pools_of(pool), replace(config, seed=1))
    assert same(backbone, again) and not same(backbone, other)
    assert len(list((tmp_path / "weightloom" / "backbones").iterdir())) == 2
    x = torch.rand(3, 1, 8, 8)
    assert backbone.stem(x).shape == (3, 64, 2, 2) and backbone(x).shape == (3, 64)
    assert not any(p.requires_grad for p in backbone.parameters())
    assert torch.equal(backbone.train()(x), backbone(x.flip(0)).flip(0))  # running statistics
