"""Hypernetworks: a condition per task in, a base network's parameters per task out.

In:   a condition per task, (tasks, condition_dim); for `HeadHyperNetwork`, features of labelled
      support points.
Out:  Params, each value (tasks, *shape).
Knows nothing of the task data, the base network's forward pass, or the loss.
Start at `HyperNetwork`, the common interface, then read the hypernetwork that you need.
"""

from weightloom.hypernets.adapter import AdapterHyperNetwork as AdapterHyperNetwork
from weightloom.hypernets.chunked import ChunkedHyperNetwork as ChunkedHyperNetwork
from weightloom.hypernets.equivariant import EquivariantHyperNetwork as EquivariantHyperNetwork
from weightloom.hypernets.equivariant import standardised as standardised
from weightloom.hypernets.graph import GraphHyperNetwork as GraphHyperNetwork
from weightloom.hypernets.head import HeadHyperNetwork as HeadHyperNetwork
from weightloom.hypernets.hyper_lstm import HyperLSTM as HyperLSTM
from weightloom.hypernets.hyper_lstm import HyperLSTMCell as HyperLSTMCell
from weightloom.hypernets.hyper_lstm import HyperLSTMState as HyperLSTMState
from weightloom.hypernets.hypernet import HyperNetwork as HyperNetwork
from weightloom.hypernets.mlp import MLPHyperNetwork as MLPHyperNetwork
from weightloom.hypernets.module_graph import LayerGraph as LayerGraph
from weightloom.hypernets.own import own_params as own_params
from weightloom.hypernets.static import StaticHyperNetwork as StaticHyperNetwork
from weightloom.hypernets.transformer import TransformerHyperNetwork as TransformerHyperNetwork
