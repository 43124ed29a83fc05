"""Proof that rows are treated one by one: whatever mixes them is never folded, and what is safe is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_leaves

from cases import BASES, ConvNet, bank, conv, dropout, mlp, resnet
from weightloom.base import apply_per_task, choose, choose_engine

ROWS = 4  # as many as features, so that what mixes them has the shape of what does not


class Total(torch.autograd.Function):
    """A sum over rows that no watching sees."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sum(0)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient.expand(ROWS, ROWS)


class Does(nn.Module):
    """A layer, and then something."""

    def __init__(self, then):
        super().__init__()
        self.layer, self.then = nn.Linear(ROWS, ROWS), then
        self.register_buffer("order", torch.tensor([2, 0, 3, 1]))

    def forward(self, x):
        return self.then(self, torch.tanh(self.layer(x)))


def changed(h, change):
    h = h.clone()
    change(h)
    return h


def assigned(h, to, what):
    h[to] = what


def attended(h, mask=None):
    """Four rows, four heads: a mask of three axes meets the heads."""
    q = h[:, None, :, None].expand(ROWS, ROWS, ROWS, 2)
    return F.scaled_dot_product_attention(q, q, q, mask)[..., 0, 0]


MIXES = bank(
    mean=lambda s, h: h - h.mean(0),
    mean_kept=lambda s, h: h - h.mean(-2, keepdim=True),
    sum_of_all=lambda s, h: h / h.square().sum(),
    sum_by_name=lambda s, h: h + torch.sum(input=h, dim=0),
    sum_over_axis=lambda s, h: h + torch.sum(h, axis=(0, 1)),
    softmax=lambda s, h: h.softmax(0),
    softmax_from_the_back=lambda s, h: F.softmax(h, dim=-2),
    softmax_of_a_vector=lambda s, h: F.softmax(h[:, 0], dim=0),
    flip=lambda s, h: h.flip(0),
    order=lambda s, h: h[s.order],
    order_as_a_list=lambda s, h: h[[1, 0, 2, 3]],
    order_behind_dots=lambda s, h: h[..., [1, 0, 2, 3], :],
    order_beside_a_slice=lambda s, h: h[:, :, None].expand(4, 4, 4)[:, [0, 1, 2, 3], :, None][
        :, [0, 1, 2, 3], [3, 2, 1, 0], 0
    ],
    two_lists_apart=lambda s, h: h.view(4, 2, 1, 2)[:, [0, 1, 0, 1], :, [0, 0, 1, 1]][:, :, 0],
    cumsum=lambda s, h: h.cumsum(0),
    gram=lambda s, h: h @ h.T,
    gram_by_mt=lambda s, h: h @ h.mT,
    gram_by_transpose=lambda s, h: torch.matmul(h, h.transpose(0, 1)),
    product_from_the_left=lambda s, h: torch.ones(4, 4).double() @ h,
    einsum=lambda s, h: torch.einsum("ij,kj->ik", h, h),
    distance=lambda s, h: torch.cdist(h, h),
    view_into_one_row=lambda s, h: h.reshape(1, -1).softmax(1).reshape(h.shape),
    view_into_more_rows=lambda s, h: h.view(-1, 2).cumsum(0).view(h.shape),
    flatten=lambda s, h: h.flatten().cumsum(0).view(h.shape),
    unflatten=lambda s, h: h.unflatten(0, (2, -1)).flip(0).flatten(0, 1),
    expand_to_new_rows=lambda s, h: h.expand(4, *h.shape).sum(1),
    transpose=lambda s, h: h.t(),
    capital_t=lambda s, h: h.T,
    permute=lambda s, h: h.permute(1, 0),
    swap_by_name=lambda s, h: h.transpose(dim0=0, dim1=1),
    movedim=lambda s, h: h.movedim(0, 1),
    data=lambda s, h: h + h.data.T,
    roll=lambda s, h: h.roll(1, 0),
    sort=lambda s, h: h.sort(0)[0],
    topk=lambda s, h: h.topk(len(h), 0)[0],
    gather=lambda s, h: h.gather(0, h.argsort(0)),
    norm_over_rows=lambda s, h: h / h.norm(1, 0),
    normalize_rows=lambda s, h: F.normalize(h, dim=0),
    standard_deviation=lambda s, h: h / torch.std(h, 0),
    first_row=lambda s, h: h + h[0],
    first_row_kept=lambda s, h: h * h[:1],
    rows_apart=lambda s, h: torch.stack(list(h)[::-1]),
    split=lambda s, h: torch.cat(h.split(1)[::-1]),
    rows_against_rows=lambda s, h: (h[None] * h[:, None]).sum(1),
    vector_against_rows=lambda s, h: h + h.sum(1),
    batch_norm=lambda s, h: F.batch_norm(h, None, None, training=True),
    norm_of_rows_as_channels=lambda s, h: F.layer_norm(h, h.shape),
    pool_of_rows=lambda s, h: F.avg_pool1d(h.T[None], 3, 1, 1)[0].T,
    attention_among_rows=lambda s, h: F.scaled_dot_product_attention(h, h, h),
    attention_with_rows_as_heads=lambda s, h: attended(h, h[:, :, None].expand(4, 4, 4)),
    weight_from_rows=lambda s, h: F.linear(h, h),
    slope_from_rows=lambda s, h: F.prelu(h, h[0]),
    condition_on_the_mean=lambda s, h: torch.where(h > h.mean(0), h, -h),
    condition_on_the_place=lambda s, h: torch.where((s.order > 1)[:, None], h, -h),
    custom_function=lambda s, h: h + Total.apply(h),
    in_place_on_part=lambda s, h: changed(h, lambda z: z[1:].add_(z[:-1].clone())),
    assigned_to_a_row=lambda s, h: changed(h, lambda z: assigned(z, 0, z[1].clone())),
    assigned_by_order=lambda s, h: changed(h, lambda z: assigned(z, s.order, z.clone())),
    copied=lambda s, h: changed(h, lambda z: z.copy_(z.flip(0))),
    out=lambda s, h: (
        changed(h, lambda z: torch.add(z.detach(), z.detach().flip(0), out=torch.empty_like(z)))
        - h.flip(0)
    ),
    places=lambda s, h: h * torch.arange(len(h))[:, None],
    places_of_a_list=lambda s, h: h + s.order[:, None],
    mean_in_gradients_alone=lambda s, h: h + h.sum(0) - h.sum(0).detach(),
)
"""Mixing that the functions show."""

