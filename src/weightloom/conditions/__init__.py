"""Conditions: a task's number, data or description in, the input vector of a hypernetwork out.

In:   a task's number, its support set (inputs, targets and a mask), its unlabelled inputs, its
      hyperparameters, any vector that describes it, the weights of another model, or several of
      these; each with a leading tasks axis.
Out:  condition, (tasks, condition_dim); or, for labelled data, statistics of each class and
      feature, or of each input.
Knows nothing of hypernetworks or of the base network.
"""

from weightloom.conditions.classes import ClassStatistics as ClassStatistics
from weightloom.conditions.classes import class_statistics as class_statistics
from weightloom.conditions.combine import CombinedCondition as CombinedCondition
from weightloom.conditions.embedding import TaskEmbedding as TaskEmbedding
from weightloom.conditions.encoding import MagnitudeInvariantEncoding as MagnitudeInvariantEncoding
from weightloom.conditions.grid import GridEncoder as GridEncoder
from weightloom.conditions.inputs import InputStatistics as InputStatistics
from weightloom.conditions.inputs import input_statistics as input_statistics
from weightloom.conditions.inputs import statistics_of as statistics_of
from weightloom.conditions.statistics import SetStatistics as SetStatistics
from weightloom.conditions.statistics import set_statistics as set_statistics
from weightloom.conditions.support import DeepSets as DeepSets
from weightloom.conditions.support import SupportAttention as SupportAttention
from weightloom.conditions.weights import WeightEncoder as WeightEncoder
