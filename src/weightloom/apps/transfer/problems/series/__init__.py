"""Families of time series under a frozen forecasting model.

In:   options.
Out:  the problems `series` and `series-known`.
"""
