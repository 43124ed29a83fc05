"""Networks: ready-made bases, and recurrent and Keras models that run for many tasks in one pass.

In:   sizes; or a network with recurrent layers; or a Keras model.
Out:  a plain module, to be used as a base.
Knows nothing of hypernetworks.
"""

from weightloom.networks.feedforward import ConvNet as ConvNet
from weightloom.networks.feedforward import FeatureTrunk as FeatureTrunk
from weightloom.networks.feedforward import Norm as Norm
from weightloom.networks.feedforward import ResidualTrunk as ResidualTrunk
from weightloom.networks.feedforward import TrunkNet as TrunkNet
from weightloom.networks.feedforward import mlp as mlp
from weightloom.networks.keras import KerasBase as KerasBase
from weightloom.networks.recurrent import replace_recurrent as replace_recurrent
