"""For people who write their own.

One call holds a hypernetwork or a form against what every one of them promises.

In:   a hypernetwork and a condition such as it reads; or a form.
Out:  nothing; or an AssertionError that says which promise is broken, with what to do about it.
Knows nothing of how the hypernetwork or the form works.

`weightloom.testing.fuzz` holds the engines against what they promise, with random bases.
"""

from weightloom.testing.forms import check_form as check_form
from weightloom.testing.hypernets import check_hypernetwork as check_hypernetwork
