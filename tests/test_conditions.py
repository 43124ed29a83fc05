"""A support set becomes a condition: in any order, of any size, and of nothing that is masked."""

import math
import re

import pytest
import torch

from cases import ENCODERS
from references import attended, statistics_of_classes
from weightloom.conditions import DeepSets, TaskEmbedding, class_statistics
from weightloom.conditions.support import AttentionBlock
from weightloom.errors import ConfigError, ShapeError

every_encoder = pytest.mark.parametrize("encoder", ENCODERS)
TASKS, SHOTS = 4, 6


def build(encoder, x_dim=2, y_dim=1):
    encode = encoder(x_dim=x_dim, y_dim=y_dim, condition_dim=5).double()
    with torch.no_grad():
        for parameter in encode.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encode


def support(tasks=TASKS, shots=SHOTS):
    return torch.randn(tasks, shots, 2, dtype=torch.float64), torch.randn(
        tasks, shots, 1, dtype=torch.float64
    )


def ragged():
    """From no points at all to all of them, in no particular places."""
    kept = torch.stack([torch.randperm(SHOTS) for _ in range(TASKS)])
    return kept < torch.tensor([0, 1, 4, SHOTS])[:, None]


def close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@every_encoder
def test_the_order_of_the_points_does_not_matter(encoder):
    encode, (x, y) = build(encoder), support()
    order = torch.rand(TASKS, SHOTS).argsort(1)[..., None]
    close(encode(x.take_along_dim(order, 1), y.take_along_dim(order, 1)), encode(x, y))


@every_encoder
def test_the_support_set_matters_and_so_does_which_target_goes_with_which_input(encoder):
    encode, (x, y) = build(encoder), support()
    first = encode(x, y)
    assert first.shape == (TASKS, 5)
    for other in (encode(x, y.flip(1)), encode(x[:, :3], y[:, :3]), encode(x.flip(0), y.flip(0))):
        assert (first - other).abs().amax(1).min() > 1e-4


@every_encoder
def test_a_task_with_masked_points_gets_what_it_gets_alone_without_them(encoder):
    encode, (x, y), mask = build(encoder), support(), ragged()
    together = encode(x, y, mask)
    for task in range(TASKS):
        there = mask[task]
        close(encode(x[task : task + 1, there], y[task : task + 1, there])[0], together[task])


@every_encoder
@pytest.mark.parametrize("rubbish", [1e6, math.nan, math.inf])
def test_what_lies_behind_the_mask_changes_neither_values_nor_gradients(encoder, rubbish):
    encode, (x, y), mask = build(encoder), support(), ragged()
    expected = encode(x, y, mask)
    x = x.masked_fill(~mask[..., None], rubbish).requires_grad_()
    y = y.masked_fill(~mask[..., None], rubbish).requires_grad_()
    found = encode(x, y, mask)
    close(found, expected)
    gradients = torch.autograd.grad(
        (found * torch.randn_like(found)).sum(), [x, y, *encode.parameters()]
    )
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][~mask].any() and gradients[0][mask].all()


@every_encoder
def test_an_empty_support_set_gives_one_learned_prior(encoder):
    encode, (x, y) = build(encoder), support()
    masked = encode(x, y, torch.zeros(TASKS, SHOTS, dtype=torch.bool))
    empty = encode(x[:, :0], y[:, :0])
    assert masked.isfinite().all() and masked.any()
    close(empty, masked)
    close(masked, masked[:1].expand(TASKS, -1))


@every_encoder
def test_every_parameter_gets_a_finite_gradient(encoder):
    encode, (x, y), mask = build(encoder), support(), ragged()
    condition = encode(x, y, mask)
    gradients = torch.autograd.grad(
        (condition * torch.randn_like(condition)).sum(), list(encode.parameters())
    )
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients)


