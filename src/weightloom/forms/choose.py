"""Which parameter is held in which form: chosen by selectors, or by what may be spent."""

from collections.abc import Collection, Iterable, Mapping
from math import prod

from torch import nn

from weightloom.errors import ConfigError
from weightloom.forms.form import KINDS, Form
from weightloom.forms.full import Full
from weightloom.params import ParamSpec, Selector, Shape, first_names, parameters_by_name, select

Generate = Selector | Iterable[Selector] | Mapping[Selector, Form]
"""Which parameters are generated; as a mapping, also in which form."""


def choose_forms(
    base: nn.Module, generate: Generate = "*", form: Form | None = None
) -> dict[str, Form]:
    """Return the form of each generated parameter, in the base's own order.

    Args:
        base: The base network.
        generate: One selector, several, or a mapping from selectors to forms, of which the first
            that matches a parameter counts: ``{"head.*": Full(), nn.Linear: LowRank(4)}``. A full
            name is taken at its word; of what a glob, a kind of module or a predicate selects, what
            the form does not fit is generated in full.
        form: Where ``generate`` is no mapping: the form of every parameter that it fits. Those that
            it does not fit, such as biases where it needs a matrix, are generated in full. None
            means `Full`.

    Raises:
        ConfigError: If a selector matches no parameter or there is none, if a form in the mapping
            does not fit a parameter that is named in full for it, or if two names of one tied
            parameter get different forms.

    Example:
        >>> from weightloom.forms import LowRank
        >>> choose_forms(nn.Linear(8, 8), form=LowRank(2))
        {'weight': LowRank(rank=2), 'bias': Full()}
    """
    _check_given(generate, form)
    names, owners = first_names(base), _owners(base)
    parameters = dict(base.named_parameters())
    if not isinstance(generate, Mapping):
        wanted = ParamSpec.of(base, generate).shapes
        return {
            name: _fitted(name, form or Full(), parameters[name], owners[name], False)
            for name in wanted
        }
    if form is not None:
        raise ConfigError(
            f"`form={form}` was given beside a mapping from selectors to forms. The mapping says "
            "the form of each parameter already. Leave `form` out."
        )
    by_alias: dict[str, Form] = {}
    named: set[str] = set()
    for selector, its in generate.items():
        for alias in sorted(select(base, selector)):
            if alias not in by_alias and selector == alias:
                named.add(names[alias])
            by_alias.setdefault(alias, its)
    chosen: dict[str, tuple[str, Form]] = {}
    for alias, its in by_alias.items():
        other, taken = chosen.setdefault(names[alias], (alias, its))
        if taken != its:
            raise ConfigError(
                f"`{other}` and `{alias}` are one parameter, tied, but were given {taken} and "
                f"{its}. Tied parameters stay tied, so they can have one form only. Name "
                f"`{names[alias]}` alone, or untie them in the base."
            )
    return {
        name: _fitted(name, chosen[name][1], parameter, owners[name], name in named)
        for name, parameter in parameters.items()
        if name in chosen
    }


class Plan(dict[str, Form]):
    """A form for each generated parameter, with what each costs; its string is a table.

    Pass it as ``generate=plan``.
    """

    def __init__(
        self, forms: Mapping[str, Form], costs: Mapping[str, tuple[Shape, int, int]], limit: int
    ) -> None:
        super().__init__(forms)
        self.costs = dict(costs)
        """Shape, numbers generated per task, and parameters of the hypernetwork, for each name."""
        self.limit = limit

    @property
    def cost(self) -> int:
        """Parameters of the hypernetwork, all together."""
        return sum(parameters for _, _, parameters in self.costs.values())

    def __str__(self) -> str:
        rows = [("parameter", "shape", "form", "per task", "hypernetwork")]
        for name, (shape, generated, parameters) in self.costs.items():
            rows.append(
                (
                    name,
                    " x ".join(map(str, shape)) or "1",
                    str(self[name]),
                    f"{generated:,}",
                    f"{parameters:,}",
                )
            )
        total = sum(generated for _, generated, _ in self.costs.values())
        rows.append(("all", "", f"of {self.limit:,}", f"{total:,}", f"{self.cost:,}"))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(
                cell.ljust(w) if i < 3 else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(r, widths, strict=True))
            )
            for r in rows
        ]
        return "\n".join(line.rstrip() for line in lines)


def budget(
    base: nn.Module, parameters: int, width: int = 64, generate: Selector | Iterable[Selector] = "*"
) -> Plan:
    """Choose a form for each parameter so that the hypernetwork's head has at most ``parameters`` parameters.

    Every parameter starts with the cheapest form there is for it. Then the one that has the fewest
    generated numbers for its size is given the next richer form, as long as the budget allows,
    until nothing more can be had.

    Args:
        base: The base network.
        parameters: What the head and all that is shared may have, besides the base's own values.
        width: Width of the layer that the head reads: each generated number costs ``width + 1``
            parameters.
        generate: Which parameters are generated.

    Returns:
        A mapping from names to forms, to pass on as ``generate``; print it to see the table.

    Raises:
        ConfigError: If even the cheapest forms cost more; it says how much they do.

    Example:
        >>> print(budget(nn.Linear(32, 32), parameters=20_000))
        parameter  shape    form             per task  hypernetwork
        weight     32 x 32  LowRank(rank=4)       256        16,896
        bias       32       Full()                 32         2,080
        all                 of 20,000             288        18,976
    """
    shapes = ParamSpec.of(base, generate).shapes
    ladders = _ladders(base, shapes, width)
    step = dict.fromkeys(shapes, 0)
    spent = sum(ladder[0][1] for ladder in ladders.values())
    if spent > parameters:
        raise ConfigError(
            f"`parameters={parameters:,}` is too small a budget. The cheapest forms there are cost "
            f"{spent:,}. Pass {spent:,} or more, generate fewer parameters, or make "
            f"`width={width}` smaller."
        )
    open_names = set(shapes)
    while open_names:
        name = min(open_names, key=lambda n: (ladders[n][step[n]][0] / prod(shapes[n]), n))
        ladder, at = ladders[name], step[name]
        further = [row for row in ladder[at + 1 :] if spent + row[1] - ladder[at][1] <= parameters]
        if not further:
            open_names.remove(name)
            continue
        spent += further[0][1] - ladder[at][1]
        step[name] = ladder.index(further[0])
    forms = {name: ladders[name][step[name]][2] for name in shapes}
    costs = {name: (shape, *ladders[name][step[name]][:2]) for name, shape in shapes.items()}
    return Plan(forms, costs, parameters)


