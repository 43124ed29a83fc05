"""Equations from 30 noisy points of their solutions: through a generated network, and the solver.

    python benchmarks/fields_inverse.py --minutes 3 --record benchmarks/records/fields-inverse.json

A surrogate is trained first, for this many minutes of processor time. All ways to predict get the
same points, starts, optimiser and steps. The same record holds the seconds of the surrogate and of
coarser and coarser runs of the solver for the same solutions. Times are processor seconds.
"""

import argparse
import math
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightloom.apps.fields.inverse import Inverted, Predict, invert, through_solver
from weightloom.apps.fields.problem import predict_grid
from weightloom.apps.fields.trained import TrainedField, train
from weightloom.apps.fields.training import UntrainedSurrogate
from weightloom.runs.record import environment, summary, write_record
from weightloom.tasks.fields import COEFFICIENTS, FieldFamily, Fields, make_fields, relative_error

PROBLEMS, POINTS, NOISE = 20, 30, 0.02
"""Equations to find, points of each, and the noise as a share of their root mean square."""
STARTS, STEPS, RATE = 6, 400, 0.1
"""Options of `invert`, the same for all."""
SEED = 2_000_003
"""Seed of the equations, those of no training and no test."""
FINE, COARSE = (128, 96), (64, 48)
"""Points and time steps of the two solvers inside the loop."""
GRIDS = ((32, 32), (32, 64), (64, 32), (64, 64), (64, 96), (128, 96), (128, 192), (256, 192))
"""Points and time steps of coarse runs, from cheap to dear."""
TIMED = 64
"""Solutions whose prediction is timed."""

Score = dict[str, Any]


def spent(call: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Return the least processor seconds of a call, and its last result."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        found = call()
        seconds.append(time.process_time() - start)
    return min(seconds), found


def score(method: str, setting: str, values: Tensor) -> Score:
    """Return a row of the record, lower is better."""
    return {
        "method": method,
        "setting": setting,
        "name": "seconds" if "seconds" in setting else "misfit" if "misfit" in setting else "error",
        "better": "lower",
        **summary(values),
        "tasks": len(values),
        "also": {"median": {"mean": float(values.median())}},
    }


def points_of(family: FieldFamily) -> tuple[Fields, Tensor, Tensor, Tensor]:
    """Draw equations, and noisy values at random positions: fields, positions, values, noise."""
    chance = torch.Generator().manual_seed(SEED)
    fields = make_fields(family, PROBLEMS, chance)
    at = torch.rand(PROBLEMS, POINTS, 2, generator=chance)
    at = at * torch.tensor([2 * math.pi, family.end])
    with torch.no_grad():
        exact = through_solver(family, points=256, steps=192)(fields.inputs, at)
    noise = NOISE * exact.square().mean(1).sqrt()
    values = exact + noise[:, None] * torch.randn(exact.shape, generator=chance)
    return fields, at, values, noise


def errors(found: Inverted, fields: Fields, predict: Predict) -> dict[str, Tensor]:
    """Return the errors of the equations found, each (problems,).

    The field is that of the method itself, at the inputs that it found.
    """
    off = (found.inputs - fields.inputs).abs()
    states = (its[:, COEFFICIENTS:] for its in (found.inputs, fields.inputs))
    at = torch.cartesian_prod(fields.t, fields.x).flip(1)
    with torch.no_grad():
        field = predict(found.inputs, at.expand(len(off), *at.shape))
    return {
        "relative error of the speed": off[:, 0] / fields.inputs[:, 0],
        "error of the logarithm of the viscosity": off[:, 1],
        "relative error of the initial state": relative_error(*states),
        "relative error of the field": relative_error(field, fields.values.flatten(1)),
        "misfit": found.misfit,
    }


def inverse_problems(trained: TrainedField) -> list[Score]:
    """Solve all inverse problems in each way, and return errors and seconds."""
    family = trained.problem.family
    fields, at, values, noise = points_of(family)
    kernel = UntrainedSurrogate("kernel", trained.problem)
    ways: dict[str, Predict] = {
        "generated": trained.model.predict,
        "kernel": kernel.predict,
        **{
            f"solver, {points} points, {steps} steps": through_solver(
                family, points=points, steps=steps
            )
            for points, steps in (COARSE, FINE)
        },
    }
    scores = []
    for name, predict in ways.items():
        solve = partial(
            invert, predict, family, at, values, noise=noise, starts=STARTS, learning_rate=RATE
        )
        solve(generator=torch.Generator(), steps=1)  # a kernel is fitted when it is first used
        chance = torch.Generator().manual_seed(0)
        seconds, found = spent(partial(solve, generator=chance, steps=STEPS))
        of_all = errors(found, fields, predict)
        rows = {**of_all, "seconds of all problems": torch.tensor([seconds])}
        scores += [score(name, f"inverse problems: {its}", each) for its, each in rows.items()]
        print(name, {its: round(float(each.mean()), 4) for its, each in rows.items()}, flush=True)
    return scores


def coarse_runs(trained: TrainedField) -> list[Score]:
    """Return error and seconds of the surrogate, and of runs of the solver, for the same fields."""
    family = trained.problem.family
    fields = make_fields(family, TIMED, torch.Generator().manual_seed(SEED + 1))
    kernel = UntrainedSurrogate("kernel", trained.problem)
    predict_grid(kernel, fields.inputs, fields.x, fields.t)

    def coarse(points: int, steps: int) -> Tensor:
        with torch.no_grad():
            solved = family.solve(fields.inputs, points=points, steps=steps)
        if points < len(fields.x):
            spectrum = torch.fft.rfft(solved) * (len(fields.x) / points)
            return torch.fft.irfft(spectrum, n=len(fields.x)).float()
        return solved[..., :: points // len(fields.x)].float()

    ways: dict[str, Callable[[], Tensor]] = {
        "generated": lambda: predict_grid(trained.model, fields.inputs, fields.x, fields.t),
        "kernel": lambda: predict_grid(kernel, fields.inputs, fields.x, fields.t),
        **{
            f"solver, {points} points, {steps} steps": partial(coarse, points, steps)
            for points, steps in GRIDS
        },
    }
    scores = []
    for name, way in ways.items():
        seconds, found = spent(way, repeats=3)
        error = relative_error(found, fields.values)
        scores += [
            score(name, f"{TIMED} fields on the grid: relative error", error),
            score(name, f"{TIMED} fields on the grid: seconds", torch.tensor([seconds])),
        ]
        print(f"{name}: error {error.mean():.4f}, {seconds:.3f} s", flush=True)
    return scores


def main(record: Path, data: str, minutes: float) -> None:
    """Train, measure all rows and write the record."""
    torch.set_num_threads(1)
    trained = train(data, minutes=minutes, quiet=True)
    scores = [*inverse_problems(trained), *coarse_runs(trained)]
    write_record(
        record,
        {
            "command": shlex.join(["python", "benchmarks/fields_inverse.py", *sys.argv[1:]]),
            "config": {
                "data": data,
                "minutes": minutes,
                "problems": PROBLEMS,
                "points": POINTS,
                "noise": NOISE,
                "starts": STARTS,
                "steps": STEPS,
                "learning_rate": RATE,
            },
            "scores": scores,
            "cost": environment(),
            "notes": "Times are processor seconds of one thread, without training and fitting. The "
            "field of an inverse problem is that of the method at the inputs that it found.",
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="burgers")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--record", type=Path, required=True)
    options = parser.parse_args()
    main(options.record, options.data, options.minutes)
