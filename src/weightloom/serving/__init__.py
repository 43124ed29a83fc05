"""Serving: one model for many customers, each with generated parameters.

In:   a model, a learner, and examples or a condition per customer.
Out:  outputs of batches whose rows belong to several customers; files of generated parameters.
Knows nothing of runs, tables or applications.
"""

from weightloom.serving.server import Customer as Customer
from weightloom.serving.server import Server as Server
from weightloom.serving.statistics import MeanStatistics as MeanStatistics
from weightloom.serving.statistics import Moments as Moments
from weightloom.serving.statistics import Statistics as Statistics
from weightloom.serving.stream import CustomerWriter as CustomerWriter
from weightloom.serving.stream import Given as Given
from weightloom.serving.stream import Written as Written
from weightloom.serving.stream import write_customers as write_customers
