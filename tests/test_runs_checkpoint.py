"""Checkpoints are tied to options and method: what is of another, lacks a part or has another dtype is refused."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch

from weightloom.apps import experiment
from weightloom.apps.fewshot.app import FewShot
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.errors import CheckpointError, WeightloomError
from weightloom.files import load_tensors, save_tensors

CASES = [
    "fewshot",
    pytest.param(
        "rl", marks=pytest.mark.skipif(find_spec("sb3_contrib") is None, reason="needs rl")
    ),
]
LAST = "checkpoints/last.safetensors"


def application(case):
    if case == "fewshot":
        options = {"steps": 4, "tasks": 2, "test_tasks": 2, "shots": (5,), "comparators": ("cnp",)}
        return FewShot(), FewShotConfig(data="sinusoid", checkpoint_every=2, **options)
    from weightloom.apps.rl.app import RL
    from weightloom.apps.rl.config import RLConfig

    small = {"rows": 8, "width": 8, "hidden": 8, "blocks": 1, "rank": 2, "batch": 8, "warm_up": 20}
    return RL(), RLConfig(env="lqr", steps=60, comparators=("none",), test_contexts=2, **small)


@pytest.fixture(scope="module", params=CASES)
def ended(request, tmp_path_factory):
    """A run that came to its end, what its checkpoint holds, and the folder of a comparator."""
    app, config = application(request.param)
    app.judge = lambda *_: []  # what is not judged is written and read as well
    folder = tmp_path_factory.mktemp("run") / "run"
    experiment.run(app, config, folder, quiet=True, bare=True)
    return app, config, folder, load_tensors(folder / LAST), config.comparators[0]


@pytest.fixture
def resume(ended):
    """Write another checkpoint in place of the run's own, and go on."""
    app, config, folder, (tensors, facts), _ = ended

    def resumed(changed, about=facts):
        save_tensors(folder / LAST, changed, about)
        experiment.run(app, config, folder, quiet=True, bare=True, resume=True)

    yield resumed
    save_tensors(folder / LAST, tensors, facts)


def test_the_checkpoint_of_a_comparator_is_refused_in_the_place_of_the_method(ended, resume):
    app, _, folder, _, comparator = ended
    with pytest.raises(CheckpointError, match=f"another run or method .* {comparator}, not"):
        resume(*load_tensors(folder / comparator / LAST))
    with pytest.raises(CheckpointError, match="another run or method"):
        experiment.load(app, folder)


def test_a_checkpoint_of_no_run_is_refused(ended, resume):
    tensors, facts = ended[3]
    with pytest.raises(CheckpointError, match="it has no digest"):
        resume(tensors, facts | {"identity": ""})
    with pytest.raises(CheckpointError, match="it has no digest"):
        resume(tensors, {key: value for key, value in facts.items() if key != "identity"})


def of_the_optimiser(name):
    return name.startswith("optimiser/")


SPOILT = {
    "missing": lambda name, value: None if of_the_optimiser(name) else value,
    "one missing": lambda name, value: None if name.endswith("/0/exp_avg") else value,
    "half a precision": lambda name, value: value.half() if name.endswith("exp_avg") else value,
    "twice the precision": lambda name, value: (
        value.double() if name.endswith("exp_avg_sq") else value
    ),
    "counted in integers": lambda name, value: value.long() if name.endswith("/step") else value,
    "weights in integers": lambda name, value: (
        value.long() if name.startswith(("model/", "policy/")) else value
    ),
    "weights in bfloat16": lambda name, value: (
        value.bfloat16() if name.startswith(("model/", "policy/")) else value
    ),
    "a weight halved": lambda name, value: (
        value[: len(value) // 2] if name.endswith("weight") else value
    ),
    "one too many": lambda name, value: value,
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_state_that_is_not_as_it_was_written_is_refused_and_left_as_it_is(how, ended, resume):
    _, _, folder, (tensors, _), _ = ended
    changed = {
        name: its
        for name, value in tensors.items()
        if (its := SPOILT[how](name, value)) is not None
    }
    if how == "one too many":
        changed |= {"optimiser/7/exp_avg": torch.zeros(1)}
    assert changed.keys() != tensors.keys() or any(
        changed[n].dtype != tensors[n].dtype or changed[n].shape != tensors[n].shape
        for n in tensors
    )
    with pytest.raises(CheckpointError, match="checkpoint"):
        resume(changed)
    assert load_tensors(folder / LAST)[0].keys() == changed.keys()


def test_the_run_goes_on_with_its_own_checkpoint(ended, resume):
    resume(*ended[3])


def test_options_changed_after_the_run_began_are_refused_by_every_door(ended):
    app, config, folder, *_ = ended
    path = folder / "config.json"
    text = path.read_text()
    path.write_text(text.replace('"seed": 0', '"seed": 1'))
    try:
        for door in (
            lambda: experiment.load(app, folder),
            lambda: experiment.judge_again(app, folder, {}),
            lambda: experiment.run(app, replace(config, seed=1), folder, resume=True),
        ):
            with pytest.raises(WeightloomError, match="was changed after the run began"):
                door()
    finally:
        path.write_text(text)
