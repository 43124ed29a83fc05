"""Records: intervals against scipy and theory, and what a stranger needs to run it again."""

import json
import math
import statistics
from pathlib import Path

import pytest
import torch

from weightloom.errors import DataError
from weightloom.platforms import peak_memory_bytes
from weightloom.runs.record import (
    environment,
    read_record,
    read_run_record,
    row_of,
    summary,
    summary_over_seeds,
    write_record,
    write_run_record,
)
from weightloom.runs.table import print_table


def test_the_interval_over_tasks_is_that_of_the_central_limit():
    scores = torch.rand(700)
    found, values = summary(scores), scores.double().tolist()
    assert found["mean"] == pytest.approx(statistics.fmean(values), rel=1e-12)
    assert found["ci95"] == pytest.approx(
        1.96 * statistics.stdev(values) / math.sqrt(700), rel=1e-12
    )
    assert summary(torch.tensor([2.0]))["mean"] == 2 and math.isnan(
        summary(torch.tensor([2.0]))["ci95"]
    )


@pytest.mark.parametrize("seeds", [2, 3, 5, 10, 11, 15, 30, 200])
def test_the_interval_over_seeds_is_that_of_scipy(seeds):
    special = pytest.importorskip(
        "scipy.special", reason="needs scipy, which comes with scikit-learn"
    )
    values = torch.randn(seeds, dtype=torch.float64).tolist()
    found = summary_over_seeds(values)
    error = statistics.stdev(values) / math.sqrt(seeds)
    assert found["ci95"] == pytest.approx(special.stdtrit(seeds - 1, 0.975) * error, rel=2e-3)
    assert found["mean"] == pytest.approx(statistics.fmean(values)) and found["per_seed"] == values


