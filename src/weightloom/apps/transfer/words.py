"""The result of a check in words."""

from collections.abc import Sequence
from typing import Any

from weightloom.apps.transfer.judge import worst_family


def sentences(rows: Sequence[Any]) -> list[str]:
    """Return a sentence for each check before gradient steps: largest weights and worst family."""
    return [sentence(row) for row in rows if "check" in row and not steps_of(row["setting"])[1]]


def steps_of(title: str) -> tuple[str, int]:
    """Split the title of a setting into its name and its steps.

    Example:
        >>> steps_of("5-shot, 20 steps"), steps_of("5-shot")
        (('5-shot', 20), ('5-shot', 0))
    """
    name, _, last = title.rpartition(", ")
    count, _, word = last.partition(" ")
    if name and count.isdigit() and word in ("step", "steps"):
        return name, int(count)
    return title, 0


def sentence(row: Any) -> str:
    """Return the largest weights of a check, and the family that it changed for the worst.

    Example:
        >>> check = {"weights": {"generated": 0.9, "source": 0.1}, "families": {"all": [0.8, 0.5]}}
        >>> sentence({"setting": "5-shot", "better": "higher", "check": check})
        '5-shot: the check took generated 90 %, source 10 %; no family is worse than unadapted.'
    """
    largest = list(row["check"]["weights"].items())[:3]
    taken = ", ".join(f"{name} {100 * weight:.0f} %" for name, weight in largest)
    family, change = worst_family(row)
    verdict = (
        f"the worst family, {family}, is {100 * change:.1f} % worse than unadapted"
        if change > 0
        else "no family is worse than unadapted"
    )
    return f"{row['setting']}: the check took {taken}; {verdict}."
