"""Kinds of statements that random bases are made of: a grammar, as text.

A kind is a block: its name behind ``#`` with tags, then lines. Lines of ``forward`` stand as they
are and carry ``h``, of shape (batch, W) or (batch, L, W), to a tensor of the same shape. Others say
where they belong: ``top|`` the module, ``init|`` the constructor, ``change|`` what is done to a
base between two calls, ``turn|`` to the module's globals.

``<<a|b>>`` is one of several, ``_K`` the number of the statement, ``EXPR`` arithmetic on ``h``,
``BODY`` one or two statements more, ``ROW`` statements that suit a single row too, of shape (W,).
``self.one`` is a layer that is there in every base, so that it can be shared.

Tags: ``two`` and ``three`` for the axes that ``h`` must have, ``row`` for what suits a single row,
``state`` for what must not stand inside a body, ``often`` and ``rare``.
"""

from weightloom.testing.grammar.ends import INPUTS as INPUTS
from weightloom.testing.grammar.ends import OUTPUTS as OUTPUTS
from weightloom.testing.grammar.layers import LAYERS
from weightloom.testing.grammar.numbers import EXPRESSIONS as EXPRESSIONS
from weightloom.testing.grammar.numbers import NUMBERS
from weightloom.testing.grammar.parameters import PARAMETERS
from weightloom.testing.grammar.state import STATE

STATEMENTS = "".join([NUMBERS, PARAMETERS, STATE, LAYERS])
"""Statements of ``forward``."""
