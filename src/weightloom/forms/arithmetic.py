"""Params as values: changes added, tasks averaged, two sets of parameters mixed or held against each other.

In:   Params, of tensors or of parameters held as factors; one set or two that name the same
      parameters.
Out:  Params again, held as factors wherever that is exact; or a distance per task.
Knows nothing of how the parameters were generated or what they are used for.

**When a mean of networks means nothing.** Hidden units can change places without changing what a
network computes, so two networks that were trained apart hold the same function in another order,
and the mean of the two is neither. Parameters that one hypernetwork generates come from one start,
the base's own values, and keep its order of units: these can be added, averaged and mixed. Values
held as factors are refused where they do not start from the same own value. Plain tensors cannot
tell, so keep to what one hypernetwork generated.
"""

from collections.abc import Mapping, Sequence
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

    Both hold the own value and a change, so their plain sum would count the own value twice.
    Changes of low rank become one of the summed rank, gains and mixtures are summed; what has no
    such exact sum, or where the summed rank would be no smaller than the parameter, is built.

    Args:
        a: Generated parameters per task.
        b: The same parameters, for as many tasks or for one, which is then added to all.
        own: The base, as in ``hyper.base``, or its own values by name. Needed for what both hold as
            plain tensors.
        scale: How much of the change of ``b``; -1 takes it away.

    Raises:
        ShapeError: If the two differ in names, shapes or number of tasks.
        ConfigError: If the own values differ, or are not known.

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
    """Average parameters over tasks: a set for one task, or for each group of tasks.

    Gains and mixtures are averaged; changes of low rank stand side by side in one of the summed
    rank, as long as that is below the parameter's own sides. Everything else is built. The room's
    docstring says when a mean means nothing.

    Args:
        params: Generated parameters per task.
        weights: How much each task counts, (tasks,), or per group, (groups, tasks): divided by
            their sum. None counts all tasks alike.

    Returns:
        Params for one task, or for ``groups`` of them.

    Raises:
        ShapeError: If ``weights`` has another number of tasks.
        ConfigError: If the weights of a group do not have a sum above zero.

    Example:
        >>> average({"bias": torch.tensor([[1.0], [2.0], [6.0]])})["bias"]
        tensor([[3.]])

    Source:
        Wortsman et al., "Model soups" (2022), equation 1 (the uniform soup), of generated networks.
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
    """Mix two sets, number by number: (1 - share) a + share b.

    Args:
        a: Generated parameters per task: what comes out with a share of 0.
        b: The same parameters, for as many tasks or for one: what comes out with a share of 1.
        share: One number, or one per task. Beyond 0 and 1 it extrapolates.

    Raises:
        ShapeError: If the two differ in names, shapes or number of tasks, or ``share`` has another
            number of tasks.
        ConfigError: If the own values of two that are held as factors differ.

    Example:
        >>> a, b = {"bias": torch.zeros(1, 2)}, {"bias": torch.ones(1, 2)}
        >>> interpolate(a, b, 0.25)["bias"]
        tensor([[0.2500, 0.2500]])
    """
    tasks = _check_alike(a, b)
    if isinstance(share, Tensor) and share.ndim and share.shape[0] not in (1, tasks):
        raise ShapeError(
            f"`share` has shape {tuple(share.shape)} for {tasks} tasks. It says how much of `b` "
            f"each task takes. Pass one number, or a tensor of shape ({tasks},)."
        )
    return Params({name: _mixed(name, value, b[name], share) for name, value in a.items()})


def distance(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor], relative: bool = False
) -> Float[Tensor, " tasks"]:
    """Return how far two sets are apart, per task.

    The L2 norm of the difference over all parameters.

    Args:
        a: Generated parameters per task.
        b: The same parameters, for as many tasks or for one.
        relative: As a share of the norm of ``b``.

    Raises:
        ShapeError: If the two differ in names, shapes or number of tasks, or hold no parameter.

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
    """Return the squared L2 norm of the parameters, own value and change together.

    What weight decay takes.

    Changes of low rank, gains and mixtures are squared without being built, exactly; in other forms
    of yours, which do not answer ``squared_norm``, one task is built after the other.

    Args:
        params: Generated parameters per task.
        by: ``"task"`` sums over all parameters of a task; ``"name"`` keeps parameters apart.

    Returns:
        Per task, (tasks,); by name, a dict of these, one for each parameter.

    Raises:
        ShapeError: If ``params`` holds no parameter, or two values disagree on the number of tasks.
        ConfigError: If ``by`` is neither.

    Example:
        >>> params = {"weight": torch.ones(2, 3, 4), "bias": torch.zeros(2, 3)}
        >>> squared_norm(params), squared_norm(params, by="name")["bias"]
        (tensor([12., 12.]), tensor([0., 0.]))
    """
    return Params(params).squared_norm(by)


