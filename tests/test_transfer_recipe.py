"""The classic recipe of transfer, canonical factors, reconstruction and rankings, against truth."""

import itertools

import pytest
import torch
from torch import nn

from weightloom.apps.transfer.ranking import closeness, kendall, leep, logme
from weightloom.apps.transfer.recipe import (
    Ends,
    Start,
    carried,
    evaluate,
    fine_tune,
    generate,
    iterate,
    pretrain,
)
from weightloom.base import apply_per_task
from weightloom.errors import ConfigError, DataError, ShapeError
from weightloom.forms import Factored, LowRank
from weightloom.hypernets.canonical import Scale, canonical
from weightloom.learners.learner import Support
from weightloom.losses import reconstruction_per_task
from weightloom.networks import mlp
from weightloom.params import Params

TASKS = 3


@pytest.fixture
def source():
    torch.manual_seed(0)
    sides = {"0.weight": (7, 5), "0.bias": (7,), "2.weight": (4, 7), "2.bias": (4,)}
    return Params({n: torch.randn(TASKS, *its, dtype=torch.float64) for n, its in sides.items()})


@pytest.fixture
def base():
    return mlp([5, 7, 4]).double()


@pytest.fixture
def change():
    torch.manual_seed(1)
    factors = {"up": torch.randn(TASKS, 5, 2), "down": torch.randn(TASKS, 2, 5)}
    factors = {name: its.double() for name, its in factors.items()}
    held = Factored(LowRank(2), torch.eye(5, dtype=torch.float64), factors)
    return Params({"input.weight": held, "output.weight": torch.randn(TASKS, 4, 4).double()})


def examples(shots=12, seed=2):
    torch.manual_seed(seed)
    x, y = torch.randn(TASKS, shots, 5).double(), torch.randint(4, (TASKS, shots))
    return Support(x, y, torch.ones_like(y, dtype=torch.bool))


def test_a_carried_change_is_the_source_between_the_changed_ends(base, source, change):
    ends, x = Ends(5, 4).double(), examples().x
    for task in range(TASKS):
        turned = x[task] @ change["input.weight"].dense()[task].mT
        own = {name: its[task] for name, its in source.items()}
        expected = torch.func.functional_call(base, own, (turned,))
        expected = expected @ change["output.weight"][task].mT
        found = apply_per_task(base, carried(source, change), x)[task]
        torch.testing.assert_close(found, expected)
    assert set(change) == set(dict(ends.named_parameters()))
    same = {name: its[None] for name, its in ends.named_parameters()}
    torch.testing.assert_close(dict(carried(source, same)), dict(source))


def test_the_order_of_hidden_neurons_does_not_change_an_adapted_network(base, source, change):
    order, x = torch.randperm(7), examples().x
    moved = Params(source)
    moved["0.weight"], moved["0.bias"] = source["0.weight"][:, order], source["0.bias"][:, order]
    moved["2.weight"] = source["2.weight"][:, :, order]
    plain, permuted = (apply_per_task(base, carried(its, change), x) for its in (source, moved))
    torch.testing.assert_close(permuted, plain, rtol=1e-10, atol=1e-10)


def test_pretraining_solves_separate_tasks_in_one_call():
    torch.manual_seed(0)
    x = torch.randn(4, 60, 3)
    y = (x[..., 0] > 0).long()
    y[1::2] = 1 - y[1::2]  # the labels of every other task are exchanged
    base = mlp([3, 8, 2])
    before = {name: its.clone() for name, its in base.named_parameters()}
    sources = pretrain(base, x, y, steps=80, rate=0.05)
    assert all(torch.equal(its, before[name]) for name, its in base.named_parameters())
    assert (evaluate(base, sources, Support(x, y, y >= 0)).accuracy > 0.95).all()


@pytest.mark.parametrize(
    ("scope", "moved"),
    [
        ("none", set()),
        ("factors", {"0.weight", "2.weight", "2.bias"}),
        ("head", {"2.weight", "2.bias"}),
        ("all", {"0.weight", "0.bias", "2.weight", "2.bias"}),
    ],
)
def test_a_scope_moves_its_parameters_alone(base, source, change, scope, moved):
    start = Start(source, change)
    tuned = fine_tune(base, start, examples(), steps=3, rate=0.01, scope=scope)
    assert {n for n, its in tuned.items() if not torch.equal(its, start.params[n])} == moved


