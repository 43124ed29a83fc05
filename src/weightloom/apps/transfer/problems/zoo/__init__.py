"""A zoo of small source networks, and targets with a few labelled examples.

In:   options.
Out:  the problem `zoo`.
"""
