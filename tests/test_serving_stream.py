"""Any number of customers, written in batches: killed, resumed and in shards, each exactly once."""

import json
import os
import signal

import pytest
import torch
from torch import nn

from weightloom import DeepSets, Full, GeneratedLearner, LowRank, MLPHyperNetwork, Support, mlp
from weightloom.errors import CheckpointError, ConfigError, DataError
from weightloom.learners.heads import HyperHead
from weightloom.serving import CustomerWriter, Server, write_customers
from weightloom.serving.folder import INDEX


def learner_of_points():
    model = mlp([2, 8, 8, 1])
    hyper = MLPHyperNetwork(
        model, condition_dim=4, generate={"2.weight": LowRank(2), "4.*": Full()}
    )
    nn.init.normal_(hyper.head.weight, std=0.3)
    return GeneratedLearner(model, DeepSets(2, 1, condition_dim=4), hyper)


def points(customers):
    """Customers with 3 to 7 points each."""
    generator = torch.Generator().manual_seed(1)
    for number in range(customers):
        count = 3 + number % 5
        x, y = (torch.randn(count, width, generator=generator) for width in (2, 1))
        yield f"user {number}", (x, y)


def check_equal(folder, learner, customers, tolerance=1e-6):
    """Every customer is there once, and equal to the learner's own answer to it alone."""
    server = Server.load(folder, learner.base, learner)
    names = [name for name, _ in customers]
    assert list(server) == names
    found = server.params(names)
    for number, (_, (x, y)) in enumerate(customers):
        one = Support(x[None], y[None], torch.ones(1, len(x), dtype=torch.bool))
        with torch.no_grad():
            expected = learner.adapt(one)
        its = found.take(number)
        for name, value in expected.items():
            its_value, value = (getattr(v, "dense", lambda v=v: v)() for v in (its[name], value))
            torch.testing.assert_close(its_value, value, rtol=0, atol=tolerance)


def bits(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def test_every_customer_is_written_once_in_batches_of_one_size(tmp_path):
    learner, customers = learner_of_points(), list(points(23))
    most = []

    def read(items):
        most.append(len(items))
        return items

    write = CustomerWriter(learner.base, learner, tmp_path / "all", read)
    done = write_customers(iter(customers), write, batch=5)  # an iterator: nothing is kept
    assert (done.customers, done.files, done.found, done.is_complete) == (23, 5, 0, True)
    assert most == [5, 5, 5, 5, 3]
    check_equal(tmp_path / "all", learner, customers)
    before = bits(tmp_path / "all")
    assert write_customers(customers, write, batch=5, quiet=True).found == 5
    assert bits(tmp_path / "all") == before


def test_killed_ten_times_and_resumed_in_two_shards(tmp_path):
    """Each process is killed in the middle of its second file; the other shard goes on then."""
    learner, customers = learner_of_points(), list(points(60))
    folder = tmp_path / "killed"

    def job(shard, kill_at):
        """Run a job in a process of its own; return True if it was killed."""
        child = os.fork()
        if child:
            return os.WIFSIGNALED(os.waitpid(child, 0)[1])
        fsync, left = os.fsync, [kill_at]

        def killing(descriptor):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        os.fsync = killing
        try:
            write = CustomerWriter(learner.base, learner, folder)
            write_customers(customers, write, batch=4, shard=(shard, 2), quiet=True)
        finally:
            os._exit(0)

    assert all(job(1 + number % 2, 2) for number in range(10))
    with pytest.raises(CheckpointError, match="written last"):
        Server.load(folder, learner.base, learner)
    assert len(list(folder.glob(".*.tmp"))) > 0
    assert not job(1, 100) and not job(2, 100)
    assert not list(folder.glob(".*.tmp"))
    check_equal(folder, learner, customers)
    write = CustomerWriter(learner.base, learner, tmp_path / "whole")
    write_customers(customers, write, batch=4, quiet=True)
    assert (tmp_path / "whole" / INDEX).read_text() == (folder / INDEX).read_text()
    a, b = (Server.load(path, learner.base, learner) for path in (folder, tmp_path / "whole"))
    theirs = b.params(a)
    for name, value in a.params(a).items():
        parts = getattr(value, "factors", {"value": value})
        others = getattr(theirs[name], "factors", {"value": theirs[name]})
        assert all(torch.equal(its, others[part]) for part, its in parts.items())


def test_only_changed_batches_are_written_again(tmp_path):
    learner, customers = learner_of_points(), list(points(20))
    write = CustomerWriter(learner.base, learner, tmp_path)
    write_customers(customers, write, batch=5, quiet=True)
    name, (x, y) = customers[7]
    customers[7] = name, (x + 1, y)
    done = write_customers(customers, write, batch=5, quiet=True)
    assert (done.files, done.found) == (1, 3)
    check_equal(tmp_path, learner, customers)
    with torch.no_grad():
        learner.hyper.head.weight[0] += 0.01
    again = CustomerWriter(learner.base, learner, tmp_path)
    assert write_customers(customers, again, batch=5, quiet=True).files == 4
    check_equal(tmp_path, learner, customers)


def test_customers_with_heads_of_different_sizes_share_a_batch(tmp_path):
    learner = HyperHead(nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 3)))
    customers = [
        (f"user {number}", (torch.randn(6, 2), torch.arange(6) % (2 + number % 2)))
        for number in range(6)
    ]
    write = CustomerWriter(learner.base, learner, tmp_path)
    write_customers(customers, write, quiet=True)
    server = Server.load(tmp_path, learner.base, learner)
    for name, (x, y) in customers:
        one = Support(x[None], y[None], torch.ones(1, 6, dtype=torch.bool))
        expected = learner.adapt(one)
        torch.testing.assert_close(
            dict(server[name].params), dict(expected.detach()), rtol=0, atol=1e-6
        )


