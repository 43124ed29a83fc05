"""Generated parameters: the currency between rooms.

In:   a base network and selectors (globs, kinds of module, predicates) that say which parameters
      are generated.
Out:  `ParamSpec`, their names and shapes; and the way between one flat vector per task and
      `Params`, a mapping from names to values that can be taken apart and put together along the
      tasks axis.
Knows nothing of how parameters are generated or used. A function of the library that takes `Params`
takes any mapping from names to tensors, such as a dict.
"""

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from importlib import import_module
from math import prod
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.serialization import add_safe_globals
from torch.utils._pytree import MappingKey, register_pytree_node, tree_map

from weightloom.errors import ConfigError, ShapeError, nearest

Shape = tuple[int, ...]

Index = int | slice | Sequence[int] | Tensor
"""Says which tasks: one number, several, a slice, or one bool per task."""

Selector = str | type[nn.Module] | Callable[[str, nn.Parameter], bool]
"""Says which parameters: a glob over their names, a kind of module that they are in, or a
predicate.

A predicate is called with name and parameter, as in ``lambda name, parameter: parameter.ndim > 1``.
"""


class Params(dict[str, Tensor]):
    """Generated parameters: keys as in ``named_parameters()``, each value ``(tasks, *shape)``.

    A dict, and a tree of its values in torch's sense, those held as factors down to their factors.
    Every method works on the factors and leaves these Params as they are; none builds a value that
    is held as factors.

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
        """Number of tasks, None when there is no parameter.

        Raises:
            ShapeError: If two values disagree on it.
        """
        return count_tasks(self)

    def take(self, index: Index) -> "Params":
        """Take some of the tasks.

        Args:
            index: Task numbers, in the order wanted, as a list or a tensor, negative ones counted
                from the end; a slice; one bool per task, of which the true ones are taken; or one
                number, which leaves a tasks axis of 1.

        Raises:
            ShapeError: If there is no such task, or not one bool per task.
            ConfigError: If ``index`` is neither of these.

        Example:
            >>> params = Params(bias=torch.tensor([[0.0], [1.0], [2.0]]))
            >>> params.take(-1)["bias"], params.take(torch.tensor([True, False, True]))["bias"].flatten()
            (tensor([[2.]]), tensor([0., 2.]))
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
        """Put the tasks of several sets one behind the other.

        What is held as factors stays so where its form, own value and shared tensors are the same
        in all sets, as in those of one hypernetwork; else it is built.

        Raises:
            ShapeError: If the sets differ in names, or there is none.
        """
        sets = list(sets)
        return cls({name: torch.cat([its[name] for its in sets]) for name in _names_of(sets)})

    @classmethod
    def stack(cls, sets: Iterable[Mapping[str, Tensor]]) -> "Params":
        """Put sets of one task each, values without a tasks axis, together along a new tasks axis.

        Factors stay so.

        Raises:
            ShapeError: If the sets differ in names, there is none, or a value that is held as
                factors has a tasks axis.
        """
        sets = list(sets)
        for name, value in [item for its in sets for item in its.items()]:
            if getattr(value, "lead", 0):
                raise ShapeError(
                    f"The value of {name!r} is held as factors of {value.shape[0]} tasks. A stack "
                    "makes the tasks axis, of values that have none. Type `Params.cat(sets)`."
                )
        return cls({name: torch.stack([its[name] for its in sets]) for name in _names_of(sets)})

    def sub(self, prefix: str) -> "Params":
        """Take the parameters of one sub-module, its prefix cut off, as the function `sub` does.

        Raises:
            ConfigError: If no parameter has the prefix.
        """
        return sub(self, prefix)

    def to(self, *args: Any, **kwargs: Any) -> "Params":
        """Move to a device or a dtype, as ``Tensor.to`` does, with all that the values are made of."""
        return Params({name: value.to(*args, **kwargs) for name, value in self.items()})

    def detach(self) -> "Params":
        """Take off the graph, with all that the values are made of; the memory stays the same."""
        return Params({name: value.detach() for name, value in self.items()})

    def clone(self) -> "Params":
        """Copy, with all that the values are made of.

        A later step of the optimiser does not reach the copy.
        """
        return Params({name: value.clone() for name, value in self.items()})

    def map(self, function: Callable[[Tensor], Tensor]) -> "Params":
        """Apply a function to every tensor, and to every factor of what is held as factors.

        The own value of the base and what tasks share are left as they are. The function must leave
        the axes behind the tasks axis alone.
        """
        return tree_map(function, self)

    @overload
    def squared_norm(self, by: Literal["task"] = "task") -> Tensor: ...

    @overload
    def squared_norm(self, by: Literal["name"]) -> dict[str, Tensor]: ...

    def squared_norm(self, by: Literal["task", "name"] = "task") -> Tensor | dict[str, Tensor]:
        """Return the squared L2 norm of the parameters, as `weightloom.forms.arithmetic.squared_norm` does."""
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
        """Return other Params with the same values."""
        return Params(self)

    def __reduce__(self) -> Any:
        return Params, (dict(self),)  # which `torch.load` takes too

    def __add__(self, other: Mapping[str, Tensor]) -> "Params":
        """Add the changes, as `weightloom.forms.arithmetic.add` does: own + Δa + Δb."""
        return _values().add(self, other) if isinstance(other, Mapping) else NotImplemented

    def __or__(self, other: Mapping[str, Tensor]) -> "Params":  # type: ignore[override]
        return Params({**self, **other}) if isinstance(other, Mapping) else NotImplemented

    def __ror__(self, other: Mapping[str, Tensor]) -> "Params":  # type: ignore[override]
        return Params({**other, **self}) if isinstance(other, Mapping) else NotImplemented