READS_THE_SIZE = bank(
    divided_by_the_batch=lambda s, h: h / h.shape[0],
    divided_by_its_length=lambda s, h: h / len(h),
    divided_by_all_numbers=lambda s, h: h / h.numel(),
    a_tensor_of_the_size=lambda s, h: h * torch.tensor(float(len(h))),
    a_sum_of_ones=lambda s, h: h * torch.ones(len(h)).sum(),
    branch=lambda s, h: 2 * h if len(h) > 2 * ROWS else h,
    as_many_times=lambda s, h: sum(h * number for number in range(len(h))),
    dropped_then_divided=lambda s, h: F.dropout(h, 0.0, True) / h.shape[0],
)
"""The size of the batch is a plain number, which nothing shows."""


def parts(then, tasks=3, zero=False):
    net = Does(then).double()
    params = {
        "layer.weight": torch.randn(tasks, ROWS, ROWS),
        "layer.bias": torch.randn(tasks, ROWS),
    }
    params = {
        name: (0 * value if zero else value).double().requires_grad_()
        for name, value in params.items()
    }
    return net, params, torch.randn(tasks, ROWS, ROWS).double()


@pytest.mark.parametrize("then", MIXES + READS_THE_SIZE)
def test_what_mixes_rows_is_never_folded_and_equals_the_loop(then):
    net, params, x = parts(then)
    assert choose_engine(net, params, x).engine != "aligned"
    found, expected = (apply_per_task(net, params, x, engine=engine) for engine in ("auto", "loop"))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(expected)
    ours, truth = (
        torch.autograd.grad((y * weights).sum(), [*params.values()]) for y in (found, expected)
    )
    torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("then", MIXES)
def test_the_functions_alone_show_that_rows_are_mixed(then, monkeypatch):
    """Numbers may hide it: where all tasks have the same parameters and inputs, their means are equal."""
    monkeypatch.setattr(choose, "_equal_when_folded", lambda *call: True)
    assert choose_engine(*parts(then)).engine != "aligned"


@pytest.mark.parametrize("then", READS_THE_SIZE)
def test_a_start_at_zero_hides_nothing(then):
    assert choose_engine(*parts(then, zero=True)).engine != "aligned"


def test_what_was_found_for_one_task_does_not_hold_for_more():
    net, params, x = parts(lambda s, h: h / len(h))
    one = {name: value[:1] for name, value in params.items()}
    apply_per_task(net, one, x[:1])
    found, expected = (apply_per_task(net, params, x, engine=engine) for engine in ("auto", "loop"))
    torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_random_numbers_for_the_size_of_the_batch_are_not_folded():
    noise = bank(
        by_row=lambda s, h: h + torch.randn(len(h), 1),
        by_feature=lambda s, h: h + torch.randn(4),
        like_rows=lambda s, h: h + torch.randn_like(h),
    )
    for case in noise:
        assert choose_engine(*parts(case.values[0])).engine != "aligned"


