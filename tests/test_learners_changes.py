"""Changes of a frozen trunk, its metric or its class means: equal at step 0, closed forms, controls."""

import copy

import pytest
import torch
from torch import nn

import weightloom
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.methods import _kernels, _norms
from weightloom.apps.fewshot.problems import classes, problem_of
from weightloom.apps.fewshot.problems.pools import Pools
from weightloom.learners.convs import HyperConvs
from weightloom.learners.heads import HyperHead
from weightloom.learners.metric import HyperMetric
from weightloom.learners.protonet import ProtoNet
from weightloom.learners.set_transformer import SupportTransformer
from weightloom.networks.backbone import ViewsTrunk
from weightloom.networks.feedforward import ConvTrunk, TrunkNet
from weightloom.tasks import ClassPool, ClassTasks
from weightloom.training import TrainOptions

PLACES = {"film": _norms, "lowrank": {_kernels: weightloom.LowRank(2)}}
CHANGED = [(place, shared) for place in PLACES for shared in (False, True)]


@pytest.fixture(scope="module")
def tail():
    """Last block of a trunk, with statistics and features unlike those of another one."""
    torch.manual_seed(0)
    trunk = ConvTrunk(3, 8, 6, 2, norm="batch")
    trunk(torch.rand(32, 3, 8, 8))
    return nn.Sequential(trunk.blocks[1], nn.Flatten()).eval()


def base(tail, unit=True):
    centre = torch.linspace(0.2, 0.6, 24)
    return TrunkNet(ViewsTrunk(copy.deepcopy(tail), 24, unit, centre), 3)


@pytest.fixture(scope="module")
def source():
    examples = torch.rand(6, 9, 2, 6, 4, 4, generator=torch.Generator().manual_seed(1))
    return ClassTasks(examples, torch.full((6,), 9), 3, 2, 4)


@pytest.fixture(scope="module")
def tasks(source):
    return source.sample(3, torch.Generator().manual_seed(2))


def convs(tail, place, shared, **options):
    torch.manual_seed(3)
    return HyperConvs(base(tail), PLACES[place], 10.0, hidden=8, shared=shared, **options)


@pytest.mark.parametrize(("place", "shared"), CHANGED)
def test_a_changed_tail_starts_as_the_frozen_trunk(tail, tasks, place, shared):
    for head, learner in ((True, HyperHead(base(tail), 10.0)), (False, ProtoNet(base(tail), 10.0))):
        torch.manual_seed(4)
        changed = convs(tail, place, shared, generate_head=head).eval()
        torch.testing.assert_close(
            changed.answer(tasks), learner.eval().answer(tasks), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("shared", [False, True])
def test_a_metric_and_a_transformer_start_as_a_prototypical_network(tail, tasks, shared):
    expected = ProtoNet(base(tail), 10.0).eval().answer(tasks)
    for learner in (
        HyperMetric(base(tail), 2, 10.0, shared=shared),
        SupportTransformer(base(tail), 10.0, width=8),
    ):
        torch.testing.assert_close(learner.eval().answer(tasks), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_logits_under_a_metric_are_distances_to_changed_means(tail, tasks, shared):
    torch.manual_seed(5)
    learner = HyperMetric(base(tail), 2, 3.0, hidden=8, shared=shared).double().eval()
    for parameter in learner.hyper.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    double = tasks.map(lambda values: values.double() if values.is_floating_point() else values)
    x, y, mask = learner.features(double.support_x), double.support_y, double.support_mask
    metric, query = learner.metric(x, y, mask), learner.features(double.query_x)
    matrix = torch.eye(24).double() + metric["write"] @ metric["read"]
    matrix = matrix @ torch.diag_embed(metric["scale"])
    means = torch.stack([(x * (y == way)[..., None]).sum(1) / 2 for way in range(3)], dim=1)
    apart = (query[:, :, None] - means[:, None]) @ matrix.mT[:, None]
    expected = -3.0 / 24 * apart.square().sum(3)
    differs = learner.answer(double) - expected
    torch.testing.assert_close(differs, differs[..., :1].expand_as(differs))  # equal for all ways
    assert torch.equal(matrix[0], matrix[1]) == shared


def test_shared_changes_have_a_number_for_each_generated_one(tail):
    for place in PLACES:
        shared, generated = (convs(tail, place, shared) for shared in (True, False))
        assert shared.hyper.change.numel() == generated.hyper.head.out_features
        assert trained(shared) < trained(generated)
    assert convs(tail, "film", True).hyper.change.numel() == 6 + 2 * 6  # biases, scales, shifts
    assert HyperMetric(base(tail), 2, shared=True).hyper.change.numel() == 24 + 2 * 2 * 24


def trained(learner):
    return sum(p.numel() for p in learner.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "build",
    [
        *(lambda tail, key=key: convs(tail, *key) for key in CHANGED),
        lambda tail: HyperMetric(base(tail), 2, 10.0),
        lambda tail: SupportTransformer(base(tail), 10.0, width=8),
        lambda tail: ProtoNet(base(tail), 10.0),
    ],
    ids=[*(f"{place}-{shared}" for place, shared in CHANGED), "metric", "transformer", "protonet"],
)
def test_training_changes_the_answers_and_no_part_of_the_frozen_trunk(tail, source, tasks, build):
    learner = build(tail)
    before = learner.eval().answer(tasks).detach()
    learner.fit(source, TrainOptions(steps=4, tasks=2, outer_lr=0.05, average=0.9), quiet=True)
    assert not torch.equal(learner.eval().answer(tasks), before)
    own = base(tail)
    for name, value in learner.named_parameters():
        if "tail." in name and "base" in name:
            assert torch.equal(value, own.get_parameter(f"trunk.tail.{name.split('tail.')[1]}"))
    for name, value in learner.named_buffers():
        if name.startswith("base.trunk."):
            assert torch.equal(value, own.get_buffer(name.removeprefix("base.")))


def test_a_shared_change_moves_all_tasks_alike_and_a_generated_one_each_task(tail, tasks):
    for shared in (True, False):
        learner = convs(tail, "film", shared)
        for parameter in learner.hyper.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        change = learner.adapt(tasks.support)["trunk.tail.0.1.weight"]
        assert torch.equal(change[0], change[1]) == shared


def test_every_arm_of_a_run_starts_at_the_score_of_its_frozen_trunk(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    arms = {
        "protonet-unit": ("generated-metric", "shared-metric", "support-transformer", "film"),
        "generated-head": ("hyper-film", "hyper-lowrank", "shared-film", "shared-lowrank"),
    }
    names = [name for start, others in arms.items() for name in (start, *others)]
    pictures = torch.randint(0, 256, (6, 15, 3, 8, 8), generator=torch.Generator().manual_seed(6))
    pool = ClassPool(pictures.byte(), torch.full((6,), 15), tuple("abcdef"))
    monkeypatch.setattr(classes, "load_pools", lambda config: Pools(pool, pool, pool))
    problem = problem_of(
        FewShotConfig(
            "digits",
            backbone="trained",
            backbone_steps=2,
            method=names[0],
            comparators=tuple(names[1:]),
        ).resolved()
    )
    tasks = problem.test_source(2).sample(4, torch.Generator().manual_seed(0))
    answers = {name: problem.learner(name).eval().answer(tasks).detach() for name in names}
    for start, others in arms.items():
        for name in others:
            torch.testing.assert_close(answers[name], answers[start], rtol=1e-5, atol=1e-5)