def _squared(value: Tensor) -> Tensor:
    """Squared norm per task; what is held as factors knows its own."""
    held = getattr(value, "squared_norm", None)
    return value.reshape(value.shape[0], -1).square().sum(1) if held is None else held()


def _values() -> Any:
    """The room of arithmetic on whole sets.

    It stands behind this one, and is loaded when it is asked for.
    """
    return import_module("weightloom.forms.arithmetic")


def _place(index: Any, tasks: int) -> slice | Tensor:
    """Task numbers that are there, or a slice."""
    if isinstance(index, slice):
        return index
    place = index if isinstance(index, Tensor) else _tensor_of(index)
    if place is None or place.ndim > 1 or place.dtype.is_floating_point or place.dtype.is_complex:
        what = (
            f"a tensor of shape {tuple(index.shape)}, {index.dtype}"
            if isinstance(index, Tensor)
            else repr(index)
        )
        raise ConfigError(
            f"`index` is {what}. It says which of {tasks} tasks to take. Pass task numbers as a "
            "list or a tensor of one axis, one bool per task, a slice, or one number."
        )
    if place.dtype == torch.bool:
        if place.shape != (tasks,):
            raise ShapeError(
                f"`index` holds bools of shape {tuple(place.shape)} for {tasks} tasks. Each says "
                f"of one task whether it is taken. Pass {tasks} of them, or task numbers."
            )
        return place.nonzero()[:, 0]
    place = place.reshape(-1).long()
    if not torch.compiler.is_compiling() and place.numel():
        least, most = place.min().item(), place.max().item()
        if least < -tasks or most >= tasks:
            raise ShapeError(
                f"`index` asks for task {most if most >= tasks else least} of {tasks}. Tasks are "
                f"counted from 0, or from -1 backwards. Pass numbers from {-tasks} to {tasks - 1}."
            )
    return torch.where(place < 0, place + tasks, place)


def _tensor_of(index: Any) -> Tensor | None:
    try:
        return torch.as_tensor(
            index if len(index) else [], dtype=None if len(index) else torch.long
        )
    except TypeError:
        return (
            torch.as_tensor(index)
            if isinstance(index, int) and not isinstance(index, bool)
            else None
        )
    except (ValueError, RuntimeError):
        return None


