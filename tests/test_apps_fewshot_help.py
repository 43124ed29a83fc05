"""The defaults that `weightloom fewshot --help` states are those of the data sets."""

import ast
import inspect
import re

import pytest

from weightloom.apps.fewshot import config
from weightloom.apps.fewshot.presets import COMMON, PRESETS


def defaults_said(name):
    """The sentence of a field's help that states its default."""
    (options,) = (
        node
        for node in ast.parse(inspect.getsource(config)).body
        if isinstance(node, ast.ClassDef) and node.name == "FewShotConfig"
    )
    for field, text in zip(options.body, options.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and field.target.id == name:
            return " ".join(text.value.value.split()).partition("Default:")[2]
    raise KeyError(name)


def defaults(name):
    return {{**COMMON, **preset}.get(name) for preset in PRESETS.values()}


@pytest.mark.parametrize("name", ["outer_lr", "clip_norm", "weight_decay", "average"])
def test_every_default_of_a_number_is_stated(name):
    stated = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", defaults_said(name))}
    assert stated == defaults(name)


@pytest.mark.parametrize("name", ["normalisation", "precision"])
def test_every_default_of_a_word_is_stated(name):
    assert set(re.findall(r"`(.+?)`", defaults_said(name))) == defaults(name)


@pytest.mark.parametrize("name", ["queries", "train_ways", "tasks", "test_tasks"])
def test_the_range_of_defaults_by_data_set_is_stated(name):
    low, high = map(int, re.search(r"from (\d+).*? to (\d+)", defaults_said(name)).groups())
    known = defaults(name) - {None}
    if name == "train_ways":
        known -= {1}  # regressions have no classes
    assert (low, high) == (min(known), max(known))


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "outer_lr": {"cameras": 0.006, "digits": 0.0002, "folder": 0.002, "table": 0.001},
        "weight_decay": {"cifar-fs": 0.05, "omniglot": 0.0001, "digits": 0.0},
        "average": {"growth-curves": 0.99, "intents": 0.98, "spoken-digits": 0.998},
        "tasks": {"cameras": 16, "folder": 4, "table": 32, "own": 8},
        "queries": {"cameras": 50, "folder": 5, "table": 5, "own": 10},
        "test_tasks": {"cameras": 200, "sinusoid": 2000, "folder": 600, "table": 600, "own": 600},
    }.items(),
)
def test_the_defaults_named_with_a_data_set_are_its_own(name, values):
    assert {data: {**COMMON, **PRESETS[data]}[name] for data in values} == values
