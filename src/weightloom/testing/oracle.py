"""Comparison of the engines with persistent copies of a program's base, one copy per task.

In:   the names that a program defines, from running its text.
Out:  a verdict per engine, and its reason as a phrase. ``equal``: outputs, gradients and side
      effects are those of the copies. ``refused``: an error of this library. ``silent``: a wrong
      result. ``unclear``: an error of another library.
Independent of the implementation of the engines.
"""

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weightloom.base import apply_per_task
from weightloom.errors import WeightloomError
from weightloom.forms.factored import built
from weightloom.platforms import alarm
from weightloom.testing.copies import (
    Expected,
    InvalidProgramError,
    Names,
    ProgramRun,
    weighted_gradients,
)
from weightloom.testing.state import State, is_dead, trouble
from weightloom.testing.trees import structure, walk

PRECISE, ROUGH = 1e-10, 2e-4
"""Tolerances relative to one plus the largest number: in float64, and for a base that computes in
float32."""
NUDGE, SPREAD = 1e-9, 1e-5
"""Relative perturbation of inputs and values, and the maximum relative change of outputs and
gradients for which a program is not too sensitive to be compared."""
OPTIONS = ("shared", "chunk_size", "statistics", "randomness")
"""Options of `apply_per_task` that a program sets, in capitals."""
LONGEST_S = 5
"""Time limit of one call of an engine, in seconds."""


class Verdict(NamedTuple):
    """Result of one engine on a program."""

    verdict: str
    """``equal``, ``refused``, ``silent`` or ``unclear``."""
    message: str = ""
    """Reason, as a phrase; empty for ``equal``."""


class _Different(Exception):  # noqa: N818
    pass


def judge(names: Names, engines: Sequence[str]) -> dict[str, Verdict]:
    """Run a program by persistent copies and by every engine, and compare.

    Args:
        names: Names that the program defines.
        engines: Engines to test.

    Returns:
        The verdict on each engine.

    Raises:
        InvalidProgramError: If the copies raise an error or give NaN or infinity, or a wrong result
            may be due to rounding.
    """
    with _quiet():
        found = _judge(names, engines)
        if any(verdict == "silent" for verdict, _ in found.values()) and _is_sensitive(names):
            raise InvalidProgramError("its result depends on rounding")
    return found


def _judge(names: Names, engines: Sequence[str]) -> dict[str, Verdict]:
    run = ProgramRun(names)
    bases = {engine: run.made() for engine in engines}
    states = {engine: State(base) for engine, base in bases.items()}
    verdicts = dict.fromkeys(engines, Verdict("equal"))
    for _ in range(names["CALLS"]):
        want = run.expected()
        for engine in engines:
            if verdicts[engine].verdict == "equal":
                verdicts[engine] = _verdict(run, engine, states[engine], want)
        names["turn"]()
        for base in (*run.copies, *bases.values()):
            names["change"](base)
        for state in (run.state, *states.values()):
            state.look()
    return verdicts


def _is_sensitive(names: Names) -> bool:
    run, moved = ProgramRun(names), ProgramRun(names, nudge=NUDGE)
    for _ in range(names["CALLS"]):
        one, other = run.expected(), moved.expected()
        if one.kind != other.kind:
            return True
        for a, b in zip(
            [*one.outputs, *one.gradients], [*other.outputs, *other.gradients], strict=True
        ):
            if isinstance(a, Tensor) and (a.shape != b.shape or not _distance(a, b) <= SPREAD):
                return True
        names["turn"]()
        for base in (*run.copies, *moved.copies):
            names["change"](base)
    return False


def _verdict(run: ProgramRun, engine: Any, state: State, want: Expected) -> Verdict:
    """Run one call of an engine, and compare it with the copies."""
    args, kwargs, values, leaves, _ = run.fresh()
    before = [x.detach().clone() for x in leaves]
    base, names = state.base, run.names
    options = {option: names[option.upper()] for option in OPTIONS}
    random = torch.get_rng_state()
    own = [p for name, p in base.named_parameters() if name not in values and p.requires_grad]
    try:
        with _in_time(), torch.set_grad_enabled(names["GRAD"]):
            outputs = apply_per_task(base, values, *args, kwargs=kwargs, engine=engine, **options)
        _check_unchanged(before, leaves)
        _compare_outputs(outputs, want, names)
        if names["GRAD"]:
            _compare_gradients(outputs, want, [*leaves, *own], names)
    except WeightloomError as error:
        refused = Verdict("refused", f"{type(error).__name__}: {error}")
        return _after(run, state, want, random, refused)
    except _Different as error:
        return Verdict("silent", str(error))
    except Exception as error:
        return Verdict("unclear", f"{type(error).__name__}: {_first_line(error)}")
    return _after(run, state, want, random, Verdict("equal"))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _after(
    run: ProgramRun, state: State, want: Expected, random: Tensor, verdict: Verdict
) -> Verdict:
    """Return the verdict, or ``silent`` if the call had forbidden side effects."""
    if not torch.equal(random, torch.get_rng_state()):
        return Verdict("silent", "torch's random state moved")
    if found := trouble(state, want.changed, run.copies):
        return Verdict("silent", found)
    return verdict


def _check_unchanged(before: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
    if not all(torch.equal(a, b) for a, b in zip(before, leaves, strict=True)):
        raise _Different("inputs or values were changed in place")


def _compare_gradients(
    outputs: Any, want: Expected, leaves: Sequence[Tensor], names: Names
) -> None:
    found = weighted_gradients(list(walk(outputs)), want.weights, leaves, names["BY_BACKWARD"])
    for name, a, b in zip(want.leaves, found, want.gradients, strict=True):
        _compare(a, b, f"the gradient of {name}", names)


def _compare_outputs(outputs: Any, want: Expected, names: Names) -> None:
    kind = structure(outputs)
    if kind != want.kind:
        raise _Different(f"it returns {kind}, not {want.kind}")
    for ours, its in zip(walk(outputs), want.outputs, strict=True):
        if isinstance(its, Tensor):
            ours = built(ours)
            if is_dead(ours):
                raise _Different("an output cannot be read")
            if ours.dtype != its.dtype:
                raise _Different(f"an output is {ours.dtype}, not {its.dtype}")
            _compare(ours, its, "an output", names)
        elif not _same_plain(ours, its):
            raise _Different(f"it returns {ours!r}; tasks return {its!r}")


def _same_plain(ours: Any, each: list[Any]) -> bool:
    if isinstance(ours, float):
        return all(abs(ours - its) <= ROUGH * (1 + abs(its)) for its in each)
    return all(type(ours) is type(its) and ours == its for its in each)


def _compare(ours: Tensor, its: Tensor, name: str, names: Names) -> None:
    if ours.shape != its.shape:
        raise _Different(f"{name} has shape {tuple(ours.shape)}, not {tuple(its.shape)}")
    allowed = ROUGH if names.get("ROUGH") or its.dtype == torch.float32 else PRECISE
    off = _distance(its, ours.detach())
    if not off <= allowed:
        raise _Different(f"{name} is off by {off:.2g}")


def _distance(a: Tensor, b: Tensor) -> float:
    if not a.numel():
        return 0.0
    if not (a.is_floating_point() or a.is_complex()):
        return 0.0 if torch.equal(a, b) else torch.inf
    return float((a - b).abs().max() / (1 + a.abs().max()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Compute in float64 and without warnings; restore dtype and random state afterwards."""
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
    """Raise TimeoutError in the block after `LONGEST_S`; no limit outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"it takes more than {LONGEST_S} s")

    with alarm(LONGEST_S, stop):
        yield
