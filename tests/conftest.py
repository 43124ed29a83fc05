"""Every test runs on one thread, with the shape annotations of `weightloom` and `benchmarks` checked as it runs."""

import logging
import random
import sys
from unittest.mock import patch

import jaxtyping
import pytest
import torch
from hypothesis import settings

assert not any(name.startswith("weightloom.") for name in sys.modules), (
    "imported before its annotations could be checked"
)
with patch(
    "random.getrandbits", random.Random(0).getrandbits
):  # what checks draw is not drawn from Python's own source
    import beartype  # noqa: F401
jaxtyping.install_import_hook(["weightloom", "benchmarks"], "beartype.beartype")
torch.set_num_threads(1)
from weightloom.datasets import find_file  # noqa: E402

# Without a handler at the root, Fabric binds one to the stream that pytest captures at that moment,
# and closes later.
logging.getLogger().addHandler(logging.NullHandler())
settings.register_profile("house", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)


@pytest.fixture
def unchecked():
    """Annotations are not checked, as for users: what they mistake meets our own message."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def plays(tmp_path_factory):
    """Sentences of random words, in place of Shakespeare's plays where these are not installed."""
    if find_file("tiny_shakespeare", "input.txt"):
        yield
        return
    chance, patch_of_data = random.Random(0), pytest.MonkeyPatch()
    words = ["".join(chance.choices("aeionrstldhmuwy", k=chance.randint(2, 8))) for _ in range(400)]
    lines = [" ".join(chance.choices(words, k=8)).capitalize() + "." for _ in range(3000)]
    folder = tmp_path_factory.mktemp("data") / "tiny_shakespeare"
    folder.mkdir()
    (folder / "input.txt").write_text("\n".join(lines))
    patch_of_data.setenv("WEIGHTLOOM_DATA", str(folder.parent))
    yield
    patch_of_data.undo()
