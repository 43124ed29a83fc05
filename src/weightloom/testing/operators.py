"""Test of all row rules and engines on the sample inputs of torch's own operator database.

In:   torch's database, if it can be imported (it needs the package ``expecttest``).
Out:  a `FuzzReport`, whose seeds are numbers of samples.
Independent of the implementation of the engines.

Run:  ``python -m weightloom.testing.operators``
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.base.aligned import ANSWERS
from weightloom.base.row_rules import RULES
from weightloom.testing.fuzz import ENGINES, FuzzReport, tally
from weightloom.testing.oracle import judge
from weightloom.testing.programs import Settings
from weightloom.testing.trees import mapped

SAMPLES = 12
"""Maximum number of samples per operator."""
LARGEST = 4000
"""Maximum number of elements in a sample's input."""


def operators(
    engines: Sequence[str] = ENGINES, samples: int = SAMPLES, names: Sequence[str] | None = None
) -> FuzzReport:
    """Run operators on torch's own sample inputs by every engine, and compare with copies per task.

    The base scales its input by a generated parameter and applies the operator. In half of the runs
    the other tensors of the sample are shared by all tasks, in the others they are generated
    parameters too.

    Args:
        engines: Engines to test.
        samples: Maximum number of samples per operator.
        names: Operators by torch's names. None: all with a row rule or an aligned answer.

    Raises:
        ImportError: If torch's database cannot be imported.
    """
    cases = enumerate(_cases(samples, names))
    return tally(
        ((number, f"{name}: ", partial(judge, case, engines)) for number, (name, case) in cases),
        engines,
    )


class Applied(nn.Module):
    """Base that scales its input, and applies an operator to it and a sample's other arguments."""

    def __init__(self, function: Any, args: Any, kwargs: Any, is_generated: bool) -> None:
        super().__init__()
        self.one = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(()))
        self.own = nn.ParameterList()
        self.function = function

        def held(x: Tensor) -> Tensor | int:
            if not is_generated or not x.is_floating_point():
                return x
            self.own.append(nn.Parameter(x.clone()))
            return _Held(len(self.own) - 1)

        self.args, self.kwargs = mapped(held, (tuple(args), kwargs))

    def forward(self, x: Tensor) -> Any:
        """Return the operator's outputs."""
        args, kwargs = _filled(self.own, (self.args, self.kwargs))
        return self.function(x * self.scale if x.is_floating_point() else x, *args, **kwargs)


class _Held(int):
    """Index of the parameter that replaces a tensor of the sample."""


def _filled(own: nn.ParameterList, tree: Any) -> Any:
    if isinstance(tree, _Held):
        return own[tree]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[_filled(own, part) for part in tree])
    if isinstance(tree, list | tuple):
        return type(tree)([_filled(own, part) for part in tree])
    if isinstance(tree, dict):
        return {key: _filled(own, part) for key, part in tree.items()}
    return tree


def _database() -> list[Any]:
    try:
        from torch.testing._internal.common_methods_invocations import op_db
    except ImportError as error:
        raise ImportError(
            f"torch's operator database cannot be imported ({error}). It is part of torch's own "
            "tests, which need `expecttest`. Install it: `pip install expecttest`."
        ) from error
    found: list[Any] = op_db
    return found


def _cases(samples: int, names: Sequence[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    for operator in _database():
        functions = {operator.op, operator.method_variant, operator.inplace_variant} - {None}
        known = functions & {*RULES, *ANSWERS}
        wanted = bool(known) if names is None else operator.name in names
        if wanted and torch.float64 in operator.dtypes:
            for function, (number, sample) in _samples(operator, known or {operator.op}, samples):
                in_place = ", in place" if function is operator.inplace_variant else ""
                called = f"{operator.name}, sample {number}{in_place}"
                for is_generated in (False, True) if _has_numbers(sample) else (False,):
                    parts = function, sample.args, sample.kwargs, is_generated
                    x = sample.input.detach()
                    yield called, _case(parts, x, operator.supports_autograd)


def _samples(operator: Any, functions: set[Any], most: int) -> Iterator[tuple[Any, Any]]:
    """Iterate over the numbered samples of a size that can be tested, with each function."""
    torch.manual_seed(0)
    inputs = operator.sample_inputs("cpu", torch.float64, requires_grad=False)
    for number, sample in zip(range(most), inputs, strict=False):
        x = sample.input
        if isinstance(x, Tensor) and x.ndim and 0 < x.numel() <= LARGEST:
            for function in sorted(functions, key=repr):
                yield function, (number, sample)


def _has_numbers(sample: Any) -> bool:
    """Return True if an argument besides the input has a floating-point tensor."""
    leaves = torch.utils._pytree.tree_leaves((sample.args, sample.kwargs))
    return any(isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves)


def _case(parts: tuple[Any, ...], x: Tensor, with_gradients: bool) -> dict[str, Any]:
    """Return the names that an equivalent program would define."""

    def inputs() -> tuple[tuple[Tensor], dict[str, Any]]:
        each = [
            x,
            *(
                x * (1 + 0.1 * torch.rand_like(x)) if x.is_floating_point() else x
                for _ in range(Settings.TASKS - 1)
            ),
        ]
        return (torch.stack(each),), {}

    settings = {its.name: its.default for its in fields(Settings)}
    return {
        **settings,
        "SEED": 0,
        "SHARED": (),
        "GRAD": with_gradients,
        "ROUGH": False,
        "BY_BACKWARD": False,
        "build": lambda: Applied(*parts),
        "inputs": inputs,
        "change": lambda base: None,
        "turn": lambda: None,
    }


def main() -> int:
    """Run the command; return 1 if a verdict was ``silent`` or ``unclear``, else 0."""
    torch.set_num_threads(1)
    try:
        report = operators()
    except ImportError as error:
        print(error)
        return 0
    print(report)
    for finding in report.findings:
        print(f"{finding.verdict} {finding.engine} {finding.message}")
    return int(bool(report.findings))


if __name__ == "__main__":
    raise SystemExit(main())
