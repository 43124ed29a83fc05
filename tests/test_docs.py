import inspect
import json
import logging
import re
import runpy
import tomllib
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import pytest
import torch
import yaml

import weightloom
from weightloom.apps import experiment
from weightloom.apps.fewshot.app import FewShot
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.judge import judge
from weightloom.apps.fewshot.methods import METHODS
from weightloom.apps.fewshot.problems import problem_of
from weightloom.cli import COMMANDS
from weightloom.runs.metrics import read_rows
from weightloom.runs.record import environment

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
METRICS = DOCS / "reference" / "metrics.md"
PAGES = [
    README,
    *(
        page
        for folder in ("tutorial", "how-to", "explanation")
        for page in sorted((DOCS / folder).glob("*.md"))
    ),
]
MARKDOWN = [
    *sorted(ROOT.glob("*.md")),
    *(page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts),
]

NEEDS = {
    "adapters": "transformers",
    "frameworks": "lightning",
    "gan": "sklearn",
    "gan-pictures": "sklearn",
    "measure-samples": "sklearn",
    "reinforcement-learning": "sb3_contrib",
    "your-own-data": "PIL",
}
"""Pages whose code runs only where an optional package is installed."""

FIVE_LINES = """\
condition = encoder(support_x, support_y)  # (tasks, condition_dim)
params = hyper(condition)  # {name: (tasks, *shape)}
prediction = apply_per_task(base, params, query_x)  # (tasks, batch, out)
loss = mse_per_task(prediction, query_y).mean()  # (tasks,) -> ()
loss.backward()
```
"""

BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\s*^```text\n(.*?)^```$)?", re.MULTILINE | re.DOTALL)
"""A block of code, and what it prints if that stands right behind it."""

FENCED = re.compile(r"^(`{3,}).*?^\1$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")
AUTODOC = re.compile(r"^\.\. automodule:: (\S+)\n((?:   :.*\n)*)", re.MULTILINE)

