"""Grammar of random base networks: kinds of statements, as text.

A kind is a block: ``#`` with its name and tags, then lines. Lines without a prefix belong to
``forward`` and map ``h``, of shape (batch, W) or (batch, L, W), to a tensor of the same shape.
Prefixes name another place: ``top|`` the module, ``init|`` the constructor, ``method|`` the class,
``sign|``, ``args|``, ``kwargs|`` and ``share|`` an input of ``forward``, ``change|`` a change of
the base between two calls, ``turn|`` a change of the module's globals.

``<<a|b>>`` is a choice, ``_K`` the number of the statement, ``EXPR`` arithmetic on ``h``, ``BODY``
one or two more statements, ``ROW`` statements that also accept a single row, of shape (W,).
``self.one`` is a layer of every base, so that statements can share it.

Tags: ``two`` and ``three`` for the number of axes that ``h`` must have, ``row`` for a statement
that accepts a single row, ``state`` for one that must not be inside a body, ``often`` and ``rare``
for its weight. A long line is continued in Python, by a backslash at its end.
"""

from weightloom.testing.grammar.ends import INPUTS as INPUTS
from weightloom.testing.grammar.ends import OUTPUTS as OUTPUTS
from weightloom.testing.grammar.layers import LAYERS
from weightloom.testing.grammar.numbers import EXPRESSIONS as EXPRESSIONS
from weightloom.testing.grammar.numbers import NUMBERS
from weightloom.testing.grammar.parameters import PARAMETERS
from weightloom.testing.grammar.state import STATE

STATEMENTS = "".join([NUMBERS, PARAMETERS, STATE, LAYERS])
"""All statements of ``forward``, as text."""
