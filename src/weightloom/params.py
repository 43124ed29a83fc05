"""Generated parameters: their selection, shapes and containers, used by all other modules.

In:   a base network, and selectors (globs, module classes, predicates) of its generated parameters.
Out:  `ParamSpec`, their names and shapes; conversions between one flat vector per task and
      `Params`, a dict of values that can be split and joined along the tasks axis.
Knows nothing of how parameters are generated or used. Functions of this library that take `Params`
accept any mapping from names to tensors, such as a dict.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from importlib import import_module
from math import prod
from typing import Any, Literal, TypeVar, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.serialization import add_safe_globals
from torch.utils._pytree import MappingKey, register_pytree_node, tree_map

from weightloom.errors import ConfigError, ShapeError, nearest

Shape = tuple[int, ...]
"""Shape of a parameter, without the tasks axis."""

Index = int | slice | Sequence[int] | Tensor
"""Selection of tasks: one number, several numbers, a slice, or one bool per task."""

Selector = str | type[nn.Module] | Callable[[str, nn.Parameter], bool]
"""Selection of parameters: a glob for their names, a class of their modules, or a predicate.

A predicate is called with name and parameter, as in ``lambda name, parameter: parameter.ndim > 1``.
"""


Key = TypeVar("Key")
Value = TypeVar("Value")


class Params(dict[str, Tensor]):
    """Generated parameters: keys as in ``named_parameters()``, each value ``(tasks, *shape)``.

    A dict that is also a pytree (`torch.utils._pytree`), whose leaves are the values, or the
    factors of values held as factors. Methods return new objects and do not change these Params.
    They work on factors without building a parameter, except where noted.

    Example:
        >>> params = Params(weight=torch.randn(5, 2, 3), bias=torch.zeros(5, 2))
        >>> some = params.take([0, 3])
        >>> some.tasks, Params.cat([params, some]).tasks
        (2, 7)
        >>> one = {name: value[0] for name, value in params.items()}
        >>> Params.stack([one, one])["weight"].shape
        torch.Size([2, 2, 3])
    """

    @property
    def tasks(self) -> int | None:
        """Number of tasks; None if the dict is empty.

        Raises:
            ShapeError: If two values disagree on it, or one has no axis.
        """
        return count_tasks(self)

    def take(self, index: Index) -> "Params":
        """Select tasks; the result always keeps a tasks axis.

        Args:
            index: Task numbers as a list or tensor, in the order of the result, negative ones
                counted from the end; a slice; one bool per task; or one number, which gives a tasks
                axis of 1.

        Raises:
            ShapeError: If a task number is out of range, or bools are not one per task.
            ConfigError: If ``index`` has another type or dtype, or more than one axis.

        Example:
            >>> params = Params(bias=torch.tensor([[0.0], [1.0], [2.0]]))
            >>> params.take(-1)["bias"]
            tensor([[2.]])
            >>> params.take(torch.tensor([True, False, True]))["bias"].flatten()
            tensor([0., 2.])
        """
        tasks = count_tasks(self)
        if tasks is None:
            return Params()
        place = _place(index, tasks)
        if isinstance(place, slice):
            return Params({name: value[place] for name, value in self.items()})
        return Params(
            {name: value.index_select(0, place.to(value.device)) for name, value in self.items()}
        )

    @classmethod
    def cat(cls, sets: Iterable[Mapping[str, Tensor]]) -> "Params":
        """Concatenate several sets along the tasks axis.

        Values held as factors stay so if form, own value and shared tensors agree in all sets, as
        they do in sets from one hypernetwork; else they are built.

        Args:
            sets: One set or more, with the same names.

        Raises:
            ShapeError: If the sets differ in names, or none is given.
        """
        sets = list(sets)
        return cls({name: torch.cat([its[name] for its in sets]) for name in _names_of(sets)})

    @classmethod
    def stack(cls, sets: Iterable[Mapping[str, Tensor]]) -> "Params":
        """Stack sets of one task each, without a tasks axis, along a new tasks axis.

        Values held as factors are stacked as in `cat`.

        Args:
            sets: One set or more, with the same names.

        Raises:
            ShapeError: If the sets differ in names, none is given, or a value held as factors
                already has a tasks axis.
        """
        sets = list(sets)
        for name, value in [item for its in sets for item in its.items()]:
            if getattr(value, "lead", 0):
                raise ShapeError(
                    f"The value of {name!r} is held as factors of {value.shape[0]} tasks. A stack "
                    "adds a tasks axis to values without one. Type `Params.cat(sets)`."
                )
        return cls({name: torch.stack([its[name] for its in sets]) for name in _names_of(sets)})

    def sub(self, prefix: str) -> "Params":
        """Parameters of one sub-module, by their names in it; the same as the function `sub`.

        Args:
            prefix: Name of the sub-module, without a trailing dot.

        Raises:
            ConfigError: If no parameter has the prefix.
        """
        return sub(self, prefix)

    def to(self, *args: Any, **kwargs: Any) -> "Params":
        """Move or cast all values like ``Tensor.to``: also factors, own values, shared tensors."""
        return Params({name: value.to(*args, **kwargs) for name, value in self.items()})

    def detach(self) -> "Params":
        """Detach all values from the autograd graph, without copying memory."""
        return Params({name: value.detach() for name, value in self.items()})

    def clone(self) -> "Params":
        """Copy all values: factors, own values and shared tensors included.

        Later steps of an optimiser do not change the copy.
        """
        return Params({name: value.clone() for name, value in self.items()})

    def map(self, function: Callable[[Tensor], Tensor]) -> "Params":
        """Apply a function to every plain value, and to every factor of the other values.

        The base's own values and the tensors shared by tasks are not passed to it.

        Args:
            function: Takes and returns a tensor; it must keep all axes behind the tasks axis.
        """
        return tree_map(function, self)

    @overload
    def squared_norm(self, by: Literal["task"] = "task") -> Tensor: ...

    @overload
    def squared_norm(self, by: Literal["name"]) -> dict[str, Tensor]: ...

    def squared_norm(self, by: Literal["task", "name"] = "task") -> Tensor | dict[str, Tensor]:
        """Squared L2 norm, as by `weightloom.forms.arithmetic.squared_norm`.

        Args:
            by: ``"task"`` sums over all parameters of a task; ``"name"`` gives one norm per
                parameter.

        Returns:
            The squared norms, (tasks,), or a dict of such tensors by name.

        Raises:
            ShapeError: If these Params are empty, or two values disagree on the number of tasks.
            ConfigError: If ``by`` is neither ``"task"`` nor ``"name"``.
        """
        if by not in ("task", "name"):
            raise ConfigError(
                f"`by={by!r}` is unknown. Squares are summed over all parameters of a task, or "
                "over each alone. Pass "
                '`by="task"` or `by="name"`.'
            )
        if count_tasks(self) is None:
            raise ShapeError(
                "`params` holds no parameter. A norm needs numbers to square. Pass generated "
                "Params."
            )
        squares = {name: _squared(value) for name, value in self.items()}
        return squares if by == "name" else torch.stack(list(squares.values())).sum(0)

    def copy(self) -> "Params":
        """Return new Params that hold the same tensors."""
        return Params(self)

    def __reduce__(self) -> Any:
        return Params, (dict(self),)  # a form that `torch.load` accepts

    def __add__(self, other: Mapping[str, Tensor]) -> "Params":
        """Add the changes, as `weightloom.forms.arithmetic.add` does: own + Δa + Δb."""
        return _values().add(self, other) if isinstance(other, Mapping) else NotImplemented

    @overload
    def __or__(self, other: dict[str, Tensor]) -> "Params": ...

    @overload
    def __or__(self, other: dict[Key, Value]) -> dict[str | Key, Tensor | Value]: ...

    def __or__(self, other: Any) -> Any:
        return Params({**self, **other}) if isinstance(other, Mapping) else NotImplemented

    @overload
    def __ror__(self, other: dict[str, Tensor]) -> "Params": ...

    @overload
    def __ror__(self, other: dict[Key, Value]) -> dict[str | Key, Tensor | Value]: ...

    def __ror__(self, other: Any) -> Any:
        return Params({**other, **self}) if isinstance(other, Mapping) else NotImplemented


def _squared(value: Tensor) -> Tensor:
    """Squared norm per task; values held as factors compute it themselves."""
    held = getattr(value, "squared_norm", None)
    return value.reshape(value.shape[0], -1).square().sum(1) if held is None else held()


def _values() -> Any:
    """Module of arithmetic on whole sets, imported late since it imports this one."""
    return import_module("weightloom.forms.arithmetic")


def _place(index: Any, tasks: int) -> slice | Tensor:
    """Valid, nonnegative task numbers, or a slice."""
    if isinstance(index, slice):
        return index
    place = index if isinstance(index, Tensor) else _tensor_of(index)
    if place is None or place.ndim > 1 or place.dtype.is_floating_point or place.dtype.is_complex:
        given = (
            f"a tensor of shape {tuple(index.shape)}, {index.dtype}"
            if isinstance(index, Tensor)
            else repr(index)
        )
        raise ConfigError(
            f"`index` is {given}. It says which of {tasks} tasks to take. Pass task numbers as a "
            "list or a tensor of one axis, one bool per task, a slice, or one number."
        )
    return _places_of_bools(place, tasks) if place.dtype == torch.bool else _counted(place, tasks)


def _places_of_bools(index: Tensor, tasks: int) -> Tensor:
    if index.shape != (tasks,):
        raise ShapeError(
            f"`index` holds bools of shape {tuple(index.shape)} for {tasks} tasks. Each says "
            f"of one task whether it is taken. Pass {tasks} of them, or task numbers."
        )
    return index.nonzero()[:, 0]


def _counted(index: Tensor, tasks: int) -> Tensor:
    """Task numbers from 0, where negative ones count from the end; checked outside compilation."""
    place = index.reshape(-1).long()
    if not torch.compiler.is_compiling() and place.numel():
        least, most = place.min().item(), place.max().item()
        if least < -tasks or most >= tasks:
            raise ShapeError(
                f"`index` asks for task {most if most >= tasks else least} of {tasks}. Tasks are "
                f"counted from 0, or from -1 backwards. Pass numbers from {-tasks} to {tasks - 1}."
            )
    return torch.where(place < 0, place + tasks, place)


def _tensor_of(index: Any) -> Tensor | None:
    """Tensor of a list or an integer; None if torch cannot make one."""
    try:
        return torch.as_tensor(
            index if len(index) else [], dtype=None if len(index) else torch.long
        )
    except TypeError:
        is_number = isinstance(index, int) and not isinstance(index, bool)
        return torch.as_tensor(index) if is_number else None
    except (ValueError, RuntimeError):
        return None


def _names_of(sets: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """Names of all sets, which must be the same; raises a `ShapeError`."""
    if not sets:
        raise ShapeError(
            "No set of parameters was given. At least one is needed for the names. Pass a list of "
            "sets."
        )
    for number, its in enumerate(sets):
        if its.keys() != sets[0].keys():
            raise ShapeError(
                f"Sets 0 and {number} differ in {sorted(its.keys() ^ sets[0].keys())}. All must "
                "name the same parameters. Generate all by one hypernetwork, or drop the names "
                "that only one has."
            )
    return list(sets[0])


def _unflatten(values: Iterable[Any], names: Any) -> Any:
    return Params(zip(names, values, strict=True))


register_pytree_node(
    Params,
    lambda params: (list(params.values()), list(params)),
    _unflatten,
    serialized_type_name="weightloom.params.Params",
    flatten_with_keys_fn=lambda params: (
        [(MappingKey(name), value) for name, value in params.items()],
        list(params),
    ),
)
add_safe_globals([Params])  # so that `torch.load` accepts this class


def count_tasks(params: Mapping[str, Tensor]) -> int | None:
    """Number of tasks in ``params``, the length of axis 0 of every value; None if it is empty.

    Args:
        params: Generated parameters per task.

    Raises:
        ShapeError: If two values disagree on it, or one has no axis.
        ConfigError: If a value is no tensor.
    """
    _check_tensors(params)
    tasks: int | None = None
    first = ""
    for name, value in params.items():
        if not value.ndim:
            raise ShapeError(
                f"`params[{name!r}]` is a single number. Every generated parameter has one value "
                "per task, on axis 0. Keep the axis for one task too: pass a tensor of shape (1,)."
            )
        if tasks is None:
            tasks, first = value.shape[0], name
        elif value.shape[0] != tasks:
            raise ShapeError(
                f"`params[{first!r}]` holds {tasks} tasks but `params[{name!r}]` holds "
                f"{value.shape[0]}. "
                "Every generated parameter has one value per task, on axis 0. "
                "Generate all of them from the same conditions."
            )
    return tasks


def _check_tensors(params: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` if a generated parameter is no tensor."""
    for name, value in params.items():
        if not isinstance(value, Tensor):
            raise ConfigError(
                f"`params[{name!r}]` is a {type(value).__name__}, not a tensor. Each generated "
                "parameter is one tensor for all tasks, (tasks, *shape). Convert it, as in "
                f"`torch.as_tensor(params[{name!r}])`."
            )


