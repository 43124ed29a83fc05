"""The graph of layers that is read of a base, and the one hypernetwork that serves several of them."""

import copy

import pytest
import torch
from torch import nn

from cases import TASKS, Block, SelfAttention, Tied, TwoInputsTwoOutputs, conv, resnet, vectors
from weightloom.base import apply_per_task
from weightloom.errors import ConfigError
from weightloom.forms import FiLM, LowRank
from weightloom.hypernets import GraphHyperNetwork, LayerGraph
from weightloom.networks import mlp
from weightloom.networks.recurrent import LSTM
from weightloom.testing import check_hypernetwork


def edges(base):
    graph = LayerGraph.of(base)
    return {f"{graph.names[a]}->{graph.names[b]}" for a, b in graph.edges}, graph.order


def test_data_flows_past_layers_as_the_base_says():
    found, order = edges(Block(4, 6))
    assert order == "data flow"
    assert found == {"conv1->bn1", "bn1->conv2", "conv2->bn2"}  # the shortcut comes from the input
    found, _ = edges(resnet())
    assert {
        "1->3.conv1",
        "3.bn2->4.conv1",
        "3.bn2->4.shortcut",
        "1->4.shortcut",
        "4.shortcut->7",
    } <= found


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda: nn.Linear(3, 2), set()),
        (Tied, {"first->second"}),
        (TwoInputsTwoOutputs, {"layer->"}),  # the scale that is the base's own is met after its layer
        (lambda: nn.Sequential(SelfAttention(), nn.Linear(4, 2)),
         {"0.attention->0.attention.out_proj", "0.attention.out_proj->1"}),
    ],
)  # fmt: skip
def test_layers_are_met_where_they_are_called_and_where_their_parameters_are_read(build, expected):
    assert edges(build()) == (expected, "data flow")


def test_a_layer_of_a_known_kind_is_not_looked_into():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.read, self.head = LSTM(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.read(x)[0])

    assert edges(Reads()) == ({"read->head"}, "data flow")


def test_layers_come_in_the_order_of_data_and_where_it_cannot_be_traced_in_that_of_registration():
    class Backwards(nn.Module):
        def __init__(self, looks):
            super().__init__()
            self.last, self.first, self.looks = nn.Linear(4, 2), nn.Linear(3, 4), looks

        def forward(self, x):
            return self.last(self.first(x)) if not self.looks or x.sum() > 0 else x

    traced, not_traced = LayerGraph.of(Backwards(looks=False)), LayerGraph.of(Backwards(looks=True))
    assert (traced.names, traced.edges, traced.order) == (("first", "last"), ((0, 1),), "data flow")
    assert (not_traced.names, not_traced.order) == (("last", "first"), "registration")
    assert not_traced.edges == ((0, 1),)


def test_reading_a_base_leaves_it_alone():
    base, state = conv(), torch.get_rng_state()
    before = copy.deepcopy(base.state_dict())
    LayerGraph.of(base)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def moved(hyper):
    with torch.no_grad():
        for parameter in hyper.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return hyper.double()


