"""What the report draws of few-shot runs: from a run folder, and from tensors made by hand."""

import json
import re

import pytest
import torch

from weightloom.apps import experiment
from weightloom.apps.fewshot.app import FewShot
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.figures import sections
from weightloom.apps.fewshot.figures.completed import completed_images, observed
from weightloom.apps.fewshot.figures.curves import curve_rows, scatter, worst_scatter
from weightloom.apps.fewshot.figures.strips import worst_strips
from weightloom.apps.fewshot.figures.sweep import sweep_figures
from weightloom.files import save_tensors
from weightloom.report import build_report
from weightloom.report.pictures import data_uri
from weightloom.report.run import Run
from weightloom.runs.record import competes
from weightloom.runs.words import score_text, time_text

HEADINGS = {
    "predicted": "Predictions",
    "worst": "The worst tasks",
    "sweep": "Score against shots and ways",
    "time": "Time to adapt against score",
    "calibration": "Confidence against accuracy",
    "changes": "Change of each layer",
    "map": "Map of conditions",
}
TINY = {"steps": 2, "tasks": 2, "test_tasks": 16, "queries": 4, "evaluate_every": 1}


def made(tensors=None, facts=None):
    return Run("made", {}, [], [], {}, tensors or {}, {"kind": "classification"} | (facts or {}))


def drawn(figure):
    plot = json.loads(figure.plot)
    return plot["data"], plot["layout"]


