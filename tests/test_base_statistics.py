"""BatchNorm in train mode: whose statistics normalise, and whose are kept."""

import re

import pytest
import torch
from torch import nn

from cases import batch_norm, resnet
from references import copies
from weightloom.base import apply_per_task, choose_engine, task_buffers
from weightloom.errors import BatchingError, ConfigError, ShapeError

every_engine = pytest.mark.parametrize("engine", ["auto", "vmap", "loop"])
every_net = pytest.mark.parametrize(
    ("build", "event"), [(batch_norm, (5,)), (resnet, (2, 5, 5))], ids=["mlp", "resnet"]
)


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def made(build, event, tasks=3):
    net = build().double()
    params = {
        name: torch.randn(tasks, *value.shape).double() for name, value in net.named_parameters()
    }
    return net, params, torch.randn(tasks, 4, *event).double()


def buffers_of(net):
    return {name: value.clone() for name, value in net.named_buffers()}


@every_engine
@every_net
def test_statistics_of_each_task_are_those_of_a_fresh_copy_and_are_not_kept(build, event, engine):
    net, params, x = made(build, event)
    before = buffers_of(net)
    outputs = apply_per_task(net, params, x, statistics="task", engine=engine)
    close(outputs, torch.stack([one(its) for one, its in zip(copies(net, params), x, strict=True)]))
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())


@pytest.mark.parametrize("engine", ["auto", "aligned"])
def test_shared_statistics_are_those_of_one_big_batch_and_are_kept_once(engine):
    net, params, x = made(batch_norm, (5,))
    norm = net[1]
    outputs = apply_per_task(net, params, x, statistics="shared", engine=engine)
    hidden = x @ params["0.weight"].mT + params["0.bias"][:, None]
    mean, var = hidden.mean((0, 1)), hidden.var((0, 1), unbiased=False)
    normal = (hidden - mean) / (var + norm.eps).sqrt()
    active = (normal * params["1.weight"][:, None] + params["1.bias"][:, None]).relu()
    close(outputs, active @ params["3.weight"].mT + params["3.bias"][:, None])
    assert norm.num_batches_tracked == 1
    close(norm.running_mean, 0.1 * mean)
    close(norm.running_var, 0.9 + 0.1 * hidden.flatten(0, 1).var(0))


@every_engine
@every_net
def test_buffers_of_each_task_are_those_of_a_copy_that_runs_on_its_own(build, event, engine):
    net, params, x = made(build, event)
    before, buffers, nets = buffers_of(net), task_buffers(net, 3), copies(net, params)
    for _ in range(2):
        x = torch.randn_like(x)
        outputs = apply_per_task(net, params, x, buffers=buffers, engine=engine)
        close(outputs, torch.stack([one(its) for one, its in zip(nets, x, strict=True)]))
        for task, one in enumerate(nets):
            close({name: value[task] for name, value in buffers.items()}, buffers_of(one))
    for one in (net, *nets):
        one.eval()
    outputs = apply_per_task(net, params, x, buffers=buffers, engine=engine)
    close(outputs, torch.stack([one(its) for one, its in zip(nets, x, strict=True)]))
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())


@pytest.mark.parametrize("chunk_size", [1, 2])
@every_engine
def test_buffers_are_updated_some_tasks_at_a_time_too(engine, chunk_size):
    net, params, x = made(batch_norm, (5,))
    whole, parts = task_buffers(net, 3), task_buffers(net, 3)
    close(
        apply_per_task(net, params, x, buffers=parts, engine=engine, chunk_size=chunk_size),
        apply_per_task(net, params, x, buffers=whole, engine="loop"),
    )
    close(parts, whole)


def test_with_nothing_that_writes_statistics_change_nothing():
    net, params, x = made(lambda: batch_norm().eval(), (5,))
    expected = apply_per_task(net, params, x)
    for statistics in ("task", "shared"):
        close(apply_per_task(net, params, x, statistics=statistics), expected)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_shared_statistics_apart_are_refused_and_both_advices_work(engine):
    net, params, x = made(batch_norm, (5,))
    with pytest.raises(
        ConfigError, match=rf"does not work with `engine='{engine}'`.*Pass `engine=\"aligned\"`"
    ):
        apply_per_task(net, params, x, statistics="shared", engine=engine)
    for engine in ("aligned", "auto"):
        assert apply_per_task(net, params, x, statistics="shared", engine=engine).shape == (3, 4, 2)


