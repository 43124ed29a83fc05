"""A history as a plot and as a table."""

import re
import signal

import pytest

from weightloom import History
from weightloom.errors import ConfigError

ROWS = [
    {"step": 10, "loss": 2.0, "outer_lr": 1e-3, "wall_time_s": 0.1},
    {"step": 10, "validation_score": 0.5, "score_name": "accuracy", "wall_time_s": 0.1},
    {"step": 20, "loss": 1.0, "outer_lr": 1e-4, "wall_time_s": 0.2},
]
TURNS = [
    {"step": step, "turn": turn, "loss": loss}
    for step, turn, loss in [(1, "actor", -1.0), (2, "critic", 3.0), (3, "actor", -2.0)]
]


def lines(figure):
    return {line.name: (list(line.x), list(line.y)) for line in figure.data}


def test_loss_and_score_are_drawn_against_steps():
    figure = History(ROWS).plot()
    assert lines(figure) == {"": ([10, 20], [2.0, 1.0]), "validation accuracy": ([10], [0.5])}
    assert figure.layout.yaxis.type == "log" and figure.layout.yaxis2.title.text == (
        "validation accuracy"
    )


def test_each_turn_has_a_curve_and_losses_below_zero_a_linear_axis():
    figure = History(TURNS).plot()
    assert lines(figure) == {"actor": ([1, 3], [-1.0, -2.0]), "critic": ([2], [3.0])}
    assert figure.layout.yaxis.type is None and figure.layout.showlegend


def test_an_empty_history_says_so():
    with pytest.raises(ConfigError, match="no row with a loss"):
        History().plot()
    assert "steps 0" in History()._repr_html_()


def test_the_table_holds_first_last_and_extremes():
    history = History(ROWS, wall_time_s=0.2, stopped_by=signal.SIGINT)
    html = history._repr_html_()
    cells = re.findall(r"<tr><th>loss</th>(.*?)</tr>", html)[0]
    assert re.findall(r"<td>(.*?)</td>", cells) == ["2", "1", "1", "2"]
    assert "steps 20, seconds 0.2, stopped by SIGINT" in html and "score_name" not in html
    assert "<th>critic/loss</th>" in History(TURNS)._repr_html_()