@every_encoder
def test_another_width_is_named_and_the_advice_works(encoder):
    x, y = support()
    message = r"`support_x` is 2 wide and `support_y` 1, but .* for 3 and 1\. .* Build it with `x_dim=2, y_dim=1`"
    with pytest.raises(ShapeError, match=message) as caught:
        build(encoder, 3, 1)(x, y)
    widths = dict(re.findall(r"([xy]_dim)=(\d)", str(caught.value)))
    assert build(encoder, int(widths["x_dim"]), int(widths["y_dim"]))(x, y).shape == (TASKS, 5)


@every_encoder
def test_images_are_refused_and_flattened_as_advised(encoder, unchecked):
    images, y = torch.randn(TASKS, SHOTS, 1, 2, dtype=torch.float64), support()[1]
    with pytest.raises(ShapeError, match=r"Flatten images with `x\.flatten\(2\)`"):
        build(encoder)(images, y)
    assert build(encoder)(images.flatten(2), y).shape == (TASKS, 5)


@every_encoder
def test_a_mask_of_another_shape_is_refused_and_the_advice_works(encoder, unchecked):
    x, y = support()
    with pytest.raises(
        ShapeError, match=r"`support_mask` has shape \(4, 7\).*Pass a bool tensor of shape \(4, 6\)"
    ):
        build(encoder)(x, y, torch.ones(4, 7, dtype=torch.bool))
    assert build(encoder)(x, y, torch.ones(4, 6, dtype=torch.bool)).shape == (TASKS, 5)


def test_deep_sets_equals_a_mean_over_points_and_the_count_beside_it():
    encode, (x, y), mask = build(DeepSets), support(), ragged()
    found = encode(x, y, mask)
    for task in range(TASKS):
        points = [
            encode.point(torch.cat([a, b]))
            for a, b, m in zip(x[task], y[task], mask[task], strict=True)
            if m
        ]
        mean = sum(points) / len(points) if points else torch.zeros(128, dtype=torch.float64)
        count = torch.tensor([1 / (1 + len(points))], dtype=torch.float64)
        close(found[task], encode.pool(torch.cat([mean, count])))


def test_deep_sets_knows_how_many_points_there_are():
    encode, (x, y) = build(DeepSets), support()
    twice = encode(torch.cat([x, x], 1), torch.cat([y, y], 1))
    assert (twice - encode(x, y)).abs().amax(1).min() > 1e-4


def test_a_round_of_attention_equals_a_loop_over_tokens_and_heads():
    block = AttentionBlock(6, heads=3).double()
    tokens, mask = (
        torch.randn(2, 4, 6, dtype=torch.float64),
        torch.tensor([[True] * 4, [True, False, True, False]]),
    )
    found = block(tokens, mask)
    for task in range(2):
        q, k, v = block.to_qkv(block.before_attention(tokens[task])).chunk(3, dim=1)
        for token in range(4):
            heads = [slice(2 * head, 2 * head + 2) for head in range(3)]
            read = torch.cat([attended(q[token, h], k[:, h], v[:, h], mask[task]) for h in heads])
            middle = tokens[task, token] + block.from_heads(read)
            close(found[task, token], middle + block.mix(block.before_mix(middle)))


def test_an_embedding_is_looked_up_and_trained_for_its_task_alone():
    table = TaskEmbedding(known_tasks=5, condition_dim=3)
    condition = table(torch.tensor([4, 0, 4]))
    assert torch.equal(condition, table.table.weight[[4, 0, 4]])
    condition.sum().backward()
    assert table.table.weight.grad.sum(1).tolist() == [3.0, 0.0, 0.0, 0.0, 6.0]
    assert table(torch.zeros(0, dtype=torch.long)).shape == (0, 3)


@pytest.mark.parametrize("task", [[0, 5], [-1, 2]])
def test_a_task_that_is_not_in_the_table_is_refused_and_the_advice_works(task):
    table = TaskEmbedding(known_tasks=5, condition_dim=3)
    with pytest.raises(
        ConfigError,
        match=rf"from {task[0]} to {task[1]} but the table holds 5 .* from 0 to 4\. For a",
    ):
        table(torch.tensor(task))
    assert table(torch.tensor([0, 4])).shape == (2, 3)


