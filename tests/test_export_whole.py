"""A method as one program: the same predictions for other numbers of tasks, shots and queries, here and in ONNX."""

import json
import sys
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from weightloom.apps.fewshot import whole_export
from weightloom.apps.fewshot.whole_export import export_whole
from weightloom.base import apply_per_task
from weightloom.conditions import DeepSets, SupportAttention
from weightloom.errors import ConfigError, MissingExtraError
from weightloom.forms import FiLM, Full, LowRank, RowScale
from weightloom.forms.windows import convolve_each, transpose_convolve_each
from weightloom.hypernets import MLPHyperNetwork
from weightloom.hypernets.solve import solve_symmetric
from weightloom.learners.functions import HyperFunction
from weightloom.learners.generated import GeneratedLearner
from weightloom.learners.heads import HyperHead
from weightloom.learners.inputs import HyperInputs
from weightloom.learners.maml import MAML
from weightloom.learners.scratch import FromScratch
from weightloom.learners.whole_network import HyperRegressor
from weightloom.networks import ConvNet, FunctionNet, mlp
from weightloom.networks.recurrent import LSTM
from weightloom.tasks import Tasks

pytestmark = pytest.mark.usefixtures("unchecked")

needs_onnx = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra `weightloom[export]` is not installed",
)
FORMS = [Full(), LowRank(2), RowScale(), FiLM()]
ENCODERS = [DeepSets, SupportAttention]
EVENTS = {"mlp": (2,), "conv": (1, 6, 6)}
SIZES = [(3, 6, 7), (1, 1, 1), (5, 1, 2), (1, 4, 3), (7, 9, 11)]
"""Tasks, shots and queries; the first are those of the example."""


