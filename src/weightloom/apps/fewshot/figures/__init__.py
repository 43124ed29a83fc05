"""Figures of a few-shot run, for the report.

In:   a run as read from its folder, with the tensors and facts of `weightloom.apps.fewshot.show`.
Out:  sections of the page.
Knows nothing of methods, problems or training. Start at `sections`.
"""

from weightloom.apps.fewshot.figures.sections import sections as sections
