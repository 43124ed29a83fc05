"""Export of a whole method as one program that needs no part of this library.

In:   a trained `Learner`, example tasks that define the shapes, and a folder.
Out:  ``whole.pt2`` for ``torch.export.load``, ``whole.onnx``, and ``whole.json``, which describes
      their inputs and outputs. The programs map support set and queries to predictions.
A ``.pt2`` file of a stranger can run code when it is loaded.
"""

import copy
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightloom.errors import ConfigError, MissingExtraError, WeightloomError
from weightloom.files import check_empty, make_folder, write_atomically
from weightloom.learners.learner import Learner, Support
from weightloom.tasks import Examples, Tasks
from weightloom.texts import kind_of

INPUTS = ("support_x", "support_y", "support_mask", "query_x")
LIMIT = 1e-4
"""Maximum difference of a program from the method, relative to the largest prediction or 1."""

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def export_whole(
    learner: Learner,
    example: Tasks,
    folder: Path,
    onnx: bool = True,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write encoder, hypernetwork and base network as one program.

    The program takes any number of tasks, shots and queries, and as many classes as the example.
    Before the folder is filled, the program is loaded, run with several such numbers, and compared
    with the learner.

    Args:
        learner: The method, left unchanged; the program is made from a copy in eval mode on the
            CPU.
        example: Tasks that define the shapes and on which the programs are tried. Their query
            targets are not read.
        folder: Folder to write to; created if missing.
        onnx: Write ``whole.onnx`` too, which needs the extra ``weightloom[export]``.
        about: Further entries of ``whole.json``, such as on the network that reads its inputs.

    Returns:
        Contents of ``whole.json``.

    Raises:
        ConfigError: If the method cannot be written as a program, a program differs from the
            method by more than `LIMIT`, or ``folder`` already holds a program.
        MissingExtraError: If ``onnx`` is True and the extra is not installed.
    """
    _check_folder(folder)
    _check_onnx(onnx)
    _check_kind(learner)
    whole = _Whole(learner, example)
    with torch.no_grad(), _quiet(), _in_folder(folder) as made:
        program = _written(whole, _sized(example, 3, max(whole.shots, 2), max(whole.queries, 2)))
        torch.export.save(program, made / "whole.pt2")
        runs: dict[str, Callable[..., Tensor]] = {
            "whole.pt2": torch.export.load(made / "whole.pt2").module()
        }
        if onnx:
            runs["whole.onnx"] = _as_onnx(whole, program, made / "whole.onnx")
        tried = whole.tried()
        facts = {
            "method": type(learner).__name__,
            "inputs": {
                name: {
                    "shape": [*whole.axes[name].values(), *value.shape[len(whole.axes[name]) :]],
                    "dtype": _kind(value),
                }
                for name, value in zip(INPUTS, _inputs(example), strict=True)
            },
            "output": {"prediction": ["tasks", "queries", *whole(*_inputs(example)).shape[2:]]},
            "tried": [
                dict(zip(("tasks", "shots", "queries"), sizes, strict=True)) for sizes in tried
            ],
            "largest_difference": {
                name: max(_difference(name, run, whole, _sized(example, *sizes)) for sizes in tried)
                for name, run in runs.items()
            },
            "files": [*runs, "whole.json"],
            "largest_prediction": float(whole(*_inputs(example)).abs().max()),
            "torch": torch.__version__,
            **(about or {}),
        }
        write_atomically(made / "whole.json", json.dumps(facts, indent=1) + "\n")
    return facts


class _Whole(nn.Module):
    """A method as one module: support set and queries to predictions.

    Args:
        learner: The method; a frozen copy of it is used, in eval mode on the CPU.
        example: Tasks whose labels define the number of classes.
    """

    def __init__(self, learner: Learner, example: Tasks) -> None:
        super().__init__()
        self.learner = copy.deepcopy(learner).cpu().eval().requires_grad_(False)
        if not example.support_y.is_floating_point() and example.support_y.numel():
            self.learner.ways = learner.ways or int(example.support_y.max()) + 1
        self.shots, self.queries = example.support_x.shape[1], example.query_x.shape[1]
        of_support = {0: "tasks", 1: "shots"}
        self.axes = dict.fromkeys(INPUTS, of_support) | {"query_x": {0: "tasks", 1: "queries"}}
        if getattr(learner, "encoder", learner) is None:
            self.axes["support_x"] = {0: "tasks"}  # a condition, (tasks, condition_dim)

    def forward(
        self, support_x: Tensor, support_y: Tensor, support_mask: Tensor, query_x: Tensor
    ) -> Tensor:
        """Adapt to the support sets and predict the queries."""
        return self.learner.predict(
            self.learner.adapt(Support(support_x, support_y, support_mask)), query_x
        )

    def tried(self) -> list[tuple[int, int, int]]:
        """Return numbers of tasks, shots and queries to try: the example's, fewer and more."""
        fewer = max(self.shots // 2, 1)
        return [
            (3, self.shots, self.queries),
            (1, self.shots, 1),
            (2, fewer, self.queries + 1),
            (5, self.shots + 1, 2),
        ]


def _inputs(tasks: Tasks) -> Inputs:
    """Return the inputs of a program, in order."""
    return (
        tasks.support_x.cpu().contiguous(),
        tasks.support_y.cpu().contiguous(),
        tasks.support_mask.cpu().contiguous(),
        tasks.query_x.cpu().contiguous(),
    )


def _sized(example: Tasks, tasks: int, shots: int, queries: int) -> Tasks:
    """Return a given number of tasks, shots and queries, repeating those of the example."""

    def some(examples: Examples, count: int) -> Examples:
        rows = examples.mask.shape[1]  # a condition in place of the inputs has no axis of rows
        return examples.map(
            lambda its: its[:, torch.arange(count) % rows] if its.shape[1:2] == (rows,) else its
        )

    few = example.take(torch.arange(tasks) % len(example.support_mask))
    return Tasks(some(few.support, shots), some(few.query, queries), few.hidden, few.classes)


def _written(whole: _Whole, example: Tasks) -> torch.export.ExportedProgram:
    """Export the method by `torch.export`, with dynamic tasks, shots and queries."""
    dynamic = tuple(dict.fromkeys(whole.axes[name], torch.export.Dim.DYNAMIC) for name in INPUTS)
    try:
        return torch.export.export(whole, _inputs(example), dynamic_shapes=dynamic)
    except WeightloomError:
        raise
    except Exception as error:  # torch raises errors of many types
        raise _refused(
            whole.learner,
            f"`torch.export` stops at: {_first_line(error)}. A program has no steps that depend on "
            "numbers, and holds for any number of tasks only if the code does not fix that number, "
            "as `len(x)` does",
        ) from error


def _as_onnx(
    whole: _Whole, program: torch.export.ExportedProgram, path: Path
) -> Callable[..., Tensor]:
    """Write the program as ONNX, and return a function that runs the file."""
    import onnxruntime

    try:
        torch.onnx.export(
            program,
            dynamo=True,
            f=path,
            input_names=[*INPUTS],
            output_names=["prediction"],
            dynamic_shapes=whole.axes,
            external_data=False,
            verbose=False,
        )
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # of torch, onnxscript or onnxruntime
        raise _refused(
            whole.learner,
            f"its program cannot be translated to ONNX: {_first_line(error)}. Pass `onnx=False` to "
            "write `whole.pt2` alone",
        ) from error
    known = {given.name for given in session.get_inputs()}

    def run(*inputs: Tensor) -> Tensor:
        feed = {
            name: value.numpy() for name, value in zip(INPUTS, inputs, strict=True) if name in known
        }
        return torch.from_numpy(session.run(None, feed)[0])

    return run


def _difference(name: str, run: Callable[..., Tensor], whole: _Whole, tasks: Tasks) -> float:
    """Return the maximum difference of a program from the method on some tasks.

    Raises:
        ConfigError: If the difference is above `LIMIT`, or the shapes differ.
    """
    inputs = _inputs(tasks)
    expected = whole(*inputs)
    found = run(*inputs)
    difference = (
        float((found - expected).abs().max()) if found.shape == expected.shape else float("inf")
    )
    largest = max(1.0, float(expected.abs().max()))
    if not difference <= LIMIT * largest:
        sizes = (
            f"{len(tasks.support_x)} tasks, {tasks.support_mask.shape[1]} shots, "
            f"{tasks.query_x.shape[1]} queries"
        )
        raise _refused(
            whole.learner,
            f"`{name}` differs from the run by {difference:.2g} for {sizes}, where predictions go "
            f"up to {largest:.2g} and {LIMIT * largest:.0e} is allowed. It draws random numbers, "
            "or loses digits that the run keeps",
        )
    return difference


def _check_folder(folder: Path) -> None:
    if kind_of(folder / "whole.json") != "nothing":
        raise ConfigError(
            f"`{folder}` holds a program already. It is never overwritten. Pass another folder."
        )
    check_empty(folder, "--out")


def _check_onnx(onnx: bool) -> None:
    lacking = [
        name for name in ("onnx", "onnxscript", "onnxruntime") if onnx and find_spec(name) is None
    ]
    if lacking:
        raise MissingExtraError(
            f"{', '.join(f'`{name}`' for name in lacking)} not installed. `whole.onnx` is written "
            "and tried with them. Type `pip install 'weightloom[export]'`, or pass `onnx=False` to "
            "write `whole.pt2` alone."
        )


def _check_kind(learner: Learner) -> None:
    if learner.inner_loop:
        raise _refused(
            learner,
            "`adapt` takes gradient steps, which a program cannot hold: it has no backward pass",
        )
    if not learner.trained:
        raise _refused(
            learner,
            "it is fitted to each task alone, and has no trained part that a program could hold",
        )


def _refused(learner: Learner, why: str) -> ConfigError:
    return ConfigError(
        f"{type(learner).__name__} cannot be exported whole: {why}. No file was written. The "
        "network of one task can be exported: type `weightloom export RUN --task 0`, or call "
        "`weightloom.specialise`."
    )


@contextmanager
def _in_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files are moved to ``folder`` if the block succeeds."""
    make_folder(folder.parent, "--out")
    made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        yield made
        folder.mkdir(exist_ok=True)
        # `whole.json` comes last: its presence marks the folder as complete.
        for path in sorted(made.iterdir(), key=lambda path: path.suffix == ".json"):
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(made)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log and the warnings of torch's exporters."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def _kind(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
