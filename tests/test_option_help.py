"""Help and lists: the defaults that a run would use, whole words, one screen."""

import re
from contextlib import nullcontext
from dataclasses import dataclass, fields

import pytest

from weightloom import commands
from weightloom import progress as counts
from weightloom.apps import doctor
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fields.config import FieldsConfig
from weightloom.apps.gan.config import GanConfig
from weightloom.apps.registry import find_app
from weightloom.apps.rl.config import RLConfig
from weightloom.apps.transfer.config import TransferConfig
from weightloom.cli import main
from weightloom.commands import RunCommand
from weightloom.option_help import option_help, options_of
from weightloom.runs import progress
from weightloom.runs.options import RunOptions, flag
from weightloom.runs.progress import TrainingProgress
from weightloom.runs.table import print_rows, print_table

RUNS = {
    "fewshot": (FewShotConfig(), FewShotConfig),
    "fewshot --data digits": (FewShotConfig(data="digits"), FewShotConfig),
    "rl": (RLConfig(), RLConfig),
    "rl --env gyre": (RLConfig(env="gyre"), RLConfig),
    "rl --env grid --steps 100000": (RLConfig(env="grid", steps=100_000), RLConfig),
    "transfer": (TransferConfig(), TransferConfig),
    "transfer --data zoo": (TransferConfig(data="zoo"), TransferConfig),
    "gan": (GanConfig(), GanConfig),
    "gan --data grid": (GanConfig(data="grid"), GanConfig),
    "fields": (FieldsConfig(), FieldsConfig),
}
APPS = ("fewshot", "rl", "transfer", "gan", "fields")


def help_of(line, capsys, monkeypatch, columns=100):
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit) if line.split()[0] not in APPS else nullcontext():
        main([*line.split(), "--help"])
    return capsys.readouterr().out


def entries(text):
    """The text of each option by its flag, lines joined."""
    parts = re.split(r"^  (--[a-z-]+)", text, flags=re.MULTILINE)
    return {name: " ".join(its.split()) for name, its in zip(parts[1::2], parts[2::2], strict=True)}


@pytest.mark.parametrize("line", RUNS)
def test_help_shows_the_values_that_a_run_would_use(line, capsys, monkeypatch):
    config, _ = RUNS[line]
    shown, resolved = entries(help_of(line, capsys, monkeypatch)), config.resolved()
    for field in fields(config):
        value = getattr(resolved, field.name)
        if isinstance(value, bool) or value in (None, (), ""):
            continue
        words = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        assert f"Default: {words}." in shown[flag(field.name)], field.name


@pytest.mark.parametrize("line", [*RUNS, "eval", "adapt", "export", "report"])
def test_help_names_no_none_and_stays_within_its_columns(line, capsys, monkeypatch):
    text = help_of(line, capsys, monkeypatch)
    assert "None" not in text and "default: )" not in text
    assert max(map(len, text.splitlines())) <= 100
    narrow = help_of(line, capsys, monkeypatch, columns=40)
    assert {*re.findall(r"--[a-z-]+", narrow)} == {*re.findall(r"--[a-z-]+", text)}


@pytest.mark.parametrize("kind", [RunOptions, FewShotConfig, RLConfig])
def test_every_heading_holds_known_options_and_each_once(kind):
    grouped = [
        name
        for owner in kind.__mro__
        for names in vars(owner).get("groups", {}).values()
        for name in names
    ]
    assert sorted(grouped) == sorted(field.name for field in fields(kind))


def test_options_without_a_heading_are_shown_all_the_same():
    @dataclass
    class Mine:
        largest: float = 1.5

    text = option_help("About.", "mine [OPTIONS]", options_of(Mine, Mine()), {"Empty": ()}, 80)
    assert "Options:\n  --largest NUMBER" in text and "Empty" not in text and "1.5" in text


def test_a_mistake_beside_help_leaves_the_usual_defaults(capsys, monkeypatch):
    text = help_of("rl --env nowhere --steps -3", capsys, monkeypatch)
    assert entries(text)["--env"].endswith("Default: lqr.")


def test_the_list_fits_one_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["list"])
    text = capsys.readouterr().out
    assert len(text.splitlines()) <= 24 and "None" not in text
    for name in ("cameras", "protonet", "HalfCheetah-v5", "context-only", "hypernets"):
        assert name in text


def test_a_name_that_has_no_table_is_refused(capsys):
    with pytest.raises(SystemExit) as left:
        main(["list", "few"])
    assert left.value.code == 2
    assert "`fewshot`" in capsys.readouterr().err


def test_extras_are_printed_whole(capsys, monkeypatch):
    """Square brackets are markup to rich, which drops them from a table."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr("weightloom.apps.fewshot.presets.find_spec", lambda name: None)
    main(["list", "fewshot"])
    assert "pip install 'weightloom[digits]'" in capsys.readouterr().out
    doctor.print_doctor()
    assert "pip install 'weightloom[digits]'" in capsys.readouterr().out


def test_names_with_brackets_are_printed_whole(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    row = {"setting": "[3]-way", "method": "my[method]", "name": "accuracy", "tasks": 2}
    print_table([{**row, "better": "higher", "mean": 0.5, "ci95": 0.1, "role": "method"}], "tasks")
    print_rows([{"picture": "[a].png", "class": "[jay]"}])
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("[3]-way", "my[method]", "[a].png", "[jay]"))


def test_a_bar_is_drawn_in_a_notebook_that_has_widgets(monkeypatch):
    monkeypatch.setattr(progress, "_in_notebook", lambda console: True)
    with TrainingProgress(steps=3) as shown:
        assert shown.bar is not None
    monkeypatch.setattr(progress, "_in_notebook", lambda console: False)
    with TrainingProgress(steps=3) as shown:
        assert shown.bar is None


def test_the_table_of_many_settings_shows_methods_and_no_markup(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    row = {"name": "accuracy", "tasks": 200, "better": "higher", "ci95": 0.0123, "role": "method"}
    rows = [
        {**row, "setting": f"{shots} of each of {ways}", "method": method, "mean": mean}
        for method, mean in (("hypernetwork", 0.855), ("matching-taught", 0.765))
        for ways, shots in ((10, 1), (10, 2), (5, 2), (5, 4))
    ]
    print_table(rows, "tasks never seen in training")
    shown = capsys.readouterr().out
    assert "bold" not in shown and "0.855 ±.012" in shown
    assert "hypernetwork" in shown and "matching-taught" in shown


@pytest.mark.parametrize("line", APPS)
def test_every_option_takes_the_value_that_help_names(line, capsys, monkeypatch):
    text = help_of(line, capsys, monkeypatch)
    app, kind = find_app(line), RunCommand
    for name, choices in re.findall(r"^  --([a-z-]+) \{([^}]+)\}", text, re.MULTILINE):
        for choice in choices.split(","):
            words, default = [f"--{name}", choice], RunCommand(app.config())
            if (line, name, choice) == ("fewshot", "names", "support"):
                words += ["--data", "intents"]  # names are for texts
            parsed = commands._parsed(kind[app.config], words, line, default, loud=False)
            assert str(getattr(parsed.options, name.replace("-", "_"))) == choice


def test_counting_draws_a_bar_in_a_notebook_and_lines_elsewhere(monkeypatch, capsys):
    for has_bar in (False, True):
        monkeypatch.setattr(counts, "in_notebook", lambda console, answer=has_bar: answer)
        with counts.counting("encoding", 2_000, every_s=0.0) as show:
            show(500)
            show(2_000)
        shown = capsys.readouterr().err
        assert ("encoding 500/2,000" in shown) is not has_bar
