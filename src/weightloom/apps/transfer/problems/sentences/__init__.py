"""Classes of sentences under a frozen sentence encoder.

In:   options.
Out:  the problems `intents` and `spam`.
"""
