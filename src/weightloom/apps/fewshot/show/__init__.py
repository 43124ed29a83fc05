"""Data behind the figures of a report: example tasks, worst tasks, parameter changes, a sweep.

In:   trained methods and the problem they solve.
Out:  tensors and facts that `weightloom.apps.fewshot.figures` draws.
Tasks are drawn for the report alone, with another seed than those of the table.
"""

from weightloom.apps.fewshot.show.write import showcase as showcase
