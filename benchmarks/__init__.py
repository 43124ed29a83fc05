"""Measurements of the library, run from the root of a clone.

Scripts, the race, and the records they write.
"""
