"""What a combination of parts refuses, and that its advice works."""

import re

import pytest
import torch
from torch import nn

from weightloom.conditions import (
    CombinedCondition,
    DeepSets,
    MagnitudeInvariantEncoding,
    TaskEmbedding,
)
from weightloom.errors import ConfigError, ShapeError

TASKS, DIM = 5, 16


def build():
    rates = MagnitudeInvariantEncoding([0.0], [1.0])
    parts = {
        "task": TaskEmbedding(TASKS, 3),
        "support": DeepSets(2, 1, condition_dim=8),
        "rates": rates,
        "text": 7,
    }
    return CombinedCondition(parts, DIM).double()


def everything():
    support = (
        torch.randn(TASKS, 6, 2).double(),
        torch.randn(TASKS, 6, 1).double(),
        torch.rand(TASKS, 6) < 0.7,
    )
    rates, text = torch.rand(TASKS, 1).double(), torch.randn(TASKS, 7).double()
    return {"task": torch.arange(TASKS), "support": support, "rates": rates, "text": text}


def test_an_unknown_part_is_answered_with_the_nearest():
    with pytest.raises(
        ConfigError, match=r"`combined` was given the name 'txt'.*Did you mean `text`\?"
    ):
        build()(txt=everything()["text"])


def test_a_mask_for_a_part_that_is_not_given_is_refused():
    values = everything()
    with pytest.raises(
        ConfigError, match=r"`present` was given the name 'text'.*given in this call.*Known: `task`"
    ):
        build()(task=values["task"], present={"text": torch.ones(TASKS, dtype=torch.bool)})


def test_nothing_at_all_is_refused():
    for nothing in ({}, {"text": None}):
        with pytest.raises(ConfigError, match=r"No part is given.*Pass one of `task`, `support`"):
            build()(**nothing)


def test_parts_that_disagree_on_the_tasks_are_named_and_the_advice_works():
    combined, values = build(), everything()
    values = {"task": values["task"], "support": (values["support"][0], values["support"][1][:1])}
    with pytest.raises(
        ShapeError, match=r"`support\[1\]` holds 1 tasks but `task` holds 5"
    ) as caught:
        combined(**values)
    advised = eval(re.search(r"pass `(.*)`\.", str(caught.value)).group(1), {}, values)
    assert combined(task=values["task"], support=(values["support"][0], advised)).shape == (
        TASKS,
        DIM,
    )


def test_another_width_is_refused():
    message = (
        r"The part `text` is \(5, 6\) after its encoder\..*width 7, for 5 tasks\..*as \(5, 7\)"
    )
    with pytest.raises(ShapeError, match=message):
        build()(text=torch.randn(TASKS, 6, dtype=torch.float64))


def test_an_encoder_that_lies_about_its_width_is_refused():
    liar = nn.Linear(3, 4)
    liar.condition_dim = 5
    with pytest.raises(ShapeError, match=r"`liar` is \(2, 4\) after its encoder"):
        CombinedCondition({"liar": liar}, 8)(liar=torch.randn(2, 3))


@pytest.mark.parametrize("value", [["red", "blue"], (), (None, None), torch.tensor(1.0)])
def test_what_is_no_tensor_with_a_tasks_axis_is_refused(value, unchecked):
    with pytest.raises(
        ShapeError, match=r"The part `text` holds .*Pass a tensor, or several as a tuple"
    ):
        build()(text=value)


@pytest.mark.parametrize("mask", [torch.ones(4, dtype=torch.bool), torch.ones(TASKS)])
def test_a_mask_of_another_shape_or_dtype_is_refused(mask, unchecked):
    with pytest.raises(
        ShapeError, match=r"`present\['task'\]` is .*Pass a bool tensor of shape \(5,\)"
    ):
        build()(task=torch.arange(TASKS), present={"task": mask})


@pytest.mark.parametrize("name", ["text", "rates", "support"])
def test_another_dtype_is_refused_and_the_advice_works(name):
    combined, values = build(), everything()
    single = tuple(v.float() if v.is_floating_point() else v for v in values["support"])
    values = {name: single if name == "support" else values[name].float()}
    with pytest.raises(
        ConfigError,
        match=rf"`{name}` is torch.float32 on cpu .*torch.float64.*'cpu', torch.float64",
    ):
        combined(**values)
    assert combined(**{name: everything()[name]}).dtype == torch.float64


def test_another_device_is_refused():
    with pytest.raises(ConfigError, match=r"`text` is torch.float64 on meta but .*on cpu"):
        build()(text=torch.randn(TASKS, 7, dtype=torch.float64, device="meta"))


@pytest.mark.parametrize("name", ["a.b", "present", "self", "type", "items", "two words", ""])
def test_a_name_that_cannot_be_a_keyword_is_refused_and_the_advice_works(name):
    with pytest.raises(ConfigError, match="A part cannot be named"):
        CombinedCondition({name: 3}, 8)


@pytest.mark.parametrize("encoder", [0, nn.Linear(3, 4)])
def test_a_part_without_a_width_is_refused(encoder):
    with pytest.raises(
        ConfigError, match=r"The part `odd`, (0|Linear), does not say how wide it is"
    ):
        CombinedCondition({"odd": encoder}, 8)


def test_no_parts_are_refused():
    with pytest.raises(ConfigError, match="`parts` is empty"):
        CombinedCondition({}, 8)
