"""Independent networks in one pass, and how large a last layer may be."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn

from cases import Tied, TokenAndPositions, conv, layer_norm, resnet, transformer
from weightloom.base import apply_per_task
from weightloom.errors import ConfigError, ShapeError
from weightloom.forms import FiLM, LowRank, budget
from weightloom.hypernets import (
    ChunkedHyperNetwork,
    GraphHyperNetwork,
    MLPHyperNetwork,
    StaticHyperNetwork,
    TransformerHyperNetwork,
    own_params,
)
from weightloom.learners.heads import with_generated_head
from weightloom.losses import mse_per_task
from weightloom.networks import ConvNet, mlp


@pytest.mark.parametrize(
    "build", [lambda: mlp([3, 8, 2]), conv, layer_norm, Tied, resnet, lambda: nn.LSTM(3, 4, 2)]
)
def test_each_network_is_what_building_it_anew_gives(build):
    base = build()
    before = copy.deepcopy(base.state_dict())
    torch.manual_seed(7)
    params = own_params(base, tasks=3)
    by_function, built = {}, []
    torch.manual_seed(7)
    built = [build() for _ in range(3)]
    torch.manual_seed(7)
    by_function = own_params(build, tasks=3)
    for name, own in base.named_parameters():
        expected = torch.stack([net.get_parameter(name) for net in built])
        assert torch.equal(by_function[name], expected) and params[name].shape == expected.shape
        if not isinstance(base, Tied):  # which builds a layer that it then throws away
            assert torch.equal(params[name], expected)
        assert params[name].is_leaf and params[name].requires_grad and own.grad is None
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_a_generator_makes_it_reproducible_and_leaves_torch_s_random_numbers_alone():
    base, state = mlp([3, 8, 2]), torch.get_rng_state()
    once, again, more, other = (
        own_params(base, tasks, torch.Generator().manual_seed(seed))
        for tasks, seed in ((3, 0), (3, 0), (5, 0), (3, 1))
    )
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in once.items():
        assert torch.equal(value, again[name]) and torch.equal(value, more[name][:3])
        assert not torch.equal(value, other[name]) and not torch.equal(value[0], value[1])


def test_networks_trained_side_by_side_equal_networks_trained_alone():
    base, x, y = (
        mlp([2, 6, 1]).double(),
        torch.randn(3, 8, 2).double(),
        torch.randn(3, 8, 1).double(),
    )
    params = own_params(base, tasks=3)
    alone = []
    for task in range(3):
        net = mlp([2, 6, 1]).double()
        net.load_state_dict({name: value[task] for name, value in params.items()})
        alone.append(net)
    for network, its in [(None, params.values()), *((net, net.parameters()) for net in alone)]:
        optimiser = torch.optim.Adam(its, lr=0.05)
        for _ in range(5):
            optimiser.zero_grad()
            if network is None:
                mse_per_task(apply_per_task(base, params, x), y).sum().backward()
            else:
                task = alone.index(network)
                (network(x[task]) - y[task]).square().mean().backward()
            optimiser.step()
    for name, value in params.items():
        expected = torch.stack([net.get_parameter(name) for net in alone])
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-9)


def test_attention_starts_as_it_does_when_it_is_built():
    base = transformer()
    params = own_params(base, 40)["self_attn.in_proj_weight"]
    built = torch.stack([transformer().self_attn.in_proj_weight for _ in range(40)])
    assert (
        0.95 < params.std() / built.std() < 1.05 and params.abs().max() <= 1.001 * built.abs().max()
    )


def test_what_wants_no_gradient_stays_shared():
    base = mlp([3, 8, 2])
    base[0].requires_grad_(False)
    params = own_params(base, 3)
    assert list(params) == ["2.weight", "2.bias"]
    assert apply_per_task(base, params, torch.randn(3, 5, 3)).shape == (3, 5, 2)
    with pytest.raises(ConfigError, match=r"holds no parameter that requires a gradient"):
        own_params(base.requires_grad_(False), 3)


def test_a_module_that_cannot_draw_its_values_anew_is_named_and_the_advice_works():
    with pytest.raises(
        ConfigError,
        match=r"The base, a TokenAndPositions, holds 'token'.*`own_params\(lambda: Net\(\), tasks\)`",
    ):
        own_params(TokenAndPositions(), 3)
    with pytest.raises(ConfigError, match=r"`0`, a TokenAndPositions, holds 'token'"):
        own_params(nn.Sequential(TokenAndPositions()), 3)
    for build in (TokenAndPositions, lambda: TokenAndPositions()):
        assert own_params(build, 3)["token"].shape == (3, 1, 1, 4)


def test_networks_of_different_shapes_and_no_tasks_are_refused():
    widths = iter([4, 5])
    with pytest.raises(
        ShapeError, match=r"differ in \['0\.bias', '0\.weight', '2\.weight'\].*of one architecture"
    ):
        own_params(lambda: mlp([3, next(widths), 2]), 2)
    with pytest.raises(ConfigError, match=r"`tasks=0` is below 1"):
        own_params(mlp([3, 2]), 0)


def wide():
    return mlp([64, 128, 128, 8])


def typed(message):
    """The arguments that an error says to type."""
    advice = re.search(r"`(generate=budget\(.*?\)(?:, largest_head=\d+)?)`", message).group(1)
    return eval(
        f"dict({advice})", {"budget": budget, "base": wide(), "nn": nn, "mine": mine, "dict": dict}
    )


def mine(name, parameter):
    return parameter.ndim > 1


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hidden": ()},
        {"hidden": (20,), "init": "magnitude-invariant"},
        {"generate": ["*.weight", nn.Linear]},
        {"generate": mine},
        {"generate": {"0.*": FiLM(), "2.weight": LowRank(32)}},
    ],
    ids=["all", "no trunk", "spread", "kinds", "predicate", "forms"],
)
@pytest.mark.parametrize("largest", [40_000, 900])
def test_a_head_above_the_largest_is_refused_and_both_advices_work(options, largest):
    base = wide()
    options = {"hidden": (64,), **options}
    with pytest.raises(
        ConfigError, match=r"would hold [\d,]+ numbers \(.*GB in float32.*Use cheaper"
    ) as caught:
        MLPHyperNetwork(base, 8, largest_head=largest, **options)
    message = str(caught.value)
    numbers = int(re.search(r"would hold ([\d,]+) numbers", message).group(1).replace(",", ""))
    advised = {"largest_head": largest, **typed(message)}
    hyper = MLPHyperNetwork(base, 8, **{**options, **advised})
    head = sum(parameter.numel() for parameter in hyper.head.parameters())
    assert head <= advised["largest_head"] and head < numbers
    asked = MLPHyperNetwork(base, 8, **options)
    assert sum(parameter.numel() for parameter in asked.head.parameters()) == numbers
    MLPHyperNetwork(base, 8, largest_head=numbers, **options)
    with pytest.raises(ConfigError):
        MLPHyperNetwork(base, 8, largest_head=numbers - 1, **options)


def test_nothing_is_allocated_for_a_head_above_fifty_million_numbers(monkeypatch):
    """A head of 65 million numbers: no tensor of it is made before it is refused."""
    made = []
    linear = nn.Linear.__init__
    base = nn.Sequential(nn.Linear(1000, 1000))
    monkeypatch.setattr(
        nn.Linear,
        "__init__",
        lambda self, a, b, *rest: (made.append(a * b), linear(self, a, b, *rest)),
    )
    with pytest.raises(
        ConfigError,
        match=r"hold 65,065,000 numbers .*0\.26 GB.*`largest_head=50,000,000` is the most",
    ):
        MLPHyperNetwork(base, 64)
    assert max(made, default=0) < 10**6


@pytest.mark.parametrize(
    "build",
    [
        lambda **options: ChunkedHyperNetwork(wide(), 4, **{"slice_size": 4000, **options}),
        lambda **options: TransformerHyperNetwork(wide(), 4, **{"slice_size": 4000, **options}),
        lambda **options: GraphHyperNetwork(wide(), 4, **{"tile": 64, **options}),
    ],
)
def test_other_last_layers_are_held_to_the_same_and_the_advice_works(build):
    with pytest.raises(
        ConfigError, match=r"would hold 2\d\d,\d\d\d numbers.*as in `(slice_size|tile)=\d+`"
    ) as caught:
        build(largest_head=50_000)
    name, value = re.search(r"as in `(\w+)=(\d+)`", str(caught.value)).groups()
    build(largest_head=50_000, **{name: int(value)})


def test_a_layer_that_reads_the_condition_for_every_block_is_held_to_it_too():
    base = nn.Conv2d(32, 32, 3)
    with pytest.raises(ConfigError, match=r"would hold 6,400 numbers.*as in `block=32`") as caught:
        StaticHyperNetwork(base, 100, largest_head=5000)
    StaticHyperNetwork(
        base,
        100,
        largest_head=5000,
        block=int(re.search(r"`block=(\d+)`", str(caught.value)).group(1)),
    )


def test_the_former_name_of_slice_size_still_works_and_says_what_to_type():
    torch.manual_seed(0)
    with pytest.warns(
        DeprecationWarning, match=r"`chunk_size=7` is called `slice_size` now.*Pass `slice_size=7`"
    ):
        former = ChunkedHyperNetwork(mlp([3, 4, 2]), 4, chunk_size=7)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named, positional = (
            ChunkedHyperNetwork(mlp([3, 4, 2]), 4, *a, **k)
            for a, k in (((), {"slice_size": 7}), ((7,), {}))
        )
    assert former.chunks == named.chunks == positional.chunks == 4
    assert all(
        torch.equal(value, named.state_dict()[name]) for name, value in former.state_dict().items()
    )


def test_a_generated_head_leaves_the_head_of_its_caller():
    base = ConvNet(1, 8, 3, channels=4, blocks=2)
    before = {
        name: (id(its), its.requires_grad, its.clone()) for name, its in base.named_parameters()
    }
    shared = with_generated_head(base)
    assert (
        shared.trunk is base.trunk
        and shared.head.weight.shape[0] == 1
        and not shared.head.weight.requires_grad
    )
    assert base.head.weight.shape[0] == 3 and base(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    for name, its in base.named_parameters():
        assert (id(its), its.requires_grad) == before[name][:2] and torch.equal(
            its, before[name][2]
        )
