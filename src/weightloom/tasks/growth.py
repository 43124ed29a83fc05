"""Growth and response curves: 1,294 small regression tasks that were really measured, in 13 families.

In:   the file, found on this machine.
Out:  `PointPool`, a task per animal, person, plant, wafer site or pupil; families to train on and
      families held out.
"""

import csv
from pathlib import Path

import torch

from weightloom.datasets import FILES, needed_file
from weightloom.errors import ConfigError, DataError
from weightloom.tasks.lines import text_lines
from weightloom.tasks.points import PointPool

FAMILIES = (
    *(
        "boys_height",
        "chick_weight",
        "dental_distance",
        "glucose",
        "math_growth",
        "milk_protein",
        "pine_height",
    ),
    *(
        "rat_weight",
        "remifentanil",
        "sleep_reaction",
        "soybean_leaf",
        "theophylline",
        "wafer_current",
    ),
)
"""A task's group is the number of its family in this list."""
REFERENCES = 4
"""Tasks of each family that set its scale and are never drawn."""
FOLDS = 5


def load_growth_curves() -> PointPool:
    """Load the curves, each family brought to its own scale.

    X to about [-1, 1], y to a spread of about one.

    The first four tasks of a family set its scale and are then left out, so that nothing is known
    of a task but what its support set says: x is counted from the middle of the references' range,
    in halves of it; y in units of their standard deviation within a task. Where y begins is not
    known before a task is measured: draw with ``PointTasks(pool, ..., centred=True)``.

    Raises:
        DataError: If the file is nowhere, or is damaged.

    Source:
        R packages datasets, nlme, lme4 and mlmRev.
    """
    path = needed_file(
        *FILES["growth-curves"],
        "The growth curves' file",
        "The curves do not come with this library.",
    )
    return scaled_pool(_read(path))


def growth_split(fold: int) -> tuple[list[int], list[int], list[int]]:
    """Return the families to meta-train on, to validate on and to test on, by number, in one of five partitions.

    Each family is tested in exactly one of them, and validated in one other, so that five runs
    judge all thirteen.

    Example:
        >>> [[FAMILIES[family] for family in part] for part in growth_split(3)[1:]]
        [['math_growth', 'sleep_reaction'], ['glucose', 'remifentanil']]
    """
    if not 0 <= fold < FOLDS:
        raise ConfigError(
            f"`fold={fold}`. There are {FOLDS} partitions of the families. Pass a number from 0 to "
            f"{FOLDS - 1}."
        )
    parts = [list(range(first, len(FAMILIES), FOLDS)) for first in range(FOLDS)]
    validation, test = parts[(fold + 1) % FOLDS], parts[fold]
    return (
        [family for family in range(len(FAMILIES)) if family not in validation + test],
        validation,
        test,
    )


def of_families(pool: PointPool, families: list[int]) -> PointPool:
    """Take the tasks of some families."""
    return pool.take(torch.isin(pool.groups, torch.tensor(families)).nonzero()[:, 0])


def scaled_pool(curves: dict[str, dict[str, list[tuple[float, float]]]]) -> PointPool:
    """Scale each family by its first tasks, and put the others side by side.

    Args:
        curves: The points of each task of each family.
    """
    scaled: list[torch.Tensor] = []
    names: list[str] = []
    groups: list[int] = []
    for family, tasks in curves.items():
        of_task = [torch.tensor(task, dtype=torch.float64) for task in tasks.values()]
        references = torch.cat(
            [torch.cat([p[:, :1], p[:, 1:] - p[:, 1:].mean()], 1) for p in of_task[:REFERENCES]]
        )
        low, high = references[:, 0].min(), references[:, 0].max()
        middle = torch.stack([(low + high) / 2, torch.zeros(())])
        unit = torch.stack([(high - low) / 2, references[:, 1].square().mean().sqrt()])
        scaled += [(task - middle) / unit for task in of_task[REFERENCES:]]
        names += [f"{family}/{task}" for task in list(tasks)[REFERENCES:]]
        groups += [FAMILIES.index(family)] * (len(tasks) - REFERENCES)
    points = torch.cat(scaled).float()
    counts = torch.tensor([len(task) for task in scaled])
    return PointPool(points[:, :1], points[:, 1:], counts, tuple(names), torch.tensor(groups))


def _read(path: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {family: {} for family in FAMILIES}
    try:
        for row in csv.DictReader(text_lines(path)):
            curves[row["family"]].setdefault(row["task"], []).append(
                (float(row["x"]), float(row["y"]))
            )
        short = [family for family, tasks in curves.items() if len(tasks) <= REFERENCES]
        if short:
            raise ValueError(f"{len(curves[short[0]])} tasks of {short[0]}")
    except (OSError, EOFError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise DataError(
            f"`{path}` cannot be read as the growth curves ({error}). It is a gzipped CSV with the "
            f"columns family, task, x and y, of {len(FAMILIES)} families. Put a whole copy in its "
            "place."
        ) from error
    return curves
