"""From generated parameters to a plain network: it leaves by every door with the same numbers, and without us."""

import copy
import io
import pickle
import re
import warnings
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import cases
from cases import Recurrent, conv, resnet, transformer_encoder
from weightloom.base import apply_per_task, specialise
from weightloom.forms import Full, LowRank, RowScale
from weightloom.hypernets import MLPHyperNetwork
from weightloom.networks import mlp
from weightloom.networks.recurrent import GRU, LSTM

OURS = re.compile(rb"weightloom\.[a-z]|src/weightloom/|site-packages/weightloom/")
"""A module or a file of the library; the folder that the project lies in may have its name too."""

FORMS = [case.values[0] for case in cases.FORMS]
BASES = {
    "mlp": (lambda: mlp([5, 8, 2]), (5,)),
    "cnn": (conv, (2, 6, 6)),
    "resnet": (resnet, (2, 6, 6)),
    "transformer": (transformer_encoder, (3, 4)),
    "lstm": (lambda: Recurrent(LSTM(5, 6, batch_first=True)), (4, 5)),
    "gru": (lambda: Recurrent(GRU(5, 6, batch_first=True)), (4, 5)),
}
ANY_BATCH = ({0: torch.export.Dim.DYNAMIC},)

every_base = pytest.mark.parametrize("name", BASES)
every_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)


def all_pairs(*quick):
    """Every base with every form; all but a few are slow."""
    return pytest.mark.parametrize(
        ("name", "form"),
        [
            pytest.param(name, form, marks=() if (name, form) in quick else pytest.mark.slow)
            for name in BASES
            for form in FORMS
        ],
        ids=lambda case: str(case).partition("(")[0],
    )


needs_onnx = pytest.mark.skipif(
    any(find_spec(package) is None for package in ("onnx", "onnxscript", "onnxruntime")),
    reason="the extra `weightloom[export]` is not installed",
)


def network(name, form, task=1):
    """A plain network for one task, in float32 and eval mode; an input; and what the base gives for that task."""
    build, event = BASES[name]
    base = build().eval()
    hyper = MLPHyperNetwork(base, 4, form=form)
    nn.init.normal_(hyper.head.weight, std=0.1)
    params, x = hyper(torch.randn(3, 4)), torch.randn(3, 6, *event)
    with torch.no_grad():
        expected = flat(apply_per_task(base, params, x, engine="loop"))
    return (
        specialise(base, params, task).eval().requires_grad_(False),
        x[task],
        [leaf[task] for leaf in expected],
    )


def flat(outputs):
    return torch.utils._pytree.tree_leaves(outputs)


def assert_equal(outputs, expected):
    assert len(flat(outputs)) == len(expected)
    for found, its in zip(flat(outputs), expected, strict=True):
        torch.testing.assert_close(torch.as_tensor(found), its, rtol=1e-5, atol=1e-5)


@every_base
@every_form
def test_it_is_plain_and_gives_what_the_base_gives_for_its_task(name, form):
    net, x, expected = network(name, form)
    assert_equal(net(x), expected)
    assert not [part for part in net.modules() if type(part).__module__.startswith("weightloom")]
    assert {type(value) for value in net.parameters()} == {nn.Parameter}


@every_base
@every_form
def test_it_can_be_copied_and_pickled(name, form):
    net, x, expected = network(name, form)
    assert_equal(copy.deepcopy(net)(x), expected)
    pickled = pickle.dumps(net)
    assert not OURS.search(pickled)
    assert_equal(pickle.loads(pickled)(x), expected)


@pytest.mark.filterwarnings(
    "ignore:The tensor attributes self.layer._flat_weights:UserWarning"
)  # of any torch LSTM
@all_pairs(
    ("mlp", RowScale()), ("resnet", LowRank(2)), ("transformer", Full()), ("lstm", LowRank(2))
)
def test_it_can_be_exported_for_any_batch(name, form):
    net, x, expected = network(name, form)
    program = torch.export.export(net, (x,), dynamic_shapes=ANY_BATCH)
    assert not OURS.search(str(program).encode())
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    assert not OURS.search(buffer.getvalue())
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    assert_equal(loaded(x), expected)
    assert_equal(flat(loaded(x[:3]))[0], [flat(net(x[:3]))[0]])


@needs_onnx
@all_pairs(("mlp", LowRank(2)), ("cnn", LowRank(2)))
def test_it_runs_in_onnxruntime(name, form, tmp_path):
    import onnx
    import onnxruntime

    net, x, expected = network(name, form)
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own future
        torch.onnx.export(net, (x,), path, dynamo=True, dynamic_shapes=ANY_BATCH, verbose=False)
    onnx.checker.check_model(onnx.load(path))
    assert not OURS.search(path.read_bytes())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name
    assert_equal([torch.from_numpy(out) for out in session.run(None, {feed: x.numpy()})], expected)
    few = session.run(None, {feed: x[:3].numpy()})[0]
    assert_equal(torch.from_numpy(few), [flat(net(x[:3]))[0]])
