"""Methods with a trunk and a head per task, and what surrounds them."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from weightloom.apps.fewshot.judge import reliability
from weightloom.forms import LowRank
from weightloom.learners.convs import HyperConvs
from weightloom.learners.heads import HyperHead, in_turns
from weightloom.learners.inner_steps import InnerSteps
from weightloom.learners.learner import Support
from weightloom.learners.maml import ANIL, MAML
from weightloom.learners.polynomial import RidgePolynomial
from weightloom.learners.probe import LinearProbe
from weightloom.learners.protonet import ProtoNet
from weightloom.networks import FeatureTrunk, ResidualTrunk, TrunkNet
from weightloom.tasks import ClassTasks
from weightloom.training import TrainOptions

WAYS, SHOTS, QUERIES = 3, 2, 4


def image_tasks(tasks=2, size=16, **options):
    pool = torch.rand(5, 9, 1, size, size, generator=torch.Generator().manual_seed(0))
    source = ClassTasks(
        pool, torch.full((5,), 9), **{"ways": WAYS, "shots": SHOTS, "queries": QUERIES} | options
    )
    return source, source.sample(tasks, torch.Generator().manual_seed(1))


def net(norm="batch"):
    torch.manual_seed(0)
    return TrunkNet(ResidualTrunk(1, 16, channels=(4, 8), norm=norm), WAYS)


def with_features(tasks, support, query):
    return tasks._replace(
        support=tasks.support._replace(x=support), query=tasks.query._replace(x=query)
    )


def film(name, parameter):
    return parameter.ndim == 1


def test_in_turns_every_example_is_in_a_support_set_and_never_in_both():
    """Features are numbers that name their example: class in the hundreds, place in the ones."""
    _, tasks = image_tasks()
    support, query = (torch.arange(2 * WAYS * n).view(2, -1, 1).float() for n in (SHOTS, QUERIES))
    query = query + 1000
    taken = in_turns(with_features(tasks, support, query))
    turns = (SHOTS + QUERIES) // SHOTS
    assert len(taken.support_x) == 2 * turns
    assert torch.equal(taken.support_x[:2], support) and torch.equal(taken.query_x[:2], query)
    for task in range(2):
        mine = range(task, 2 * turns, 2)
        everything = set(torch.cat([support[task], query[task]]).flatten().tolist())
        seen = [set(taken.support_x[i].flatten().tolist()) for i in mine]
        assert set.union(*seen) == everything and sum(map(len, seen)) == len(everything)
        for i, kept in zip(mine, seen, strict=True):
            assert kept | set(taken.query_x[i].flatten().tolist()) == everything
    label_of = dict(zip(support[0].flatten().tolist(), tasks.support_y[0].tolist(), strict=True))
    label_of |= dict(zip(query[0].flatten().tolist(), tasks.query_y[0].tolist(), strict=True))
    for x, y in ((taken.support_x, taken.support_y), (taken.query_x, taken.query_y)):
        assert [label_of[v] for v in x[::2].flatten().tolist()] == y[::2].flatten().tolist()


def test_masked_examples_take_no_turn_and_those_there_take_theirs():
    """A ring of 1 shot and 4 queries has five turns, one of 2 shots three: all take three."""
    _, tasks = image_tasks(fewest_shots=1)
    assert not tasks.support_mask.all()
    numbers = torch.arange(2 * WAYS * (SHOTS + QUERIES)).view(2, -1, 1).float()
    support, query = numbers.split([WAYS * SHOTS, WAYS * QUERIES], dim=1)
    taken = in_turns(with_features(tasks, support, query))
    assert len(taken.support_x) == 2 * 3
    absent = ~tasks.support_mask.repeat(3, 1)
    assert torch.equal(taken.support_x[absent], support.repeat(3, 1, 1)[absent])
    for task in range(2):
        there = (
            torch.cat([taken.support_x[i][taken.support_mask[i]] for i in range(task, 6, 2)])
            .flatten()
            .tolist()
        )
        assert len(set(there)) == len(there)  # in three turns none is in the support twice


@pytest.mark.parametrize("kind", [HyperHead, ProtoNet])
def test_the_training_loss_is_the_mean_over_the_turns_judged_one_by_one(kind):
    _, tasks = image_tasks()
    learner = kind(net(), 2.0).eval()
    taken = in_turns(
        with_features(tasks, learner.features(tasks.support_x), learner.features(tasks.query_x))
    )
    losses = [
        learner.loss_per_task(
            taken.query_x[i]
            @ (head := learner.head(*taken.support.take(slice(i, i + 1))))["head.weight"].mT
            + head["head.bias"][:, None],
            taken.query_y[i : i + 1],
        )
        for i in range(len(taken.support_x))
    ]
    expected = torch.cat(losses).view(-1, 2).mean(0)
    torch.testing.assert_close(learner(tasks), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("generate", [film, {"*.0.weight": LowRank(2)}], ids=["film", "low rank"])
def test_changes_of_the_trunk_start_as_the_trunk_with_a_generated_head(generate):
    _, tasks = image_tasks()
    ours = HyperConvs(net(), generate, 2.0).eval()
    plain = HyperHead(net(), 2.0).eval()
    torch.testing.assert_close(ours.answer(tasks), plain.answer(tasks), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_changes_of_the_trunk_learn_in_a_few_steps(norm):
    source, tasks = image_tasks()
    ours = HyperConvs(net(norm), film, 2.0)
    ours.fit(source, TrainOptions(steps=3, tasks=2))
    assert ours.hyper.head.weight.abs().sum() > 0
    ours.eval()
    alone = ours.answer(tasks.take(slice(1)))
    torch.testing.assert_close(ours.answer(tasks)[:1], alone, rtol=1e-4, atol=1e-4)


def test_film_alone_sets_the_head_from_the_class_means():
    _, tasks = image_tasks()
    film_only, protonet = (
        HyperConvs(net(), film, 2.0, generate_head=False).eval(),
        ProtoNet(net(), 2.0).eval(),
    )
    torch.testing.assert_close(
        film_only.answer(tasks), protonet.answer(tasks), rtol=1e-4, atol=1e-4
    )


def test_no_inner_steps_change_nothing_and_some_lower_the_support_loss():
    _, tasks = image_tasks()
    support = tasks.support
    learner = HyperHead(net(), 2.0).eval()

    def loss(params):
        return learner.loss_per_task(learner.predict(params, support.x), support.y).mean()

    still, moved = (InnerSteps(learner, steps, 1.0).adapt(support) for steps in (0, 3))
    start = learner.adapt(support)
    assert all(torch.equal(still[name], start[name]) for name in start)
    assert loss(moved) < loss(start)


def test_the_length_of_inner_steps_and_the_hypernetwork_are_both_trained_through_them():
    source, _ = image_tasks()
    learner = InnerSteps(HyperHead(net(), 2.0), 2, 0.1)
    before = [
        p.detach().clone()
        for p in (learner.log_inner_lr, learner.learner.hyper.generator[2].weight)
    ]
    learner.fit(source, TrainOptions(steps=2, tasks=2))
    after = (learner.log_inner_lr, learner.learner.hyper.generator[2].weight)
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_statistics_of_a_task_alone_do_not_depend_on_other_tasks():
    """Transductive: images of a task are normalised together, and by nothing else."""
    _, tasks = image_tasks()
    learner = ProtoNet(net("task"), 2.0).eval()
    torch.testing.assert_close(
        learner.answer(tasks)[1:], learner.answer(tasks.take(slice(1, 2))), rtol=1e-4, atol=1e-4
    )
    x = torch.cat([tasks.query_x[:, :1], tasks.query_x[:, 1:].flip(-1)], 1)
    queries = tasks._replace(query=tasks.query._replace(x=x))
    first, other = learner.answer(tasks)[:, 0], learner.answer(queries)[:, 0]
    assert not torch.allclose(first, other)  # that is what transductive means
    inductive = ProtoNet(net("batch"), 2.0).eval()
    torch.testing.assert_close(
        inductive.answer(tasks)[:, 0], inductive.answer(queries)[:, 0], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("norm", ["task", "batch", "group"])
@pytest.mark.parametrize(
    "build",
    [
        lambda base: ProtoNet(base, 2.0),
        lambda base: HyperConvs(base, film, 2.0),
        lambda base: HyperConvs(base, film, 2.0, generate_head=False),
        lambda base: MAML(base, inner_steps=2, inner_lr=0.1),
        lambda base: ANIL(base, inner_steps=2, inner_lr=0.1),
    ],
    ids=["protonet", "hyper-film", "film", "maml", "anil"],
)
def test_whatever_the_norm_a_task_is_judged_by_itself(norm, build):
    _, tasks = image_tasks()
    learner = build(net(norm)).eval()
    with torch.no_grad():
        together, alone = learner.answer(tasks), learner.answer(tasks.take(slice(1, 2)))
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)


def test_a_head_is_solved_for_in_full_precision_whatever_surrounds_it():
    _, tasks = image_tasks(queries=2)
    learner = HyperHead(net(), 2.0).eval()
    features = learner.features(tasks.support_x)
    plain = learner.head(features, tasks.support_y, tasks.support_mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = learner.head(features, tasks.support_y, tasks.support_mask)
    assert all(torch.equal(plain[name], mixed[name]) for name in plain)


def test_a_probe_learns_all_training_classes_and_adapts_to_new_ones():
    torch.manual_seed(0)
    centres = 3 * torch.randn(8, 1, 10)
    pool = centres + torch.randn(8, 20, 10)
    train = ClassTasks(pool[:5], torch.full((5,), 20), ways=3, shots=2, queries=4)
    probe = LinearProbe(TrunkNet(FeatureTrunk(10, hidden=16, dropout=0.0), 3), classes=5)
    history = probe.fit(train, TrainOptions(steps=60, tasks=8, outer_lr=1e-2, warmup_steps=5))
    assert history.rows[-1]["loss"] < 0.3 * history.rows[0]["loss"]
    held_out = ClassTasks(pool[5:], torch.full((3,), 20), ways=3, shots=5, queries=10)
    tasks = held_out.sample(20, torch.Generator().manual_seed(0))
    assert (probe.eval().answer(tasks).argmax(2) == tasks.query_y).float().mean() > 0.9


def test_a_polynomial_without_penalty_equals_that_of_numpy():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 4, 9, 1, generator=generator, dtype=torch.float64).unbind()
    mask = torch.ones(4, 9, dtype=torch.bool)
    learner = RidgePolynomial(degree=3, ridge=0.0).double()
    predicted = learner.predict(learner.adapt(Support(x, y, mask)), x)
    for task in range(4):
        expected = np.polyval(np.polyfit(x[task, :, 0], y[task, :, 0], 3), x[task, :, 0])
        np.testing.assert_allclose(predicted[task, :, 0].detach(), expected, rtol=1e-6, atol=1e-6)


def test_a_strong_penalty_leaves_the_mean_of_the_support_targets():
    x, y = torch.randn(2, 2, 5, 3).unbind()
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    learner = RidgePolynomial(3, 3, degree=1, ridge=1e9)
    predicted = learner.predict(learner.adapt(Support(x, y, mask)), x)
    torch.testing.assert_close(predicted[0], y[0].mean(0).expand(5, -1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predicted[1], y[1, :3].mean(0).expand(5, -1), rtol=1e-4, atol=1e-4)


def test_the_calibration_error_equals_that_of_torchmetrics():
    """torchmetrics 1.9, multiclass_calibration_error with the l1 norm."""
    logits = 2 * torch.randn(500, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(4, (500,), generator=torch.Generator().manual_seed(1))
    sure, chosen = logits.softmax(1).max(1)
    ours = reliability(sure, (chosen == labels).float(), bins=10)
    outside = multiclass_calibration_error(logits, labels, num_classes=4, n_bins=10, norm="l1")
    assert ours["ece"] == pytest.approx(outside.item(), abs=1e-5)
    assert sum(part["share"] for part in ours["bins"]) == pytest.approx(1)
