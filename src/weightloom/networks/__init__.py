"""Networks: ready-made bases, coordinate networks, recurrent and Keras models for many tasks.

In:   sizes; or a network with recurrent layers; or a Keras model.
Out:  a plain module, to be used as a base.
Knows nothing of hypernetworks.
"""

from weightloom.networks.coordinates import FourierFeatures as FourierFeatures
from weightloom.networks.coordinates import FourierTrunk as FourierTrunk
from weightloom.networks.coordinates import FunctionNet as FunctionNet
from weightloom.networks.coordinates import SineLayer as SineLayer
from weightloom.networks.coordinates import Siren as Siren
from weightloom.networks.coordinates import SirenTrunk as SirenTrunk
from weightloom.networks.coordinates import fourier_features as fourier_features
from weightloom.networks.feedforward import ConvNet as ConvNet
from weightloom.networks.feedforward import FeatureTrunk as FeatureTrunk
from weightloom.networks.feedforward import Norm as Norm
from weightloom.networks.feedforward import ResidualTrunk as ResidualTrunk
from weightloom.networks.feedforward import TrunkNet as TrunkNet
from weightloom.networks.feedforward import UnitLength as UnitLength
from weightloom.networks.feedforward import UnitTrunk as UnitTrunk
from weightloom.networks.feedforward import mlp as mlp
from weightloom.networks.keras import KerasBase as KerasBase
from weightloom.networks.periodic import PeriodicLayer as PeriodicLayer
from weightloom.networks.periodic import PeriodicNet as PeriodicNet
from weightloom.networks.recurrent import replace_recurrent as replace_recurrent
from weightloom.networks.spectrograms import SpectrogramGRU as SpectrogramGRU
from weightloom.networks.spectrograms import SpectrogramTrunk as SpectrogramTrunk
