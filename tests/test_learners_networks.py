"""Networks that methods with a trunk and a head take: any that ends in a linear layer, or says what it lacks."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from weightloom.base import specialise
from weightloom.conditions import DeepSets
from weightloom.errors import ConfigError, ShapeError
from weightloom.forms import LowRank
from weightloom.learners.cnp import ConditionalNeuralProcess
from weightloom.learners.convs import HyperConvs
from weightloom.learners.functions import HyperFunction
from weightloom.learners.heads import HyperHead
from weightloom.learners.in_context import InContext
from weightloom.learners.inputs import CodeInputs, HyperInputs, SharedInputs
from weightloom.learners.maml import ANIL, MAML
from weightloom.learners.probe import LinearProbe
from weightloom.learners.protonet import ProtoNet
from weightloom.learners.trunks import run_per_task, split, trunk_of, with_unit_length
from weightloom.networks import FunctionNet, SpectrogramGRU, mlp, replace_recurrent
from weightloom.tasks import ClassTasks, Tasks
from weightloom.training import TrainOptions

WAYS, WIDTH = 3, 10
SPLITTING = {
    "protonet": ProtoNet,
    "hyper-head": HyperHead,
    "hyper-convs": HyperConvs,
    "anil": lambda net: ANIL(net, inner_steps=2, inner_lr=0.5),
    "probe": lambda net: LinearProbe(net, classes=8, steps=20),
}


class Backbone(nn.Module):
    """A network as people write it: layers by name, `forward` that says in which order."""

    def __init__(self, ways=WAYS):
        super().__init__()
        self.classifier = nn.Linear(16, ways)  # named first, run last
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, 16))

    def forward(self, x):
        return self.classifier(torch.relu(self.layers(x)))


class Softened(Backbone):
    """The linear layer is the last that is registered and run, but not what comes out."""

    def forward(self, x):
        return super().forward(x).softmax(1)


class Undecided(Backbone):
    """It goes one of two ways, so that it cannot be traced."""

    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)


class TwoInputs(nn.Module):
    """Numbers and a mask of them, in one dict."""

    def __init__(self):
        super().__init__()
        self.layer, self.out = nn.Linear(WIDTH, 16), nn.Linear(16, WAYS)

    def forward(self, x):
        return self.out(torch.relu(self.layer(x["numbers"] * x["seen"])))


def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, WAYS))


def source(classes=slice(None)):
    """Classes that differ in two of ten directions; the other eight are noise, which a trunk has to learn."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.cat(
        [2.5 * torch.randn(16, 1, 2, generator=generator), torch.zeros(16, 1, 8)], dim=2
    )
    pool = centres + torch.randn(16, 20, WIDTH, generator=generator) * torch.tensor(
        [0.3] * 2 + [2.0] * 8
    )
    return ClassTasks(pool[classes], torch.full((16,), 20)[classes], WAYS, 1, 5)


def draw(tasks=2, classes=slice(None)):
    return source(classes).sample(tasks, torch.Generator().manual_seed(1))


def accuracy(learner, tasks):
    return (learner.eval().answer(tasks).argmax(2) == tasks.query_y).float().mean()


@pytest.mark.parametrize("build", SPLITTING.values(), ids=SPLITTING)
def test_a_plain_sequence_learns_and_beats_chance_and_its_own_start(build):
    learner, held_out = build(plain()), draw(100, slice(8, None))
    before = accuracy(learner, held_out)
    learner.train()
    learner.fit(source(slice(8)), TrainOptions(steps=60, tasks=8, outer_lr=1e-2, warmup_steps=5))
    after = accuracy(learner, held_out)
    assert after > before + 0.1 and after > 1 / WAYS + 0.25


@pytest.mark.parametrize(
    "net", [plain, Backbone, lambda: nn.Sequential(nn.Flatten(), nn.Sequential(Backbone()))]
)
def test_trunk_and_head_share_the_parameters_of_the_network_and_are_equal_to_it(net):
    net, x = net(), torch.randn(5, WIDTH)
    parts = split(net, "ANIL")
    assert isinstance(parts.head, nn.Linear) and torch.equal(parts(x), net(x))
    assert {id(p) for p in parts.parameters()} == {id(p) for p in net.parameters()}
    assert torch.equal(net(x), parts.head(parts.trunk(x)))  # the network itself still has its end


