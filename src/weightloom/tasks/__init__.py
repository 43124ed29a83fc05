"""Tasks: a seed or a data set in, support and query sets out, many tasks at once.

In:   a data set by name, or a rule that makes tasks; a ``torch.Generator``.
Out:  `Tasks`, every tensor with a leading tasks axis.
Knows nothing of networks.
"""

from weightloom.tasks.augment import InTurn as InTurn
from weightloom.tasks.augment import Jitter as Jitter
from weightloom.tasks.classes import ClassTasks as ClassTasks
from weightloom.tasks.data import ClassPool as ClassPool
from weightloom.tasks.data import digits_split as digits_split
from weightloom.tasks.data import load_digits as load_digits
from weightloom.tasks.data import load_omniglot as load_omniglot
from weightloom.tasks.data import omniglot_split as omniglot_split
from weightloom.tasks.data import rotated as rotated
from weightloom.tasks.sinusoid import SinusoidTasks as SinusoidTasks
from weightloom.tasks.tasks import Tasks as Tasks
from weightloom.tasks.tasks import TaskSource as TaskSource
