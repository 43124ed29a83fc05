"""Measures of generative models: generated and real samples, or their features, in; numbers out.

In:   samples, (samples, width), of a model and of the data.
Out:  modes, distances of distributions, precision and recall, duplicates, copies of training data.
Knows nothing of the model. Features of images are those of a `FeatureClassifier`, which is trained
on real images first; the name of a metric contains the classifier's.
"""

from weightloom.measures.distances import KernelDistance as KernelDistance
from weightloom.measures.distances import frechet_distance as frechet_distance
from weightloom.measures.distances import kernel_distance as kernel_distance
from weightloom.measures.features import FeatureClassifier as FeatureClassifier
from weightloom.measures.modes import ModeCounts as ModeCounts
from weightloom.measures.modes import ceiling as ceiling
from weightloom.measures.modes import modes as modes
from weightloom.measures.neighbours import DensityCoverage as DensityCoverage
from weightloom.measures.neighbours import Duplicates as Duplicates
from weightloom.measures.neighbours import Nearest as Nearest
from weightloom.measures.neighbours import PrecisionRecall as PrecisionRecall
from weightloom.measures.neighbours import copying as copying
from weightloom.measures.neighbours import density_coverage as density_coverage
from weightloom.measures.neighbours import duplicates as duplicates
from weightloom.measures.neighbours import nearest_training as nearest_training
from weightloom.measures.neighbours import precision_recall as precision_recall