def test_a_first_step_of_adam_is_its_rate_in_every_number(base, source):
    tuned = fine_tune(base, Start(source, Params()), examples(), steps=1, rate=0.01)
    steps = torch.cat([(tuned[n] - source[n]).flatten() for n in ("2.weight", "2.bias")]).abs()
    assert steps.max().item() == pytest.approx(0.01, rel=1e-6)
    assert (steps > 0.0099).double().mean() > 0.9  # a gradient of 0 moves nothing


def test_masked_examples_have_no_effect(base, source):
    known, start = examples(), Start(source, Params())
    half = Support(known.x[:, :6], known.y[:, :6], known.mask[:, :6])
    masked = known._replace(mask=torch.arange(12).expand(TASKS, -1) < 6)
    found = [fine_tune(base, start, its, 5, 0.01) for its in (half, masked)]
    torch.testing.assert_close(*(its["0.weight"] for its in found))


def test_factors_alone_can_be_fitted_to_a_turned_task(base, source):
    x = examples(80).x
    turn = torch.linalg.qr(torch.randn(5, 5).double())[0]
    y = apply_per_task(base, source, x @ turn).argmax(2)
    zero = Factored(
        LowRank(4),
        torch.eye(5).double(),
        {"up": torch.zeros(TASKS, 5, 4).double(), "down": torch.randn(TASKS, 4, 5).double()},
    )
    start, known = Start(source, Params({"input.weight": zero})), Support(x, y, y >= 0)
    tuned = fine_tune(base, start, known, steps=150, rate=0.05, scope="factors")
    before, after = (evaluate(base, its, known) for its in (source, tuned))
    assert (after.accuracy > 0.9).all() and (before.accuracy < 0.7).all()


def test_rounds_take_the_last_result_as_their_source(base, source, change):
    seen = []

    def write(its, support):
        seen.append(its)
        return change

    def tune(start, support):
        return start.params

    found = iterate(base, write, source, examples(), examples(seed=5), tune, rounds=3)
    twice = carried(carried(source, change), change)
    torch.testing.assert_close(dict(seen[2]), dict(twice))
    torch.testing.assert_close(found[1], evaluate(base, twice, examples(seed=5)))


def test_a_target_without_examples_is_refused(source):
    known = examples()
    none = known._replace(mask=known.mask & (torch.arange(TASKS) != 1)[:, None])
    with pytest.raises(DataError, match=r"Targets \[1\] of 3 have no labelled example.*`source`"):
        generate(lambda its, support: Params(), source, none)


def test_an_unknown_scope_and_missing_factors_are_refused(base, source, unchecked):
    start = Start(source, Params())
    with pytest.raises(ConfigError, match=r'`scope="factors"` and `start.change` is empty'):
        fine_tune(base, start, examples(), 1, 0.1, "factors")
    with pytest.raises(ConfigError, match=r"`scope='heads'` is unknown.*`head`"):
        fine_tune(base, start, examples(), 1, 0.1, "heads")


