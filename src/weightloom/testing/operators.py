"""The sample inputs of torch's own operator database, run through every row rule and every engine.

In:   nothing; torch's database, where it can be imported (it needs the package ``expecttest``).
Out:  a `FuzzReport`, whose seeds are numbers of samples.
Knows nothing of how an engine runs.

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
"""Of an operator, at most."""
LARGEST = 4000
"""Numbers in a sample's input, at most."""


def operators(
    engines: Sequence[str] = ENGINES, samples: int = SAMPLES, names: Sequence[str] | None = None
) -> FuzzReport:
    """Run every operator that has a row rule or an aligned answer on torch's own sample inputs.

    The base scales its input by a parameter of each task and applies the operator. The sample's
    other tensors are the same for all tasks, in half of the runs, and parameters of each task in
    the others.

    Args:
        engines: The engines to try.
        samples: How many samples of an operator, at most.
        names: Operators by torch's names; None takes all that the library has a rule for.

    Raises:
        ImportError: If torch's database cannot be imported.
    """
    cases = enumerate(_cases(samples, names))
    return tally(
        ((number, f"{name}: ", partial(judge, case, engines)) for number, (name, case) in cases),
        engines,
    )


class Applied(nn.Module):
    """Scales its input and applies an operator to it and to what else a sample holds."""

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

        self.args, self.kwargs = mapped(held, (tuple(args), kwargs))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Any:
        """Apply the operator."""
        args, kwargs = _filled(self.own, (self.args, self.kwargs))
        return self.function(x * self.scale if x.is_floating_point() else x, *args, **kwargs)


class _Held(int):
    """The number of a parameter that stands for a tensor of the sample."""


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


def _cases(samples: int, names: Sequence[str] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from torch.testing._internal.common_methods_invocations import op_db
    except ImportError as error:
        raise ImportError(
            f"torch's operator database cannot be imported ({error}). It is part of torch's own "
            "tests, which need `expecttest`. Install it: `pip install expecttest`."
        ) from error
    for operator in op_db:
        functions = {operator.op, operator.method_variant, operator.inplace_variant} - {None}
        known = functions & {*RULES, *ANSWERS}
        if not (known if names is None else operator.name in names):
            continue
        if torch.float64 not in operator.dtypes:
            continue
        torch.manual_seed(0)
        with_gradients = operator.supports_autograd
        inputs = operator.sample_inputs("cpu", torch.float64, requires_grad=False)
        for number, sample in zip(range(samples), inputs, strict=False):
            x = sample.input
            if not isinstance(x, Tensor) or not x.ndim or not 0 < x.numel() <= LARGEST:
                continue
            for function in sorted(known or {operator.op}, key=repr):
                is_inplace = function is operator.inplace_variant
                for is_generated in (False, True):
                    if is_generated and not any(
                        isinstance(leaf, Tensor) and leaf.is_floating_point()
                        for leaf in torch.utils._pytree.tree_leaves((sample.args, sample.kwargs))
                    ):
                        continue
                    called = f"{operator.name}, sample {number}{', in place' if is_inplace else ''}"
                    parts = function, sample.args, sample.kwargs, is_generated
                    yield called, _case(parts, x.detach(), with_gradients)


def _case(parts: tuple[Any, ...], x: Tensor, with_gradients: bool) -> dict[str, Any]:
    """What a program would define."""

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
    """Run the command; return 1 where an engine was silently wrong or failed in words not its own."""
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
