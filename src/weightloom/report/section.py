"""Sections of the page, each with a heading, an explanation, and figures, pictures or sounds.

An application makes its own sections from a `Run`, of these elements.
`with_shared` appends the sections that runs of all applications can have.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from weightloom.report.changes import change_bars, change_maps, task_titles
from weightloom.report.compare import reliability_figures, time_figures
from weightloom.report.figures import Figure, lower_is_better
from weightloom.report.maps import condition_maps
from weightloom.report.run import Run
from weightloom.report.scores import has_interval


class Query(NamedTuple):
    """One query point and its prediction."""

    uri: str
    """Image as a data URI; empty if the point is no image."""
    truth: str
    """Name of its class."""
    predicted: str
    confidence: str
    right: bool
    text: str = ""
    """Text of the point, if it is a sentence."""


class Strip(NamedTuple):
    """One classification task: its support set by class, and predictions of its query set."""

    title: str
    support: list[tuple[str, list[str]]]
    """Name and images, as data URIs, of each class; two classes may have the same name."""
    sentences: list[tuple[str, list[str]]]
    """Name and texts of each class, if the examples are sentences; else empty."""
    queries: list[Query]
    score: str
    """Number of right queries, and the selection shown, in words."""


class Pictures(NamedTuple):
    """A row of pictures with a caption below each."""

    title: str
    images: list[tuple[str, str]]
    """Caption, and image as a data URI."""


class GridRow(NamedTuple):
    """Images side by side, joined into one by `side_by_side`, with words before them."""

    words: str
    image: str
    """Data URI."""
    width: int
    """Width of the joined image in CSS pixels: a multiple of its own, for square pixels."""


class Grid(NamedTuple):
    """Rows of small images, shown pixel by pixel."""

    title: str
    rows: Sequence[GridRow]
    caption: str = ""
    """Sentence below the rows; empty for none."""


class Sounds(NamedTuple):
    """Players of sounds, with a caption below each."""

    title: str
    sounds: Sequence[tuple[str, str]]
    """Caption, and sound as a data URI."""


class CurveRow(NamedTuple):
    """One regression task: its curve predicted from more and more points."""

    title: str
    panels: list[tuple[str, Figure]]
    """Heading and plot for each number of points."""


class Section(NamedTuple):
    """One section of the page."""

    heading: str
    explanation: str
    """Sentence below the heading; empty for none."""
    figures: Sequence[Figure] = ()
    rows: Sequence[list[Figure]] = ()
    """Rows of small figures, side by side."""
    strips: Sequence[Strip] = ()
    curves: Sequence[CurveRow] = ()
    pictures: Sequence[Pictures] = ()
    grids: Sequence[Grid] = ()
    sounds: Sequence[Sounds] = ()
    message: str = ""
    """Reason for an empty section, shown in place of figures."""
    leads: bool = False
    """Place the section above the results table."""

    @property
    def is_empty(self) -> bool:
        """True if the section has no figures, pictures or sounds."""
        drawn = (self.figures, self.rows, self.strips, self.curves, self.pictures)
        return not any((*drawn, self.grids, self.sounds))


def with_shared(
    run: Run, own: Mapping[str, Section] | None = None, reasons: Mapping[str, str] | None = None
) -> list[Section]:
    """Return an application's own sections, then those shared by all applications.

    An empty section shows the reason, if there is one, and is left out otherwise.

    Args:
        run: The run.
        own: The application's own sections by name, in the order of the page.
        reasons: Reasons for empty sections by name, in addition to the run's ``left_out`` facts.
            The shared sections are ``time``, ``calibration``, ``changes`` and ``map``.
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
    """Return the section that plots the score of every method against its time to adapt."""
    scores = run.record.get("scores") or []
    better = "down" if lower_is_better(run) else "up"
    bars = ", with its 95 % interval" if any(map(has_interval, scores)) else ""
    explanation = (
        f"Further to the left is quicker, and further {better} is better: the time of a method to "
        f"adapt to one new task, on a logarithmic axis, and its score afterwards{bars}."
    )
    return Section("Time to adapt against score", explanation, time_figures(scores))


def calibration_section(run: Run) -> Section:
    """Return the section of reliability diagrams: accuracy against confidence."""
    explanation = (
        "On the grey line a method is right as often as it predicts; below the line it is "
        "overconfident. Larger marks stand for more query points. The number next to each method "
        "is its expected calibration error, the mean distance from the line."
    )
    return Section(
        "Confidence against accuracy",
        explanation,
        reliability_figures(run.record.get("scores") or []),
    )


def changes_section(run: Run) -> Section:
    """Return the section on changes of the base network for two tasks, layer by layer."""
    explanation = (
        "Distance of the parameters generated for two tasks from the base network's own, and from "
        f"each other, layer by layer: {task_titles(run)}."
    )
    return Section("Change of each layer", explanation, change_bars(run), change_maps(run))


def map_section(run: Run) -> Section:
    """Return the section with maps of conditions."""
    explanation = "Conditions of tasks, the input of the hypernetwork, on their principal plane."
    return Section("Map of conditions", explanation, condition_maps(run))
