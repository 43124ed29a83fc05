"""A fault at every write: the run is killed there, or the call fails; it goes on to the same end, bit for bit."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="needs fork, and /proc to name open files"
)
HARNESS = Path(__file__).with_name("faults.py")
NEEDS = {"rl": "sb3_contrib", "ppo": "sb3_contrib", "two": "lightning_fabric"}


def spoiled(case, folder, *faults):
    if case in NEEDS and find_spec(NEEDS[case]) is None:
        pytest.skip(f"{NEEDS[case]} is not installed")
    ran = subprocess.run(
        [sys.executable, HARNESS, case, folder, *faults], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("case", "faults"),
    [
        ("fewshot", ["kill:8", "ENOSPC:15", "kill:23", "EIO:30"]),
        ("rl", ["kill:4", "EACCES:10", "kill:40"]),
    ],
)
def test_a_run_goes_on_behind_a_few_faults(case, faults, tmp_path):
    found = spoiled(case, tmp_path, "bare", *faults)
    assert found["faults"] == len(faults) and found["wrong"] == []


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("case", "how", "stride"),
    [("fewshot", "whole", 1), ("ppo", "bare", 1), ("two", "bare", 1), ("seeds", "whole", 5)],
)
def test_a_run_goes_on_behind_a_fault_at_every_write(case, how, stride, tmp_path):
    found = spoiled(case, tmp_path, how, f"every:{stride}")
    operations = [operation.split() for operation in found["operations"]]
    assert {place for _, place in operations} >= {*found["files"]}, (
        "written behind the back of the harness"
    )
    assert {name for name, _ in operations} >= {
        "open",
        "write",
        "fsync",
        "mkdir",
        "replace",
        "flock",
    }
    assert found["faults"] == 2 * len(operations[::stride]) and found["wrong"] == []
