"""Sections that the runs of all applications share, and those of an application of one's own."""

import json
import re
from pathlib import Path

import pytest
import torch

import weightloom.report
from weightloom.report import build_report
from weightloom.report.changes import change_bars, change_maps
from weightloom.report.compare import reliability_figures, time_figures, time_ticks
from weightloom.report.run import Run
from weightloom.report.section import Pictures, Section, with_shared
from weightloom.runs.record import write_run_record


def made(tensors=None, facts=None, scores=()):
    return Run(
        "made",
        {},
        [],
        [],
        {"scores": list(scores)},
        tensors or {},
        {"kind": "classification"} | (facts or {}),
    )


def row(method, setting="3-way 1-shot", seconds=0.001, mean=0.9, **more):
    known = {
        "method": method,
        "setting": setting,
        "name": "accuracy",
        "better": "higher",
        "mean": mean,
        "ci95": 0.01,
    }
    return known | {"tasks": 600, "adapt_time_s": seconds} | more


def drawn(figure):
    plot = json.loads(figure.plot)
    return plot["data"], plot["layout"]


def test_every_method_but_the_control_has_a_mark_at_its_time_and_score():
    scores = [
        row("ours"),
        row("maml", seconds=0.05, mean=0.8),
        row("shuffled", role="control"),
        row("ours", role="untrained"),
        row("ours", "5-way"),
    ]
    one, other = time_figures(scores)
    traces, layout = drawn(one)
    assert [(t["x"], t["y"], t["error_y"]["array"]) for t in traces] == [
        ([0.001], [0.9], [0.01]),
        ([0.05], [0.8], [0.01]),
    ]
    assert layout["xaxis"]["type"] == "log" and layout["xaxis"]["ticktext"] == [
        "100 µs",
        "1 ms",
        "10 ms",
        "100 ms",
    ]
    assert (
        one.alt.endswith("ours 0.900 ± 0.010 in 1 ms; maml 0.800 ± 0.010 in 50 ms")
        and other.title == "5-way"
    )


@pytest.mark.parametrize("times", [[1e-5], [0.9e-3, 1.1e-3], [3e-5, 0.6], [2.0, 80.0]])
def test_round_times_lie_on_both_sides_of_what_was_measured(times):
    ticks = time_ticks(times)
    assert (
        ticks[0] < min(times)
        and ticks[-1] > max(times)
        and ticks == sorted(ticks)
        and 2 <= len(ticks) <= 8
    )


def test_a_reliability_diagram_has_the_bins_and_the_error_of_the_record():
    bins = [
        {"confidence": 0.4, "accuracy": 0.7, "share": 0.25},
        {"confidence": 0.9, "accuracy": 0.8, "share": 0.75},
    ]
    control = row("shuffled", role="control", calibration={"ece": 0.5, "bins": bins})
    (figure,) = reliability_figures(
        [row("ours", calibration={"ece": 0.15, "bins": bins}), row("plain"), control]
    )
    (diagonal, line), _ = drawn(figure)
    assert diagonal["x"] == diagonal["y"] == [0, 1]
    assert (line["x"], line["y"]) == ([0.4, 0.9], [0.7, 0.8])
    assert [key.name for key in figure.keys] == ["ours: 0.150"]


def changed(names=("<b>cat", "dog"), own=True):
    rows = [
        {"name": "trunk.weight", "relative": [0.5, 0.25], "apart": 0.3, "size": 2.0},
        {"name": "head.weight", "relative": None, "apart": 1.2, "size": 1.0},
    ]
    maps = [{"name": "head.weight", "shape": [2, 90], "own": not own, "by_class": True}]
    facts = {"tasks": ["cat, dog", "dog, cat"], "shots": 1, "rows": rows, "maps": maps}
    facts["class_names"] = [list(names), list(names)[::-1]]
    return made(
        {"changed_0": torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [1.0, -8.0]]])},
        {"changes": facts},
    )


def test_changes_are_paired_bars_and_what_has_no_own_value_has_one():
    (figure,) = change_bars(changed())
    (first, second, apart), _ = drawn(figure)
    assert (first["x"], second["x"], apart["x"]) == ([0.5, None], [0.25, None], [0.3, 1.2])
    assert "without an own value" in figure.caption
    assert figure.alt.endswith(
        "trunk.weight 0.5, 0.25, between tasks 0.3; head.weight no own value, between tasks 1.2"
    )


def test_heat_maps_show_both_tasks_and_their_difference_by_class():
    ((one, other, difference),) = change_maps(changed())
    maps = [drawn(figure) for figure in (one, other, difference)]
    assert [data[0]["z"] for data, _ in maps] == [
        [[1, 2], [3, 4]],
        [[1, 1], [1, -8]],
        [[0, 1], [2, 12]],
    ]
    assert all((data[0]["zmin"], data[0]["zmax"]) == (-8, 8) for data, _ in maps)
    assert maps[0][1]["yaxis"]["ticktext"] == ["&lt;b&gt;cat", "dog"]
    assert maps[1][1]["yaxis"]["ticktext"] == ["dog", "&lt;b&gt;cat"]
    assert (
        one.title == "head.weight, written for task 1"
        and one.caption == "2x90, the first 2x2 shown"
    )


def test_what_was_left_out_is_said_and_what_is_not_there_yet_is_not():
    run = made(facts={"left_out": {"map": "The method has no condition to draw."}})
    (only,) = with_shared(run)
    assert (only.heading, only.message) == (
        "Map of conditions",
        "The method has no condition to draw.",
    )
    assert with_shared(made()) == []
    assert [
        section.message for section in with_shared(made(), reasons={"time": "Nobody timed it."})
    ] == ["Nobody timed it."]


def test_an_application_of_ones_own_draws_before_what_all_share(tmp_path):
    own = Section(
        "A picture of it",
        "As it was.",
        pictures=[Pictures("One", [("here", "data:image/png;base64,AA")])],
    )
    first = Section("Above the table", "First.", pictures=own.pictures, leads=True)

    def sections(run):
        return with_shared(
            run, {"own": own, "first": first, "empty": Section("Empty", "Of nothing.")}
        )

    (tmp_path / "config.json").write_text('{"place": "a pond"}')
    record = {"app": "pond", "identity": "", "command": "", "config": {}, "cost": {}, "notes": ""}
    write_run_record(tmp_path, record | {"scores": [row("ours")]})
    page = build_report(tmp_path, sections).read_text()
    headings = ["Above the table", "Results", "A picture of it", "Time to adapt against score"]
    headings.append("All options")
    assert re.findall("<h2>(.*?)</h2>", page) == headings
    assert "<h1>A hypernetwork on a pond</h1>" in page
    assert "A picture of it" not in build_report(tmp_path).read_text()


def test_the_room_has_no_word_of_an_application():
    room = Path(weightloom.report.__file__).parent
    for path in [*room.glob("*.py"), room.parent / "templates" / "report.html.j2"]:
        found = re.search(
            r"(?i)\b(shots?|ways|cameras?|episodes?|contexts?|environments|apps)\b",
            path.read_text(),
        )
        assert not found, f"{path.name}: {found[0]}"
