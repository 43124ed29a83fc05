"""Runs: the folder of a run, its files, and the output on the terminal.

In:   options, rows, scores, signals.
Out:  files in the folder of a run, a progress bar, a table.
Knows nothing of any application.
"""
