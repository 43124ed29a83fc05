"""Few-shot methods, one file each, all with the interface of `Learner`: ours first, then what they are held against."""
