"""Measures of generative models, against closed forms, loops, and laws of chance."""

import math
from itertools import combinations

import pytest
import torch

from weightloom.errors import ConfigError, DataError, ShapeError
from weightloom.measures import (
    ceiling,
    copying,
    density_coverage,
    duplicates,
    frechet_distance,
    kernel_distance,
    modes,
    nearest_training,
    neighbours,
    precision_recall,
)

TWO = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
GRID = torch.cartesian_prod(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def test_the_histogram_of_modes_is_compared_with_the_uniform_one():
    """Three good samples at one centre, one at the other, and one between that counts for neither."""
    samples = torch.tensor([[0.0, 0.0], [0.02, 0.0], [0.0, 0.1], [1.0, 0.0], [0.5, 0.0]])
    found = modes(samples, TWO, std=0.05)
    assert found.covered == 2 and found.high_quality == pytest.approx(0.8)
    assert found.reverse_kl == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5), abs=1e-6)


@pytest.mark.parametrize(("at", "covered", "good"), [(0.0, 1, 1.0), (30.0, 0, 0.0)])
def test_one_mode_and_none_have_the_largest_divergence(at, covered, good):
    found = modes(torch.full((9, 2), at), GRID, std=0.05)
    assert (found.covered.item(), found.high_quality.item()) == (covered, good)
    assert found.reverse_kl.item() == pytest.approx(math.log(25))


def test_several_sets_are_counted_as_each_alone():
    sets = drawn(2, 3, 50, 2)
    found = modes(sets, GRID, std=0.2)
    assert found.covered.shape == (2, 3)
    for row in range(2):
        for column in range(3):
            alone = modes(sets[row, column], GRID, std=0.2)
            assert [its[row, column].item() for its in found] == pytest.approx([*map(float, alone)])


def test_real_samples_have_the_share_and_the_divergence_of_theory():
    """Of a Gaussian in the plane, 1 - exp(-9/2) lies within 3 std; 2n KL is chi-squared, k - 1 free."""
    found = [ceiling(GRID, 0.05, 2500, generator(seed)) for seed in range(40)]
    good = torch.stack([its.high_quality for its in found]).mean()
    assert good.item() == pytest.approx(1 - math.exp(-4.5), abs=5 * math.sqrt(0.011 / 100_000))
    chi = 2 * 2500 * torch.stack([its.reverse_kl for its in found]).mean()
    assert chi.item() == pytest.approx(24, abs=5 * math.sqrt(2 * 24 / 40))
    assert all(its.covered == 25 for its in found)


def with_moments(mean, root):
    """A set whose mean and covariance are exactly ``mean`` and ``root @ root``."""
    centred = drawn(60, 2, seed=3)
    centred = centred - centred.mean(0)
    white = centred @ torch.linalg.inv(torch.linalg.cholesky(centred.T.cov(correction=1))).T
    return white @ root + mean


def test_the_frechet_distance_of_gaussians_is_the_closed_form():
    """In the plane, tr((C C')^½) is the root of tr(C C') + 2 sqrt(det(C C')); these do not commute."""
    one, other = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([[1.0, -0.5], [-0.5, 0.4]])
    one, other = one.double(), other.double()
    shift = torch.tensor([0.3, -2.0], dtype=torch.float64)
    product = one @ one @ other @ other
    cross = (product.trace() + 2 * product.det().sqrt()).sqrt()
    expected = shift.square().sum() + (one @ one).trace() + (other @ other).trace() - 2 * cross
    found = frechet_distance(with_moments(0, one), with_moments(shift, other))
    assert found == pytest.approx(expected.item(), rel=1e-9)
    far = frechet_distance(with_moments(1e4, one), with_moments(1e4 + shift, other))
    assert far == pytest.approx(expected.item(), rel=1e-6)


def test_the_frechet_distance_of_a_set_from_itself_is_zero_and_of_its_mean_the_variance():
    real = drawn(30, 50)  # fewer samples than features
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-6)
    repeated = real.mean(0).expand(9, -1)
    assert frechet_distance(real, repeated) == pytest.approx(real.var(0).sum().item())


def test_the_kernel_distance_compares_the_first_three_moments():
    """In one dimension it is the sum over j of binomial(3, j) times the squared distance of moments."""
    expected = 3 * 2**2 + 3 * (4 - 1) ** 2 + 8**2
    twos = torch.full((300, 1), 2.0)  # moments 2, 4, 8
    found = [
        kernel_distance(drawn(300, 1, seed=seed).sign(), twos) for seed in range(100)
    ]  # 0, 1, 0
    mean = sum(its.mean for its in found) / 100
    assert mean == pytest.approx(expected, rel=0.01)
    covered = sum(abs(its.mean - expected) < its.ci95 for its in found) / 100
    assert covered == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / 100))
    assert all(0.5 < its.ci95 < 8 for its in found)


def test_the_kernel_distance_of_one_distribution_is_zero_on_average():
    found = [
        kernel_distance(drawn(100, 3, seed=seed) / 2, drawn(140, 3, seed=900 + seed) / 2)
        for seed in range(100)
    ]
    values = torch.tensor([its.mean for its in found])
    assert abs(values.mean()) < 4 * values.std() / 10
    assert sum(abs(its.mean) < its.ci95 for its in found) >= 90


def test_at_most_so_many_samples_are_compared():
    real, other = drawn(90, 2), drawn(90, 2, seed=1) + 1
    assert kernel_distance(real, other, most=20).ci95 > 1.5 * kernel_distance(real, other).ci95
    assert kernel_distance(real, other, most=90) == kernel_distance(real, other)


def slow_reach(samples, k):
    return [
        sorted(math.dist(a, b) for j, b in enumerate(samples) if j != i)[k - 1]
        for i, a in enumerate(samples)
    ]


