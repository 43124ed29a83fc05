"""Forms: how one generated parameter is held, and how it becomes the parameter that the base network uses.

In:   the base's own value of a parameter, and the factors a hypernetwork generated for it.
Out:  the parameter per task, ``(tasks, *shape)``.
Knows nothing of conditions, hypernetworks or the base's forward pass.
"""

from weightloom.forms.form import Form as Form
from weightloom.forms.full import Full as Full
