"""Forms: compact representations of a generated parameter, and rules to use or build it.

In:   the base's own value of a parameter, and the factors that a hypernetwork generated for it.
Out:  the parameter per task, ``(tasks, *shape)``: built, or a `Factored` tensor that most layers
      use without building it.
Knows nothing of conditions, hypernetworks or the base's forward pass.
"""

from weightloom.forms.arithmetic import add as add
from weightloom.forms.arithmetic import average as average
from weightloom.forms.arithmetic import distance as distance
from weightloom.forms.arithmetic import interpolate as interpolate
from weightloom.forms.arithmetic import squared_norm as squared_norm
from weightloom.forms.choose import budget as budget
from weightloom.forms.choose import choose_forms as choose_forms
from weightloom.forms.chunked import Chunked as Chunked
from weightloom.forms.factored import Factored as Factored
from weightloom.forms.files import load_params as load_params
from weightloom.forms.files import save_params as save_params
from weightloom.forms.form import Form as Form
from weightloom.forms.full import Full as Full
from weightloom.forms.joined import join as join
from weightloom.forms.joined import solve_values as solve_values
from weightloom.forms.low_rank import LowRank as LowRank
from weightloom.forms.rank import to_rank as to_rank
from weightloom.forms.row_scale import FiLM as FiLM
from weightloom.forms.row_scale import RowScale as RowScale
from weightloom.forms.template import Template as Template