SAFE = bank(
    mlp=(lambda: mlp([5, 6, 2]), (5,)),
    conv_with_group_norm=(conv, (2, 6, 6)),
    conv_net=(lambda: ConvNet(1, 8, 3, channels=4, blocks=2), (1, 8, 8)),
    resnet_eval=(lambda: resnet().eval(), (2, 5, 5)),
    dropout=(dropout, (5,)),
    flat_by_view=(lambda: Then(nn.Conv1d(2, 3, 2), lambda h: h.view(h.size(0), -1)), (2, 5)),
    flat_by_flatten=(lambda: Then(nn.Conv1d(2, 3, 2), lambda h: torch.flatten(h, 1)), (2, 5)),
    functional=(
        lambda: Then(nn.Linear(5, 5), lambda h: F.gelu(h) + F.layer_norm(h, (5,)) * h.sigmoid()),
        (5,),
    ),
    residual=(lambda: Then(nn.Linear(5, 5), lambda h: h + F.relu(h, inplace=False)), (5,)),
    sequence_mean=(lambda: Then(nn.Linear(5, 5), lambda h: h.mean(1)), (3, 5)),
    last_of_a_sequence=(lambda: Then(nn.Linear(5, 5), lambda h: h[:, -1]), (3, 5)),
    softmax_over_features=(lambda: Then(nn.Linear(5, 5), lambda h: h.softmax(-1)), (5,)),
    heads=(
        lambda: Then(
            nn.Linear(4, 4), lambda h: h.view(h.shape[0], 3, 2, 2).transpose(1, 2).flatten(2)
        ),
        (3, 4),
    ),
)


class Then(nn.Module):
    def __init__(self, layer, then):
        super().__init__()
        self.layer, self.then = layer, then

    def forward(self, x):
        return self.then(self.layer(x))


@pytest.mark.parametrize("case", SAFE)
def test_what_treats_rows_one_by_one_is_folded(case):
    build, event = case
    net = build()
    params = {name: torch.randn(3, *value.shape) for name, value in net.named_parameters()}
    x = torch.randn(3, 4, *event)
    choice = choose_engine(net, params, x)
    assert choice.engine == "aligned", choice
    net.eval()
    found, expected = (apply_per_task(net, params, x, engine=engine) for engine in ("auto", "loop"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("base", BASES)
def test_choosing_leaves_inputs_and_random_state_alone(base):
    net, params, inputs = base.net(), base.params(), base.x()
    before, state = [x.clone() for x in inputs], torch.get_rng_state()
    choice = choose_engine(net, params, *inputs)
    assert torch.equal(torch.get_rng_state(), state) and str(choice).startswith(
        f"{choice.engine}: "
    )
    assert all(torch.equal(x, old) for x, old in zip(tree_leaves(inputs), before, strict=True))


def test_choosing_does_not_run_what_writes_into_its_input_twice():
    net, x = Then(nn.Linear(5, 2), lambda h: h), torch.zeros(3, 4, 5)
    net.register_forward_pre_hook(lambda module, inputs: (inputs[0].add_(1),))
    apply_per_task(net, {"layer.bias": torch.zeros(3, 2)}, x)
    assert torch.equal(x, torch.ones(3, 4, 5))


def test_a_plain_attribute_that_forward_follows_is_looked_at_again_when_it_changes():
    class Centring(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.centred = nn.Linear(5, 2), False

        def forward(self, x):
            return self.layer(x - x.mean(0) if self.centred else x)

    net, x = Centring(), torch.randn(3, 4, 5)
    params = {"layer.bias": torch.randn(3, 2)}
    assert choose_engine(net, params, x).engine == "aligned"
    net.centred = True
    assert choose_engine(net, params, x).engine == "vmap"
    torch.testing.assert_close(
        apply_per_task(net, params, x), apply_per_task(net, params, x, engine="loop")
    )


def test_a_batch_of_one_row_is_folded_where_its_size_is_read_and_not_where_it_is_said():
    class Viewing(nn.Module):
        def __init__(self, rows):
            super().__init__()
            self.layer, self.rows = nn.Linear(6, 2), rows

        def forward(self, x):
            return self.layer(x.view(self.rows or x.shape[0], 6))

    x, params = torch.randn(3, 1, 2, 3), {"layer.bias": torch.randn(3, 2)}
    assert choose_engine(Viewing(None), params, x).engine == "aligned"
    net = Viewing(1)
    assert choose_engine(net, params, x).engine != "aligned"
    torch.testing.assert_close(
        apply_per_task(net, params, x), apply_per_task(net, params, x, engine="loop")
    )
