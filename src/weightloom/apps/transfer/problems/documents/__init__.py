"""Documents as adapters of a character language model.

In:   options.
Out:  the problem `documents`.
"""
