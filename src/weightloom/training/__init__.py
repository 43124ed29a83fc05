"""Training: a model and a source of batches in, a better model and its history out.

In:   a module whose ``forward(tasks)`` does all that is differentiated (encode, generate, run the
      base), a `TaskSource` and a loss that gives one number per task, where ``forward`` does not
      give it; or turns of several players, each with a loss of its own, and batches of any kind.
Out:  the trained module, and a history of losses; checkpoints on the way.
Knows nothing of what the model is.

Two properties hold, and tests keep them: a step depends only on the seed, its number and the
parameters, so a run that was killed and resumed ends with the same numbers as one that never was;
and a step's tasks are dealt out over the processes, so the gradient of several processes is that of
one. Batch normalisation is the exception: it sees only what is in its own process.
"""

from weightloom.training.keep import History as History
from weightloom.training.keep import load_model as load_model
from weightloom.training.loop import train as train
from weightloom.training.options import HasBlocks as HasBlocks
from weightloom.training.options import TrainOptions as TrainOptions
from weightloom.training.processes import OneProcess as OneProcess
from weightloom.training.processes import Processes as Processes
from weightloom.training.turns import Turn as Turn
