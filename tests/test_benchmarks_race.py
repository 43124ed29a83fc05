import gc
import json
import time
from pathlib import Path

import pytest
import torch

from benchmarks.race import peers as runner
from benchmarks.race.__main__ import main
from benchmarks.race.config import PEERS, PeersConfig
from benchmarks.race.peers import NEEDS, bars, prepare, print_peers, run_peers
from benchmarks.race.peers_worker import BUILD, check, run_workload
from benchmarks.race.timing import alternate, clock_for, clock_words, peak_memory_bytes, ratio
from benchmarks.race.workloads import (
    CONDITION_DIM,
    Contender,
    cut,
    make_workload,
    ours,
    plain_torch,
    run_loop,
    run_vmap,
)
from weightloom import MLPHyperNetwork, apply_per_task
from weightloom.errors import ConfigError

QUICK = {"tasks": 3, "rounds": 2, "repeats": 2, "warmup": 1, "threads": 1, "peers": []}


def test_contenders_take_turns_in_both_directions_behind_one_that_warms_the_caches():
    calls = []
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = alternate(contenders, rounds=4, warmup=2)
    assert "".join(calls) == "aabbcc" + "c" + "abc" + "b" + "acb" + "b" + "cab" + "a" + "cba"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 4, "b": 4, "c": 4}


def test_each_call_is_timed_alone_by_the_clock():
    now = [0.0]

    def work(seconds):
        now[0] += seconds

    def wait():
        now[0] += (
            0.5  # the device's last work: before the start it is the neighbour's, before the end one's own
        )

    contenders = {"quick": lambda: work(1.0), "slow": lambda: work(3.0)}
    times = alternate(contenders, rounds=3, warmup=1, clock=lambda: now[0], synchronise=wait)
    assert times == {"quick": [1.5] * 3, "slow": [3.5] * 3}


def test_one_thread_is_timed_by_what_it_did_and_several_by_the_wall():
    assert clock_for(threads=1) is time.process_time and "processor time" in clock_words(threads=1)
    assert clock_for(threads=2) is time.perf_counter and "wall clock" in clock_words(threads=2)


def test_no_garbage_is_collected_while_timing_and_the_switch_is_put_back():
    seen = []
    alternate({"only": lambda: seen.append(gc.isenabled())}, rounds=2, warmup=1)
    assert seen == [True, *[False] * 4] and gc.isenabled()

    def fails():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        alternate({"only": fails}, warmup=0)
    assert gc.isenabled()


def test_nothing_to_time_is_refused():
    with pytest.raises(ConfigError, match="0 contenders for 20 rounds"):
        alternate({})
    with pytest.raises(ConfigError, match="1 contenders for 0 rounds"):
        alternate({"only": int}, rounds=0)


def test_a_ratio_is_of_medians_and_its_spread_of_pairs():
    times = {"a": [1.0, 2.0, 3.0, 4.0, 100.0], "b": [1.0] * 5}
    assert ratio(times, of="a", against="b") == {"median": 3.0, "low": 2.0, "high": 4.0}
    assert ratio(times, of="b", against="a")["median"] == pytest.approx(1 / 3)
    assert ratio({"a": [2.0], "b": [4.0]}, of="a", against="b") == {
        "median": 0.5,
        "low": 0.5,
        "high": 0.5,
    }


def test_a_load_that_falls_on_both_leaves_the_spread_alone():
    load = [1.0, 5.0, 2.0, 9.0]
    times = {"a": [3 * x for x in load], "b": load}
    assert ratio(times, of="a", against="b") == {"median": 3.0, "low": 3.0, "high": 3.0}


def test_peak_memory_counts_what_autograd_keeps():
    kept = torch.zeros(1000, requires_grad=True)
    assert peak_memory_bytes(lambda: torch.zeros(1000)) == 4000
    assert (
        peak_memory_bytes(lambda: kept.exp().exp().exp()) == 12_000
    )  # exp keeps its result for backward
    assert peak_memory_bytes(lambda: kept.detach().exp().exp().exp()) == 8000


def test_peak_memory_is_the_same_whatever_ran_before():
    """A step replaces its gradients: those of the step before are let go, and must not be counted twice or not."""
    net, x = torch.nn.Linear(100, 50, bias=False), torch.randn(10, 100)

    def step():
        net.zero_grad(set_to_none=True)
        net(x).sum().backward()

    first = peak_memory_bytes(step)
    step()
    assert first == peak_memory_bytes(step) == peak_memory_bytes(step, warmup=3)
    assert 4 * 100 * 50 <= first < 4 * (2 * 100 * 50)


