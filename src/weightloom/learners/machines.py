"""scikit-learn's classifiers as modules, fitted to each support set or once to training images."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from weightloom.base import apply_per_task
from weightloom.conditions import input_statistics
from weightloom.learners.learner import Learner, Support
from weightloom.params import Params

ABSENT = -30.0
"""Logit of a class that is absent from the support set."""


class KernelMachine(nn.Module):
    """Support vector machine with a Gaussian kernel, one against one.

    Every pair of classes has one vote. The sums of the pairs' decision values break ties.

    Args:
        points: Number of support vectors.
        inputs: Width of a point.
        classes: Number of classes.
        gamma: Coefficient of the kernel exp(-gamma |x - s|²).

    Source:
        Votes as in scikit-learn's ``SVC.decision_function``.
    """

    pairs: Tensor

    def __init__(self, points: int, inputs: int, classes: int, gamma: float) -> None:
        super().__init__()
        first, second = torch.triu_indices(classes, classes, 1)
        self.classes, self.gamma = classes, gamma
        self.register_buffer("pairs", torch.stack([first, second]), persistent=False)
        self.points = nn.Parameter(torch.zeros(points, inputs), requires_grad=False)
        self.duals = nn.Parameter(torch.zeros(len(first), points), requires_grad=False)
        self.intercepts = nn.Parameter(torch.zeros(len(first)), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Votes for each class, (..., inputs) to (..., classes)."""
        squares = (
            x.square().sum(-1, keepdim=True) + self.points.square().sum(-1) - 2 * x @ self.points.mT
        )
        decisions = torch.exp(-self.gamma * squares.clamp(min=0)) @ self.duals.mT + self.intercepts
        first, second = (
            torch.nn.functional.one_hot(of, self.classes).to(x.dtype) for of in self.pairs
        )
        won = (decisions > 0).to(x.dtype)
        votes = won @ first + (1 - won) @ second
        sure = decisions @ (first - second)
        return votes + sure / (3 * (sure.abs() + 1))


def fitted_machine(
    x: Tensor, y: Tensor, classes: int, penalty: float, gamma: float
) -> dict[str, Tensor]:
    """Fit a `KernelMachine`; absent classes lose every vote against present ones.

    Args:
        x: Points, (points, inputs).
        y: Their labels, (points,).
        classes: Number of classes over all tasks.
        penalty: C of the machine.
        gamma: Coefficient of the kernel.

    Returns:
        Parameters of the machine. ``points`` is ``x``; points that are no support vectors have zero
        ``duals``.
    """
    from sklearn.svm import SVC

    seen = y.unique()
    duals, intercepts = x.new_zeros(classes, classes, len(x)), x.new_zeros(classes, classes)
    for label in range(classes):  # an absent class loses to a present one
        intercepts[label] += float(label in seen)
        intercepts[:, label] -= float(label in seen)
    if len(seen) > 1:
        machine = SVC(C=penalty, gamma=gamma, decision_function_shape="ovo").fit(
            x.double().numpy(), y.numpy()
        )
        starts = np.concatenate([[0], machine.n_support_.cumsum()])
        of_class = [slice(starts[i], starts[i + 1]) for i in range(len(seen))]
        place = torch.from_numpy(machine.support_).long()
        values, offsets = (
            torch.from_numpy(v).to(x) for v in (machine.dual_coef_, machine.intercept_)
        )
        if len(seen) == 2:  # scikit-learn's sign is that of the second class here
            values, offsets = -values, -offsets
        pairs = torch.triu_indices(len(seen), len(seen), 1).T.tolist()
        for (i, j), offset in zip(pairs, offsets, strict=True):
            a, b = int(seen[i]), int(seen[j])
            duals[a, b, place[of_class[i]]] = values[j - 1, of_class[i]]
            duals[a, b, place[of_class[j]]] = values[i, of_class[j]]
            intercepts[a, b] = offset
    first, second = torch.triu_indices(classes, classes, 1)
    return {"points": x, "duals": duals[first, second], "intercepts": intercepts[first, second]}


def machine_of(x: Tensor, y: Tensor, classes: int, penalty: float, gamma: float) -> KernelMachine:
    """Fit one `KernelMachine` for all tasks, with its support vectors only.

    Arguments as for `fitted_machine`.
    """
    fitted = fitted_machine(x, y, classes, penalty, gamma)
    used = fitted["duals"].any(0)
    machine = KernelMachine(int(used.sum()), x.shape[1], classes, gamma)
    machine.load_state_dict(
        {
            "points": fitted["points"][used],
            "duals": fitted["duals"][:, used],
            "intercepts": fitted["intercepts"],
        }
    )
    return machine


