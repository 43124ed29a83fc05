"""Adversarial pairs: losses by hand, penalties in closed form, turns, games with known orbits."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from weightloom.adversarial import (
    AdversarialBatch,
    AdversarialPair,
    ConcatenatedPlayer,
    FunctionGenerator,
    GeneratedPair,
    Penalty,
    StatisticsPair,
    adversarial_source,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from weightloom.adversarial.losses import check_loss
from weightloom.adversarial.players import cell_centres
from weightloom.errors import ConfigError, NonFiniteError, ShapeError
from weightloom.forms import FiLM, Full, LowRank
from weightloom.forms.factored import built
from weightloom.hypernets import MLPHyperNetwork
from weightloom.networks import Siren, mlp
from weightloom.training import TrainOptions, train

TASKS, COUNT, NOISE = 3, 6, 4
SHORT = TrainOptions(steps=8, outer_lr=0.01, warmup_steps=1, clip_norm=1e9, checkpoint_every=3)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def batch_of(penalty=0.0, count=COUNT, dtype=torch.float64):
    condition, real, noise = (
        random(TASKS, width, seed=width, dtype=dtype)
        if width == 2
        else random(TASKS, count, width, seed=width, dtype=dtype)
        for width in (2, 5, NOISE)
    )
    return AdversarialBatch(condition, real, noise, penalty)


def concatenated(packing=1, dtype=torch.float64, **options):
    torch.manual_seed(0)
    players = mlp([NOISE + 2, 7, 5], nn.Tanh), mlp([5 * packing + 2, 7, 1], nn.Tanh)
    pair = AdversarialPair(*map(ConcatenatedPlayer, players), NOISE, packing=packing, **options)
    return pair.to(dtype)


def generated_pair(form=None, dtype=torch.float64, **options):
    torch.manual_seed(0)
    base = nn.ModuleDict(
        {"generator": mlp([NOISE, 7, 5], nn.Tanh), "discriminator": mlp([5, 7, 1], nn.Tanh)}
    )
    generate = {"*": Full()}
    if form is not None:
        generate = {"*.weight": form, **({} if isinstance(form, FiLM) else {"*.bias": Full()})}
    hyper = MLPHyperNetwork(base, 2, generate, hidden=(5,))
    nn.init.normal_(hyper.head.weight, std=0.3)
    return GeneratedPair(base, hyper, NOISE, **options).to(dtype)


def softplus(number):
    return math.log1p(math.exp(number))


# losses


def test_losses_equal_the_numbers_worked_out_by_hand():
    real, fake = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 2.0]])
    expected = {
        "relativistic": (softplus(-1) + softplus(3), softplus(1) + softplus(-3)),
        "non-saturating": (
            softplus(0) + softplus(2) + softplus(-1) + softplus(1),
            softplus(0) + softplus(-2),
        ),
        "wasserstein": (2 - 0, -2),
    }
    for kind, (of_discriminator, of_generator) in expected.items():
        found = discriminator_loss(real, fake, kind), generator_loss(real, fake, kind)
        assert found[0].item() == pytest.approx(of_discriminator / 2)
        assert found[1].item() == pytest.approx(of_generator / 2)


def test_the_non_saturating_loss_is_torchs_cross_entropy_of_two_classes():
    real, fake = random(1, 50), random(1, 50, seed=1)
    ones, zeros = torch.ones_like(real), torch.zeros_like(fake)
    expected = cross_entropy(real, ones) + cross_entropy(fake, zeros)
    torch.testing.assert_close(discriminator_loss(real, fake, "non-saturating")[0], expected)
    expected = cross_entropy(fake, ones)
    torch.testing.assert_close(generator_loss(real, fake, "non-saturating")[0], expected)


def test_only_differences_of_scores_count_in_the_relativistic_loss():
    real, fake = random(2, 9), random(2, 9, seed=1)
    for loss in (discriminator_loss, generator_loss):
        torch.testing.assert_close(loss(real + 7, fake + 7), loss(real, fake))
    torch.testing.assert_close(discriminator_loss(real, fake), generator_loss(fake, real))


# penalties


def linear_pair(weight, packing=1, **options):
    """A discriminator w · x, whose gradient is w everywhere."""
    judge, make = nn.Linear(len(weight), 1), nn.Linear(NOISE, len(weight) // packing)
    with torch.no_grad():
        judge.weight.copy_(torch.tensor([weight]))
    players = ConcatenatedPlayer(make), ConcatenatedPlayer(judge)
    return AdversarialPair(*players, NOISE, packing=packing, **options)


def penalty_of(pair, weight):
    """Loss of the discriminator with a penalty, less the loss without."""
    data = torch.zeros(1, 0), torch.randn(1, 6, 2), torch.randn(1, 6, NOISE)
    with_it, without = (
        pair(AdversarialBatch(*data, its), "discriminator").item() for its in (weight, 0.0)
    )
    return with_it - without


@pytest.mark.parametrize(
    ("options", "per_weight"),
    [
        ({}, 25.0),  # half of R1 and half of R2, each |w|²
        ({"penalised": ("real",)}, 12.5),
        ({"loss": "non-saturating", "penalised": ("fake",)}, 12.5),
        ({"penalised": ()}, 0.0),
        ({"loss": "wasserstein"}, 16.0),  # (|w| - 1)², without a factor of one half
    ],
)
def test_the_penalty_of_a_linear_discriminator_is_its_squared_weight(options, per_weight):
    pair = linear_pair([3.0, 4.0], **options)
    assert penalty_of(pair, 0.2) == pytest.approx(0.2 * per_weight, rel=1e-4, abs=1e-5)


def test_the_penalty_of_packed_samples_counts_the_gradient_of_all_of_them():
    pair = linear_pair([3.0, 4.0, 12.0, 0.0], packing=2)
    assert penalty_of(pair, 1.0) == pytest.approx(169.0, rel=1e-4)


def test_the_penalty_of_a_quadratic_score_is_the_mean_square_of_its_input():
    x = random(2, 50, 3).requires_grad_()
    found = gradient_penalty(x.square().sum(2) / 2, x)
    torch.testing.assert_close(found, x.square().sum(2).mean(1))


@pytest.mark.parametrize("form", [None, LowRank(2), FiLM()], ids=["full", "low rank", "film"])
@pytest.mark.parametrize("loss", ["relativistic", "non-saturating"])
def test_second_derivatives_equal_those_of_a_loop_over_tasks(form, loss):
    """R1 and R2 through generated parameters, against one network per task, in float64."""
    pair, batch = generated_pair(form, loss=loss), batch_of(penalty=0.7)
    leaves = [its for its in pair.parameters() if its.requires_grad]
    found = torch.autograd.grad(
        pair(batch, "discriminator").sum(), leaves, allow_unused=True, materialize_grads=True
    )

    make, judge = pair.generator, pair.discriminator
    own = dict(pair.named_parameters())
    params = {name: built(its) for name, its in pair.hyper(batch.condition).items()}
    total = torch.zeros((), dtype=torch.float64)
    for task in range(TASKS):

        def run(net, name, x, task=task):
            its = {
                key: params.get(f"{name}.{key}", [own[f"{name}.{key}"]] * TASKS)[task]
                for key, _ in net.named_parameters()
            }
            return functional_call(net, its, (x,))

        fake = run(make, "generator", batch.noise[task]).detach().requires_grad_()
        real = batch.real[task].clone().requires_grad_()
        scores = [run(judge, "discriminator", x)[:, 0] for x in (real, fake)]
        total = total + discriminator_loss(scores[0][None], scores[1][None], loss)[0]
        for score, x in zip(scores, (real, fake), strict=True):
            (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
            total = total + 0.7 / 2 * gradient.square().sum(1).mean()
    expected = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
    assert any(its.abs().max() > 1e-3 for its in expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


# packing


def test_packing_judges_neighbours_together():
    """Packs are (1st, 2nd), (3rd, 4th)…: a swap within a pack changes the input, not the pack."""
    pair = concatenated(packing=2)
    seen = []
    pair.discriminator.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    batch = batch_of()
    pair(batch, "discriminator")
    packs = seen[0][:, : COUNT // 2]  # the real ones come first
    expected = torch.stack(
        [torch.cat([batch.real[:, i], batch.real[:, i + 1]], 1) for i in range(0, COUNT, 2)], 1
    )
    assert torch.equal(packs, expected)


def test_pictures_are_packed_along_their_channels():
    pair = AdversarialPair(nn.Identity(), nn.Identity(), NOISE, packing=3)
    pictures = random(2, 6, 1, 4, 4)
    packed = pair._packed(pictures)
    assert packed.shape == (2, 2, 3, 4, 4)
    assert torch.equal(packed[1, 1, 2], pictures[1, 5, 0])


# players


@pytest.mark.parametrize("event", [(5,), (5, 4, 4)], ids=["vectors", "pictures"])
def test_a_concatenated_player_equals_a_loop_over_samples(event):
    base = (nn.Linear(7, 3) if len(event) == 1 else nn.Conv2d(7, 3, 3)).double()
    condition, x = random(TASKS, 2), random(TASKS, COUNT, *event)
    found = ConcatenatedPlayer(base)(condition, x)
    for task in range(TASKS):
        for sample in range(COUNT):
            beside = condition[task].reshape(2, *[1] * (len(event) - 1)).expand(2, *event[1:])
            expected = base(torch.cat([x[task, sample], beside])[None])[0]
            torch.testing.assert_close(found[task, sample], expected)


def test_functions_of_two_resolutions_agree_where_their_cells_have_one_centre():
    """Each cell of the coarse grid holds 3 x 3 of the fine one; the middle one has its centre."""
    torch.manual_seed(0)
    base = Siren(2, 1, hidden=(8,)).double()
    hyper = MLPHyperNetwork(base, 2 + NOISE, hidden=(8,)).double()
    nn.init.normal_(hyper.head.weight, std=0.1)
    made = FunctionGenerator(base, hyper, size=(4, 5))
    condition, noise = random(TASKS, 2), random(TASKS, COUNT, NOISE)
    coarse, fine = made(condition, noise), made(condition, noise, size=(12, 15))
    torch.testing.assert_close(fine[..., 1::3, 1::3], coarse)
    assert (fine[..., ::3, ::3] - coarse).abs().max() > 1e-3


def test_a_cell_of_several_positions_is_the_mean_of_a_larger_sample():
    torch.manual_seed(0)
    base = Siren(2, 1, hidden=(8,)).double()
    hyper = MLPHyperNetwork(base, 2 + NOISE, hidden=(8,)).double()
    nn.init.normal_(hyper.head.weight, std=0.1)
    made = FunctionGenerator(base, hyper, size=(4, 5), cell=2)
    condition, noise = random(TASKS, 2), random(TASKS, COUNT, NOISE)
    larger = made(condition, noise, size=(8, 10)).flatten(0, 1)
    expected = nn.functional.avg_pool2d(larger, 2).unflatten(0, (TASKS, COUNT))
    torch.testing.assert_close(made(condition, noise), expected)


def test_a_function_is_the_network_of_its_own_condition_and_noise():
    torch.manual_seed(0)
    base = Siren(1, 2, hidden=(8,)).double()
    hyper = MLPHyperNetwork(base, 2 + NOISE, hidden=(8,)).double()
    nn.init.normal_(hyper.head.weight, std=0.1)
    condition, noise = random(TASKS, 2), random(TASKS, COUNT, NOISE)
    found = FunctionGenerator(base, hyper, size=(7,))(condition, noise)
    one = {
        name: its[0] for name, its in hyper(torch.cat([condition[2], noise[2, 3]])[None]).items()
    }
    expected = functional_call(base, one, (cell_centres((7,)).double(),))
    torch.testing.assert_close(found[2, 3], expected.mT)


def test_cell_centres_cover_the_area_evenly():
    grid = cell_centres((4, 2))
    assert grid.shape == (4, 2, 2)
    assert grid[:, 0, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert grid.mean((0, 1)).tolist() == [0, 0]


# turns


def trained_by_turn(pair, numbers):
    """Numbers before training, after the discriminator's turn, and after the generator's."""
    kept = [numbers()]
    options = TrainOptions(steps=2, outer_lr=0.01, warmup_steps=1, evaluate_every=1)
    look = lambda done: kept.append(numbers()) or {}  # noqa: E731
    train(pair, lambda *_: batch_of(), None, options, turns=pair.turns(), evaluate=look)
    return kept


def test_the_turn_of_a_player_moves_its_parameters_only():
    pair = concatenated()
    copied = lambda: {n: its.detach().clone() for n, its in pair.named_parameters()}  # noqa: E731
    before, middle, after = trained_by_turn(pair, copied)
    for name in before:
        assert torch.equal(middle[name], before[name]) == name.startswith("generator"), name
        assert torch.equal(after[name], middle[name]) == name.startswith("discriminator"), name


def test_the_turn_of_a_generated_player_moves_the_rows_that_write_it_and_the_trunk():
    """From the zero head of bias-HyperInit, the generator that is written stays exactly the same."""
    torch.manual_seed(0)
    base = nn.ModuleDict({"generator": mlp([NOISE, 7, 5]), "discriminator": mlp([5, 7, 1])})
    pair = GeneratedPair(base, MLPHyperNetwork(base, 2, hidden=(5,)), NOISE).double()
    written = lambda: {  # noqa: E731
        name: its.detach().clone() for name, its in pair.hyper(batch_of().condition).items()
    }
    rows = lambda: {  # noqa: E731
        name: torch.cat([its[which].detach().flatten() for its, which in parts])
        for name, parts in pair.hyper.written_by().items()
    }
    before, middle, after = trained_by_turn(pair, lambda: (written(), rows()))
    for name in before[0]:
        is_generator = name.startswith("generator")
        assert torch.equal(middle[0][name], before[0][name]) == is_generator, name
        assert torch.equal(middle[1][name], before[1][name]) == is_generator, name
        assert torch.equal(after[1][name], middle[1][name]) != is_generator, name


def test_a_pair_of_functions_is_trained_like_any_other():
    torch.manual_seed(0)
    base = Siren(1, 1, hidden=(4,))
    make = FunctionGenerator(base, MLPHyperNetwork(base, 2 + NOISE, hidden=(4,)), size=(6,))
    judge = ConcatenatedPlayer(nn.Sequential(nn.Conv1d(3, 4, 3), nn.Flatten(), nn.Linear(16, 1)))
    pair = AdversarialPair(make, judge, NOISE)
    real = torch.randn(TASKS, COUNT, 1, 6)
    source = adversarial_source(lambda *_: (torch.randn(TASKS, 2), real), NOISE)
    before = {name: its.detach().clone() for name, its in pair.named_parameters()}
    train(pair, source, None, SHORT, turns=pair.turns())
    assert all(not torch.equal(its, before[name]) for name, its in pair.named_parameters())


# a game whose orbits are known


class Point(nn.Module):
    """The generator of a Dirac-GAN: every sample is θ."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, condition, noise):
        return self.theta.expand(*noise.shape[:2], 1)


