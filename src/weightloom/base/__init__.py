"""The base network, run once per task: Params and inputs in, outputs out.

In:   a base network (any module), Params, inputs whose first axis is tasks.
Out:  outputs whose first axis is tasks; or, from `specialise`, a plain module for one task.
Does not know the hypernetwork that generated the parameters.
Start at `apply`. A call then goes through `arguments`, `plan_cache` (with `check` and `choose` for
a new kind of call), `run_plan` and `engines`.
"""

from weightloom.base.apply import PerTask as PerTask
from weightloom.base.apply import apply_per_task as apply_per_task
from weightloom.base.apply import apply_shared as apply_shared
from weightloom.base.apply import choose_engine as choose_engine
from weightloom.base.apply import per_task as per_task
from weightloom.base.buffers import task_buffers as task_buffers
from weightloom.base.chunks import in_chunks as in_chunks
from weightloom.base.plan import Choice as Choice
from weightloom.base.specialise import specialise as specialise
from weightloom.base.tuning import Tuning as Tuning
from weightloom.base.tuning import autotuned as autotuned
from weightloom.replica.tree import Shared as Shared