class Flat(nn.Module):
    """An encoder of images, flat."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x, y, mask):
        return self.encoder(x.flatten(2), y, mask)


def moved(learner):
    """The learner as training leaves it: nothing of it is zero."""
    with torch.no_grad():
        for parameter in learner.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return learner.eval()


def generated(base_name="mlp", form=None, encoder=DeepSets):
    event = EVENTS[base_name]
    base = mlp([2, 8, 3]) if base_name == "mlp" else ConvNet(1, 6, 3, channels=4, blocks=2)
    hyper = MLPHyperNetwork(base, 4, form=form)
    return (
        moved(GeneratedLearner(base, Flat(encoder(torch.Size(event).numel(), 3, 4)), hyper)),
        event,
        3,
    )


METHODS = {
    "head": lambda: (HyperHead(ConvNet(1, 6, 3, channels=4, blocks=2)), (1, 6, 6), "labels"),
    "regressor": lambda: (HyperRegressor(mlp([2, 8, 3]), 2, 3, layers=1), (2,), 3),
    "function": lambda: (
        HyperFunction(
            FunctionNet(2, 3, features=16),
            SupportAttention(2, 3, 4, layers=1),
            hidden=(8,),
            noise=0.01,
        ),
        (2,),
        3,
    ),
    "inputs": lambda: (
        HyperInputs(nn.Sequential(nn.Linear(9, 9), *mlp([9, 8, 10])), width=8),
        (9,),
        "labels",
    ),
}


def drawn(tasks, shots, queries, event, out):
    """Tasks with some points missing, never the first."""
    mask = torch.rand(tasks, shots) > 0.3
    mask[:, 0] = True
    y = (
        torch.arange(shots).expand(tasks, -1) % 3
        if out == "labels"
        else torch.randn(tasks, shots, out)
    )
    x, query_x = torch.randn(tasks, shots, *event), torch.randn(tasks, queries, *event)
    return Tasks.of(x, y, query_x, torch.zeros(tasks, queries), support_mask=mask)


def programs(folder):
    """The programs in a folder, as functions."""
    found = {"whole.pt2": torch.export.load(folder / "whole.pt2").module()}
    if (folder / "whole.onnx").exists():
        import onnx
        import onnxruntime

        onnx.checker.check_model(onnx.load(folder / "whole.onnx"))
        session = onnxruntime.InferenceSession(
            folder / "whole.onnx", providers=["CPUExecutionProvider"]
        )
        names = [given.name for given in session.get_inputs()]
        found["whole.onnx"] = lambda *inputs: torch.from_numpy(
            session.run(None, dict(zip(names, [its.numpy() for its in inputs], strict=True)))[0]
        )
    return found


def assert_exported(learner, event, out, folder, onnx):
    facts = export_whole(learner, drawn(*SIZES[0], event, out), folder, onnx=onnx)
    if out == "labels":
        learner.ways = 3  # as many as the example shows, however few a task does
    for name, run in programs(folder).items():
        assert facts["largest_difference"][name] < 1e-5 * max(1, facts["largest_prediction"])
        for sizes in SIZES:
            new = drawn(*sizes, event, out)
            with torch.no_grad():
                expected = learner.predict(learner.adapt(new.support), new.query_x)
                found = run(*new.support, new.query_x)
            torch.testing.assert_close(
                found, expected, rtol=1e-5, atol=1e-5, msg=lambda m, s=sizes: f"{s}: {m}"
            )
    assert json.loads((folder / "whole.json").read_text()) == facts
    return facts


def test_a_program_holds_for_other_numbers_of_everything(tmp_path):
    facts = assert_exported(*generated("mlp", LowRank(2)), tmp_path / "out", onnx=False)
    assert facts["inputs"]["support_x"] == {"shape": ["tasks", "shots", 2], "dtype": "float32"}
    assert facts["output"] == {"prediction": ["tasks", "queries", 3]}
    assert {path.name for path in tmp_path.rglob("*")} == {"out", "whole.pt2", "whole.json"}


@needs_onnx
def test_so_does_its_translation_to_onnx(tmp_path):
    assert_exported(*generated("mlp", FiLM()), tmp_path, onnx=True)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
@pytest.mark.parametrize("base", EVENTS)
def test_every_form_encoder_and_base_is_exported(base, form, encoder, tmp_path):
    assert_exported(*generated(base, form, encoder), tmp_path, onnx=True)


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_the_methods_of_the_command_line_are_exported(name, tmp_path):
    learner, event, out = METHODS[name]()
    assert_exported(moved(learner), event, out, tmp_path, onnx=True)


def test_a_known_condition_takes_the_place_of_a_support_set(tmp_path):
    base = mlp([2, 8, 3])
    learner = moved(GeneratedLearner(base, None, MLPHyperNetwork(base, 4)))
    example = drawn(3, 1, 7, (2,), 3)
    example = example._replace(support=example.support._replace(x=torch.randn(3, 4)))
    facts = export_whole(learner, example, tmp_path, onnx=False)
    assert facts["inputs"]["support_x"]["shape"] == ["tasks", 4]
    condition, x = torch.randn(6, 4), torch.randn(6, 2, 2)
    found = programs(tmp_path)["whole.pt2"](
        condition, torch.zeros(6, 5, 3), torch.ones(6, 5, dtype=torch.bool), x
    )
    torch.testing.assert_close(
        found, learner.predict(learner.adapt(condition), x), rtol=1e-5, atol=1e-5
    )


def refused(learner, folder, match, example=None):
    with pytest.raises(ConfigError, match=match) as caught:
        export_whole(learner, example or drawn(*SIZES[0], (2,), 3), folder, onnx=False)
    assert not folder.exists()
    assert not [*folder.parent.iterdir()]
    return str(caught.value)


def test_gradient_steps_are_refused(tmp_path):
    said = refused(
        MAML(mlp([2, 8, 3])),
        tmp_path / "out",
        "MAML cannot be exported whole: `adapt` takes gradient steps",
    )
    assert "weightloom export RUN --task 0" in said


def test_what_is_fitted_to_a_task_alone_is_refused(tmp_path):
    refused(
        FromScratch(lambda out: mlp([2, 4, out])),
        tmp_path / "out",
        "FromScratch cannot.*fitted to each task alone",
    )


class Guessing(GeneratedLearner):
    """A method that draws where it starts."""

    def condition(self, support):
        encoded = super().condition(support)
        return encoded + torch.randn_like(encoded)


class Looking(GeneratedLearner):
    """A method that looks at numbers."""

    def condition(self, support):
        encoded = super().condition(support)
        return encoded if support.y.sum() > 0 else -encoded


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        (Guessing, r"`whole\.pt2` differs from the run by .* It draws random numbers"),
        (Looking, "`torch.export` stops at"),
    ],
)
def test_what_no_program_can_do_is_refused_and_leaves_nothing(kind, match, tmp_path):
    learner, _, _ = generated()
    refused(kind(learner.base, learner.encoder, learner.hyper), tmp_path / "out", match)


def test_a_program_is_never_written_over(tmp_path):
    (tmp_path / "whole.json").write_text("mine")
    with pytest.raises(ConfigError, match="holds a program already"):
        export_whole(generated()[0], drawn(*SIZES[0], (2,), 3), tmp_path, onnx=False)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.json"]


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(
        whole_export, "find_spec", lambda name: None if name == "onnxscript" else sys
    )
    with pytest.raises(
        MissingExtraError, match=r"`onnxscript` not installed.*pip install 'weightloom\[export\]'"
    ):
        export_whole(generated()[0], drawn(*SIZES[0], (2,), 3), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_learner_is_left_alone(tmp_path):
    learner, event, out = generated()
    learner.train()
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    export_whole(learner, drawn(*SIZES[0], event, out), tmp_path, onnx=False)
    assert learner.training
    assert all(parameter.requires_grad for parameter in learner.parameters())
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())


class Own(nn.Module):
    """A program of a user's own: the first parameter of its base in."""

    def __init__(self, base):
        super().__init__()
        self.base, self.name = base, next(name for name, _ in base.named_parameters())

    def forward(self, weight, x, engine="auto"):
        return apply_per_task(self.base, {self.name: weight}, x, engine=engine)


