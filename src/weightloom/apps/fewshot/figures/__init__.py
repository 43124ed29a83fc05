"""Figures of a few-shot run, for the report.

In:   a run, read: what `weightloom.apps.fewshot.show` wrote of it.
Out:  sections of the page.
Knows nothing of methods, problems or training. Start at `sections`.
"""

from weightloom.apps.fewshot.figures.sections import sections as sections
