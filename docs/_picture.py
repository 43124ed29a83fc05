"""The picture at the top of README, from the folder of a run on cameras.

In:   a run's folder, whose report holds the same pictures.
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
    "Sent by the camera": ("what the camera", "with crossed wires sends"),
    "Restored and read by matching": ("what matching by hand", "makes of it, and reads"),
    "Restored and read by hypernetwork": ("what the generated", "network makes of it"),
}
"""Titles of the rows as a person reads them who has read nothing else."""


def drawing(rows: list[Pictures]) -> str:
    """Return the rows as a vector graphic with the pictures inside."""
    parts = []
    for number, row in enumerate(rows):
        top = TOP + number * LINE
        parts += [
            f'<text x="{LEFT - 14}" y="{top + 26 + 17 * place}" text-anchor="end">{escape(words)}</text>'
            for place, words in enumerate(WORDS.get(row.title, (row.title,)))
        ]
        for place, (words, uri) in enumerate(row.images):
            left = LEFT + place * (SIDE + GAP)
            parts.append(
                f'<image x="{left}" y="{top}" width="{SIDE}" height="{SIDE}" href="{uri}" '
                'style="image-rendering:pixelated"/>'
            )
            colour = (
                "#15803d"
                if words.endswith("✓")
                else "#c81e1e"
                if words.endswith("✗")
                else "#6b7280"
            )
            parts.append(
                f'<text x="{left + SIDE / 2}" y="{top + SIDE + 16}" text-anchor="middle" fill="{colour}">'
                f"{escape(words)}</text>"
            )
    width, height = LEFT + 10 * (SIDE + GAP), TOP + len(rows) * LINE
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'style="font:14px sans-serif;background:#fff" fill="#374151" role="img">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(drawing(camera_rows(read_run(Path(sys.argv[1])))), encoding="utf-8")
    print(PICTURE)
