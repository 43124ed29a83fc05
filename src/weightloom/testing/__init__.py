"""Checks for hypernetworks and forms that users write, against the contract of their interface.

In:   a hypernetwork and a condition that it reads; or a form.
Out:  None, or an AssertionError that names the broken rule and a remedy.
Knows nothing of the method behind the hypernetwork or the form.

`weightloom.testing.fuzz` tests the engines with random base networks.
"""

from weightloom.testing.forms import check_form as check_form
from weightloom.testing.hypernets import check_hypernetwork as check_hypernetwork
