"""Joint and alternating training, weight decay, and the running average of parameters."""

from dataclasses import replace

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from references import tensors_of
from test_train import OPTIONS, SOURCE, new_model, same
from weightloom.base import apply_per_task
from weightloom.errors import ConfigError
from weightloom.hypernets import MLPHyperNetwork
from weightloom.losses import mse_per_task
from weightloom.tasks import Tasks, TaskSource
from weightloom.training import TrainOptions, load_model, train

TASKS, POINTS, WIDTH, KNOWN = 6, 8, 3, 2


class SameTasks(TaskSource):
    """Six linear problems whose solutions nearly, but not quite, lie in the plane that a linear head can reach."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.condition = torch.randn(TASKS, KNOWN, generator=generator)
        self.x = torch.randn(TASKS, POINTS, WIDTH, generator=generator)
        weight = self.condition @ torch.randn(KNOWN, WIDTH, generator=generator) + 1.0
        self.y = (self.x * weight[:, None]).sum(2, keepdim=True)
        self.y += 0.3 * torch.randn(TASKS, POINTS, 1, generator=generator)

    def sample(self, tasks, generator):
        return Tasks.of(self.x, self.y, self.x, self.y, hidden=self.condition)


class LinearInAll(nn.Module):
    """θ = own + W c: the loss is convex in own and W together, so that its optimum is known."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Linear(WIDTH, 1, bias=False)
        self.hyper = MLPHyperNetwork(self.base, KNOWN, hidden=())

    def forward(self, tasks):
        return mse_per_task(
            apply_per_task(self.base, self.hyper(tasks.hidden), tasks.query_x), tasks.query_y
        )

    def blocks(self):
        return list(self.base.parameters()), list(self.hyper.head.parameters())


def optimum() -> float:
    """The least mean squared error over own and W, by least squares in double precision."""
    source = SameTasks()
    known = torch.cat([torch.ones(TASKS, 1), source.condition], 1).double()
    design = (known[:, None, :, None] * source.x.double()[:, :, None, :]).reshape(
        TASKS * POINTS, -1
    )
    target = source.y.double().reshape(-1, 1)
    return (design @ torch.linalg.lstsq(design, target).solution - target).square().mean().item()


@pytest.mark.parametrize("mode", ["joint", "alternating"])
def test_both_modes_reach_the_optimum_of_a_convex_problem(mode):
    torch.manual_seed(0)
    model = LinearInAll()
    options = TrainOptions(
        steps=400, outer_lr=0.1, warmup_steps=1, clip_norm=1e9, mode=mode, block_steps=5
    )
    train(model, SameTasks(), None, options)
    reached = model(SameTasks().sample(TASKS, torch.Generator())).mean().item()
    assert optimum() > 0.02  # not a problem that anything solves
    assert reached == pytest.approx(optimum(), rel=1e-3)


def test_in_turn_one_block_moves_and_the_other_rests():
    model = LinearInAll()
    with torch.no_grad():
        model.hyper.head.weight.normal_()
    before = [p.detach().clone() for block in model.blocks() for p in block]
    options = TrainOptions(steps=3, mode="alternating", block_steps=3, weight_decay=0.1)
    train(model, SameTasks(), None, options)
    after = [p.detach() for block in model.blocks() for p in block]
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert moved == [True, False, False]


def test_a_model_without_blocks_cannot_be_trained_in_turns():
    with pytest.raises(ConfigError, match="Model, which has no blocks"):
        train(new_model(), SOURCE, mse_per_task, TrainOptions(steps=1, mode="alternating"))


def test_vectors_do_not_decay_and_matrices_do():
    """One step of AdamW multiplies by (1 - lr * decay), whatever the gradient, when its own step is taken off."""
    models = [new_model() for _ in range(2)]
    for model, decay in zip(models, (0.0, 0.5), strict=True):
        train(
            model,
            SOURCE,
            mse_per_task,
            TrainOptions(steps=1, tasks=4, warmup_steps=1, outer_lr=0.1, weight_decay=decay),
        )
    start = dict(new_model().named_parameters())
    for (name, plain), decayed in zip(
        models[0].named_parameters(), models[1].parameters(), strict=True
    ):
        share = 0.5 * 0.1 if plain.ndim > 1 else 0.0
        torch.testing.assert_close(decayed, plain - share * start[name], rtol=1e-5, atol=1e-6)


def test_the_average_is_what_ends_up_in_the_model_and_in_the_checkpoint(tmp_path):
    """By hand: decay min(d, (step + 1) / (step + 20)) after each step of the same run without averaging."""
    plain, averaged = new_model(), new_model()
    expected = [p.detach().clone() for p in plain.parameters()]
    seen = []

    def look(done):
        seen.append([p.detach().clone() for p in plain.parameters()])
        return {}

    options = TrainOptions(steps=3, tasks=4, evaluate_every=1, outer_lr=1e-2, warmup_steps=1)
    train(plain, SOURCE, mse_per_task, options, evaluate=look)
    for step, values in enumerate(seen):
        decay = min(0.1, (step + 1) / (step + 20))
        expected = [decay * e + (1 - decay) * v for e, v in zip(expected, values, strict=True)]
    train(averaged, SOURCE, mse_per_task, replace(options, average=0.1), run=tmp_path)
    for parameter, value in zip(averaged.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter, value, rtol=1e-5, atol=1e-6)
    load_model(tmp_path / "checkpoints" / "last.safetensors", plain)
    assert same(plain, averaged)


