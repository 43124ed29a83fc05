"""The recipe for TensorFlow on the page of frameworks: its blocks run, each under its backend."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "frameworks.md"
BLOCK = re.compile(r"^```py\n# KERAS_BACKEND=(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CHECK = """
import numpy
x = numpy.linspace(-1, 1, 12, dtype="float32").reshape(4, 3)
"""
WRITTEN = CHECK + "numpy.save('written.npy', base_answers := keras.ops.convert_to_numpy(model(x)))"
LOADED = (
    CHECK
    + """
import tensorflow
there = numpy.load("written.npy")
assert abs(numpy.asarray(model(x)) - there).max() < 1e-6
program = tensorflow.saved_model.load("saved_model")
served = program.serve(x)
assert abs(numpy.asarray(served) - there).max() < 1e-6
"""
)


def run(backend, code, folder):
    line = f"import os; os.environ['KERAS_BACKEND'] = {backend!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", line], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_the_network_of_one_task_goes_to_tensorflow(tmp_path):
    if not (find_spec("keras") and find_spec("tensorflow")):
        pytest.skip("needs keras and tensorflow")
    (torch_name, writes), (tensorflow_name, loads) = BLOCK.findall(PAGE.read_text())
    assert (torch_name, tensorflow_name) == ("torch", "tensorflow")
    run("torch", writes + WRITTEN, tmp_path)
    run("tensorflow", loads + LOADED, tmp_path)


def test_the_page_shows_both_backends():
    assert [name for name, _ in BLOCK.findall(PAGE.read_text())] == ["torch", "tensorflow"]
