"""What the report draws beside the numbers.

Tasks to look at, the worst ones, what changed, a sweep over shots.

In:   trained methods and the problem they solve.
Out:  tensors and facts that `weightloom.apps.fewshot.figures` draws.
Tasks are drawn for it alone, with another seed than those of the table.
"""

from weightloom.apps.fewshot.show.write import showcase as showcase
