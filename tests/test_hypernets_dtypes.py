"""Each generated parameter is of the dtype of the base's own: mixed, complex, and what is no number to generate."""

import pytest
import torch
from torch import nn

from cases import TASKS
from weightloom.base import apply_per_task
from weightloom.errors import ConfigError
from weightloom.forms import Chunked, FiLM, Full, LowRank, RowScale, Template, choose_forms
from weightloom.forms.factored import built
from weightloom.hypernets import (
    ChunkedHyperNetwork,
    GraphHyperNetwork,
    MLPHyperNetwork,
    StaticHyperNetwork,
    TransformerHyperNetwork,
)
from weightloom.params import ParamSpec
from weightloom.testing import check_hypernetwork

KINDS = {
    "mlp": MLPHyperNetwork,
    "chunked": lambda base, dim, **options: ChunkedHyperNetwork(base, dim, slice_size=7, **options),
    "transformer": lambda base, dim, **options: TransformerHyperNetwork(
        base, dim, slice_size=7, width=8, **options
    ),
    "graph": lambda base, dim, **options: GraphHyperNetwork(base, dim, hidden=8, tile=3, **options),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def mixed():
    layers = (
        nn.Linear(4, 8).bfloat16(),
        nn.LayerNorm(8),
        nn.Linear(8, 3).double(),
        nn.Linear(3, 2).half(),
    )
    return nn.Sequential(*layers)


class Spectral(nn.Module):
    def __init__(self, dtype=torch.complex64):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3, 4, dtype=dtype))
        self.phase = nn.Parameter(torch.randn((), dtype=dtype))
        self.skip = nn.Conv1d(2, 3, 1)


class Indexed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.index = nn.Parameter(torch.arange(3), requires_grad=False)
        self.mask = nn.Parameter(torch.tensor([True, False]), requires_grad=False)


@every_kind
@pytest.mark.parametrize("form", [None, LowRank(1), FiLM(), Template(2), Chunked(5)], ids=str)
@pytest.mark.parametrize("build", [mixed, Spectral, lambda: Spectral(torch.complex128)])
def test_at_step_0_every_parameter_is_the_base_s_own_to_the_last_bit_in_its_own_dtype(
    kind, form, build
):
    base = build()
    hyper = KINDS[kind](base, 4, form=form)
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            params = hyper(100 * torch.randn(TASKS, 4))
        for name, own in base.named_parameters():
            assert params[name].dtype == own.dtype
            assert torch.equal(built(params[name]), own.expand(TASKS, *own.shape))


@every_kind
def test_numbers_in_double_precision_keep_it_beside_a_hypernetwork_in_single(kind):
    """A change of 1 is added to numbers near 1e9, which single precision would round to multiples of 64."""
    base = nn.Linear(3, 2).double()
    with torch.no_grad():
        base.weight.copy_(1e9 + torch.randn(2, 3))
    hyper = KINDS[kind](base, 4, generate="weight")
    layer = {"mlp": "head", "graph": "write"}.get(kind)
    bias = hyper.get_submodule(layer).bias if layer else hyper.writer.change.bias
    nn.init.ones_(bias)
    difference = hyper(torch.randn(TASKS, 4))["weight"] - base.weight
    assert ((difference - difference.mean()).abs() < 1e-5).all() and difference.mean() > 0.3


@every_kind
def test_a_complex_parameter_gets_a_gradient_in_both_parts_and_the_promises_are_kept(kind):
    hyper = KINDS[kind](Spectral(), 4)
    check_hypernetwork(hyper, torch.randn(TASKS, 4))
    for parameter in hyper.parameters():
        nn.init.normal_(parameter)
    for part in ("real", "imag"):
        condition = torch.randn(TASKS, 4, requires_grad=True)
        getattr(hyper(condition)["weight"], part).sum().backward()
        assert condition.grad.abs().min() > 0


@pytest.mark.parametrize("init", ["hyperfan-in", "magnitude-invariant"])
@pytest.mark.parametrize("kind", ["mlp", "chunked", "transformer"])
def test_complex_parameters_start_with_the_variance_that_the_initialisation_gives(kind, init):
    base = Spectral()
    base.weight = nn.Parameter(3 * torch.randn(30, 30, 4, dtype=torch.cfloat))
    params = KINDS[kind](base, 4, init=init)(torch.randn(40, 4))
    change = params["weight"] - (0 if init == "hyperfan-in" else base.weight)
    expected = 3.0 if init == "hyperfan-in" else 0.3
    assert 0.75 * expected < change.detach().abs().square().mean().sqrt() < 1.3 * expected