class Slope(nn.Module):
    """The discriminator of a Dirac-GAN: the score of x is ψx."""

    def __init__(self):
        super().__init__()
        self.psi = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, condition, samples):
        return self.psi * samples


DIRAC = AdversarialBatch(
    torch.zeros(1, 0), torch.zeros(1, 2, 1, dtype=torch.float64), torch.zeros(1, 2, 1)
)
"""All real samples are 0."""


def play(loss, penalty, rounds, rate=0.1):
    """Distances from the equilibrium (0, 0) under gradient descent in turns."""
    pair = AdversarialPair(Point(), Slope(), 1, loss, penalised=("real",))
    players = {"discriminator": pair.discriminator.psi, "generator": pair.generator.theta}
    radii = []
    for _ in range(rounds):
        for turn, number in players.items():
            losses = pair(DIRAC._replace(penalty=penalty), turn)
            (gradient,) = torch.autograd.grad(losses, number)
            with torch.no_grad():
                number -= rate * gradient
        radii.append(math.hypot(*(its.item() for its in players.values())))
    return radii


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_gradients_of_a_dirac_gan_are_those_of_its_closed_form(penalty):
    """Mescheder et al. (2018), with f(t) = -softplus(-t): ψ' = -f'(-θψ)θ… and R1 adds γψ."""
    pair = AdversarialPair(Point(), Slope(), 1, "non-saturating", penalised=("real",))
    theta, psi = 1.0, 0.5
    sigmoid = 1 / (1 + math.exp(-theta * psi))
    batch = DIRAC._replace(penalty=penalty)
    (found,) = torch.autograd.grad(pair(batch, "discriminator"), pair.discriminator.psi)
    assert found.item() == pytest.approx(sigmoid * theta + penalty * psi)
    (found,) = torch.autograd.grad(pair(batch, "generator"), pair.generator.theta)
    assert found.item() == pytest.approx(-(1 - sigmoid) * psi)


