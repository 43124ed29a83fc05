"""Batches of any kind, from any source: dealt out, wound forward, and refused where they could not be drawn again."""

from dataclasses import replace

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from test_train import same
from test_train_turns import LONG, PLAYERS, STEPS, Game, Pair, equal, game, real
from weightloom.errors import ConfigError, NonFiniteError
from weightloom.files import load_tensors
from weightloom.runs.metrics import read_rows
from weightloom.training import OneProcess, TrainOptions, Turn, train
from weightloom.training.sources import Batches, dealt


class KilledError(Exception):
    pass


def kill_at(step):
    def kill(done):
        if done == step:
            raise KilledError

    return kill


def loader():
    data = TensorDataset(torch.randn(24, 4, generator=torch.Generator().manual_seed(0)))
    return DataLoader(
        data,
        batch_size=6,
        shuffle=True,
        collate_fn=lambda rows: torch.stack([row[0] for row in rows]),
    )


def seeded_loader():
    data = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(data, batch_size=6, shuffle=True, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "source", [lambda: real, loader, seeded_loader, lambda: list(torch.randn(4, 6, 4))]
)
@pytest.mark.parametrize("crash_at", [4, 5, 9])
def test_a_run_that_was_killed_in_mid_turn_ends_with_the_same_numbers_bit_for_bit(
    tmp_path, source, crash_at
):
    options = replace(STEPS, steps=12, checkpoint_every=crash_at)
    turns = [replace(PLAYERS[0], steps=3), PLAYERS[1]]

    def go(run, model, **how):
        torch.manual_seed(5)  # as a list in a process that begins anew
        train(model, source(), None, options, turns=turns, run=tmp_path / run, log_every=1, **how)
        return model

    whole = go("whole", Pair())
    with pytest.raises(KilledError):
        go("cut", Pair(), evaluate=kill_at(crash_at + 1))
    assert same(whole, go("cut", Pair(), resume=True))
    rows = [
        [{**row, "wall_time_s": 0} for row in read_rows(tmp_path / run)] for run in ("whole", "cut")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 12
    one, other = (
        load_tensors(tmp_path / run / "checkpoints" / "last.safetensors")[0]
        for run in ("whole", "cut")
    )
    assert one.keys() == other.keys() and equal(one, other)
    assert any(name.startswith("optimiser/critic/") for name in one)


def test_a_turn_may_draw_from_a_source_of_its_own():
    seen = []

    def loss(model, batch, turn):
        seen.append((turn, batch["value"]))
        return model.x.sum() + model.y.sum()

    own = [{"value": torch.tensor(k)} for k in (10, 11, 12)]
    turns = [Turn("x", loss, "x"), Turn("y", loss, "y", source=own)]
    train(
        Game(),
        lambda step, generator: {"value": torch.tensor(step)},
        None,
        replace(LONG, steps=8),
        turns=turns,
    )
    assert seen == [
        ("x", 0),
        ("y", 10),
        ("x", 2),
        ("y", 11),
        ("x", 4),
        ("y", 12),
        ("x", 6),
        ("y", 10),
    ]


def test_batches_of_a_list_train_a_model_that_gives_the_losses_itself():
    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = nn.Parameter(torch.zeros(()))

        def forward(self, batch):
            return (batch - self.mean).square()

    model = Mean()
    train(model, [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])], None, LONG)
    assert model.mean.item() == pytest.approx(3, abs=0.05)


@pytest.mark.parametrize("make", [lambda: even, loader])
def test_processes_deal_out_the_rows_of_every_tensor_and_draw_chance_of_their_own(make):
    shares, chances = [], []
    for world, rank in ((1, 0), (2, 0), (2, 1)):
        fabric = OneProcess()
        fabric.world_size, fabric.global_rank = world, rank  # as far as data are concerned
        batches = Batches([make()], lambda step: 0, STEPS, fabric)
        shares.append([batches.at(step) for step in range(7)])
        chances.append(torch.rand(()))
    for whole, first, second in zip(*shares, strict=True):
        assert torch.equal(whole[0::2], first) and torch.equal(whole[1::2], second)
    assert chances[0] == chances[1] != chances[2]


def even(step, generator):
    return torch.randn(6, 4, generator=generator)


def test_rows_that_cannot_be_dealt_out_are_refused():
    with pytest.raises(ConfigError, match="tensors of 3 and 4 rows, for 2 processes"):
        dealt((torch.ones(3), torch.ones(4, 2)), slice(0, None, 2))
    with pytest.raises(ConfigError, match="tensors of 3 rows, for 2 processes"):
        dealt({"x": torch.ones(3)}, slice(0, None, 2))


def test_an_iterator_trains_but_is_refused_where_the_run_could_be_resumed(tmp_path, unchecked):
    batches = [torch.zeros(1)] * 10
    train(Game(), iter(batches), None, TrainOptions(10), turns=[game()])
    with pytest.raises(ConfigError, match="list_iterator, an iterator, and `run` was given"):
        train(Game(), iter(batches), None, TrainOptions(10), turns=[game()], run=tmp_path)
    with pytest.raises(ConfigError, match="ended after 5 batches, and step 6 needs another"):
        train(Game(), iter(batches[:5]), None, TrainOptions(10), turns=[game()])
    with pytest.raises(ConfigError, match="`source` is a int"):
        train(Game(), 3, None, TrainOptions(10), turns=[game()])


def test_a_loss_that_is_not_finite_names_the_turn_and_the_data():
    def poisoned(step, generator):
        return {"real": torch.full((2,), float("nan") if step == 2 else 1.0)}

    def loss(model, batch, turn):
        return batch["real"] * model.x.sum()

    with pytest.raises(
        NonFiniteError, match=r"loss of turn `x` is nan at \[0, 1\], and the data.*\['real'\]"
    ):
        train(Game(), poisoned, None, TrainOptions(4), turns=[Turn("x", loss, "x")])
    with pytest.raises(NonFiniteError, match="lower `outer_lr` or `clip_norm` of turn `x`"):
        train(Game(), poisoned, None, TrainOptions(4), turns=[Turn("x", loss, "x")])


def test_turns_in_mixed_precision_compute_the_loss_in_half_and_leave_the_batch_as_it_is():
    seen = set()

    def loss(model, batch, turn):
        seen.add((batch["real"].dtype, nn.functional.linear(batch["real"], batch["real"]).dtype))
        return model.x.sum()

    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    batches = [{"real": torch.ones(2, 2)}]
    train(Game(), batches, None, TrainOptions(2), turns=[Turn("x", loss, "x")], fabric=fabric)
    assert seen == {(torch.float32, torch.bfloat16)}


def test_every_seed_draws_batches_of_its_own_and_the_first_those_of_the_steps_number():
    def drawn(seed):
        source = lambda step, generator: torch.rand(3, generator=generator)  # noqa: E731
        batches = Batches([source], lambda step: 0, TrainOptions(steps=5, seed=seed), OneProcess())
        return torch.stack([batches.at(step) for step in range(5)])

    of_seeds = torch.cat([drawn(seed) for seed in range(6)])
    assert len(of_seeds.unique(dim=0)) == len(of_seeds)
    expected = [torch.rand(3, generator=torch.Generator().manual_seed(step)) for step in range(5)]
    assert torch.equal(drawn(0), torch.stack(expected))
