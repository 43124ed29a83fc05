"""Parameters per task without a hypernetwork: independent networks, each freshly initialised."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError, ShapeError
from weightloom.hypernets.held import shapes_of
from weightloom.hypernets.writer import check_sizes
from weightloom.params import Params


def own_params(
    base: nn.Module | Callable[[], nn.Module], tasks: int, generator: torch.Generator | None = None
) -> Params:
    """Fresh parameters of ``tasks`` independent networks, as for ensembles, searches or baselines.

    `weightloom.apply_per_task` runs them in one pass, and one optimiser over ``params.values()``
    trains them. With an elementwise optimiser, such as SGD or Adam, each network is trained as if
    it were alone.

    Args:
        base: A network, or a function (or class) that builds one. A network is not changed: in a
            copy of it, the ``reset_parameters`` of every module draws new values, children before
            parents; initialisation by other code of the network is not repeated. A function is
            called once per task.
        tasks: Number of networks.
        generator: Source of one seed per network. None draws from torch's global generator: after
            ``torch.manual_seed(0)``, the first network equals one built right after the same call.

    Returns:
        Leaf tensors ``(tasks, *shape)`` that require a gradient, by the names in
        ``named_parameters()``. Parameters of the base that require no gradient are omitted: tasks
        share the base's own.

    Raises:
        ConfigError: If ``tasks`` is below 1, a module holds trainable parameters but has
            no ``reset_parameters``, or no parameter requires a gradient.
        ShapeError: If the function builds networks that differ in names or shapes.

    Example:
        >>> base = nn.Linear(3, 2)
        >>> params = own_params(base, tasks=5, generator=torch.Generator().manual_seed(0))
        >>> {name: tuple(value.shape) for name, value in params.items()}
        {'weight': (5, 2, 3), 'bias': (5, 2)}
    """
    check_sizes(tasks=tasks)
    fresh = _reset(base) if isinstance(base, nn.Module) else _built(base)
    seeds = (
        None
        if generator is None
        else torch.randint(2**62, (tasks,), generator=generator, device=generator.device)
    )
    rows: list[dict[str, Tensor]] = []
    for task in range(tasks):
        if seeds is None:
            rows.append(next(fresh))
            continue
        with torch.random.fork_rng():
            torch.manual_seed(int(seeds[task]))
            rows.append(next(fresh))
    return Params(
        {name: torch.stack([row[name] for row in rows]).requires_grad_() for name in rows[0]}
    )


def _reset(base: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Yield the values of a copy that is reset each time, children before their parents."""
    copied = copy.deepcopy(base)
    for name, module in copied.named_modules():
        own = [leaf for leaf, its in module.named_parameters(recurse=False) if its.requires_grad]
        if own and _resetting(module) is None:
            where = (
                f"`{name}`, a {type(module).__name__},"
                if name
                else f"The base, a {type(module).__name__},"
            )
            raise ConfigError(
                f"{where} holds {own[0]!r} and has no `reset_parameters`. Only the code that "
                f"builds it can initialise it. Pass a function that builds the network, "
                "as in `own_params(lambda: Net(), tasks)`."
            )
    while True:
        _reset_all(copied)
        yield _values(copied)


def _reset_all(module: nn.Module) -> None:
    for child in module.children():
        _reset_all(child)
    if (resetting := _resetting(module)) is not None:
        resetting()


def _resetting(module: nn.Module) -> Callable[[], object] | None:
    """Method that initialises a module again; in torch's attention it has a private name."""
    return getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)


def _built(build: Callable[[], nn.Module]) -> Iterator[dict[str, Tensor]]:
    first: nn.Module | None = None
    while True:
        net = build()
        first = first or net
        if shapes_of(net) != shapes_of(first):
            odd = sorted({name for name, _ in shapes_of(net).items() ^ shapes_of(first).items()})
            raise ShapeError(
                f"The networks that `base()` builds differ in {odd}. Tasks are stacked on "
                "axis 0, so each name has one shape. Build networks of one architecture."
            )
        yield _values(net)


def _values(net: nn.Module) -> dict[str, Tensor]:
    values = {
        name: its.detach().clone() for name, its in net.named_parameters() if its.requires_grad
    }
    if not values:
        raise ConfigError(
            f"{type(net).__name__} holds no parameter that requires a gradient. Tasks need "
            "parameters to train. Call `requires_grad_()` on these, or pass another network."
        )
    return values
