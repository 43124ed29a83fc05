"""Check of a hypernetwork against the contract of all hypernetworks."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.forms.factored import built
from weightloom.params import ParamSpec

Inputs = tuple[Tensor, ...]


def check_hypernetwork(
    hyper: nn.Module, condition: Tensor | tuple[Tensor, ...], spec: ParamSpec | None = None
) -> None:
    """Raise an AssertionError if ``hyper`` violates the contract of hypernetworks.

    The output must be a dict of finite tensors, (tasks, *shape), with the names and shapes of the
    spec, and with the dtype of the parameters and the condition, or complex of that precision. Two
    calls must agree. A task must get the same parameters alone as in a batch, and they must depend
    on its own condition, and on no other task's. Every own trainable parameter must get a finite
    gradient that is not zero.

    The check runs on a copy in float64 with slightly perturbed parameters, because a layer that is
    zero at initialisation would hide faults. ``hyper`` and torch's random state are not changed.

    Args:
        hyper: Hypernetwork, in train or eval mode. Two kinds of parameters need no gradient: those
            of ``hyper.base`` named in ``hyper.spec.shared``, which the base uses; and those of
            ``hyper.architectures`` after the first, which belong to other bases.
        condition: Input of ``hyper`` for two or more tasks: a tensor with a leading tasks axis, or
            a tuple of such tensors.
        spec: Names and shapes of the generated parameters. None: ``hyper.spec`` if it exists.

    Raises:
        AssertionError: With the broken rule, and a remedy.

    Example:
        >>> from weightloom.hypernets import MLPHyperNetwork
        >>> check_hypernetwork(MLPHyperNetwork(nn.Linear(3, 2), condition_dim=4), torch.randn(5, 4))
    """
    inputs = condition if isinstance(condition, tuple) else (condition,)
    tasks = _count_tasks(inputs)
    spec = spec or getattr(hyper, "spec", None)
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        _check_output(_moved(hyper)(*inputs), tasks, spec)
        hyper = _in_float64(_moved(hyper))
        inputs = tuple(
            x.detach().double().requires_grad_() if x.is_floating_point() else x for x in inputs
        )
        params = _generate_in_float64(hyper, inputs)
        _check_alone(hyper, inputs, params)
        _check_gradients(hyper, params, spec)
        _check_leaks(params, [x for x in inputs if x.requires_grad], tasks)


def _count_tasks(inputs: Inputs) -> int:
    sizes = {x.shape[0] if x.ndim else 0 for x in inputs}
    if len(sizes) != 1 or min(sizes) < 2:
        raise AssertionError(
            f"`condition` holds {sorted(sizes)} tasks. The check compares tasks with each other, "
            "so it needs two or more, the same number in every tensor, on axis 0. Pass a condition "
            "as in `torch.randn(3, condition_dim)`."
        )
    return int(sizes.pop())


def _moved(hyper: nn.Module) -> nn.Module:
    """Return a copy of ``hyper`` with slightly perturbed parameters, so that none stays zero."""
    hyper = copy.deepcopy(hyper)
    with torch.no_grad():
        for parameter in hyper.parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return hyper


def _in_float64(hyper: nn.Module) -> nn.Module:
    """Cast to double precision, including complex parameters, which `nn.Module.double` skips."""
    for parameter in hyper.double().parameters():
        if parameter.is_complex():
            parameter.data = parameter.data.to(torch.complex128)
    return hyper


def _is_params(params: Any) -> bool:
    if not isinstance(params, dict) or not params:
        return False
    return all(isinstance(value, Tensor) for value in params.values())


def _check_output(params: Any, tasks: int, spec: ParamSpec | None) -> None:
    if not _is_params(params):
        raise AssertionError(
            f"`hyper(condition)` is {_kind(params)}. Params are a dict of tensors with keys as in "
            "`base.named_parameters()`. Return one, for instance `self.spec.cut(flat)`."
        )
    if spec is not None and params.keys() != spec.shapes.keys():
        raise AssertionError(
            f"`hyper(condition)` and the spec differ in "
            f"{sorted(params.keys() ^ spec.shapes.keys())}. Both must name the same parameters. "
            f"Return exactly {list(spec.shapes)}."
        )
    for name, value in params.items():
        expected = tuple(value.shape[1:]) if spec is None else spec.shapes[name]
        if tuple(value.shape) != (tasks, *expected):
            raise AssertionError(
                f"`hyper(condition)[{name!r}]` has shape {tuple(value.shape)} for {tasks} tasks. A "
                f"generated parameter has its own shape behind a leading tasks axis. Return "
                f"{(tasks, *expected)}."
            )
        if not built(value).isfinite().all():
            raise AssertionError(
                f"`hyper(condition)[{name!r}]` holds NaN or infinity. A base network cannot use "
                "it. Look for a division by zero, a logarithm or a large exponential."
            )


def _generate_in_float64(hyper: nn.Module, inputs: Inputs) -> Mapping[str, Tensor]:
    advice = (
        "Correctness is tested in float64, and users choose their dtype. "
        "Make constants with `torch.zeros(..., dtype=x.dtype)` or `x.new_zeros(...)`, or register "
        "them as buffers."
    )
    try:
        params: Mapping[str, Tensor] = hyper(*inputs)
    except RuntimeError as error:
        raise AssertionError(
            f"`hyper.double()` cannot read a float64 condition ({error}). {advice}"
        ) from error
    for name, value in params.items():
        if value.dtype not in (torch.float64, torch.complex128):
            raise AssertionError(f"`hyper.double()` generates {name!r} in {value.dtype}. {advice}")
    return params


def _check_alone(hyper: nn.Module, inputs: Inputs, params: Mapping[str, Tensor]) -> None:
    again = hyper(*inputs)
    for name, value in params.items():
        if not torch.equal(built(value), built(again[name])):
            raise AssertionError(
                f"`hyper(condition)[{name!r}]` differs between two calls with the same condition. "
                "Parameters follow from the condition alone. Switch dropout and the like off with "
                "`hyper.eval()`, or take it out."
            )
    advice = (
        "A task's parameters follow from its own condition. Do not normalise or pool over axis 0, "
        "which is tasks; where a BatchNorm does it, use nn.LayerNorm."
    )
    tasks = len(inputs[0])
    for task in range(tasks):
        try:
            alone = hyper(*(x[task : task + 1] for x in inputs))
        except (RuntimeError, ValueError) as error:
            raise AssertionError(
                f"`hyper` cannot read one task alone ({error}). {advice}"
            ) from error
        for name, value in params.items():
            difference = (alone[name][0] - value[task]).abs().max().item()
            if not difference <= 1e-9 * (1 + value[task].abs().max().item()):
                raise AssertionError(
                    f"Task {task} alone gets another {name!r} than in a batch of {tasks}: they "
                    f"differ by {difference:.2g}. {advice}"
                )


def _check_leaks(params: Mapping[str, Tensor], leaves: Sequence[Tensor], tasks: int) -> None:
    """Check by gradients that the parameters of a task depend on its own condition only."""
    if not leaves:
        return
    used = False
    for task in range(tasks):
        row = _generic_loss({name: value[task] for name, value in params.items()})
        gradients = (
            torch.autograd.grad(row, leaves, retain_graph=True, materialize_grads=True)
            if row.grad_fn
            else ()
        )
        touched = [(g.flatten(1) != 0).any(1) for g in gradients]
        reached = set(torch.stack(touched).any(0).nonzero().flatten().tolist() if touched else [])
        used = used or task in reached
        if reached - {task}:
            raise AssertionError(
                f"The parameters of task {task} depend on the conditions of tasks "
                f"{sorted(reached - {task})}. Tasks are independent. Do not mix rows along axis 0, "
                "which is tasks."
            )
    if not used:
        raise AssertionError(
            "The generated parameters do not depend on the condition. A hypernetwork that ignores "
            "the condition gives every task the same network. Look for a `detach()`, or for a "
            "layer whose output is constant."
        )


def _check_gradients(
    hyper: nn.Module, params: Mapping[str, Tensor], spec: ParamSpec | None
) -> None:
    exempt = _ids_used_by_base(hyper, spec) | _ids_of_other_architectures(hyper)
    own = {n: p for n, p in hyper.named_parameters() if p.requires_grad and id(p) not in exempt}
    loss = _generic_loss(params)
    gradients: Sequence[Tensor | None] = [None] * len(own)
    if own and loss.requires_grad:
        leaves = list(own.values())
        gradients = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    for name, gradient in zip(own, gradients, strict=True):
        _check_gradient(name, gradient)


def _ids_used_by_base(hyper: nn.Module, spec: ParamSpec | None) -> set[int]:
    base, own_spec = getattr(hyper, "base", None), getattr(hyper, "spec", spec)
    if not isinstance(base, nn.Module) or own_spec is None:
        return set()
    return {id(base.get_parameter(name)) for name in own_spec.shared}


def _ids_of_other_architectures(hyper: nn.Module) -> set[int]:
    others = list(getattr(hyper, "architectures", []))[1:]
    return {id(parameter) for other in others for parameter in other.parameters()}


def _check_gradient(name: str, gradient: Tensor | None) -> None:
    if gradient is None or not gradient.any():
        why = "is not used" if gradient is None else "has the gradient zero everywhere"
        raise AssertionError(
            f"The parameter {name!r} {why}, so no loss on the generated parameters can train it. "
            "Every own parameter must count. Remove it, use it, or call `requires_grad_(False)` on "
            "it."
        )
    if not gradient.isfinite().all():
        raise AssertionError(
            f"The gradient of the parameter {name!r} holds NaN or infinity. One step with it "
            "would spoil every parameter. Look for a square root at zero, a division by zero "
            "or a large exponential."
        )


def _generic_loss(params: Mapping[str, Tensor]) -> Tensor:
    """Return a sum with a random weight per number, so that no terms cancel."""
    dense = [built(value) for value in params.values()]
    real = [torch.view_as_real(value) if value.is_complex() else value for value in dense]
    return torch.stack([(value * torch.randn_like(value)).sum() for value in real]).sum()


def _kind(params: Any) -> str:
    if not isinstance(params, dict):
        return f"a {type(params).__name__}"
    return (
        "an empty dict"
        if not params
        else f"a dict of {sorted({type(value).__name__ for value in params.values()})}"
    )
