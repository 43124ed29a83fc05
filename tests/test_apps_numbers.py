"""Scores that do not change unless somebody means them to: written down at an earlier commit of this project.

Version:   commit 79e785e, before few-shot learning and reinforcement learning ran on one skeleton;
           torch 2.13.0, CPU.
Chosen so: runs short enough that another processor's rounding is not yet amplified by training.
"""

import pytest

from weightloom.apps import experiment
from weightloom.apps.fewshot.app import FewShot
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.runs.record import label

pytestmark = pytest.mark.usefixtures("unchecked")

SINUSOID = {
    "5-shot": {
        "hypernetwork": 3.76836099,
        "cnp": 4.55119180,
        "maml": 4.42151186,
        "shuffled (control)": 4.15195726,
    }
}
DIGITS = {
    "3-way 1-shot": {
        "hypernetwork": 0.86,
        "protonet": 0.86,
        "centroid": 0.8288889,
        "shuffled (control)": 0.3466667,
    },
    "3-way 5-shot": {
        "hypernetwork": 0.9611111,
        "protonet": 0.9522222,
        "centroid": 0.9411111,
        "shuffled (control)": 0.2877778,
    },
}
CAMERAS = {
    "1 of each of 10": {
        "hypernetwork": 0.5885,
        "matching-taught": 0.763,
        "matching": 0.7335,
        "logistic": 0.5845,
        "nearest": 0.5845,
        "svm": 0.5845,
        "shuffled (control)": 0.089,
        "reader (ceiling)": 0.648,
        "SVM (ceiling)": 0.954,
    },
    "4 of each of 5": {
        "hypernetwork": 0.419,
        "matching-taught": 0.636,
        "matching": 0.562,
        "logistic": 0.423,
        "nearest": 0.416,
        "svm": 0.4175,
        "shuffled (control)": 0.1015,
        "reader (ceiling)": 0.638,
        "SVM (ceiling)": 0.954,
    },
}
LQR = {
    "training ranges": {
        "hypernetwork": -80.5921558,
        "film": -24.6369896,
        "none": -77.5856655,
        "optimum (control)": -6.70922818,
        "no action (control)": -29.4188433,
    },
    "held-out contexts": {
        "hypernetwork": -7.37903347,
        "film": -7.15197701,
        "none": -29.9818498,
        "optimum (control)": -4.27007818,
        "no action (control)": -11.0921,
    },
}
GRID = {
    "training ranges": {
        "hypernetwork": -3.61666723,
        "recurrent": -2.88333366,
        "none": -6.00000095,
        "no action (control)": -6.00000095,
    }
}


def scores(app, config, folder):
    found = {}
    for row in experiment.run(app, config, folder, quiet=True)["scores"]:
        found.setdefault(row["setting"], {})[label(row)] = row["mean"]
    return found


def agree(found, expected, **tolerance):
    for setting, rows in expected.items():
        assert {name: found[setting][name] for name in rows} == pytest.approx(rows, **tolerance), (
            setting
        )


@pytest.mark.parametrize(
    "comparators", [("cnp",), pytest.param(("cnp", "maml"), marks=pytest.mark.slow)]
)
def test_errors_of_sinusoids(comparators, tmp_path):
    options = {"steps": 130, "tasks": 8, "shots": (5,), "test_tasks": 60, "outer_lr": 3e-4}
    found = scores(
        FewShot(), FewShotConfig("sinusoid", comparators=comparators, **options), tmp_path / "run"
    )
    names = {"hypernetwork", *comparators, "shuffled (control)"}
    agree(found, {"5-shot": {name: SINUSOID["5-shot"][name] for name in names}}, rel=1e-3)


@pytest.mark.slow
def test_accuracies_of_digits(tmp_path):
    pytest.importorskip("sklearn")
    config = FewShotConfig(
        "digits", steps=120, tasks=4, test_tasks=60, queries=5, comparators=("protonet", "centroid")
    )
    agree(scores(FewShot(), config, tmp_path / "run"), DIGITS, abs=0.02)


@pytest.mark.slow
def test_accuracies_of_cameras(tmp_path):
    pytest.importorskip("sklearn")
    config = FewShotConfig("cameras", steps=110, test_tasks=40)
    agree(scores(FewShot(), config, tmp_path / "run"), CAMERAS, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "options", "expected"),
    [
        (
            "lqr",
            {"steps": 600, "warm_up": 400, "test_contexts": 10, "comparators": ("film", "none")},
            LQR,
        ),
        (
            "grid",
            {
                "steps": 1024,
                "rollout": 512,
                "rows": 8,
                "test_contexts": 6,
                "comparators": ("recurrent", "none"),
            },
            GRID,
        ),
    ],
)
def test_returns_of_agents(env, options, expected, tmp_path):
    pytest.importorskip("sb3_contrib")
    from weightloom.apps.rl.app import RL
    from weightloom.apps.rl.config import RLConfig

    rate = 3e-4 if env == "lqr" else 1e-3
    config = RLConfig(env=env, learning_rate=rate, **options)
    agree(scores(RL(), config, tmp_path / "run"), expected, rel=1e-3)