class Told(nn.Module):
    """Trunk and head by name; neither tells the width of the features."""

    def __init__(self):
        super().__init__()
        self.trunk, self.head = Backbone(7), nn.Sequential(nn.Linear(7, WAYS), nn.Tanh())


@pytest.mark.parametrize("net", [plain, Backbone, Softened, Undecided, Told])
def test_any_network_gets_features_of_unit_length_that_are_trained_with_it(net):
    net = net()
    base = with_unit_length(net, torch.zeros(1, WIDTH))
    assert {id(p) for p in base.parameters()} == {id(p) for p in net.parameters()}
    assert net.training and trunk_of(base).training
    for build in (ProtoNet, HyperHead):
        learner = build(base)
        learner(draw()).sum().backward()
        features = learner.features(draw().query_x)
        torch.testing.assert_close(features.square().mean(2), torch.ones(2, 5 * WAYS))
    assert all(p.grad is not None for p in trunk_of(base).parameters())


def test_generated_changes_below_unit_length_are_those_of_a_loop_and_move_the_centre_once():
    learner = HyperConvs(with_unit_length(plain(), torch.zeros(1, WIDTH)), {"*.weight": LowRank(2)})
    for value in learner.hyper.parameters():
        nn.init.normal_(value, std=0.1)
    tasks = draw(3)
    learner(tasks)
    unit, before = learner.trunk.last, learner.trunk.last.centre.clone()
    changes = learner.hyper(learner.eval().condition(tasks.support))
    each = [
        functional_call(learner.trunk, {n: v[task] for n, v in changes.items()}, (x,))
        for task, x in enumerate(tasks.query_x)
    ]
    torch.testing.assert_close(
        run_per_task(learner.trunk, changes, tasks.query_x), torch.stack(each)
    )
    assert torch.equal(unit.centre, before) and bool(before.abs().sum() > 0)


def test_low_rank_changes_are_written_into_a_recurrent_trunk():
    net = with_unit_length(SpectrogramGRU(WAYS, bands=4, hidden=3), torch.zeros(1, 1, 4, 5))
    learner = HyperConvs(net, {"*.reader.weight*": LowRank(2)}).eval()
    for value in learner.hyper.parameters():
        nn.init.normal_(value, std=0.3)
    x, y = torch.rand(2, 2 * WAYS, 1, 4, 5), torch.arange(WAYS).repeat(2).expand(2, -1)
    tasks = Tasks.of(x, y, torch.rand(2, WAYS, 1, 4, 5), y[:, :WAYS])
    params = learner.adapt(tasks.support)
    assert params["trunk.trunk.reader.weight_hh_l0"].shape == (2, 9, 3)
    each = []
    for task, query in enumerate(tasks.query_x):
        net = with_unit_length(SpectrogramGRU(WAYS, bands=4, hidden=3), None).eval()
        net.load_state_dict(
            {n: v for n, v in learner.base.state_dict().items() if "head" not in n}
            | {n: v[task] for n, v in params.items()}
        )
        each.append(net(query))
    torch.testing.assert_close(learner.predict(params, tasks.query_x), torch.stack(each))
    for layers in (lambda base: base, replace_recurrent):
        learner.base = layers(learner.base)
        learner.trunk = learner.base.trunk
        learner.train()(tasks).sum().backward()
        assert bool(learner.trunk.last.centre.abs().sum() > 0)
    assert all(p.grad is not None for n, p in learner.named_parameters() if "head" not in n)


@pytest.mark.parametrize(
    "net", [Softened, Undecided, lambda: nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU())]
)
def test_a_network_without_a_linear_end_is_refused_and_the_advice_works(net):
    for build in (ANIL, HyperConvs, SPLITTING["probe"]):
        with pytest.raises(
            ConfigError, match=r"does not end in a linear layer.*`nn.Sequential\(trunk, nn.Linear"
        ):
            build(net())
    width = net()(torch.randn(5, WIDTH)).shape[1]
    learner = ANIL(nn.Sequential(net(), nn.Linear(width, WAYS)))
    assert learner.answer(draw()).shape == (2, WAYS * 5, WAYS)


