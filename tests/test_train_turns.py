"""Turns: games with a known answer, rest that is rest, resuming in mid-turn, and batches of any kind."""

import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

import two_processes
from test_train import SOURCE, new_model, same
from weightloom.base import apply_per_task
from weightloom.files import load_tensors
from weightloom.forms import LowRank
from weightloom.hypernets import MLPHyperNetwork, StaticHyperNetwork
from weightloom.losses import mse_per_task
from weightloom.params import sub
from weightloom.training import TrainOptions, Turn, load_model, train

LONG = TrainOptions(steps=400, outer_lr=0.05, warmup_steps=1, clip_norm=1e9)


def nothing(step, generator):
    return ()


def values(module, named=""):
    return {n: p.detach().clone() for n, p in module.named_parameters() if n.startswith(named)}


def equal(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


class Game(nn.Module):
    """Two players with a vector each."""

    def __init__(self, width=3):
        super().__init__()
        self.x, self.y = nn.Parameter(torch.ones(width)), nn.Parameter(-torch.ones(width))


def game(name="x", **settings):
    return Turn(name, lambda model, batch, turn: model.x.sum() + model.y.sum(), **settings)


def test_players_of_a_bilinear_game_with_a_penalty_reach_its_equilibrium():
    """x minimises and y maximises x'Ay + b'x - c'y + |x|²/2 - |y|²/2: at the end x = -Ay - b and y = A'x - c."""
    generator = torch.Generator().manual_seed(0)
    matrix, b, c = (
        torch.randn(3, 3, generator=generator),
        torch.ones(3),
        torch.tensor([1.0, -1.0, 0.5]),
    )

    def loss(model, batch, turn):
        x, y = model.x, model.y
        value = x @ matrix @ y + b @ x - c @ y + x.square().sum() / 2 - y.square().sum() / 2
        return value if turn == "least" else -value

    model = Game()
    turns = [Turn("least", loss, "x", betas=(0.0, 0.9)), Turn("most", loss, "y", betas=(0.0, 0.9))]
    train(model, nothing, None, replace(LONG, steps=1200), turns=turns)
    x = torch.linalg.solve(torch.eye(3) + matrix @ matrix.T, matrix @ c - b)
    torch.testing.assert_close(model.x.detach(), x, rtol=0, atol=1e-3)
    torch.testing.assert_close(model.y.detach(), matrix.T @ x - c, rtol=0, atol=1e-3)


def test_a_best_response_is_that_of_ridge_regression():
    """The weight answers a penalty that the other player moves until the solution has squared length 1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 0.5])

    class Ridge(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.log_penalty = (
                nn.Parameter(torch.zeros(3)),
                nn.Parameter(torch.zeros(())),
            )

    def fit(model, batch, turn):
        x, y = batch
        return (
            x @ model.weight - y
        ).square().mean() + model.log_penalty.exp() * model.weight.square().sum()

    def answer(penalty):
        return torch.linalg.solve(x.T @ x / 20 + penalty * torch.eye(3), x.T @ y / 20)

    def penalise(model, batch, turn):
        return (answer(model.log_penalty.exp()).square().sum() - 1).square()

    model = Ridge()
    turns = [
        Turn("answer", fit, "weight", steps=3),
        Turn("penalty", penalise, "log_penalty", outer_lr=0.1),
    ]
    train(model, [(x, y)], None, replace(LONG, steps=1200), turns=turns)
    assert answer(model.log_penalty.exp()).square().sum().item() == pytest.approx(1, abs=1e-4)
    torch.testing.assert_close(
        model.weight.detach(), answer(model.log_penalty.exp().detach()), rtol=1e-3, atol=1e-3
    )


def test_one_turn_over_everything_is_plain_training(tmp_path):
    options = TrainOptions(steps=9, tasks=4, warmup_steps=2, weight_decay=0.1, average=0.5)
    plain, turned = new_model(), new_model()
    train(plain, SOURCE, mse_per_task, options, run=tmp_path / "plain")
    turn = Turn("all", lambda model, tasks, turn: mse_per_task(model(tasks), tasks.query_y))
    history = train(turned, SOURCE, None, options, turns=[turn], run=tmp_path / "turned")
    assert same(plain, turned) and history.last("turn") == "all"
    one, other = (
        load_tensors(tmp_path / run / "checkpoints" / "last.safetensors")[0]
        for run in ("plain", "turned")
    )
    assert one.keys() == other.keys() and equal(one, other)


class Pair(nn.Module):
    """A generator and a discriminator that one hypernetwork writes."""

    def __init__(self, hyper=MLPHyperNetwork, **options):
        super().__init__()
        torch.manual_seed(0)
        self.base = nn.ModuleDict(
            {
                "generator": nn.Linear(4, 4),
                "critic": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)),
            }
        )
        self.hyper = hyper(self.base, 2, **options)
        self.register_buffer("condition", torch.randn(3, 2))

    def generated(self):
        return self.hyper(self.condition)


def adversarial(model, real, turn):
    """Non-saturating losses, (tasks,), of Goodfellow et al. (2014), section 3."""
    params = model.generated()
    generator, critic = (model.base[name] for name in ("generator", "critic"))
    of_generator, of_critic = (
        sub(params, name) if any(n.startswith(name) for n in params) else {}
        for name in ("generator", "critic")
    )
    noise = torch.randn(3, len(real), 4)
    fake = apply_per_task(generator, of_generator, noise)
    said = apply_per_task(critic, of_critic, fake)[..., 0]
    if turn == "generator":
        return nn.functional.softplus(-said).mean(1)
    truth = apply_per_task(critic, of_critic, real.expand(3, -1, -1))[..., 0]
    return (nn.functional.softplus(said) + nn.functional.softplus(-truth)).mean(1)


def real(step, generator):
    return torch.randn(5, 4, generator=generator) + 1


PLAYERS = [
    Turn("critic", adversarial, generates="critic.*", steps=2, betas=(0.0, 0.99)),
    Turn("generator", adversarial, generates="generator.*", betas=(0.0, 0.99), outer_lr=3e-3),
]
STEPS = TrainOptions(
    steps=8, outer_lr=1e-2, warmup_steps=1, weight_decay=0.1, average=0.9, evaluate_every=1
)


def resting(names):
    return [replace(turn, parameters=names) for turn in PLAYERS]


def not_trunk(name, parameter):
    return not name.startswith(("hyper.trunk", "hyper.first", "hyper.last"))


def seen_after_each_step(model, look, turns, options=STEPS):
    """What a look gives before the first step and after every one; the average is not in place."""
    seen = [look(model)]
    options = replace(options, average=0.0)
    train(model, real, None, options, turns=turns, evaluate=lambda done: seen.append(look(model)))
    return seen


def whose(step):
    return ("critic", "critic", "generator")[step % 3]


@pytest.mark.parametrize(
    ("hyper", "options"),
    [
        (MLPHyperNetwork, {}),
        (MLPHyperNetwork, {"form": LowRank(1)}),
        (MLPHyperNetwork, {"generate": "*.weight"}),
        (MLPHyperNetwork, {"init": "hyperfan-in", "hidden": ()}),
        (StaticHyperNetwork, {"block": 4, "window": (), "embedding_dim": 3}),
    ],
)
def test_what_is_generated_for_the_resting_player_stays_equal_where_no_turn_trains_the_trunk(
    hyper, options
):
    model = Pair(hyper, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.startswith("hyper.base"):
                parameter.add_(
                    0.1 * torch.randn_like(parameter)
                )  # a head at zero gives no gradient to the rest

    def look(model):
        with torch.no_grad():
            held = {n: v.clone() for n, v in model.base.named_parameters()}
            return held | {
                n: torch.as_tensor(v + 0.0).clone() for n, v in model.generated().items()
            }

    seen = seen_after_each_step(model, look, resting(not_trunk))
    for step, (before, after) in enumerate(pairwise(seen)):
        for name, value in before.items():
            if not name.startswith(whose(step)):
                assert torch.equal(value, after[name]), (step, name)
        assert any(
            not torch.equal(before[n], after[n]) for n in before if n.startswith(whose(step))
        ), step


def test_rows_of_a_shared_head_rest_while_a_trunk_that_turns_train_moves_what_they_write():
    model = Pair()
    with torch.no_grad():
        model.hyper.head.weight.normal_()
    numbers = sum(p.numel() for p in model.base["generator"].parameters())
    rows = {"generator": slice(0, numbers), "critic": slice(numbers, None)}
    seen = seen_after_each_step(
        model, lambda model: (values(model.hyper), values(model.base)), PLAYERS
    )
    for step, ((before, base), (after, base_after)) in enumerate(pairwise(seen)):
        for player, its in rows.items():
            rests = player != whose(step)
            for name in ("head.weight", "head.bias"):
                assert torch.equal(before[name][its], after[name][its]) == rests
            assert (
                equal({n: v for n, v in base.items() if n.startswith(player)}, base_after) == rests
            )
        assert not equal({"trunk.0.weight": before["trunk.0.weight"]}, after)


def test_the_probe_logs_how_far_the_resting_player_moved_through_the_trunk():
    model = Pair()
    with torch.no_grad():
        model.hyper.head.weight.normal_()
    shared = train(model, real, None, STEPS, turns=PLAYERS, log_every=1, probe=model.generated).rows
    model = Pair()
    apart = train(
        model, real, None, STEPS, turns=resting(not_trunk), log_every=1, probe=model.generated
    ).rows
    assert [row["turn"] for row in shared] == [whose(step) for step in range(8)]
    assert all(row["resting_moved"] > 0 and row["moved"] > 0 for row in shared)
    assert all(row["resting_moved"] == 0 and row["moved"] > 0 for row in apart)


class Biases(nn.Module):
    """Two numbers, a and b, that the biases of one head write."""

    def __init__(self):
        super().__init__()
        self.base = nn.ParameterDict(
            {"a": nn.Parameter(torch.tensor([4.0])), "b": nn.Parameter(torch.ones(1))}
        )
        self.hyper = MLPHyperNetwork(self.base, 1, hidden=(), freeze="*")

    def generated(self):
        return self.hyper(torch.zeros(1, 1))


def test_a_probe_says_the_distance_that_a_step_took_and_is_called_in_eval_mode():
    """A step of Adam moves the bias of a by the rate: by rate / |a| of it."""
    model, modes = Biases(), []

    def probe():
        modes.append(model.training)
        return model.generated()

    def loss(model, batch, turn):
        modes.append(model.training)
        return model.generated()["a"].sum()

    turns = [Turn("a", loss, generates="a")]
    row, _ = train(
        model, nothing, None, replace(LONG, steps=2), turns=turns, probe=probe, log_every=1
    ).rows
    assert row["moved"] == pytest.approx(0.05 / 4, rel=1e-4) and row["resting_moved"] == 0
    assert modes == [True, False, False] * 2


def test_a_player_with_a_trunk_of_its_own_rests_whole_with_its_optimiser(tmp_path):
    """The steps of one player are those of a run in which the other never comes."""

    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.base = nn.Linear(4, 4)
            self.one, self.other = (MLPHyperNetwork(nn.Linear(4, 4), 2) for _ in range(2))

    def loss(model, batch, turn):
        return sum(
            value.square().sum() for value in getattr(model, turn)(torch.ones(1, 2)).values()
        )

    both, alone = Apart(), Apart()
    options = replace(LONG, steps=6, weight_decay=0.1, schedule="constant")
    turns = [Turn(name, loss, parameters=f"{name}.*") for name in ("one", "other")]
    train(both, nothing, None, options, turns=turns)
    train(alone, nothing, None, replace(options, steps=3), turns=turns[:1])
    assert same(both.one, alone.one) and not same(both.other, alone.other)


@pytest.mark.parametrize("player", ["a", "b"])
def test_the_gradient_that_is_clipped_is_that_of_the_turn_alone(player):
    """Of two rows of one bias: their gradients are 3 and 100."""

    def loss(model, batch, turn):
        return 3 * model.generated()["a"].sum() + 100 * model.generated()["b"].sum()

    turns = [Turn(player, loss, generates=player)]
    (row,) = train(Biases(), nothing, None, replace(LONG, steps=1), turns=turns).rows
    assert row["gradient_norm"] == pytest.approx({"a": 3, "b": 100}[player])


def test_a_turn_has_settings_of_its_own():
    loss = lambda model, batch, turn: model.x.sum() + model.y.sum()  # noqa: E731
    turns = [
        Turn("x", loss, "x", outer_lr=0.5, schedule="constant", warmup_steps=3),
        Turn("y", loss, "y", steps=2),
    ]
    rows = train(Game(), nothing, None, replace(LONG, steps=6), turns=turns, log_every=1).rows
    assert [row["turn"] for row in rows] == ["x", "y", "y", "x", "y", "y"]
    assert [row["outer_lr"] for row in rows if row["turn"] == "x"] == pytest.approx([0.5 / 3, 0.5])
    plain = replace(LONG, steps=6)
    assert [row["outer_lr"] for row in rows if row["turn"] == "y"] == [
        plain.learning_rate(s) for s in (1, 2, 4, 5)
    ]


def test_a_tiny_pair_on_plain_tensors_learns_the_mean_of_the_data():
    """The generator is noise plus a learned shift; at the end no critic that sees means tells it from the data."""

    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift, self.critic = nn.Parameter(torch.zeros(2)), nn.Linear(2, 1)

    def loss(model, data, turn):
        fake = model.shift + torch.randn_like(data)
        if turn == "generator":
            return nn.functional.softplus(-model.critic(fake))
        wrong = nn.functional.softplus(model.critic(fake)) + nn.functional.softplus(
            -model.critic(data)
        )
        return wrong + 0.5 * model.critic.weight.square().sum()  # R1 of a linear critic

    def data(step, generator):
        return torch.randn(64, 2, generator=generator) + torch.tensor([2.0, -1.0])

    torch.manual_seed(0)
    model = Tiny()
    turns = [
        Turn("critic", loss, model.critic, steps=2, betas=(0.0, 0.99)),
        Turn("generator", loss, "shift", betas=(0.0, 0.99)),
    ]
    train(model, data, None, replace(LONG, steps=600), turns=turns)
    torch.testing.assert_close(model.shift.detach(), torch.tensor([2.0, -1.0]), rtol=0, atol=0.25)


def test_what_a_turn_does_not_move_gets_no_gradient():
    model = Game()
    model.x.register_hook(lambda gradient: pytest.fail("a gradient of what rests was computed"))
    turns = [Turn("y", lambda model, batch, turn: (model.x * model.y).sum(), "y")]
    train(model, nothing, None, replace(LONG, steps=2), turns=turns)


def test_in_blocks_what_stands_in_none_moves_in_every_turn():
    class Blocks(Game):
        def __init__(self):
            super().__init__()
            self.both = nn.Parameter(torch.ones(()))

        def forward(self, batch):
            return (self.x.sum() + self.y.sum()) * self.both

        def blocks(self):
            return [self.x], [self.y]

    seen = []
    model = Blocks()
    options = replace(LONG, steps=4, mode="alternating", block_steps=1, evaluate_every=1)
    train(model, nothing, None, options, evaluate=lambda done: seen.append(values(model)))
    for step in range(1, 4):
        moved = {
            name
            for name, value in seen[step].items()
            if not torch.equal(value, seen[step - 1][name])
        }
        assert moved == {"both", "xy"[step % 2]}


@pytest.mark.parametrize(
    ("hyper", "options"),
    [
        (MLPHyperNetwork, {"generate": {"*.weight": LowRank(1)}}),
        (MLPHyperNetwork, {"init": "magnitude-invariant"}),
        (StaticHyperNetwork, {"block": 4, "window": (), "embedding_dim": 3}),
    ],
)
def test_what_is_written_by_some_rows_changes_with_them_and_nothing_else_does(hyper, options):
    model = Pair(hyper, **options)

    @torch.no_grad()
    def look():
        own = {name: value.clone() for name, value in model.base.named_parameters()}
        return own | {
            name: torch.as_tensor(value + 0.0).clone() for name, value in model.generated().items()
        }

    with torch.no_grad():
        for parameter in model.hyper.parameters():
            parameter.add_(torch.randn_like(parameter))
        written = model.hyper.written_by()
        assert set(written) == {name for name, _ in model.base.named_parameters()}
        for name, its in written.items():
            for parameter, rows in its:
                before = look()
                parameter[rows if parameter.ndim else ...].add_(1.0)
                after = look()
                changed = {n for n in before if not torch.equal(before[n], after[n])}
                assert changed == {name} if parameter.requires_grad else changed <= {name}


def test_an_average_may_hold_the_buffers_too(tmp_path):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

        def forward(self, batch):
            return self.layers(batch).square().mean(1)

    options = TrainOptions(steps=3, average=0.1, evaluate_every=1, warmup_steps=1)
    plain, own, averaged, loaded = (Normed() for _ in range(4))
    seen, expected = [], plain.layers[1].running_mean.clone()
    train(
        plain,
        real,
        None,
        replace(options, average=0.0),
        evaluate=lambda done: seen.append(values_of(plain)),
    )
    for step, value in enumerate(seen):
        decay = min(0.1, (step + 1) / (step + 20))
        expected = decay * expected + (1 - decay) * value
    train(own, real, None, options)
    train(averaged, real, None, replace(options, average_buffers=True), run=tmp_path)
    assert not torch.equal(values_of(own), seen[-1])  # measured again for the average
    torch.testing.assert_close(values_of(averaged), expected)
    load_model(tmp_path / "checkpoints" / "last.safetensors", loaded)
    assert same(averaged, loaded)


def values_of(model):
    return model.layers[1].running_mean.clone()


def test_turns_take_the_steps_under_fabric_that_they_take_in_one_process():
    one, other = Pair(), Pair()
    train(one, real, None, STEPS, turns=PLAYERS)
    train(other, real, None, STEPS, turns=PLAYERS, fabric=Fabric(accelerator="cpu", devices=1))
    assert same(one, other)


def test_two_processes_take_the_same_turns_as_one(tmp_path):
    """Also where a turn's loss leaves parameters without a gradient, of which processes wait for each."""
    script = Path(__file__).parent / "two_processes.py"
    words = [sys.executable, str(script), str(tmp_path / "2"), "turns"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    two_processes.run_turns(1, tmp_path / "1")
    one, two = (
        load_tensors(tmp_path / d / "checkpoints" / "last.safetensors")[0] for d in ("1", "2")
    )
    assert one.keys() == two.keys()
    start = Pair().state_dict()
    for name in (n for n in one if n.startswith("model/")):
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-5)
    assert not torch.allclose(one["model/hyper.head.bias"], start["hyper.head.bias"], atol=1e-3)