def test_each_number_is_written_by_the_tile_that_it_lies_in():
    """Tiles are recognised by their value: every number of a tile is the same function of its place."""
    base = nn.Sequential(nn.Conv2d(4, 7, 2), nn.Flatten(), nn.Linear(7, 5)).double()
    hyper = moved(GraphHyperNetwork(base, 4, hidden=8, tile=3))
    its, condition = hyper.architectures[0], vectors(TASKS)[0]
    states = torch.randn(TASKS, 2, 8, dtype=torch.float64)
    tiles = hyper.write(
        torch.relu(hyper.decode(states)[:, its.layer_of_tile] + hyper.decode_place(its.places))
    )
    flat = its.generated.factors.cut(hyper._tiles(states, its))
    assert tiles.shape == (TASKS, 3 * 2 * 4 + 1 + 2 * 3 + 1, 9)
    for out in range(7):
        for into in range(4):
            for point in range(4):
                tile = ((out // 3) * 2 + into // 3) * 4 + point
                expected = tiles[:, tile, (out % 3) * 3 + into % 3] / 16**0.5
                torch.testing.assert_close(
                    flat["0.weight/change"][:, out, into, point // 2, point % 2], expected
                )
    torch.testing.assert_close(flat["0.bias/change"], tiles[:, 24, :7] / 16**0.5)
    torch.testing.assert_close(
        flat["2.weight/change"][:, 4, 6], tiles[:, 25 + 1 * 3 + 2, 3] / 7**0.5
    )
    assert hyper(condition).keys() == dict(base.named_parameters()).keys()


def test_what_a_layer_gets_depends_on_the_others_only_by_messages():
    condition = vectors(TASKS)[0]
    for rounds, reads in {0: False, 1: True, 3: True}.items():
        torch.manual_seed(0)
        hyper = moved(GraphHyperNetwork(mlp([3, 4, 2]), 4, hidden=8, rounds=rounds))
        bases = [mlp([3, 4, width]).double() for width in (2, 9)]
        bases[1][0].load_state_dict(bases[0][0].state_dict())
        first, second = (hyper(condition, base=base)["0.weight"] for base in bases)
        assert torch.equal(first, second) != reads


def test_every_architecture_is_generated_with_its_own_shapes_and_passes_the_check():
    bases = [mlp([3, 4, 2]), conv(), nn.Sequential(nn.Embedding(7, 4), nn.LayerNorm(4), LSTM(4, 3))]
    hyper = GraphHyperNetwork(bases, 4, hidden=8, tile=3)
    condition = torch.randn(TASKS, 4)
    for number, base in enumerate(bases):
        assert hyper.bases[number] is base
        for name, value in hyper(condition, number).items():
            assert torch.equal(value, base.get_parameter(name).expand_as(value))  # at step 0
    check_hypernetwork(hyper, condition)
    own = {id(parameter) for parameter in hyper.parameters()}
    assert all(id(parameter) in own for base in bases for parameter in base.parameters())


def test_a_base_that_is_added_is_generated_as_it_would_be_unseen_and_is_trained_from_then_on():
    hyper, base, condition = (
        moved(GraphHyperNetwork(mlp([3, 4, 2]), 4)),
        mlp([3, 4, 4, 2]).double(),
        vectors(TASKS)[0],
    )
    unseen, held = hyper(condition, base=base), len(list(hyper.parameters()))
    assert hyper.add(base) == 1 and len(list(hyper.parameters())) == held + 6
    assert all(torch.equal(value, unseen[name]) for name, value in hyper(condition, 1).items())


def test_training_on_two_depths_changes_an_unseen_depth_and_helps_it():
    """Every task asks for the outputs of the base as it stands plus the task's condition."""
    bases, unseen = [mlp([2, 12, 1]), mlp([2, 12, 12, 12, 1])], mlp([2, 12, 12, 1])
    hyper, x = GraphHyperNetwork(bases, condition_dim=1, hidden=32, freeze="*"), torch.randn(16, 2)
    condition = torch.linspace(-1, 1, 8)[:, None]

    def loss(base, params):
        target = base(x).detach() + condition[:, None]
        return (apply_per_task(base, params, x.expand(8, 16, 2)) - target).square().mean()

    before, at_first = (
        loss(unseen, hyper(condition, base=unseen)).item(),
        hyper(torch.ones(1, 1), base=unseen),
    )
    optimiser = torch.optim.Adam([p for p in hyper.parameters() if p.requires_grad], 3e-3)
    for _ in range(40):
        optimiser.zero_grad()
        sum(loss(base, hyper(condition, number)) for number, base in enumerate(bases)).backward()
        optimiser.step()
    losses = [loss(base, hyper(condition, number)).item() for number, base in enumerate(bases)]
    losses.append(loss(unseen, hyper(condition, base=unseen)).item())
    assert max(losses[:2]) < 0.05 * before
    assert (
        losses[-1] < 0.5 * before
    )  # 0.15 to 0.75 of it, over six seeds; without messages 0.13 to 0.58, then rising
    after = hyper(torch.ones(1, 1), base=unseen)
    assert all(not torch.equal(after[name], value) for name, value in at_first.items())


def test_an_unseen_base_keeps_what_is_its_own():
    hyper, base = GraphHyperNetwork(mlp([3, 4, 2]), 4, freeze="*").double(), mlp([3, 6, 2])
    before = copy.deepcopy(base.state_dict())
    hyper(torch.randn(TASKS, 4, dtype=torch.float64), base=base)
    assert all(
        torch.equal(value, before[name]) and value.dtype == torch.float32
        for name, value in base.state_dict().items()
    )
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_forms_that_learn_need_a_base_that_is_held_and_the_advice_works():
    condition, base = torch.randn(TASKS, 4), mlp([3, 6, 4])
    assert GraphHyperNetwork(conv(), 4, form=FiLM())(condition, base=base)["0.weight"].shape == (
        TASKS,
        6,
        3,
    )
    hyper = GraphHyperNetwork(mlp([3, 4, 4]), 4, form=LowRank(2))
    with pytest.raises(
        ConfigError,
        match=r"`base` would hold `0\.weight` as LowRank.*`hyper\(condition, hyper\.add",
    ):
        hyper(condition, base=base)
    assert hyper(condition, hyper.add(base))["0.weight"].shape == (TASKS, 6, 3)


def test_no_base_and_no_such_architecture_are_refused():
    with pytest.raises(ConfigError, match=r"`bases` holds 0 networks"):
        GraphHyperNetwork([], 4)
    with pytest.raises(
        ConfigError, match=r"`architecture=1` is unknown\. This hypernetwork holds 1"
    ):
        GraphHyperNetwork(mlp([3, 4, 2]), 4)(torch.randn(2, 4), architecture=1)
