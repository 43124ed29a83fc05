"""Few-shot tasks of pictures under a network of CIFAR-10.

In:   options.
Out:  the problem `pictures`.
"""
