import ast
import json
import math
import re
import struct
import zlib
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import weightloom.report
from weightloom.apps.fewshot.figures import sections
from weightloom.apps.fewshot.figures.strips import first_of_each_class, task_strips
from weightloom.errors import CheckpointError, DataError, ShapeError
from weightloom.files import save_tensors
from weightloom.report import build_report
from weightloom.report.compare import time_figures
from weightloom.report.figures import learning_curves, lower_is_better, trailing_means
from weightloom.report.maps import condition_maps, principal_plane
from weightloom.report.pictures import data_uri, encode_png
from weightloom.report.run import read_run
from weightloom.report.scores import headline, rows_by_setting, score_heading, table_caption
from weightloom.runs.record import write_run_record
from weightloom.runs.words import time_text

SHOTS = [1, 3, 5]


def write_early(folder, score_name="accuracy", **options):
    """Write what is there while a run trains; the last line of the log is torn."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"data": "digits", "steps": 40, "seed": 0} | options)
    )
    rows = [
        {"step": step, "loss": 1 / step, "outer_lr": 1e-3, "wall_time_s": 0.1}
        for step in range(1, 31)
    ]
    rows += [
        {"step": step, "validation_score": 0.5 + step / 100, "score_name": score_name}
        for step in (10, 20)
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / "metrics.jsonl").write_text(text + '\n{"step": 31, "lo')
    return folder


def score(method, mean, ci95=0.006, setting="3-way 1-shot", name="accuracy", **more):
    better = "higher" if name == "accuracy" else "lower"
    also = {"macro_recall": {"mean": mean, "ci95": ci95}, "f1": {"mean": mean, "ci95": ci95}}
    known = {
        "method": method,
        "setting": setting,
        "name": name,
        "better": better,
        "mean": mean,
        "ci95": ci95,
    }
    return (
        known
        | {"tasks": 1000, "also": also if name == "accuracy" else {}, "adapt_time_s": 0.0012}
        | more
    )


def write_record(folder, *scores):
    cost = {
        "wall_time_s": 75.0,
        "peak_memory_bytes": 300 * 2**20,
        "device": "cpu",
        "torch": "2.13.0",
    }
    record = {
        "app": "fewshot",
        "identity": "",
        "command": "weightloom run --data digits",
        "version": "0.1.0",
    }
    record |= {"commit": None, "config": {}, "scores": scores, "cost": cost, "notes": "A note."}
    write_run_record(folder, record)
    return folder


def write_classification(folder, channels=1, class_names=("zero", "one", "two")):
    ways, shots, queries, tasks = 3, 2, 4, 2
    labels = torch.arange(ways)
    truth = labels.repeat_interleave(queries).expand(tasks, -1)
    predicted = truth.clone()
    predicted[0, 0] = 1
    tensors = {
        "support_x": torch.rand(tasks, ways * shots, channels, 8, 6),
        "support_y": labels.repeat_interleave(shots).expand(tasks, -1),
        "query_x": torch.rand(tasks, ways * queries, channels, 8, 6),
        "query_y": truth,
        "predicted": predicted,
        "confidence": torch.full(truth.shape, 0.75),
        "conditions": torch.randn(20, 5),
        "condition_class": torch.arange(20) % 3,
    }
    names = list(class_names)
    facts = {"kind": "classification", "class_names": [names] * tasks, "condition_names": names}
    save_tensors(folder / "evaluation.safetensors", tensors, facts)
    return folder


def write_regression(folder):
    tasks, points = 2, 20
    curve_y = torch.randn(tasks, points)
    tensors = {
        "curve_x": torch.linspace(-5, 5, points),
        "curve_y": curve_y,
        "curve_predicted": curve_y[:, None] + torch.randn(tasks, len(SHOTS), points),
        "support_x": torch.randn(tasks, 5),
        "support_y": torch.randn(tasks, 5),
        "conditions": torch.randn(20, 1),
        "condition_value": torch.randn(20, 2),
    }
    facts = {"kind": "regression", "shots": SHOTS, "condition_value_names": ["amplitude", "phase"]}
    save_tensors(folder / "evaluation.safetensors", tensors, facts)
    return folder


class Elements(HTMLParser):
    """Every element of a page, and every address that one of them names."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.addresses, self.attributes = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        self.addresses += [
            value for name, value in attrs if name in {"src", "href", "srcset", "action", "data"}
        ]


