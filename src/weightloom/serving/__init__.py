"""Serving: one model for many users, each with generated parameters, in memory and in files.

In:   a model, a learner, and examples, conditions or parameters of users.
Out:  outputs of batches whose rows belong to several users; folders that `peft` and servers read.
Knows nothing of runs, tables or applications.
"""

from weightloom.serving.peft_loading import load_peft as load_peft
from weightloom.serving.peft_saving import save_peft as save_peft
from weightloom.serving.resolver import AdapterResolver as AdapterResolver
from weightloom.serving.server import Customer as Customer
from weightloom.serving.server import Server as Server
from weightloom.serving.statistics import MeanStatistics as MeanStatistics
from weightloom.serving.statistics import Moments as Moments
from weightloom.serving.statistics import Statistics as Statistics
from weightloom.serving.stream import CustomerWriter as CustomerWriter
from weightloom.serving.stream import Given as Given
from weightloom.serving.stream import Written as Written
from weightloom.serving.stream import write_customers as write_customers