@pytest.mark.parametrize(("name", "size"), [("mlp", 4353), ("cnn", 3818)])
def test_workloads_are_those_of_the_survey(name, size):
    workload = make_workload(name)
    assert sum(p.numel() for p in workload.base.parameters()) == size
    assert workload.condition.shape == (32, 16)
    assert workload.x.shape == {"mlp": (32, 16, 1), "cnn": (32, 8, 1, 16, 16)}[name]
    assert torch.equal(workload.x, make_workload(name).x)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_all_ways_to_run_the_same_parameters_agree(name):
    """The race is fair only if everybody computes the same numbers, and the same gradients."""
    workload = make_workload(name, tasks=5)
    base, x = workload.base.double(), workload.x.double()
    hyper = MLPHyperNetwork(base, CONDITION_DIM, hidden=(8,)).double()
    for own in hyper.parameters():
        torch.nn.init.normal_(own, std=0.3)
    params = {
        name: v.detach().requires_grad_() for name, v in hyper(workload.condition.double()).items()
    }
    ways = {
        "loop": run_loop(base, params, x),
        "vmap": run_vmap(base, params, x),
        "ours": apply_per_task(base, params, x),
        "by hand": workload.by_hand(params, x),
    }
    expected = torch.autograd.grad(
        ways["loop"].square().sum(), list(params.values()), retain_graph=True
    )
    for way, outputs in ways.items():
        torch.testing.assert_close(outputs, ways["loop"], rtol=1e-10, atol=1e-10, msg=way)
        gradients = torch.autograd.grad(
            outputs.square().sum(), list(params.values()), retain_graph=True
        )
        torch.testing.assert_close(gradients, expected, rtol=1e-9, atol=1e-9, msg=way)


def test_cutting_keeps_every_number_in_order():
    flat = torch.arange(14.0).view(2, 7)
    params = cut(flat, {"weight": (2, 3), "bias": (1,)})
    assert params["weight"].shape == (2, 2, 3) and params["bias"].shape == (2, 1)
    assert torch.equal(torch.cat([value.flatten(1) for value in params.values()], dim=1), flat)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_every_contender_of_this_house_does_the_whole_step(name):
    workload = make_workload(name, tasks=3)
    for contender in [ours(workload), *plain_torch(workload)]:
        check(contender, workload)
        first = contender.step(workload)
        assert torch.equal(first, contender.step(workload)), "a step leaves nothing behind"


def test_a_contender_that_skips_the_work_is_refused():
    workload = make_workload("mlp", tasks=3)
    net = torch.nn.Linear(1, 1)
    lazy = Contender("lazy", "documented", "", net, lambda: net(workload.x[0]))
    with pytest.raises(RuntimeError, match=r"of shape \(3, 16, 1\) but \(16, 1\)"):
        check(lazy, workload)
    deaf = Contender("deaf", "documented", "", net, lambda: workload.x.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="no finite gradient"):
        check(deaf, workload)


def test_a_peer_that_fails_keeps_its_row_and_the_others_run(monkeypatch, capsys):
    def broken(workload):
        raise AttributeError("gone\nwith a long tale")

    def bad_step(workload):
        return [Contender("late", "documented", "", torch.nn.Linear(1, 1), lambda: 1 / 0)]

    monkeypatch.setitem(BUILD, "hyperlight", broken)
    monkeypatch.setitem(BUILD, "polyweave", bad_step)
    rows = run_workload("mlp", QUICK | {"peers": ["hyperlight", "polyweave"]})
    assert [row["contender"] for row in rows[:3]] == [
        "torch, loop",
        "torch, vmap",
        "torch, by hand",
    ]
    assert all(
        row["ms"] > 0 and row["ours_ms"] > 0 and len(row["ratio"]["repeats"]) == 2
        for row in rows[:3]
    )
    assert rows[3]["error"] == "AttributeError: gone"
    assert rows[4]["error"] == "ZeroDivisionError: division by zero"
    assert "mlp: late: ZeroDivisionError" in capsys.readouterr().err


def row(contender, way, median):
    return {"workload": "mlp", "contender": contender, "way": way, "ratio": {"median": median}}


def test_the_closest_rival_of_each_kind_decides():
    rows = [
        row("torch, by hand", "plain torch", 0.5),
        row("a", "documented", 2.9),
        row("b", "documented", 9.0),
        row("a, vmap", "undocumented", 1.4),
        row("c, README's vmap", "recipe", 1.2),
        {"workload": "mlp", "contender": "d", "way": "documented", "error": "ImportError: no"},
    ]
    first, second = bars(rows)
    assert (first["closest"], first["value"], first["holds"]) == ("a", 2.9, False)
    assert (second["closest"], second["value"], second["holds"]) == ("c, README's vmap", 1.2, True)


@pytest.fixture
def environment_at_hand(tmp_path, monkeypatch):
    """An environment that exists, sees nothing, and is neither made nor asked."""
    python = tmp_path / "env" / ("Scripts/python.exe" if runner.os.name == "nt" else "bin/python")
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setattr(runner, "_borrow", lambda python: None)
    monkeypatch.setattr(
        runner, "_installed", lambda python: {"hyperlight==0.0.5", "hyperlight", "matplotlib"}
    )
    return tmp_path / "env"


