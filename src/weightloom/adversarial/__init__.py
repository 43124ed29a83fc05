"""Adversarial training: a generator and a discriminator whose parameters a condition decides.

In:   two players (any modules), conditions, real samples.
Out:  losses and turns for `weightloom.training.train`; samples.
Knows nothing of data sets, measures and applications.
"""

from weightloom.adversarial.batches import AdversarialBatch as AdversarialBatch
from weightloom.adversarial.batches import Penalty as Penalty
from weightloom.adversarial.batches import adversarial_source as adversarial_source
from weightloom.adversarial.losses import discriminator_loss as discriminator_loss
from weightloom.adversarial.losses import generator_loss as generator_loss
from weightloom.adversarial.losses import gradient_penalty as gradient_penalty
from weightloom.adversarial.pair import AdversarialPair as AdversarialPair
from weightloom.adversarial.pair import GeneratedPair as GeneratedPair
from weightloom.adversarial.players import ConcatenatedPlayer as ConcatenatedPlayer
from weightloom.adversarial.players import FunctionGenerator as FunctionGenerator
from weightloom.adversarial.players import GeneratedPlayer as GeneratedPlayer
from weightloom.adversarial.statistics import StatisticsPair as StatisticsPair