class Mixing(nn.Sequential):
    """Rows are not treated one by one."""

    def forward(self, x):
        return super().forward(x - x.mean(0))


class Reading(nn.Sequential):
    """A recurrent layer, which cannot be folded, inside of another module."""

    def forward(self, x):
        return self[1](self[0](x)[0])


class Counting(nn.Sequential):
    """The size of the batch is a number."""

    def forward(self, x):
        return super().forward(x) / x.shape[0]


BASES = {
    "linear": (nn.Sequential, (nn.Linear(4, 3), nn.LayerNorm(3), nn.GELU()), (4,)),
    "mixing": (Mixing, (nn.Linear(4, 3),), (4,)),
    "counting": (Counting, (nn.Linear(4, 3),), (4,)),
    "reading": (Reading, (LSTM(4, 3, batch_first=True), nn.Linear(3, 2)), (5, 4)),
    "convolution": (
        nn.Sequential,
        (nn.Conv2d(2, 4, 3, 2, 1), nn.GroupNorm(2, 4), nn.MaxPool2d(2)),
        (2, 5, 5),
    ),
    "transposed": (
        nn.Sequential,
        (nn.ConvTranspose2d(2, 4, 3, 2, 1, 1), nn.BatchNorm2d(4), nn.ReLU()),
        (2, 3, 3),
    ),
    "embedding": (nn.Sequential, (nn.Embedding(6, 4), nn.Linear(4, 2)), ()),
}


@pytest.mark.parametrize("name", BASES)
def test_a_program_of_your_own_holds_for_any_number_of_tasks_and_rows(name):
    kind, layers, event = BASES[name]
    base = kind(*layers).eval().requires_grad_(False)
    any_size = torch.export.Dim.DYNAMIC

    def inputs(tasks, batch):
        shape = (tasks, batch, *event)
        x = torch.randn(shape) if event else torch.randint(6, shape)
        return torch.randn(tasks, *next(base.parameters()).shape), x

    own = Own(base)
    program = torch.export.export(
        own, inputs(3, 5), dynamic_shapes=({0: any_size}, {0: any_size, 1: any_size})
    )
    for tasks, batch in ((3, 5), (4, 7), (1, 1)):
        weight, x = inputs(tasks, batch)
        torch.testing.assert_close(
            program.module()(weight, x), own(weight, x, "loop"), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("window", [(3,), (3, 2), (2, 3, 2)])
@pytest.mark.parametrize(
    ("stride", "padding", "dilation"), [(1, 0, 1), (2, 1, 1), (1, 2, 2), (2, 0, 2), (1, "same", 2)]
)
def test_convolutions_written_out_equal_torch_task_by_task(
    window, groups, stride, padding, dilation
):
    x, bias = torch.randn(3, 2, 4, *[7] * len(window)).double(), torch.randn(3, 6).double()
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    kernel = torch.randn(3, 6, 4 // groups, *window).double()
    run = getattr(F, f"conv{len(window)}d")
    each = zip(x, kernel, bias, strict=True)
    expected = torch.stack([run(*one, groups=groups, **options) for one in each])
    torch.testing.assert_close(convolve_each(x, kernel, bias, groups, **options), expected)
    if padding == "same":
        return
    options["output_padding"] = stride - 1
    kernel = torch.randn(3, 4, 6 // groups, *window).double()
    run = getattr(F, f"conv_transpose{len(window)}d")
    each = zip(x, kernel, bias, strict=True)
    expected = torch.stack([run(*one, groups=groups, **options) for one in each])
    torch.testing.assert_close(
        transpose_convolve_each(x, kernel, bias, groups, **options), expected
    )


@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-6])
def test_products_solve_as_well_as_a_solver_in_double_precision(smallest, monkeypatch):
    """A system whose solution is known: eigenvalues from ``smallest`` to 1."""
    rotation = torch.linalg.qr(torch.randn(2, 20, 20).double()).Q
    matrix = (
        rotation * torch.logspace(0, torch.tensor(smallest).log10().item(), 20).double()
    ) @ rotation.mT
    solution = torch.randn(2, 20, 3).double()
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    found = solve_symmetric(matrix, matrix @ solution)
    assert (found - solution).abs().max() < 1e-9 / smallest
