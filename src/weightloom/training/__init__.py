"""Training: a model and a source of batches in, the trained model and its history out.

In:   a module whose ``forward(tasks)`` encodes, generates and runs the base, a `TaskSource` and,
      unless ``forward`` returns losses itself, a loss with one number per task; or turns of several
      players, each with its own loss, and batches of any kind.
Out:  the trained module, a history of losses, and checkpoints.
Knows nothing of the model's architecture.

Two properties are tested. A step depends only on the seed, its number and the parameters, so a run
that was killed and resumed ends with the numbers of an uninterrupted one. The tasks of a step are
divided among the processes, so several processes compute the gradient of one. The exception is
batch normalisation: its statistics cover the tasks of its own process only.
"""

from weightloom.training.keep import History as History
from weightloom.training.keep import load_model as load_model
from weightloom.training.loop import train as train
from weightloom.training.options import HasBlocks as HasBlocks
from weightloom.training.options import TrainOptions as TrainOptions
from weightloom.training.processes import OneProcess as OneProcess
from weightloom.training.processes import Processes as Processes
from weightloom.training.turns import Turn as Turn
