"""What the report draws beside the numbers: tasks to look at, the worst ones, what changed, a sweep over shots.

In:   trained methods and the problem they solve.
Out:  ``evaluation.safetensors`` in the run's folder.
Tasks are drawn for it alone, with another seed than those of the table.
"""

from weightloom.apps.fewshot.show.write import write_showcase as write_showcase
