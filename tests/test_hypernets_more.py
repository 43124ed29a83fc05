"""Hypernetworks that share a generator among chunks, slices or blocks: held against slow, obvious versions."""

import pytest
import torch
from torch import nn

from cases import TASKS, Tied, conv, token_vectors, vectors
from weightloom.base import apply_per_task
from weightloom.errors import ConfigError, ShapeError
from weightloom.forms import FiLM, LowRank, Template
from weightloom.forms.factored import built
from weightloom.hypernets import (
    ChunkedHyperNetwork,
    GraphHyperNetwork,
    MLPHyperNetwork,
    StaticHyperNetwork,
    TransformerHyperNetwork,
)
from weightloom.networks import mlp
from weightloom.params import ParamSpec

SHARING = {
    "chunked": lambda base, **options: ChunkedHyperNetwork(base, 4, slice_size=32, **options),
    "transformer": lambda base, **options: TransformerHyperNetwork(
        base, 4, slice_size=32, **options
    ),
    "graph": lambda base, **options: GraphHyperNetwork(base, 4, **options),
}


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("form", [None, LowRank(2), FiLM(), Template(2)], ids=str)
@pytest.mark.parametrize("build", [lambda: mlp([5, 6, 4]), conv, Tied])
@pytest.mark.parametrize("kind", SHARING)
def test_at_step_0_every_task_gets_the_base(kind, build, form):
    base = build()
    params = SHARING[kind](base, form=form)(100 * torch.randn(TASKS, 4))
    assert params.keys() == ParamSpec.of(base).shapes.keys()
    for name, value in params.items():
        own = base.get_parameter(name)
        assert torch.equal(built(value), own.expand(TASKS, *own.shape))


@pytest.mark.parametrize("kind", SHARING)
def test_a_shared_generator_needs_far_fewer_parameters_than_a_head_for_every_number(kind):
    base = mlp([64, 128, 128, 1])
    plain, its = count(MLPHyperNetwork(base, 4)), count(SHARING[kind](base))
    assert its - count(base) < (plain - count(base)) / 5


@pytest.mark.parametrize("kind", ["chunked", "transformer"])
@pytest.mark.parametrize("init", ["hyperfan-in", "hyperfan-out", "magnitude-invariant"])
def test_other_initialisations_give_each_parameter_its_own_size(kind, init):
    base = mlp([30, 60, 60, 30])
    own = {name: value.detach().clone() for name, value in base.named_parameters()}
    changes = {name: [] for name in own}
    for _ in range(8):
        fresh = mlp([30, 60, 60, 30])
        fresh.load_state_dict(own)
        params = SHARING[kind](fresh, init=init, generate="*.weight")(torch.randn(2, 4))
        for name, value in params.items():
            changes[name].append(
                value.detach() - (own[name] if init == "magnitude-invariant" else 0)
            )
    for name in params:
        size = torch.stack(changes[name]).square().mean().sqrt() / own[name].square().mean().sqrt()
        fans = (own[name].shape[1] / own[name].shape[0]) ** 0.5
        expected = {"hyperfan-in": 1.0, "hyperfan-out": fans, "magnitude-invariant": 0.1}[init]
        assert 0.8 * expected < size < 1.25 * expected


def test_factors_keep_to_their_starts_under_any_initialisation():
    base = mlp([5, 6, 4])
    hyper = ChunkedHyperNetwork(base, 4, slice_size=7, form=LowRank(2), init="hyperfan-in")
    params = hyper(torch.randn(TASKS, 4))
    assert torch.equal(params["0.weight"][1] + 0, base[0].weight) and not torch.equal(
        params["0.bias"][1], base[0].bias
    )
    factors_alone = ChunkedHyperNetwork(
        base, 4, 7, generate="*.weight", form=LowRank(2), init="hyperfan-in"
    )
    assert factors_alone.writer.spread is None


