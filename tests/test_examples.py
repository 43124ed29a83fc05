import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_says_how_to_run_it_what_it_takes_what_to_expect_and_what_it_shows(example):
    text = example.read_text()
    assert re.match(
        r'""".+\n(.|\n)*?\nRun: +\S.*\nTakes: +\S(.|\n)*?\nExpect: +\S(.|\n)*?\nShows: +\S(.|\n)*?\n"""',
        text,
    )
    assert "\n    assert " in text


def test_the_sinusoid_example_learns_from_its_first_steps(unchecked):
    main = runpy.run_path(str(example_named("sinusoid")))["main"]
    before, control_before = main(steps=1)
    after, control = main(steps=200)
    assert after < before / 1.5
    assert control_before == pytest.approx(
        before, rel=0.2
    )  # untrained, the condition makes next to no difference
    assert control > 1.3 * after


def test_the_own_base_example_learns_from_its_first_steps_and_exports(unchecked):
    main = runpy.run_path(str(example_named("own_base")))["main"]
    assert main(steps=100) > 0.7


def test_the_thousand_tasks_example_learns_from_its_first_steps(unchecked):
    main = runpy.run_path(str(example_named("thousand_tasks")))["main"]
    error, control, late = main(steps=60)
    assert control > 2 * error
    assert late < control


def test_the_own_method_example_learns_from_its_first_steps(unchecked):
    main = runpy.run_path(str(example_named("own_method")))["main"]
    error, scratch = main(steps=60)
    assert error < scratch


def test_the_linear_control_example_learns_from_its_first_steps(unchecked):
    main = runpy.run_path(str(example_named("linear_control")))["main"]
    before, _ = main(steps=1)
    error, control = main(steps=40)
    assert error < before / 1.5
    assert control > 1.2 * error


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_reaches_the_number_that_it_promises(example, tmp_path):
    environment = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def example_named(name):
    return next(example for example in EXAMPLES if example.stem == name)