def test_canonical_factors_do_not_depend_on_the_given_ones(change):
    value = change["input.weight"]
    mix = torch.randn(TASKS, 2, 2).double()
    other = Factored(
        value.form,
        value.own,
        {"up": value.factors["up"] @ mix, "down": mix.inverse() @ value.factors["down"]},
    )
    one, two = (canonical({"w": its})["w"] for its in (value, other))
    for name in ("up", "down"):
        torch.testing.assert_close(one.factors[name], two.factors[name], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(one.dense(), value.dense())


def test_canonical_factors_are_balanced_and_in_order(change):
    factors = canonical(change)["input.weight"].factors
    rows, columns = factors["up"].mT @ factors["up"], factors["down"] @ factors["down"].mT
    torch.testing.assert_close(rows, columns)
    sizes = rows.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(rows, torch.diag_embed(sizes), atol=1e-9, rtol=0)
    assert (sizes[:, 0] > sizes[:, 1]).all()
    product = change["input.weight"].dense() - torch.eye(5)
    torch.testing.assert_close(sizes, torch.linalg.svdvals(product)[:, :2])
    assert torch.equal(canonical(change)["output.weight"], change["output.weight"])


def test_full_changes_have_no_canonical_factors():
    with pytest.raises(ConfigError, match=r"holds no low-rank factors, only `bias`.*`LowRank`"):
        canonical({"bias": torch.ones(2, 3)})


def test_scores_have_mean_zero_and_spread_one_and_come_back():
    values = torch.randn(50, 4, dtype=torch.float64) * torch.tensor([1.0, 9.0, 0.1, 0.0]) + 3
    scale = Scale.of(values)
    scored = scale.scored(values)
    torch.testing.assert_close(scored.mean(0), torch.zeros(4).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(scored.std(0, correction=0)[:3], torch.ones(3).double())
    assert not scored[:, 3].any()  # a number that never varies
    torch.testing.assert_close(scale.restored(scored), values)


def test_the_reconstruction_error_is_that_of_the_products(change):
    other = change.map(lambda its: its + 0.1 * torch.randn_like(its))
    found = reconstruction_per_task(other, change)
    for task in range(TASKS):
        errors = []
        for name, own in (("input.weight", torch.eye(5)), ("output.weight", 0)):
            is_held = name == "input.weight"
            a, b = (
                (its[name].dense() if is_held else its[name])[task] - own for its in (other, change)
            )
            errors.append(((a - b).square().sum() / b.square().sum()).item())
        assert found[task].item() == pytest.approx(sum(errors) / 2, rel=1e-9)
    torch.testing.assert_close(
        reconstruction_per_task(canonical(change), change),
        torch.zeros(TASKS).double(),
        atol=1e-12,
        rtol=0,
    )
    with pytest.raises(ShapeError, match=r"differ in \['output.weight'\]"):
        reconstruction_per_task({"input.weight": change["input.weight"]}, change)


def test_leep_is_that_of_a_hand_made_answer():
    # two source labels, three examples: P(y=0|z) = (.9 + .8, .1 + .2) / (.9 + .8 + .3, .1 + .2 + .7)
    probabilities = torch.tensor([[[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]], dtype=torch.float64)
    labels = torch.tensor([[0, 0, 1]])
    zero, one = (0.85, 0.3), (0.15, 0.7)
    likelihoods = [0.9 * zero[0] + 0.1 * zero[1], 0.8 * zero[0] + 0.2 * zero[1]]
    likelihoods.append(0.3 * one[0] + 0.7 * one[1])
    expected = torch.tensor(likelihoods).log().mean().item()
    assert leep(probabilities, labels).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("width", [3, 40])
def test_logme_is_the_largest_evidence_of_the_linear_model(width):
    torch.manual_seed(0)
    features, count = torch.randn(1, 20, width).double(), 20
    labels = (features[..., :2] + torch.randn(1, 20, 2)).argmax(2)
    best = []
    for label in (0, 1):
        logs = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        y = (labels[0] == label).double()

        def evidence(logs=logs, y=y):
            alpha, beta = logs.exp()
            covariance = torch.eye(count) / beta + features[0] @ features[0].mT / alpha
            normal = torch.distributions.MultivariateNormal(torch.zeros(count).double(), covariance)
            return normal.log_prob(y) / count

        optimiser = torch.optim.LBFGS([logs], max_iter=100, line_search_fn="strong_wolfe")

        def closure(optimiser=optimiser, evidence=evidence):
            optimiser.zero_grad()
            loss = -evidence()
            loss.backward()
            return loss

        optimiser.step(closure)
        best.append(evidence().item())
    assert logme(features, labels).item() == pytest.approx(sum(best) / 2, abs=2e-3)


def test_the_source_of_the_same_data_is_the_closest():
    torch.manual_seed(0)
    features = torch.randn(3, 200, 4) * torch.tensor([1.0, 2.0, 1.0])[:, None, None]
    features[2] += 3
    found = closeness(features, torch.zeros(3, 4), torch.ones(3, 4))
    assert found.argmax() == 0 and found[0] > -0.2
    assert found[2].item() == pytest.approx(-3, abs=0.3)


def test_kendall_counts_pairs():
    truth, scores = torch.tensor([0.1, 0.5, 0.7, 0.9, 0.2]), torch.tensor([3.0, 1.0, 4.0, 5.0, 2.0])
    pairs = itertools.combinations(range(5), 2)
    signs = [(truth[a] - truth[b]).sign() * (scores[a] - scores[b]).sign() for a, b in pairs]
    assert kendall(scores[None], truth[None]).item() == pytest.approx(sum(signs).item() / 10)
    tied = kendall(torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([[1.0, 2.0, 3.0]]))
    assert tied.item() == pytest.approx(2 / (2 * 3) ** 0.5)  # 2 pairs agree; 2 and 3 are not tied
    with pytest.raises(ShapeError, match=r"shape \(1, 1\).*at least two sources"):
        kendall(torch.ones(1, 1), torch.ones(1, 1))


def test_ends_start_as_the_identity():
    x = torch.randn(6, 5)
    ends = Ends(5, 4)
    torch.testing.assert_close(ends.input(x), x)
    assert isinstance(ends.output, nn.Linear) and ends.output.bias is None
