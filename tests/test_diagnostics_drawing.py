"""Drawings: every layer is in them, counts are right, nothing of a user's name breaks the file."""

from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from cases import HYPERNETWORKS
from weightloom import Full, LowRank, MLPHyperNetwork
from weightloom.diagnostics import draw
from weightloom.errors import ConfigError


def texts(drawing):
    root = ElementTree.fromstring(drawing.svg)
    return [its.text for its in root.iter("{http://www.w3.org/2000/svg}text")]


def boxes(drawing):
    root = ElementTree.fromstring(drawing.svg)
    found = root.iter("{http://www.w3.org/2000/svg}rect")
    return [[float(its.get(key)) for key in ("x", "y", "width", "height")] for its in found]


@pytest.mark.parametrize("step", [False, True])
def test_nothing_overlaps_and_all_lies_on_the_sheet(step):
    base = nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(16, 2))
    drawing = draw(MLPHyperNetwork(base, 8, generate={"*.weight": LowRank(2)}), step=step)
    _, _, wide, high = map(float, ElementTree.fromstring(drawing.svg).get("viewBox").split())
    found = boxes(drawing)
    for number, (x, y, width, height) in enumerate(found):
        assert x >= 0 and x + width <= wide and y >= 0 and y + height <= high
        for left, top, across, down in found[:number]:
            assert x >= left + across or left >= x + width or y >= top + down or top >= y + height


def test_generated_and_shared_parameters_are_told_apart():
    base = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2, bias=False))
    drawing = draw(MLPHyperNetwork(base, 8, generate={"0.weight": LowRank(1), "1.*": Full()}))
    lines = texts(drawing)
    assert {
        "weight 4 x 3 LowRank",
        "bias 4 (shared)",
        "weight 4 Full",
        "weight 2 x 4 (shared)",
    } <= {*lines}
    assert "15 per task out" in lines  # rank 1: 4 + 3; norm: 4 + 4
    assert "2 Linear: weight 2 x 4 shared" in str(drawing)


def test_own_numbers_are_those_that_the_optimiser_is_given():
    hyper = MLPHyperNetwork(nn.Linear(3, 2), condition_dim=4)
    count = sum(its.numel() for its in hyper.parameters())
    assert f"{count:,} own numbers" in texts(draw(hyper))
    hyper = MLPHyperNetwork(nn.Linear(3, 2), condition_dim=4, generate="bias")
    count = sum(its.numel() for its in hyper.parameters()) - 6  # the shared weight
    assert f"{count:,} own numbers" in texts(draw(hyper, step=True))
    assert "6 shared numbers" in texts(draw(hyper, step=True))


def test_of_a_deep_base_the_first_and_last_layers_are_drawn():
    base = nn.Sequential(*(nn.Linear(2, 2) for _ in range(30)))
    lines = texts(draw(MLPHyperNetwork(base, 4)))
    assert "… 26 more" in lines and "0  Linear" in lines and "29  Linear" in lines
    assert len(str(draw(MLPHyperNetwork(base, 4))).splitlines()) == 31  # in words: all


def test_a_name_with_markup_is_text(tmp_path):
    class Base(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("a<b>&", nn.Linear(2, 2))

        def forward(self, x):
            return getattr(self, "a<b>&")(x)

    drawing = draw(MLPHyperNetwork(Base(), 4))
    assert "a<b>&  Linear" in texts(drawing)
    assert drawing.save(tmp_path / "it.svg").read_text() == drawing._repr_html_()


def test_every_hypernetwork_of_the_bank_can_be_drawn():
    for case in HYPERNETWORKS:
        hyper = case.values[0].build()
        if hasattr(hyper, "spec"):
            assert f"(tasks, {hyper.condition_dim})" in texts(draw(hyper))


def test_a_module_without_a_base_is_refused():
    with pytest.raises(ConfigError, match="no `base`"):
        draw(torch.nn.Linear(2, 2))