def test_a_dirac_gan_with_the_wasserstein_loss_circles_as_its_matrix_says():
    """Steps of .1 multiply (ψ, θ) by [[1, -.1], [.1, .99]], whose eigenvalues have modulus 1."""
    round_ = torch.tensor([[1.0, -0.1], [0.1, 0.99]], dtype=torch.float64)
    last = torch.linalg.matrix_power(round_, 300) @ torch.tensor([0.5, 1.0], dtype=torch.float64)
    radii = play("wasserstein", 0.0, 300)
    assert radii[-1] == pytest.approx(last.norm().item(), rel=1e-9)
    assert 1.0 < min(radii) < max(radii) < 1.25


def test_a_dirac_gan_converges_with_r1_and_hardly_without():
    """Linearised, λ² + γλ + 1/4 = 0 has real part -γ/2; without a penalty 1/r² grows by 1/8."""
    with_it, without = (play("non-saturating", penalty, 300) for penalty in (0.5, 0.0))
    rate = -math.log(with_it[280] / with_it[80]) / 200  # per round of two steps of 0.1
    assert rate == pytest.approx(0.1 * 0.5 / 2, rel=0.1)
    assert with_it[-1] < 1e-3
    expected = (1 / (1.0 + 0.25) + 300 * 0.1 / 8) ** -0.5
    assert without[-1] == pytest.approx(expected, rel=0.05)


