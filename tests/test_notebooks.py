"""The notebooks run from top to bottom, show their results, and find the known truth."""

import importlib.util
import re
import time
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))
CPU_S = 60
"""Processor seconds of all notebooks together."""


def run(path):
    """The shown values of a notebook's cells, its names, and processor seconds."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    start_s = time.process_time()
    shown, names = module.app.run()
    return [value for value in shown if value is not None], names, time.process_time() - start_s


def first_hypernetwork(names):
    baseline = names["tasks"].query_y.square().mean()
    assert names["error"] < baseline / 3  # of answering zero


def looking_inside(names):
    assert names["use"].used
    assert 1.5 < names["rank"].all.rank < 2.1  # rotations: cosine and sine


def few_shot_digits(names):
    assert names["accuracy"] > 0.8  # of guessing: a third


def test_every_notebook_runs_shows_and_finds_the_truth(capsys):
    marimo = pytest.importorskip("marimo")
    pytest.importorskip("sklearn")
    spent_s = 0.0
    for path in NOTEBOOKS:
        shown, names, cpu_s = run(path)
        spent_s += cpu_s
        assert len(shown) >= 4
        for value in shown:  # as the notebook shows it
            html = marimo.as_html(value).text
            assert html and not re.search(r"object at 0x", html), f"{path.stem}: {type(value)}"
        globals()[path.stem](names)
    assert spent_s < CPU_S
    assert "steps/s" in capsys.readouterr().err  # progress of a training


def test_every_notebook_has_a_truth():
    assert {path.stem for path in NOTEBOOKS} <= {*globals()}