def test_shared_statistics_in_pieces_are_refused_and_nothing_is_counted():
    net, params, x = made(batch_norm, (5,))
    counted = int(net[1].num_batches_tracked)
    with pytest.raises(
        ConfigError, match=r"does not work with `chunk_size=2` for 3 tasks.*Leave `chunk_size` out"
    ):
        apply_per_task(net, params, x, statistics="shared", chunk_size=2)
    assert int(net[1].num_batches_tracked) == counted
    assert apply_per_task(net, params, x, statistics="shared", chunk_size=3).shape == (3, 4, 2)


def test_buffers_that_do_not_fit_are_refused_and_the_advice_works():
    net, params, x = made(batch_norm, (5,))
    with pytest.raises(
        ConfigError,
        match=r"`buffers` names '1\.running_men', which Sequential does not have.*mean `1\.r",
    ):
        apply_per_task(net, params, x, buffers={"1.running_men": torch.zeros(3, 6)})
    with pytest.raises(
        ShapeError,
        match=r"has shape \(2, 6\); for 3 tasks it is \(3, 6\).*`task_buffers\(base, 3\)`",
    ):
        apply_per_task(net, params, x, buffers=task_buffers(net, 2))
    with pytest.raises(BatchingError, match=r"`1` is a `BatchNorm1d` in train mode"):
        choose_engine(net, params, x)
    with pytest.raises(
        BatchingError,
        match=r"Buffers per task .*do not work with the aligned engine.*Pass `engine=\"vmap\"`",
    ):
        apply_per_task(net, params, x, buffers=task_buffers(net, 3), engine="aligned")
    assert apply_per_task(net, params, x, buffers=task_buffers(net, 3), engine="vmap").shape == (
        3,
        4,
        2,
    )


def test_only_norms_that_keep_statistics_have_buffers_of_tasks():
    assert (
        task_buffers(
            nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.GroupNorm(2, 4)), 3
        )
        == {}
    )
    buffers = task_buffers(resnet(), 3)
    assert {name.rpartition(".")[2] for name in buffers} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }


def with_group_norm(net):
    net[1] = nn.GroupNorm(2, 6)
    return net


@pytest.mark.parametrize(
    ("advice", "follow"),
    [
        ("nn.GroupNorm", with_group_norm),
        ("track_running_stats=False", lambda net: batch_norm(track_running_stats=False)),
        ("base.eval()", lambda net: net.eval()),
    ],
)
def test_batch_norm_in_train_mode_is_refused_and_each_advice_works(advice, follow):
    net, params, x = batch_norm(), {"0.bias": torch.randn(3, 6)}, torch.randn(3, 4, 5)
    with pytest.raises(
        BatchingError, match=r"`1` is a `BatchNorm1d` in train mode.*say which is meant"
    ) as caught:
        apply_per_task(net, params, x)
    assert advice in str(caught.value)
    assert apply_per_task(follow(net), params, x).isfinite().all()


def test_batch_norm_in_train_mode_runs_in_a_loop_as_the_message_says():
    net, params, x = batch_norm(), {"0.bias": torch.randn(3, 6)}, torch.randn(3, 4, 5)
    with pytest.raises(BatchingError, match=re.escape('pass `engine="loop"`')):
        apply_per_task(net, params, x)
    assert apply_per_task(net, params, x, engine="loop").shape == (3, 4, 2)


def test_instance_norm_with_statistics_in_train_mode_is_refused_too():
    net = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
    with pytest.raises(BatchingError, match="`base` is a `InstanceNorm1d` in train mode"):
        apply_per_task(net, {"bias": torch.randn(3, 2)}, torch.randn(3, 4, 2, 6))
    assert apply_per_task(
        net.eval(), {"bias": torch.randn(3, 2)}, torch.randn(3, 4, 2, 6)
    ).shape == (3, 4, 2, 6)


@every_engine
@every_net
def test_inference_mode_changes_no_number(build, event, engine):
    net, params, x = made(build, event)
    net.eval()
    wanted = apply_per_task(net, params, x, engine=engine)
    with torch.inference_mode():
        inside = {name: value.clone() for name, value in params.items()}  # inference tensors
        close(apply_per_task(net, inside, x.clone(), engine=engine), wanted.detach())
