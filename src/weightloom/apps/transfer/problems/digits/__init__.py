"""Digits under domains known from unlabelled pictures: random distortions, and scans of MNIST.

In:   options.
Out:  the problems `domains` and `scans`.
"""
