"""Runs: the folder of a run, and all that every run writes, reads and prints.

In:   options, rows, scores, signals.
Out:  files of a run's folder, a progress bar, a table.
Knows nothing of any application.
"""
