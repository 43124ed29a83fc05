"""The sections of a report below its table: each with a sentence that explains it, or one that says why it is empty."""

from collections.abc import Sequence
from typing import NamedTuple

from weightloom.report.changes import change_bars, change_maps, task_titles
from weightloom.report.compare import reliability_figures, sweep_figures, time_figures
from weightloom.report.contexts import episode_rows, return_curves, return_maps, value_scatter
from weightloom.report.curves import CurveRow, curve_rows, scatter, worst_scatter
from weightloom.report.figures import Figure
from weightloom.report.images import (
    Pictures,
    Strip,
    camera_rows,
    completed_images,
    task_strips,
    worst_cameras,
    worst_strips,
)
from weightloom.report.maps import condition_maps
from weightloom.report.run import Run


class Section(NamedTuple):
    """One section of the page: a heading, a sentence, and what is drawn."""

    heading: str
    explanation: str
    figures: Sequence[Figure] = ()
    rows: Sequence[list[Figure]] = ()
    """Small figures side by side."""
    strips: Sequence[Strip] = ()
    curves: Sequence[CurveRow] = ()
    pictures: Sequence[Pictures] = ()
    message: str = ""
    """Why nothing is drawn."""
    leads: bool = False
    """It stands above the table: what a person should see first."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not (self.figures or self.rows or self.strips or self.curves or self.pictures)

    @property
    def has_plots(self) -> bool:
        """Whether plotly is needed."""
        return bool(self.figures or self.rows or self.curves)


def sections(run: Run) -> list[Section]:
    """Return all sections that a run has something for, or a reason to have nothing."""
    made = {
        "cameras": _cameras(run),
        **_contexts(run),
        "predicted": _predicted(run),
        "worst": _worst(run),
        "sweep": _sweep(run),
        "time": _time(run),
        "calibration": _calibration(run),
        "changes": _changes(run),
        "map": Section(
            "What the method is told", "The condition of a task, before parameters are made of it.", condition_maps(run)
        ),
    }
    reasons = dict(run.facts.get("left_out") or {})
    if run.facts.get("kind") == "regression":
        reasons["calibration"] = (
            "This does not apply: only a classification gives probabilities that can be held against how often they "
            "are right."
        )
    kept = []
    for name, section in made.items():
        if not section.is_empty:
            kept.append(section)
        elif name in reasons:
            kept.append(section._replace(explanation="", message=reasons[name]))
    return kept


def _contexts(run: Run) -> dict[str, Section]:
    """Return what there is to see of reinforcement learning."""
    return {
        "returns": Section(
            "What it earned, context by context",
            "Higher is better. Where dotted lines stay behind, what was learned does not carry beyond the contexts of "
            "training.",
            return_curves(run),
        ),
        "grid": Section(
            "Return over the grid of contexts",
            "Lighter is better, on one scale for all methods: an episode in every place, from the same start.",
            return_maps(run),
        ),
        "episodes": Section(
            "Episodes in contexts never met",
            "Each begins at the square, and darker points are later; a star marks the target where there is one.",
            rows=episode_rows(run),
        ),
        "values": Section(
            "What states are worth, and what followed",
            "The value function against discounted returns of episodes played on to their end.",
            value_scatter(run),
        ),
    }


def _cameras(run: Run) -> Section:
    setting = (run.facts.get("cameras") or {}).get("camera_setting", "")
    explanation = (
        f"The first camera that was drawn, shown {setting} digits beforehand, and the first picture of every digit: "
        "none is chosen. The pictures are real, the fault is made: every wire is put in another place, half of them "
        "are negated, and each has its own gain and offset."
    )
    return Section("Through a camera with crossed wires", explanation, pictures=camera_rows(run), leads=True)


def _predicted(run: Run) -> Section:
    strips, curves, pictures = task_strips(run), curve_rows(run), completed_images(run)
    explanation = ""
    if strips:
        explanation = (
            "In each task the model sees the support set with its class names, once, and then names each query: "
            "green with ✓ is right, red with ✗ is wrong, and the percentage is how sure it was."
        )
    elif curves:
        explanation = (
            "From panel to panel the model is given more points of the same new task: the blue line should settle on "
            "the grey truth."
        )
    elif pictures:
        explanation = (
            "The model is given the pixels that are not blue, and answers at every position; at last between the "
            "pixels too, so that the image can be drawn finer than any it was shown."
        )
    return Section("What it predicted", explanation, scatter(run), [], strips, curves, pictures)


def _worst(run: Run) -> Section:
    count = run.facts.get("worst_of", 0)
    explanation = f"Of {count} tasks drawn for this section alone, these are the ones it did worst on."
    curves, pictures = curve_rows(run, "worst_"), completed_images(run, "worst_") or worst_cameras(run)
    return Section("The worst tasks", explanation, worst_scatter(run), [], worst_strips(run), curves, pictures)


def _sweep(run: Run) -> Section:
    figures, sweep = sweep_figures(run), run.facts.get("sweep") or {"rows": []}
    tasks = [row["tasks"] for row in sweep["rows"]] or [0]
    many = f"{max(tasks)}" if min(tasks) == max(tasks) else f"{min(tasks)} to {max(tasks)}"
    kind = "validation tasks" if sweep.get("early") else "tasks drawn for this section alone"
    explanation = (
        f"How the score grows with the number of examples, and with fewer or more classes to tell apart: each point is "
        f"a mean over {many} {kind}, each band its 95 % interval, and what took too long to score is left out."
    )
    if run.facts.get("kind") == "regression":
        explanation = (
            f"How the error falls with the number of examples, lower being better: each point is a mean over {many} "
            f"{kind}, each band its 95 % interval, and what took too long to score is left out."
        )
    return Section("Score against shots and ways", explanation, figures)


def _time(run: Run) -> Section:
    scores = run.record.get("scores") or []
    lower = any(row.get("better") == "lower" for row in scores)
    explanation = (
        f"Further to the left is quicker, and further {'down' if lower else 'up'} is better: what it takes a method to "
        "adapt to one new task on the logarithmic axis, and what it then scores, with 95 % intervals."
    )
    return Section("Time to adapt against score", explanation, time_figures(scores))


def _calibration(run: Run) -> Section:
    explanation = (
        "On the grey line a method is right as often as it says; below it, it is too sure of itself. Larger marks "
        "stand for more query points, and the number beside each method is its expected calibration error, the mean "
        "distance from the line."
    )
    return Section("How sure, and how often right", explanation, reliability_figures(run.record.get("scores") or []))


def _changes(run: Run) -> Section:
    explanation = (
        "How far the parameters made for two tasks are from the base network's own, and from each other, layer by "
        f"layer: {task_titles(run)}."
    )
    return Section("What changed in each layer", explanation, change_bars(run), change_maps(run))
