"""Environments with physics that vary from episode to episode.

In:   contexts, (rows, parameters), drawn from a `ContextFamily`; actions.
Out:  observations that begin with the context, rewards, and ends of episodes.
Knows nothing of policies.
Start at `context.ContextFamily`; `batched` steps many contexts by one tensor operation.
"""