@pytest.fixture(scope="module", params=["digits", "sinusoid"])
def finished(request, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / request.param
    options = {"comparators": ("centroid",) if request.param == "digits" else (), "shots": (1, 3)}
    record = experiment.run(
        FewShot(), FewShotConfig(data=request.param, **TINY, **options), run, quiet=True
    )
    return request.param, record, (run / "report.html").read_text()


def test_the_report_of_a_run_has_every_section_in_order(finished):
    data, _, page = finished
    assert re.findall("<h2>(.*?)</h2>", page)[2:-2] == list(HEADINGS.values())
    assert "could not be drawn" not in page
    assert ("This does not apply: only a classification" in page) == (data == "sinusoid")
    assert ("with classes never seen in training" in page) == (data == "digits")
    assert ("further down is better" in page) == (data == "sinusoid")


def test_times_and_calibration_on_the_page_are_those_of_the_record(finished):
    data, record, page = finished
    kept = [r for r in record["scores"] if competes(r)]
    for r in kept:
        said = f"{r['method']}: {score_text(r)} in {time_text(r['adapt_time_s'])}"
        assert f"<title>{said}</title>" in page
    if data == "digits":
        for r in kept:
            assert f"{r['method']}: {r['calibration']['ece']:.3f}</li>" in page


def test_a_page_with_all_sections_is_small_and_fetches_nothing(finished):
    page = finished[2]
    assert len(page) < 1_000_000 and "http://" not in page and "https://" not in page


def test_a_sweep_has_a_line_for_each_method_and_one_for_each_ways():
    rows = [
        {
            "method": method,
            "ways": ways,
            "shots": shots,
            "mean": 0.5 + shots / 100 + ways / 1000,
            "ci95": 0.02,
            "tasks": 9,
        }
        for method, ways in (("ours", 5), ("ours", 2), ("other", 5))
        for shots in (1, 5)
    ]
    methods, ways = sweep_figures(
        made(facts={"sweep": {"name": "accuracy", "rows": rows, "ours": "ours", "ways": 5}})
    )
    assert [key.name for key in methods.keys] == [
        "ours",
        "other",
    ] and methods.title == "Methods, 5-way"
    assert [key.name for key in ways.keys] == ["2-way", "5-way"]
    (band, line, *_), _ = drawn(ways)
    assert line["x"] == [1, 5] and line["y"] == pytest.approx([0.512, 0.552])
    assert band["x"] == [1, 5, 5, 1] and band["y"] == pytest.approx([0.532, 0.572, 0.532, 0.492])
    assert "ours 0.515 from 1, 0.555 from 5" in methods.alt


def worst_classes(pictures):
    tensors = {
        "worst_support_y": torch.tensor([[0, 1, 1]]),
        "worst_support_mask": torch.tensor([[True, True, False]]),
        "worst_query_y": torch.tensor([[0, 0, 1, 1]]),
        "worst_predicted": torch.tensor([[0, 1, 1, 0]]),
        "worst_confidence": torch.tensor([[0.9, 0.6, 0.9, 0.7]]),
    }
    if pictures:
        tensors |= {
            "worst_support_x": torch.rand(1, 3, 1, 4, 4),
            "worst_query_x": torch.rand(1, 4, 1, 4, 4),
        }
    return made(tensors, {"worst_class_names": [["cat", "dog"]], "worst_of": 200})


def test_the_worst_tasks_show_their_support_set_and_what_went_wrong():
    run = worst_classes(pictures=True)
    (strip,) = worst_strips(run)
    assert strip.score == "2 of 4 query images right; the others shown"
    assert [(q.truth, q.predicted, q.confidence) for q in strip.queries] == [
        ("cat", "dog", "60 %"),
        ("dog", "cat", "70 %"),
    ]
    assert strip.queries[0].uri == data_uri(run.tensors["worst_query_x"][0, 1])
    assert [(name, len(images)) for name, images in strip.support] == [
        ("cat", 1),
        ("dog", 1),
    ]  # a masked one is not


def test_what_is_no_picture_is_shown_by_its_names(tmp_path):
    run = worst_classes(pictures=False)
    (strip,) = worst_strips(run)
    assert strip.score == "2 of 4 query points right; the others shown" and not strip.queries[0].uri
    (tmp_path / "config.json").write_text("{}")
    save_tensors(tmp_path / "evaluation.safetensors", run.tensors, run.facts)
    page = build_report(tmp_path, sections).read_text()
    assert "Of 200 tasks" in page and "<img" not in page and "60 % · is cat" in page


def test_sentences_stand_in_the_place_of_pictures(tmp_path):
    run = worst_classes(pictures=False)
    said = {
        "worst_support_texts": [["purr", "bark", "woof"]],
        "worst_query_texts": [["meow", "hiss", "howl", "<growl>"]],
    }
    (strip,) = worst_strips(made(run.tensors, run.facts | said))
    assert strip.score == "2 of 4 query sentences right; the others shown"
    assert strip.sentences == [("cat", ["purr"]), ("dog", ["bark"])]  # a masked one is not
    assert [(query.text, query.truth) for query in strip.queries] == [
        ("hiss", "cat"),
        ("<growl>", "dog"),
    ]
    (tmp_path / "config.json").write_text("{}")
    save_tensors(tmp_path / "evaluation.safetensors", run.tensors, run.facts | said)
    page = build_report(tmp_path, sections).read_text()
    assert (
        "<dt>cat</dt><dd>purr</dd>" in page
        and "<q>&lt;growl&gt;</q>" in page
        and "woof" not in page
    )


def test_completed_images_stand_beside_what_was_observed_and_the_truth(tmp_path):
    truth, seen = torch.rand(1, 4, 4), torch.zeros(1, 4, 4, dtype=torch.bool)
    seen[0, 1, 2] = True
    tensors = {"image_truth": truth, "image_observed_1": seen, "image_completed_1": truth + 0.5}
    facts = {"kind": "regression", "image_shots": [1], "titles": ["image 7"]}
    (row,) = completed_images(made(tensors | {"image_fine": torch.rand(1, 16, 16)}, facts))
    assert row.title == "Task 1: image 7"
    assert [words for words, _ in row.images] == [
        "truth",
        "1 pixels",
        "completed, error 0.25",
        "4 times finer",
    ]
    colours = observed(truth[0], seen[0])
    assert colours[:, 1, 2].tolist() == [truth[0, 1, 2]] * 3
    assert (
        len(colours.flatten(1).unique(dim=1)[0]) == 2
    )  # the one that was seen, and the colour of all others


def test_points_of_a_task_are_drawn_where_there_is_no_true_curve():
    tensors = {
        "worst_curve_x": torch.linspace(0, 1, 9)[None],
        "worst_curve_predicted": torch.rand(1, 1, 9),
        "worst_support_x": torch.rand(1, 3),
        "worst_support_y": torch.rand(1, 3),
        "worst_support_mask": torch.tensor([[True, True, False]]),
        "worst_query_x": torch.rand(1, 4),
        "worst_query_y": torch.rand(1, 4),
        "worst_scores": torch.tensor([2.5]),
    }
    facts = {"kind": "regression", "worst_shots": [3], "worst_titles": ["rat 3"], "worst_of": 200}
    (task,) = curve_rows(made(tensors, facts), "worst_")
    assert task.title == "Task 1: rat 3, error 2.5" and task.panels[0][0] == "3 points"
    (truth, predicted, support), _ = drawn(task.panels[0][1])
    assert (
        truth["x"] == pytest.approx(tensors["worst_query_x"][0].tolist())
        and truth["mode"] == "markers"
    )
    assert len(predicted["x"]) == 9 and len(support["x"]) == 2


def test_several_inputs_are_shown_against_the_truth():
    tensors = {
        "scatter_true": torch.tensor([1.0, 4.0]),
        "scatter_predicted": torch.tensor([2.0, 3.0]),
    }
    worst = {
        "worst_true": torch.ones(2, 3),
        "worst_predicted": torch.zeros(2, 3),
        "worst_scores": torch.tensor([4.0, 1.0]),
    }
    run = made(tensors | worst, {"scatter_shots": 5, "worst_titles": ["a", "b"]})
    (diagonal, points), _ = drawn(scatter(run)[0])
    assert diagonal["x"] == [1, 4] and (points["x"], points["y"]) == ([1, 4], [2, 3])
    assert [key.name for key in worst_scatter(run)[0].keys] == ["a, error 4", "b, error 1"]
