"""Lists follow from the source: a new form, hypernetwork or method takes two files, and is found everywhere."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import weightloom

ROOT = Path(__file__).parents[1]

FORM = '''"""Scaled inputs."""

from torch import Tensor, nn

from weightloom.forms.form import Form, Parts
from weightloom.params import Shape


class ColumnScale(Form):
    """θ = W diag(1 + g): every input of the layer gets a generated gain."""

    needs = "two axes"

    def fit(self, shape: Shape, owner: nn.Module) -> "ColumnScale | None":
        return self if len(shape) == 2 else None

    def factor_shapes(self, shape: Shape) -> dict[str, Shape]:
        return {"gain": (shape[1],)}

    def dense(self, own: Tensor, parts: Parts) -> Tensor:
        return own * (1 + parts["gain"])[..., None, :]
'''

HYPERNETWORK = '''"""A linear layer from the condition to all parameters."""

from torch import nn

from weightloom.hypernets.mlp import MLPHyperNetwork


class LinearHyperNetwork(MLPHyperNetwork):
    """Parameters that are affine in the condition."""

    def __init__(self, base: nn.Module, condition_dim: int) -> None:
        super().__init__(base, condition_dim, hidden=())
'''

METHOD = '''"""The nearest class mean, by another name."""

from weightloom.learners.centroid import NearestCentroid


class NearestMean(NearestCentroid):
    """The class whose mean input is nearest."""
'''

ENTRY = """    Method(
        "nearest-mean",
        "the class whose mean input is nearest, once more",
        {("images",): lambda p: learners.NearestMean(p.train.examples[0, 0].numel())},
    ),
"""

APPLICATION = '''"""Lines fitted to points on a line."""

from dataclasses import dataclass

from weightloom.apps.app import App
from weightloom.runs.options import RunOptions


@dataclass(frozen=True)
class LineConfig(RunOptions):
    """One run."""

    slope: float = 2.0
    """Of the line."""


class Lines(App):
    """Lines fitted to points."""

    name, about, config = "lines", "Fit a line to points on a line.", LineConfig

    def open(self, config):
        """Return points."""
        import torch

        x = torch.linspace(-1, 1, 20)[:, None]
        return x, config.slope * x

    def build(self, method, problem, config):
        """Return a layer."""
        import torch

        return torch.nn.Linear(1, 1)

    def train(self, model, problem, config, training):
        """Fit it."""
        from weightloom import TrainOptions, Turn, train

        def loss(model, batch, name):
            return (model(batch[0]) - batch[1]).square().mean(1)

        options = TrainOptions(steps=config.steps or 200, outer_lr=0.1)
        return train(model, [problem], None, options, turns=[Turn("fit", loss)], **training.how())

    def judge(self, contenders, problem, config, folder):
        """Return squared errors."""
        x, y = problem
        return [one.row("the line", "mse", (one.model(x) - y).square()[:, 0].detach()) for one in contenders]
'''

CHANGES = {
    "application": {
        "apps/lines.py": [("", APPLICATION)],
        "apps/registry.py": [
            ('    "rl": "weightloom', '    "lines": "weightloom.apps.lines:Lines",\n')
        ],
    },
    "form": {
        "forms/column_scale.py": [("", FORM)],
        "forms/__init__.py": [
            ("", "from weightloom.forms.column_scale import ColumnScale as ColumnScale\n")
        ],
    },
    "hypernetwork": {
        "hypernets/linear.py": [("", HYPERNETWORK)],
        "hypernets/__init__.py": [
            (
                "",
                "from weightloom.hypernets.linear import LinearHyperNetwork as "
                "LinearHyperNetwork\n",
            )
        ],
    },
    "few-shot method": {
        "learners/nearest_mean.py": [("", METHOD)],
        "apps/fewshot/methods.py": [
            (')\n"""Every method, in the order of lists; add yours here."""', ENTRY)
        ],
    },
}
"""Per file, texts and what they are put before; behind everything where that is empty."""

LOOK = """
import contextlib, io, json, runpy, sys
from pathlib import Path
root = Path(sys.argv[1])
sys.path.insert(0, str(root / "tests"))
printed = io.StringIO()
with contextlib.redirect_stdout(printed):
    from weightloom.cli import main
    main(["list"])
    main(["list", "rooms"])
    main(["list", "fewshot"])
    main([])
