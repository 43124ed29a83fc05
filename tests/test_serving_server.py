"""The server: thousands of customers, each answered as by a network of its own."""

import os
import threading
import time

import pytest
import torch
from torch import nn

from weightloom import (
    DeepSets,
    GeneratedLearner,
    Learner,
    LowRank,
    MLPHyperNetwork,
    Params,
    Support,
    SupportAttention,
    mlp,
    specialise,
)
from weightloom.errors import CheckpointError, ConfigError, DataError, ShapeError
from weightloom.learners.centroid import NearestCentroid
from weightloom.learners.heads import HyperHead
from weightloom.learners.polynomial import RidgePolynomial
from weightloom.learners.probe import LinearProbe
from weightloom.learners.protonet import ProtoNet
from weightloom.serving import MeanStatistics, Server
from weightloom.serving.folder import INDEX


def low_rank(customers=3):
    """A model, and a hypernetwork that writes changes of rank 2, as if it had been trained."""
    model = mlp([4, 16, 16, 3])
    hyper = MLPHyperNetwork(model, condition_dim=5, generate={"2.weight": LowRank(2)}, freeze="*")
    nn.init.normal_(hyper.head.weight, std=0.3)
    server = Server(model, hyper)
    server.update({f"user {number}": torch.randn(5) for number in range(customers)})
    return model, hyper, server


def features():
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))


def points_learner(encoder):
    base = mlp([2, 8, 1])
    hyper = MLPHyperNetwork(base, condition_dim=4)
    nn.init.normal_(hyper.head.weight, std=0.3)
    return GeneratedLearner(base, encoder, hyper)


def one_task(x, y):
    return Support(x[None], y[None], torch.ones(1, len(x), dtype=torch.bool))


LEARNERS = {
    "protonet": lambda: ProtoNet(features()),
    "hypernetwork": lambda: HyperHead(features()),
    "centroid": lambda: NearestCentroid(4),
    "ridge": lambda: RidgePolynomial(2, 1, degree=3),
    "deep sets": lambda: points_learner(DeepSets(2, 1, condition_dim=4)),
    "attention": lambda: points_learner(SupportAttention(2, 1, condition_dim=4)),
    "probe": lambda: LinearProbe(features(), classes=3, steps=5),
}


def examples_for(learner, count, dtype=torch.float64):
    if isinstance(learner, ProtoNet | HyperHead | NearestCentroid | LinearProbe):
        return torch.randn(count, 4, dtype=dtype), torch.arange(count) % 3
    return torch.randn(count, 2, dtype=dtype), torch.randn(count, 1, dtype=dtype)


@pytest.mark.parametrize("kind", LEARNERS)
def test_examples_are_read_as_by_the_learner(kind):
    learner = LEARNERS[kind]().double()
    x, y = examples_for(learner, 12)
    server = Server(learner.base, learner)
    server["ann"] = x, y
    expected = learner.adapt(one_task(x, y))
    for name, value in server["ann"].params.items():
        torch.testing.assert_close(value, expected[name].to(value.dtype), rtol=1e-10, atol=1e-10)
    assert len(server["ann"]) == 12


@pytest.mark.parametrize("kind", LEARNERS)
def test_after_any_additions_and_removals_only_the_examples_that_are_left_count(kind):
    learner = LEARNERS[kind]().double()
    server = Server(learner.base, learner)
    x, y = examples_for(learner, 40)
    there = list(range(12))
    server["ann"] = x[:12], y[:12]
    changes = {"attention": 30, "probe": 6}.get(kind, 1000)
    for change in torch.randint(40, (changes,)).tolist():
        if change in there and len(there) > 5:
            there.remove(change)
            server["ann"].remove(x[change], y[change])
        else:
            there.append(change)
            server["ann"].add(x[change], y[change])
    expected = learner.adapt(one_task(x[there], y[there]))
    for name, value in server["ann"].params.items():
        torch.testing.assert_close(value, expected[name].to(value.dtype), rtol=0, atol=1e-10)
    assert len(server["ann"]) == len(there)


