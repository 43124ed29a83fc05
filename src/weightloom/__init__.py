"""weightloom: hypernetworks in meta-learning, for PyTorch.

A hypernetwork reads a condition and generates parameters for a base network, one set per task, many tasks in one pass.
The names below are loaded when they are first used, so that importing the package, and its command, costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightloom.base import Choice as Choice
    from weightloom.base import apply_per_task as apply_per_task
    from weightloom.base import apply_shared as apply_shared
    from weightloom.base import choose_engine as choose_engine
    from weightloom.base import in_chunks as in_chunks
    from weightloom.base import specialise as specialise
    from weightloom.base import task_buffers as task_buffers
    from weightloom.checkpoint import load_tensors as load_tensors
    from weightloom.checkpoint import save_tensors as save_tensors
    from weightloom.conditions import ClassStatistics as ClassStatistics
    from weightloom.conditions import CombinedCondition as CombinedCondition
    from weightloom.conditions import DeepSets as DeepSets
    from weightloom.conditions import MagnitudeInvariantEncoding as MagnitudeInvariantEncoding
    from weightloom.conditions import SupportAttention as SupportAttention
    from weightloom.conditions import TaskEmbedding as TaskEmbedding
    from weightloom.conditions import class_statistics as class_statistics
    from weightloom.errors import WeightloomError as WeightloomError
    from weightloom.fit import fit_condition as fit_condition
    from weightloom.forms import Chunked as Chunked
    from weightloom.forms import Factored as Factored
    from weightloom.forms import FiLM as FiLM
    from weightloom.forms import Form as Form
    from weightloom.forms import Full as Full
    from weightloom.forms import LowRank as LowRank
    from weightloom.forms import RowScale as RowScale
    from weightloom.forms import Template as Template
    from weightloom.forms import budget as budget
    from weightloom.forms import choose_forms as choose_forms
    from weightloom.hypernets import HeadHyperNetwork as HeadHyperNetwork
    from weightloom.hypernets import HyperNetwork as HyperNetwork
    from weightloom.hypernets import MLPHyperNetwork as MLPHyperNetwork
    from weightloom.inner import fine_tune as fine_tune
    from weightloom.keras import KerasBase as KerasBase
    from weightloom.losses import cross_entropy_per_task as cross_entropy_per_task
    from weightloom.losses import mse_per_task as mse_per_task
    from weightloom.networks import ConvNet as ConvNet
    from weightloom.networks import mlp as mlp
    from weightloom.params import Params as Params
    from weightloom.params import ParamSpec as ParamSpec
    from weightloom.params import Selector as Selector
    from weightloom.recurrent import replace_recurrent as replace_recurrent
    from weightloom.tasks import ImageTasks as ImageTasks
    from weightloom.tasks import SinusoidTasks as SinusoidTasks
    from weightloom.tasks import Tasks as Tasks
    from weightloom.tasks import TaskSource as TaskSource

_ROOM_OF = {
    "apply_per_task": "base",
    "apply_shared": "base",
    "specialise": "base",
    "load_tensors": "checkpoint",
    "save_tensors": "checkpoint",
    "ClassStatistics": "conditions",
    "DeepSets": "conditions",
    "SupportAttention": "conditions",
    "TaskEmbedding": "conditions",
    "class_statistics": "conditions",
    "WeightloomError": "errors",
    "Form": "forms",
    "Full": "forms",
    "HeadHyperNetwork": "hypernets",
    "HyperNetwork": "hypernets",
    "MLPHyperNetwork": "hypernets",
    "fine_tune": "inner",
    "cross_entropy_per_task": "losses",
    "mse_per_task": "losses",
    "ConvNet": "networks",
    "mlp": "networks",
    "Params": "params",
    "ParamSpec": "params",
    "ImageTasks": "tasks",
    "SinusoidTasks": "tasks",
    "Tasks": "tasks",
    "TaskSource": "tasks",
    "Choice": "base",
    "choose_engine": "base",
    "in_chunks": "base",
    "task_buffers": "base",
    "MagnitudeInvariantEncoding": "conditions",
    "CombinedCondition": "conditions",
    "Chunked": "forms",
    "Factored": "forms",
    "FiLM": "forms",
    "LowRank": "forms",
    "RowScale": "forms",
    "Template": "forms",
    "budget": "forms",
    "choose_forms": "forms",
    "fit_condition": "fit",
    "replace_recurrent": "recurrent",
    "KerasBase": "keras",
    "Selector": "params",
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
