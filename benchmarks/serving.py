"""Speed and memory of `Server` and of a stream of customers, on one core.

    python benchmarks/serving.py --record benchmarks/records/serving.json

Times are processor seconds of this process; the two sides of a ratio alternate.
"""

import argparse
import resource
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from weightloom import CustomerWriter, Server
from weightloom import write_customers as stream
from weightloom.learners.heads import HyperHead
from weightloom.learners.learner import Learner, Support
from weightloom.learners.protonet import ProtoNet
from weightloom.networks import ConvNet
from weightloom.runs.record import environment, write_record

BATCH = 256
Customer = tuple[str, tuple[Tensor, Tensor]]


def spent(call: Callable[[], object]) -> float:
    """Return the processor seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def changes_per_second(learner: Learner, users: int = 1000) -> tuple[float, float]:
    """Return examples added, and removed, in a second; 64 numbers an example, ten classes."""
    server = Server(learner.base, learner)
    x, y = torch.randn(30, 64), torch.arange(30) % 10
    names = [f"user {number}" for number in range(users)]
    server.update(dict.fromkeys(names, (x, y)))
    more = torch.randn(users, 64)

    def add() -> None:
        for name, example in zip(names, more, strict=True):
            server[name].add(example, 3)

    def remove() -> None:
        for name, example in zip(names, more, strict=True):
            server[name].remove(example, 3)

    return users / spent(add), users / spent(remove)


def shares_of_speed(learner: Learner, event: tuple[int, ...], customers: int = 2048) -> float:
    """Return the speed of a stream as a share of the bare learner's on the same batches."""
    data = list(made(customers, event))
    batches = [
        Support(
            torch.stack([x for _, (x, _) in data[first : first + BATCH]]),
            torch.stack([y for _, (_, y) in data[first : first + BATCH]]),
            torch.ones(BATCH, len(data[0][1][1]), dtype=torch.bool),
        )
        for first in range(0, customers, BATCH)
    ]

    def bare() -> None:
        with torch.no_grad():
            for batch in batches:
                learner.adapt(batch)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            stream(data, CustomerWriter(learner.base, learner, folder), batch=BATCH, quiet=True)

    bare(), ours()
    return median(spent(bare) / spent(ours) for _ in range(5))


def made(customers: int, event: tuple[int, ...]) -> Iterator[Customer]:
    """Draw customers with 15 examples of five classes."""
    for number in range(customers):
        yield f"user {number}", (torch.rand(15, *event), torch.arange(15) % 5)


def memory_growth(learner: Learner, event: tuple[int, ...]) -> float:
    """Return the peak memory after 50,000 customers over that after 5,000."""
    peaks = []
    for customers in (5_000, 50_000):
        with tempfile.TemporaryDirectory() as folder:
            stream(
                made(customers, event), CustomerWriter(learner.base, learner, folder), quiet=True
            )
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peaks[1] / peaks[0]


def main(record: Path) -> None:
    """Measure all rows and write the record."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    small = ProtoNet(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))).eval()
    added = dict[str, float]()
    for learner in (ProtoNet(trunk).eval(), HyperHead(trunk).eval()):
        name = type(learner).__name__
        added[f"{name}: examples added a second"], added[f"{name}: removed"] = changes_per_second(
            learner
        )
    measured = {
        **added,
        "stream, convolutional encoder: share of the bare speed": shares_of_speed(
            HyperHead(ConvNet(1, 28, 5)).eval(), (1, 28, 28), 1024
        ),
        "stream, one hidden layer: share of the bare speed": shares_of_speed(small, (8,)),
        "stream: peak memory, 50,000 customers over 5,000": memory_growth(small, (8,)),
    }
    for name, value in measured.items():
        print(f"{name}: {value:.3g}")
    scores = [
        {
            "method": "weightloom",
            "setting": name,
            "name": "ratio" if "share" in name or "over" in name else "per second",
            "better": "lower" if "memory" in name else "higher",
            "mean": value,
            "ci95": None,
            "tasks": 1,
        }
        for name, value in measured.items()
    ]
    write_record(
        record,
        {
            "command": shlex.join(["python", "benchmarks/serving.py", *sys.argv[1:]]),
            "config": {},
            "scores": scores,
            "cost": environment(),
            "notes": "Times are processor seconds of one thread.",
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, required=True)
    main(parser.parse_args().record)
