"""Agents: algorithms of Stable-Baselines3 with networks of this library.

In:   an environment whose observations begin with the context, and the name of a method.
Out:  a model of Stable-Baselines3, untrained.
Knows nothing of runs, records or reports.
Start at `nets.GeneratedNetwork`, then read `build.build_agent`.
"""
