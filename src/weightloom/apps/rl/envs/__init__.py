"""Environments whose physics vary from episode to episode.

In:   contexts, (rows, parameters), drawn from a `ContextFamily`; actions.
Out:  observations that begin with the context, rewards, and whether an episode ended.
Knows nothing of policies.
Start at `context.ContextFamily`; `batched` holds those that step many contexts in one tensor
operation.
"""
