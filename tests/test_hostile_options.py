"""Hostile text, options and output paths through the command: a sentence and an exit code, never a traceback.

Every input below is one that must be refused; one that is taken in silence fails its test.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightloom.apps.fewshot.comparison import Comparison
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.judge import draw_test_tasks
from weightloom.apps.fewshot.problems import problem_of
from weightloom.apps.fields.config import FieldsConfig
from weightloom.apps.gan.config import GanConfig
from weightloom.apps.rl.config import RLConfig
from weightloom.apps.transfer.config import TransferConfig
from weightloom.cli import main
from weightloom.errors import CheckpointError, ConfigError
from weightloom.files import write_atomically
from weightloom.limits import MOST_LEVELS, MOST_TEXT_BYTES
from weightloom.runs.metrics import append_row
from weightloom.runs.options import MOST, MOST_OF_ALL
from weightloom.texts import TextError, parse_json, parse_yaml

EXAMPLES = int(os.environ.get("WEIGHTLOOM_HOSTILE", "15"))
"""Generated inputs of each test."""
hostile = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TINY = [
    "--data",
    "digits",
    "--steps",
    "2",
    "--tasks",
    "2",
    "--test-tasks",
    "3",
    "--queries",
    "2",
    "--shots",
    "1",
]
TINY += ["--comparators", "centroid", "--quiet"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run that ended."""
    folder = tmp_path_factory.mktemp("hostile") / "run"
    with redirect_stdout(io.StringIO()):
        main(["fewshot", "--run", str(folder), *TINY])
    return folder


def said(words):
    """Run a command; return its exit code and all that it said."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main([str(word) for word in words])
            code = 0
        except SystemExit as left:
            code = left.code
    return code, out.getvalue() + err.getvalue()


def check_refused(words):
    code, told = said(words)
    assert code == 2, (words, code, told[-500:])
    assert "Traceback" not in told and "was not foreseen" not in told, (words, told[-500:])
    assert len(told) < 6000, words
    return " ".join(told.split())


def copy_of(made, tmp_path):
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(made, folder)
    return folder


# Text and JSON

DEEP = [b"[" * 100_000, b"[" * 60 + b"]" * 60, b'{"a":' * 70 + b"1" + b"}" * 70]
RAW = [
    *DEEP,
    *(
        b"",
        b"\x00" * 50,
        b"\xff\xfe{\x00}\x00",
        "größe: 1".encode("latin-1"),
        b"\xef\xbb\xbf",
        b"[]",
        b"1",
        b'"text"',
    ),
    *(
        b"null",
        b"true",
        b"{",
        b'{"a": 1',
        b"{]",
        b"{'a': 1}",
        b'{"a": 1}{"a": 1}',
        b'{"app": NaN}',
        b"{1: 2}",
    ),
    *(
        b'{"format": 1, "format": 1}',
        b'{"format": 1e999}',
        b"9" * 5000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ),
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
COMMANDS = {
    "run.json": ["eval", "report", "export", "--resume"],
    "config.json": ["eval", "report", "export", "--resume"],
    "record.json": ["report"],
}


def words_of(command, folder):
    return {
        "eval": ["eval", folder],
        "report": ["report", folder],
        "export": ["export", folder, "--task", "0"],
        "--resume": ["fewshot", "--resume", folder, "--quiet"],
    }[command]


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("number", range(len(RAW)))
def test_files_of_a_run_that_are_no_such_json_are_refused(name, number, made, tmp_path):
    folder = copy_of(made, tmp_path)
    (folder / name).write_bytes(RAW[number])
    command = COMMANDS[name][number % len(COMMANDS[name])]
    check_refused(words_of(command, folder))


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_no_regular_file_is_not_opened(name, made, tmp_path):
    for make in (
        os.mkfifo,
        os.mkdir,
        lambda path: Path(path).symlink_to("/dev/zero"),
        lambda path: None,
    ):
        folder = copy_of(made, tmp_path)
        (folder / name).unlink()
        make(folder / name)
        if name == "record.json" and not (folder / name).is_file():
            assert said(["report", folder])[0] in (0, 2)  # a run that has not ended has a report
        else:
            check_refused(words_of("report", folder))


@hostile
@given(
    data=st.data(),
    name=st.sampled_from(["run.json", "config.json"]),
    command=st.sampled_from(COMMANDS["run.json"]),
)
def test_a_value_of_another_type_in_a_file_of_a_run_is_refused(data, name, command, made, tmp_path):
    folder = copy_of(made, tmp_path)
    facts = json.loads((folder / name).read_text())
    key = data.draw(st.sampled_from(sorted(facts)))
    if name == "run.json" and key in ("seeds", "folds", "sweep"):
        key = "app"
    value = data.draw(JSON.filter(lambda value: value != facts[key]))
    (folder / name).write_text(json.dumps({**facts, key: value}))
    if command != "report" or name == "run.json":
        check_refused(words_of("eval" if command == "report" else command, folder))
    else:
        code, told = said(words_of(command, folder))
        assert code in (0, 2) and "was not foreseen" not in told, told


@hostile
@given(data=st.data())
def test_a_record_of_other_types_is_drawn_or_refused(data, made, tmp_path):
    folder = copy_of(made, tmp_path)
    record = json.loads((folder / "record.json").read_text())
    inside = data.draw(st.sampled_from([record, record["scores"][0], record["cost"]]))
    inside[data.draw(st.sampled_from(sorted(inside)))] = data.draw(JSON)
    (folder / "record.json").write_text(json.dumps(record))
    code, told = said(["report", folder])
    assert code in (0, 2) and "was not foreseen" not in told and "Traceback" not in told, told


def test_a_file_over_the_limit_is_not_read_whole(tmp_path):
    (tmp_path / "large.json").write_bytes(b" " * (MOST_TEXT_BYTES + 1))
    assert "larger than 16 MB" in check_refused(["fewshot", "--config", "large.json"])


@hostile
@given(JSON)
def test_json_is_read_as_it_is_or_refused(value):
    """The reference is the standard library's reader, which takes what is deep, infinite or there twice."""
    text = json.dumps(value)
    try:
        assert parse_json(text) == json.loads(text)
    except TextError as error:
        assert "NaN" in text or "Infinity" in text, error


