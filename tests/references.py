"""Slow, obvious versions: one task, one point, one number at a time. The library must agree with them."""

import copy
import math

import torch
from torch.utils._pytree import tree_leaves, tree_map


def run_task_by_task(base, params, inputs, loss):
    """One copy of the base for each task, its parameters overwritten, one backward pass each.

    Returns outputs, and the gradients of the sum of ``loss(outputs, task)``: of ``params`` per
    task, of the base's own parameters summed over tasks, of the inputs per task.
    """
    rows, of_params, of_inputs = [], [], []
    of_own = {
        name: torch.zeros_like(own) for name, own in base.named_parameters() if name not in params
    }
    for task in range(len(inputs[0])):
        net = copy.deepcopy(base)
        with torch.no_grad():
            for name, value in params.items():
                net.get_parameter(name).copy_(value[task])
        x = [one[task].detach().clone().requires_grad_(one.is_floating_point()) for one in inputs]
        outputs = net(*x)
        loss(outputs, task).backward()
        rows.append(tree_map(torch.detach, outputs))
        of_params.append([net.get_parameter(name).grad for name in params])
        of_inputs.append([one.grad for one in x if one.is_floating_point()])
        for name, total in of_own.items():
            total += net.get_parameter(name).grad
    stacked = tree_map(lambda *leaves: torch.stack(leaves), *rows)
    return stacked, [*_stack(of_params), *of_own.values(), *_stack(of_inputs)]


def copies(base, params):
    """One copy of the base for each task, its parameters overwritten."""
    nets = [copy.deepcopy(base) for _ in next(iter(params.values()))]
    with torch.no_grad():
        for task, net in enumerate(nets):
            for name, value in params.items():
                net.get_parameter(name).copy_(value[task])
    return nets


def gradients_of(nets, names):
    """What backward passes left in parameters of copies, per task."""
    return {name: torch.stack([net.get_parameter(name).grad for net in nets]) for name in names}


def _stack(rows):
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def weighted_sum(outputs, weights):
    """A loss in which every number of the output has its own weight."""
    return sum(
        (out * w).sum() for out, w in zip(tree_leaves(outputs), tree_leaves(weights), strict=True)
    )


def statistics_of_classes(features, labels, mask, ways):
    """Mean, pooled variance and shots of each class of one task, point by point."""
    points = [
        [f for f, y, m in zip(features, labels, mask, strict=True) if m and y == way]
        for way in range(ways)
    ]
    mean = [
        sum(of_class) / len(of_class) if of_class else torch.zeros_like(features[0])
        for of_class in points
    ]
    squares, freedom = torch.zeros_like(features[0]), 0
    for of_class, middle in zip(points, mean, strict=True):
        for point in of_class:
            squares = squares + (point - middle) ** 2
        freedom += max(len(of_class) - 1, 0)
    return (
        torch.stack(mean),
        squares / max(freedom, 1),
        torch.tensor([float(len(of_class)) for of_class in points]),
    )


def squared_distances(support, labels, query, ways):
    """Squared distance of each query point to each class mean, for one task."""
    rows = []
    for point in query:
        row = []
        for way in range(ways):
            of_class = [s for s, y in zip(support, labels, strict=True) if y == way]
            middle = sum(of_class) / len(of_class)
            row.append(
                sum((a - b) ** 2 for a, b in zip(point.tolist(), middle.tolist(), strict=True))
            )
        rows.append(row)
    return torch.tensor(rows, dtype=torch.float64)


def least_squares(support, labels, ways, ridge):
    """Ridge regression of centred features onto one-hot labels, by the normal equations among features."""
    middle = sum(support) / len(support)
    centred = [point - middle for point in support]
    length = sum(point @ point for point in centred) / len(centred)
    normal = (ridge * length + 1e-6) * torch.eye(len(middle), dtype=torch.float64)
    moment = torch.zeros(len(middle), ways, dtype=torch.float64)
    for point, label in zip(centred, labels, strict=True):
        normal = normal + torch.outer(point, point)
        moment[:, label] += point
    weight = torch.linalg.solve(normal, moment).T
    return weight, -weight @ middle


def attended(q, k, v, there):
    """What one query token reads from the tokens that are there, for one head."""
    scores = [sum((q * one).tolist()) / math.sqrt(len(q)) for one in k]
    weights = [math.exp(score) if here else 0.0 for score, here in zip(scores, there, strict=True)]
    return sum(w * one for w, one in zip(weights, v, strict=True)) / sum(weights)


def adam_task_by_task(base, params, x, loss_of_task, steps, lr):
    """One copy of the base and one Adam for each task."""
    fitted = []
    for task in range(len(x)):
        net = copy.deepcopy(base)
        with torch.no_grad():
            for name, value in params.items():
                net.get_parameter(name).copy_(value[task])
        own = [net.get_parameter(name) for name in params]
        optimiser = torch.optim.Adam(own, lr=lr)
        for _ in range(steps):
            optimiser.zero_grad()
            loss_of_task(net(x[task]), task).backward()
            optimiser.step()
        fitted.append([parameter.detach().clone() for parameter in own])
    return dict(zip(params, _stack(fitted), strict=True))


def cross_entropy_of_point(logits, label):
    """In nats, for one point."""
    return -logits[label] + math.log(sum(math.exp(logit) for logit in logits))


def tensors_of(tasks):
    """All tensors of some tasks, in the order of their fields."""
    return [leaf for leaf in tree_leaves(tasks) if leaf is not None]
