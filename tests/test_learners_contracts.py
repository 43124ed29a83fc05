"""No method needs more of a task than it says: rows in any order, any number of each class, whatever is hidden."""

from functools import cache

import pytest
import torch
from torch import nn

from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.methods import FITS, METHODS
from weightloom.apps.fewshot.problems import problem_of
from weightloom.conditions import DeepSets, GridEncoder
from weightloom.errors import ConfigError
from weightloom.learners.cnp import ConditionalNeuralProcess, Conditioned
from weightloom.learners.functions import HyperFunction
from weightloom.learners.heads import HyperHead
from weightloom.learners.inputs import RestoringLearner
from weightloom.learners.interpolation import GaussianPixels, Interpolation, Picture
from weightloom.learners.kernel import KernelRegression
from weightloom.learners.learner import Learner
from weightloom.learners.probe import LinearProbe
from weightloom.networks import FeatureTrunk, FunctionNet, TrunkNet
from weightloom.tasks import ClassTasks, FunctionTasks, Tasks
from weightloom.training import TrainOptions

IMAGES = torch.rand(9, 6, 6, generator=torch.Generator().manual_seed(0))
FUNCTIONS = {
    "hypernetwork": lambda: HyperFunction(
        FunctionNet(2, 1, 12), GridEncoder(2, 1, 16, size=8, hidden=(16,)), hidden=(16,)
    ),
    "cnp": lambda: ConditionalNeuralProcess(DeepSets(2, 1, 8, hidden=16), Conditioned(2, 1, 8)),
    "cnp-grid": lambda: ConditionalNeuralProcess(
        GridEncoder(2, 1, 8, size=8, hidden=(16,)), Conditioned(2, 1, 8)
    ),
    "interpolation": lambda: Interpolation(2, 1),
    "gaussian": lambda: GaussianPixels(IMAGES),
    "kernel": lambda: KernelRegression(Picture(6, 6), IMAGES.flatten(1)[..., None], 0.05),
}
BANK = [(data, name) for data in ("digits", "sinusoid", "cameras") for name in FITS[data]]
BANK += [("functions", name) for name in FUNCTIONS]
IN_SINGLE = {"scratch", *FITS["cameras"]}
"""Methods that hold numbers in single precision whatever they are brought to."""


def test_every_method_is_in_the_bank():
    assert {name for _, name in BANK} == {method.name for method in METHODS}
    one = "generated-prior"  # by its own name
    assert {*FUNCTIONS, one} == set(FITS["mnist-functions"])


@cache
def problem(data):
    options = (
        {"queries": 12, "ways": (4,), "shots": (2,)}
        if data == "cameras"
        else {"queries": 4, "shots": (3,)}
    )
    return problem_of(FewShotConfig(data=data, **options).resolved())


@cache
def built(data, name) -> tuple[Learner, Tasks, float]:
    """A method, two tasks, and the tolerance that its precision calls for."""
    torch.manual_seed(0)
    learner = FUNCTIONS[name]() if data == "functions" else problem(data).learner(name)
    if hasattr(learner, "steps"):
        learner.steps = min(learner.steps, 5)
    source = (
        FunctionTasks(IMAGES, shots=7, queries=6)
        if data == "functions"
        else problem(data).test_source(3)
    )
    tasks = source.sample(2, torch.Generator().manual_seed(1))
    if data == "cameras" or name in IN_SINGLE:
        return learner.eval(), tasks, 2e-3
    return (
        learner.double().eval(),
        tasks.map(lambda v: v.double() if v.is_floating_point() else v),
        1e-6,
    )


def answer(learner, tasks):
    torch.manual_seed(0)  # for methods that start from a random network
    return learner.answer(tasks).detach()


def loss(learner, tasks):
    torch.manual_seed(0)
    return learner(tasks).detach()


def shuffled(examples, seed):
    """Rows of each task in a random order, in which those of one class keep theirs; and the numbers of these rows."""
    rows = examples.mask.shape[1]
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed)).expand_as(
        examples.mask
    )
    if examples.y.ndim > 2:
        return examples.rows(order), order
    places = examples.y.gather(1, order).argsort(dim=1, stable=True)
    order = torch.empty_like(places).scatter(1, places, examples.y.argsort(dim=1, stable=True))
    return examples.rows(order), order


