"""Generated parameters: the currency between rooms.

In:   a base network and selectors (globs, kinds of module, predicates) that say which parameters are generated.
Out:  `ParamSpec`, their names and shapes; and the way between one flat vector per task and `Params`.
Knows nothing of how parameters are generated or used.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.errors import ConfigError, ShapeError, nearest

Shape = tuple[int, ...]

Params = dict[str, Tensor]
"""Generated parameters: keys as in ``named_parameters()``, each value ``(tasks, *shape)``."""

Selector = str | type[nn.Module] | Callable[[str, nn.Parameter], bool]
"""Says which parameters: a glob over their names, a kind of module that they are in, or a predicate.

A predicate is called with name and parameter, as in ``lambda name, parameter: parameter.ndim > 1``.
"""


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
            base: Any module. A parameter tied to several names goes by the first, whichever of them is selected.
            generate: One selector or several, as in ``"*.bias"``, ``["head.*", nn.LayerNorm]`` or
                ``lambda name, parameter: parameter.ndim > 1``.

        Raises:
            ConfigError: If a selector matches no parameter.
        """
        wanted = set().union(*(select(base, selector) for selector in selectors_of(generate)))
        names = first_names(base)
        chosen = {names[alias] for alias in wanted}
        shapes = {name: tuple(parameter.shape) for name, parameter in base.named_parameters()}
        return cls({n: s for n, s in shapes.items() if n in chosen}, tuple(n for n in shapes if n not in chosen))

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
                f"`flat` has shape {tuple(flat.shape)}. This spec holds {self.size} numbers per task. "
                f"Pass a tensor of shape (tasks, {self.size})."
            )
        pieces = flat.split(self.sizes, dim=1)
        tasks = len(flat)
        return {n: p.reshape(tasks, *s) for (n, s), p in zip(self.shapes.items(), pieces, strict=True)}

    def join(self, params: Params) -> Float[Tensor, "tasks size"]:
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
            [params[name].flatten(1) if shape else params[name][:, None] for name, shape in self.shapes.items()], dim=1
        )


def count_tasks(params: Params) -> int | None:
    """Return the number of tasks that ``params`` holds, None when it is empty.

    Raises:
        ShapeError: If two values disagree on it.
    """
    tasks: int | None = None
    first = ""
    for name, value in params.items():
        if tasks is None:
            tasks, first = value.shape[0], name
        elif value.shape[0] != tasks:
            raise ShapeError(
                f"`params[{first!r}]` holds {tasks} tasks but `params[{name!r}]` holds {value.shape[0]}. "
                "Every generated parameter has one value per task, on axis 0. "
                "Generate all of them from the same conditions."
            )
    return tasks


def sub(params: Params, prefix: str) -> Params:
    """Take the parameters of one sub-module, its prefix cut off.

    Several networks under one hypernetwork are a `torch.nn.ModuleDict`, taken apart by this.

    Raises:
        ConfigError: If no parameter has the prefix.

    Example:
        >>> sub({"head.bias": torch.zeros(5, 2), "trunk.bias": torch.zeros(5, 3)}, "head").keys()
        dict_keys(['bias'])
    """
    start = f"{prefix}."
    inside = {name.removeprefix(start): value for name, value in params.items() if name.startswith(start)}
    if not inside:
        raise ConfigError(
            f"`prefix={prefix!r}` is that of no generated parameter. A prefix names a sub-module of the base, without "
            f"the dot behind it. {nearest(prefix, dict.fromkeys(name.rpartition('.')[0] for name in params))}"
        )
    return inside


def selectors_of(generate: Selector | Iterable[Selector]) -> list[Selector]:
    """List one selector or several."""
    if isinstance(generate, str | type) or callable(generate):
        return [generate]
    return list(generate)


def first_names(base: nn.Module) -> dict[str, str]:
    """Name by name, tied names included: the first name of the same parameter."""
    first = {id(parameter): name for name, parameter in base.named_parameters()}
    return {alias: first[id(parameter)] for alias, parameter in base.named_parameters(remove_duplicate=False)}


def select(base: nn.Module, selector: Selector, argument: str = "generate") -> set[str]:
    """Names of the parameters that a selector matches; of a tied parameter each name that it matches.

    To be generated, a parameter holds real or complex numbers: others, such as an integer index, are left out.

    Raises:
        ConfigError: If there is none; the message names ``argument``.
    """
    parameters = dict(base.named_parameters(remove_duplicate=False))
    if isinstance(selector, type):
        inside = [
            f"{name}." if name else ""
            for name, module in base.named_modules(remove_duplicate=False)
            if isinstance(module, selector)
        ]
        matched = {name for name in parameters if any(name.startswith(prefix) for prefix in inside)}
    elif callable(selector):
        matched = {name for name, parameter in parameters.items() if selector(name, parameter)}
    else:
        matched = {name for name in parameters if name == selector or fnmatchcase(name, selector)}
    written = {n for n in matched if parameters[n].is_floating_point() or parameters[n].is_complex()}
    if written or (matched and argument == "freeze"):
        return matched if argument == "freeze" else written
    if matched:
        name = min(matched)
        raise ConfigError(
            f"`{name}` holds {str(parameters[name].dtype).removeprefix('torch.')} numbers. Generated numbers change by "
            f"small steps, which these cannot. Leave it out of `{argument}`: all tasks then share the base's own."
        )
    if isinstance(selector, type):
        kinds = {type(m).__name__ for m in base.modules() if next(m.parameters(recurse=False), None) is not None}
        what = f"{argument}={selector.__name__}"
        known = f"It selects all parameters of modules of that kind. {nearest(selector.__name__, sorted(kinds))}"
    elif callable(selector):
        what = f"{argument}={getattr(selector, '__name__', selector)}"
        known = f"It is called with the name and the parameter, and says True or False. {nearest('', parameters)}"
    else:
        what = f"{argument}={selector!r}"
        known = f"A glob is held against the names in `base.named_parameters()`. {nearest(selector, parameters)}"
    raise ConfigError(f"`{what}` matches no parameter of {type(base).__name__}. {known}")
