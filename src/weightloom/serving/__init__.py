"""Serving: adapters for many users, in memory, in files and for other servers.

In:   a model, and parameters per task from a hypernetwork or a learner.
Out:  answers of each user's own network; folders that `peft` and servers read.
Knows nothing of how the parameters were generated.
"""

from weightloom.serving.peft_loading import load_peft as load_peft
from weightloom.serving.peft_saving import save_peft as save_peft
from weightloom.serving.resolver import AdapterResolver as AdapterResolver
