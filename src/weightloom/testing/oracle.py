"""What a program should give, by copies that persist, and what each engine makes of it.

In:   the names that a program defines, as from running its text.
Out:  a verdict for every engine: ``equal``, ``refused``, ``silent`` or ``unclear``, and in a few words why.
Knows nothing of how an engine runs.
"""

import dataclasses
import inspect
import signal
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from weightloom.base import apply_per_task
from weightloom.errors import WeightloomError
from weightloom.forms import FiLM, Form, LowRank, RowScale
from weightloom.forms.factored import Factored
from weightloom.testing.state import State, trouble

Names = Mapping[str, Any]
PRECISE, ROUGH = 1e-10, 2e-4
"""Difference that is allowed, beside one plus the largest number: in float64, and where a base computes in float32."""
NUDGE, SPREAD = 1e-9, 1e-5
"""How much inputs and values are moved to see whether a program is too sensitive to be compared, and what that moves
its outputs at most."""
LONGEST_S = 5


class Verdict(NamedTuple):
    """What an engine made of a program."""

    verdict: str
    """``equal``, ``refused``, ``silent`` or ``unclear``."""
    message: str = ""


class InvalidProgramError(Exception):
    """The program does not run without this library either, or its numbers cannot be compared."""


class _Different(Exception):  # noqa: N818
    pass


def judge(names: Names, engines: Sequence[str]) -> dict[str, Verdict]:
    """Run a program by persistent copies and by every engine.

    Args:
        names: What the program defines.
        engines: The engines to try.

    Raises:
        InvalidProgramError: If the copies themselves raise, or give numbers that are not finite.
    """
    with _quiet(), _in_time():
        found = _judge(names, engines)
        if any(verdict == "silent" for verdict, _ in found.values()) and _is_sensitive(names):
            raise InvalidProgramError("rounding decides what it computes")
    return found


def _judge(names: Names, engines: Sequence[str]) -> dict[str, Verdict]:
    run = _Run(names)
    bases = {engine: run.made() for engine in engines}
    states = {engine: State(base) for engine, base in bases.items()}
    verdicts = dict.fromkeys(engines, Verdict("equal"))
    for _ in range(names["CALLS"]):
        want = run.expected()
        for engine in engines:
            if verdicts[engine].verdict == "equal":
                verdicts[engine] = run.verdict(engine, bases[engine], states[engine], want)
        names["turn"]()
        for base in (*run.copies, *bases.values()):
            names["change"](base)
        for state in (run.state, *states.values()):
            state.look()
    return verdicts


def _is_sensitive(names: Names) -> bool:
    run, moved = _Run(names), _Run(names, nudge=NUDGE)
    for _ in range(names["CALLS"]):
        one, other = run.expected(), moved.expected()
        for a, b in zip([*one.outputs, *one.gradients], [*other.outputs, *other.gradients], strict=True):
            if isinstance(a, Tensor) and (a.shape != b.shape or not _distance(a, b) <= SPREAD):
                return True
        names["turn"]()
        for base in (*run.copies, *moved.copies):
            names["change"](base)
    return False


class Expected(NamedTuple):
    """What the copies give in one call."""

    kind: Any
    outputs: list[Any]
    """Every leaf: tensors stacked, other values as a list, one for each task."""
    weights: list[Tensor | None]
    """Of the sum whose gradients are compared."""
    gradients: list[Tensor]
    """Of inputs, of every part of the values, and of parameters that are not generated."""
    leaves: list[str]
    """What they are gradients of."""
    changed: set[str]
    """What the forward pass itself changed in a copy."""


