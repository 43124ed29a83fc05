"""The grid and the ring: the mixtures themselves, independent replicas, and a run end to end."""

import math
from dataclasses import replace

import pytest
import torch

from weightloom.adversarial import AdversarialBatch, Penalty, StatisticsPair, adversarial_source
from weightloom.adversarial.pair import turn_loss
from weightloom.apps.experiment import run
from weightloom.apps.gan.app import Gan
from weightloom.apps.gan.config import GanConfig
from weightloom.apps.gan.presets import methods_of
from weightloom.apps.gan.problems.points import EACH, METHODS, Points, grid, ring
from weightloom.apps.gan.trained import load
from weightloom.training import TrainOptions, train

SHORT = {"replicas": 3, "batch": 32, "width": 8, "samples": 200}


def problem_of(data="grid", **options):
    return Points(GanConfig(data=data, **{**SHORT, **options}).resolved())


def built(problem, method, seed=0):
    torch.manual_seed(seed)
    return problem.build(method)


@pytest.mark.parametrize(("data", "count", "variance"), [("grid", 25, 8.0), ("ring", 8, 0.5)])
def test_real_samples_have_the_moments_and_the_quality_of_their_mixture(data, count, variance):
    """Variance per axis: that of the centres and std²; 1 - exp(-4.5) lie within 3 std in the plane."""
    problem = problem_of(data, samples=20_000)
    std = problem.mixture.std
    real = problem.ceilings("samples")["real samples"]
    torch.testing.assert_close(real.mean((0, 1)), torch.zeros(2), atol=0.04 * variance, rtol=0)
    expected = torch.full((2,), variance + std**2)
    torch.testing.assert_close(real.var((0, 1)), expected, rtol=0.02, atol=0)
    scores = problem.scores("samples", real)
    assert scores["modes"].tolist() == [count] * 3
    quality = 1 - math.exp(-4.5)
    assert scores["high_quality"].mean().item() == pytest.approx(quality, abs=0.002)
    chance = (count - 1) / (2 * 20_000)
    assert scores["reverse_kl"].mean().item() == pytest.approx(chance, rel=0.6)


def test_the_centres_are_those_of_the_published_protocol():
    centres = grid().centres
    assert {tuple(its) for its in centres.tolist()} == {
        (2.0 * x, 2.0 * y) for x in range(-2, 3) for y in range(-2, 3)
    }
    around = ring().centres
    torch.testing.assert_close(around.norm(dim=1), torch.ones(8))
    apart = (around - around.roll(1, 0)).norm(dim=1)
    torch.testing.assert_close(apart, torch.full((8,), 2 * math.sin(math.pi / 8)))


def test_players_see_samples_of_about_unit_spread():
    for data in ("grid", "ring"):
        _, real = problem_of(data, batch=5000).draw(0, torch.Generator().manual_seed(0))
        assert real.std().item() == pytest.approx(1.0, rel=0.05)
        assert not torch.equal(real[0], real[1])  # replicas get samples of their own


@pytest.mark.parametrize("method", METHODS)
def test_a_replica_of_several_is_trained_as_if_it_were_alone(method):
    """The third of three, against a run of one with its parameters, samples and noise.

    A loss is a mean over replicas, so the lone one's is divided by three: Adam's step is the same
    for gradients of any scale, but for its ε.
    """
    several, alone = problem_of(), problem_of(replicas=1)
    many, one = built(several, method).double(), built(alone, method).double()
    kept = many.state_dict()
    its = {
        name: value[2:].clone() if value.shape[0] == 3 else value.clone()
        for name, value in kept.items()
    }
    one.load_state_dict(its)
    draw = adversarial_source(
        lambda step, chance: (torch.zeros(3, 0), several.draw(step, chance)[1].double()),
        several.config.noise_dim,
        Penalty(0.1, every=2),
    )

    def third(step, generator):
        condition, real, noise, penalty = draw(step, generator)
        return AdversarialBatch(condition[2:], real[2:], noise[2:], penalty)

    options = TrainOptions(
        steps=12, outer_lr=1e-3, warmup_steps=1, average=0.9, clip_norm=torch.inf, seed=3
    )
    train(many, draw, None, options, turns=many.turns())
    a_third = lambda *its: turn_loss(*its) / 3  # noqa: E731
    turns = [replace(its, loss=a_third) for its in one.turns()]
    train(one, third, None, options, turns=turns)
    moved = 0.0
    for name, value in one.state_dict().items():
        found = many.state_dict()[name]
        found = found[2:] if found.shape[0] == 3 else found
        torch.testing.assert_close(found, value, rtol=0, atol=1e-6)
        moved = max(moved, (value - its[name]).abs().max().item())
    assert moved > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_pairs_of_a_replica_start_apart_and_draw_any_number_of_samples(method):
    problem = problem_of()
    pair = built(problem, method).eval()
    for count in (1, 17, 32):
        made = pair.sample(problem.conditions(), count, torch.Generator().manual_seed(1))
        assert made.shape == (3, count, 2)
    assert not torch.equal(made[0], made[1])