def test_what_cannot_be_installed_is_named_and_the_rest_goes_on(environment_at_hand, capsys):
    asked = []

    def offline(python, arguments):
        asked.append(arguments)
        return "no route to the index" if arguments[-1].startswith("hyper-nn") else None

    python, missing = prepare(PeersConfig(env=environment_at_hand), pip=offline)
    assert python.is_relative_to(environment_at_hand)
    assert missing == {"hyper-nn": "hyper-nn==0.2.2 could not be installed: no route to the index"}
    assert ["--no-deps", "hypnettorch==0.0.4"] in asked and [
        "--no-deps",
        "polyweave==0.2.0",
    ] in asked
    assert ["--no-deps", "peft==0.21.2"] in asked and ["--no-deps", "accelerate==1.15.0"] in asked
    assert not [words for words in asked if "hyperlight" in words[-1]], "it is there already"
    assert not [words for words in asked if "matplotlib" in words[-1]], (
        "any version of a dependency will do"
    )
    assert "going on without hyper-nn" in capsys.readouterr().err


def test_torch_is_never_installed_again():
    assert set(NEEDS) == set(PEERS) == set(BUILD) | {"peft"}
    names = {requirement.split("==")[0] for needs in NEEDS.values() for requirement in needs}
    assert names.isdisjoint({"torch", "torchvision", "weightloom", "numpy"})
    assert all("==" in requirement for needs in NEEDS.values() for requirement in needs)


def test_a_run_prints_and_records_failures_too(environment_at_hand, tmp_path, monkeypatch, capsys):
    def raced(python, config, peers):
        assert peers == ["hyperlight"]
        full = row("hyperlight", "documented", 4.0) | {"ms": 8.0, "ours_ms": 2.0, "how": "…"}
        full["ratio"] = {"median": 4.0, "low": 3.5, "high": 4.5, "repeats": [4.0]}
        return {"rows": [full], "versions": {"torch": "2.13.0"}, "cost": {"device": "cpu"}}

    monkeypatch.setattr(runner, "_race", raced)
    path = tmp_path / "peers.json"
    asked = PeersConfig(
        env=environment_at_hand,
        peers=("hyperlight", "polyweave"),
        workloads=("mlp",),
        install=False,
        record=path,
    )
    record = run_peers(asked, command="python -m benchmarks.race peers --no-install")
    assert json.loads(path.read_text()) == record
    assert [(score["method"], score["mean"]) for score in record["scores"]] == [
        ("weightloom", 1.0),
        ("hyperlight", 4.0),
    ]
    assert (
        record["rows"][1]["error"]
        == "polyweave==0.2.0 is not installed, and --no-install was passed"
    )
    assert "Not raced: polyweave (polyweave==0.2.0 is not installed" in record["notes"]
    shown = capsys.readouterr().out
    assert "3.50 to 4.50" in shown and "holds (hyperlight: 4.00)" in shown


def test_the_table_says_whose_way_is_documented(capsys):
    recipe = row("c", "recipe", 1.2) | {"ms": 2.4, "ours_ms": 2.0}
    recipe["ratio"] |= {"low": 1.1, "high": 1.3}
    print_peers(
        {"config": {"tasks": 32}, "rows": [recipe], "bars": bars([recipe]), "notes": "as said"}
    )
    shown = capsys.readouterr().out
    assert "README" in shown and "1.10 to 1.30" in shown and "as said" in shown


def test_options_are_checked():
    with pytest.raises(ConfigError, match=r"`--peers hyperligt` is unknown.*`hyperlight`"):
        PeersConfig(peers=("hyperligt",))
    with pytest.raises(ConfigError, match="`--workloads rnn` is unknown"):
        PeersConfig(workloads=("rnn",))
    with pytest.raises(ConfigError, match="`--workloads` is empty"):
        PeersConfig(workloads=())
    with pytest.raises(ConfigError, match=r"`--tasks 1` is too small.*`--tasks 2`"):
        PeersConfig(tasks=1)
    assert PeersConfig(env=Path("here")).to_dict()["env"] == "here"


def test_help_names_both_races_and_an_unknown_one_is_refused(capsys):
    main(["--help"])
    overview = capsys.readouterr().out
    assert "\n  core " in overview and "\n  peers " in overview
    with pytest.raises(SystemExit, match="0"):
        main(["peers", "--help"])
    assert "--workloads" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["cor"])
    assert "`cor` is not a race. Did you mean `core`?" in capsys.readouterr().err


def test_options_are_read_and_what_was_typed_is_kept(monkeypatch):
    runs = []
    monkeypatch.setattr(runner, "run_peers", lambda config, command: runs.append((config, command)))
    main(["peers", "--workloads", "mlp", "--rounds", "3"])
    config = PeersConfig(workloads=("mlp",), rounds=3)
    assert runs == [(config, "python -m benchmarks.race peers --workloads mlp --rounds 3")]