def _names_of(sets: Sequence[Mapping[str, Tensor]]) -> list[str]:
    """The names that all sets hold."""
    if not sets:
        raise ShapeError(
            "There is no set of parameters. At least one says which parameters there are. Pass a "
            "list."
        )
    for number, its in enumerate(sets):
        if its.keys() != sets[0].keys():
            raise ShapeError(
                f"Sets 0 and {number} differ in {sorted(its.keys() ^ sets[0].keys())}. All must "
                "name the same parameters. Generate all by one hypernetwork, or leave out what "
                "only one has."
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
add_safe_globals([Params])  # for `torch.load`, which makes nothing else than it knows


def count_tasks(params: Mapping[str, Tensor]) -> int | None:
    """Return the number of tasks that ``params`` holds, None when it is empty.

    Raises:
        ShapeError: If two values disagree on it, or one has no axis.
    """
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


def sub(params: Mapping[str, Tensor], prefix: str) -> Params:
    """Take the parameters of one sub-module, its prefix cut off.

    Several networks under one hypernetwork are a `torch.nn.ModuleDict`, taken apart by this.

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
            f"`prefix={prefix!r}` is that of no generated parameter. A prefix names a sub-module "
            f"of the base, without the dot behind it. "
            f"{nearest(prefix, dict.fromkeys(name.rpartition('.')[0] for name in params))}"
        )
    return inside


@dataclass(frozen=True)
class ParamSpec:
    """Which parameters of a base network are generated, in its own order, and their shapes.

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
    """Names of the parameters that stay the base's own."""

    @classmethod
    def of(cls, base: nn.Module, generate: Selector | Iterable[Selector] = "*") -> "ParamSpec":
        """Select parameters of ``base``.

        Args:
            base: Any module. A parameter tied to several names goes by the first, whichever of them
                is selected.
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
        """How many numbers each parameter has."""
        return [prod(shape) for shape in self.shapes.values()]

    @cached_property
    def size(self) -> int:
        """How many numbers are generated for one task."""
        return sum(self.sizes)

    def cut(self, flat: Float[Tensor, "tasks size"]) -> Params:
        """Cut one flat vector per task into named parameters.

        Raises:
            ShapeError: If ``flat`` is not ``(tasks, self.size)``.
        """
        if flat.ndim != 2 or flat.shape[1] != self.size:
            raise ShapeError(
                f"`flat` has shape {tuple(flat.shape)}. This spec holds {self.size} numbers per "
                f"task. Pass a tensor of shape (tasks, {self.size})."
            )
        pieces = flat.split(self.sizes, dim=1)
        tasks = flat.shape[0]  # `len` would write a number into an exported program
        return Params(
            {n: p.reshape(tasks, *s) for (n, s), p in zip(self.shapes.items(), pieces, strict=True)}
        )

    def join(self, params: Mapping[str, Tensor]) -> Float[Tensor, "tasks size"]:
        """Join named parameters into one flat vector per task; the inverse of `cut`.

        Raises:
            ShapeError: If ``params`` lacks a name of this spec or holds one that it does not know.
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
    """List one selector or several."""
    if isinstance(generate, str | type) or callable(generate):
        return [generate]
    return list(generate)


def modules_by_name(base: nn.Module) -> dict[str, nn.Module]:
    """Every module by every name it has.

    A shared one has several, and one that holds its own parent is met once.
    """
    found: dict[str, nn.Module] = {}
    todo: list[tuple[str, nn.Module, frozenset[int]]] = [("", base, frozenset())]
    while todo:
        name, module, above = todo.pop()
        found[name] = module
        above = above | {id(module)}
        for leaf, child in reversed(module._modules.items()):
            if type(child) in weakref.ProxyTypes:
                child = getattr(child.__repr__, "__self__")  # noqa: B009  (what it stands for)
            if child is not None and id(child) not in above:
                todo.append((f"{name}.{leaf}" if name else leaf, child, above))
    return found


def parameters_by_name(base: nn.Module) -> dict[str, nn.Parameter]:
    """Every parameter by every name it has, tied and shared ones by each."""
    return {
        f"{name}.{leaf}" if name else leaf: parameter
        for name, module in modules_by_name(base).items()
        for leaf, parameter in module._parameters.items()
        if parameter is not None
    }


def first_names(base: nn.Module) -> dict[str, str]:
    """Name by name, tied names included: the first name of the same parameter."""
    first = {id(parameter): name for name, parameter in base.named_parameters()}
    return {alias: first[id(parameter)] for alias, parameter in parameters_by_name(base).items()}


def select(base: nn.Module, selector: Selector, argument: str = "generate") -> set[str]:
    """Names of the parameters that a selector matches.

    Of a tied parameter each name that it matches.

    To be generated, a parameter holds real or complex numbers: others, such as an integer index,
    are left out.

    Raises:
        ConfigError: If there is none; the message names ``argument``.
    """
    parameters = parameters_by_name(base)
    if isinstance(selector, type):
        inside = [
            f"{name}." if name else ""
            for name, module in modules_by_name(base).items()
            if isinstance(module, selector)
        ]
        matched = {name for name in parameters if any(name.startswith(prefix) for prefix in inside)}
    elif callable(selector):
        matched = {name for name, parameter in parameters.items() if selector(name, parameter)}
    else:
        matched = {name for name in parameters if name == selector or fnmatchcase(name, selector)}
    written = {
        n for n in matched if parameters[n].is_floating_point() or parameters[n].is_complex()
    }
    if written or (matched and argument == "freeze"):
        return matched if argument == "freeze" else written
    if matched:
        name = min(matched)
        raise ConfigError(
            f"`{name}` holds {str(parameters[name].dtype).removeprefix('torch.')} numbers. "
            f"Generated numbers change by small steps, which these cannot. Leave it out of "
            f"`{argument}`: all tasks then share the base's own."
        )
    if isinstance(selector, type):
        kinds = {
            type(m).__name__
            for m in base.modules()
            if next(m.parameters(recurse=False), None) is not None
        }
        what = f"{argument}={selector.__name__}"
        known = f"It selects all parameters of modules of that kind. {nearest(selector.__name__, sorted(kinds))}"
    elif callable(selector):
        what = f"{argument}={getattr(selector, '__name__', selector)}"
        known = f"It is called with the name and the parameter, and says True or False. {nearest('', parameters)}"
    else:
        what = f"{argument}={selector!r}"
        known = f"A glob is held against the names in `base.named_parameters()`. {nearest(selector, parameters)}"
    raise ConfigError(f"`{what}` matches no parameter of {type(base).__name__}. {known}")
