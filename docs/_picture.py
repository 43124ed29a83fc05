"""Picture at the top of README, drawn from a run on cameras.

In:   the run's folder, whose report holds the same pictures.
Out:  ``docs/images/cameras.svg``.
Run:  python docs/_picture.py runs/cameras-001
"""

import sys
from html import escape
from pathlib import Path

from weightloom.apps.fewshot.figures.cameras import camera_rows
from weightloom.report.run import read_run
from weightloom.report.section import Pictures

PICTURE = Path(__file__).parent / "images" / "cameras.svg"
SIDE, GAP, LEFT, TOP, LINE = 56, 8, 190, 10, 82
WORDS = {
    "Before the camera": ("a picture", "before the camera"),
    "Sent by the camera": ("sent by the camera", "with crossed wires"),
    "Restored and read by matching": ("restored and read by", "matching by hand"),
    "Restored and read by hypernetwork": ("restored and read by", "the generated network"),
}
"""Two lines of caption per row, by the row's title in the report."""

COLOURS = {"✓": "#15803d", "✗": "#c81e1e"}
"""Colour of a caption, by its last character."""


def drawing(rows: list[Pictures]) -> str:
    """Return the rows as an SVG with the pictures embedded."""
    parts = []
    for number, row in enumerate(rows):
        top = TOP + number * LINE
        parts += [
            _text(LEFT - 14, top + 26 + 17 * place, "end", words)
            for place, words in enumerate(WORDS.get(row.title, (row.title,)))
        ]
        for place, (words, uri) in enumerate(row.images):
            left = LEFT + place * (SIDE + GAP)
            parts.append(
                f'<image x="{left}" y="{top}" width="{SIDE}" height="{SIDE}" href="{uri}" '
                'style="image-rendering:pixelated"/>'
            )
            colour = COLOURS.get(words[-1:], "#6b7280")
            below = top + SIDE + 16
            parts.append(_text(left + SIDE / 2, below, "middle", words, f' fill="{colour}"'))
    width, height = LEFT + 10 * (SIDE + GAP), TOP + len(rows) * LINE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" '
        'style="font:14px sans-serif;background:#fff" fill="#374151" role="img">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _text(x: float, y: float, anchor: str, words: str, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{more}>{escape(words)}</text>'


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawing(camera_rows(read_run(Path(sys.argv[1])))), encoding="utf-8")
    print(PICTURE)
