"""The page itself: what a run holds so far, laid out for a reader."""

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

from weightloom.files import write_atomically
from weightloom.report.figures import learning_curves
from weightloom.report.run import Facts, Run, read_run
from weightloom.report.scores import SCORE_NAMES, cost_rows, headline, rows_by_setting
from weightloom.report.sections import sections

TEMPLATE = "templates/report.html.j2"


def build_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder, from whatever the folder holds so far.

    The page is complete in itself: scripts, styles and images are inside, and it forbids the browser to
    fetch anything. It may be built while the run goes on, and again later; a page that is there is replaced
    at once or not at all.

    Args:
        run: A run folder. ``config.json`` must be there; without ``metrics.jsonl``,
            ``evaluation.safetensors`` or ``record.json`` the sections made from them are left out.

    Returns:
        Where the page is.

    Raises:
        DataError: If ``run`` is not a run folder, or one of its JSON files is damaged.
        CheckpointError: If ``evaluation.safetensors`` is damaged, or the page could not be written.
    """
    page = Path(run) / "report.html"
    write_atomically(page, _render(read_run(Path(run))))
    return page


def _render(run: Run) -> str:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files("weightloom") / TEMPLATE).read_text(encoding="utf-8"))
    return template.render(_contents(run), plotly_js=Markup(get_plotlyjs()))


def _contents(run: Run) -> dict[str, Any]:
    """Gather what the template names."""
    record = run.record
    scores = record.get("scores") or []
    learning, below = learning_curves(run), sections(run)
    return {
        "run": run,
        "title": _title(run.config),
        "headline": headline(run),
        "score_name": SCORE_NAMES.get(scores[0]["name"], scores[0]["name"]) if scores else "",
        "settings": rows_by_setting(scores),
        "learning": learning,
        "sections": below,
        "has_plots": bool(learning) or any(section.has_plots for section in below),
        "options": {name: value if isinstance(value, str) else json.dumps(value) for name, value in run.config.items()},
        "cost": cost_rows(record.get("cost") or {}),
        "command": record.get("command"),
        "notes": record.get("notes"),
        "origin": _origin(record),
    }


def _title(config: Facts) -> str:
    """Say what was run, as far as the options tell.

    Example:
        >>> _title({"data": "digits", "steps": 600, "seed": 0})
        'A hypernetwork on digits, 600 steps, seed 0'
    """
    method = str(config.get("method", "hypernetwork"))
    what = "A hypernetwork" if method == "hypernetwork" else method
    where = config.get("data", config.get("env"))
    parts = [f"{what} on {where}" if where else what]
    if isinstance(config.get("steps"), int):
        parts.append(f"{config['steps']:,} steps")
    if "seed" in config:
        parts.append(f"seed {config['seed']}")
    return ", ".join(parts)


def _origin(record: Facts) -> str:
    """Say which version wrote the record."""
    version, commit = record.get("version"), record.get("commit")
    return f"weightloom {version}{f', commit {commit[:12]}' if commit else ''}" if version else "weightloom"
