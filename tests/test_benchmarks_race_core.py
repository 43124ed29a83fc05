"""The library's own benchmarks: contenders that compute the same, and a record that says what was aimed at."""

import json
import time

import pytest
import torch

from benchmarks.race import contests
from benchmarks.race.config import CoreConfig
from benchmarks.race.contests import BEST, Bar, Contest, conv4, conv4_by_hand
from benchmarks.race.core import _choices, _rows, run_core
from benchmarks.race.grid import cell
from weightloom.base import apply_per_task
from weightloom.errors import ConfigError
from weightloom.params import ParamSpec


def gradients_of(contest, *names):
    return [[gradient.clone() for gradient in contest.steps[name]()] for name in names]


def test_factors_give_the_gradients_that_products_by_hand_give():
    contest = contests.low_rank(2, 3, 16)
    torch.testing.assert_close(
        *gradients_of(contest, "LowRank(4)", "bmm by hand"), rtol=1e-4, atol=1e-6
    )


def test_built_weights_give_the_gradients_that_factors_give():
    contest = contests.built_weights(2, 3, 16)
    torch.testing.assert_close(
        *gradients_of(contest, "LowRank(4)", "built, then vmap"), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", ["cnn", "conv4"])
def test_every_way_to_convolve_gives_the_same_gradients(name):
    contest = contests.kernels(name, 2)
    first, *others = gradients_of(contest, *contest.steps)
    for other in others:
        torch.testing.assert_close(first, other, rtol=1e-3, atol=1e-5)


def test_grouped_convolutions_by_hand_equal_the_loop():
    net, x = conv4().double(), torch.randn(3, 2, 1, 16, 16).double()
    params = {
        name: torch.randn(3, *shape).double() for name, shape in ParamSpec.of(net).shapes.items()
    }
    torch.testing.assert_close(
        conv4_by_hand(params, x), apply_per_task(net, params, x, engine="loop")
    )


def test_a_bar_is_held_against_the_best_of_the_others():
    waits = {"ours": 2, "slow": 9, "quick": 1}
    steps = {name: lambda count=count: sum(range(200_000 * count)) for name, count in waits.items()}
    contest = Contest(
        "counting",
        steps,
        (Bar("ours", BEST, "at most", 1.05), Bar("slow", "ours", "at least", 2.0)),
    )
    best, slow = _rows(contest, CoreConfig(rounds=5, warmup=1))
    assert best["against"] == "quick" and not best["holds"] and 1.5 < best["ratio"]["median"] < 2.7
    assert slow["against"] == "ours" and slow["holds"]


def test_a_run_prints_its_bars_and_writes_a_record(tmp_path, capsys):
    path = tmp_path / "core.json"
    threads = torch.get_num_threads()
    run_core(
        CoreConfig(only=("mlp", "scale"), rounds=2, warmup=0, tasks=(1, 150), record=path),
        command="typed",
    )
    assert torch.get_num_threads() == threads
    record = json.loads(path.read_text())
    assert record["command"] == "typed" and record["rows"][0]["against"] == "bmm by hand"
    assert [row["tasks"] for row in record["scale"]] == [1, 150]
    assert {score["name"] for score in record["scores"]} == {"ratio"}
    first = record["rows"][0]
    assert first["flops_of"] == "bmm by hand" and set(first["share"]) == set(first["ms"])
    for name, reached in first["share"].items():
        rate = first["flops"] / (1e-3 * first["ms"][name])
        assert reached == pytest.approx(rate / first["product_flops_per_s"])
    assert "Times are processor time of one thread." in record["notes"]
    shown = capsys.readouterr().out
    assert (
        "GFLOP/s" in shown and "bmm by hand" in shown and "at most 1.1" in shown and "150" in shown
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"only": ("cpu",)}, "`--only cpu` is unknown"),
        ({"rounds": 0}, "`--rounds 0` is too small"),
        ({"tasks": ()}, "leaves nothing to time"),
        ({"tasks": (0,)}, "leaves nothing to time"),
    ],
)
def test_options_that_cannot_work_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        CoreConfig(**options)


def test_what_is_not_asked_for_is_not_timed(capsys):
    record = run_core(CoreConfig(only=("mlp",), rounds=1, warmup=0), command="typed")
    assert not record["scale"] and len(record["rows"]) == 1
    assert "in chunks" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["recommender", "temporal convolutions"])
def test_every_engine_of_a_cell_takes_the_same_gradients(name):
    contest = cell(name, "LowRank(4)")
    expected = contest.steps["loop"]()
    for its in contest.steps.values():
        torch.testing.assert_close(its(), expected, rtol=1e-3, atol=1e-4)


def test_a_cell_in_which_auto_runs_the_best_engine_counts_as_one():
    steps = {
        "auto": lambda: time.sleep(0.002),
        "aligned": lambda: time.sleep(0.001),
        "loop": lambda: time.sleep(0.003),
    }
    bars = (Bar("auto", BEST, "at most", 1.10),)
    for chosen, one in (("aligned", True), ("loop", False)):
        contest = Contest("auto over the best engine", steps, bars, label="a cell", chosen=chosen)
        (row,) = _rows(contest, CoreConfig(rounds=3, warmup=0, threads=2))
        assert row["of"] == "a cell" and row["against"] == "aligned"
        assert (row["ratio"]["median"] == 1.0) == one and row["holds"] == one
    assert _choices([row])[0]["mean"] == pytest.approx(row["ratio"]["median"])