def test_a_chunked_hypernetwork_equals_a_loop_over_tasks_and_chunks():
    base = mlp([3, 4, 2]).double()
    hyper = ChunkedHyperNetwork(base, 4, slice_size=6, embedding_dim=3, hidden=(8, 5)).double()
    nn.init.normal_(hyper.writer.change.weight)
    nn.init.normal_(hyper.writer.change.bias)
    condition = vectors(TASKS)[0]
    params = hyper(condition)
    assert hyper.chunks == 5  # of 26 numbers
    for task in range(TASKS):
        chunks = []
        for embedding in hyper.embeddings:
            inner = torch.relu(hyper.first(torch.cat([condition[task], embedding])))
            chunks.append(hyper.writer.change(torch.relu(hyper.trunk[1](inner))))
        flat = torch.cat(chunks)[:26]
        start = 0
        for name, own in base.named_parameters():
            close(params[name][task], own + flat[start : start + own.numel()].reshape(own.shape))
            start += own.numel()


def test_a_chunked_hypernetwork_needs_a_hidden_layer_and_sizes_of_one_or_more(unchecked):
    with pytest.raises(
        ConfigError, match=r"`hidden=\(\)` leaves no hidden layer.*Pass one width or more"
    ):
        ChunkedHyperNetwork(nn.Linear(3, 2), 4, 7, hidden=())
    with pytest.raises(ConfigError, match=r"`slice_size=0` is below 1.*Pass 1 or more"):
        ChunkedHyperNetwork(nn.Linear(3, 2), 4, 0)
    with pytest.raises(ConfigError, match=r"`init='bias'` is unknown"):
        ChunkedHyperNetwork(nn.Linear(3, 2), 4, 7, init="bias")


def moved_transformer(**options):
    hyper = TransformerHyperNetwork(
        mlp([3, 4, 2]), 4, slice_size=5, width=8, heads=2, **options
    ).double()
    nn.init.normal_(hyper.writer.change.weight)
    return hyper


def test_tokens_of_a_condition_have_no_order_and_one_token_needs_no_axis():
    hyper, tokens = moved_transformer(), token_vectors(TASKS)[0]
    params, other = hyper(tokens), hyper(tokens[:, [2, 0, 1]])
    one, bare = hyper(tokens[:, :1]), hyper(tokens[:, 0])
    for name, value in params.items():
        close(other[name], value)
        assert torch.equal(one[name], bare[name]) and not torch.allclose(one[name], value)


def test_each_parameter_starts_a_new_slice_and_slices_read_each_other():
    hyper, condition = moved_transformer(), vectors(TASKS)[0]
    assert hyper.slices == 3 + 1 + 2 + 1
    before = hyper(condition)
    with torch.no_grad():
        hyper.tokens[3] += torch.randn(8)  # of the first bias
    after = hyper(condition)
    moved = {name: (after[name] - before[name]).abs().mean() for name in before}
    assert all(moved.values()) and max(moved, key=moved.get) == "0.bias"


def test_a_transformer_refuses_what_it_cannot_read(unchecked):
    hyper = TransformerHyperNetwork(nn.Linear(3, 2), 4)
    for shape, message in {
        (5, 7, 3): r"reads \(tasks, tokens, 4\)\. Build the hypernetwork with `condition_dim=3`",
        (5, 3): r"reads \(tasks, 4\)\. Build the hypernetwork with `condition_dim=3`",
        (4,): r"Pass `condition\[None\]` for one task",
    }.items():
        with pytest.raises(ShapeError, match=message):
            hyper(torch.zeros(shape))
    with pytest.raises(
        ConfigError, match=r"`width=10` is not a multiple of `heads=4`.*Pass `width=12`"
    ):
        TransformerHyperNetwork(nn.Linear(3, 2), 4, width=10)
    TransformerHyperNetwork(nn.Linear(3, 2), 4, width=12)


def kernels(layers=6):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), *(nn.Conv2d(16, 16, 3, padding=1) for _ in range(layers))
    )


def test_a_static_hypernetwork_follows_the_equations_of_the_paper():
    base = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 2, 3)).double()
    hyper = StaticHyperNetwork(base, block=2, embedding_dim=3, hidden=5).double()
    for bias in (hyper.first_bias, hyper.last.bias):
        nn.init.normal_(bias)
    params, block = hyper(), 0
    for name, shape in {"0.weight": (6, 4, 3, 3), "1.weight": (2, 6, 3, 3)}.items():
        expected = torch.zeros(shape, dtype=torch.float64)
        for out in range(0, shape[0], 2):
            for into in range(0, shape[1], 2):
                for i in range(2):
                    a = hyper.first[i] @ hyper.embeddings[block] + hyper.first_bias[i]
                    expected[out : out + 2, into + i] = (
                        hyper.last.weight @ a + hyper.last.bias
                    ).reshape(2, 3, 3)
                block += 1
        close(params[name][0], expected)
    assert block == len(hyper.embeddings)