def sub(params: Mapping[str, Tensor], prefix: str) -> Params:
    """Parameters of one sub-module, by their names in it.

    Use it to split parameters of several networks that one hypernetwork generates, such as the
    entries of a `torch.nn.ModuleDict`.

    Args:
        params: Generated parameters by name.
        prefix: Name of the sub-module, without a trailing dot.

    Returns:
        The parameters whose names begin with ``prefix`` and a dot, without these.

    Raises:
        ConfigError: If no parameter has the prefix.

    Example:
        >>> sub({"head.bias": torch.zeros(5, 2), "trunk.bias": torch.zeros(5, 3)}, "head").keys()
        dict_keys(['bias'])
    """
    start = f"{prefix}."
    inside = Params(
        {
            name.removeprefix(start): value
            for name, value in params.items()
            if name.startswith(start)
        }
    )
    if not inside:
        raise ConfigError(
            f"`prefix={prefix!r}` matches no generated parameter. A prefix names a sub-module "
            f"of the base, without a trailing dot. "
            f"{nearest(prefix, dict.fromkeys(name.rpartition('.')[0] for name in params))}"
        )
    return inside


@dataclass(frozen=True)
class ParamSpec:
    """Names and shapes of generated parameters, in the order of the base, and names of shared ones.

    Example:
        >>> spec = ParamSpec.of(nn.Linear(3, 2), generate="bias")
        >>> spec.shapes, spec.shared, spec.size
        ({'bias': (2,)}, ('weight',), 2)
        >>> spec.cut(torch.zeros(5, 2))["bias"].shape
        torch.Size([5, 2])
    """

    shapes: dict[str, Shape]
    """Name and shape of each generated parameter, without the tasks axis."""
    shared: tuple[str, ...] = ()
    """Names of the parameters that are not generated and that all tasks share."""

    @classmethod
    def of(cls, base: nn.Module, generate: Selector | Iterable[Selector] = "*") -> "ParamSpec":
        """Select parameters of ``base``.

        Args:
            base: Any module. A parameter with several names (tied) is listed under the first one,
                regardless of which name is selected.
            generate: One selector or several, as in ``"*.bias"``, ``["head.*", nn.LayerNorm]`` or
                ``lambda name, parameter: parameter.ndim > 1``.

        Raises:
            ConfigError: If a selector matches no parameter.
        """
        wanted = set().union(*(select(base, selector) for selector in selectors_of(generate)))
        names = first_names(base)
        chosen = {names[alias] for alias in wanted}
        shapes = {name: tuple(parameter.shape) for name, parameter in base.named_parameters()}
        return cls(
            {n: s for n, s in shapes.items() if n in chosen},
            tuple(n for n in shapes if n not in chosen),
        )

    @cached_property
    def sizes(self) -> list[int]:
        """Number of elements of each generated parameter."""
        return [prod(shape) for shape in self.shapes.values()]

    @cached_property
    def size(self) -> int:
        """Number of elements generated per task."""
        return sum(self.sizes)

    def cut(self, flat: Float[Tensor, "tasks size"]) -> Params:
        """Cut one flat vector per task into named parameters; the inverse of `join`.

        Raises:
            ShapeError: If ``flat`` is not ``(tasks, self.size)``.
        """
        if flat.ndim != 2 or flat.shape[1] != self.size:
            raise ShapeError(
                f"`flat` has shape {tuple(flat.shape)}. This spec holds {self.size} numbers per "
                f"task. Pass a tensor of shape (tasks, {self.size})."
            )
        pieces = flat.split(self.sizes, dim=1)
        tasks = flat.shape[0]  # `len` would fix the number in an exported program
        return Params(
            {n: p.reshape(tasks, *s) for (n, s), p in zip(self.shapes.items(), pieces, strict=True)}
        )

    def join(self, params: Mapping[str, Tensor]) -> Float[Tensor, "tasks size"]:
        """Join named parameters into one flat vector per task; the inverse of `cut`.

        Raises:
            ShapeError: If the names in ``params`` are not those of this spec.
        """
        if params.keys() != self.shapes.keys():
            odd = sorted(params.keys() ^ self.shapes.keys())
            raise ShapeError(
                f"`params` and this spec differ in {odd}. Both must name the same parameters. "
                f"Pass exactly {list(self.shapes)}."
            )
        return torch.cat(
            [
                params[name].flatten(1) if shape else params[name][:, None]
                for name, shape in self.shapes.items()
            ],
            dim=1,
        )