@pytest.mark.parametrize("kind", ["protonet", "hypernetwork", "ridge", "deep sets"])
def test_a_removed_example_leaves_no_bit_behind(kind):
    learner = LEARNERS[kind]()
    server = Server(learner.base, learner)
    x, y = examples_for(learner, 7, torch.float32)
    server["ann"] = x, y
    before = server["ann"].params
    far = 50 * x[0] + 1
    server["ann"].add(far, y[0])
    assert any((value != before[name]).any() for name, value in server["ann"].params.items())
    server["ann"].remove(far, y[0])
    for row in torch.randperm(7).tolist():
        server["ann"].add(x[row], y[row])
    for row in torch.randperm(7).tolist():
        server["ann"].remove(x[row], y[row])
    assert all(torch.equal(value, before[name]) for name, value in server["ann"].params.items())


def test_a_class_without_examples_is_gone():
    learner = ProtoNet(features())
    server = Server(learner.base, learner)
    x, y = torch.randn(4, 4), torch.tensor([0, 0, 1, 2])
    server["ann"] = x, y
    server["ann"].remove(x[3], 2)
    expected = learner.adapt(one_task(x[:3], y[:3]))
    torch.testing.assert_close(dict(server["ann"].params), dict(expected.detach()))
    assert server(["ann"], x[:1]).shape == (1, 2)
    server["bob"] = x, y
    with pytest.raises(ShapeError, match="one shape"):
        server(["ann", "bob"], x[:2])


def test_a_mixed_batch_of_an_adapter_model_equals_every_users_own_network():
    model, _, server = low_rank(5)
    names = [f"user {number}" for number in (3, 0, 3, 4)]
    x = torch.randn(4, 4)
    out = server(names, x)
    for name, row, y in zip(names, x, out, strict=True):
        torch.testing.assert_close(y, server[name].network()(row[None])[0].detach())
    assert out.std(0).max() > 0.01 and not out.requires_grad
    torch.testing.assert_close(out[0], specialise(model, server["user 3"].params)(x)[0].detach())


def test_a_transformer_with_masks_by_name_equals_every_users_own():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=50, intermediate_size=32, **sizes)
    model = transformers.BertModel(config, add_pooling_layer=False)
    hyper = MLPHyperNetwork(
        model, condition_dim=4, generate={"*.query.weight": LowRank(2)}, freeze="*"
    )
    nn.init.normal_(hyper.head.weight, std=0.3)
    server = Server(model, hyper)
    server["ann"], server["bob"] = torch.randn(4), torch.randn(4)
    batch = {"input_ids": torch.randint(50, (3, 7)), "attention_mask": torch.ones(3, 7).long()}
    batch["attention_mask"][1, 4:] = 0
    names = ["ann", "bob", "ann"]
    out = server(names, **batch).last_hidden_state
    for row, name in enumerate(names):
        alone = server[name].network()(
            **{key: value[row : row + 1] for key, value in batch.items()}
        )
        real = batch["attention_mask"][row].bool()
        torch.testing.assert_close(
            out[row][real], alone.last_hidden_state[0][real].detach(), rtol=1e-5, atol=1e-5
        )


def test_the_mean_of_encoded_texts_is_a_condition():
    model = nn.Linear(3, 2)
    learner = MeanStatistics(nn.Linear(6, 4), MLPHyperNetwork(model, condition_dim=4))
    nn.init.normal_(learner.hyper.head.weight)
    server, texts = Server(model, learner), torch.randn(5, 6)
    server["ann"] = texts[:4]
    server["ann"].add(texts[4])
    server["ann"].remove(texts[0])
    expected = learner.hyper(learner.encode(texts[1:]).mean(0, keepdim=True))
    torch.testing.assert_close(dict(server["ann"].params), dict(expected.detach()))


