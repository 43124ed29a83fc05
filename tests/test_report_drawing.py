"""Drawings: plotly figures as SVG, positions by hand, and what is refused."""

import json
import re
from xml.etree import ElementTree

import numpy as np
import plotly.graph_objects as go
import pytest

from weightloom.errors import DataError
from weightloom.report.axes import axis_over, round_steps
from weightloom.report.drawing import draw_figure, draw_sign
from weightloom.report.figures import SYMBOL_OF_SIGN, Figure, Key, as_json, plain_layout


def drawn(*traces, **layout):
    figure = go.Figure(list(traces), plain_layout("x", "y") | layout)
    return draw_figure(Figure(as_json(figure), "words", "", 300), 400)


def numbers(path):
    return [float(number) for number in re.findall(r"-?[\d.]+", path)]


def test_a_drawing_is_xml_with_the_words_of_the_figure():
    text = drawn(go.Scatter(x=[1, 2], y=[3, 4], name="<b>&"), go.Bar(x=[1], y=[2]))
    root = ElementTree.fromstring(text)
    assert root.attrib["aria-label"] == "words" and root.attrib["viewBox"] == "0 0 400 300"
    assert next(root.iter("title")).text == "<b>&"


def test_points_lie_in_proportion_and_a_missing_one_breaks_the_line():
    text = drawn(go.Scatter(x=[0, 1, 2, 3, 4], y=[0, 5, None, 10, 10], mode="lines"))
    path = re.search(r'<path d="(M[^"]*)" fill="none"', text)[1]
    assert path.count("M") == 2
    x, y = numbers(path)[::2], numbers(path)[1::2]
    assert (x[1] - x[0]) * 3 == pytest.approx(x[2] - x[0], abs=0.2)
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.2) and y[2] == y[3]


def test_a_logarithmic_axis_has_equal_steps_between_powers_of_ten():
    axis = axis_over({"type": "log"}, [1, 10, 1000, -5, float("nan")], 0.0, 6)
    assert (axis.low, axis.high, axis.at(100.0)) == (0.0, 3.0, pytest.approx(2 / 3))
    assert [text for _, text in axis.ticks] == ["1", "10", "100", "1,000"]
    assert axis.at(-5) is None and axis.at(None) is None


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-4.0, 4.6), (0.0012, 0.0019), (99, 1e7)])
def test_round_steps_lie_inside_and_are_two_at_least(low, high):
    for count in (2, 4, 8):
        steps = round_steps(float(low), float(high), count)
        assert len(steps) >= 2 and low <= steps[0] and steps[-1] <= high * (1 + 1e-9)
        assert np.allclose(np.diff(steps), steps[1] - steps[0])


def test_bars_grow_from_zero_and_stand_side_by_side():
    rows = ["a", "b"]
    bars = [go.Bar(y=rows, x=values, orientation="h") for values in ([1.0, 2.0], [4.0, None])]
    boxes = [
        [float(box.attrib[side]) for side in ("x", "y", "width")]
        for box in ElementTree.fromstring(drawn(*bars)).iter("rect")
    ]
    assert len({x for x, _, _ in boxes}) == 1 and len({y for _, y, _ in boxes}) == 3
    widths = [width for _, _, width in boxes]
    assert widths[1] == pytest.approx(2 * widths[0], abs=0.2)
    assert widths[2] == pytest.approx(4 * widths[0], abs=0.3)


def test_arrays_are_drawn_as_lists_are():
    x, y = np.arange(5), np.linspace(0.0, 1.0, 5)
    assert "bdata" in as_json(go.Figure(go.Scatter(x=x, y=y)))
    arrays, lists = (drawn(go.Scatter(x=a, y=b)) for a, b in ((x, y), (x.tolist(), y.tolist())))
    assert arrays == lists


def test_nothing_to_draw_and_numbers_that_are_none_leave_an_empty_plane():
    for trace in (
        go.Scatter(x=[], y=[]),
        go.Scatter(x=[1.0], y=[float("nan")], error_y={"array": [float("nan")]}),
        go.Heatmap(z=[[float("nan")]], colorscale="Viridis"),
    ):
        assert 'fill="nan"' not in drawn(trace) and ">nan" not in drawn(trace)


@pytest.mark.parametrize("ends", [[2.0, 2.0], [float("nan"), 1.0], [float("nan")] * 2])
def test_an_axis_whose_range_is_a_point_or_not_a_number_is_drawn(ends):
    text = drawn(go.Scatter(x=[1, 2], y=[2.0, float("inf")]), yaxis={"range": ends})
    assert "nan" not in text and "inf" not in text


def test_a_trace_that_cannot_be_drawn_is_refused_and_the_advice_names_the_way():
    with pytest.raises(DataError, match=r"type 'pie'.*scatter, bar, heatmap.*Pictures"):
        drawn(go.Pie(values=[1, 2]))


@pytest.mark.parametrize("sign", SYMBOL_OF_SIGN)
def test_each_sign_of_a_legend_is_drawn_in_its_colour(sign):
    root = ElementTree.fromstring(draw_sign(Key("name", sign, "#123456")))
    assert root.attrib["aria-hidden"] == "true" and "#123456" in root[0].attrib.values()


def test_hostile_names_stay_words():
    text = drawn(go.Scatter(x=[1], y=[1], name='"><script>alert(1)</script>', line_color="red"))
    assert "<script" not in text
    assert json.loads(as_json(go.Figure()))  # plain JSON