@pytest.mark.parametrize("kind", [ProtoNet, HyperHead])
def test_a_network_without_a_linear_end_gives_features_where_no_more_is_needed(kind):
    features, tasks = nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, 16), nn.Tanh()), draw()
    learner = kind(features)
    whole = kind(nn.Sequential(*features, nn.Linear(16, WAYS)))
    assert torch.equal(learner.answer(tasks), whole.answer(tasks))
    kept = kind(nn.Sequential(*plain(), nn.Identity()))  # a linear layer that is meant to be kept
    assert kept.features(tasks.support_x).shape == (2, WAYS, WAYS)
    net = specialise(learner.base, learner.adapt(tasks.take(slice(1)).support))
    torch.testing.assert_close(net(tasks.query_x[0]), learner.answer(tasks)[0])
    with pytest.raises(
        ConfigError, match=r"features of unknown width.* set `features` of the trunk"
    ):
        kind(features, classes=8)
    features.features = 16
    assert kind(features, classes=8).all_classes is not None


def test_features_that_are_no_vector_are_refused_and_the_advice_works():
    images = torch.randn(2, 3, 1, 6, 6)
    tasks = Tasks.of(images, torch.arange(3).expand(2, 3), images, torch.arange(3).expand(2, 3))
    trunk = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    with pytest.raises(ShapeError, match=r"shape \(4, 4, 4\).*End the trunk in `nn.Flatten\(\)`"):
        ProtoNet(trunk)(tasks)
    assert ProtoNet(trunk.append(nn.Flatten()))(tasks).shape == (2,)


@pytest.mark.parametrize("build", [*SPLITTING.values(), MAML], ids=[*SPLITTING, "maml"])
def test_inputs_may_be_a_dict(build):
    """Where all is seen it is the plain network on the numbers alone."""
    tasks = draw(classes=slice(8))
    torch.manual_seed(0)
    both, net = TwoInputs(), plain()
    net[1].load_state_dict(both.layer.state_dict())
    net[3].load_state_dict(both.out.state_dict())
    sides = [
        side._replace(x={"numbers": side.x, "seen": torch.ones_like(side.x)}) for side in tasks[:2]
    ]
    trees = tasks._replace(support=sides[0], query=sides[1])
    torch.testing.assert_close(build(both).answer(trees), build(net).answer(tasks))
    assert build(both)(trees).shape == (2,)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ProtoNet("resnet18"), "is a str.*maps inputs to features.*nn.Module"),
        (
            lambda: HyperFunction(mlp([2, 8, 1]), nn.Linear(3, 4)),
            "`encoder` is a Linear.*`condition_dim`",
        ),
        (
            lambda: HyperFunction(nn.Linear(2, 1, bias=False), DeepSets(2, 1, 4)),
            "is a Linear.*has a bias",
        ),
        (
            lambda: ConditionalNeuralProcess(DeepSets(1, 1, 4), mlp([1, 8, 1])),
            "parameter `condition`.*Conditioned",
        ),
        (lambda: InContext(mlp([4, 2])), "`ContextReader"),
        (
            lambda: SharedInputs(nn.Linear(4, 4)),
            r"is a Linear.*`nn.Sequential\(nn.Linear\(inputs, pixels",
        ),
        (
            lambda: HyperInputs(nn.Sequential(nn.ReLU(), nn.Linear(4, 4))),
            "generated, per input",
        ),
        (lambda: CodeInputs(mlp([4, 4, 4])), "`nn.Sequential\\(CodeReader"),
    ],
)
def test_a_network_that_lacks_what_a_method_needs_is_refused_with_what_to_pass(build, words):
    with pytest.raises(ConfigError, match=words):
        build()


def test_a_function_of_any_trunk_and_head_is_that_of_the_library_with_the_same_parts():
    def build(plain):
        torch.manual_seed(0)
        base, encoder = FunctionNet(1, 1, 12), DeepSets(1, 1, 4, hidden=8)
        return HyperFunction(
            nn.Sequential(base.trunk, base.head) if plain else base, encoder, hidden=(8,)
        ).eval()

    x = torch.rand(2, 3, 5, 1)
    tasks = Tasks.of(x[0], x[0].sin(), x[1], x[1].sin())
    torch.testing.assert_close(build(True).answer(tasks), build(False).answer(tasks))