def slow_shares(real, generated, k):
    """Precision, density and coverage, by the definitions."""
    reach = slow_reach(real, k)
    near = [[math.dist(x, y) <= r for x, r in zip(real, reach, strict=True)] for y in generated]
    precision = sum(map(any, near)) / len(generated)
    covered = sum(map(any, zip(*near, strict=True))) / len(real)
    return precision, sum(map(sum, near)) / (k * len(generated)), covered


@pytest.mark.parametrize("rows", [7, 512])
def test_shares_by_neighbours_are_those_of_a_loop(monkeypatch, rows):
    monkeypatch.setattr(neighbours, "ROWS", rows)
    real, generated = drawn(40, 3), 0.7 * drawn(31, 3, seed=1) + 0.4
    one, other = real.tolist(), generated.tolist()
    precision, _, _ = slow_shares(one, other, 3)
    recall, _, _ = slow_shares(other, one, 3)
    assert precision_recall(real, generated) == pytest.approx((precision, recall))
    _, density, coverage = slow_shares(one, other, 5)
    assert density_coverage(real, generated) == pytest.approx((density, coverage))
    assert 0 < recall < precision < 1 and 0 < coverage < 1


def test_copies_have_all_shares_and_distant_samples_none():
    real = drawn(50, 4)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 99) == density_coverage(real, real + 99) == (0, 0)


def test_density_and_coverage_of_one_distribution_are_those_of_theory():
    """Naeem et al., equations 9 and 11, for any distribution; here N = 40 real samples, M = 60, k = 5."""
    found = [
        density_coverage(drawn(40, 2, seed=seed), drawn(60, 2, seed=5000 + seed))
        for seed in range(300)
    ]
    density, coverage = (sum(its) / 300 for its in zip(*found, strict=True))
    missed = math.prod((40 - i) / (100 - i) for i in range(1, 6))
    assert density == pytest.approx(1, abs=0.04)
    assert coverage == pytest.approx(1 - missed, abs=0.005)


def test_duplicates_find_the_size_of_a_support():
    """400 draws from 200 points have 399 pairs on average; the standard deviation is about 20."""
    support = drawn(200, 8)
    samples = support[torch.randint(200, (400,), generator=generator())]
    pairs, size = duplicates(samples, within=1e-3)
    assert pairs == sum(torch.equal(a, b) for a, b in combinations(samples, 2))
    assert size == pytest.approx(200, rel=0.25)
    assert duplicates(support, within=1e-3) == (0, math.inf)


def test_the_nearest_training_sample_is_that_of_a_loop():
    samples, training = drawn(30, 5), drawn(20, 5, seed=1)
    number, distance = nearest_training(samples, training)
    for row, sample in enumerate(samples):
        all_of_them = [math.dist(sample, other) for other in training]
        assert distance[row].item() == pytest.approx(min(all_of_them))
        assert all_of_them[number[row]] == min(all_of_them)


def test_copying_is_the_share_of_pairs_in_which_the_sample_is_closer():
    training, held_out, samples = drawn(60, 2), drawn(40, 2, seed=1), drawn(30, 2, seed=2)
    samples[:5] = held_out[:5]  # ties
    near = [
        [min(math.dist(a, b) for b in training.tolist()) for a in its.tolist()]
        for its in (samples, held_out)
    ]
    wins = sum((a < b) + 0.5 * (a == b) for a in near[0] for b in near[1])
    assert copying(samples, training, held_out) == pytest.approx(wins / 1200, abs=1e-3)
    assert copying(training[:30], training, held_out) == 1
    assert copying(samples + 99, training, held_out) == 0
    assert copying(held_out, training, held_out) == 0.5


BAD = torch.zeros(9, 2).index_fill(0, torch.tensor([4]), math.nan)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: precision_recall(TWO, TWO), DataError, r"`real` holds 2 .* neighbour 3 .* 4 or"),
        (lambda: density_coverage(GRID, TWO), DataError, r"`generated` holds 2 samples"),
        (lambda: precision_recall(GRID, GRID, 0), ConfigError, r"`neighbours=0`"),
        (lambda: precision_recall(GRID, GRID[:, :1]), ShapeError, r"2 wide and `generated` 1"),
        (lambda: frechet_distance(GRID[None], GRID), ShapeError, r"`real\.flatten\(1\)`"),
        (lambda: frechet_distance(GRID, TWO[:1]), DataError, r"a covariance needs two"),
        (lambda: kernel_distance(GRID, TWO), DataError, r"`generated` .* Pass 20 or more"),
        (lambda: kernel_distance(GRID, GRID, 1), ConfigError, r"`groups=1`"),
        (lambda: copying(GRID, BAD, TWO), DataError, r"`training` .* in 1 of 9 samples"),
        (lambda: nearest_training(GRID[:0], TWO), DataError, r"`samples` holds 0"),
        (lambda: duplicates(GRID, 0.0), ConfigError, r"`within=0\.0`"),
        (lambda: modes(BAD, TWO, 0.1), DataError, r"isfinite\(\)\.all\(-1\)\]"),
        (lambda: modes(TWO, TWO, 0.0), ConfigError, r"`std=0\.0`"),
        (lambda: modes(TWO, TWO[:, :1], 0.1), ShapeError, r"\(2, 2\) and `centres` \(2, 1\)"),
        (lambda: modes(TWO[:0], TWO, 0.1), DataError, r"^0 samples and 2 centres"),
    ],
)
def test_bad_input_is_named_with_the_way_out(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_the_advice_on_samples_that_are_not_finite_helps():
    kept = BAD[BAD.isfinite().all(-1)]
    assert modes(kept, TWO, 0.1).high_quality == 1