listed_without_torch = "torch" not in sys.modules
import torch
import cases, test_apps_fewshot_methods, weightloom
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.testing import check_form
check_form(weightloom.ColumnScale())
pages = runpy.run_path(str(root / "docs" / "_rooms.py"))["file_pages"]()
with contextlib.redirect_stdout(printed):
    main(["lines", "--run", "run", "--quiet"])
    main(["lines", "--resume", "run", "--quiet"])
    main(["eval", "run"])
    main(["report", "run"])
params = {"w": weightloom.ColumnScale().value(torch.ones(2, 3), {"gain": torch.ones(5, 3)})}
weightloom.save_params("params.safetensors", params)
print(json.dumps({
    "listed": printed.getvalue().replace(",", " ").split(),
    "listed_without_torch": listed_without_torch,
    "bank": [case.id for case in (*cases.FORMS, *cases.HYPERNETWORKS)],
    "methods": [method for _, method in test_apps_fewshot_methods.CASES],
    "pages": [*pages],
    "table": runpy.run_path(str(root / "docs" / "_tables.py"))["methods_table"]().split("`"),
    "chosen": FewShotConfig("digits", method="nearest-mean").method,
    "budget": str(weightloom.budget(torch.nn.Linear(20, 300), 300 * 9 + 20 * 10, width=8, generate="weight")),
    "scores": [row["mean"] for row in json.loads(Path("run/record.json").read_text())["scores"]],
    "report": Path("run/report.html").read_text(),
    "loaded": repr(weightloom.load_params("params.safetensors")["w"].form),
}))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Everything that knows of forms, hypernetworks and methods, in a copy of the library with one more of each."""
    folder = tmp_path_factory.mktemp("library")
    package = folder / "weightloom"
    shutil.copytree(
        Path(weightloom.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    for files in CHANGES.values():
        for name, edits in files.items():
            for before, text in edits:
                known = (package / name).read_text() if (package / name).exists() else ""
                assert known.count(before) == 1 or not before
                (package / name).write_text(
                    known.replace(before, text + before) if before else known + text
                )
    env = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "200"}
    command = [sys.executable, "-c", LOOK, str(ROOT)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.parametrize("kind", CHANGES)
def test_a_new_one_takes_two_files_that_the_guide_names(kind):
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    assert len(CHANGES[kind]) <= 2 and all(len(edits) <= 3 for edits in CHANGES[kind].values())
    for name in CHANGES[kind]:
        is_new = not (Path(weightloom.__file__).parent / name).exists()
        assert f"`src/weightloom/{Path(name).parent if is_new else name}" in guide


def test_the_command_lists_them_still_without_torch(found):
    assert found["listed_without_torch"]
    assert {"ColumnScale", "LinearHyperNetwork", "nearest-mean"} <= {*found["listed"]}
    assert found["chosen"] == "nearest-mean"


def test_the_banks_of_the_tests_hold_them(found):
    assert {"ColumnScale", "LinearHyperNetwork"} <= {*found["bank"]} and "nearest-mean" in found[
        "methods"
    ]


def test_the_documentation_shows_them(found):
    files = {
        "weightloom.forms.column_scale",
        "weightloom.hypernets.linear",
        "weightloom.learners.nearest_mean",
    }
    assert files <= {*found["pages"]} and "nearest-mean" in found["table"]


def test_a_budget_may_choose_a_new_form_and_a_file_may_hold_it(found):
    assert "ColumnScale()" in found["budget"] and found["loaded"] == "ColumnScale()"


def test_a_new_application_is_run_judged_and_shown(found):
    assert "lines" in found["listed"]
    trained, untrained = found["scores"]
    assert trained < 1e-3 < untrained
    assert "weightloom.apps.lines" in found["pages"]
    assert "<h2>Results</h2>" in found["report"] and "hypernetwork (untrained)" in found["report"]