def test_16_threads_of_readers_and_writers_never_see_a_half_written_customer():
    """Each customer's weight is one number everywhere, so an output has equal columns."""
    model = nn.Linear(8, 64, bias=False)

    def write(condition):
        return {"weight": condition[:, None, :1].expand(-1, 64, 8).contiguous()}

    server = Server(model, write)
    server.update({f"user {number}": torch.tensor([1.0]) for number in range(50)})
    names, errors, stop = [f"user {number}" for number in range(50)], [], threading.Event()

    def read():
        try:
            while not stop.is_set():
                out = server(names, torch.ones(50, 8))
                assert torch.equal(out, out[:, :1].expand_as(out))
        except BaseException as error:
            errors.append(error)

    def change(own):
        try:
            for value in range(1, 6):
                server[f"user {own}"] = torch.tensor([float(value)])
                server[f"new {own} {value}"] = torch.tensor([0.0])
                server.pop(f"new {own} {value}")
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=read) for _ in range(8)]
    writers = [threading.Thread(target=change, args=(number,)) for number in range(8)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in readers:
        thread.join()
    assert not errors and len(server) == 50
    assert server(["user 3"], torch.ones(1, 8))[0, 0] == 8 * 5


@pytest.mark.parametrize("kind", LEARNERS)
def test_a_loaded_server_is_equal_to_the_last_bit_and_goes_on_changing(kind, tmp_path):
    learner = LEARNERS[kind]()
    server = Server(learner.base, learner)
    x, y = examples_for(learner, 12, torch.float32)
    server["ann"], server["bob"] = (x[:9], y[:9]), (x, y)
    server["ann"].add(x[9], y[9])
    server.save(tmp_path / "adapters")
    again = Server.load(tmp_path / "adapters", learner.base, learner)
    assert list(again) == ["ann", "bob"]
    for side in (server, again):
        side["ann"].add(x[10], y[10])
        side["ann"].remove(x[0], y[0])
    for name in server:
        found = again[name].params
        assert all(torch.equal(v, found[n]) for n, v in server[name].params.items())


def test_a_customer_removed_during_a_change_stays_removed():
    class Popping(MeanStatistics):
        """Another thread removes the customer while an example is encoded."""

        def features(self, x, y):
            server.pop("ann") if "ann" in server else None
            return super().features(x, y)

    model = nn.Linear(3, 2)
    server = Server(model, Popping(nn.Linear(6, 4), MLPHyperNetwork(model, condition_dim=4)))
    server["ann"] = torch.randn(5, 6)
    with pytest.raises(ConfigError, match="'ann' is none of 0 customers"):
        server["ann"].add(torch.randn(6))
    assert len(server) == 0


def test_a_trunk_that_normalises_by_the_batch_keeps_examples():
    """Its features of one example hang on the others, so they cannot be summed."""
    trunk = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, track_running_stats=False))
    learner = ProtoNet(nn.Sequential(trunk, nn.Linear(6, 3)))
    server = Server(learner.base, learner)
    x, y = torch.randn(8, 4), torch.arange(8) % 2
    server["ann"] = x, y
    server["ann"].remove(x[0], y[0])
    expected = learner.adapt(one_task(x[1:], y[1:]))
    torch.testing.assert_close(dict(server["ann"].params), dict(expected.detach()))


