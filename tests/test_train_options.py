"""Options, turns and checkpoints that could not train are refused before a step is taken."""

import pytest
from torch import nn

from test_train_turns import PLAYERS, STEPS, Game, Pair, equal, game, nothing, real, values
from weightloom.errors import CheckpointError, ConfigError
from weightloom.hypernets import ChunkedHyperNetwork
from weightloom.losses import mse_per_task
from weightloom.training import TrainOptions, Turn, train


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": -1}, "`steps=-1` is below 1"),
        ({"checkpoint_every": 0}, "`checkpoint_every=0` is below 1"),
        ({"average": float("nan")}, "`average=nan` is no decay"),
        ({"average": 1.0}, "`average=1.0` is no decay"),
        ({"outer_lr": 0.0}, "so 0 trains no parameter"),
        ({"outer_lr": float("inf")}, "`outer_lr=inf` is no learning rate"),
        ({"clip_norm": 0.0}, "`clip_norm=0.0` leaves no gradient"),
        ({"weight_decay": -1.0}, "`weight_decay=-1.0` is no decay"),
        ({"warmup_steps": -1}, "Pass 0 for none"),
        ({"warmup_steps": 10}, "Pass at most `warmup_steps=9`, or leave it out for 1"),
        ({"seed": -1}, "`seed=-1` is out of range"),
        ({"mode": "joined"}, "`mode='joined'` is unknown. Did you mean `joint`"),
        ({"steps": 1.5}, "`steps=1.5` is of type float. It is a whole number"),
        ({"tasks": "16"}, "`tasks='16'` is of type str"),
        ({"seed": True}, "`seed=True` is of type bool"),
        ({"warmup_steps": float("nan")}, "`warmup_steps=nan` is of type float"),
        ({"outer_lr": "1e-3"}, "It is a number"),
        ({"average_buffers": 1}, "It is a truth value"),
        ({"steps": 10**12}, "more than any machine could do"),
        ({"clip_norm": float("nan")}, "`clip_norm=nan` leaves no gradient"),
        ({"weight_decay": float("nan")}, "`weight_decay=nan` is no decay"),
        ({"schedule": "cosin"}, "Did you mean `cosine`"),
    ],
)
def test_options_that_cannot_train_are_refused_where_they_are_written(options, said, unchecked):
    with pytest.raises(ConfigError, match=said):
        TrainOptions(**{"steps": 10} | options)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 1), (20, 2), (100, 10), (101, 100), (3000, 100)])
def test_without_being_told_a_run_reaches_its_rate(steps, warmup):
    options, without = TrainOptions(steps), TrainOptions(steps, warmup_steps=0)
    assert options.learning_rate(warmup - 1) == without.learning_rate(warmup - 1)
    assert warmup == 1 or TrainOptions(steps).learning_rate(0) == pytest.approx(1e-3 / warmup)


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ([game(), game()], "2 turns are called `x`"),
        (
            [game(steps=10), game("y")],
            r"before turn `y`: the turns before it take 10. Pass `TrainOptions\(steps=11",
        ),
        ([game(parameters="z")], "`parameters='z'` matches no parameter of Game"),
        ([game(parameters=nn.Linear(2, 2))], "names 2 parameters that are not in Game"),
        ([game(parameters=[])], "Turn `x` moves no parameter"),
        ([game(generates="critic.*")], "`generates='critic.\\*'` of turn `x` matches no parameter"),
        ([game(warmup_steps=10)], "Turn `x`: `warmup_steps=10` of 10 steps"),
        (
            [Turn("x", lambda model, batch, turn: model.x.detach().sum())],
            "The loss of turn `x` depends on none",
        ),
        (
            [Turn("x", lambda model, batch, turn: model.x.sum(), "y")],
            "The loss of turn `x` depends on none",
        ),
    ],
)
def test_turns_that_cannot_train_are_refused_before_a_step_is_taken(turns, said):
    model = Game()
    before = values(model)
    with pytest.raises(ConfigError, match=said):
        train(model, nothing, None, TrainOptions(10), turns=turns)
    assert equal(before, values(model))


def test_settings_of_a_turn_are_refused_where_they_are_written(unchecked):
    with pytest.raises(ConfigError, match="`outer_lr=-1` of turn `x` is no learning rate"):
        game(outer_lr=-1)
    with pytest.raises(ConfigError, match="`steps=0` of turn `x` is below 1"):
        game(steps=0)
    with pytest.raises(ConfigError, match="of turn `x` are no decays"):
        game(betas=(0.9, 1.0))


def test_a_loss_beside_turns_or_a_mode_beside_them_is_refused():
    with pytest.raises(ConfigError, match="`loss_per_task` and `turns` were given"):
        train(Game(), nothing, mse_per_task, TrainOptions(10), turns=[game()])
    with pytest.raises(ConfigError, match="`mode='alternating'` and `turns` were given"):
        train(Game(), nothing, None, TrainOptions(10, mode="alternating"), turns=[game()])


def test_a_hypernetwork_that_cannot_tell_its_rows_apart_says_which_can():
    model = Pair(ChunkedHyperNetwork)
    with pytest.raises(
        ConfigError, match=r"ChunkedHyperNetwork has no rows.*`MLPHyperNetwork` and"
    ):
        train(model, real, None, STEPS, turns=PLAYERS)


def test_a_run_of_other_turns_is_not_gone_on_with(tmp_path):
    train(
        Game(), nothing, None, TrainOptions(4), turns=[game("x"), game("y")], run=tmp_path / "two"
    )
    with pytest.raises(
        CheckpointError, match=r"of the turns \['x', 'y'\], and this one has \['x', 'z'\]"
    ):
        train(
            Game(),
            nothing,
            None,
            TrainOptions(4),
            turns=[game(), game("z")],
            run=tmp_path / "two",
            resume=True,
        )
    train(Game(), nothing, None, TrainOptions(4), turns=[game()], run=tmp_path / "one")
    with pytest.raises(CheckpointError, match="moved other parameters"):
        train(
            Game(),
            nothing,
            None,
            TrainOptions(4),
            turns=[game(parameters="x")],
            run=tmp_path / "one",
            resume=True,
        )
