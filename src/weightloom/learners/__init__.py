"""Learners: a support set in, parameters of a working network out, one set per task.

In:   `Tasks` to be trained on, then the support set of new tasks.
Out:  parameters per task, and answers to queries.
Knows nothing of data sets, tables or runs. Every few-shot method, ours or a comparator, is a `Learner`.
"""

from weightloom.learners.cavia import CAVIA as CAVIA
from weightloom.learners.centroid import NearestCentroid as NearestCentroid
from weightloom.learners.cnp import ConditionalNeuralProcess as ConditionalNeuralProcess
from weightloom.learners.convs import HyperConvs as HyperConvs
from weightloom.learners.functions import HyperFunction as HyperFunction
from weightloom.learners.heads import HeadLearner as HeadLearner
from weightloom.learners.heads import HyperHead as HyperHead
from weightloom.learners.in_context import InContext as InContext
from weightloom.learners.inner_steps import InnerSteps as InnerSteps
from weightloom.learners.inputs import CodeInputs as CodeInputs
from weightloom.learners.inputs import HyperInputs as HyperInputs
from weightloom.learners.inputs import SharedInputs as SharedInputs
from weightloom.learners.interpolation import GaussianCurves as GaussianCurves
from weightloom.learners.interpolation import GaussianPixels as GaussianPixels
from weightloom.learners.interpolation import Interpolation as Interpolation
from weightloom.learners.learner import Learner as Learner
from weightloom.learners.learner import Support as Support
from weightloom.learners.machines import SupportLogistic as SupportLogistic
from weightloom.learners.machines import SupportNearest as SupportNearest
from weightloom.learners.machines import SupportSVM as SupportSVM
from weightloom.learners.maml import ANIL as ANIL
from weightloom.learners.maml import MAML as MAML
from weightloom.learners.matching import Matching as Matching
from weightloom.learners.modular import ModularHyperNetwork as ModularHyperNetwork
from weightloom.learners.polynomial import RidgePolynomial as RidgePolynomial
from weightloom.learners.probe import LinearProbe as LinearProbe
from weightloom.learners.protonet import ProtoNet as ProtoNet
from weightloom.learners.scratch import FromScratch as FromScratch
from weightloom.learners.whole_network import HyperRegressor as HyperRegressor