def test_saving_again_replaces_what_was_there_and_a_full_disk_keeps_it(tmp_path, monkeypatch):
    model, hyper, server = low_rank()
    server.save(tmp_path)
    first = sorted(path.name for path in tmp_path.iterdir())
    server["new"] = torch.randn(5)
    fsync, left = os.fsync, [1]

    def full(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        server.save(tmp_path)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == first
    assert len(Server.load(tmp_path, model, hyper)) == 3
    server.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert len(Server.load(tmp_path, model, hyper)) == 4


def test_other_weights_are_refused_when_a_server_is_loaded(tmp_path):
    model, hyper, server = low_rank()
    server.save(tmp_path)
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-6
    with pytest.raises(CheckpointError, match=r"`model\.0\.weight`.* differ"):
        Server.load(tmp_path, model, hyper)
    (tmp_path / INDEX).unlink()
    with pytest.raises(CheckpointError, match="written last"):
        Server.load(tmp_path, model, hyper)


def test_an_index_cannot_name_files_elsewhere(tmp_path):
    _, _, server = low_rank()
    (tmp_path / "mine.txt").write_text("kept")
    server.save(folder := tmp_path / "adapters")
    text = (folder / INDEX).read_text()
    file = next(folder.glob("*.safetensors")).name
    (folder / INDEX).write_text(text.replace(file, "../mine.txt"))
    with pytest.raises(CheckpointError, match="no file of customers"):
        server.save(folder)
    assert (tmp_path / "mine.txt").exists()


def test_inputs_may_be_a_mapping(tmp_path):
    base = mlp([2, 8, 1])

    class Total(Learner):
        """Bias of the last layer: the sum of two inputs."""

        def __init__(self):
            super().__init__()
            self.base = base

        def adapt(self, support):
            total = support.x["a"] + support.x["b"]
            return Params({"2.bias": (total * support.mask[..., None]).sum(1)})

        def predict(self, params, x):
            raise NotImplementedError

    server, a, b = Server(base, Total()), torch.randn(3, 1), torch.randn(3, 1)
    server["ann"] = {"a": a, "b": b}, torch.zeros(3)
    server["ann"].add({"a": a[0], "b": b[0]}, 0.0)
    server["ann"].remove({"a": a[1], "b": b[1]}, torch.tensor(0.0))
    server.save(tmp_path)
    again = Server.load(tmp_path, base, server.learner)
    again["ann"].remove({"a": a[0], "b": b[0]}, torch.tensor(0.0))
    expected = (a + b)[[0, 2]].sum(0)
    torch.testing.assert_close(again["ann"].params["2.bias"][0], expected)


def test_memory_of_removed_customers_is_used_again():
    _, _, server = low_rank(8)
    leaves = server._stacks[0]._leaves
    for number in range(8):
        del server[f"user {number}"]
        server[f"new {number}"] = torch.randn(5)
    assert server._stacks[0]._leaves is leaves and len(leaves[0]) == 8


def test_mistakes_are_named(unchecked):
    _, _, server = low_rank()
    x = torch.randn(2, 4)
    with pytest.raises(ConfigError, match=r"'user 7' is none of 3 customers.*Did you mean `user"):
        server(["user 0", "user 7"], x)
    with pytest.raises(ConfigError, match="Pass a list"):
        server("user 0", x)
    with pytest.raises(ShapeError, match="2 rows"):
        server(["user 0", "user 1"], torch.randn(3, 4))
    with pytest.raises(ShapeError, match="condition"):
        server["ann"] = torch.randn(6)
    with pytest.raises(ConfigError, match="written from a condition"):
        server["user 0"].add(torch.randn(5))
    with pytest.raises(ConfigError, match="Pass a `Learner`"):
        Server(nn.Linear(1, 1), 3)
    assert "ann" not in server and len(server) == 3


def test_mistakes_in_examples_are_named():
    learner = ProtoNet(features())
    server = Server(learner.base, learner)
    x, y = torch.randn(4, 4), torch.tensor([0, 0, 1, 1])
    with pytest.raises(ShapeError, match="no examples"):
        server["ann"] = x[:0], y[:0]
    with pytest.raises(ShapeError, match="equally many"):
        server["ann"] = x, y[:3]
    with pytest.raises(ShapeError, match="cannot read inputs of shape"):
        server["ann"] = torch.randn(4, 5), y
    with pytest.raises(ShapeError, match="reads labels"):
        server["ann"] = x, x
    with pytest.raises(DataError, match="not finite"):
        server["ann"] = x * torch.nan, y
    with pytest.raises(ConfigError, match="Pass a tuple"):
        server["ann"] = [1, 2, 3]
    server["ann"] = x, y
    before = server["ann"].params
    with pytest.raises(ConfigError, match="none of the 4 of `ann`"):
        server["ann"].remove(x[0], 1)
    with pytest.raises(ShapeError, match="cannot read"):
        server["ann"].add(torch.randn(5), 0)
    server["bob"] = x[:1], y[:1]
    with pytest.raises(ConfigError, match=r"pop\('bob'\)"):
        server["bob"].remove(x[0], y[0])
    assert all(torch.equal(value, before[n]) for n, value in server["ann"].params.items())


@pytest.mark.slow
def test_10000_users_and_16_threads_and_2000_examples_a_second(tmp_path):
    learner = HyperHead(nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 5)))
    server = Server(learner.base, learner)
    x, y = torch.randn(10_000, 10, 16), torch.arange(10) % 5
    server.update({f"user {number}": (x[number], y) for number in range(10_000)})
    errors = []

    def ask(seed):
        generator = torch.Generator().manual_seed(seed)
        users = torch.randint(10_000, (40,), generator=generator).tolist()
        rows = torch.randn(40, 16, generator=generator)
        out = server([f"user {number}" for number in users], rows)
        for number, row, answer in zip(users, rows, out, strict=True):
            own = server[f"user {number}"].network()(row[None])[0].detach()
            if not torch.allclose(own, answer, atol=1e-5):
                errors.append(number)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    start = time.process_time()
    for number in range(2000):
        server[f"user {number % 100}"].add(x[number, 0], 0)
    server.params([f"user {number}" for number in range(100)])
    assert time.process_time() - start < 2
    server.save(tmp_path)
    again = Server.load(tmp_path, learner.base, learner)
    every = list(server)
    loaded = again.params(every)
    assert all(torch.equal(value, loaded[n]) for n, value in server.params(every).items())