class Unadapted(Learner):
    """Network that is the same for all tasks and ignores the support set.

    Args:
        base: A fitted network.
    """

    trained = False

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def adapt(self, support: Support) -> Params:
        """No parameters: ``base`` is shared by all tasks."""
        return Params()

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Run the shared network on the queries of all tasks."""
        logits: Tensor = self.base(x)
        return logits


class SupportLearner(Learner):
    """Base class of methods fitted to one support set at a time, with standardised inputs.

    Args:
        classes: Number of classes over all tasks.
    """

    trained = False

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    @abstractmethod
    def fitted(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Parameters of the classifier, the second part of ``base``, fitted to one task.

        Args:
            x: Standardised inputs, (shots, inputs).
            y: Labels, (shots,).
        """

    def adapt(self, support: Support) -> Params:
        """Standardise and fit each task."""
        from sklearn import config_context

        known = input_statistics(support.x, support.y, support.mask, classes=self.classes)
        values = known.standardise(support.x)
        fitted: list[dict[str, Tensor]] = []
        for x, y, there in zip(values, support.y, support.mask, strict=True):
            # scikit-learn's checks would take half of the time.
            with config_context(assume_finite=True, skip_parameter_validation=True):
                one = self.fitted(x[there], y[there])
            short = len(x) - int(there.sum())
            fitted.append({name: _longer(name, value, short) for name, value in one.items()})
        params = {f"1.{name}": torch.stack([one[name] for one in fitted]) for name in fitted[0]}
        return Params({"0.mean": known.mean, "0.scale": known.scale, **params})

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Run each task's classifier."""
        logits: Tensor = apply_per_task(self.base, params, x)
        return logits


def _longer(name: str, value: Tensor, points: int) -> Tensor:
    """Pad the points of a machine, and their coefficients, to those of other tasks."""
    if not points or name not in ("points", "duals"):
        return value
    at_end = (0, points) if name == "duals" else (0, 0, 0, points)
    return nn.functional.pad(value, at_end)


class Standardise(nn.Module):
    """Standardise inputs: (x - mean) / scale.

    Args:
        inputs: Width of an input.
    """

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(inputs), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(inputs), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Standardised inputs, (batch, inputs)."""
        return (x - self.mean) / self.scale


class SupportSVM(SupportLearner):
    """Support vector machine fitted to each support set.

    Args:
        inputs: Width of an input.
        classes: Number of classes over all tasks.
        penalty: C of the machine.
        gamma: Coefficient of the kernel times ``inputs``.
    """

    def __init__(
        self, inputs: int, classes: int, penalty: float = 10.0, gamma: float = 0.1
    ) -> None:
        super().__init__(classes)
        self.penalty, self.gamma = penalty, gamma / inputs
        self.base = nn.Sequential(
            Standardise(inputs), KernelMachine(1, inputs, classes, self.gamma)
        )

    def fitted(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Fit the machine of one task.

        Args:
            x: Standardised inputs, (points, inputs).
            y: Their labels, (points,), from 0 to ``classes - 1``. One class alone always wins.

        Returns:
            Parameters of a `KernelMachine`, by name.
        """
        return fitted_machine(x, y, self.classes, self.penalty, self.gamma)


class SupportLogistic(SupportLearner):
    """Logistic regression fitted to each support set.

    Args:
        inputs: Width of an input.
        classes: Number of classes over all tasks.
        penalty: C, the inverse of the weight of the penalty.
    """

    def __init__(self, inputs: int, classes: int, penalty: float = 1.0) -> None:
        super().__init__(classes)
        self.penalty = penalty
        self.base = nn.Sequential(Standardise(inputs), nn.Linear(inputs, classes))

    def fitted(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Weight and bias for one task; the bias of absent classes is `ABSENT`."""
        from sklearn.linear_model import LogisticRegression

        weight, bias = x.new_zeros(self.classes, x.shape[1]), x.new_full((self.classes,), ABSENT)
        seen = y.unique()
        if len(seen) == 1:
            bias[seen] = 0.0
            return {"weight": weight, "bias": bias}
        model: Any = LogisticRegression(C=self.penalty, max_iter=1000).fit(
            x.double().numpy(), y.numpy()
        )
        rows, shifts = torch.from_numpy(model.coef_).to(x), torch.from_numpy(model.intercept_).to(x)
        if len(seen) == 2:  # scikit-learn keeps one row here, that of the second class
            rows, shifts = torch.cat([0 * rows, rows]), torch.cat([0 * shifts, shifts])
        weight[seen], bias[seen] = rows, shifts
        return {"weight": weight, "bias": bias}


class NearestPoint(nn.Module):
    """Nearest-neighbour classifier: a class is scored by its nearest point.

    Args:
        inputs: Width of a point.
        classes: Number of classes.
    """

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.points = nn.Parameter(torch.zeros(1, inputs), requires_grad=False)
        self.labels = nn.Parameter(torch.zeros(1, classes), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Minus the squared distance per input to each class: (batch, inputs) to (batch, classes).

        Classes without a point score 10 * `ABSENT` lower.
        """
        squares = (
            x.square().sum(-1, keepdim=True) + self.points.square().sum(-1) - 2 * x @ self.points.mT
        )
        near = -(squares / x.shape[-1])[..., None] + torch.where(self.labels > 0, 0.0, 10 * ABSENT)
        return near.amax(-2)


class SupportNearest(Learner):
    """Nearest neighbour in the support set, on standardised inputs.

    Args:
        inputs: Width of an input.
        classes: Number of classes over all tasks.
    """

    trained = False

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.base = nn.Sequential(Standardise(inputs), NearestPoint(inputs, classes))

    def adapt(self, support: Support) -> Params:
        """Standardised support set, as the points of the classifier."""
        known = input_statistics(support.x, support.y, support.mask, classes=self.classes)
        values = known.standardise(support.x)
        labels = (
            torch.nn.functional.one_hot(support.y.clamp(min=0), self.classes)
            * support.mask[..., None]
        )
        labels = labels.to(values.dtype)
        return Params(
            {"0.mean": known.mean, "0.scale": known.scale, "1.points": values, "1.labels": labels}
        )

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Run each task's classifier."""
        logits: Tensor = apply_per_task(self.base, params, x)
        return logits
