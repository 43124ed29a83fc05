"""Measurements of the library, run from the root of a clone: scripts, the race, and the records they write."""
