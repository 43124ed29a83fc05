"""Drawings of a hypernetwork: its architecture, and one step of its training.

In:   a hypernetwork.
Out:  a `Drawing`: vector graphics, and the same in words.
Knows nothing of weights: it reads names, shapes and counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from weightloom.errors import ConfigError
from weightloom.files import write_atomically
from weightloom.forms import Form
from weightloom.params import ParamSpec

MOST_LAYERS = 5
"""Layers of a base that are drawn; of a deeper one the first and last."""
LETTER, BOLD, LINE, PAD, GAP = 7.4, 8.4, 18.0, 10.0, 44.0
"""Pixels: width of a letter and a bold one, height of a line, margin in a box, gap of boxes."""
STYLE = (
    "text{font:13px ui-sans-serif,system-ui,sans-serif;fill:#1f2937}.bold{font-weight:600}"
    ".plain{fill:#f3f4f6;stroke:#9ca3af}.hyper{fill:#e0e7ff;stroke:#4f46e5}"
    ".generated{fill:#fef3c7;stroke:#b45309}.mixed{fill:#fdf6e3;stroke:#b45309}"
    "path{fill:none;stroke:#4b5563;stroke-width:1.5}.writes{stroke:#b45309}"
    ".back{stroke:#4f46e5;stroke-dasharray:5 4}"
    "@media(prefers-color-scheme:dark){text{fill:#e5e7eb}.plain{fill:#374151;stroke:#9ca3af}"
    ".hyper{fill:#312e81;stroke:#a5b4fc}.generated{fill:#78350f;stroke:#fbbf24}"
    ".mixed{fill:#44301a;stroke:#fbbf24}path{stroke:#d1d5db}.writes{stroke:#fbbf24}"
    ".back{stroke:#a5b4fc}}"
)


@dataclass(frozen=True)
class Drawing:
    """A drawing that notebooks show; ``save`` writes an SVG file, ``str`` gives it in words."""

    svg: str
    """The SVG document, in light and dark colours."""
    words: str
    """The same as text."""

    def __str__(self) -> str:
        return self.words

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        return self.svg

    def save(self, path: str | Path) -> Path:
        """Write the drawing as an SVG file and return its path.

        Raises:
            CheckpointError: If the file cannot be written.
        """
        write_atomically(Path(path), self.svg)
        return Path(path)


class Layer(NamedTuple):
    """A layer of the base network that has parameters."""

    name: str
    kind: str
    generated: list[str]
    """A line for each parameter that is generated: name, shape, form."""
    shared: list[str]
    """A line for each parameter that all tasks share."""


class _Facts(NamedTuple):
    """All that a drawing needs to know of a hypernetwork."""

    kind: str
    condition_dim: int
    parts: list[str]
    """Names of its parts that have parameters."""
    base: str
    layers: list[Layer]
    own: int
    """Numbers that are trained and not shared by all tasks."""
    per_task: int
    """Numbers generated for a task."""
    shared: int
    """Numbers of the base that all tasks share."""


class _Box(NamedTuple):
    x: float
    y: float
    lines: Sequence[str]
    look: str

    @property
    def width(self) -> float:
        bold, *plain = map(len, self.lines)
        return max(BOLD * bold, LETTER * max(plain, default=0)) + 2 * PAD

    @property
    def height(self) -> float:
        return len(self.lines) * LINE + 2 * PAD - 4

    def svg(self) -> str:
        rows = "".join(
            f'<text x="{self.x + PAD:.0f}" y="{self.y + PAD + 10 + LINE * number:.0f}"'
            f"{' class=' + chr(34) + 'bold' + chr(34) if number == 0 else ''}>{escape(line)}</text>"
            for number, line in enumerate(self.lines)
        )
        return (
            f'<rect class="{self.look}" x="{self.x:.0f}" y="{self.y:.0f}" rx="6" '
            f'width="{self.width:.0f}" height="{self.height:.0f}"/>{rows}'
        )


def draw(hyper: nn.Module, step: bool = False) -> Drawing:
    """Draw a hypernetwork with the base network that it writes, or one step of its training.

    Args:
        hyper: A hypernetwork of this library, or of yours with ``base`` and ``spec``.
        step: Draw the training step: condition to parameters to loss, and the gradient back.

    Raises:
        ConfigError: If ``hyper`` has no base network or no `ParamSpec`.

    Example:
        >>> from weightloom import MLPHyperNetwork
        >>> base = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 1))
        >>> hyper = MLPHyperNetwork(base, condition_dim=16)
        >>> print(draw(hyper))
        condition (tasks, 16) -> MLPHyperNetwork, 9,074 own numbers -> 121 numbers per task
        0 Linear: weight 40 x 1 Full, bias 40 Full
        2 Linear: weight 1 x 40 Full, bias 1 Full
        >>> draw(hyper, step=True).svg.startswith("<svg")
        True
    """
    base, spec = getattr(hyper, "base", None), getattr(hyper, "spec", None)
    if not isinstance(base, nn.Module) or not isinstance(spec, ParamSpec):
        raise ConfigError(
            f"{type(hyper).__name__} has no `base` or no `spec`. A drawing shows the base network "
            "and which of its parameters are generated. Give the class these two attributes, or "
            "draw a hypernetwork of this library."
        )
    facts = _facts(hyper, base, spec, getattr(hyper, "generated", None))
    return _step(facts) if step else _architecture(facts)


def _facts(hyper: nn.Module, base: nn.Module, spec: ParamSpec, generated: Any) -> _Facts:
    of_base = dict(base.named_parameters())
    shared = [of_base[name] for name in spec.shared if name in of_base]
    own = {*hyper.parameters()} - {*shared}
    parts = [name for name, its in hyper.named_children() if any(True for _ in its.parameters())]
    return _Facts(
        type(hyper).__name__,
        getattr(hyper, "condition_dim", 0),
        [name for name in parts if name not in ("generated", "base")],
        type(base).__name__,
        list(_layers(base, spec.shapes, getattr(generated, "forms", {}))),
        sum(its.numel() for its in own),
        getattr(generated, "size", spec.size),
        sum(its.numel() for its in shared),
    )


def _layers(
    base: nn.Module, shapes: Mapping[str, Any], forms: Mapping[str, Form]
) -> Iterator[Layer]:
    """Return the layers of the base that have parameters of their own, in its order."""
    for name, module in base.named_modules():
        lines: dict[bool, list[str]] = {True: [], False: []}
        for leaf, parameter in module.named_parameters(recurse=False):
            full = f"{name}.{leaf}" if name else leaf
            form = f" {type(forms[full]).__name__}" if full in forms else ""
            size = " x ".join(map(str, parameter.shape)) or "1 number"
            lines[full in shapes].append(f"{leaf} {size}{form}")
        if lines[True] or lines[False]:
            yield Layer(name or "base", type(module).__name__, lines[True], lines[False])


def _heads(facts: _Facts) -> tuple[list[str], list[str]]:
    """Return the lines of the two boxes that every drawing has: condition and hypernetwork."""
    parts = [", ".join(facts.parts)] if facts.parts else []
    counts = [f"{facts.own:,} own numbers", f"{facts.per_task:,} per task out"]
    return ["condition", f"(tasks, {facts.condition_dim})"], [facts.kind, *parts, *counts]


def _architecture(facts: _Facts) -> Drawing:
    condition, inside = _heads(facts)
    first = _Box(PAD, PAD, condition, "plain")
    second = _Box(first.x + first.width + GAP, PAD, inside, "hyper")
    boxes, top = [first, second], second.y + second.height + 1.6 * GAP
    row = [_Box(PAD, top, ["x", "inputs"], "plain")]
    for lines, look in _shown(facts.layers):
        row.append(_Box(row[-1].x + row[-1].width + GAP, top, lines, look))
    row.append(_Box(row[-1].x + row[-1].width + GAP, top, ["y", "outputs"], "plain"))
    paths = [_across(first, second), *map(_across, row[:-1], row[1:])]
    written = [box for box in row if box.look in ("generated", "mixed")]
    writes = [_down(second, box, number, len(written)) for number, box in enumerate(written)]
    head = (
        f"condition (tasks, {facts.condition_dim}) -> {facts.kind}, {facts.own:,} own numbers "
        f"-> {facts.per_task:,} numbers per task"
    )
    words = [
        f"{its.name} {its.kind}: "
        + ", ".join([*its.generated, *(f"{line} shared" for line in its.shared)])
        for its in facts.layers
    ]
    return _drawing([*boxes, *row], [*paths, *writes], "\n".join([head, *words]))


def _shown(layers: list[Layer]) -> Iterator[tuple[list[str], str]]:
    """Return lines and look of the boxes of a base; of many layers the first and last."""
    hidden = len(layers) - MOST_LAYERS
    for number, layer in enumerate(layers):
        if hidden > 0 and number == MOST_LAYERS // 2:
            yield [f"… {hidden + 1} more", "layers"], "plain"
        if hidden > 0 and MOST_LAYERS // 2 <= number <= MOST_LAYERS // 2 + hidden:
            continue
        shared = [f"{line} (shared)" for line in layer.shared]
        look = "plain" if not layer.generated else "mixed" if shared else "generated"
        yield [f"{layer.name}  {layer.kind}", *layer.generated, *shared], look


def _step(facts: _Facts) -> Drawing:
    condition, inside = _heads(facts)
    written = [f"{its.name}: {', '.join(its.generated)}" for its in facts.layers if its.generated]
    more = len(written) - 3
    params = ["parameters of each task", *written[:3], *([f"… {more} more"] if more > 0 else [])]
    run = [facts.base, "runs once per task", f"{facts.shared:,} shared numbers"]
    looks = [
        (condition, "plain"),
        (inside, "hyper"),
        (params, "generated"),
        (run, "mixed" if facts.shared else "generated"),
        (["loss per task", "(tasks,)"], "plain"),
        (["mean loss"], "plain"),
    ]
    row: list[_Box] = []
    for lines, look in looks:
        row.append(_Box(row[-1].x + row[-1].width + GAP if row else PAD, PAD + LINE, lines, look))
    batch = _Box(
        row[3].x, row[3].y + row[3].height + GAP, ["query_x", "(tasks, batch, …)"], "plain"
    )
    targets = _Box(row[4].x, batch.y, ["query_y"], "plain")
    low = batch.y + batch.height + 0.7 * GAP
    back = (
        f'<path class="back" marker-end="url(#tip)" d="M{row[5].x + 20:.0f} '
        f"{row[5].y + row[5].height:.0f} V{low:.0f} H{row[1].x + row[1].width / 2:.0f} "
        f'V{row[1].y + row[1].height + 4:.0f}"/>'
        f'<text x="{row[1].x + row[1].width / 2 + 8:.0f}" y="{low - 6:.0f}">'
        "gradient, through the base network into the own numbers</text>"
    )
    paths = [*map(_across, row[:-1], row[1:]), _up(batch, row[3]), _up(targets, row[4]), back]
    words = (
        f"condition (tasks, {facts.condition_dim}) -> {facts.kind} -> {facts.per_task:,} "
        f"numbers per task -> {facts.base} on query_x -> loss per task -> mean; its "
        f"gradient trains {facts.own:,} own numbers and {facts.shared:,} shared ones"
    )
    return _drawing([*row, batch, targets], paths, words, low + PAD)


def _across(left: _Box, right: _Box) -> str:
    level = min(left.height, right.height) / 2
    return (
        f'<path marker-end="url(#tip)" d="M{left.x + left.width:.0f} {left.y + level:.0f} '
        f'H{right.x - 4:.0f}"/>'
    )


def _down(upper: _Box, lower: _Box, number: int, of: int) -> str:
    """Draw an elbow from a box to one below; the farther its end, the higher its level."""
    start, middle = upper.x + 24 + 12 * number, upper.y + upper.height + 14 + 7 * (of - number)
    return (
        f'<path class="writes" marker-end="url(#tip)" d="M{start:.0f} {upper.y + upper.height:.0f} '
        f'V{middle:.0f} H{lower.x + lower.width / 2:.0f} V{lower.y - 4:.0f}"/>'
    )


def _up(lower: _Box, upper: _Box) -> str:
    return (
        f'<path marker-end="url(#tip)" d="M{lower.x + 30:.0f} {lower.y:.0f} '
        f'V{upper.y + upper.height + 4:.0f}"/>'
    )


def _drawing(boxes: list[_Box], paths: list[str], words: str, low: float = 0) -> Drawing:
    width = max(box.x + box.width for box in boxes) + PAD
    height = max(low, *(box.y + box.height for box in boxes)) + PAD
    tip = (
        '<marker id="tip" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 8 4 0 8z" style="fill:context-stroke;stroke:none"/></marker>'
    )
    inside = "".join([*paths, *(box.svg() for box in boxes)])
    return Drawing(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{escape(words)}">'
        f"<style>{STYLE}</style><defs>{tip}</defs>{inside}</svg>\n",
        words,
    )
