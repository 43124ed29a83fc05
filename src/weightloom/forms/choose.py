"""Choice of a form for each generated parameter, by selectors or by a budget of parameters."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import prod

from torch import nn

from weightloom.errors import ConfigError
from weightloom.forms.form import KINDS, Form
from weightloom.forms.full import Full
from weightloom.params import ParamSpec, Selector, Shape, first_names, parameters_by_name, select

Generate = Selector | Iterable[Selector] | Mapping[Selector, Form]
"""Generated parameters: one selector or several; as a mapping, also the form of each."""


def choose_forms(
    base: nn.Module, generate: Generate = "*", form: Form | None = None
) -> dict[str, Form]:
    """Return the form of each generated parameter, in the base's own order.

    Args:
        base: The base network.
        generate: One selector, several, or a mapping from selectors to forms, such as
            ``{"head.*": Full(), nn.Linear: LowRank(4)}``; the first selector that matches decides.
            A parameter selected by a glob, a module class or a predicate is generated in full if
            the form does not fit it; for one selected by its full name that is an error.
        form: Form of every selected parameter that it fits, if ``generate`` is not a mapping. The
            others, such as biases for a form that needs a matrix, are generated in full. None means
            `Full`.

    Raises:
        ConfigError: If a selector matches no parameter, ``generate`` is empty, a value of the
            mapping is not a form, ``form`` is given next to a mapping, a form does not fit a
            parameter that is selected by its full name, or two names of a tied parameter get
            different forms.

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
            f"`form={form}` was given with a mapping from selectors to forms. The mapping already "
            "sets the form of each parameter. Leave `form` out."
        )
    by_alias, named = _by_alias(base, generate, names)
    chosen = _untied(by_alias, names)
    return {
        name: _fitted(name, chosen[name], parameter, owners[name], name in named)
        for name, parameter in parameters.items()
        if name in chosen
    }


def _by_alias(
    base: nn.Module, generate: Mapping[Selector, Form], names: Mapping[str, str]
) -> tuple[dict[str, Form], set[str]]:
    """Form of each matched name, aliases included, and the parameters selected by a full name."""
    forms: dict[str, Form] = {}
    named: set[str] = set()
    for selector, form in generate.items():
        for alias in sorted(select(base, selector)):
            if alias not in forms and selector == alias:
                named.add(names[alias])
            forms.setdefault(alias, form)
    return forms, named


def _untied(by_alias: Mapping[str, Form], names: Mapping[str, str]) -> dict[str, Form]:
    """Form of each parameter by its first name; refuse different forms of a tied parameter."""
    chosen: dict[str, tuple[str, Form]] = {}
    for alias, form in by_alias.items():
        other, taken = chosen.setdefault(names[alias], (alias, form))
        if taken != form:
            raise ConfigError(
                f"`{other}` and `{alias}` are one parameter, tied, but were given {taken} and "
                f"{form}. Tied parameters stay tied, so they can have one form only. Name "
                f"`{names[alias]}` alone, or untie them in the base."
            )
    return {name: form for name, (_, form) in chosen.items()}


class Plan(dict[str, Form]):
    """Form of each generated parameter, with its cost; ``print(plan)`` shows a table.

    Pass it on as ``generate=plan``.

    Args:
        forms: Form of each parameter, by name.
        costs: Shape, numbers generated per task, and parameters of the hypernetwork, by name.
        limit: Budget of hypernetwork parameters.
    """

    def __init__(
        self, forms: Mapping[str, Form], costs: Mapping[str, tuple[Shape, int, int]], limit: int
    ) -> None:
        super().__init__(forms)
        self.costs = dict(costs)
        """Shape, numbers generated per task, and parameters of the hypernetwork, by name."""
        self.limit = limit
        """Budget of hypernetwork parameters."""

    @property
    def cost(self) -> int:
        """Total of hypernetwork parameters."""
        return sum(parameters for _, _, parameters in self.costs.values())

    def __str__(self) -> str:
        rows = [("parameter", "shape", "form", "per task", "hypernetwork")]
        for name, (shape, generated, parameters) in self.costs.items():
            sides = " x ".join(map(str, shape)) or "1"
            rows.append((name, sides, str(self[name]), f"{generated:,}", f"{parameters:,}"))
        total = sum(generated for _, generated, _ in self.costs.values())
        rows.append(("all", "", f"of {self.limit:,}", f"{total:,}", f"{self.cost:,}"))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(_line(row, widths) for row in rows)


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Row of a table: three columns of text to the left, numbers to the right."""
    cells = [cell.ljust(w) for cell, w in zip(row[:3], widths[:3], strict=True)]
    cells += [cell.rjust(w) for cell, w in zip(row[3:], widths[3:], strict=True)]
    return "  ".join(cells).rstrip()


def budget(
    base: nn.Module, parameters: int, width: int = 64, generate: Selector | Iterable[Selector] = "*"
) -> Plan:
    """Choose forms so that the hypernetwork's head has at most ``parameters`` parameters.

    Every parameter starts with its cheapest form. Then, repeatedly, the parameter with the fewest
    generated numbers relative to its size gets the next richer form that the budget allows, until
    no parameter can be improved.

    Args:
        base: The base network.
        parameters: Budget for the head, learned starts and shared tensors; the base's own values
            do not count.
        width: Width of the layer that the head reads: each generated number costs ``width + 1``
            parameters of the head.
        generate: Selectors of the generated parameters.

    Returns:
        A mapping from names to forms, to pass on as ``generate``; print it to see the table.

    Raises:
        ConfigError: If even the cheapest forms exceed the budget; the message names their cost. Or
            if a selector matches no parameter.

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
            f"`parameters={parameters:,}` is too small a budget. The cheapest forms cost "
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
    """Numbers generated per task, and hypernetwork parameters needed for them.

    Each factor also has a learned start, except for free numbers, which start at the base's own
    value.
    """
    generated = sum(prod(s) for s in form.factor_shapes(shape).values())
    starts = 0 if form.is_free else generated
    return generated, generated * (width + 1) + starts + sum(
        value.numel() for value in form.shared(shape).values()
    )


