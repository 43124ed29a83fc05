"""The adapter hypernetwork: its size, its symmetries, the models that it serves, and that it learns."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call

from cases import TASKS, Tied, TiedEmbedding, conv
from weightloom.base import apply_per_task, per_task
from weightloom.errors import CheckpointError, ConfigError
from weightloom.forms import Factored, FiLM, Full, LowRank
from weightloom.forms.factored import built
from weightloom.hypernets import AdapterHyperNetwork
from weightloom.hypernets.weight_tokens import weight_tokens
from weightloom.losses import mse_per_task
from weightloom.networks import mlp


@pytest.fixture
def double():
    """Everything that is built is float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def moved(hyper):
    """A generic state: no factor is zero."""
    with torch.no_grad():
        for parameter in hyper.generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return hyper


def own_parameters(hyper):
    return sum(p.numel() for p in hyper.parameters() if p.requires_grad)


def with_weight(weight):
    layer = nn.Linear(*reversed(weight.shape))
    layer.weight.data = weight
    return layer


@pytest.mark.parametrize(("rows", "columns"), [(9, 6), (6, 9), (7, 7)])
def test_permuted_rows_and_columns_of_the_model_permute_its_adapters(double, rows, columns):
    weight, condition = torch.randn(rows, columns), torch.randn(TASKS, 4)
    hyper = moved(AdapterHyperNetwork(with_weight(weight), 4, form=LowRank(2), width=8))
    by_row, by_column = torch.randperm(rows), torch.randperm(columns)
    other = hyper.on(with_weight(weight[by_row][:, by_column]))
    plain, permuted = hyper(condition)["weight"].factors, other(condition)["weight"].factors
    torch.testing.assert_close(permuted["up"], plain["up"][:, by_row], rtol=0, atol=1e-10)
    torch.testing.assert_close(permuted["down"], plain["down"][..., by_column], rtol=0, atol=1e-10)
    assert plain["up"].std(1).min() > 1e-3 and plain["down"].std(2).min() > 1e-3


