"""Arithmetic on Params: sums of changes, means over tasks, interpolation, distance, norm.

In:   Params of tensors or of parameters held as factors; one set, or two that name the same
      parameters.
Out:  Params, held as factors wherever that is exact; or a distance or norm per task.
Knows nothing of how the parameters were generated or used.

**When a mean of networks is meaningless.** Permuting the hidden units of a network leaves its
function unchanged, so two networks that were trained separately may hold similar functions in
different orders of units, and their mean computes neither. Parameters from one hypernetwork share
one start, the base's own values, and its order of units, so they can be added, averaged and
interpolated. Two values held as factors must have equal own values, or a `ConfigError` is raised.
For plain tensors this cannot be checked: use parameters from one hypernetwork only.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.errors import ConfigError, ShapeError
from weightloom.forms.factored import Factored, built
from weightloom.forms.form import Form, Parts, along
from weightloom.params import Params, count_tasks, parameters_by_name


def add(
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    own: nn.Module | Mapping[str, Tensor] | None = None,
    scale: float = 1.0,
) -> Params:
    """Add the changes of two sets: own + Δa + scale · Δb.

    Both values contain the own value, so their plain sum would count it twice. Low-rank changes
    become one change of the summed rank; gains and mixtures are summed. A parameter is built if its
    form has no exact sum, or if the summed rank would not be below its smaller matrix side.

    Args:
        a: Generated parameters per task.
        b: The same parameters, for the same number of tasks, or for one task that is added to all.
        own: The base, such as ``hyper.base``, or its own values by name. Required for parameters
            that are plain tensors in both sets.
        scale: Factor of the change of ``b``; -1 subtracts it.

    Raises:
        ShapeError: If the two differ in names, shapes or number of tasks.
        ConfigError: If the own values differ, or a required own value is missing.

    Example:
        >>> base = nn.Linear(3, 2)
        >>> change = {"bias": base.bias.detach() + torch.ones(5, 2)}
        >>> torch.allclose(add(change, change, own=base)["bias"], base.bias + 2)
        True

    Source:
        Ilharco et al., "Editing models with task arithmetic" (2023), section 2, where Δ is a task
        vector.
    """
    _check_alike(a, b)
    if isinstance(own, nn.Module):
        own = dict(parameters_by_name(own))
    return Params(
        {name: _added(name, value, b[name], own or {}, scale) for name, value in a.items()}
    )


def average(
    params: Mapping[str, Tensor], weights: Float[Tensor, "*groups tasks"] | None = None
) -> Params:
    """Average parameters over tasks, into one set or into one set per group of tasks.

    Gains and mixtures are averaged; low-rank changes are concatenated into one of the summed rank
    if that stays below the smaller matrix side. Everything else is built. The docstring of this
    module explains when a mean is meaningless.

    Args:
        params: Generated parameters per task.
        weights: Weight of each task, (tasks,), or per group, (groups, tasks). Each group is
            normalised by its sum. None gives all tasks the same weight.

    Returns:
        Params with a tasks axis of 1, or of ``groups``. Empty if ``params`` is.

    Raises:
        ShapeError: If ``weights`` is not (tasks,) or (groups, tasks), or two values disagree on the
            number of tasks.
        ConfigError: If the weights of a group do not sum to more than zero.

    Example:
        >>> average({"bias": torch.tensor([[1.0], [2.0], [6.0]])})["bias"]
        tensor([[3.]])

    Source:
        Wortsman et al., "Model soups" (2022), equation 1 (the uniform soup), here of generated
        networks.
    """
    tasks = count_tasks(params)
    if tasks is None:
        return Params()
    first = next(iter(params.values()))
    shares = _shares(weights, tasks, first)
    return Params(
        {name: _averaged(value, shares.to(value.dtype)) for name, value in params.items()}
    )


def interpolate(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], share: float | Float[Tensor, " tasks"]
) -> Params:
    """Interpolate linearly between two sets: (1 - share) a + share b.

    Args:
        a: Generated parameters per task, the result for a share of 0.
        b: The same parameters, for the same number of tasks or for one; the result for a share
            of 1.
        share: One number, or one per task, (tasks,). Values outside [0, 1] extrapolate.

    Raises:
        ShapeError: If the two differ in names, shapes or number of tasks, or ``share`` does not
            hold one number or one per task.
        ConfigError: If two values held as factors have different own values.

    Example:
        >>> a, b = {"bias": torch.zeros(1, 2)}, {"bias": torch.ones(1, 2)}
        >>> interpolate(a, b, 0.25)["bias"]
        tensor([[0.2500, 0.2500]])
    """
    tasks = _check_alike(a, b)
    if isinstance(share, Tensor) and share.ndim and share.shape[0] not in (1, tasks):
        raise ShapeError(
            f"`share` has shape {tuple(share.shape)} for {tasks} tasks. It is the share of "
            f"`b` in each task. Pass one number, or a tensor of shape ({tasks},)."
        )
    return Params({name: _mixed(name, value, b[name], share) for name, value in a.items()})


def distance(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], relative: bool = False
) -> Float[Tensor, " tasks"]:
    """Distance between two sets: L2 norm of the difference over all parameters, (tasks,).

    Args:
        a: Generated parameters per task.
        b: The same parameters, for the same number of tasks or for one.
        relative: Divide by the norm of ``b``.

    Raises:
        ShapeError: If the two differ in names, shapes or number of tasks, or are empty.

    Example:
        >>> distance({"bias": torch.tensor([[3.0, 4.0]])}, {"bias": torch.zeros(1, 2)})
        tensor([5.])
    """
    _check_alike(a, b)
    if not a:
        raise ShapeError(
            "`a` and `b` hold no parameter. A distance needs numbers to compare. Pass generated "
            "Params."
        )
    apart = _joint([_norm(built(value) - built(b[name])) for name, value in a.items()])
    return apart / _joint([_norm(built(value)) for value in b.values()]) if relative else apart


@overload
def squared_norm(params: Mapping[str, Tensor], by: Literal["task"] = "task") -> Tensor: ...


@overload
def squared_norm(params: Mapping[str, Tensor], by: Literal["name"]) -> dict[str, Tensor]: ...


def squared_norm(
    params: Mapping[str, Tensor], by: Literal["task", "name"] = "task"
) -> Tensor | dict[str, Tensor]:
    """Squared L2 norm of the parameters (own value plus change), as used for weight decay.

    Low-rank changes, gains and mixtures are squared exactly without being built. A custom form that
    does not implement ``squared_norm`` is built one task at a time.

    Args:
        params: Generated parameters per task.
        by: ``"task"`` sums over all parameters of a task; ``"name"`` returns one norm per
            parameter.

    Returns:
        The squared norms, (tasks,); with ``by="name"`` a dict of such tensors, one per parameter.

    Raises:
        ShapeError: If ``params`` is empty, or two values disagree on the number of tasks.
        ConfigError: If ``by`` is neither ``"task"`` nor ``"name"``.

    Example:
        >>> params = {"weight": torch.ones(2, 3, 4), "bias": torch.zeros(2, 3)}
        >>> squared_norm(params), squared_norm(params, by="name")["bias"]
        (tensor([12., 12.]), tensor([0., 0.]))
    """
    return Params(params).squared_norm(by)


def _norm(value: Tensor) -> Tensor:
    """L2 norm per task; its gradient at zero is zero."""
    return torch.linalg.vector_norm(value.reshape(len(value), -1), dim=1)


def _joint(norms: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(norms), dim=0)


def _added(name: str, a: Tensor, b: Tensor, owns: Mapping[str, Tensor], scale: float) -> Tensor:
    held = _combined(
        name, a, b, [1.0, scale], lambda form: form.is_linear, lambda x, y: x + scale * y
    )
    if held is not None:
        return held
    first = next((value for value in (a, b) if isinstance(value, Factored)), None)
    own = owns.get(name) if first is None else first.own
    if own is None:
        raise ConfigError(
            f"The own value of {name!r} is not known: it is held as a plain tensor, own value and "
            "change in one. A sum of changes must count the own value once. Pass `own=hyper.base`, "
            "or a dict that holds it."
        )
    return built(a) + scale * (built(b) - own)


def _mixed(name: str, a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    held = _combined(
        name, a, b, [1 - share, share], lambda form: form.is_affine, lambda x, y: _mix(x, y, share)
    )
    return _mix(built(a), built(b), share) if held is None else held


def _combined(
    name: str,
    a: Tensor,
    b: Tensor,
    weights: Sequence[float | Tensor],
    is_exact: Callable[[Form], bool],
    combine: Callable[[Tensor, Tensor], Tensor],
) -> Tensor | None:
    """Weighted sum of two changes, by their factors; None if both must be built first.

    Args:
        name: Name of the parameter, for errors.
        a: One value.
        b: The other.
        weights: Weight of each, for forms that stack factors.
        is_exact: True for forms whose factors can be combined one by one.
        combine: Combines two factors.
    """
    if not isinstance(a, Factored) or not isinstance(b, Factored):
        return None
    form = _common(name, a, b)
    if form is None:
        return None
    if is_exact(form):
        return _from(a, form, {f: combine(value, b.factors[f]) for f, value in a.factors.items()})
    return _stacked(a, [a.factors, b.factors], weights)


def _mix(a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    share = along(share, a)
    return (1 - share) * a + share * b


def _averaged(value: Tensor, shares: Tensor) -> Tensor:
    if isinstance(value, Factored):
        if value.form.is_affine:
            return value.map(lambda factor: torch.tensordot(shares, factor, 1))
        tasks = [
            {name: factor[task, None] for name, factor in value.factors.items()}
            for task in range(len(value))
        ]
        if (mean := _stacked(value, tasks, shares.unbind(1))) is not None:
            return mean
    return torch.tensordot(shares, built(value), 1)


def _stacked(
    like: Factored, changes: Sequence[Parts], weights: Sequence[float | Tensor]
) -> Tensor | None:
    """Weighted sum of changes as stacked factors, or built if these save no memory.

    None if the form has no stacked sum.
    """
    held = like.form.stacked(changes, weights)
    if held is None:
        return None
    value = _from(like, *held)
    return value if value.form.fit(tuple(like.own.shape), nn.Identity()) else value.dense()


def _from(like: Factored, form: Form, factors: Parts) -> Factored:
    return Factored(form, like.own, factors, like.shared)


def _common(name: str, a: Factored, b: Factored) -> Form | None:
    """Common form of two values; None if they differ in form or shared tensors.

    Raises:
        ConfigError: If their own values differ.
    """
    if not _same(a.own, b.own):
        raise ConfigError(
            f"{name!r} has another own value in `a` than in `b`. Sums and means of changes need "
            "one common own value: networks that were trained separately order their units "
            "differently. Generate both by one hypernetwork, or pass `value.dense()` for both to "
            "combine the numbers regardless."
        )
    if not a.form.joins(b.form) or not all(_same(a.shared[n], b.shared[n]) for n in a.shared):
        return None
    return a.form


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.device == b.device and a.dtype == b.dtype and torch.equal(a, b))


def _shares(weights: Tensor | None, tasks: int, like: Tensor) -> Tensor:
    """Weights as (groups, tasks), each row normalised to the sum 1."""
    if weights is None:
        return torch.full((1, tasks), 1 / tasks, dtype=like.dtype, device=like.device)
    if weights.ndim not in (1, 2) or weights.shape[-1] != tasks:
        raise ShapeError(
            f"`weights` has shape {tuple(weights.shape)}. It holds the weight of each of {tasks} "
            f"tasks. Pass a tensor of shape ({tasks},), or of shape (groups, {tasks}) for several "
            "means."
        )
    groups = weights.reshape(-1, tasks)
    totals = groups.sum(1, keepdim=True)
    if not bool((totals > 0).all()):
        raise ConfigError(
            f"`weights` have the sum {totals.min().item():g}. They are divided by their sum. Pass "
            "weights with a sum above zero."
        )
    return groups / totals


def _check_alike(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> int:
    """Return the number of tasks of two sets that can be paired.

    Raises:
        ShapeError: If names, shapes or numbers of tasks differ.
    """
    if a.keys() != b.keys():
        raise ShapeError(
            f"`a` and `b` differ in {sorted(a.keys() ^ b.keys())}. Both must name the same "
            "parameters. Generate both by one hypernetwork, or drop the names that only one has."
        )
    tasks = [count_tasks(a) or 1, count_tasks(b) or 1]
    for name, value in a.items():
        if value.shape[1:] != b[name].shape[1:]:
            raise ShapeError(
                f"`a[{name!r}]` has shape {tuple(value.shape)} and `b[{name!r}]` "
                f"{tuple(b[name].shape)}. Behind the "
                "tasks axis they must be the same. Generate both for the same base."
            )
    if tasks[0] != tasks[1] and 1 not in tasks:
        raise ShapeError(
            f"`a` holds {tasks[0]} tasks and `b` {tasks[1]}. Tasks are combined in pairs, or "
            "one task with all. Pass the same number in both, or one task: `{name: value[:1] for "
            "name, value in b.items()}`."
        )
    return max(tasks)