@pytest.mark.parametrize(("data", "name"), BANK)
def test_rows_come_in_any_order(data, name):
    learner, tasks, tolerance = built(data, name)
    support, _ = shuffled(tasks.support, 2)
    query, index = shuffled(tasks.query, 3)
    other = tasks._replace(support=support, query=query, **truth_of(learner, tasks, index))
    assert not torch.equal(support.x, tasks.support_x)
    expected = answer(learner, tasks)[torch.arange(2)[:, None], index]
    torch.testing.assert_close(answer(learner, other), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(
        loss(learner, other), loss(learner, tasks), rtol=tolerance, atol=tolerance
    )


def truth_of(learner, tasks, rows):
    """The pictures before the camera of some queries, for methods that say they read them."""
    restoring = isinstance(learner, RestoringLearner)
    return {"hidden": tasks.hidden[torch.arange(len(rows))[:, None], rows]} if restoring else {}


def thinned(examples, drop):
    """One task twice: without some rows; and with them, masked, garbage in them."""
    kept = ~torch.isin(torch.arange(examples.mask.shape[1]), torch.tensor(drop))[None]
    garbage = -1 if examples.y.ndim == 2 else 77.0
    target = examples.y.masked_fill(~kept.view(*kept.shape, *[1] * (examples.y.ndim - 2)), garbage)
    x = examples.x.masked_fill(~kept.view(*kept.shape, *[1] * (examples.x.ndim - 2)), 0.77)
    without = examples.map(lambda values: values[:, kept[0]])
    return without, examples._replace(x=x, y=target, mask=kept)


@pytest.mark.parametrize(("data", "name"), BANK)
def test_classes_are_unequal_and_what_is_masked_has_no_effect(data, name):
    learner, tasks, tolerance = built(data, name)
    one = tasks.take(slice(1))
    few, masked = thinned(one.support, [1, 4, 5])
    few_queries, masked_queries = thinned(one.query, [0, 3])
    without, padded = (one._replace(support=s) for s in (few, masked))
    torch.testing.assert_close(
        answer(learner, padded), answer(learner, without), rtol=tolerance, atol=tolerance
    )
    truth = truth_of(learner, one, masked_queries.mask.nonzero()[None, :, 1])
    without, padded = (
        without._replace(query=few_queries, **truth),
        padded._replace(query=masked_queries),
    )
    torch.testing.assert_close(
        loss(learner, padded), loss(learner, without), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize(("data", "name"), BANK)
@pytest.mark.parametrize("hidden", [None, "wide"])
def test_what_is_hidden_is_not_read_unless_a_method_says_so(data, name, hidden):
    learner, tasks, _ = built(data, name)
    other = tasks._replace(hidden=torch.rand(2, 17) if hidden else None)
    assert torch.equal(answer(learner, other), answer(learner, tasks))
    if isinstance(learner, RestoringLearner):
        with pytest.raises(ConfigError, match=r"`Tasks.hidden` is .* Pass `hidden` as"):
            loss(learner, other)
    else:
        assert torch.equal(loss(learner, other), loss(learner, tasks))


@pytest.mark.parametrize(
    "build",
    [lambda net: HyperHead(net, classes=5), lambda net: LinearProbe(net, classes=5, steps=3)],
)
def test_training_classes_are_asked_for_by_name(build):
    source = ClassTasks(torch.randn(5, 9, 10), torch.full((5,), 9), ways=3, shots=2, queries=4)
    tasks = source.sample(2, torch.Generator().manual_seed(0))
    learner = build(TrunkNet(FeatureTrunk(10, hidden=16, dropout=0.0), 3)).eval()
    without = tasks._replace(classes=None)
    assert torch.equal(answer(learner, without), answer(learner, tasks))
    with pytest.raises(
        ConfigError, match=r"`Tasks.classes` is None.*Pass `classes`, \(tasks, ways\)"
    ):
        loss(learner, without)
    with pytest.raises(ConfigError, match=r"holds a class 5, .* `classes=5`"):
        loss(learner, tasks._replace(classes=torch.full_like(tasks.classes, 5)))
    other = tasks._replace(classes=(tasks.classes + 1) % 5)
    assert not torch.allclose(loss(learner, other), loss(learner, tasks))


def test_shuffled_rows_train_as_well_as_sorted_ones():
    """Classes differ in two of ten directions: rows taken for those of another class would teach nothing of them."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.cat(
        [2.5 * torch.randn(16, 1, 2, generator=generator), torch.zeros(16, 1, 8)], dim=2
    )
    pool = centres + torch.randn(16, 20, 10, generator=generator) * torch.tensor(
        [0.3] * 2 + [2.0] * 8
    )
    counts = torch.full((8,), 20)

    class Shuffled(ClassTasks):
        def sample(self, tasks, generator):
            drawn = super().sample(tasks, generator)
            sides = [
                side.rows(torch.rand(side.mask.shape, generator=generator).argsort(1))
                for side in drawn[:2]
            ]
            return drawn._replace(support=sides[0], query=sides[1], hidden=torch.zeros(tasks, 1))

    held_out = ClassTasks(pool[8:], counts, 4, 2, 8).sample(100, torch.Generator().manual_seed(0))
    right, options = [], TrainOptions(steps=60, tasks=8, outer_lr=1e-2, warmup_steps=5)
    for kind in (ClassTasks, Shuffled):
        torch.manual_seed(0)
        learner = HyperHead(nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 4)))
        learner.fit(kind(pool[:8], counts, 4, 2, 8), options)
        right.append((learner.eval().answer(held_out).argmax(2) == held_out.query_y).float().mean())
    assert right[0] > 0.9 and right[1] > right[0] - 0.02
