"""Report sections of an adversarial run."""

from weightloom.report.run import Run
from weightloom.report.section import Section, with_shared


def sections(run: Run) -> list[Section]:
    """Return the sections of the report, those without data left out."""
    return with_shared(run)