@pytest.mark.parametrize("levels", [MOST_LEVELS, MOST_LEVELS + 1])
@pytest.mark.parametrize("parse", [parse_json, parse_yaml])
def test_levels_are_counted(levels, parse):
    text = "[" * levels + "]" * levels
    if levels <= MOST_LEVELS:
        assert parse(text) == json.loads(text)
        return
    with pytest.raises(TextError, match="50 levels"):
        parse(text)


# Options in a file

BOMB = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = [
    *(
        "ways: &x 2",
        "ways: *x",
        BOMB,
        "ways: 2\nways: 3",
        "wayz: 2",
        "1: 2",
        "? [a]\n: b",
        "- 1",
        "text",
        "",
        "~",
    ),
    *(
        "data: !!python/name:os.system",
        "data: !!binary aGk=",
        "data: 2020-01-01",
        "steps: !!int ''",
        "seed: .inf",
    ),
    *(
        "ways: [2",
        "a: b: c",
        "\tways: 2",
        "steps: 1.5",
        "steps: yes",
        "ways: {a: 1}",
        "ways: [[2]]",
        "ways: []",
    ),
    *(
        "steps: 0",
        "seed: -1",
        "method: 5",
        "method: [a, b]",
        "comparators: [cnp, cnp]",
        "average: -1",
        "average: 1",
    ),
    *(
        "<<: {steps: 0}",
        "weight_decay: -1",
        "outer_lr: .nan",
        "steps: 0x_",
        "data: =",
        "mode: none",
        "--- 1\n--- 2",
    ),
]


@pytest.mark.parametrize("text", YAML)
def test_a_file_of_options_that_do_not_fit_is_refused(text, tmp_path):
    (tmp_path / "options.yaml").write_text(text)
    told = check_refused(["fewshot", "--config", "options.yaml"])
    assert "error:" in told and "IndexError" not in told


@pytest.mark.parametrize("number", range(len(RAW)))
@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_file_of_options_that_is_none_is_refused(number, suffix, tmp_path):
    (tmp_path / f"options.{suffix}").write_bytes(RAW[number])
    check_refused(["fewshot", "--config", f"options.{suffix}"])