def _norm(value: Tensor) -> Tensor:
    """Norm per task; its gradient at zero is zero."""
    return torch.linalg.vector_norm(value.reshape(len(value), -1), dim=1)


def _joint(norms: list[Tensor]) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(norms), dim=0)


def _added(name: str, a: Tensor, b: Tensor, owns: Mapping[str, Tensor], scale: float) -> Tensor:
    form = _common(name, a, b)
    if form is not None:
        assert isinstance(a, Factored) and isinstance(b, Factored)
        if form.is_linear:
            return _from(
                a,
                form,
                {factor: value + scale * b.factors[factor] for factor, value in a.factors.items()},
            )
        if (total := _stacked(a, [a.factors, b.factors], [1.0, scale])) is not None:
            return total
    held = next((value for value in (a, b) if isinstance(value, Factored)), None)
    own = owns.get(name) if held is None else held.own
    if own is None:
        raise ConfigError(
            f"The own value of {name!r} is not known: it is held as a plain tensor, own value and "
            "change in one. A sum of changes must count the own value once. Pass `own=hyper.base`, "
            "or a dict that holds it."
        )
    return built(a) + scale * (built(b) - own)


def _mixed(name: str, a: Tensor, b: Tensor, share: float | Tensor) -> Tensor:
    form = _common(name, a, b)
    if form is not None:
        assert isinstance(a, Factored) and isinstance(b, Factored)
        if form.is_affine:
            return _from(
                a, form, {f: _mix(value, b.factors[f], share) for f, value in a.factors.items()}
            )
        if (total := _stacked(a, [a.factors, b.factors], [1 - share, share])) is not None:
            return total
    return _mix(built(a), built(b), share)


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
    """Hold a weighed sum of changes as its form can; build it where that saves nothing."""
    held = like.form.stacked(changes, weights)
    if held is None:
        return None
    value = _from(like, *held)
    return value if value.form.fit(tuple(like.own.shape), nn.Identity()) else value.dense()


def _from(like: Factored, form: Form, factors: Parts) -> Factored:
    return Factored(form, like.own, factors, like.shared)


def _common(name: str, a: Tensor, b: Tensor) -> Form | None:
    """The form in which both are held, with the same own value and the same shared tensors.

    None to build them.
    """
    if not isinstance(a, Factored) or not isinstance(b, Factored):
        return None
    if not _same(a.own, b.own):
        raise ConfigError(
            f"{name!r} starts from another own value in `a` than in `b`. Changes and means belong "
            "to one start: units of networks that were trained apart stand in another order. "
            "Generate both by one hypernetwork, or pass `value.dense()` for both to mix the "
            "numbers all the same."
        )
    if not a.form.joins(b.form) or not all(_same(a.shared[n], b.shared[n]) for n in a.shared):
        return None
    return a.form


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.device == b.device and a.dtype == b.dtype and torch.equal(a, b))


def _shares(weights: Tensor | None, tasks: int, like: Tensor) -> Tensor:
    """Weights as (groups, tasks), the sum of each row one."""
    if weights is None:
        return torch.full((1, tasks), 1 / tasks, dtype=like.dtype, device=like.device)
    if weights.ndim not in (1, 2) or weights.shape[-1] != tasks:
        raise ShapeError(
            f"`weights` has shape {tuple(weights.shape)}. It says how much each of {tasks} tasks "
            f"counts. Pass a tensor of shape ({tasks},), or of shape (groups, {tasks}) for several "
            "means."
        )
    groups = weights.reshape(-1, tasks)
    totals = groups.sum(1, keepdim=True)
    if not bool((totals > 0).all()):
        raise ConfigError(
            f"`weights` have the sum {totals.min().item():g}. They are divided by it, so that they "
            "sum to one. Pass weights with a sum above zero."
        )
    return groups / totals


def _check_alike(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> int:
    """Raise unless both name the same parameters, of the same shapes.

    Return the number of tasks.
    """
    if a.keys() != b.keys():
        raise ShapeError(
            f"`a` and `b` differ in {sorted(a.keys() ^ b.keys())}. Both must name the same "
            "parameters. Generate both by one hypernetwork, or leave out what only one has."
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
            f"`a` holds {tasks[0]} tasks and `b` {tasks[1]}. Tasks are taken in pairs, or one is "
            "paired with all. Pass as many in both, or one: `{name: value[:1] for name, value in "
            "b.items()}`."
        )
    return max(tasks)