def test_hidden_neurons_in_another_order_give_the_same_adapted_function(double):
    base, condition, x = mlp([5, 9, 7, 3]), torch.randn(TASKS, 4), torch.randn(TASKS, 6, 5)
    hyper = moved(AdapterHyperNetwork(base, 4, form=LowRank(2), width=8))
    permuted = copy.deepcopy(base)
    for layer, following in ((0, 2), (2, 4)):
        order = torch.randperm(permuted[layer].out_features)
        for parameter in permuted[layer].parameters():
            parameter.data = parameter.data[order]
        permuted[following].weight.data = permuted[following].weight.data[:, order]
    expected = apply_per_task(base, hyper(condition), x)
    found = apply_per_task(permuted, hyper.on(permuted)(condition), x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert (expected - base(x)).abs().max() > 1e-2


def test_tokens_rebuild_the_weight_and_are_zero_where_it_has_no_direction():
    weight = torch.randn(7, 5).double()
    tokens = weight_tokens(weight, 8)
    rebuilt = tokens.rows * tokens.spectrum @ tokens.columns.mT * tokens.norm / 35**0.5
    torch.testing.assert_close(rebuilt, weight)
    assert tokens.rows.shape == (7, 8) and not tokens.rows[:, 5:].any()
    thin = weight_tokens(torch.ones(4, 3), 2)  # of rank one
    assert thin.rows[:, 0].tolist() == pytest.approx([1] * 4) and not thin.rows[:, 1].any()
    nothing = weight_tokens(torch.zeros(4, 3), 2)
    assert not nothing.rows.any() and not nothing.spectrum.any()
    with pytest.raises(ConfigError, match="NaN or infinity"):
        weight_tokens(torch.full((2, 2), torch.nan), 1)


def test_the_size_of_the_generator_depends_neither_on_width_nor_on_depth():
    bases = [mlp([16, width, 16]) for width in (64, 4096)] + [mlp([16, *[32] * 9, 16])]
    sizes = {own_parameters(AdapterHyperNetwork(base, 4)) for base in bases}
    assert len(sizes) == 1


def test_the_model_is_unchanged_at_step_0_and_the_first_step_moves_it():
    base, x = mlp([16, 32, 16]), torch.randn(TASKS, 3, 16)
    hyper = AdapterHyperNetwork(base, 4)
    params = hyper(torch.randn(TASKS, 4))
    assert torch.equal(apply_per_task(base, params, x), base(x))
    assert all(value.form == LowRank(8) for value in params.values())
    apply_per_task(hyper.base, params, x).square().mean().backward()
    assert hyper.generator.up.weight.grad.any()
    assert all(parameter.grad is None for parameter in base.parameters())
    assert all(parameter.requires_grad for parameter in base.parameters())
    assert {n for n, p in hyper.named_parameters() if p.requires_grad} == {
        f"generator.{n}" for n, _ in hyper.generator.named_parameters()
    }


@pytest.mark.parametrize(("build", "shape"), [(Tied, (5,)), (conv, (2, 6, 6))])
def test_gradients_equal_those_of_a_loop(double, build, shape):
    base, condition, x = build(), torch.randn(TASKS, 4), torch.randn(TASKS, 2, *shape)
    hyper = moved(AdapterHyperNetwork(base, 4, form=LowRank(1), width=8, features=3))
    parts = list(hyper.generator.parameters())
    apply_per_task(base, hyper(condition), x).square().sum().backward()
    found = [parameter.grad.clone() for parameter in parts]
    total = 0
    for task in range(TASKS):
        params = {n: v[0].dense() for n, v in hyper(condition[task : task + 1]).items()}
        total = total + functional_call(base, params, (x[task],)).square().sum()
    expected = torch.autograd.grad(total, parts)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_kernels_tied_weights_and_embeddings_get_adapters_and_vectors_do_not():
    its = AdapterHyperNetwork(conv(), 4, form=LowRank(1))
    assert its.spec.shapes["0.weight"] == (4, 2, 3, 3)
    assert all(len(shape) > 1 for shape in its.spec.shapes.values())
    tied = moved(AdapterHyperNetwork(TiedEmbedding(), 4, form=LowRank(2)))
    params = tied(torch.randn(TASKS, 4))
    assert list(params) == ["embedding.weight"]
    symbols = torch.randint(7, (TASKS, 3))
    found = apply_per_task(tied.base, params, symbols)
    one = {"embedding.weight": params["embedding.weight"][1].dense()}
    torch.testing.assert_close(found[1], functional_call(tied.base, one, (symbols[1],)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision_gets_adapters_in_its_dtype(dtype):
    base = mlp([16, 32, 16]).to(dtype)
    hyper = moved(AdapterHyperNetwork(base, 4, form=LowRank(2)))
    params = hyper(torch.randn(TASKS, 4))
    assert {its.dtype for its in params["0.weight"].factors.values()} == {dtype}
    out = apply_per_task(base, params, torch.randn(TASKS, 3, 16, dtype=dtype))
    assert out.dtype == dtype and out.isfinite().all()
    assert hyper.generator.up.weight.dtype == torch.float32


def test_ranks_may_differ_and_the_lower_ones_are_the_first():
    base, condition = mlp([16, 32, 16]), torch.randn(TASKS, 4)
    hyper = moved(AdapterHyperNetwork(base, 4, generate={"0.*": LowRank(4), "2.*": LowRank(2)}))
    params = hyper(condition)
    assert [params[name].form.rank for name in ("0.weight", "2.weight")] == [4, 2]
    full = hyper.on(base)(condition)["2.weight"].factors["up"]
    torch.testing.assert_close(full[..., :2], params["2.weight"].factors["up"])
    assert full.shape[-1] == 4


def test_weights_that_are_loaded_later_are_read_again():
    base, other, condition = mlp([16, 32, 16]), mlp([16, 32, 16]), torch.randn(TASKS, 4)
    hyper = moved(AdapterHyperNetwork(base, 4, form=LowRank(2)))
    before = hyper.generated.groups[0].rows
    assert hyper(condition) and hyper.generated.groups[0].rows is before  # read once
    base.load_state_dict(other.state_dict())
    for its, mine in zip(
        hyper(condition).values(), hyper.on(other)(condition).values(), strict=True
    ):
        assert torch.equal(built(its), built(mine))
    copied = copy.deepcopy(hyper).double()
    assert copied(condition.double())["0.weight"].dtype == torch.float64


ARCHITECTURES = [[16, width, *[width] * depth, 8] for depth in (0, 1, 3) for width in (20, 48, 200)]


@pytest.mark.parametrize("sizes", [*ARCHITECTURES, [40, 30, 24, 12]])
def test_one_generator_serves_architectures_that_it_never_saw(sizes):
    torch.manual_seed(0)
    hyper = moved(AdapterHyperNetwork(mlp([16, 32, 16]), 4, form=LowRank(3)))
    base = mlp(sizes)
    other = hyper.on(base)
    assert own_parameters(other) == own_parameters(hyper)
    assert other.generator is hyper.generator
    x = torch.randn(TASKS, 5, sizes[0])
    out = apply_per_task(base, other(torch.randn(TASKS, 4)), x)
    assert out.isfinite().all() and (out - base(x)).abs().max() > 1e-4
    for name, value in other(torch.randn(TASKS, 4)).items():  # of the model's own size
        own = base.get_parameter(name)
        assert 0.01 < (value.dense() - own).norm() / TASKS**0.5 / own.norm() < 10


class Block(nn.Module):
    def __init__(self, width, names):
        super().__init__()
        self.names = names
        for name in names:
            setattr(self, name, nn.Linear(width, width))

    def forward(self, x):
        for name in self.names:
            x = x + torch.tanh(getattr(self, name)(x))
        return x


def blocks(width, depth, names):
    return nn.Sequential(*(Block(width, names) for _ in range(depth)))


def test_kinds_are_the_names_of_layers_inside_their_block_and_depths_go_from_0_to_1():
    hyper = AdapterHyperNetwork(blocks(6, 3, ["q", "v"]), 4, generate="*.weight", form=LowRank(1))
    assert hyper.generated.kinds["2.v.weight"] == "v" and hyper.generator.kinds == ["q", "v"]
    (group,) = hyper.generated.groups
    assert group.names[2] == "1.q.weight"
    middle = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, -1.0, 1.0, 1.0])  # half a quarter turn, ...
    torch.testing.assert_close(group.depth[2], middle, atol=1e-6, rtol=0)
    assert AdapterHyperNetwork(nn.Linear(4, 4), 4, form=LowRank(1)).generator.kinds == ["Linear"]


def test_another_model_gets_adapters_of_the_kinds_that_are_known():
    hyper = AdapterHyperNetwork(
        blocks(6, 2, ["query", "value"]), 4, generate="*.query.*", form=LowRank(1)
    )
    other = hyper.on(blocks(8, 3, ["query", "key"]))
    assert list(other.spec.shapes) == [f"{n}.query.weight" for n in range(3)]
    with pytest.raises(ConfigError, match="not learned the kinds `key`"):
        hyper.on(blocks(8, 3, ["query", "key"]), generate="*")


def test_another_model_with_other_names_is_served_when_they_are_mapped():
    base, condition = blocks(6, 2, ["query", "value"]), torch.randn(TASKS, 4)
    hyper = moved(AdapterHyperNetwork(base, 4, generate="*.weight", form=LowRank(1)))
    other = blocks(6, 2, ["q_proj", "v_proj"])
    for mine, its in zip(other.parameters(), base.parameters(), strict=True):
        mine.data = its.data
    with pytest.raises(ConfigError, match=r"not learned the kinds `q_proj`, `v_proj`.*kinds=\{'q"):
        hyper.on(other)
    served = hyper.on(other, kinds={"q*": "query", "v_proj": "value"})
    for its, mine in zip(hyper(condition).values(), served(condition).values(), strict=True):
        torch.testing.assert_close(built(mine), built(its))
    # weights that share one embedding keep the depths of their own kinds
    assert (
        hyper.on(other, kinds={"*": "query"})
        .generated.groups[0]
        .depth[1]
        .equal(served.generated.groups[0].depth[1])
    )


@pytest.mark.parametrize("on", [False, True])
def test_a_file_holds_the_generator_and_gives_it_back(tmp_path, on):
    base, condition = mlp([16, 32, 16]), torch.randn(TASKS, 4)
    hyper = moved(AdapterHyperNetwork(base, 4, form=LowRank(3), width=16, features=5))
    if on:
        base = mlp([16, 24, 24, 16])
        hyper = hyper.on(base, form=LowRank(2))
    hyper.save(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_size < 4 * own_parameters(hyper) + 8000
    again = AdapterHyperNetwork.load(tmp_path / "a.safetensors", copy.deepcopy(base))
    for its, mine in zip(hyper(condition).values(), again(condition).values(), strict=True):
        assert torch.equal(built(its), built(mine))
    with pytest.raises(CheckpointError, match=r"another `0.bias`"):
        AdapterHyperNetwork.load(tmp_path / "a.safetensors", mlp([*base_sizes(base)]))


def base_sizes(base):
    layers = [layer for layer in base if isinstance(layer, nn.Linear)]
    return [layers[0].in_features, *(layer.out_features for layer in layers)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": FiLM()}, r"`FiLM.*LowRank\(rank\)"),
        ({"generate": {"*": Full()}}, r"`Full\(\)` was given as the form of an adapter"),
        ({"form": LowRank(16)}, r"No weight is left to adapt.*`0.weight`"),
        ({"generate": "*.bias"}, r"No weight is left to adapt.*`0.bias`"),
        ({"generate": "*.query.*"}, "matches no parameter"),
        ({"kinds": {"attention": "Linear"}}, r"'attention', which matches no kind.*`Linear`"),
        ({"width": 0}, "`width=0` is below 1"),
    ],
)
def test_wrong_options_are_refused_with_advice(options, message):
    with pytest.raises(ConfigError, match=message):
        AdapterHyperNetwork(mlp([16, 32, 16]), 4, **options)


def test_a_generator_refuses_ranks_and_conditions_that_it_does_not_write():
    hyper = AdapterHyperNetwork(mlp([16, 32, 16]), 4, form=LowRank(2))
    with pytest.raises(ConfigError, match=r"up to rank 2.*form=LowRank\(2\)"):
        hyper.on(mlp([16, 32, 16]), form=LowRank(3))
    with pytest.raises(ConfigError, match="reads 4 numbers"):
        AdapterHyperNetwork(mlp([16, 32, 16]), 5, form=LowRank(2), generator=hyper.generator)


def test_adapters_of_a_frozen_network_learn_to_read_rotated_inputs():
    """A network reads points that are turned in two planes by an angle, which the condition tells."""
    torch.manual_seed(0)
    base = mlp([8, 32, 32, 4])

    def batch(tasks):
        angle = torch.rand(tasks) * 1.5
        cos, sin = angle.cos(), angle.sin()
        turn = torch.eye(8).repeat(tasks, 1, 1)
        for first in (0, 2):
            turn[:, first, first], turn[:, first, first + 1] = cos, -sin
            turn[:, first + 1, first], turn[:, first + 1, first + 1] = sin, cos
        x = torch.randn(tasks, 32, 8)
        return torch.stack([cos, sin], 1), x @ turn.mT, base(x).detach()

    hyper = AdapterHyperNetwork(base, 2, form=LowRank(4), width=32, features=8)
    run = per_task(base)
    optimiser = torch.optim.Adam(hyper.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        condition, x, y = batch(16)
        losses.append(mse_per_task(run(hyper(condition), x), y).mean())
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert last < 0.1 * first
    assert isinstance(hyper(condition)["0.weight"], Factored)