@hostile
@given(
    name=st.sampled_from([field.name for field in fields(FewShotConfig)]),
    value=st.dictionaries(st.text(max_size=3), st.integers(), min_size=1, max_size=2)
    | st.just([[1]])
    | st.just({"a": []})
    | st.sampled_from([-1.5, 10**12, 10**400, 1e300, "no such", "NaN", "\x00", "ü" * 300]),
)
def test_an_option_of_another_type_or_size_is_refused(name, value, tmp_path):
    if isinstance(value, str) and name in ("start_from", "base", "data"):
        value = {}  # paths and modules have tests of their own
    (tmp_path / "options.json").write_text(json.dumps({name: value}))
    check_refused(["fewshot", "--config", "options.json", "--run", "run", *TINY[:2], "--quiet"])
    assert not (tmp_path / "run").exists()


# Options on the command line

NUMBERS = {
    config.command: [
        field.name
        for field in fields(config)
        if "int" in str(field.type) or "float" in str(field.type)
    ]
    for config in (FewShotConfig, RLConfig, TransferConfig, GanConfig, FieldsConfig)
}


@hostile
@given(
    command=st.sampled_from(sorted(NUMBERS)),
    value=st.sampled_from(
        ["-1", "nan", "inf", "-inf", "1000000000000", "99999999999999999999999", "x", "", "-0.5"]
    ),
    data=st.data(),
)
def test_numbers_that_cannot_be_are_refused(command, value, data, tmp_path):
    name = data.draw(
        st.sampled_from([name for name in NUMBERS[command] if name != "target_return"])
    )
    check_refused([command, f"--{name.replace('_', '-')}", value, "--run", "run", "--quiet"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "name", ["threads", "tasks", "shots", "seed", "steps", "queries", "test_tasks", "devices"]
)
def test_the_largest_number_of_an_option_is_as_stated(name):
    most = MOST.get(name, MOST_OF_ALL)
    value = (lambda number: (number,)) if name == "shots" else int
    FewShotConfig(data="sinusoid", **{name: value(most)})
    with pytest.raises(ConfigError, match=f"{most:,}"):
        FewShotConfig(data="sinusoid", **{name: value(most + 1)})


ODD = [
    ["--comparators", "cnp", "cnp", "--data", "sinusoid"],
    ["--comparators", "hypernetwork"],
    ["--data", "sinusoid", "--ways", "5"],
    ["--data", "sinusoid", "--train-ways", "5"],
    ["--data", "digits", "--ways", "2", "2"],
    ["--data", "digits", "--shots", "1", "1"],
    ["--data", "digits", "--block-steps", "3"],
    ["--data", "digits", "--comparators", "protonet", "--rates", "protonet=0.1", "protonet=0.2"],
    ["--data", "digits", "--rates", "hypernetwork=nan"],
    ["--data", "digits", "--rates", "hypernetwork"],
    ["--seeds", "1", "1"],
    ["--seeds", "-1", "2"],
    ["--seeds", "1000000000000"],
    ["--data", "digits", "--folds", "0", "0"],
    ["--sweep", "outer-lr=nan,1"],
    ["--sweep", "outer-lr=0.1,0.1"],
    ["--sweep", "seed=1,2"],
    ["--split", "-1"],
    ["--average", "-1"],
    ["--average", "1"],
    ["--weight-decay", "-1"],
    ["--minutes", "nan"],
    ["--minutes", "-1"],
    ["--method", "no such"],
    ["--method", ""],
    ["--data", ""],
    ["--data", "a" * 10_000],
    ["--data", "~nobody/x"],
    ["--data", "\x00"],
    ["--data", "."],
    ["--start-from", "nowhere"],
    ["--start-from", "a" * 300],
    ["--data", "sinusoid", "--split", "3"],
    ["--data", "sinusoid", "--normalisation", "batch"],
    ["--data", "sinusoid", "--inner-steps", "3", "--comparators"],
    ["--data", "digits", "--base", ""],
    ["--data", "sinusoid", "--nodes", "3"],
    ["--data", "sinusoid", "--devices", "120"],
    ["--data", "sinusoid", "--shots", "100000", "--tasks", "100000"],
]


@pytest.mark.parametrize("words", ODD, ids=lambda words: " ".join(words)[:40])
def test_options_that_do_not_go_together_are_refused(words, tmp_path):
    check_refused(["fewshot", *words, "--run", "run", "--quiet"])
    assert not (tmp_path / "run").exists()


ODD_AGENTS = [
    *(
        ["--vary", text]
        for text in ("gravity", "a=1:2", "=1:2", "x=2:1", "x=nan:1", "x=0:inf", "a=1:2 a=1:2")
    ),
    *(
        ["--env", name]
        for name in ("nowhere", "", "a" * 400, "os:x", "CartPole-v1:x", ":x", "\x00")
    ),
    *(
        ["--comparators", "film", "film"],
        ["--held-out", "x=1:2"],
        ["--rates", "nothing=0.1"],
        ["--discount", "1"],
    ),
    *(
        ["--final-rate", "2"],
        ["--critics", "0"],
        ["--target-return", "nan"],
        ["--method", "nothing"],
    ),
]


ODD_TRANSFERS = [
    *(["--data", name] for name in ("nowhere", "", "a" * 400, "os:x", "x:", ":x", "\x00")),
    *(["--data", "zoo", "--method", name] for name in ("tent", "", "nothing")),
    *(["--comparators", "shared", "shared"], ["--comparators", "generated"]),
    *(["--rates", "shared=0"], ["--rates", "nothing=0.1"], ["--split", "-1"], ["--rank", "0"]),
]


@pytest.mark.parametrize("words", ODD_TRANSFERS, ids=lambda words: " ".join(words)[:40])
def test_options_of_transfer_that_cannot_be_are_refused(words, tmp_path):
    check_refused(["transfer", *words, "--run", "run", "--quiet"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("words", ODD_AGENTS, ids=lambda words: " ".join(words)[:40])
def test_options_of_agents_that_cannot_be_are_refused(words, tmp_path):
    check_refused(["rl", *words, "--run", "run", "--quiet"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["--run", "other"],
        ["--config", "options.yaml"],
        ["--seeds", "1", "2"],
        ["--sweep", "outer-lr=0.1,0.2"],
        ["--folds", "0", "1"],
        ["--seed", "5"],
    ],
)
def test_a_run_goes_on_as_it_began(words, made, tmp_path):
    (tmp_path / "options.yaml").write_text("ways: 2\n")
    check_refused(["fewshot", "--resume", copy_of(made, tmp_path), *words, "--quiet"])


@pytest.mark.parametrize(
    "words",
    [
        ["--shots", "0"],
        ["--shots", "1", "2"],
        ["--shots", "1000000000000"],
        ["--ways", "0"],
        ["--queries", "-1"],
        ["--test-tasks", "5"],
        ["--whole"],
        ["--task", "-1"],
        ["--task", "x"],
        ["--task", ""],
        ["--task", ".."],
        ["--task", "²"],
        ["--ways", "99"],
    ],
)
def test_export_refuses_what_it_would_not_use(words, made, tmp_path):
    folder = copy_of(made, tmp_path)
    check_refused(["export", folder, *(["--task", "0"] if "--task" not in words else []), *words])
    assert not (folder / "export").exists()


# Code of a user's own

MODULES = {
    "leaves": "raise SystemExit(0)",
    "exits": "import sys\nsys.exit()",
    "raises": "raise RuntimeError('no')",
    "broken": "def (",
    "latin": "# gr\xf6\xdfe",
    "recursive": "def f(): f()\nf()",
    "base": "raise BaseExceptionGroup('x', [ValueError()])",
    "lacks": "import no_such_module_anywhere",
    "number": "Name = 5",
    "text": "Name = 'x'",
    "module": "import os as Name",
    "fails": "class Name:\n    def __init__(self, *a, **k): raise KeyError('x')",
    "quits": "class Name:\n    def __init__(self, *a, **k): raise SystemExit(0)",
    "plain": "class Name:\n    def __init__(self, *a, **k): pass",
    "empty": "",
}
PATHS = [
    "",
    ":",
    ":Name",
    "nowhere:",
    "nowhere:Name",
    "a b:c",
    ".x:y",
    "..:y",
    "os:path:x",
    "weightloom:nothing",
    "\x00:x",
]


@pytest.mark.parametrize("option", ["--method", "--comparators", "--data", "--base"])
@pytest.mark.parametrize("module", [*MODULES, *PATHS])
def test_what_cannot_be_imported_or_called_is_refused(option, module, tmp_path, monkeypatch):
    path = module
    if module in MODULES:
        name = f"hostile_{module}"
        (tmp_path / f"{name}.py").write_text(MODULES[module], encoding="latin-1")
        path = f"{name}:Name"
        monkeypatch.delitem(sys.modules, name, raising=False)
    elif option in ("--base", "--comparators") and not module:
        return  # as if it had not been typed
    monkeypatch.syspath_prepend(str(tmp_path))
    data = [] if option == "--data" else ["--data", "digits"]
    check_refused(["fewshot", *data, option, path, "--run", "run", "--steps", "2", "--quiet"])
    assert not (tmp_path / "run").exists()


# Where things are written

BYTES = b"precious"


@pytest.fixture
def taken(tmp_path):
    """Paths that hold something, by name."""
    (tmp_path / "file.json").write_bytes(BYTES)
    (tmp_path / "config.json").write_text('{"ways": [1]}')
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_bytes(BYTES)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "linked").symlink_to(tmp_path / "file.json")
    return {
        **{
            name: tmp_path / name for name in ("file.json", "config.json", "full", "loop", "linked")
        },
        "long": tmp_path / ("a" * 300),
        "under a file": tmp_path / "file.json" / "x",
        "zero": Path("a\x00b"),
        "device": Path("/dev/null"),
        "under a device": Path("/dev/null/x"),
        "deep": Path("a/" * 5000),
    }


TAKEN = (
    "file.json",
    "config.json",
    "full",
    "loop",
    "linked",
    "long",
    "under a file",
    "zero",
    "device",
    "deep",
)
TAKEN = (*TAKEN, "under a device")


@pytest.mark.parametrize("where", TAKEN)
@pytest.mark.parametrize("command", ["--run", "eval", "export", "adapt"])
def test_what_is_there_is_not_written_over(where, command, taken, made, tmp_path):
    path = taken[where]
    if command == "eval" and where == "device":
        return
    words = {
        "--run": ["fewshot", *TINY, "--run", path],
        "eval": ["eval", made, "--test-tasks", "2", "--record", path],
        "export": ["export", made, "--task", "0", "--out", path],
        "adapt": ["adapt", made, tmp_path / "task.jsonl", "--out", path],
    }[command]
    pixels = {f"pixel{number}": 0.5 for number in range(64)}
    (tmp_path / "task.jsonl").write_text(
        "".join(json.dumps({"x": [0.1] * 64, "label": n, **pixels}) + "\n" for n in "abc")
    )
    check_refused(words)
    assert (tmp_path / "file.json").read_bytes() == BYTES and (
        tmp_path / "full" / "kept"
    ).read_bytes() == BYTES
    assert (tmp_path / "config.json").read_text() == '{"ways": [1]}'


@pytest.mark.parametrize(
    "name",
    ["config.json", "run.json", "record.json", "metrics.jsonl", "checkpoints", "report.html"],
)
def test_a_record_is_not_written_over_what_a_run_holds(name, made, tmp_path):
    folder = copy_of(made, tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    check_refused(["eval", folder, "--test-tasks", "2", "--record", folder / name])
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_record_is_written_over_a_record_and_through_a_pipe(made, tmp_path):
    for _ in range(2):
        assert said(["eval", made, "--test-tasks", "2", "--record", "again/record.json"])[0] == 0
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)
    assert said(["eval", made, "--test-tasks", "2", "--record", "pipe"])[0] == 0
    assert json.loads(os.read(reader, 100_000))["app"] == "fewshot"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
    assert said(["eval", made, "--test-tasks", "2", "--record", "/dev/null"])[0] == 0
    assert Path("/dev/null").is_char_device()


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "target").write_text("before")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_atomically(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "text"


def test_a_comparison_is_not_written_over_what_is_none(tmp_path):
    comparison = Comparison({"scores": [], "config": {}}, {}, "page")
    comparison.report(tmp_path / "new")
    comparison.report(tmp_path / "new")
    for name in ("report.html", "record.json"):
        (tmp_path / name).write_bytes(BYTES)
        with pytest.raises(ConfigError, match=r"not overwritten|is no record"):
            comparison.report(tmp_path)
        assert (tmp_path / name).read_bytes() == BYTES
        (tmp_path / name).unlink()


def test_a_row_that_a_full_disk_does_not_take_is_said(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="could not be appended to"):
        append_row(tmp_path, {"step": 1})


def test_validation_tasks_of_sinusoids_are_none_of_the_table():
    config = FewShotConfig(data="sinusoid").resolved()
    drawn = [
        draw_test_tasks(problem_of(each.resolved()), 5, 3).query_x
        for each in (config, config.validating())
    ]
    assert not torch.isin(drawn[0], drawn[1]).any()


# The command as a whole


@pytest.mark.parametrize(
    "error",
    [OSError(5, "odd"), ValueError("x"), MemoryError(), RecursionError("deep"), KeyError("k")],
)
def test_an_error_that_nothing_foresaw_is_a_sentence_and_a_file(error, made, tmp_path, monkeypatch):
    folder = copy_of(made, tmp_path)

    def fail(*given, **named):
        raise error

    monkeypatch.setattr("weightloom.report.page.read_run", fail)
    code, told = said(["report", folder])
    assert code == (1 if isinstance(error, KeyError) else 2)
    kept = [path for path in folder.iterdir() if path.name.startswith("traceback-")]
    assert len(kept) == 1 and f"`{kept[0]}`" in told and "Traceback" not in told
    assert "in fail" in kept[0].read_text()


def shell(line, **variables):
    environment = {**os.environ, "PYTHON": sys.executable, **variables}
    return subprocess.run(["bash", "-c", line], capture_output=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("$PYTHON -m weightloom list | true; exit ${PIPESTATUS[0]}", 0),
        ("$PYTHON -m weightloom --help | true; exit ${PIPESTATUS[0]}", 0),
        ("$PYTHON -m weightloom list > /dev/full", 2),
        ("$PYTHON -m weightloom list >&-", 0),
        ("$PYTHON -m weightloom nothing 2>&-", 2),
        ("PYTHONIOENCODING=ascii $PYTHON -m weightloom list", 0),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 $PYTHON -m weightloom list", 0),
        (r"PYTHONIOENCODING=latin-1 $PYTHON -m weightloom fewshot --data $'gr\xff\u4e2d'", 2),
    ],
)
def test_output_that_nobody_reads_or_that_knows_few_letters_ends_no_command(line, code):
    ran = shell(line)
    assert ran.returncode == code, ran
    assert b"Traceback" not in ran.stderr and b"Exception ignored" not in ran.stderr


def test_names_that_are_not_utf8_are_trained_on_and_reported(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for number in range(6):
        folder = tmp_path / "pictures" / os.fsdecode(bytes([0xE4, 0x41 + number]))
        folder.mkdir(parents=True)
        for shot in range(4):
            picture = image.new("L", (32, 32), 40 * number)
            picture.putpixel((shot, 0), 200)
            picture.save(folder / f"{shot}.png")
    words = [
        "--ways",
        "2",
        "--train-ways",
        "2",
        "--shots",
        "1",
        "--queries",
        "2",
        "--steps",
        "2",
        "--tasks",
        "2",
    ]
    words += ["--test-tasks", "3", "--comparators", "--run", "run"]
    code, told = said(["fewshot", "--data", "pictures", *words])
    assert code == 0, told
    assert "No figure could be drawn" not in (tmp_path / "run" / "report.html").read_text(
        encoding="utf-8"
    )


ODD_GANS = [
    *(["--data", name] for name in ("nowhere", "", "a" * 400, "os:x", "x:", ":x", "\x00")),
    *(["--data", "grid", "--method", name] for name in ("function-concat", "", "nothing")),
    *(["--gamma", "0.1", "--gamma-end", "1"], ["--gamma-end", "0"], ["--average", "1"]),
    *(["--rates", "concat=0"], ["--rates", "nothing=0.1"], ["--data", "missing/folder"]),
]


@pytest.mark.parametrize("words", ODD_GANS, ids=lambda words: " ".join(words)[:40])
def test_options_of_gan_that_cannot_be_are_refused(words, tmp_path):
    check_refused(["gan", *words, "--run", "run", "--quiet"])
    assert not (tmp_path / "run").exists()


ODD_FIELDS = [
    *(["--data", name] for name in ("nowhere", "", "os:x", "x:", ":x", "\x00")),
    *(["--method", name] for name in ("", "nothing")),
    *(["--comparators", "concat", "concat"], ["--comparators", "generated"], ["--width", "0"]),
]


@pytest.mark.parametrize("words", ODD_FIELDS, ids=lambda words: " ".join(words)[:40])
def test_options_of_fields_that_cannot_be_are_refused(words, tmp_path):
    check_refused(["fields", *words, "--run", "run", "--quiet"])
    assert not (tmp_path / "run").exists()