def decode_png(png):
    """Return the pixels, (channels, height, width), of an 8-bit PNG with filter 0 in all rows."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        kind, data = png[place + 4 : place + 8], png[place + 8 : place + 8 + length]
        assert struct.unpack(">I", png[place + 8 + length : place + 12 + length])[0] == zlib.crc32(
            kind + data
        )
        chunks[kind] = data
        place += 12 + length
    width, height, bits, colour, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (bits, rest, list(chunks)) == (8, [0, 0, 0], [b"IHDR", b"IDAT", b"IEND"])
    channels = {0: 1, 2: 3}[colour]
    rows = torch.tensor(list(zlib.decompress(chunks[b"IDAT"])), dtype=torch.uint8)
    rows = rows.reshape(height, 1 + width * channels)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, channels).permute(2, 0, 1)


def test_a_finished_classification_run_shows_every_section(tmp_path):
    folder = write_record(
        write_classification(write_early(tmp_path)), score("hypernetwork", 0.9), score("MAML", 0.8)
    )
    path = build_report(folder, sections)
    page = path.read_text()
    assert path == tmp_path / "report.html"
    for heading in (
        "Results",
        "Learning curves",
        "Predictions",
        "Map of conditions",
        "Cost",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert "weightloom run --data digits" in re.sub(
        "</?span[^>]*>", "", page
    )  # each word keeps to its line
    for text in ("A note.", "Macro recall", "1.2 ms", "1 min 15 s", "300 MiB"):
        assert text in page
    assert "11 of 12 query images right" in page
    assert page.count("<b>✗</b>") == 1 and page.count("<b>✓</b>") == 23
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*"))


def test_a_finished_regression_run_shows_curves_and_one_map_per_value(tmp_path):
    folder = write_regression(write_early(tmp_path, "mse", data="sinusoid"))
    page = build_report(
        write_record(folder, score("hypernetwork", 0.3, name="mse")), sections
    ).read_text()
    plots = [
        attributes
        for tag, attributes in Elements(page).attributes
        if tag == "svg" and "role" in attributes
    ]
    assert (
        len(plots) == 2 + 2 * len(SHOTS) + 2 + 1
    )  # learning, a panel per task and shot count, maps, time
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)
    assert "Mean squared error ± 95 %" in page and "Macro recall" not in page
    assert "Unobserved points" not in page
    apart = {"unobserved": {"mean": 0.4567, "ci95": 0.0123}}
    row = score("hypernetwork", 0.3, name="mse") | {"also": apart}
    other = build_report(write_record(folder, row), sections).read_text()
    assert '<th scope="col">Unobserved points</th>' in other and "0.457 ± 0.012" in other


@pytest.mark.parametrize(
    "write_evaluation", [write_classification, write_regression, lambda folder: folder]
)
def test_a_page_loads_nothing_from_elsewhere_and_has_no_script(tmp_path, write_evaluation):
    page = build_report(write_evaluation(write_early(tmp_path)), sections).read_text()
    elements = Elements(page)
    assert "http://" not in page and "https://" not in page and "@import" not in page
    assert all(address.startswith(("data:", "#")) for address in elements.addresses)
    assert "default-src 'none'" in page and "script" not in elements.tags
    links = {address[1:] for address in elements.addresses if address.startswith("#")}
    assert links == {its["id"] for tag, its in elements.attributes if tag == "section"}
    images = [attributes for tag, attributes in elements.attributes if tag == "img"]
    assert all(image["alt"] for image in images)


def test_a_run_that_has_just_begun_says_how_far_it_is(tmp_path):
    page = build_report(write_early(tmp_path)).read_text()
    assert (
        "this run has reached step 30 of 40. The last validation accuracy is 0.700, at step 20."
        in page
    )
    assert "<h2>Results</h2>" not in page and "<h2>Predictions</h2>" not in page


def test_a_config_alone_is_enough(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    page = build_report(tmp_path).read_text()
    assert "has not logged a step yet" in page and "<svg" not in page


def test_a_torn_line_is_passed_over_and_a_repeated_step_counts_once(tmp_path):
    write_early(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write(
            '\n{"step": 30, "loss": 7.0}\n{"step": 29, "loss": NaN}\n'
            '{"step": 28, "loss": null}\n[]\n'
        )
    run = read_run(tmp_path)
    assert [row["step"] for row in run.training] == list(range(1, 31))
    assert run.training[29]["loss"] == 7.0
    assert math.isnan(run.training[28]["loss"]) and math.isnan(run.training[27]["loss"])
    assert build_report(tmp_path).is_file()


def test_hostile_text_is_shown_and_not_run(tmp_path):
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    write_classification(
        write_early(tmp_path, data=hostile, extra=[hostile]), class_names=(hostile, "one", "two")
    )
    write_record(tmp_path, score(f"hypernetwork {hostile}", 0.9, setting=hostile))
    page = build_report(tmp_path, sections).read_text()
    elements = Elements(page)
    assert "alert(1)" in page and "<script>alert" not in page
    assert "x" not in elements.addresses
    assert "script" not in elements.tags and "onerror" not in dict(elements.attributes)


def test_a_folder_that_is_no_run_says_what_to_type(tmp_path):
    with pytest.raises(
        DataError, match=r"holds no run\. .* Pass the folder of a run, as in `runs/"
    ):
        build_report(tmp_path)
    assert build_report(write_early(tmp_path)).is_file()


@pytest.mark.parametrize(("name", "content"), [("config.json", "{"), ("record.json", "[1]")])
def test_a_damaged_file_is_named(tmp_path, name, content):
    (write_early(tmp_path) / name).write_text(content)
    with pytest.raises(DataError, match=f"{name}` cannot be read .* Put back an earlier copy"):
        build_report(tmp_path)


def test_a_page_that_is_there_survives_a_failure(tmp_path):
    kept = build_report(write_early(tmp_path)).read_bytes()
    (tmp_path / "evaluation.safetensors").write_bytes(b"truncated")
    with pytest.raises(CheckpointError):
        build_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == kept


def test_the_headline_says_plainly_who_is_best(tmp_path):
    def sentence(*scores):
        return headline(read_run(write_record(write_early(tmp_path), *scores)))

    assert sentence(score("hypernetwork", 0.912), score("ProtoNet", 0.88), score("MAML", 0.7)) == (
        "On 1,000 tasks (3-way 1-shot) never seen in training, "
        "the hypernetwork reached 0.912 ± 0.006 accuracy (ProtoNet 0.880 ± 0.006)."
    )
    assert sentence(score("hypernetwork", 0.8), score("MAML", 0.9)).endswith(
        "; MAML did better, 0.900 ± 0.006."
    )
    assert sentence(score("hypernetwork", 0.8), score("MAML", 0.805)).endswith(
        ", though the intervals overlap."
    )
    assert sentence(score("hypernetwork", 0.3, name="mse"), score("MAML", 0.5, name="mse")) == (
        "On 1,000 tasks (3-way 1-shot) never seen in training, "
        "the hypernetwork reached 0.300 ± 0.006 mean squared error (MAML 0.500 ± 0.006)."
    )
    far = [score("hypernetwork", 0.8), score("MAML", 0.7)]
    two = [score("hypernetwork", 0.8, setting="5-shot"), score("MAML", 0.9, setting="5-shot")]
    assert sentence(*far, *two).endswith(
        "The hypernetwork is best, or level with the best, in 1 of 2 settings."
    )


def test_a_control_is_no_rival_but_stands_in_the_table(tmp_path):
    scores = [
        score("hypernetwork", 0.3, name="mse"),
        score("shuffled", 0.1, name="mse", role="control"),
    ]
    scores += [score("hypernetwork", 0.2, name="mse", role="untrained")]
    run = read_run(write_record(write_early(tmp_path), *scores))
    assert headline(run).endswith("the hypernetwork reached 0.300 ± 0.006 mean squared error.")
    rows = rows_by_setting(scores)["3-way 1-shot"]
    assert [(row.method, row.best) for row in rows] == [
        ("hypernetwork", False),
        ("shuffled (control)", False),
        ("hypernetwork (untrained)", False),
    ]


def test_the_headline_of_a_failed_method_and_of_a_single_task_is_true(tmp_path):
    def sentence(*scores):
        return headline(read_run(write_record(write_early(tmp_path), *scores)))

    failed = score("hypernetwork", math.nan, math.nan, tasks=0)
    assert sentence(failed) == "The hypernetwork failed and has no score."
    assert sentence(failed, score("MAML", 0.8)) == (
        "The hypernetwork failed and has no score; MAML reached 0.800 ± 0.006."
    )
    assert sentence(score("hypernetwork", 0.9, math.nan, tasks=1)) == (
        "On 1 task (3-way 1-shot) never seen in training, the hypernetwork reached 0.900 accuracy."
    )
    alone = [score("hypernetwork", 0.8, setting=f"{shots}-shot") for shots in (1, 5)]
    assert "is best" not in sentence(*alone)


def test_the_caption_of_the_table_explains_only_the_parts_that_it_has():
    alone, timeless = score("hypernetwork", 0.9), score("hypernetwork", 0.9, adapt_time_s=None)
    assert table_caption([alone]) == "The time to adapt is that for one new task."
    assert table_caption([timeless]) == ""
    assert table_caption([alone, score("MAML", 0.8)]).startswith("Bold rows are the best")
    assert score_heading([alone]) == "Accuracy ± 95 %"
    assert score_heading([score("hypernetwork", 0.9, math.nan)]) == "Accuracy"


@pytest.mark.parametrize(
    ("rows", "said"), [(1, "logged once"), (9, "as logged"), (80, "mean over")]
)
def test_the_caption_of_the_loss_names_the_lines_that_are_drawn(tmp_path, rows, said):
    write_early(tmp_path)
    log = [json.dumps({"step": step, "loss": 1 / step}) for step in range(1, rows + 1)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(log))
    (figure,) = learning_curves(read_run(tmp_path))
    assert said in figure.caption
    assert len(json.loads(figure.plot)["data"]) == (2 if rows > 50 else 1)


def test_the_title_names_the_data_of_a_run_wherever_the_option_stands(tmp_path):
    (tmp_path / "config.json").write_text('{"method": "maml", "steps": 5, "data": "digits"}')
    assert "<h1>maml on digits, 5 steps</h1>" in build_report(tmp_path).read_text()


def test_the_facts_of_a_run_say_what_its_tasks_are(tmp_path):
    folder = write_record(write_early(tmp_path), score("hypernetwork", 0.9))
    save_tensors(folder / "evaluation.safetensors", {}, {"unseen": "on roads never driven"})
    assert headline(read_run(folder)).startswith(
        "On 1,000 tasks (3-way 1-shot) on roads never driven, the hyper"
    )


@pytest.mark.parametrize("told", ["record", "facts", "log"])
def test_a_lower_score_is_better_if_record_facts_or_log_say_so(tmp_path, told):
    folder = write_early(tmp_path, "mse" if told == "log" else "energy")
    assert lower_is_better(read_run(folder)) == (told == "log")
    if told == "record":
        write_record(folder, score("hypernetwork", -3.0, name="energy"))
    if told == "facts":
        save_tensors(folder / "evaluation.safetensors", {}, {"better": "lower"})
    run = read_run(folder)
    assert lower_is_better(run)
    assert all("Lower is better" in figure.caption for figure in learning_curves(run))
    assert [
        json.loads(figure.plot)["layout"]["yaxis"].get("type") for figure in learning_curves(run)
    ] == ["log", "log"]


def test_an_axis_of_scores_below_zero_is_not_logarithmic():
    scores = [score("hypernetwork", -3.0, name="energy"), score("other", 2.0, name="energy")]
    assert scores[0]["better"] == "lower"
    (figure,) = time_figures(scores)
    assert "type" not in json.loads(figure.plot)["layout"]["yaxis"]


def test_every_row_whose_interval_meets_the_best_is_bold():
    scores = [
        score("a", 0.90, 0.01),
        score("b", 0.885, 0.01),
        score("c", 0.87, 0.005),
        score("d", math.nan),
    ]
    assert [row.best for row in rows_by_setting(scores)["3-way 1-shot"]] == [
        True,
        True,
        False,
        False,
    ]


def test_times_carry_the_unit_a_person_would_choose():
    assert [time_text(seconds) for seconds in (9e-6, 0.9999, 59.0, math.nan)] == [
        "9 µs",
        "1 s",
        "59 s",
        "",
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_decodes_to_the_pixels_that_went_in(channels):
    pixels = torch.randint(0, 256, (channels, 5, 7), dtype=torch.uint8)
    assert torch.equal(decode_png(encode_png(pixels)), pixels)


def test_a_png_of_two_channels_is_refused_and_the_advice_works():
    pixels = torch.randint(0, 256, (2, 5, 7), dtype=torch.uint8)
    with pytest.raises(ShapeError, match=r"2 channels.*pass their mean"):
        encode_png(pixels)
    assert decode_png(encode_png(pixels.float().mean(0, keepdim=True).byte())).shape == (1, 5, 7)
    assert data_uri(torch.rand(2, 5, 7)).startswith("data:image/png;base64,")


def test_a_strip_shows_the_first_of_each_class(tmp_path):
    assert first_of_each_class(torch.tensor([2, 0, 2, 2, 0]), count=2) == {0: [1, 4], 2: [0, 2]}
    strips = task_strips(read_run(write_classification(write_early(tmp_path), channels=3)))
    assert [name for name, _ in strips[0].support] == ["zero", "one", "two"]
    assert (strips[0].queries[0].truth, strips[0].queries[0].predicted) == ("zero", "one")
    assert (strips[0].queries[0].confidence, strips[0].queries[0].right) == ("75 %", False)


def test_a_map_keeps_distances_within_a_plane_and_turns_with_its_points():
    flat = torch.randn(30, 2, dtype=torch.float64)
    directions = torch.linalg.qr(torch.randn(6, 2, dtype=torch.float64)).Q
    conditions = flat @ directions.T + 3
    places, shares = principal_plane(conditions)
    torch.testing.assert_close(torch.cdist(places, places), torch.cdist(flat, flat))
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(principal_plane(-conditions)[0], -places)


def test_more_classes_than_colours_share_one_in_grey(tmp_path):
    write_early(tmp_path)
    tensors = {"conditions": torch.randn(60, 4), "condition_class": torch.arange(60) % 15}
    facts = {"kind": "classification", "condition_names": [f"class {i:02d}" for i in range(15)]}
    save_tensors(tmp_path / "evaluation.safetensors", tensors, facts)
    (figure,) = condition_maps(read_run(tmp_path))
    assert len(figure.keys) == 11 and figure.keys[-1].name == "other classes"
    drawn = json.loads(figure.plot)["data"]
    assert sum(len(trace["x"]) for trace in drawn) == 60


def test_trailing_means_agree_with_the_obvious_loop():
    values = torch.rand(50, dtype=torch.float64).tolist()
    obvious = [
        sum(values[max(0, i - 6) : i + 1]) / len(values[max(0, i - 6) : i + 1]) for i in range(50)
    ]
    assert trailing_means(values, span=7) == pytest.approx(obvious, rel=1e-12)
    assert trailing_means([1.0, math.inf, 3.0], span=2) == [1.0, 1.0, 3.0]


def test_importing_the_room_imports_neither_plotly_nor_jinja():
    for path in Path(weightloom.report.__file__).parent.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not any(
                name.split(".")[0] in {"plotly", "jinja2", "markupsafe"} for name in names
            ), path