# the discriminator is never told the noise


class Fixed(nn.Module):
    """A generator whose samples do not depend on its noise."""

    def __init__(self):
        super().__init__()
        self.made = nn.Parameter(random(TASKS, COUNT, 5))

    def forward(self, condition, noise):
        return self.made


def scores_of(pair, batch):
    seen = []
    hook = pair.discriminator.register_forward_hook(lambda *its: seen.append(its[2].detach()))
    pair(batch, "discriminator")
    hook.remove()
    return seen[0]


def exchanged(batch):
    """The same batch, with the noise of neighbours exchanged."""
    return batch._replace(noise=batch.noise.flip(1))


def leaking(pair):
    """The same pair, whose discriminator is told the first number of the noise."""

    def told(batch, turn, forward=pair.forward):
        return forward(batch._replace(real=batch.real + batch.noise[..., :1]), turn)

    pair.forward = told
    return pair


def with_statistics():
    torch.manual_seed(0)
    judge = ConcatenatedPlayer(mlp([5 + 2 + 20, 7, 1]))
    pair = StatisticsPair(Fixed(), judge, NOISE, tasks=TASKS, width=5).double()
    pair(batch_of(), "discriminator")
    return pair


@pytest.mark.parametrize("kind", ["plain", "packed", "statistics"])
def test_exchanging_the_noise_of_samples_leaves_every_score_unchanged(kind):
    if kind == "statistics":
        pair = with_statistics().eval()
    else:
        pair = concatenated(packing=1 if kind == "plain" else 2)
        pair.generator = Fixed()
    batch = batch_of()
    assert torch.equal(scores_of(pair, batch), scores_of(pair, exchanged(batch)))
    pair = leaking(pair)  # the test can tell
    assert not torch.equal(scores_of(pair, batch), scores_of(pair, exchanged(batch)))