def test_the_generator_of_the_paper_s_mnist_network_has_4240_parameters():
    """A kernel of 7x7x16x16, 12,544 weights, from an embedding of 4 numbers."""
    base = nn.Sequential(nn.Conv2d(16, 16, 7, bias=False))
    hyper = StaticHyperNetwork(base, embedding_dim=4, hidden=4, window=(7, 7))
    assert count(hyper) - hyper.embeddings.numel() == 4240 and hyper.embeddings.shape == (1, 4)
    assert hyper.spec.size == 12_544


def test_a_static_hypernetwork_trains_a_fraction_of_the_parameters_of_its_base():
    base = kernels()
    whole = count(base)
    hyper = StaticHyperNetwork(base, embedding_dim=4)
    assert (
        count(hyper) < 0.3 * whole
        and count(StaticHyperNetwork(kernels(24), embedding_dim=4)) < 0.1 * 4 * whole
    )
    assert list(hyper.spec.shapes) == [f"{layer}.weight" for layer in range(1, 7)]
    assert not any(hyper.base.get_parameter(name).requires_grad for name in hyper.spec.shapes)
    assert all(
        hyper.base.get_parameter(name) is base.get_parameter(name) for name in hyper.spec.shared
    )
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_static_kernels_start_at_the_size_of_the_base_s_own_and_do_not_use_their_values():
    base = nn.Sequential(nn.Conv2d(16, 64, 3), nn.Conv2d(64, 16, 3))
    spreads = [layer.weight.std().item() for layer in base]
    hyper = StaticHyperNetwork(base)
    params = hyper()
    for layer, spread in enumerate(spreads):
        assert 0.7 * spread < params[f"{layer}.weight"].std().item() < 1.4 * spread
        nn.init.zeros_(base[layer].weight)
    assert all(torch.equal(value, params[name]) for name, value in hyper().items())


def test_without_a_condition_all_tasks_get_the_same_kernels_and_with_one_they_start_there():
    hyper = StaticHyperNetwork(kernels())
    assert all(
        torch.equal(value, hyper()[name].expand_as(value))
        for name, value in hyper(tasks=TASKS).items()
    )
    conditioned = StaticHyperNetwork(kernels(), condition_dim=4)
    params = conditioned(torch.randn(TASKS, 4))
    assert all(torch.equal(value, value[:1].expand_as(value)) for value in params.values())
    nn.init.normal_(conditioned.read.weight)
    params = conditioned(torch.randn(TASKS, 4))
    assert not torch.allclose(params["1.weight"][0], params["1.weight"][1])


def test_a_base_can_be_trained_through_static_kernels():
    base = kernels(2)
    hyper = StaticHyperNetwork(base)
    apply_per_task(base, hyper(), torch.randn(1, 2, 1, 8, 8)).square().mean().backward()
    assert all((p.grad is not None) == p.requires_grad for p in hyper.parameters())


def test_a_static_hypernetwork_refuses_what_blocks_cannot_write():
    with pytest.raises(
        ConfigError,
        match=r"Conv2d has no parameter of window \(3, 3\) whose first two axes are mult",
    ):
        StaticHyperNetwork(nn.Conv2d(3, 16, 3))
    with pytest.raises(
        ConfigError,
        match=r"`0\.weight` has shape \(16, 1, 3, 3\).*fit: \['1\.weight', '2\.weight'\]",
    ):
        StaticHyperNetwork(kernels(2), generate="*.weight")
    assert len(StaticHyperNetwork(kernels(2), generate=["1.weight", "2.weight"]).spec.shapes) == 2


def test_a_static_hypernetwork_says_whether_it_reads_a_condition():
    with pytest.raises(ShapeError, match=r"`condition=None` was given.*reads \(tasks, 4\)"):
        StaticHyperNetwork(kernels(1), condition_dim=4)()
    with pytest.raises(
        ShapeError,
        match=r"so it reads none\. Pass `tasks=` instead, or build it with `condition_dim=5",
    ):
        StaticHyperNetwork(kernels(1))(torch.randn(3, 5))
