"""Help texts of `weightloom rl`: the defaults they name are those that a run uses."""

import ast
import inspect
import re

import pytest

from weightloom.apps.rl import config as room
from weightloom.apps.rl.config import RLConfig
from weightloom.apps.rl.presets import COMMON, PRESETS

NAME = re.compile(r"`(\w+)`|(\w+-v\d)")


def texts():
    """Text under each field of the config."""
    (kind,) = (
        node
        for node in ast.parse(inspect.getsource(room)).body
        if isinstance(node, ast.ClassDef) and node.name == "RLConfig"
    )
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in zip(kind.body, kind.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }


def named(text):
    """Default by environment, as a text names it; of all others under the empty name."""
    clauses = text.partition("Default: ")[2].partition(", which")[0].rstrip(".").split("; ")
    found = {"": clauses[0]}
    for clause in clauses[1:]:
        *environments, value = re.split(r", | and | ", clause)
        found |= {"".join(NAME.fullmatch(one).groups("")): value for one in environments}
    return found


def typed(value):
    """A default as help writes it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value}`" if isinstance(value, str) else f"{value:,}".removesuffix(".0")


@pytest.mark.parametrize("option", sorted(set(COMMON) - {"steps"}))
def test_help_names_the_default_of_every_environment(option):
    usual = COMMON[option]
    others = {
        env: preset[option] for env, preset in PRESETS.items() if preset.get(option, usual) != usual
    }
    expected = {env: typed(value) for env, value in {"": usual, **others}.items()}
    assert named(texts()[option]) == expected


def test_every_option_that_is_filled_in_names_its_default():
    """A help text without the value would end in nothing where no flag is typed."""
    left_out = [
        name
        for name, text in texts().items()
        if getattr(RLConfig(), name) in (None, ()) and "Default: " not in text
    ]
    assert not left_out