def test_a_generated_sample_is_scored_alike_wherever_its_noise_stands():
    """With samples from noise, exchanging the noise exchanges the samples, and their scores."""
    pair, batch = generated_pair(), batch_of()
    players = pair.players(batch.condition)
    scores = players.judge(players.generate(batch.noise))
    torch.testing.assert_close(players.judge(players.generate(batch.noise.flip(1))), scores.flip(1))


# statistics as the condition


def test_the_condition_holds_means_and_spreads_of_real_and_generated_samples():
    pair = with_statistics()
    batch, made = batch_of(), pair.generator.made.detach()
    known = [part for its in (batch.real, made) for part in (its.mean(1), its.std(1, correction=0))]
    torch.testing.assert_close(pair.seen, 0.1 * torch.cat(known, 1))  # 0.9 of the zeros is kept
    pair(batch, "generator")
    torch.testing.assert_close(pair.seen, 0.19 * torch.cat(known, 1))
    seen = pair.seen.clone()
    pair.eval()(batch, "generator")
    assert torch.equal(pair.seen, seen)


def test_statistics_of_other_tasks_than_those_kept_are_refused():
    pair = with_statistics()
    with pytest.raises(ShapeError, match=r"1 conditions for statistics of 3 tasks"):
        pair.sample(torch.zeros(1, 2, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"keep=1.0.*0\.9"):
        StatisticsPair(Fixed(), Fixed(), NOISE, tasks=TASKS, width=5, keep=1.0)


# schedule and source


def test_the_penalty_falls_along_a_geometric_series_and_is_weighted_by_its_rarity():
    penalty = Penalty(1.0, end=0.01, every=5, rounds=100, share=0.5)
    assert penalty.at(25) == pytest.approx(5 * 0.1)
    assert penalty.at(50) == penalty.at(95) == pytest.approx(5 * 0.01)
    assert [number for number in range(20) if penalty.at(number)] == [0, 5, 10, 15]
    constant = Penalty(2.0, every=4)
    assert sum(constant.at(number) for number in range(100)) / 100 == pytest.approx(2.0)


def test_both_turns_of_a_round_share_its_penalty():
    draw = lambda step, generator: (torch.zeros(1, 0), torch.zeros(1, 2, 1))  # noqa: E731
    source = adversarial_source(draw, NOISE, Penalty(1.0, every=2))
    weights = [source(step, torch.Generator()).penalty for step in range(6)]
    assert weights == [2, 2, 0, 0, 2, 2]


def test_a_resumed_pair_ends_with_the_same_numbers_bit_for_bit(tmp_path):
    """A crash in the fifth step, in mid-round; statistics are resumed with the parameters."""

    def new():
        torch.manual_seed(0)
        players = ConcatenatedPlayer(mlp([NOISE + 22, 7, 5])), ConcatenatedPlayer(mlp([27, 7, 1]))
        return StatisticsPair(*players, noise_dim=NOISE, tasks=TASKS, width=5)

    def source(step, generator):
        draw = lambda step, generator: (  # noqa: E731
            torch.zeros(TASKS, 2),
            torch.randn(TASKS, COUNT, 5, generator=generator),
        )
        return adversarial_source(draw, NOISE, Penalty(0.5, every=2))(step, generator)

    def crashing(step, generator):
        if step == 4:
            raise KeyError("crash")
        return source(step, generator)

    whole, broken, resumed = new(), new(), new()
    train(whole, source, None, SHORT, turns=whole.turns(), run=tmp_path / "whole")
    with pytest.raises(KeyError):
        train(broken, crashing, None, SHORT, turns=broken.turns(), run=tmp_path / "broken")
    torch.manual_seed(99)
    train(resumed, source, None, SHORT, turns=resumed.turns(), run=tmp_path / "broken", resume=True)
    kept = whole.state_dict()
    assert all(torch.equal(its, kept[name]) for name, its in resumed.state_dict().items())
    assert not torch.equal(kept["seen"], broken.seen)


# bad input


def test_a_discriminator_that_ends_in_two_numbers_is_refused():
    pair = concatenated()
    pair.discriminator = ConcatenatedPlayer(nn.Linear(7, 2).double())
    with pytest.raises(ShapeError, match=r"\(3, 12, 2\).*nn\.Linear\(width, 1\)"):
        pair(batch_of(), "discriminator")


def test_samples_of_another_shape_than_the_real_ones_are_refused():
    batch = batch_of()
    with pytest.raises(ShapeError, match=r"\(3, 6, 5\), and the real ones are \(3, 6, 4\)"):
        concatenated()(batch._replace(real=batch.real[..., :4]), "generator")


def test_samples_that_cannot_be_packed_are_refused():
    with pytest.raises(ShapeError, match=r"7 samples .* multiple of 2"):
        concatenated(packing=2)(batch_of(count=7), "discriminator")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"packing": 0}, "packing=0"),
        ({"noise_dim": 0}, "noise_dim=0"),
        ({"penalised": ("reel",)}, r'Pass `\("real",\)` for R1'),
    ],
)
def test_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        AdversarialPair(Fixed(), Fixed(), **{"noise_dim": NOISE, **options})


