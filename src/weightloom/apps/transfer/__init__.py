"""Transfer: the change of a frozen model's weights, generated from the knowledge of a target.

In:   a config: source and targets, and the methods to train on the same tasks.
Out:  a run's folder: config, metrics, checkpoints, record and report.
Start at `app.Transfer`; a problem of your own inherits from `problems.problem.Problem`.
"""
