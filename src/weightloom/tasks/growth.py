"""Growth and response curves: 1,294 small regression tasks from measurements, in 13 families.

In:   the file, from one of the searched folders.
Out:  `PointPool`, one task per animal, person, plant, wafer site or pupil; and the families for
      meta-training, validation and test.
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
"""Names of the families. The group of a task is the index of its family here."""
REFERENCES = 4
"""Reference tasks of each family: they set its scale and are never drawn."""
FOLDS = 5


def load_growth_curves() -> PointPool:
    """Load the growth curves, scaled per family: x to about [-1, 1], y to about unit variance.

    The first four tasks of a family are references: they set its scale and are left out of the
    pool, so the scale reveals no information about the other tasks. x is measured from the middle
    of the references' range, in units of half that range; y in units of their standard deviation
    within a task. The level of y is known only from a task's own points: draw tasks with
    ``PointTasks(pool, ..., centred=True)``.

    Raises:
        DataError: If none of the searched folders contains the file, or it is damaged.

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
    """Return the numbers of the meta-train, validation and test families of one of five folds.

    Each family is in the test part of exactly one fold and in the validation part of one other, so
    that five runs test all thirteen.

    Args:
        fold: Number of the fold, 0 to 4.

    Raises:
        ConfigError: If ``fold`` is outside this range.

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
    """Return the tasks of the given families, by number."""
    return pool.take(torch.isin(pool.groups, torch.tensor(families)).nonzero()[:, 0])


def scaled_pool(curves: dict[str, dict[str, list[tuple[float, float]]]]) -> PointPool:
    """Scale each family by its `REFERENCES` first tasks, and return a pool of the others.

    Args:
        curves: Points (x, y) by family and task.
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