@pytest.mark.parametrize("seed", range(5))
def test_statistics_of_classes_equal_a_loop_over_points(seed):
    torch.manual_seed(seed)
    features, labels = torch.randn(3, 12, 4, dtype=torch.float64), torch.randint(5, (3, 12))
    labels[0] = labels[0] % 3  # classes that are absent
    mask = torch.rand(3, 12) < (1.0, 0.7, 0.3, 0.1, 0.0)[seed]
    mean, spread, shots = class_statistics(features, labels, mask, ways=5)
    for task in range(3):
        expected = statistics_of_classes(features[task], labels[task], mask[task], ways=5)
        close(mean[task], expected[0])
        close(spread[task], expected[1])
        close(shots[task], expected[2].double())


def test_without_a_mask_all_points_count_and_ways_is_the_largest_label():
    features, labels = (
        torch.randn(3, 12, 4, dtype=torch.float64),
        torch.arange(12).expand(3, -1) % 4,
    )
    whole = class_statistics(features, labels, torch.ones(3, 12, dtype=torch.bool), ways=4)
    assert all(
        torch.equal(a, b) for a, b in zip(class_statistics(features, labels), whole, strict=True)
    )


def test_statistics_follow_the_names_of_classes_and_not_the_order_of_points():
    features, labels, mask = (
        torch.randn(3, 12, 4).double(),
        torch.randint(4, (3, 12)),
        torch.rand(3, 12) < 0.8,
    )
    mean, spread, shots = class_statistics(features, labels, mask, 4)
    renamed = torch.tensor([2, 0, 3, 1])
    order = torch.randperm(12)
    other = class_statistics(features[:, order], renamed[labels[:, order]], mask[:, order], 4)
    close(other.mean[:, renamed], mean)
    close(other.shots[:, renamed], shots)
    close(other.spread, spread)


def test_features_behind_the_mask_may_be_anything():
    features, labels = torch.randn(2, 6, 3, dtype=torch.float64), torch.arange(6).expand(2, -1) % 3
    mask = torch.tensor([[True] * 5 + [False]] * 2)
    rubbish = features.masked_fill(~mask[..., None], math.nan).requires_grad_()
    found = class_statistics(rubbish, labels, mask, 3)
    for value, expected in zip(found, class_statistics(features, labels, mask, 3), strict=True):
        close(value, expected)
    (gradient,) = torch.autograd.grad(found.mean.sum() + found.spread.sum(), rubbish)
    assert gradient.isfinite().all() and not gradient[:, 5].any()


@pytest.mark.parametrize("tasks", [0, 2])
def test_no_support_at_all_gives_zeros(tasks):
    mean, spread, shots = class_statistics(
        torch.randn(tasks, 0, 3), torch.zeros(tasks, 0, dtype=torch.long), ways=4
    )
    assert mean.shape == (tasks, 4, 3) and spread.shape == (tasks, 3) and shots.shape == (tasks, 4)
    assert not mean.any() and not spread.any() and not shots.any()


@pytest.mark.parametrize("labels", [[0, 5, 1], [0, -1, 1]])
def test_a_label_outside_the_classes_is_refused_and_the_advice_works(labels):
    features, labels = torch.randn(1, 3, 2), torch.tensor([labels])
    message = r"Labels run from -?\d to \d, for 3 classes.*Pass `ways=\d`, or relabel"
    with pytest.raises(ShapeError, match=message) as caught:
        class_statistics(features, labels, ways=3)
    advised = int(re.search(r"`ways=(\d)`", str(caught.value)).group(1))
    assert class_statistics(features, labels.clamp(min=0), ways=advised).mean.shape == (
        1,
        advised,
        2,
    )
