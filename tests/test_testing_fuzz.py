"""The fuzzer finds what is planted, says the same twice, and cuts programs down; its verdict on the engines."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from weightloom.base import apply_per_task
from weightloom.errors import BatchingError
from weightloom.testing import oracle
from weightloom.testing.copies import InvalidProgramError
from weightloom.testing.fuzz import Finding, fuzz, main, program, shrink, smallest, verdicts
from weightloom.testing.grammar import INPUTS, OUTPUTS, STATEMENTS
from weightloom.testing.operators import operators
from weightloom.testing.programs import Piece, Program, draw, kinds_of

PLAIN = Program(0, pieces=(Piece("one", (("forward", "h = torch.tanh(self.one(h))"),)),))


def with_statement(*lines, **sections):
    more = [(section, line) for section, its in sections.items() for line in its.split("\n")]
    return Program(
        0, pieces=(Piece("stated", (*more, *(("forward", line) for line in lines))),)
    ).text


def of_the_first_task(base, params, *args, **options):
    """A planted fault: every task gets the parameters of the first."""
    return apply_per_task(
        base, {name: value[:1].expand_as(value) for name, value in params.items()}, *args, **options
    )


def refusing(base, params, *args, **options):
    raise BatchingError("no")


def broken(base, params, *args, **options):
    raise RuntimeError("INTERNAL ASSERT\nand more")


def writing(base, params, *args, **options):
    base.one.weight.data.add_(1)
    return apply_per_task(base, params, *args, **options)


def drawing(base, params, *args, **options):
    torch.rand(1)
    return apply_per_task(base, params, *args, **options)


def overwriting(base, params, x, **options):
    outputs = apply_per_task(base, params, x, **options)
    x.data.add_(1)
    return outputs


def without_gradients(base, params, *args, **options):
    return apply_per_task(
        base, {name: value.detach() for name, value in params.items()}, *args, **options
    )


def hooking(base, params, *args, **options):
    base.one.register_forward_hook(lambda module, inputs, output: None)
    return apply_per_task(base, params, *args, **options)


@pytest.mark.parametrize(
    ("fault", "verdict", "message"),
    [
        (of_the_first_task, "silent", "an output is off by"),
        (without_gradients, "silent", "the gradient of a value is off by"),
        (writing, "silent", "the base is changed: `one.weight`"),
        (hooking, "silent", "the base is changed: `one._forward_hooks`"),
        (drawing, "silent", "torch's random state moved"),
        (overwriting, "silent", "inputs or values were changed in place"),
        (refusing, "refused", "BatchingError: no"),
        (broken, "unclear", "RuntimeError: INTERNAL ASSERT"),
        (apply_per_task, "equal", ""),
    ],
    ids=lambda it: getattr(it, "__name__", None),
)
def test_a_planted_fault_is_found_and_named(fault, verdict, message, monkeypatch):
    monkeypatch.setattr(oracle, "apply_per_task", fault)
    found = verdicts(PLAIN.text, ["loop"])["loop"]
    assert found.verdict == verdict and found.message.startswith(message)


def test_fuzzing_counts_a_planted_fault(monkeypatch):
    monkeypatch.setattr(oracle, "apply_per_task", of_the_first_task)
    report = fuzz(range(20), engines=["vmap", "loop"])
    assert report.counts["loop"]["silent"] > 10 and report.counts["vmap"]["silent"] > 5
    assert report.programs + report.invalid == 20
    assert all(sum(its.values()) == report.programs for its in report.counts.values())
    assert str(report).splitlines()[0].split() == [
        "engine",
        "equal",
        "refused",
        "silent",
        "unclear",
    ]


def test_a_seed_gives_the_same_program_and_the_same_verdicts():
    for seed in range(10):
        assert program(seed) == program(seed) != program(seed + 1)
    first, second = fuzz(range(10)), fuzz(range(10))
    assert first.counts == second.counts and first.findings == second.findings


def test_a_program_is_cut_down_and_still_fails(monkeypatch):
    monkeypatch.setattr(oracle, "apply_per_task", of_the_first_task)
    seed = next(seed for seed in range(100) if len(draw(seed).pieces) > 3)
    less = shrink(seed, "loop")
    assert (
        verdicts(less, ["loop"])["loop"].verdict
        == verdicts(program(seed), ["loop"])["loop"].verdict
        == "silent"
    )
    assert len(less.splitlines()) < len(program(seed).splitlines())
    ((finding, many, small),) = smallest([Finding(seed, "loop", "silent", "an output is off by 1")])
    assert (finding.seed, many) == (seed, 1) and len(small.pieces) <= 1


def test_what_a_statement_holds_can_take_its_place():
    inner = Piece("inner", (("forward", "h = h + 1"),))
    outer = Piece("outer", (("forward", "if True:"), ("forward", "    BODY")), ((inner,),))
    assert list(outer.forward()) == ["if True:", "    h = h + 1"]
    assert [less.pieces for less in Program(0, pieces=(outer,)).smaller()][:2] == [(), (inner,)]


def test_copies_keep_what_a_forward_pass_keeps(monkeypatch):
    """A running state is each task's own, so an engine that forgets it is found out in the second call."""

    def forgetting(base, params, x, **options):
        return apply_per_task(copy.deepcopy(base), params, x, **options)

    text = with_statement(
        "h = h / self.calls", "self.calls = self.calls + 1", init="self.calls = 1"
    )
    text = text.replace("CALLS = 1", "CALLS = 2")
    assert verdicts(text, ["loop"])["loop"].verdict == "equal"
    monkeypatch.setattr(oracle, "apply_per_task", forgetting)
    assert verdicts(text, ["loop"])["loop"].verdict == "silent"


