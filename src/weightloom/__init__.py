"""weightloom: hypernetworks in meta-learning, for PyTorch.

A hypernetwork reads a condition and generates parameters for a base network, one set per task, many tasks in one pass.
The names below are loaded when they are first used, so that importing the package, and its command, costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightloom.adapt import descend as descend
    from weightloom.adapt import fit_condition as fit_condition
    from weightloom.adapt import fit_params as fit_params
    from weightloom.base import PerTask as PerTask
    from weightloom.base import Shared as Shared
    from weightloom.base import apply_per_task as apply_per_task
    from weightloom.base import autotuned as autotuned
    from weightloom.base import in_chunks as in_chunks
    from weightloom.base import per_task as per_task
    from weightloom.base import specialise as specialise
    from weightloom.base import task_buffers as task_buffers
    from weightloom.conditions import ClassStatistics as ClassStatistics
    from weightloom.conditions import CombinedCondition as CombinedCondition
    from weightloom.conditions import DeepSets as DeepSets
    from weightloom.conditions import MagnitudeInvariantEncoding as MagnitudeInvariantEncoding
    from weightloom.conditions import SupportAttention as SupportAttention
    from weightloom.conditions import TaskEmbedding as TaskEmbedding
    from weightloom.conditions import class_statistics as class_statistics
    from weightloom.conditions import input_statistics as input_statistics
    from weightloom.diagnostics import check_scale as check_scale
    from weightloom.diagnostics import condition_use as condition_use
    from weightloom.diagnostics import effective_rank as effective_rank
    from weightloom.diagnostics import layer_response as layer_response
    from weightloom.errors import BuiltWarning as BuiltWarning
    from weightloom.errors import WeightloomError as WeightloomError
    from weightloom.forms import Chunked as Chunked
    from weightloom.forms import Factored as Factored
    from weightloom.forms import FiLM as FiLM
    from weightloom.forms import Form as Form
    from weightloom.forms import Full as Full
    from weightloom.forms import LowRank as LowRank
    from weightloom.forms import RowScale as RowScale
    from weightloom.forms import Template as Template
    from weightloom.forms import add as add
    from weightloom.forms import average as average
    from weightloom.forms import budget as budget
    from weightloom.forms import choose_forms as choose_forms
    from weightloom.forms import distance as distance
    from weightloom.forms import interpolate as interpolate
    from weightloom.forms import load_params as load_params
    from weightloom.forms import save_params as save_params
    from weightloom.forms import squared_norm as squared_norm
    from weightloom.hypernets import ChunkedHyperNetwork as ChunkedHyperNetwork
    from weightloom.hypernets import EquivariantHyperNetwork as EquivariantHyperNetwork
    from weightloom.hypernets import GraphHyperNetwork as GraphHyperNetwork
    from weightloom.hypernets import HeadHyperNetwork as HeadHyperNetwork
    from weightloom.hypernets import HyperLSTM as HyperLSTM
    from weightloom.hypernets import HyperLSTMCell as HyperLSTMCell
    from weightloom.hypernets import HyperNetwork as HyperNetwork
    from weightloom.hypernets import MLPHyperNetwork as MLPHyperNetwork
    from weightloom.hypernets import StaticHyperNetwork as StaticHyperNetwork
    from weightloom.hypernets import TransformerHyperNetwork as TransformerHyperNetwork
    from weightloom.hypernets import own_params as own_params
    from weightloom.learners import Learner as Learner
    from weightloom.learners import Support as Support
    from weightloom.losses import cross_entropy_per_task as cross_entropy_per_task
    from weightloom.losses import mse_per_task as mse_per_task
    from weightloom.networks import ConvNet as ConvNet
    from weightloom.networks import KerasBase as KerasBase
    from weightloom.networks import mlp as mlp
    from weightloom.networks import replace_recurrent as replace_recurrent
    from weightloom.params import Params as Params
    from weightloom.params import ParamSpec as ParamSpec
    from weightloom.params import sub as sub
    from weightloom.tasks import CameraTasks as CameraTasks
    from weightloom.tasks import ClassTasks as ClassTasks
    from weightloom.tasks import SinusoidTasks as SinusoidTasks
    from weightloom.tasks import Tasks as Tasks
    from weightloom.tasks import TaskSource as TaskSource
    from weightloom.training import History as History
    from weightloom.training import TrainOptions as TrainOptions
    from weightloom.training import train as train

_ROOM_OF = {
    "descend": "adapt",
    "fit_condition": "adapt",
    "fit_params": "adapt",
    "apply_per_task": "base",
    "autotuned": "base",
    "in_chunks": "base",
    "per_task": "base",
    "PerTask": "base",
    "Shared": "base",
    "specialise": "base",
    "task_buffers": "base",
    "class_statistics": "conditions",
    "ClassStatistics": "conditions",
    "CombinedCondition": "conditions",
    "DeepSets": "conditions",
    "input_statistics": "conditions",
    "MagnitudeInvariantEncoding": "conditions",
    "SupportAttention": "conditions",
    "TaskEmbedding": "conditions",
    "check_scale": "diagnostics",
    "condition_use": "diagnostics",
    "effective_rank": "diagnostics",
    "layer_response": "diagnostics",
    "BuiltWarning": "errors",
    "WeightloomError": "errors",
    "add": "forms",
    "average": "forms",
    "budget": "forms",
    "choose_forms": "forms",
    "Chunked": "forms",
    "distance": "forms",
    "Factored": "forms",
    "FiLM": "forms",
    "Form": "forms",
    "Full": "forms",
    "interpolate": "forms",
    "load_params": "forms",
    "LowRank": "forms",
    "RowScale": "forms",
    "save_params": "forms",
    "squared_norm": "forms",
    "Template": "forms",
    "ChunkedHyperNetwork": "hypernets",
    "EquivariantHyperNetwork": "hypernets",
    "GraphHyperNetwork": "hypernets",
    "HeadHyperNetwork": "hypernets",
    "HyperLSTM": "hypernets",
    "HyperLSTMCell": "hypernets",
    "HyperNetwork": "hypernets",
    "MLPHyperNetwork": "hypernets",
    "own_params": "hypernets",
    "StaticHyperNetwork": "hypernets",
    "TransformerHyperNetwork": "hypernets",
    "Learner": "learners",
    "Support": "learners",
    "cross_entropy_per_task": "losses",
    "mse_per_task": "losses",
    "ConvNet": "networks",
    "KerasBase": "networks",
    "mlp": "networks",
    "replace_recurrent": "networks",
    "Params": "params",
    "ParamSpec": "params",
    "sub": "params",
    "CameraTasks": "tasks",
    "ClassTasks": "tasks",
    "SinusoidTasks": "tasks",
    "Tasks": "tasks",
    "TaskSource": "tasks",
    "History": "training",
    "train": "training",
    "TrainOptions": "training",
}

__all__ = list(_ROOM_OF)


def __getattr__(name: str) -> Any:
    """Load a public name from its room, the first time it is asked for."""
    if name in _ROOM_OF:
        value = getattr(import_module(f"weightloom.{_ROOM_OF[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'weightloom' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_ROOM_OF)
