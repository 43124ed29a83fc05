"""Learners: a support set in, parameters of a working network out, one set per task.

In:   `Tasks` to train on, then the support set of new tasks.
Out:  parameters per task, and predictions for queries.
Knows nothing of data sets, tables or runs. Every few-shot method, new or for comparison, is a
`Learner`.

The classes of every file here can be imported from the package, without a line per class in this
file. Type checkers know them only by their own files: ``from weightloom.learners.maml import
MAML``.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weightloom.learners.generated import GeneratedLearner as GeneratedLearner
    from weightloom.learners.learner import Learner as Learner
    from weightloom.learners.learner import Support as Support


def __getattr__(name: str) -> Any:
    """Import a class from the files of this package on its first use."""
    files = [file.name for file in pkgutil.iter_modules(__path__)]
    for file in [] if name.startswith("_") or name in files else files:
        module = importlib.import_module(f"{__name__}.{file}")
        found = vars(module).get(name)
        if isinstance(found, type) and (found.__module__ == module.__name__ or file == "learner"):
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