def test_a_linear_hypernetwork_writes_real_and_imaginary_parts_side_by_side():
    base = Spectral(torch.complex128)
    hyper = MLPHyperNetwork(base, 4, generate="weight", hidden=()).double()
    nn.init.normal_(hyper.head.weight)
    condition = torch.randn(TASKS, 4).double()
    assert hyper.generated.size == 2 * 24 and hyper.spec.shapes == {"weight": (2, 3, 4)}
    flat = (condition @ hyper.head.weight.mT).reshape(TASKS, 2, 3, 4, 2)
    torch.testing.assert_close(
        hyper(condition)["weight"], base.weight + flat[..., 0] + 1j * flat[..., 1]
    )


def test_a_form_for_complex_numbers_is_full_and_another_that_is_named_in_full_is_refused():
    assert choose_forms(Spectral(), form=RowScale())["weight"] == Full()
    assert choose_forms(Spectral(), {"w*": LowRank(1)}) == {"weight": Full()}
    with pytest.raises(
        ConfigError, match=r"does not fit `weight`.*real numbers, and these are complex.*`Full\(\)`"
    ):
        choose_forms(Spectral(), {"weight": LowRank(1)})
    assert choose_forms(Spectral(), {"weight": Full()}) == {"weight": Full()}


@pytest.mark.parametrize(
    "generate", ["*", nn.Module, lambda name, parameter: True, ["*.weight", "*"]]
)
def test_whole_numbers_are_left_out_and_stay_shared(generate):
    base = Indexed()
    hyper = MLPHyperNetwork(base, 4, generate=generate, freeze="*")
    assert list(hyper(torch.randn(TASKS, 4))) == ["layer.weight", "layer.bias"]
    assert hyper.spec.shared == ("index", "mask")


@pytest.mark.parametrize(
    "generate", ["index", "mask", ["layer.weight", "index"], {"index": Full()}]
)
def test_whole_numbers_that_are_named_in_full_are_refused(generate):
    with pytest.raises(
        ConfigError, match=r"holds (int64|bool) numbers\..*Leave it out of `generate`"
    ):
        MLPHyperNetwork(Indexed(), 4, generate=generate)
    assert ParamSpec.of(Indexed()).shapes.keys() == {"layer.weight", "layer.bias"}


def test_static_kernels_are_of_the_dtype_of_the_base_s_own():
    base = nn.Sequential(nn.Conv2d(2, 4, 3).bfloat16(), nn.Conv2d(4, 2, 3))
    params = StaticHyperNetwork(base, 4, block=2)(torch.randn(TASKS, 4))
    assert [value.dtype for value in params.values()] == [torch.bfloat16, torch.float32]
    complex_kernel = nn.Conv2d(2, 2, 3, dtype=torch.complex64)
    with pytest.raises(
        ConfigError, match=r"is torch\.complex64\. Blocks can write only.*of real numbers"
    ):
        StaticHyperNetwork(complex_kernel, block=2, generate="weight")


class BfloatTrunk(nn.Module):
    """As most large models are loaded."""

    def __init__(self):
        super().__init__()
        self.trunk, self.norm, self.head = (
            nn.Linear(4, 8).bfloat16(),
            nn.LayerNorm(8),
            nn.Linear(8, 2),
        )

    def forward(self, x):
        return self.head(self.norm(self.trunk(x.bfloat16()).float()))


class Waves(Spectral):
    """A spectral layer of a Fourier neural operator."""

    def forward(self, x):
        waves = torch.einsum("bim,iom->bom", torch.fft.rfft(x)[..., :4], self.weight * self.phase)
        return torch.fft.irfft(waves, n=x.shape[-1]) + self.skip(x)


@pytest.mark.parametrize("engine", ["auto", "vmap", "loop"])
@pytest.mark.parametrize(
    ("build", "event"), [(BfloatTrunk, (4,)), (Waves, (2, 16))], ids=["bfloat16", "complex"]
)
def test_a_base_of_several_dtypes_runs_at_step_0_as_itself_and_has_gradients(build, event, engine):
    base, x = build(), torch.randn(TASKS, 3, *event)
    hyper = MLPHyperNetwork(base, condition_dim=5)
    y = apply_per_task(base, hyper(torch.randn(TASKS, 5)), x, engine=engine)
    expected = torch.stack([base(its) for its in x])
    assert y.dtype == expected.dtype == torch.float32
    tolerance = 1e-2 if build is BfloatTrunk else 1e-5
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    y.square().sum().backward()
    assert hyper.head.weight.grad.isfinite().all() and hyper.head.weight.grad.any()
