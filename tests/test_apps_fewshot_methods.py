"""The bank of few-shot methods: all that are listed, on a data set of each family."""

import functools
from dataclasses import replace

import pytest
import torch

from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.judge import judge
from weightloom.apps.fewshot.methods import FAMILIES, FITS, METHODS, builds_of
from weightloom.apps.fewshot.problems import problem_of
from weightloom.errors import ConfigError, DataError, MissingExtraError
from weightloom.training import TrainOptions, load_model

DATA = (
    "cameras",
    "cameras-unlabelled",
    "digits",
    "intents",
    "sinusoid",
    "growth-curves",
    "mnist-functions",
)
ALIASES = {"hypernetwork", "hyper-mlp"}
CASES = [(data, method) for data in DATA for method in FITS[data] if method not in ALIASES]


@functools.cache
def problem(data):
    try:
        return problem_of(FewShotConfig(data, shots=(2,), queries=5, test_tasks=8).resolved())
    except (DataError, MissingExtraError) as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize(("data", "method"), CASES)
def test_every_method_trains_is_judged_and_comes_back_from_its_checkpoint(data, method, tmp_path):
    learner = problem(data).learner(method)
    trained = learner.trained
    if trained:
        learner.fit(
            problem(data).train_source(learner),
            TrainOptions(steps=2, tasks=2),
            run=tmp_path,
            quiet=True,
        )
    found = judge(learner.eval(), problem(data), 2, 4).per_task
    assert all(torch.isfinite(values).all() for values in found.values())
    if trained:
        torch.manual_seed(1)
        again = problem(data).learner(method)
        load_model(tmp_path / "checkpoints" / "last.safetensors", again)
        assert torch.equal(
            *(
                next(iter(judge(m, problem(data), 2, 4).per_task.values()))
                for m in (learner, again.eval())
            )
        )


def test_the_bank_holds_every_method_and_a_data_set_of_every_family():
    assert {method for _, method in CASES} | ALIASES == {method.name for method in METHODS}
    assert all({*members} & {*DATA} for members in FAMILIES.values())
    assert len({method.name for method in METHODS}) == len(METHODS)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("digits", "generated-head"),
        ("intents", "generated-head"),
        ("sinusoid", "generated-network"),
        ("growth-curves", "generated-prior"),
        ("mnist-functions", "generated-prior"),
        ("cameras", "generated-inputs"),
    ],
)
def test_hypernetwork_stands_for_the_method_that_is_named_by_its_outcome(data, name):
    builds = builds_of(data)
    assert builds["hypernetwork"] is builds[name]
    assert sum(build is builds[name] for build in builds.values()) == 2 + (data == "sinusoid")
    for method, others in (("hypernetwork", (name,)), (name, ("hypernetwork",))):
        with pytest.raises(ConfigError, match=f"`{method}` and `{others[0]}` are one method"):
            FewShotConfig(data, method=method, comparators=others)
    assert FewShotConfig(data, method=name).resolved().methods[0] == name


def test_probe_and_unit_features_are_compared_with_where_they_fit():
    for data in ("digits", "omniglot", "omniglot-alphabets", "cifar-fs", "spoken-digits"):
        config = FewShotConfig(data).resolved()
        assert "probe" in config.comparators
        unit = "protonet-unit" in config.comparators
        assert unit == (data in ("cifar-fs", "spoken-digits"))
    assert "probe" in FewShotConfig("intents").resolved().comparators
    assert "probe" not in FewShotConfig("digits", base="mine:net").resolved().comparators
    assert "probe" not in FewShotConfig("digits", method="probe").resolved().comparators


def test_a_data_sets_own_settings_go_before_those_of_its_family():
    (ours,) = (method for method in METHODS if method.name == "hypernetwork")
    assert (
        ours.build_for("sinusoid") is not ours.build_for("table")
        and ours.build_for("table") is not None
    )
    assert "scratch" in FITS["sinusoid"] and "kernel" not in FITS["growth-curves"]


def test_every_learner_can_be_imported_from_the_package():
    from weightloom import learners
    from weightloom.learners import MAML, Conditioned, Learner
    from weightloom.learners.maml import MAML as ITSELF

    assert MAML is ITSELF and issubclass(MAML, Learner) and Conditioned is learners.cnp.Conditioned
    with pytest.raises(
        AttributeError, match=r"module 'weightloom.learners' has no attribute 'Quantum'"
    ):
        learners.Quantum  # noqa: B018


def test_the_rate_of_a_prior_that_starts_as_a_gaussian_is_its_own_unless_one_is_typed():
    config = FewShotConfig(data="growth-curves")
    usual = config.resolved()
    assert usual.rate_of("hypernetwork") == 1.5e-4 and usual.rate_of("cnp") == usual.outer_lr
    assert usual.rates == ("hypernetwork=0.00015",)
    assert replace(config, rates=("hypernetwork=0.1",)).resolved().rates == ("hypernetwork=0.1",)
    assert replace(config, outer_lr=0.01).resolved().rate_of("hypernetwork") == 0.01