class _Run:
    """A program's copies, one for each task, and what they are called with."""

    def __init__(self, names: Names, nudge: float = 0.0) -> None:
        self.names, self.nudge, self.calls = names, nudge, 0
        try:
            self.copies = [self.made() for _ in range(names["TASKS"])]
        except Exception as error:
            raise InvalidProgramError(f"it cannot be built: {error}") from error
        self.state = State(self.copies[0])
        self.values: dict[str, Tensor] = {}

    def made(self) -> nn.Module:
        torch.manual_seed(self.names["SEED"])
        base: nn.Module = self.names["build"]()
        return base.train(self.names["TRAIN"])

    def draw(self) -> None:
        """Draw the inputs of the next call, and its values where they are others."""
        tasks, seed = self.names["TASKS"], self.names["SEED"]
        torch.manual_seed(seed + 1 + self.calls)
        self.args, self.kwargs = self.names["inputs"]()
        if not self.calls or self.names["NEW_PARAMS"]:
            self.values = _values(self.copies[0], self.names, tasks)
        self.calls += 1
        if self.nudge:
            self.args, self.kwargs = mapped(self.moved, (self.args, self.kwargs))
            self.values = {name: _parts_mapped(self.moved, value) for name, value in self.values.items()}

    def moved(self, x: Tensor) -> Tensor:
        return x * (1 + self.nudge * torch.randn_like(x)) + self.nudge * 0.1 if x.is_floating_point() else x

    def fresh(self) -> tuple[Any, Any, dict[str, Tensor], list[Tensor], list[str]]:
        """The call's arguments and values, and everything in them that gets a gradient."""
        leaves: list[Tensor] = []

        def leaf(x: Tensor) -> Tensor:
            x = x.clone()
            if self.names["GRAD"] and x.is_floating_point():
                leaves.append(x.requires_grad_())
            return x

        args, kwargs = mapped(leaf, (self.args, self.kwargs))
        named = ["an input"] * len(leaves)
        values = {name: _parts_mapped(leaf, value) for name, value in self.values.items()}
        named += ["a value"] * (len(leaves) - len(named))
        return args, kwargs, values, leaves, named

    def expected(self) -> Expected:
        """Run the copies once more."""
        self.draw()
        args, kwargs, values, leaves, named = self.fresh()
        shared = self.names["SHARED"]
        dense = {name: value.dense() if isinstance(value, Factored) else value for name, value in values.items()}
        outputs, own, held = [], [], []
        try:
            for task, copy in enumerate(self.copies):
                parameters = dict(copy.named_parameters())
                with torch.no_grad():
                    for name, value in dense.items():
                        parameters[name].requires_grad_()
                        if not torch.equal(parameters[name], value[task]):
                            parameters[name].copy_(value[task])
                own.append([p for name, p in parameters.items() if name not in values and p.requires_grad])
                held.append([parameters[name] for name in values])
                its, by_name = mapped(lambda x, task=task: x[task], (args, {k: kwargs[k] for k in kwargs if k not in shared}))
                with torch.set_grad_enabled(self.names["GRAD"]):
                    outputs.append(copy(*its, **by_name, **{name: kwargs[name] for name in shared}))
        except (KeyboardInterrupt, TimeoutError):
            raise
        except Exception as error:
            raise InvalidProgramError(f"it does not run: {type(error).__name__}: {error}") from error
        kinds = [structure(output) for output in outputs]
        columns = list(zip(*[list(walk(output)) for output in outputs], strict=True)) if all(
            kind == kinds[0] for kind in kinds
        ) else None
        if columns is None:
            raise InvalidProgramError("tasks differ in what they return")
        stacked: list[Any] = []
        for column in columns:
            if isinstance(column[0], Tensor):
                if len({(x.shape, x.dtype) for x in column}) != 1:
                    raise InvalidProgramError("tasks differ in shapes")
                stacked.append(torch.stack(column))
            else:
                stacked.append(list(column))
        tensors = [x for x in stacked if isinstance(x, Tensor)]
        if not all(torch.isfinite(x).all() for x in tensors):
            raise InvalidProgramError("its numbers are not finite")
        torch.manual_seed(self.calls)
        weights = [torch.randn(x.shape, dtype=torch.float64) if _counts(x) else None for x in stacked]
        gradients: list[Tensor] = []
        if self.names["GRAD"]:
            parts = [p for its in held for p in its]
            rest = [p for its in own for p in its]
            try:
                found = _gradients(stacked, weights, [*leaves, *parts, *rest], self.names["BY_BACKWARD"])
                n, many = len(leaves), len(values)
                gradients, per_copy, others = found[:n], found[n : n + len(parts)], found[n + len(parts) :]
                for number, value in enumerate(dense.values()):
                    pulled = torch.stack(per_copy[number::many]) if many else value
                    back = torch.autograd.grad(value, leaves, pulled, allow_unused=True, materialize_grads=True, retain_graph=True) if value.requires_grad else [torch.zeros_like(x) for x in leaves]
                    gradients = [a + b for a, b in zip(gradients, back, strict=True)]
            except RuntimeError as error:
                raise InvalidProgramError(f"it has no gradients: {error}") from error
            each = len(own[0])
            gradients += [sum(others[number::each][1:], others[number]) for number in range(each)]
            named += ["the base's own parameter"] * each
            if not all(torch.isfinite(x).all() for x in gradients):
                raise InvalidProgramError("its gradients are not finite")
        changed = self.state.look()
        return Expected(kinds[0], [x.detach() if isinstance(x, Tensor) else x for x in stacked], weights, gradients, named, changed)

    def verdict(self, engine: str, base: nn.Module, state: State, want: Expected) -> Verdict:
        """Run an engine, and compare."""
        args, kwargs, values, leaves, _ = self.fresh()
        before = [x.detach().clone() for x in leaves]
        names, options = self.names, {}
        if "shared" in inspect.signature(apply_per_task).parameters:
            options["shared"] = names["SHARED"]
        else:
            kwargs = {k: v.expand(names["TASKS"], *v.shape) if k in names["SHARED"] else v for k, v in kwargs.items()}
        random = torch.get_rng_state()
        own = [p for name, p in base.named_parameters() if name not in values and p.requires_grad]
        try:
            with torch.set_grad_enabled(names["GRAD"]):
                outputs = apply_per_task(
                    base, values, *args, kwargs=kwargs, engine=engine, chunk_size=names["CHUNK_SIZE"],  # type: ignore[arg-type]
                    statistics=names["STATISTICS"], randomness=names["RANDOMNESS"], **options,
                )
            _compare_outputs(outputs, want, names)
            if names["GRAD"]:
                tensors = list(walk(outputs))
                found = _gradients(tensors, want.weights, [*leaves, *own], names["BY_BACKWARD"])
                for what, a, b in zip(want.leaves, found, want.gradients, strict=True):
                    _compare(a, b, f"the gradient of {what}", names)
        except WeightloomError as error:
            return self.after(state, want, random, Verdict("refused", f"{type(error).__name__}: {error}"))
        except _Different as error:
            return Verdict("silent", str(error))
        except (KeyboardInterrupt, TimeoutError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            return Verdict("unclear", f"{type(error).__name__}: {first}")
        if not all(torch.equal(a, b) for a, b in zip(before, leaves, strict=True)):
            return Verdict("silent", "inputs or values were changed in place")
        return self.after(state, want, random, Verdict("equal"))

    def after(self, state: State, want: Expected, random: Tensor, verdict: Verdict) -> Verdict:
        """Look at what the call left behind."""
        if not torch.equal(random, torch.get_rng_state()):
            return Verdict("silent", "torch's random state moved")
        if found := trouble(state, want.changed, self.copies):
            return Verdict("silent", found)
        return verdict


def _compare_outputs(outputs: Any, want: Expected, names: Names) -> None:
    kind = structure(outputs)
    if kind != want.kind:
        raise _Different(f"it returns {kind}, not {want.kind}")
    for ours, its in zip(walk(outputs), want.outputs, strict=True):
        if isinstance(its, Tensor):
            if ours.dtype != its.dtype:
                raise _Different(f"an output is {ours.dtype}, not {its.dtype}")
            _compare(ours, its, "an output", names)
        elif not _same_plain(ours, its):
            raise _Different(f"it returns {ours!r}; tasks return {its!r}")


def _same_plain(ours: Any, each: list[Any]) -> bool:
    if isinstance(ours, float):
        return all(abs(ours - its) <= ROUGH * (1 + abs(its)) for its in each)
    return all(type(ours) is type(its) and ours == its for its in each)


def _compare(ours: Tensor, its: Tensor, what: str, names: Names) -> None:
    if ours.shape != its.shape:
        raise _Different(f"{what} has shape {tuple(ours.shape)}, not {tuple(its.shape)}")
    allowed = ROUGH if names.get("ROUGH") or its.dtype == torch.float32 else PRECISE
    off = _distance(its, ours.detach())
    if not off <= allowed:
        raise _Different(f"{what} is off by {off:.2g}")


def _distance(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else torch.inf
    return float((a - b).abs().max() / (1 + a.abs().max()))


def _counts(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def _gradients(
    outputs: Sequence[Any], weights: Sequence[Tensor | None], leaves: Sequence[Tensor], by_backward: bool
) -> list[Tensor]:
    """Gradients of a weighted sum; re-entrant checkpoints know ``backward`` alone."""
    terms = [(x * w).sum() for x, w in zip(outputs, weights, strict=True) if w is not None and x.requires_grad]
    if not terms or not leaves:
        return [torch.zeros_like(leaf) for leaf in leaves]
    total = torch.stack([term.double() for term in terms]).sum()
    if by_backward:
        total.backward(retain_graph=True)
        found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        return found
    return list(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True, retain_graph=True))


def _values(base: nn.Module, names: Names, tasks: int) -> dict[str, Tensor]:
    """Values for parameters of the base, some of them held by forms."""
    values: dict[str, Tensor] = {}
    own = dict(base.named_parameters())
    for name, parameter in own.items():
        random = Random(f"{names['SEED']} {name}")
        scale = 0.5 if parameter.ndim > 1 else 1.0
        value = (scale * torch.randn(tasks, *parameter.shape)).to(parameter.dtype)
        if random.random() > 0.67 and not names["ALL"]:
            continue
        values[name] = value
        form: Form | None = random.choice([None, LowRank(1), RowScale(), FiLM()])
        if names["FORMS"] and form is not None:
            owner = base.get_submodule(name.rpartition(".")[0])
            form = form.fit(tuple(parameter.shape), owner)
            if form is not None:
                shapes = form.factor_shapes(tuple(parameter.shape))
                factors = {part: (0.5 * torch.randn(tasks, *its)).to(value.dtype) for part, its in shapes.items()}
                values[name] = form.value(value[0], factors, form.shared(tuple(parameter.shape)))
    return values or {"one.bias": torch.randn(tasks, *own["one.bias"].shape)}


def _parts_mapped(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    return value.map_all(function) if isinstance(value, Factored) else function(value)


def walk(tree: Any) -> Iterator[Any]:
    """Every leaf of nested tuples, lists, dicts, dataclasses and plain objects."""
    if isinstance(tree, list | tuple):
        for part in tree:
            yield from walk(part)
    elif isinstance(tree, dict):
        for part in tree.values():
            yield from walk(part)
    elif _is_record(tree):
        yield from walk(vars(tree))
    else:
        yield tree


def structure(tree: Any) -> Any:
    """Types and keys of everything around the leaves; a tensor or not is all that is said of a leaf."""
    if isinstance(tree, list | tuple):
        kind = "tuple" if isinstance(tree, torch.Size) else type(tree).__name__
        return [kind, *(structure(part) for part in tree)]
    if isinstance(tree, dict):
        return [type(tree).__name__, {key: structure(part) for key, part in tree.items()}]
    if _is_record(tree):
        return [type(tree).__name__, structure(vars(tree))]
    return "tensor" if isinstance(tree, Tensor) else "value"


def mapped(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """The same tree with every tensor replaced."""
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*[mapped(function, part) for part in tree])
    if isinstance(tree, list | tuple):
        return type(tree)([mapped(function, part) for part in tree])
    if isinstance(tree, dict):
        return {key: mapped(function, part) for key, part in tree.items()}
    if _is_record(tree):
        return type(tree)(**{key: mapped(function, part) for key, part in vars(tree).items()})
    return function(tree) if isinstance(tree, Tensor) else tree


def _is_record(tree: Any) -> bool:
    is_dataclass = dataclasses.is_dataclass(tree) and not isinstance(tree, type)
    return is_dataclass or isinstance(tree, types.SimpleNamespace)


@contextmanager
def _quiet() -> Iterator[None]:
    """In float64, without warnings; torch's random state is left alone."""
    dtype = torch.get_default_dtype()
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        warnings.simplefilter("ignore")
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


@contextmanager
def _in_time() -> Iterator[None]:
    """Stop what hangs."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it takes more than {LONGEST_S} s")

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LONGEST_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
