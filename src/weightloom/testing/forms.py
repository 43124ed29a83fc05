"""Check of a form against the contract of all forms."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.base import apply_per_task
from weightloom.base.engines import Engine
from weightloom.forms import Form
from weightloom.forms.form import Parts
from weightloom.params import Shape

TASKS, BATCH = 3, 2


def check_form(form: Form, layers: Sequence[nn.Module] | None = None) -> None:
    """Raise an AssertionError if ``form`` violates the contract of forms.

    `Form.fit` must return a form or None. Factors, starts and shared tensors must have the declared
    names and shapes. With the factors at their starts the parameter must equal the base's own.
    Every factor and shared tensor must have an effect, and no effect on other tasks. Every answer
    (for linear layers, convolutions and their transposes, and embeddings), with a tasks axis or
    without, must equal the layer's result with the parameter that `Form.dense` builds: outputs, and
    gradients of the own value, the factors, the shared tensors, the inputs and the bias.

    The check runs in float64 on random numbers; torch's random state is not changed.

    Args:
        form: Form, as a user passes it.
        layers: Layers to test it in, by each of their parameters. None: every kind of layer that a
            form can answer for, with strides, padding, dilation and groups.

    Raises:
        AssertionError: With the broken rule, and a remedy; also if the form fits no parameter.

    Example:
        >>> from weightloom.forms import LowRank
        >>> check_form(LowRank(2))
    """
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        tried = False
        for layer in _layers() if layers is None else layers:
            layer = copy.deepcopy(layer).double()
            for name, parameter in layer.named_parameters():
                shape = tuple(parameter.shape)
                fitted = _fit(form, shape, layer)
                if fitted is not None:
                    tried = True
                    shared = {part: value.double() for part, value in fitted.shared(shape).items()}
                    _check_names(fitted, shape, shared)
                    _check_start(fitted, parameter.detach(), shared)
                    _check_dense(fitted, parameter.detach(), shared)
                    _check_answers(fitted, layer, name, shared)
        if not tried:
            raise AssertionError(
                f"{form} fits no parameter of any layer, so it cannot be used. Let `fit` return "
                "the form for some shapes, or pass `layers` that it fits."
            )


def _layers() -> list[nn.Module]:
    """Return small layers of every kind that a form can answer for."""
    some: dict[str, Any] = {"stride": 2, "padding": 1, "dilation": 2}
    back: dict[str, Any] = {"stride": 2, "padding": 1, "output_padding": 1}
    layers: list[nn.Module] = [
        *(nn.Linear(6, 5), nn.Linear(4, 6, bias=False)),
        *(nn.Conv1d(4, 6, 3, **some), nn.Conv2d(3, 4, 3, **some), nn.Conv3d(2, 3, 2, padding=1)),
        *(nn.Conv1d(4, 6, 1, bias=False), nn.Conv2d(4, 6, 3, groups=2, padding="same")),
        *(
            nn.ConvTranspose1d(4, 3, 3, **back),
            nn.ConvTranspose2d(3, 4, 3, **back),
            nn.ConvTranspose3d(2, 3, 2),
        ),
        *(
            nn.ConvTranspose1d(4, 6, 3, groups=2, dilation=2),
            nn.ConvTranspose2d(4, 5, 1, bias=False),
        ),
        *(nn.Embedding(7, 4), nn.Embedding(6, 5, padding_idx=2)),
    ]
    return layers


def _inputs(layer: nn.Module) -> list[Tensor]:
    """Return inputs of a layer, (tasks, ...), one for each number of axes that it accepts."""
    if isinstance(layer, nn.Embedding):
        shapes = [(TASKS, BATCH), (TASKS, BATCH, 3)]
        return [torch.randint(layer.num_embeddings, shape) for shape in shapes]
    if isinstance(layer, nn.Linear):
        width = layer.in_features
        return [
            torch.randn(TASKS, *rows, width).double() for rows in ((), (1,), (BATCH,), (BATCH, 3))
        ]
    weight, channels = layer.get_parameter("weight"), getattr(layer, "in_channels", None)
    if not isinstance(channels, int):
        return [torch.randn(TASKS, BATCH, weight.shape[-1]).double()]
    return [torch.randn(TASKS, BATCH, channels, *(6, 7, 5)[: weight.ndim - 2]).double()]


def _fit(form: Form, shape: Shape, layer: nn.Module) -> Form | None:
    fitted = form.fit(shape, layer)
    if fitted is not None and not isinstance(fitted, Form):
        raise AssertionError(
            f"`{form}.fit({shape}, ...)` returns a {type(fitted).__name__}. It decides whether and "
            "how the form fits a parameter. Return a form, `self` without a change, or None."
        )
    if fitted is not None and not fitted.factor_shapes(shape):
        raise AssertionError(
            f"`{fitted}.factor_shapes({shape})` is empty. Factors are generated, and a form needs "
            "one at least. Name it, or let `fit` return None."
        )
    return fitted


def _check_names(form: Form, shape: Shape, shared: Mapping[str, Tensor]) -> None:
    factors = form.factor_shapes(shape)
    for name, value in form.starts(shape).items():
        if name not in factors or tuple(value.shape) != tuple(factors[name]):
            raise AssertionError(
                f"`{form}.starts({shape})` holds {name!r} of shape {tuple(value.shape)}; the "
                f"factors are {factors}. "
                "A start is where a factor starts, so it has the factor's name and shape. Rename "
                "or reshape it."
            )
    if both := sorted(factors.keys() & shared.keys()):
        raise AssertionError(
            f"`{form}` names {both} as a factor and as shared. A tensor is generated per task or "
            "shared by all tasks. Give them different names."
        )


def _check_start(form: Form, own: Tensor, shared: Mapping[str, Tensor]) -> None:
    shape = tuple(own.shape)
    starts = form.starts(shape)
    factors = {
        name: starts[name].double().expand(TASKS, *its)
        if name in starts
        else own.new_zeros(TASKS, *its)
        for name, its in form.factor_shapes(shape).items()
    }
    dense = form.dense(own, {**factors, **shared})
    if tuple(dense.shape) != (TASKS, *shape):
        raise AssertionError(
            f"`{form}.dense` gives the shape {tuple(dense.shape)} for {TASKS} tasks and an own "
            f"value of shape {shape}. It builds the parameter of every task, its axis in front. "
            f"Return {(TASKS, *shape)}."
        )
    difference = _difference(dense, own.expand_as(dense))
    if not difference <= 1e-9:
        raise AssertionError(
            f"`{form}` starts away from the own value, by {difference:.2g}. With factors at "
            "`starts` (zero for those it does not name) and `shared` fresh, the parameter is the "
            "base's own, so that training starts at the base. Start one factor of a product at "
            "zero."
        )


def _check_dense(form: Form, own: Tensor, shared: Mapping[str, Tensor]) -> None:
    own, factors, shared = _generic(form, own, shared)
    dense = form.dense(own, {**factors, **shared})
    for name, value in [("own", own), *factors.items(), *shared.items()]:
        (gradient,) = torch.autograd.grad(
            _weighted(dense[1]), [value], retain_graph=True, materialize_grads=True
        )
        if not gradient.any():
            raise AssertionError(
                f"`{form}.dense` does not depend on {name!r}. Every factor and shared tensor must "
                "count. Use it, or do not name it."
            )
        if name in factors:
            _check_independence(form, name, gradient)
    squares = form.squared_norm(own, {**factors, **shared})
    if squares is not NotImplemented:
        leaves = [own, *factors.values(), *shared.values()]
        _check_squared_norm(form, squares, dense, leaves)
    alone = form.dense(own, {**{name: value[1] for name, value in factors.items()}, **shared})
    if alone.shape != own.shape or not _difference(alone, dense[1]) <= 1e-9:
        raise AssertionError(
            f"`{form}.dense` builds another parameter from the factors of one task without a tasks "
            "axis. Under `vmap` and in a loop factors have no leading axis. Count axes from the "
            "back: `flatten(-2)`, `.mT`, `[..., None]`."
        )


def _check_independence(form: Form, name: str, gradient: Tensor) -> None:
    """Check that a gradient of the parameter of task 1 by a factor is zero for other tasks."""
    others = [task for task in range(TASKS) if task != 1 and gradient[task].any()]
    if others:
        raise AssertionError(
            f"`{form}.dense` gives task 1 a parameter that depends on {name!r} of tasks {others}. "
            "Tasks are independent. Count axes from the back, and do not mix rows along axis 0, "
            "which is tasks."
        )


def _check_squared_norm(form: Form, squares: Tensor, dense: Tensor, leaves: list[Tensor]) -> None:
    truth = dense.flatten(1).square().sum(1)
    _compare(form, squares, truth, "a squared norm", "of the parameter")
    weights = torch.randn_like(truth)
    found = _gradients(squares, weights, leaves)
    for ours, its in zip(found, _gradients(truth, weights, leaves), strict=True):
        _compare(form, ours, its, "a gradient of the squared norm", "of the parameter")


def _check_answers(form: Form, layer: nn.Module, name: str, shared: Mapping[str, Tensor]) -> None:
    """Compare outputs and gradients with those of the dense parameter, by every engine."""
    for x in _inputs(layer):
        own, factors, parts = _generic(form, layer.get_parameter(name).detach(), shared)
        leaves = {"the own value": own}
        leaves |= {f"the factor {part!r}": value for part, value in factors.items()}
        leaves |= {f"the shared {part!r}": value for part, value in parts.items()}
        # Once with the layer's own bias, and once with a bias per task.
        others = [Parts()]
        if name != "bias" and getattr(layer, "bias", None) is not None:
            bias = torch.randn(TASKS, *layer.get_parameter("bias").shape).double()
            leaves["the bias"] = bias.requires_grad_()
            others.insert(0, {"bias": bias})
        if x.is_floating_point():
            leaves["the inputs"] = x.requires_grad_()
        engines: list[Engine] = ["loop", "vmap", "aligned"] if x.ndim > 2 else ["loop", "vmap"]
        for generated in others:
            dense = form.dense(own, {**factors, **parts})
            expected = apply_per_task(layer, {name: dense, **generated}, x, engine="loop")
            weights = torch.randn_like(expected)
            for engine in engines:
                shape, value = tuple(x.shape[1:]), form.value(own, factors, parts)
                where = f"in {layer} with inputs of shape {shape} and `engine={engine!r}`"
                outputs = _run(form, layer, {name: value, **generated}, x, engine, where)
                _compare(form, outputs, expected, "outputs", where)
                _compare_gradients(form, outputs, expected, weights, leaves, where)


def _compare_gradients(
    form: Form,
    ours: Tensor,
    built: Tensor,
    weights: Tensor,
    leaves: Mapping[str, Tensor],
    where: str,
) -> None:
    tensors = list(leaves.values())
    pairs = zip(
        _gradients(ours, weights, tensors), _gradients(built, weights, tensors), strict=True
    )
    for name, (found, truth) in zip(leaves, pairs, strict=True):
        _compare(form, found, truth, f"a gradient of {name}", where)


def _run(
    form: Form,
    layer: nn.Module,
    params: Mapping[str, Tensor],
    x: Tensor,
    engine: Engine,
    where: str,
) -> Tensor:
    try:
        outputs: Tensor = apply_per_task(layer, params, x, engine=engine)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        raise AssertionError(
            f"{form} cannot be used {where} ({error}). Without an answer the parameter is built, "
            "and an answer has the same leading axes as the factors: none for one task, or tasks. "
            "Return `NotImplemented` for an operation that it cannot answer."
        ) from error
    return outputs


def _compare(form: Form, ours: Tensor, built: Tensor, result: str, where: str) -> None:
    if ours.shape != built.shape:
        raise AssertionError(
            f"{form} gives {result} of shape {tuple(ours.shape)} {where}. With the parameter built "
            f"the shape is {tuple(built.shape)}. Correct its answer, or return `NotImplemented`."
        )
    difference = _difference(ours, built)
    if not difference <= 1e-9:
        raise AssertionError(
            f"{form} gives other {result} {where} than with the parameter built by `dense`: they "
            f"differ by {difference:.2g}. An answer is a shorter way to the same numbers. Correct "
            "it, or return `NotImplemented`."
        )


def _generic(form: Form, own: Tensor, shared: Mapping[str, Tensor]) -> tuple[Tensor, Parts, Parts]:
    factors = {
        name: torch.randn(TASKS, *its).double().requires_grad_()
        for name, its in form.factor_shapes(tuple(own.shape)).items()
    }
    moved = {
        name: (value + 0.1 * torch.randn_like(value)).requires_grad_()
        for name, value in shared.items()
    }
    return own.clone().requires_grad_(), factors, moved


def _gradients(outputs: Tensor, weights: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    if not outputs.requires_grad:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)
    loss = (outputs * weights).sum()
    return torch.autograd.grad(
        loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
    )


def _weighted(values: Tensor) -> Tensor:
    return (values * torch.randn_like(values)).sum()


def _difference(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / (1 + b.abs().max())) if a.numel() else 0.0