def test_what_a_copy_leaves_unreadable_too_is_no_fault_of_an_engine():
    """A hook that keeps what it sees inside of the base's own `vmap` keeps what is dead afterwards."""
    hook = "self.seen = []\nself.one.register_forward_hook(lambda m, i, o: self.seen.append(o.detach()))"
    inside = with_statement("h = torch.vmap(self.one)(h)", init=hook)
    assert verdicts(inside, ["loop"])["loop"].verdict != "silent"


def test_a_program_that_does_not_run_alone_is_left_out():
    for line in ("h = h.no_such_method()", "h = h / 0", "h = h +"):
        with pytest.raises(InvalidProgramError):
            verdicts(with_statement(line))


def test_what_rounding_decides_is_left_out(monkeypatch):
    def rounded(base, params, x, **options):
        return apply_per_task(base, params, x * (1 + 1e-15), **options)

    monkeypatch.setattr(oracle, "apply_per_task", rounded)
    assert verdicts(with_statement("h = h * 2"), ["loop"])["loop"].verdict == "equal"
    with pytest.raises(InvalidProgramError, match="rounding"):
        verdicts(
            with_statement("h = (h - h.detach()) * 1 + torch.sin(1e17 * h.detach())"), ["loop"]
        )


@pytest.mark.parametrize(
    "grammar", [STATEMENTS, INPUTS, OUTPUTS], ids=["statements", "inputs", "outputs"]
)
def test_every_kind_runs_in_some_program(grammar):
    kinds = [kind.name for kind in kinds_of(grammar)]
    assert len(set(kinds)) == len(kinds) > 15
    for kind in kinds:
        assert any(runs_alone(draw(seed, kind).text) for seed in range(10)), kind
        assert kind in names_of(draw(0, kind))


def runs_alone(text):
    try:
        verdicts(text, [])
    except InvalidProgramError:
        return False
    return True


def names_of(one):
    return [name for piece in (*one.pieces, *one.inputs, one.output) for name in piece.names()]


def test_a_program_is_a_file_that_says_its_verdicts(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PLAIN.text)
    ran = subprocess.run([sys.executable, path], capture_output=True, text=True, check=True)
    assert [line.split() for line in ran.stdout.splitlines()] == [
        [engine, "equal"] for engine in ("auto", "vmap", "aligned", "loop")
    ]


def test_the_command_prints_the_table_and_the_smallest_program(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(oracle, "apply_per_task", of_the_first_task)
    record = tmp_path / "record.json"
    assert main(["--programs", "5", "--engines", "loop", "--record", str(record)]) == 1
    printed = capsys.readouterr().out
    assert "5 programs in" in printed and "class Net(nn.Module):" in printed and record.exists()


def test_operators_run_on_torchs_own_samples():
    pytest.importorskip("expecttest")
    report = operators(
        ["auto", "loop"], samples=3, names=["add", "softmax", "nn.functional.linear"]
    )
    assert report.programs > 5 and not report.findings


def test_without_torchs_database_operators_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.testing._internal.common_methods_invocations", None)
    with pytest.raises(ImportError, match="pip install expecttest"):
        operators()


def test_no_engine_is_silently_wrong(unchecked):
    report = fuzz(range(200))
    print(report)
    wrong = [finding for finding in report.findings if finding.verdict in ("silent", "unclear")]
    assert not wrong, f"seeds {[finding.seed for finding in wrong]}: {wrong[:3]}"
    assert report.counts["auto"]["refused"] <= 0.1 * report.programs


def test_the_base_of_a_program_is_a_module():
    names = {"__name__": "fuzzed"}
    exec(program(3), names)
    assert isinstance(names["build"](), nn.Module)
