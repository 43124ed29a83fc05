"""Public names and the modules that define them, read by `__init__.py`."""

from weightloom.adapt import descend as descend
from weightloom.adapt import fit_condition as fit_condition
from weightloom.adapt import fit_params as fit_params
from weightloom.adversarial import AdversarialPair as AdversarialPair
from weightloom.adversarial import FunctionGenerator as FunctionGenerator
from weightloom.adversarial import GeneratedPair as GeneratedPair
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
from weightloom.conditions import GridEncoder as GridEncoder
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
from weightloom.forms import *  # all names that its `__init__.py` imports
from weightloom.hypernets import *  # all names that its `__init__.py` imports
from weightloom.learners import GeneratedLearner as GeneratedLearner
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
from weightloom.serving import AdapterResolver as AdapterResolver
from weightloom.serving import CustomerWriter as CustomerWriter
from weightloom.serving import Server as Server
from weightloom.serving import load_peft as load_peft
from weightloom.serving import save_peft as save_peft
from weightloom.serving import write_customers as write_customers
from weightloom.tasks import CameraTasks as CameraTasks
from weightloom.tasks import ClassTasks as ClassTasks
from weightloom.tasks import Examples as Examples
from weightloom.tasks import SinusoidTasks as SinusoidTasks
from weightloom.tasks import Tasks as Tasks
from weightloom.tasks import TaskSource as TaskSource
from weightloom.training import History as History
from weightloom.training import TrainOptions as TrainOptions
from weightloom.training import Turn as Turn
from weightloom.training import train as train

def _public_names() -> dict[str, str]: ...

__version__: str