def _cost(form: Form, shape: Shape, width: int) -> tuple[int, int]:
    """Numbers generated per task, and parameters that a hypernetwork spends on them.

    Every factor has a start that is learned; for free numbers it is the base's own value, which is
    not counted.
    """
    generated = sum(prod(s) for s in form.factor_shapes(shape).values())
    starts = 0 if form.is_free else generated
    return generated, generated * (width + 1) + starts + sum(
        value.numel() for value in form.shared(shape).values()
    )


def _ladders(
    base: nn.Module, names: Iterable[str], width: int
) -> dict[str, list[tuple[int, int, Form]]]:
    """For each parameter the forms that are worth their price, cheapest first.

    Numbers, cost and form.
    """
    owners, parameters = _owners(base), dict(base.named_parameters())
    candidates = [form for kind in KINDS.values() for form in kind.candidates()]
    ladders = {}
    for name in names:
        shape, is_complex = tuple(parameters[name].shape), parameters[name].is_complex()
        possible = [form for form in candidates if form.is_free or not is_complex]
        fitting = [fitted for form in possible if (fitted := form.fit(shape, owners[name]))]
        whole = _cost(Full(), shape, width)[1]
        rows = [(*_cost(form, shape, width), form) for form in fitting]
        priced = sorted((r for r in rows if r[1] < whole or r[2] == Full()), key=_by_price)
        ladders[name] = [
            row
            for number, row in enumerate(priced)
            if all(row[0] > earlier[0] for earlier in priced[:number])
        ]
    return ladders


def _by_price(row: tuple[int, int, Form]) -> tuple[int, int, bool]:
    """The cheapest first; of equals, the one with more numbers, then one that a linear layer uses without building."""
    numbers, cost, form = row
    return cost, -numbers, type(form).linear is Form.linear


def _check_given(generate: Generate, form: Form | None) -> None:
    if generate is None or (isinstance(generate, Collection) and not generate):
        raise ConfigError(
            f'`generate={generate!r}` selects no parameter. A hypernetwork generates one at least. Pass `generate="*"` '
            "for all, or globs, kinds of module and predicates."
        )
    for its in generate.values() if isinstance(generate, Mapping) else [form or Full()]:
        if not isinstance(its, Form):
            said = its.__name__ if isinstance(its, type) else repr(its)
            raise ConfigError(
                f"`{said}` was given as a form. A form is an object that holds its options. Pass "
                "one, as in `LowRank(4)` or `RowScale()`."
            )


def _owners(base: nn.Module) -> dict[str, nn.Module]:
    """The module that each parameter is in, by every name it has."""
    names = parameters_by_name(base)
    return {name: base.get_submodule(name.rpartition(".")[0]) for name in names}


def _fitted(
    name: str, form: Form, parameter: nn.Parameter, owner: nn.Module, is_named: bool
) -> Form:
    shape = tuple(parameter.shape)
    is_complex = parameter.is_complex() and not form.is_free
    fitted = None if is_complex else form.fit(shape, owner)
    if fitted is None and not is_named:
        return Full()
    if fitted is None:
        needs = "real numbers, and these are complex" if is_complex else form.needs
        raise ConfigError(
            f"{form} does not fit `{name}`, which has shape {shape}. This form needs {needs}. "
            "Use `Full()` for it, or leave it out of the selection."
        )
    return fitted


def advised_budget(
    base: nn.Module, generate: Generate, names: Iterable[str], parameters: int, width: int
) -> str:
    """Say what to type so that a head has at most ``parameters`` parameters, or as few as there can be.

    Args:
        base: The base network.
        generate: What was asked for, to be said again.
        names: Names of the parameters that it selects.
        parameters: What the head may have.
        width: Width of the layer that the head reads.
    """
    said = "" if generate == "*" else f", generate={_said(generate)}"
    least = sum(
        min(cost for _, cost, _ in ladder) for ladder in _ladders(base, names, width).values()
    )
    allow = f", largest_head={least}" if least > parameters else ""
    call = f"budget(base, {max(least, parameters)}, width={width}{said})"
    return f"Hold what is generated in cheaper forms: `generate={call}{allow}`"


def _said(generate: Generate) -> str:
    """Selectors as they are typed."""
    if isinstance(generate, str):
        return repr(generate)
    if isinstance(generate, type):
        return f"nn.{generate.__name__}" if hasattr(nn, generate.__name__) else generate.__name__
    if callable(generate):
        return getattr(generate, "__name__", "your_predicate")
    return f"[{', '.join(map(_said, generate))}]"