def test_a_generated_generator_makes_a_few_samples_and_the_next_another_few():
    """Within a group the code's own numbers matter for its first sample only."""
    problem = problem_of(noise_dim=4, width=32)
    pair = built(problem, "generated-generator").eval()
    for its in pair.generator.parameters():
        torch.nn.init.normal_(its, std=0.3)
    noise = torch.randn(3, 2 * EACH, 4)
    codes = noise.clone()
    codes[:, 1:EACH, :2] += 1.0  # not read
    made = pair.generator(problem.conditions(), noise)
    torch.testing.assert_close(pair.generator(problem.conditions(), codes), made)
    codes[:, 0, :2] += 1.0  # the code of the first few
    other = pair.generator(problem.conditions(), codes)
    assert (other - made)[:, :EACH].abs().amin(dim=(0, 2)).min() > 0
    torch.testing.assert_close(other[:, EACH:], made[:, EACH:])


def test_the_matched_pair_has_the_numbers_of_the_generated_one():
    problem = problem_of(width=16)
    counts = {
        method: sum(its.numel() for its in built(problem, method).parameters())
        for method in ("generated", "matched", "plain")
    }
    assert counts["matched"] == pytest.approx(counts["generated"], rel=0.05)
    assert counts["plain"] < counts["generated"] / 2


def test_methods_are_as_they_are_listed():
    assert set(METHODS) == set(methods_of("grid")) == set(methods_of("ring"))
    problem = problem_of()
    pairs = {method: built(problem, method) for method in METHODS}
    assert {name for name, its in pairs.items() if its.packing == 2} == {"packed", "packed-alone"}
    assert {name for name, its in pairs.items() if not its.penalised} == {
        "non-saturating",
        "packed-alone",
    }
    assert problem.recipe("constant-penalty", 100).penalty.at(48) == 4 * 0.1
    assert problem.recipe("plain", 100).penalty.at(48) == pytest.approx(4 * 0.003)
    assert pairs["r1"].penalised == ("real",)
    assert isinstance(pairs["generated"], StatisticsPair)


def test_a_run_judges_pairs_against_the_ceiling_and_logs_their_balance(tmp_path):
    folder = tmp_path / "run"
    config = GanConfig(data="ring", comparators=("plain",), steps=60, evaluate_every=30, **SHORT)
    record = run(Gan(), config, folder, quiet=True, bare=True)
    rows = {(its["method"], its.get("role", "method")): its for its in record["scores"]}
    real = rows["real samples", "ceiling"]
    assert real["mean"] == 8
    assert real["also"]["pairs with 8 modes"]["mean"] == 1
    plain = rows["plain", "method"]
    assert len(plain["per_context"]) == 3
    norms = plain["also"]["gradient norm of the discriminator"]
    assert 0 < norms["mean"] <= norms["largest"]
    assert "gradient norm of the generator" not in real["also"]
    trained = load(folder)
    drawn = trained.sample("pair 2", 50, seed=1)
    assert drawn.shape == (50, 2)
    assert not torch.equal(drawn, trained.sample("pair 1", 50, seed=1))