def test_a_full_disk_leaves_no_half_written_file(tmp_path, monkeypatch):
    learner, customers = learner_of_points(), list(points(8))
    write = CustomerWriter(learner.base, learner, tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_customers(customers, write, batch=2, quiet=True)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
    assert write_customers(customers, write, batch=2, quiet=True).is_complete
    check_equal(tmp_path, learner, customers)


def test_mistakes_are_named(tmp_path):
    learner, customers = learner_of_points(), list(points(4))
    write = CustomerWriter(learner.base, learner, tmp_path)
    with pytest.raises(DataError, match="'user 0' is there twice"):
        write([customers[0], customers[0]])
    with pytest.raises(ConfigError, match="`batch=0`"):
        write_customers(customers, write, batch=0)
    with pytest.raises(ConfigError, match="`shard=3/2`"):
        write_customers(customers, write, shard=(3, 2))
    write_customers([*customers, *customers], write, batch=4, quiet=True)
    with pytest.raises(ConfigError, match="'user 0' twice"):
        Server.load(tmp_path, learner.base, learner)


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_ray_with_two_actors_writes_every_customer_once(tmp_path):
    """The recipe of docs/how-to/serve-customers.md."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    torch.save(learner := learner_of_points(), tmp_path / "learner.pt")
    lines = [json.dumps({"name": n, "x": x.tolist(), "y": y.tolist()}) for n, (x, y) in points(30)]
    (tmp_path / "customers.jsonl").write_text("\n".join(lines) + "\n")

    class Write:
        def __init__(self):
            learner = torch.load(tmp_path / "learner.pt", weights_only=False)
            self.write = CustomerWriter(learner.base, learner, tmp_path / "adapters", self.read)

        @staticmethod
        def read(lines):
            held = [json.loads(line) for line in lines]
            return [(its["name"], (torch.tensor(its["x"]), torch.tensor(its["y"]))) for its in held]

        def __call__(self, batch):
            return {"file": [self.write(list(batch["text"]))]}

    ray.init(num_cpus=3, include_dashboard=False)
    try:
        data = ray.data.read_text(str(tmp_path / "customers.jsonl"))
        files = data.map_batches(Write, batch_size=8, concurrency=2).take_all()
    finally:
        ray.shutdown()
    writer = CustomerWriter(learner.base, learner, tmp_path / "adapters")
    writer.finish([row["file"] for row in files])
    by_name = dict(points(30))
    names = list(Server.load(tmp_path / "adapters", learner.base, learner))
    assert sorted(names) == sorted(by_name)
    check_equal(tmp_path / "adapters", learner, [(name, by_name[name]) for name in names])