Row = tuple[int, int, Form]
"""A form with its cost: numbers generated per task, and parameters of the hypernetwork."""


def _ladders(base: nn.Module, names: Iterable[str], width: int) -> dict[str, list[Row]]:
    """Forms that are worth their cost for each parameter, cheapest first."""
    owners, parameters = _owners(base), dict(base.named_parameters())
    return {name: _ladder(parameters[name], owners[name], width) for name in names}


def _ladder(parameter: nn.Parameter, owner: nn.Module, width: int) -> list[Row]:
    """Forms for one parameter, by cost: each generates more numbers than every cheaper one."""
    shape = tuple(parameter.shape)
    whole = _cost(Full(), shape, width)[1]
    rows = [(*_cost(form, shape, width), form) for form in _fitting(parameter, owner)]
    ladder: list[Row] = []
    for row in sorted(rows, key=_by_price):
        is_worth = row[1] < whole or row[2] == Full()
        if is_worth and (not ladder or row[0] > ladder[-1][0]):
            ladder.append(row)
    return ladder


def _fitting(parameter: nn.Parameter, owner: nn.Module) -> list[Form]:
    """Candidates of all forms that fit a parameter."""
    candidates = [form for kind in KINDS.values() for form in kind.candidates()]
    if parameter.is_complex():
        candidates = [form for form in candidates if form.is_free]
    fitted = (form.fit(tuple(parameter.shape), owner) for form in candidates)
    return [form for form in fitted if form]


def _by_price(row: Row) -> tuple[int, int, bool]:
    """Sort key: lower cost, then more numbers, then forms that a linear layer uses unbuilt."""
    numbers, cost, form = row
    return cost, -numbers, type(form).linear is Form.linear


def _check_given(generate: Generate, form: Form | None) -> None:
    if generate is None or (isinstance(generate, Collection) and not generate):
        raise ConfigError(
            f"`generate={generate!r}` selects no parameter. A hypernetwork generates at least one. "
            'Pass `generate="*"` for all, or globs, module classes and predicates.'
        )
    for its in generate.values() if isinstance(generate, Mapping) else [form or Full()]:
        if not isinstance(its, Form):
            said = its.__name__ if isinstance(its, type) else repr(its)
            raise ConfigError(
                f"`{said}` was given as a form. A form is an object that holds its options. Pass "
                "one, as in `LowRank(4)` or `RowScale()`."
            )


def _owners(base: nn.Module) -> dict[str, nn.Module]:
    """Module of each parameter, by every name of the parameter."""
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
    """Advice for an error: the call of `budget` that keeps a head within a limit.

    Args:
        base: The base network.
        generate: The selectors that were passed, repeated in the advice.
        names: Names of the parameters that they select.
        parameters: Limit of the head. If even the cheapest forms exceed it, the advice uses their
            cost and raises ``largest_head``.
        width: Width of the layer that the head reads.
    """
    said = "" if generate == "*" else f", generate={_said(generate)}"
    least = sum(
        min(cost for _, cost, _ in ladder) for ladder in _ladders(base, names, width).values()
    )
    allow = f", largest_head={least}" if least > parameters else ""
    call = f"budget(base, {max(least, parameters)}, width={width}{said})"
    return f"Use cheaper forms: `generate={call}{allow}`"


def _said(generate: Generate) -> str:
    """Selectors as source code."""
    if isinstance(generate, str):
        return repr(generate)
    if isinstance(generate, type):
        return f"nn.{generate.__name__}" if hasattr(nn, generate.__name__) else generate.__name__
    if callable(generate):
        return getattr(generate, "__name__", "your_predicate")
    return f"[{', '.join(map(_said, generate))}]"