def test_evaluation_sees_the_average_and_training_goes_on_from_the_parameters():
    watched, unwatched = new_model(), new_model()
    options = {**OPTIONS.__dict__, "average": 0.9}
    first = [p.detach().clone() for p in watched.parameters()]
    seen = []

    def look(done):
        seen.append([p.detach().clone() for p in watched.parameters()])
        return {}

    train(watched, SOURCE, mse_per_task, TrainOptions(**options), evaluate=look)
    train(unwatched, SOURCE, mse_per_task, TrainOptions(**options))
    assert same(watched, unwatched)
    assert not all(torch.equal(a, b) for a, b in zip(seen[0], first, strict=True))


def test_a_run_with_an_average_that_was_killed_ends_as_one_that_never_was(tmp_path):
    options = TrainOptions(**{**OPTIONS.__dict__, "average": 0.9, "mode": "joint"})
    whole = new_model()
    train(whole, SOURCE, mse_per_task, options, run=tmp_path / "whole")

    class KilledError(Exception):
        pass

    def kill(done):
        if done == 12:
            raise KilledError
        return {}

    with pytest.raises(KilledError):
        train(new_model(), SOURCE, mse_per_task, options, run=tmp_path / "cut", evaluate=kill)
    resumed = new_model()
    train(resumed, SOURCE, mse_per_task, options, run=tmp_path / "cut", resume=True)
    assert same(whole, resumed)


class Normed(nn.Module):
    """Two normalised layers, in float64; one layer rests in eval mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2), nn.BatchNorm1d(2)
        ).double()
        self.rest = nn.BatchNorm1d(2).double()

    def forward(self, batch):
        self.rest.eval()
        return (self.rest(self.layers(batch)) - 1).abs().mean(1)


POPULATION = torch.randn(64, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def exact(model):
    """Mean and unbiased variance of the input of each norm over the population, by hand."""
    first = model.layers[0](POPULATION)
    centred = (first - first.mean(0)) / (first.var(0, correction=0) + 1e-5).sqrt()
    norm = model.layers[1]
    second = model.layers[3]((centred * norm.weight + norm.bias).tanh())
    return [first.mean(0), first.var(0), second.mean(0), second.var(0)]


def statistics(model):
    return [
        its.clone()
        for norm in (model.layers[1], model.layers[4])
        for its in (norm.running_mean, norm.running_var)
    ]


AVERAGED = TrainOptions(
    steps=14, average=0.9, outer_lr=0.05, warmup_steps=1, evaluate_every=5, checkpoint_every=4
)


@torch.no_grad()
def test_the_average_is_judged_and_kept_with_exact_statistics_of_its_own(tmp_path):
    judged, kept = Normed(), Normed()
    differ = []

    def look(done):
        torch.testing.assert_close(statistics(judged), exact(judged))
        differ.append(statistics(judged))
        return {}

    with torch.enable_grad():
        train(judged, lambda step, _: POPULATION, None, AVERAGED, evaluate=look, run=tmp_path)
    assert len(differ) == 3 and not torch.equal(differ[0][0], differ[1][0])
    torch.testing.assert_close(statistics(judged), exact(judged))
    load_model(tmp_path / "checkpoints" / "last.safetensors", kept)
    torch.testing.assert_close(statistics(kept), exact(kept))
    assert torch.equal(kept.rest.running_var, torch.ones(2, dtype=torch.float64))


def test_measuring_statistics_changes_no_step_and_a_resumed_run_measures_the_same(tmp_path):
    def draw(step, generator):
        return POPULATION[torch.randint(64, (16,), generator=generator)]

    class KilledError(Exception):
        pass

    def kill(done):
        if done == 10:
            raise KilledError
        return {}

    often, seldom, cut = Normed(), Normed(), Normed()
    train(often, draw, None, replace(AVERAGED, evaluate_every=1), evaluate=lambda done: {})
    train(seldom, draw, None, AVERAGED)
    assert same(often, seldom)
    with pytest.raises(KilledError):
        train(Normed(), draw, None, AVERAGED, run=tmp_path, evaluate=kill)
    train(cut, draw, None, AVERAGED, run=tmp_path, resume=True)
    assert same(cut, seldom)
    train(cut, draw, None, AVERAGED, run=tmp_path, resume=True)  # complete: read, not measured
    assert all(torch.equal(a, b) for a, b in zip(statistics(cut), statistics(seldom), strict=True))


def test_batches_of_a_list_are_not_read_twice_and_statistics_stay_those_of_the_last_step():
    averaged, plain = Normed(), Normed()
    batches = [POPULATION[:16], POPULATION[16:48]]
    train(averaged, batches, None, AVERAGED)
    train(plain, batches, None, replace(AVERAGED, average=0.0))
    assert all(
        torch.equal(a, b) for a, b in zip(statistics(averaged), statistics(plain), strict=True)
    )


def test_in_mixed_precision_networks_compute_in_half_and_the_tasks_stay_as_they_are():
    seen = {}

    class Looks(LinearInAll):
        def forward(self, tasks):
            seen["tasks"] = {
                field.dtype for field in tensors_of(tasks) if field.is_floating_point()
            }
            seen["layer"] = nn.functional.linear(tasks.query_x, tasks.query_x[0]).dtype
            return super().forward(tasks)

    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    train(Looks(), SameTasks(), None, TrainOptions(steps=2), fabric=fabric)
    assert seen == {"tasks": {torch.float32}, "layer": torch.bfloat16}
