"""Diagnostics of a hypernetwork: use of the condition, response, rank, scale, and drawings.

In:   a hypernetwork, its base, conditions and inputs; or Params; or a source of tasks.
Out:  frozen records: numbers, a table when printed or shown in a notebook, and a plot; drawings.
Knows nothing of how the hypernetwork works or was trained. Diagnostics change no weight, gradient
or running statistic, and leave no hook behind.
Start at `condition_use`: a hypernetwork that ignores its condition is the commonest fault, and no
loss curve shows it. Before building one, ask `generating_pays`, which trains small networks of its
own.
"""

from weightloom.diagnostics.drawing import Drawing as Drawing
from weightloom.diagnostics.drawing import draw as draw
from weightloom.diagnostics.figures import plot_condition_use as plot_condition_use
from weightloom.diagnostics.figures import plot_rank as plot_rank
from weightloom.diagnostics.figures import plot_response as plot_response
from weightloom.diagnostics.figures import plot_scale as plot_scale
from weightloom.diagnostics.generating import generating_pays as generating_pays
from weightloom.diagnostics.generating_record import GeneratingPays as GeneratingPays
from weightloom.diagnostics.generating_record import GeneratingRow as GeneratingRow
from weightloom.diagnostics.rank import EffectiveRank as EffectiveRank
from weightloom.diagnostics.rank import RankRow as RankRow
from weightloom.diagnostics.rank import effective_rank as effective_rank
from weightloom.diagnostics.response import LayerResponse as LayerResponse
from weightloom.diagnostics.response import ResponseRow as ResponseRow
from weightloom.diagnostics.response import layer_response as layer_response
from weightloom.diagnostics.scale import ScaleCheck as ScaleCheck
from weightloom.diagnostics.scale import ScaleRow as ScaleRow
from weightloom.diagnostics.scale import check_scale as check_scale
from weightloom.diagnostics.use import Arm as Arm
from weightloom.diagnostics.use import ConditionUse as ConditionUse
from weightloom.diagnostics.use import condition_use as condition_use