@pytest.mark.parametrize(
    ("seeds", "t"), [(2, 12.706), (5, 2.776), (11, 2.228), (21, 2.086), (61, 2.000)]
)
def test_the_interval_over_seeds_uses_the_tabulated_points_of_student(seeds, t):
    """Values with a standard deviation of sqrt(seeds), so that the interval is the point of the table itself."""
    wide = math.sqrt(seeds) * math.sqrt((seeds - 1) / (2 * (seeds // 2)))
    values = [wide, -wide] * (seeds // 2) + [0.0] * (seeds % 2)
    assert summary_over_seeds(values)["ci95"] == pytest.approx(t, abs=3e-3)


def test_an_interval_over_five_seeds_covers_the_truth_in_95_of_100_runs():
    draws = torch.randn(2000, 5, dtype=torch.float64).tolist()
    found = [summary_over_seeds(values) for values in draws]
    covered = sum(abs(one["mean"]) < one["ci95"] for one in found) / 2000
    assert covered == pytest.approx(0.95, abs=5 * math.sqrt(0.95 * 0.05 / 2000))


def test_one_seed_has_a_mean_and_no_interval():
    found = summary_over_seeds([3.0])
    assert found["mean"] == 3 and math.isnan(found["ci95"])


def test_the_environment_says_what_a_number_depends_on():
    found = environment()
    assert found.keys() == {
        "weightloom",
        "commit",
        "torch",
        "python",
        "device",
        "machine",
        "threads",
    }
    assert found["torch"] == torch.__version__ and found["threads"] == torch.get_num_threads() == 1
    assert found["commit"] is None or len(found["commit"]) >= 7
    assert json.loads(json.dumps(found)) == found


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux, which counts for itself"
)
def test_peak_memory_is_what_the_system_counts():
    (line,) = [
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    assert peak_memory_bytes() == pytest.approx(1024 * int(line.split()[1]), rel=0.05)


def test_a_record_comes_back_and_replaces_the_old_one(tmp_path):
    path, record = (
        tmp_path / "record.json",
        {"command": "weightloom fewshot", "scores": [{"mean": 0.1 + 0.2}]},
    )
    write_record(path, {"old": 1})
    write_record(path, record)
    assert read_record(path) == record and len(list(tmp_path.iterdir())) == 1
    assert path.read_text().endswith("}\n")


@pytest.mark.parametrize("content", [None, "{", ""])
def test_a_record_that_is_missing_or_torn_is_named_with_what_to_type(tmp_path, content):
    path = tmp_path / "record.json"
    if content is not None:
        path.write_text(content)
    words = (
        r"record\.json` cannot be (opened|read) .* (A run writes it|It must be as the run wrote it)"
    )
    with pytest.raises(DataError, match=words):
        read_record(path)


def test_what_is_not_a_number_becomes_null_so_that_any_reader_of_json_can_read_it(tmp_path):
    path = tmp_path / "record.json"
    write_record(path, {"scores": [{"mean": 0.5, "ci95": math.nan}, (math.inf, 1)]})
    assert json.loads(path.read_text(), parse_constant=pytest.fail) == {
        "scores": [{"mean": 0.5, "ci95": None}, [None, 1]]
    }


def test_the_record_of_a_run_over_a_single_task_comes_back(tmp_path):
    one = row_of("mine", "all", "accuracy", torch.tensor([0.5]))
    one["ours_ahead"] = summary(torch.tensor([0.1]))
    run = {"app": "a", "identity": "", "command": "", "config": {}, "cost": {}, "notes": ""}
    write_run_record(tmp_path, run | {"scores": [one]})
    (read,) = read_run_record(tmp_path)["scores"]
    assert read["ci95"] is None and read["ours_ahead"]["ci95"] is None


@pytest.mark.parametrize("settings", [1, 3])
def test_the_table_of_a_single_task_has_scores_without_intervals(capsys, settings):
    rows = [
        row_of("mine", f"setting {number}", "return", torch.tensor([-12.5]), better="higher")
        for number in range(settings)
    ]
    print_table(rows, "tasks")
    said = capsys.readouterr().out
    assert said.count("-12.5") == settings and "nan" not in said


@pytest.mark.parametrize(
    ("ahead", "said"),
    [((0.001, 0.004), True), ((-0.004, 0.004), True), ((0.005, 0.004), False)],
)
@pytest.mark.parametrize("settings", [1, 3])
def test_a_training_that_no_setting_shows_is_named_under_the_table(ahead, said, settings, capsys):
    """The last setting decides; the others show no change."""
    rows = [row_of("mine", str(n), "accuracy", torch.rand(9)) for n in range(settings)]
    for n in range(settings):
        mean, half = ahead if n == settings - 1 else (0.0, 0.001)
        before = row_of("mine", str(n), "accuracy", torch.rand(9), role="untrained")
        rows.append(before | {"trained_ahead": {"mean": mean, "ci95": half}})
    rows.append(row_of("other", "0", "accuracy", torch.rand(9), role="untrained"))
    print_table(rows, "tasks")
    printed = " ".join(capsys.readouterr().out.split())
    assert (
        "Training changed nothing that these tasks can show in the accuracy of mine:" in printed
    ) == said
    assert "accuracy of other" not in printed


def test_settings_that_do_not_fit_are_printed_below(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    methods = ("generated", "generated, with the condition of another target")
    rows = [
        {"method": method, "setting": f"{shots}-shot, 20 steps", "name": "accuracy", "tasks": 9}
        | {"better": "higher", "mean": shots / 100, "ci95": 0.01, "adapt_time_s": 0.002}
        for shots in range(1, 9)
        for method in methods
    ]
    rows.append(rows[0] | {"method": "checked"})  # in the first setting alone
    print_table(rows, "tasks")
    shown = capsys.readouterr().out
    assert shown.count("checked") == 1
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 60
    assert shown.count("over 9 tasks") == 1
    assert [shown.count(f"0.0{shots}0 ±.010") for shots in range(1, 9)] == [3, *[2] * 7]
    assert shown.split().count("generated") == 3  # three tables
