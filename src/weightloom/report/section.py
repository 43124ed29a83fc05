"""Sections: what the page draws below and above its table, each under a sentence that explains it.

An application makes sections of its own from a `Run`, of figures, strips, curves and pictures;
`with_shared` puts those behind them that the runs of every application may have.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from weightloom.report.changes import change_bars, change_maps, task_titles
from weightloom.report.compare import reliability_figures, time_figures
from weightloom.report.figures import Figure, lower_is_better
from weightloom.report.maps import condition_maps
from weightloom.report.run import Run


class Query(NamedTuple):
    """One query point and what was said of it."""

    uri: str
    """Empty where it is no picture."""
    truth: str
    predicted: str
    confidence: str
    right: bool
    text: str = ""
    """What it says, where it is no picture."""


class Strip(NamedTuple):
    """One task: what it was adapted on, by class, and what was then predicted."""

    title: str
    support: list[tuple[str, list[str]]]
    """Each class by its name, and its images as data URIs; two classes may go by the same name."""
    sentences: list[tuple[str, list[str]]]
    """The same, with what its examples say where they are no pictures."""
    queries: list[Query]
    score: str
    """How many of all queries were right, and which of them are shown, in words."""


class Pictures(NamedTuple):
    """Pictures in a row, with a word below each."""

    title: str
    images: list[tuple[str, str]]
    """Words, and the image as a data URI."""


class CurveRow(NamedTuple):
    """One task, its curve predicted from more and more points."""

    title: str
    panels: list[tuple[str, Figure]]
    """A heading and a plot for each number of points."""


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


def with_shared(
    run: Run, own: Mapping[str, Section] | None = None, reasons: Mapping[str, str] | None = None
) -> list[Section]:
    """Return an application's own sections, then those that it shares with all others.

    A section with nothing to draw gives the reason for it in a sentence; without a reason it is
    left out.

    Args:
        run: The run.
        own: The application's own sections by name, in the order of the page.
        reasons: Sentences by the name of a section, beside those that the run holds as
            ``left_out``. The names of the shared ones are ``time``, ``calibration``, ``changes``
            and ``map``.
    """
    shared = {
        "time": time_section(run),
        "calibration": calibration_section(run),
        "changes": changes_section(run),
        "map": map_section(run),
    }
    said = {**(run.facts.get("left_out") or {}), **(reasons or {})}
    kept = []
    for name, section in {**(own or {}), **shared}.items():
        if not section.is_empty:
            kept.append(section)
        elif name in said:
            kept.append(section._replace(explanation="", message=said[name]))
    return kept


def time_section(run: Run) -> Section:
    """Return the score of every method against its time to adapt."""
    better = "down" if lower_is_better(run) else "up"
    explanation = (
        f"Further to the left is quicker, and further {better} is better: what it takes a method "
        "to adapt to one new task on the logarithmic axis, and what it then scores, with 95 % "
        "intervals."
    )
    return Section(
        "Time to adapt against score", explanation, time_figures(run.record.get("scores") or [])
    )


def calibration_section(run: Run) -> Section:
    """Return how often methods are right against how sure they are."""
    explanation = (
        "On the grey line a method is right as often as it says; below it, it is too sure of "
        "itself. Larger marks stand for more query points, and the number beside each method is "
        "its expected calibration error, the mean distance from the line."
    )
    return Section(
        "Confidence against accuracy",
        explanation,
        reliability_figures(run.record.get("scores") or []),
    )


def changes_section(run: Run) -> Section:
    """Return what changed in the base network for two tasks, layer by layer."""
    explanation = (
        "How far the parameters made for two tasks are from the base network's own, and from each "
        f"other, layer by layer: {task_titles(run)}."
    )
    return Section("Change of each layer", explanation, change_bars(run), change_maps(run))


def map_section(run: Run) -> Section:
    """Return maps of conditions."""
    explanation = "The condition of a task, before parameters are made of it."
    return Section("Map of conditions", explanation, condition_maps(run))