def selectors_of(generate: Selector | Iterable[Selector]) -> list[Selector]:
    """Return one selector or several as a list."""
    if isinstance(generate, str | type) or callable(generate):
        return [generate]
    return list(generate)


def modules_by_name(base: nn.Module) -> dict[str, nn.Module]:
    """All modules by all of their names; a shared module has several.

    A module that contains its own parent is not entered again.
    """
    found: dict[str, nn.Module] = {}
    todo: list[tuple[str, nn.Module, frozenset[int]]] = [("", base, frozenset())]
    while todo:
        name, module, above = todo.pop()
        found[name] = module
        above = above | {id(module)}
        for leaf, child in reversed(module._modules.items()):
            if type(child) in weakref.ProxyTypes:
                child = getattr(child.__repr__, "__self__")  # noqa: B009  (the module behind the proxy)
            if child is not None and id(child) not in above:
                todo.append((f"{name}.{leaf}" if name else leaf, child, above))
    return found


def parameters_by_name(base: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters by all of their names; tied and shared ones have several."""
    return {
        f"{name}.{leaf}" if name else leaf: parameter
        for name, module in modules_by_name(base).items()
        for leaf, parameter in module._parameters.items()
        if parameter is not None
    }


def first_names(base: nn.Module) -> dict[str, str]:
    """First name of the parameter behind each name, tied names included."""
    first = {id(parameter): name for name, parameter in base.named_parameters()}
    return {alias: first[id(parameter)] for alias, parameter in parameters_by_name(base).items()}


def select(base: nn.Module, selector: Selector, argument: str = "generate") -> set[str]:
    """Names of the parameters that a selector matches, tied ones by each name that it matches.

    Generated parameters must hold real or complex numbers: others, such as an integer index, are
    left out, unless ``argument`` is ``"freeze"``.

    Args:
        base: The base network.
        selector: A glob, a module class or a predicate.
        argument: Name of the caller's argument, for the message; ``"freeze"`` also keeps parameters
            that are no real or complex numbers.

    Raises:
        ConfigError: If no parameter is left.
    """
    parameters = parameters_by_name(base)
    matched = _matched(base, selector, parameters)
    if argument == "freeze":
        chosen = matched
    else:
        chosen = {name for name in matched if _is_generable(parameters[name])}
    if chosen:
        return chosen
    if matched:
        name = min(matched)
        raise ConfigError(
            f"`{name}` holds {str(parameters[name].dtype).removeprefix('torch.')} numbers. "
            f"Generated numbers change by small steps, which these cannot. Leave it out of "
            f"`{argument}`: all tasks then share the base's own."
        )
    said, advice = _unmatched(base, selector, parameters)
    raise ConfigError(
        f"`{argument}={said}` matches no parameter of {type(base).__name__}. {advice}"
    )


def _matched(
    base: nn.Module, selector: Selector, parameters: Mapping[str, nn.Parameter]
) -> set[str]:
    if isinstance(selector, type):
        prefixes = _prefixes(base, selector)
        return {name for name in parameters if name.startswith(prefixes)}
    if callable(selector):
        return {name for name, parameter in parameters.items() if selector(name, parameter)}
    return {name for name in parameters if name == selector or fnmatchcase(name, selector)}


def _prefixes(base: nn.Module, kind: type[nn.Module]) -> tuple[str, ...]:
    """Beginnings of the names of parameters inside modules of a class."""
    modules = modules_by_name(base)
    names = [name for name, module in modules.items() if isinstance(module, kind)]
    return tuple(f"{name}." if name else "" for name in names)


def _is_generable(parameter: nn.Parameter) -> bool:
    return parameter.is_floating_point() or parameter.is_complex()


def _unmatched(
    base: nn.Module, selector: Selector, parameters: Mapping[str, nn.Parameter]
) -> tuple[str, str]:
    """A selector without a match as source code, and advice."""
    if isinstance(selector, type):
        holders = [m for m in base.modules() if next(m.parameters(recurse=False), None) is not None]
        kinds = sorted({type(module).__name__ for module in holders})
        advice = "It selects all parameters of modules of that class."
        return selector.__name__, f"{advice} {nearest(selector.__name__, kinds)}"
    if callable(selector):
        advice = "It is called with the name and the parameter, and returns True or False."
        return str(getattr(selector, "__name__", selector)), f"{advice} {nearest('', parameters)}"
    advice = "A glob is compared with the names in `base.named_parameters()`."
    return repr(selector), f"{advice} {nearest(selector, parameters)}"