def test_an_unknown_loss_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"`loss='relativistc'` is unknown.*`relativistic`"):
        check_loss("relativistc")


@pytest.mark.parametrize(
    "options",
    [
        {"start": -1.0},
        {"start": 1.0, "end": 2.0, "rounds": 5},
        {"end": 0.5},
        {"every": 0},
        {"share": 0.0},
    ],
)
def test_a_penalty_that_fits_no_schedule_is_refused(options):
    with pytest.raises(ConfigError):
        Penalty(**options)


def test_a_base_without_both_players_is_refused():
    base = nn.ModuleDict({"generator": nn.Linear(NOISE, 5), "critic": nn.Linear(5, 1)})
    with pytest.raises(ConfigError, match=r"\['critic', 'generator'\].*nn\.ModuleDict"):
        GeneratedPair(base, MLPHyperNetwork(base, 2), NOISE)


def test_a_grid_without_points_is_refused():
    base = Siren(2, 1, hidden=(4,))
    with pytest.raises(ConfigError, match=r"size=\(8, 0\).*`size=\(8, 8\)`"):
        FunctionGenerator(base, MLPHyperNetwork(base, 2), size=(8, 0))


def test_divergence_is_an_error_that_says_what_to_try():
    pair = concatenated()
    with torch.no_grad():
        pair.discriminator.base[2].bias.fill_(2e5)
    with pytest.raises(NonFiniteError, match=r"reached 2e\+05.*penalty.*outer_lr"):
        pair(batch_of(), "discriminator")
    with torch.no_grad():
        pair.discriminator.base[2].bias.fill_(9e4)
    assert pair(batch_of(), "discriminator").isfinite().all()
