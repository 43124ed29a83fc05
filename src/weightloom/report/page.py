"""The HTML page of a run: a run folder in, ``report.html`` out."""

import json
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

from weightloom.errors import DataError, WeightloomError
from weightloom.files import write_atomically
from weightloom.report.drawing import draw_figure, draw_sign
from weightloom.report.figures import BLUE, GREY, ORANGE, Key, learning_curves
from weightloom.report.run import Facts, Run, read_run
from weightloom.report.scores import (
    cost_rows,
    further_headings,
    has_times,
    headline,
    rows_by_setting,
    score_heading,
    table_caption,
)
from weightloom.report.section import Section, with_shared

TEMPLATE = "templates/report.html.j2"
SUBJECTS = ("data", "env")
"""Options that name the subject of a run."""
CURVE_KEYS = (
    Key("truth", "―", GREY),
    Key("predicted", "―", BLUE),
    Key("support points", "●", ORANGE),
)
"""Legend of all `CurveRow` plots."""


def build_report(run: Path, sections: Callable[[Run], list[Section]] | None = None) -> Path:
    """Write ``report.html`` into a run folder.

    The page is one file, with styles, plots and images inside; it has no script, and its content
    security policy keeps the browser from fetching anything. It may be built while the run is
    training, and again later. An existing page is replaced atomically.

    Args:
        run: A run folder. ``config.json`` must exist; without ``metrics.jsonl``,
            ``evaluation.safetensors`` or ``record.json`` the sections made from them are left out.
        sections: Returns the sections of a run. Default: the sections that all applications share.

    Returns:
        Path of the page.

    Raises:
        DataError: If ``run`` is not a run folder, one of its JSON files is damaged, or a figure
            cannot be drawn.
        CheckpointError: If ``evaluation.safetensors`` is damaged, or the page could not be written.
    """
    page = Path(run) / "report.html"
    held = read_run(Path(run))
    try:
        content = _render(held, (sections or with_shared)(held))
    except WeightloomError:
        raise
    except Exception as error:  # a file that no run writes
        raise DataError(
            f"The report of `{run}` could not be drawn ({type(error).__name__}: {error}). A file "
            "in it is not as a run writes it. Put back an earlier copy, or go on with the run by "
            "`--resume`."
        ) from error
    write_atomically(page, content)
    return page


def _render(run: Run, sections: list[Section]) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["anchor"] = _anchor
    environment.globals |= {
        "draw": lambda figure, width: Markup(draw_figure(figure, width)),
        "draw_sign": lambda key: Markup(draw_sign(key)),
    }
    template = environment.from_string((files("weightloom") / TEMPLATE).read_text(encoding="utf-8"))
    return template.render(_contents(run, sections))


def _contents(run: Run, sections: list[Section]) -> dict[str, Any]:
    """Return the variables of the template."""
    record = run.record
    scores = record.get("scores") or []
    settings = rows_by_setting(scores)
    learning = learning_curves(run)
    return {
        "run": run,
        "title": _title(run.config),
        "headline": headline(run),
        "score_heading": score_heading(scores),
        "table_caption": table_caption(scores),
        "timed": has_times(scores),
        "settings": settings,
        "more": further_headings(settings),
        "learning": learning,
        "sections": sections,
        "contents": _headings(run, sections),
        "curve_keys": CURVE_KEYS,
        "options": {
            name: value if isinstance(value, str) else json.dumps(value)
            for name, value in run.config.items()
        },
        "cost": cost_rows(record.get("cost") or {}),
        "command": record.get("command"),
        "notes": record.get("notes"),
        "origin": _origin(record),
    }


def _headings(run: Run, sections: list[Section]) -> list[str]:
    """Return the headings of the page, in its order."""
    shown = {
        **{section.heading: True for section in sections if section.leads},
        "Results": bool(run.record.get("scores")),
        "Learning curves": bool(run.training or run.validation),
        **{section.heading: True for section in sections if not section.leads},
        "Cost": bool(run.record.get("cost")),
        "All options": True,
    }
    return [heading for heading, is_shown in shown.items() if is_shown]


def _anchor(heading: str) -> str:
    """Return the id of a section.

    Example:
        >>> _anchor("Confidence against accuracy")
        'confidence-against-accuracy'
    """
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") or "section"


def _title(config: Facts) -> str:
    """Return the title of the page: method, subject, steps and seed, as far as the options tell.

    The subject is the option ``data`` or ``env``, else the first option, if that is a name.

    Example:
        >>> _title({"data": "digits", "steps": 600, "seed": 0})
        'A hypernetwork on digits, 600 steps, seed 0'
        >>> _title({"method": "maml", "steps": 600})
        'maml, 600 steps'
    """
    method = str(config.get("method", "hypernetwork"))
    name = "A hypernetwork" if method == "hypernetwork" else method
    option = next((name for name in SUBJECTS if name in config), next(iter(config), "method"))
    subject = None if option == "method" else config[option]
    parts = [f"{name} on {subject}" if isinstance(subject, str) else name]
    if isinstance(config.get("steps"), int):
        parts.append(f"{config['steps']:,} steps")
    if "seed" in config:
        parts.append(f"seed {config['seed']}")
    return ", ".join(parts)


def _origin(record: Facts) -> str:
    """Return the version and commit that wrote the record."""
    version, commit = record.get("version"), record.get("commit")
    return (
        f"weightloom {version}{f', commit {commit[:12]}' if commit else ''}"
        if version
        else "weightloom"
    )