tables = runpy.run_path(str(DOCS / "_tables.py"))
rooms = runpy.run_path(str(DOCS / "_rooms.py"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs_and_prints_what_the_page_says(
    page, unchecked, tmp_path, monkeypatch, capsys
):
    if page.stem in NEEDS:
        pytest.importorskip(NEEDS[page.stem])
    monkeypatch.chdir(tmp_path)
    text, names = page.read_text(), {"__name__": "page"}
    for block in BLOCK.finditer(text):
        above = text[: block.start(1)].count("\n")  # so that a traceback names the line of the page
        exec(compile("\n" * above + block[1], str(page), "exec"), names)
        assert capsys.readouterr().out == (block[2] or ""), (
            f"the block before line {above + block[1].count(chr(10))}"
        )
    assert torch.get_num_threads() == 1
    # Lightning binds a handler to the stream that is captured here, and closed after this test.
    logging.getLogger("lightning").handlers.clear()


def test_readme_shows_the_five_lines():
    assert FIVE_LINES in README.read_text()


def test_every_public_name_can_be_imported_and_its_room_has_a_page():
    pages = {target for target, _ in directives()}
    for name, room in weightloom._public_names().items():
        assert getattr(weightloom, name) is not None
        assert f"weightloom.{room}" in pages


def test_every_public_class_and_function_is_on_a_reference_page_and_says_what_it_is():
    shown = documented()
    for module in modules():
        for thing in public(module):
            path = f"{thing.__module__}.{thing.__qualname__}"
            assert thing in shown, f"{path} is on no page of docs/reference"
            assert inspect.getdoc(thing), f"{path} has no docstring"


def test_every_page_of_the_reference_is_in_its_table():
    listed = (DOCS / "reference" / "index.md").read_text()
    assert all(
        f"]({page.name})" in listed
        for page in (DOCS / "reference").glob("*.md")
        if page.stem != "index"
    )


@pytest.mark.parametrize(
    "page", [README, DOCS / "reference" / "cli.md"], ids=lambda page: page.stem
)
def test_every_command_is_named(page):
    assert all(f"`weightloom {name}" in page.read_text() for name in COMMANDS)


def test_every_logged_key_is_explained(tmp_path):
    config = FewShotConfig(
        "sinusoid", shots=(1,), steps=2, tasks=2, test_tasks=2, evaluate_every=1, comparators=()
    )
    record = experiment.run(FewShot(), config, tmp_path / "run", quiet=True)
    rows = read_rows(tmp_path / "run")
    assert len(rows) == 3  # the last step, and two evaluations
    logged = {
        key
        for row in [*rows, record, record["cost"], *record["scores"], environment()]
        for key in row
    }
    explained = set(re.findall(r"`(\w+)`", METRICS.read_text()))
    assert logged <= explained


def test_every_score_of_a_classification_is_explained():
    pytest.importorskip("sklearn")
    problem = problem_of(FewShotConfig("digits", shots=(1,)).resolved())
    row = judge(problem.learner("centroid"), problem, shots=1, tasks=2).row(
        "centroid", "3-way 1-shot"
    )
    explained = set(re.findall(r"`(\w+)`", METRICS.read_text()))
    assert {row["name"], *row, *row["also"]} <= explained


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_inside_the_project_leads_somewhere(page):
    for target, heading in LINK.findall(FENCED.sub("", page.read_text())):
        if "://" in target:
            continue
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{page.name} links to {target}"
        assert not heading or heading in headings(there), f"{page.name} links to {target}#{heading}"


def test_no_file_names_a_folder_of_one_machine():
    machine = re.compile(r"(?<![\w.$~}>-])/(?:work|root|home)/")
    for path in project_files():
        found = machine.search(path.read_text(encoding="utf-8", errors="ignore"))
        assert not found, f"{path.relative_to(ROOT)} holds an absolute path"


def test_readme_holds_the_results_that_the_records_give():
    written = README.read_text()
    assert written == tables["with_all"](written, tables["read_records"]())


def test_without_records_the_tables_say_so(tmp_path):
    assert tables["readme_block"](tables["read_records"](tmp_path)) == "No records yet."
    assert tables["results_page"]({}) == "No records yet."


def test_tables_name_the_best_the_control_and_what_failed(tmp_path):
    (tmp_path / "toy.json").write_text(json.dumps(toy_record()))
    records = tables["read_records"](tmp_path)
    page = tables["results_page"](records)
    assert "## toy" in page and "weightloom fewshot --data toy" in page and "A note." in page
    assert "| hypernetwork | **0.900 ± 0.010** | 1.2 ms | 5 seeds |" in page
    assert "| protonet | **0.890 ± 0.010** |" in page  # the intervals overlap
    assert (
        "| scratch | failed |" in page and "| shuffled support (control) | 0.990 ± 0.010 |" in page
    )
    assert "Published: 0.95, Someone (2020), table 1. Differences: their base is deeper." in page
    block = tables["results_table"](records)
    assert (
        "| [toy](benchmarks/records/toy.json) | 3-way 1-shot | accuracy, higher is better |"
        in block
    )
    assert "| **0.900 ± 0.010** | **0.890 ± 0.010** (protonet) | 0.990 ± 0.010 |" in block


def test_a_method_that_failed_in_some_runs_or_in_all_says_so():
    lost = {"mean": None, "ci95": None, "adapt_time_s": None, "also": {}, "tasks": 0}
    scores = [
        {
            "setting": "10-shot",
            "name": "mse",
            "better": "lower",
            "tasks": 9,
            "ci95": 0.001,
            "also": {},
            "mean": 0.01,
        }
        | {"adapt_time_s": 0.1, "method": method}
        | rest
        for method, rest in (
            ("hypernetwork", {}),
            ("maml", lost),
            ("anil", {"failed": "1 of 3 runs"}),
        )
    ]
    records = {"sinusoid-comparators": {"command": "", "scores": scores}}
    page, targets = tables["results_page"](records), tables["targets_table"](records)
    assert "| maml | failed |" in page and "0.010 ± 0.001 (failed in 1 of 3 runs)" in page
    assert "| sinusoid, 10 shots, against maml | below maml | 0.01 | maml failed |" in targets


def test_a_benchmark_shows_its_ratios_and_the_share_of_a_core_where_that_was_measured():
    row = {
        "setting": "toy",
        "of": "ours",
        "against": "loop",
        "ratio": {"median": 0.5, "low": 0.4, "high": 0.6},
    }
    timed = row | {"ms": {"ours": 2.0, "loop": 4.0}, "share": {"ours": 0.5, "loop": 0.25}}
    page = tables["results_page"]({"core": {"scores": [], "rows": [timed, row]}})
    assert "| toy | ours | loop | 0.5 | 0.40 to 0.60 |" in page
    assert "| toy | loop | 4 ms | 25 % |" in page and page.count("50 %") == 1
    assert "this core" not in tables["results_page"]({"core": {"scores": [], "rows": [row]}})


def test_the_results_page_has_the_mark_that_tables_are_put_at():
    assert (DOCS / "results.md").read_text().count(tables["START"]) == 1


def test_the_lead_of_a_generated_network_is_paired_if_known_and_positive_if_it_is_better():
    record = toy_record()  # .900 and .890, each with an interval of .010

    def cells():
        return tables["generating_table"]({"toy": record}, ("toy",)).splitlines()[-1].split(" | ")

    assert cells()[3:6] == ["0.900 ± 0.010", "0.890 ± 0.010 (protonet)", "0.010 ± 0.020"]
    assert cells()[-1] == "level |"
    record["paired"] = {"3-way 1-shot: hypernetwork - protonet": {"mean": 0.01, "ci95": 0.002}}
    assert cells()[-2:] == ["0.010 ± 0.002", "ahead |"]
    for score in record["scores"]:
        score["better"] = "lower"
    assert cells()[-2:] == ["-0.010 ± 0.002", "behind |"]
    assert tables["generating_table"]({}, ("toy",)) == "No records yet."


def test_every_mark_of_the_page_on_generating_has_records():
    marks = tables["GENERATING"].findall((DOCS / "explanation/when-generating-pays.md").read_text())
    families = tables["FAMILIES_OF_TASKS"]
    assert sorted(marks) == sorted(families)
    assert {name for names in families.values() for name in names} <= tables[
        "read_records"
    ]().keys()


def test_every_method_has_a_row_of_the_table_with_the_data_it_solves():
    rows = {
        line.split("`")[1]: line.split("|")[3:9]
        for line in tables["methods_table"]().splitlines()
        if "| `" in line
    }
    heads = tables["methods_table"]().splitlines()[0].split("|")[3:9]
    assert rows.keys() == {method.name for method in METHODS}
    solved = {
        name: [head.strip() for head, cell in zip(heads, cells, strict=True) if "●" in cell]
        for name, cells in rows.items()
    }
    assert solved["protonet"] == ["images", "sentences"] and solved["shared"] == [
        "cameras",
        "unlabelled",
    ]
    assert rows["kernel"][4].strip() == "`table`" and solved["kernel"] == ["functions"]
    assert (DOCS / "how-to" / "few-shot-methods.md").read_text().count(tables["METHODS_MARK"]) == 1


def test_nothing_is_on_two_pages_of_the_reference():
    targets = [target for target, _ in directives()]
    assert len(targets) == len(set(targets))


def test_a_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="lacks <!-- results -->"):
        tables["with_block"]("nothing here", "a table")


def test_citation_and_changelog_name_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (
        str(citation["version"]) == version
        and {"cff-version", "message", "title", "authors"} <= citation.keys()
    )
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def toy_record():
    known = {
        "setting": "3-way 1-shot",
        "name": "accuracy",
        "better": "higher",
        "tasks": 1000,
        "ci95": 0.01,
    }
    scores = [
        known
        | {"method": "hypernetwork", "mean": 0.9, "adapt_time_s": 0.0012, "per_seed": [0.9] * 5},
        known | {"method": "protonet", "mean": 0.89},
        known | {"method": "scratch", "mean": None, "ci95": None},
        known | {"method": "shuffled support", "role": "control", "mean": 0.99},
    ]
    reference = {
        "value": 0.95,
        "source": "Someone (2020), table 1",
        "differs": "their base is deeper",
    }
    cost = {"wall_time_s": 75.0, "device": "cpu", "torch": "2.13.0"}
    known = {"command": "weightloom fewshot --data toy", "config": {}, "notes": "A note."}
    return known | {"scores": scores, "cost": cost, "reference": reference}


def directives():
    pages = [rooms["expanded"](page.read_text()) for page in (DOCS / "reference").glob("*.md")]
    return [
        found
        for page in [*pages, *rooms["file_pages"]().values()]
        for found in AUTODOC.findall(page)
    ]


def documented():
    """Every class and function that a reference page shows."""
    shown = set()
    for target, options in directives():
        if ":members:" in options:
            excluded = re.findall(r"\w+", options.partition(":exclude-members:")[2])
            found = public(import_module(target), imported=":imported-members:" in options)
            shown |= {thing for thing in found if thing.__name__ not in excluded}
    return shown


def public(module, imported=False):
    """The public classes and functions of a module, with those it re-exports if asked for."""
    found = inspect.getmembers(
        module, lambda thing: inspect.isclass(thing) or inspect.isfunction(thing)
    )
    below = f"{module.__name__}."

    def ours(thing):
        return thing.__module__ == module.__name__ or (
            imported and thing.__module__.startswith(below)
        )

    return [thing for name, thing in found if not name.startswith("_") and ours(thing)]


def modules():
    found = walk_packages(weightloom.__path__, "weightloom.")
    return [import_module(info.name) for info in found if not info.name.endswith("__main__")]


def headings(page):
    """The anchors of a page's headings, as myst and GitHub make them."""
    found = re.findall(r"^#+ +(.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def project_files():
    folders = ("src", "tests", "docs", "examples", "benchmarks", ".ci", ".github")
    inside = (path for folder in folders for path in (ROOT / folder).rglob("*"))
    skipped = {"_build", "__pycache__", ".git"}  # the last is a file in a worktree
    kinds = {".py", ".md", ".json", ".toml", ".txt", ".cff", ".yml", ".yaml", ".sh", ".j2", ""}
    return [
        path
        for path in [*ROOT.iterdir(), *inside]
        if path.is_file() and path.suffix in kinds and not skipped & set(path.parts)
    ]
