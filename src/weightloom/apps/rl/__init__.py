"""Reinforcement learning in families of environments: policy and value function, generated from the context.

In:   a config: a family of environments, what varies in it, and the methods to train with the same budget.
Out:  a run's folder: config, metrics, checkpoints, record and report.
The algorithms are those of Stable-Baselines3, given networks of ours.
Start at `run.run_rl`, then read `agents.nets` for what is generated.
"""
