"""The optimiser of a training: fused where it can be, equal to torch's AdamW, and at home in older checkpoints."""

import pytest
import torch
from torch import nn

from test_train import OPTIONS, SOURCE, new_model, same
from weightloom.errors import ConfigError
from weightloom.files import load_tensors
from weightloom.losses import mse_per_task
from weightloom.tasks import Tasks
from weightloom.training import OneProcess, TrainOptions, steps, train
from weightloom.training.optimiser import build_optimiser
from weightloom.training.processes import seed_chance


def parameters(*shapes, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def unfused(own, rate, decay, kind="adamw"):
    """The optimiser of checkpoints that were written before there was a fused one."""
    groups = [[p for p in own if (p.ndim < 2) == plain] for plain in (True, False)]
    decays = (0.0, decay)
    return torch.optim.AdamW(
        [
            {"params": group, "weight_decay": d}
            for group, d in zip(groups, decays, strict=True)
            if group
        ],
        lr=rate,
    )


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("build", [build_optimiser, unfused])
def test_steps_are_those_of_adamw_by_its_definition(build, decay):
    """Loshchilov and Hutter (2019), algorithm 2, with vectors that do not decay."""
    own, plain = (parameters((3, 2), (2,), ()) for _ in range(2))
    optimiser = build(own, 0.01, decay)
    state = [[torch.zeros_like(p) for p in plain] for _ in range(2)]
    for step in range(1, 6):
        for parameter, value, mean, square in zip(own, plain, *state, strict=True):
            parameter.grad = value.detach().sin() * step
            mean.mul_(0.9).add_(0.1 * parameter.grad)
            square.mul_(0.999).add_(0.001 * parameter.grad.square())
            change = mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
            value.data.mul_(1 - 0.01 * (decay if value.ndim > 1 else 0.0)).sub_(0.01 * change)
        optimiser.step()
        for parameter, value in zip(own, plain, strict=True):
            torch.testing.assert_close(parameter, value, rtol=1e-12, atol=1e-12)


def test_steps_of_sgd_are_those_of_nesterovs_momentum_by_its_definition():
    own, plain = (parameters((3, 2), (2,)) for _ in range(2))
    optimiser = build_optimiser(own, 0.01, 0.1, "sgd")
    speeds = [torch.zeros_like(p) for p in plain]
    for step in range(1, 6):
        for parameter, value, speed in zip(own, plain, speeds, strict=True):
            gradient = value.detach().sin() * step
            parameter.grad = gradient.clone()
            gradient += (0.1 if value.ndim > 1 else 0.0) * value.detach()
            speed.mul_(0.9).add_(gradient)
            value.data.sub_(0.01 * (gradient + 0.9 * speed))
        optimiser.step()
        for parameter, value in zip(own, plain, strict=True):
            torch.testing.assert_close(parameter, value, rtol=1e-12, atol=1e-12)


def test_an_unknown_optimiser_is_refused(unchecked):
    with pytest.raises(ConfigError, match=r"`optimiser='adam'` is unknown.*adamw"):
        TrainOptions(steps=1, optimiser="adam")


def test_it_is_fused_where_all_numbers_are_real_and_plain_where_one_is_complex():
    real, complex_too = parameters((2,), (2, 2)), parameters((2,), (2, 2))
    complex_too.append(nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    assert build_optimiser(real, 0.1, 0.0).defaults["fused"]
    assert not build_optimiser(complex_too, 0.1, 0.0).defaults["fused"]


class Turned(nn.Module):
    """A real scale and a complex one: the best of both turn (1, 0) into (0, 2)."""

    def __init__(self):
        super().__init__()
        self.real = nn.Parameter(torch.ones(()))
        self.turn = nn.Parameter(torch.ones((), dtype=torch.complex64))

    def forward(self, tasks: Tasks):
        return ((self.real * self.turn - 2j).abs() ** 2).expand(len(tasks.query_x))


def test_a_model_with_complex_parameters_trains():
    model = Turned()
    train(model, SOURCE, None, TrainOptions(steps=300, tasks=2, outer_lr=0.1, warmup_steps=1))
    assert (model.real * model.turn).item() == pytest.approx(2j, abs=1e-2)


def test_a_frozen_complex_parameter_leaves_the_others_fused():
    model = Turned()
    model.turn.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert build_optimiser(trained, 0.1, 0.0).defaults["fused"]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_run_that_began_with_the_unfused_optimiser_goes_on(tmp_path, monkeypatch, decay):
    """Its numbers are those of a run that was fused from the start, but for rounding."""
    options = TrainOptions(
        steps=24, tasks=4, warmup_steps=4, checkpoint_every=5, seed=3, weight_decay=decay
    )
    whole, older, resumed = new_model(), new_model(), new_model()
    train(whole, SOURCE, mse_per_task, options)

    def until(done):
        if done == 10:
            raise InterruptedError
        return {}

    with monkeypatch.context() as patched:
        patched.setattr(steps, "build_optimiser", unfused)
        stopped = TrainOptions(**{**vars(options), "evaluate_every": 1})
        with pytest.raises(InterruptedError):
            train(older, SOURCE, mse_per_task, stopped, run=tmp_path, evaluate=until)
    path = tmp_path / "checkpoints" / "last.safetensors"
    before = load_tensors(path)[0]
    train(resumed, SOURCE, mse_per_task, options, run=tmp_path, resume=True)
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    after = load_tensors(path)[0]
    assert {name: value.shape for name, value in before.items()} == {
        n: v.shape for n, v in after.items()
    }


def test_chance_is_seeded_as_by_torch():
    torch.manual_seed((7 << 32) + 5)
    expected = torch.rand(9)
    seed_chance((7 << 32) + 5, torch.device("cpu"))
    assert torch.equal(torch.rand(9), expected)


def test_one_process_takes_the_steps_that_fabric_takes():
    fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu", devices=1)
    one, other = new_model(), new_model()
    train(one, SOURCE, mse_per_task, OPTIONS, fabric=OneProcess())
    train(other, SOURCE, mse_per_task, OPTIONS, fabric=fabric)
    assert same(one, other)
