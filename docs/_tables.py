"""Tables of results, generated from the records.

In:   ``benchmarks/records/*.json``.
Out:  the tables of the results page; with ``--write-readme`` the marked blocks of README.md.
Run:  python docs/_tables.py --write-readme
"""

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from weightloom.apps.fewshot.methods import FAMILIES, METHODS
from weightloom.runs.record import competes, label, role_of
from weightloom.runs.words import best_of, overlap, score_text, time_text

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "records"
RECORD = re.compile(r"<!-- record (\S+) -->")
GENERATING = re.compile(r"<!-- generating (\w+) -->")
METHODS_MARK = "<!-- methods -->"
STEPS = re.compile(r", \d+ steps?$")
"""End of the name of a setting with gradient steps on the target."""
START, END = "<!-- results -->", "<!-- /results -->"
OURS = "hypernetwork"
DEFAULT_RUNS = ("cameras", "lqr", "transfer-domains", "gan-digits", "fields-burgers")
"""Records shown in README: the default run of each application."""
FAMILIES_OF_TASKS = {
    "multiplies": (
        *("cameras", "cameras-crosstalk", "hyperteacher", "gyre", "lqr"),
        *("transfer-domains", "transfer-documents", "transfer-zoo"),
        *("fields-burgers", "fields-burgers-mild", "fields-advection-diffusion"),
    ),
    "adds": (
        *("digits", "omniglot", "omniglot-alphabets", "cifar-fs-frozen", "photographs"),
        *("spoken-digits", "spoken-digits-gru", "intents"),
        *("growth-curves", "sinusoid-comparators"),
        *("transfer-series", "transfer-intents", "transfer-pictures", "transfer-scans"),
        *("gan-digits", "gan-mnist", "gan-spoken-digits"),
    ),
    "both": ("mnist-functions", "halfcheetah", "cartpole-hidden"),
}
"""Records of the page on when generating pays, by the effect of a task on its inputs."""
GENERATED = (
    *(OURS, "nonlinear", "linear", "hyper-free"),
    *("generated-head", "generated-metric", "hyper-film", "hyper-lowrank"),
    *("generated", "generated-frozen", "generated-weights", "generated-after"),
    *("generated-adapter", "generated-reconstruction"),
    *("generated-generator", "generated-discriminator", "picture-generated"),
    *("function-film", "function-lowrank", "generated-film", "generated-lowrank"),
)
"""Methods that generate weights."""
SCORES = ("accuracy", "mse", "return", "exact match", "loss_ratio", "relative_error", "modes")
"""Scores of learning methods."""
CHECKED = "checked"
"""Row of a blend of all methods, the generating ones included."""
NAMES = {"mse": "mean squared error"}

CONTROL = "shuffled (control)"
APART, AHEAD = "above, intervals apart,", "paired, above"
CAMERAS = ("1 of each of 10", "2 of each of 10", "2 of each of 5", "4 of each of 5")
TARGETS = [
    # the fields of `Target`
    *(
        ("cameras", setting, "", "at least", bound, f"cameras, {setting}: accuracy")
        for setting, bound in zip(CAMERAS, (0.85, 0.92, 0.71, 0.81), strict=True)
    ),
    *(
        (
            "cameras",
            setting,
            "",
            AHEAD,
            0.0,
            f"cameras, {setting}: ahead of every other method, end of the interval",
        )
        for setting in CAMERAS
    ),
    (
        "sinusoid-default",
        "10-shot",
        "",
        "at most",
        0.02,
        "sinusoid, 10 shots, default run: mean squared error",
    ),
    (
        "sinusoid-default",
        "10-shot",
        CONTROL,
        "times worse",
        50.0,
        "sinusoid: control over hypernetwork",
    ),
    (
        "sinusoid-long",
        "10-shot",
        "",
        "at most",
        0.004,
        "sinusoid, 10 shots, long run: mean squared error",
    ),
    *(
        ("omniglot", setting, "", "at least", bound, f"Omniglot, {setting}: accuracy")
        for setting, bound in (
            ("5-way 1-shot", 0.99),
            ("5-way 5-shot", 0.997),
            ("20-way 1-shot", 0.97),
            ("20-way 5-shot", 0.989),
        )
    ),
    *(
        (
            "omniglot",
            f"{ways}-way {shots}-shot",
            "protonet",
            "not below",
            0.0,
            f"Omniglot, {ways}-way {shots}-shot",
        )
        for ways in (5, 20)
        for shots in (1, 5)
    ),
    *(
        (
            "sinusoid-comparators",
            f"{shots}-shot",
            rival,
            "below",
            0.0,
            f"sinusoid, {shots} shots, against {rival}",
        )
        for shots in (10, 5)
        for rival in ("gaussian", "maml", "anil", "cavia", "cnp", "film", "scratch")
    ),
    (
        "omniglot-alphabets",
        "20-way 1-shot",
        "protonet",
        "above",
        0.0,
        "Omniglot, within one alphabet",
    ),
    *(
        (
            "omniglot-adapting",
            f"5-way {shots}-shot",
            rival,
            "times as quick",
            bound,
            f"adapting to new characters, {shots}-shot: {rival}",
        )
        for shots in (1, 5)
        for rival, bound in (("scratch", 100.0), ("maml", 20.0))
    ),
    *(
        (
            "omniglot-adapting",
            f"5-way {shots}-shot",
            rival,
            "not below",
            0.0,
            f"at the accuracy of {rival}, {shots}-shot",
        )
        for shots in (1, 5)
        for rival in ("scratch", "maml")
    ),
    *(
        (
            "cifar-fs-frozen",
            f"5-way {shots}-shot",
            "protonet-unit",
            "ahead by",
            0.0,
            f"CIFAR-FS on a frozen trunk, 5-way {shots}-shot",
        )
        for shots in (1, 5)
    ),
    *(
        ("intents", f"77-way {shots}-shot", "", "at least", bound, f"intents, 77-way {shots}-shot")
        for shots, bound in ((1, 0.68), (5, 0.78))
    ),
    *(
        (
            "intents:log_loss",
            f"{ways}-way {shots}-shot",
            rival,
            "below",
            0.0,
            f"intents, {ways}-way {shots}-shot: log loss against {rival}",
        )
        for ways in (5, 77)
        for shots in (1, 5, 10)
        for rival in ("protonet", "probe")
    ),
    *(
        (
            "mnist-functions",
            f"{pixels} pixels",
            "",
            "at most",
            bound,
            f"MNIST from {pixels} pixels: squared error",
        )
        for pixels, bound in ((40, 0.0399), (80, 0.0296), (160, 0.0178))
    ),
    *(
        (
            "mnist-functions",
            f"{pixels} pixels",
            rival,
            "below",
            0.0,
            f"MNIST from {pixels} pixels: against {rival}",
        )
        for pixels in (40, 80, 160)
        for rival in ("gaussian", "cnp", "cnp-grid", "interpolation")
    ),
    *(
        (
            "growth-curves",
            f"{shots}-shot",
            rival,
            "below",
            0.0,
            f"growth curves, {shots} points: against {rival}",
        )
        for shots in (3, 5)
        for rival in ("cnp", "cavia", "ridge", "polynomial", "gaussian")
    ),
    *(
        (
            name,
            f"4 modules, {active} active, new combinations",
            rival,
            relation,
            bound,
            f"{words} {rival}",
        )
        for name, active, rival, relation, bound, words in (
            (
                "hyperteacher",
                2,
                "maml",
                "ahead by",
                0.2,
                "hyperteacher, 2 of 4 modules: nonlinear against",
            ),
            (
                "hyperteacher",
                2,
                "linear",
                "above",
                0.0,
                "hyperteacher, 2 of 4 modules: nonlinear against",
            ),
            (
                "hyperteacher",
                1,
                "anil",
                "behind by",
                0.15,
                "hyperteacher, 1 of 4 modules (reversed): nonlinear against",
            ),
        )
    ),
    *(
        (
            "digits",
            f"3-way {shots}-shot",
            rival,
            relation,
            0.0,
            f"digits, {shots}-shot, three splits: against {rival}",
        )
        for shots in (1, 5)
        for rival, relation in (
            ("protonet", "not below"),
            ("centroid", "above"),
            ("scratch", "above"),
        )
    ),
    *(
        (
            f"{env}:{measure}",
            "held-out contexts",
            "",
            relation,
            bound,
            f"{env}, contexts held out: {words}",
        )
        for env, measure, relation, bound, words in (
            ("lqr", "gain_error", "at most", 0.05, "error of the gain"),
            ("lqr", "value_error", "at most", 0.05, "error of the value"),
            ("lqr", "explained_variance", "at least", 0.9, "variance that values explain"),
            ("gyre", "explained_variance", "at least", 0.9, "variance that values explain"),
        )
    ),
    (
        "gyre",
        "training ranges",
        "concat",
        "times worse",
        1.2,
        "gyre, training ranges: cost of concat over ours",
    ),
    (
        "gyre",
        "held-out contexts",
        "concat",
        "times worse",
        1.0,
        "gyre, contexts held out: cost of concat over ours",
    ),
    (
        "grid:first_trial",
        "training ranges",
        "recurrent",
        APART,
        0.0,
        "grid, goal hidden: return of the first trial",
    ),
    *(
        (
            "cartpole-hidden",
            setting,
            "recurrent",
            APART,
            0.0,
            f"CartPole, physics hidden, {setting}",
        )
        for setting in ("training ranges", "held-out contexts")
    ),
    *(
        ("halfcheetah", setting, "concat", "above", 0.0, f"HalfCheetah, {setting}: return")
        for setting in ("training ranges", "held-out contexts")
    ),
    (
        "kill",
        "200 steps",
        "",
        "at least",
        1.0,
        "kill -9, then resume: share of runs equal bit for bit",
    ),
    *(
        ("transfer-domains", "64 unlabelled", rival, "above", 0.0, f"digits domains: over {about}")
        for rival, about in (
            ("multitask", "one network of all domains"),
            ("batchnorm", "the same with statistics refreshed"),
        )
    ),
    (
        "transfer-domains",
        "64 unlabelled",
        "generated, shuffled condition (control)",
        "ahead by",
        0.2,
        "digits domains: lead over the shuffled condition",
    ),
    *(
        ("transfer-documents", setting, "", "at least", bound, f"documents, {setting}: exact match")
        for setting, bound in (
            ("4 facts in 1 window", 0.95),
            ("2 facts in each of 4 windows", 0.9),
            ("1 fact in each of 8 windows", 0.9),
        )
    ),
    ("transfer-series", "16 windows", "blend", "below", 0.0, "series: loss, against the blend"),
    (
        "transfer-series",
        "16 windows",
        "",
        "at most",
        0.95,
        "series: loss of generated weights over the source's",
    ),
    (
        "transfer-intents",
        "5-shot",
        "source",
        "ahead by",
        0.02,
        "intents, 77-way 5-shot: lead over class means with names",
    ),
    (
        "transfer-intents",
        "5-shot",
        "shared-finetune",
        "ahead by",
        0.02,
        "intents, 77-way 5-shot: lead over one shared fine-tuning",
    ),
    ("transfer-scans", "64 unlabelled", "source", "not below", 0.0, "scans: accuracy"),
    *(
        ("transfer-architectures", family, "shared", "above", 0.0, f"ten unseen networks, {family}")
        for family in ("contrast", "turned")
    ),
    *(
        (f"fields-{name}", "in range", "", "at most", bound, f"{about}: relative error")
        for name, bound, about in (
            ("burgers", 0.022, "Burgers"),
            ("burgers-mild", 0.012, "Burgers, mild"),
            ("advection-diffusion-long", 0.006, "advection-diffusion, 1 minute"),
        )
    ),
    *(
        (f"fields-{name}", "in range", rival, "times worse", times, f"{about}: error of {rival}")
        for name, times, about in (
            ("burgers", 1 / 0.45, "Burgers"),
            ("burgers-mild", 1 / 0.45, "Burgers, mild"),
            ("advection-diffusion-long", 4.0, "advection-diffusion, 1 minute"),
        )
        for rival in ("concat", "deeponet")
    ),
    *(
        (f"fields-{name}", "in range", "kernel", "below", 0.0, f"{about}: error, against kernel")
        for name, about in (
            ("burgers", "Burgers"),
            ("burgers-mild", "Burgers, mild"),
            ("advection-diffusion-long", "advection-diffusion, 1 minute"),
        )
    ),
    *(
        (
            f"gan-{data}/{arm}{measure}",
            "samples",
            "",
            relation,
            bound,
            f"{data}, {arm} pair: {about}",
        )
        for data, arm, modes, quality in (
            ("grid", "plain", 24.6, 0.93),
            ("ring", "packed", 7.9, 0.95),
        )
        for measure, relation, bound, about in (
            ("", "at least", modes, "modes"),
            (":high_quality", "at least", quality, "high-quality share"),
            (":reverse_kl", "at most", 0.04, "reverse KL divergence"),
        )
    ),
    *(
        (f"gan-{data}/{method}{measure}", setting, "", "at least", bound, f"{about}: {score}")
        for data, method, setting, about in (
            ("digits", "picture-generated", "8 x 8", "digits 8 x 8, picture-generated"),
            ("mnist", "picture-generated", "28 x 28", "MNIST, picture-generated"),
        )
        for measure, score, bound in (("", "accuracy", 0.97), (":recall", "recall", 0.7))
    ),
    *(
        (
            f"gan-spoken-digits/{method}",
            *("clips", "", "at least", 0.85, f"spoken digits, {method}: accuracy of clips"),
        )
        for method in ("generated", "picture-generated")
    ),
    ("house", "make demo", "", "at most", 240.0, "make demo, downloads aside: seconds"),
    ("house", "make test", "", "at most", 360.0, "make test: seconds"),
    ("house", "weightloom --help", "", "at most", 0.5, "weightloom --help: seconds"),
]

SIDES = ("not below", "above", APART, "below")
"""Relations whose bound is the rival's score."""

COMPARED: dict[str, Callable[[float, float], float]] = {
    "times worse": lambda ours, other: other / ours,
    "times as quick": lambda ours, other: other / ours,
    "ahead by": lambda ours, other: ours - other,
    "behind by": lambda ours, other: other - ours,
}
"""Value held against the bound, from our score and the rival's; other relations take our score."""

Record = dict[str, Any]
Score = dict[str, Any]


class Target(NamedTuple):
    """One line of the table of targets."""

    record: str
    """Name of the record; ``record/method`` for a method other than the first, ``record:measure``
    for a measure other than the score."""
    setting: str
    rival: str
    """Method to compare with; empty for none."""
    relation: str
    bound: float
    """Unused for the relations of `SIDES`."""
    text: str
    """Description in the table."""


def read_records(folder: Path = RECORDS) -> dict[str, Record]:
    """Read all records, by file name without the ending, sorted by name."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
    }


def results_page(records: dict[str, Record]) -> str:
    """Return a section per record: command, tables, published value, notes, cost and file."""
    return (
        "\n\n".join(_section(name, record) for name, record in records.items()) or "No records yet."
    )


def with_records(page: str) -> str:
    """Replace every ``<!-- record NAME -->`` of a page by a table with a column per setting."""
    records = read_records()

    def table(found: re.Match[str]) -> str:
        record = records.get(found[1])
        return _wide_table(record) if record else f"No record of `{found[1]}` yet."

    def contest(found: re.Match[str]) -> str:
        return generating_table(records, FAMILIES_OF_TASKS[found[1]])

    return GENERATING.sub(contest, RECORD.sub(table, page))


def generating_table(records: dict[str, Record], names: tuple[str, ...]) -> str:
    """Return a line per setting: the generated network, the best method without one, the lead."""
    lines = [
        "| record | setting | score | generated | best without | lead of the generated | |",
        "|---|---|---|--:|--:|--:|---|",
    ]
    for name in names:
        for setting, scores in _by_setting(records.get(name) or {"scores": []}).items():
            if not STEPS.search(setting):
                lines.append(_generating_line(name, records[name], setting, scores))
    return "\n".join(lines) if len(lines) > 2 else "No records yet."


def _generating_line(name: str, record: Record, setting: str, scores: list[Score]) -> str:
    """Return the line of a setting; a lead is paired over runs where the record has that."""
    there = [_numeric(score) for score in scores if competes(score) and score["method"] != CHECKED]
    ours = next(score for score in there if score["method"] in GENERATED)
    rival = best_of([score for score in there if score["method"] not in GENERATED])
    sign = -1 if ours["better"] == "lower" else 1
    pair = f"{setting}: {ours['method']} - {rival['method']}"
    unpaired = {
        "mean": ours["mean"] - rival["mean"],
        "ci95": (ours["ci95"] or 0.0) + (rival["ci95"] or 0.0),
    }
    lead = (record.get("paired") or {}).get(pair) or unpaired
    lead = {"mean": sign * lead["mean"], "ci95": lead["ci95"]}
    side = (
        "level" if abs(lead["mean"]) <= lead["ci95"] else "ahead" if lead["mean"] > 0 else "behind"
    )
    cells = (
        *(name, setting, NAMES.get(ours["name"], ours["name"]), score_text(ours)),
        *(f"{score_text(rival)} ({rival['method']})", score_text(lead), side),
    )
    return f"| {' | '.join(cells)} |"


def methods_table() -> str:
    """Return the table of few-shot methods: description, data per family, source."""
    lines = [
        f"| method | description | {' | '.join(FAMILIES)} | from |",
        f"|---|---|{':-:|' * len(FAMILIES)}---|",
    ]
    for method in METHODS:
        cells = []
        for members in FAMILIES.values():
            solved = [data for data in members if method.build_for(data)]
            cells.append(
                "●" if len(solved) == len(members) else ", ".join(f"`{data}`" for data in solved)
            )
        lines.append(
            f"| `{method.name}` | {method.about} | {' | '.join(cells)} | {method.source} |"
        )
    of = [
        f"*{family}* are {', '.join(f'`{data}`' for data in members)}"
        for family, members in FAMILIES.items()
    ]
    yours = "`folder` is a folder of your own pictures, `table` a table of your own"
    return "\n".join([*lines, "", f"{'; '.join(of)}. {yours}."])


def _wide_table(record: Record) -> str:
    """Return the table of a record, methods by settings; bold: intervals that overlap the best."""
    settings = _by_setting(record)
    best = {
        setting: best_of([_numeric(score) for score in scores])
        for setting, scores in settings.items()
    }
    lines = [f"| | {' | '.join(settings)} |", "|---|" + "--:|" * len(settings)]
    for method in dict.fromkeys(label(score) for score in record["scores"]):
        rows = [
            [score for score in scores if label(score) == method] for scores in settings.values()
        ]
        cells = [
            _bold(row[0], best[s]) if row else "" for s, row in zip(settings, rows, strict=True)
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", _command(record)])


def results_table(records: dict[str, Record]) -> str:
    """Return the table of all records, a line per setting: ours, the best other, the control."""
    lines = [
        line
        for name, record in records.items()
        for setting in _by_setting(record)
        if (line := _result(name, record, setting))
    ]
    return _results([*lines], records) if lines else "No records yet."


def readme_block(records: dict[str, Record]) -> str:
    """Return the table of the default runs of `DEFAULT_RUNS`, first setting of each."""
    there = [(name, records[name]) for name in DEFAULT_RUNS if name in records]
    lines = [_result(name, record, next(iter(_by_setting(record)))) for name, record in there]
    return _results(lines, dict(there)) if lines else "No records yet."


def _results(lines: list[str], records: dict[str, Record]) -> str:
    head = [
        "| record | setting | score | hypernetwork | best other method | control |",
        "|---|---|---|--:|--:|--:|",
    ]
    return "\n".join([*head, *lines, "", _key(records)])


def _result(name: str, record: Record, setting: str) -> str:
    """Return the line of a setting; empty for scores that are not of a learning method."""
    scores = _by_setting(record)[setting]
    if scores[0]["name"] not in SCORES:
        return ""
    link = f"[{name}](benchmarks/records/{name}.json)"
    return f"| {link} | {setting} | {_score_name(scores[0])} | {' | '.join(_contest(scores))} |"


def readme_numbers(records: dict[str, Record]) -> str:
    """Return the table of numbers beside those of today's tools, with their records."""
    if not {"cameras", "peers"} <= records.keys():
        return "No records yet."
    cameras, peers = records["cameras"], records["peers"]
    read = _shares_read(cameras, CAMERAS[0])
    best_other = max(value for method, value in read.items() if method != OURS)
    ratio = {(row["setting"], row["method"]): row["mean"] for row in peers["scores"]}
    tasks = {(row["setting"], row["method"]): row["tasks"] for row in peers["scores"]}
    documented = [
        row["ratio"]["median"]
        for row in peers["rows"]
        if row["workload"] == "mlp" and row["way"] == "documented"
    ]
    link = "[record](benchmarks/records/{}.json)"
    one, mixed = ("customers", "one shared net"), ("customers", "peft")
    customers = f"{tasks[one]:,}"
    by_hand = ratio["mlp", "torch, by hand"]
    return "\n".join(
        [
            "| measured | weightloom | today's tools | |",
            "|---|--:|--:|---|",
            f"| accuracy over {cameras['scores'][0]['tasks']} such cameras, one picture of each "
            f"digit | **{100 * read[OURS]:.0f} %** | {100 * best_other:.0f} %, the best of "
            f"{len(read) - 1} other methods; {100 * read['matching']:.0f} % matching by hand "
            f"| {link.format('cameras')} |",
            f"| {customers} customers, each with an adapter of rank 4, in one batch of MiniLM; "
            "time "
            f"| **{1 / ratio[one]:.2f}** x one model for all | `peft`, mixed batch of "
            f"{tasks[mixed]}: {ratio[mixed]:.2f} x ours | {link.format('peers')} |",
            f"| training step of {tasks['mlp', 'weightloom']} generated MLPs; time | "
            f"**1** | {len(documented)} libraries, as documented: {min(documented):.1f} to "
            f"{max(documented):.1f} x ours; products written by hand: {by_hand:.2f} x "
            f"| {link.format('peers')} |",
            *_burgers_line(records, link),
            "",
            "Every customer's network can be taken out as a plain `nn.Module` (`specialise`).",
        ]
    )


def _burgers_line(records: dict[str, Record], link: str) -> list[str]:
    """Return the line of README on Burgers' equation; none without its record."""
    if "fields-burgers" not in records:
        return []
    errors = _shares_read(records["fields-burgers"], "in range")
    ours, others = errors["generated"], ("deeponet", "concat", "kernel")
    names = ("DeepONet", "concatenated inputs", "kernel regression")
    beside = ", ".join(
        f"{name} {100 * errors[its]:.1f} %" for name, its in zip(names, others, strict=True)
    )
    return [
        "| solutions of Burgers' equation never seen, as networks; relative error after equal "
        f"training time | **{100 * ours:.1f} %** | {beside} | {link.format('fields-burgers')} |"
    ]


def _shares_read(record: Record, setting: str) -> dict[str, float]:
    rows = [row for row in record["scores"] if row["setting"] == setting and competes(row)]
    return {row["method"]: row["mean"] for row in rows}


def with_block(page: str, block: str, start: str = START, end: str = END) -> str:
    """Return the page with the text between two marks replaced.

    Raises:
        ValueError: If the page lacks a mark.
    """
    before, _, rest = page.partition(start)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(
            f"the page lacks {start} … {end}, the marks that the table is written between"
        )
    return f"{before}{start}\n{block}\n{end}{after}"


def with_all(page: str, records: dict[str, Record]) -> str:
    """Return README with both of its generated blocks replaced."""
    page = with_block(page, readme_block(records))
    return with_block(page, readme_numbers(records), "<!-- numbers -->", "<!-- /numbers -->")


def _section(name: str, record: Record) -> str:
    parts = [f"## {name}", _command(record)]
    if record.get("rows"):
        parts += [
            _contests(record["rows"]),
            _shares(record["rows"]),
            _scale(record.get("scale") or []),
        ]
    else:
        parts += [_table(scores) for scores in _by_setting(record).values()]
    parts += [_paired(record)]
    parts += [_reference(record.get("reference") or {}), str(record.get("notes") or "")]
    parts += [str(record.get("protocol") or "")]
    parts += [_cost(record), f"The record: `benchmarks/records/{name}.json`."]
    return "\n\n".join(filter(None, parts))


def _command(record: Record) -> str:
    return f"```sh\n{record.get('command') or 'command not recorded'}\n```"


def _cost(record: Record) -> str:
    cost = record.get("cost") or {}
    spent = [
        time_text(cost.get("wall_time_s")),
        str(cost.get("device") or ""),
        f"torch {cost.get('torch', '?')}",
    ]
    return f"Cost of the whole run: {', '.join(filter(None, spent))}."


def _table(scores: list[Score]) -> str:
    """Return the table of one setting; bold: intervals that overlap the best."""
    also = [its for its in scores[0].get("also") or {} if not its.startswith("change of ")]
    heads = [
        scores[0]["setting"],
        _score_name(scores[0]),
        *(other.replace("_", " ") for other in also),
        "adapts in",
    ]
    best = best_of([_numeric(score) for score in scores if competes(score)])
    lines = [f"| {' | '.join(heads)} | over |", "|---|" + "--:|" * len(heads)]
    for score in scores:
        cells = [
            label(score),
            _bold(score, best),
            *(_other_text(score, other) for other in also),
            time_text(score.get("adapt_time_s")),
            _over(score),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _other_text(score: Score, measure: str) -> str:
    found = (score.get("also") or {}).get(measure)
    return "" if found is None or found.get("mean") is None else _score_text(found)


def _contests(rows: list[Record]) -> str:
    """Return the table of a benchmark's ratios, with quartiles over rounds."""
    lines = ["| workload | contender | against | ratio | quartiles |", "|---|---|---|--:|--:|"]
    for row in rows:
        where = row.get("setting") or row["workload"]
        of, against = (row["of"], row["against"]) if "of" in row else (row["contender"], "ours")
        if "ratio" not in row:
            lines.append(f"| {where} | {of} | {against} | failed | {row['error']} |")
            continue
        ratio, unit = row["ratio"], f", {row['unit']}" if row.get("unit") == "memory" else ""
        spread = f"{ratio['low']:.2f} to {ratio['high']:.2f}"
        lines.append(
            f"| {where} | {of}{unit} | {against} | {ratio['median']:.3g} | "
            f"{spread if not unit else 'exact'} |"
        )
    return "\n".join(lines)


def _shares(rows: list[Record]) -> str:
    """Return the table of shares of a core's matrix product rate; empty if none was measured."""
    lines = [
        "| workload | contender | time per step | share of this core's rate |",
        "|---|---|--:|--:|",
    ]
    for row in rows:
        for name, reached in row.get("share", {}).items():
            lines.append(
                f"| {row['setting']} | {name} | {time_text(row['ms'][name] / 1e3)} | "
                f"{100 * reached:.0f} % |"
            )
    return "\n".join(lines) if len(lines) > 2 else ""


def _scale(rows: list[Record]) -> str:
    """Return a table and a drawing of time and peak memory over the number of tasks."""
    if not rows:
        return ""
    lines = [
        "| tasks | time | time per task | peak memory | peak memory in training |",
        "|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        held = [
            f"{row[key] / 1e6:.2f} MB"
            for key in ("peak_memory_bytes", "training_peak_memory_bytes")
        ]
        each = time_text(row["seconds"] / row["tasks"])
        lines.append(
            f"| {row['tasks']:,} | {time_text(row['seconds'])} | {each} | {held[0]} | {held[1]} |"
        )
    return "\n".join([*lines, "", _drawing(rows)])


def _drawing(rows: list[Record]) -> str:
    """Return an SVG of time per task and memory over the number of tasks, axes logarithmic."""
    curves = {
        "microseconds per task": [1e6 * row["seconds"] / row["tasks"] for row in rows],
        "kilobytes at the peak": [row["peak_memory_bytes"] / 1e3 for row in rows],
    }
    across = [math.log10(row["tasks"]) for row in rows]
    top = math.ceil(math.log10(max(map(max, curves.values()))))
    x = [60 + 480 * (a - across[0]) / max(across[-1] - across[0], 1e-9) for a in across]
    parts = _axes(x, [row["tasks"] for row in rows], top)
    for (name, values), colour, below in zip(
        curves.items(), ("#2a7fb8", "#d1601f"), (18, 36), strict=True
    ):
        y = [240 - 220 * max(math.log10(value), 0) / top for value in values]
        line = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="535" y="{below}" text-anchor="end" fill="{colour}">{name}</text>')
    return (
        '<svg viewBox="0 0 600 285" role="img" '
        'aria-label="time per task and memory against the number of tasks" '
        'style="max-width:600px;font:12px sans-serif" fill="currentColor">'
        f"{''.join(parts)}</svg>"
    )


def _axes(x: list[float], tasks: list[int], top: int) -> list[str]:
    """Return the labels of `_drawing` below, and a line per power of ten up to ``top``."""
    below = [
        f'<text x="{at:.0f}" y="265" text-anchor="middle">{count:,}</text>'
        for at, count in zip(x, tasks, strict=True)
    ]
    left = [
        f'<path d="M60 {240 - 220 * power / top:.0f}H540" stroke="#8884"/>'
        f'<text x="52" y="{244 - 220 * power / top:.0f}" text-anchor="end">{10**power:,}</text>'
        for power in range(top + 1)
    ]
    return below + left


def _contest(scores: list[Score]) -> list[str]:
    """Return the cells of one setting: ours, the best other method, the control."""
    ours, rival = _ours_and_best_other(scores)
    best = best_of([ours, rival]) if rival else ours
    control = [_score_text(score) for score in scores if role_of(score) == "control"]
    return [
        _bold(ours, best) + ("" if ours["method"] == OURS else f" ({ours['method']})"),
        f"{_bold(rival, best)} ({rival['method']})" if rival else "",
        *(control[:1] or [""]),
    ]


def _ours_and_best_other(scores: list[Score]) -> tuple[Score, Score | None]:
    """Return the hypernetwork's row (else the first row), and the best of the other methods."""
    methods = [score["method"] for score in scores]
    first = OURS if OURS in methods else methods[0]
    competing = [_numeric(score) for score in scores if competes(score)]
    ours = next(score for score in competing if score["method"] == first)
    others = [score for score in competing if score["method"] not in (first, CHECKED)]
    return ours, best_of(others) if others else None


def _bold(score: Score, best: Score) -> str:
    text = _score_text(score)
    return f"**{text}**" if competes(score) and overlap(_numeric(score), best) else text


def _key(records: dict[str, Record]) -> str:
    """Return the legend of a results table."""
    scores = [score for record in records.values() for score in record["scores"]]
    seeds = any(score.get("per_seed") for score in scores)
    spread = " (where a record has several seeds: over seeds, by Student's t)" if seeds else ""
    return (
        f"± is half of a 95 % interval over tasks that training never saw{spread}. The control is "
        "the hypernetwork given the support set of another task; for returns it is the optimum "
        "where that is known, otherwise no action. Bold: the best score, and scores whose "
        "intervals overlap with its interval. Each record holds the command that made it."
    )


def _is_aside(name: str) -> bool:
    """Return True for a difference after gradient steps, or to another method's reference."""
    setting, _, methods = name.partition(": ")
    ours, _, other = methods.partition(" - ")
    return bool(STEPS.search(setting)) or (
        other.endswith(("(untrained)", "(control)"))
        and other.startswith(("generated", "shared", "multitask"))
        and not other.startswith((f"{ours} (", f"{ours},"))
    )


def _paired(record: Record) -> str:
    """Return the table of paired differences: both methods on the same tasks, run by run."""
    kept = {name: gap for name, gap in _gaps(record).items() if not _is_aside(name)}
    over = next((gap["over"] for gap in kept.values() if "over" in gap), "runs")
    lines = [f"| {name} | {gap['mean']:+.4f} ± {gap['ci95']:.4f} |" for name, gap in kept.items()]
    return (
        "\n".join([f"| paired difference, over {over} | mean |", "|---|--:|", *lines])
        if lines
        else ""
    )


def targets_table(records: dict[str, Record]) -> str:
    """Return the table of targets and results; a target without a record is left out."""
    lines = [_target_line(Target(*target), records) for target in TARGETS]
    for record in records.values():
        lines += [_target_of_row(row) for row in record.get("rows") or [] if "bound" in row]
        lines += [_target_of_bar(bar) for bar in record.get("bars") or []]
    heads = ["| quantity | target | result | |", "|---|---|--:|---|"]
    return "\n".join([*heads, *filter(None, lines)]) if any(lines) else "No records yet."


def _target_line(target: Target, records: dict[str, Record]) -> str:
    """Return the line of one target; empty if the record, our score or the rival's is missing."""
    sides, relation = _sides(target, records), target.relation
    if sides is None:
        return ""
    key = "adapt_time_s" if relation == "times as quick" else "mean"
    ours, other = (side[key] for side in sides)
    if target.rival and other is None:
        rival = target.rival
        return f"| {target.text} | {relation} {rival} | {ours:.5g} | {rival} failed |"
    if relation == AHEAD:
        value = _lead(records[target.record], target.setting)
    else:
        value = COMPARED[relation](ours, other) if relation in COMPARED else ours
    bound = other if relation in SIDES else target.bound
    met = _met(_holds(relation, value, bound, sides))
    return f"| {target.text} | {relation} {bound:.4g} | {value:.5g} | {met} |"


def _sides(target: Target, records: dict[str, Record]) -> tuple[Score, Score] | None:
    """Return our row and the rival's (ours again without a rival); None if one is missing."""
    name, _, measure = target.record.partition(":")
    name, _, method = name.partition("/")
    scores = [s for s in records.get(name, {}).get("scores", []) if s["setting"] == target.setting]
    scores = [s for s in scores if label(s) == method] if method else scores
    if measure:
        scores = [{**s, **s["also"][measure]} for s in scores if measure in s["also"]]
    theirs = [s for s in scores if label(s) == target.rival] if target.rival else scores
    return (scores[0], theirs[0]) if theirs else None


def _holds(relation: str, value: float, bound: float, sides: tuple[Score, Score]) -> bool:
    if relation == APART:
        return value - sum(side.get("ci95", 0.0) for side in sides) > bound
    if relation in ("above", AHEAD):
        return value > bound
    if relation == "at most":
        return value <= bound
    return value < bound if relation == "below" else value >= bound


def _met(holds: bool) -> str:
    return "met" if holds else "missed"


def _target_of_row(row: Record) -> str:
    quantity = f"{row['setting']}: {row['unit']} of {row['of']} over {row['against']}"
    target, value = f"{row['relation']} {row['bound']:g}", f"{row['ratio']['median']:.4g}"
    return f"| {quantity} | {target} | {value} | {_met(row['holds'])} |"


def _target_of_bar(bar: Record) -> str:
    quantity, value = f"{bar['workload']}: {bar['bar']}", f"{bar['value']:.2f} ({bar['closest']})"
    return f"| {quantity} | | {value} | {_met(bar['holds'])} |"


def _lead(record: Record, setting: str) -> float:
    """Return our smallest lead over another method: the lowest end of the paired intervals."""
    gaps = [gap for name, gap in _gaps(record).items() if name.startswith(f"{setting}: ")]
    return min(gap["mean"] - gap["ci95"] for gap in gaps)


def _gaps(record: Record) -> dict[str, Score]:
    """Return the differences from competing methods, by names such as "5-shot: ours - theirs"."""
    competing = {row["method"] for row in record["scores"] if competes(row)}
    gaps = record.get("paired") or {}
    return {name: gap for name, gap in gaps.items() if name.rpartition(" - ")[2] in competing}


def _reference(reference: Record) -> str:
    if not reference.get("source"):
        return ""
    value = f"{_in_words(reference['value'])}, " if reference.get("value") is not None else ""
    differs = f" Differences: {reference['differs']}." if reference.get("differs") else ""
    return f"Published: {value}{reference['source']}.{differs}"


def _in_words(value: Any) -> str:
    """Return a published value, or a nested dict of them by setting and method, as text."""
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_in_words(each)}" for name, each in value.items())
    return str(value)


def _by_setting(record: Record) -> dict[str, list[Score]]:
    settings: dict[str, list[Score]] = {}
    for score in record.get("scores") or []:
        settings.setdefault(str(score["setting"]), []).append(score)
    return settings


def _score_name(score: Score) -> str:
    return f"{NAMES.get(score['name'], score['name'])}, {score['better']} is better"


def _score_text(score: Score) -> str:
    """Return a score with its interval as text, and the runs that failed."""
    gone = (
        f" (failed in {score['failed']})"
        if score.get("failed") and score.get("mean") is not None
        else ""
    )
    return score_text(_numeric(score)) + gone


def _over(score: Score) -> str:
    if seeds := score.get("per_seed"):
        return f"{len(seeds)} seed{'s' * (len(seeds) > 1)}"
    return f"{score['tasks']:,} tasks" if score.get("tasks") else ""


def _numeric(score: Score) -> Score:
    """Return the score with a missing mean as NaN and a missing interval as 0."""
    mean, interval = (
        math.nan if (value := score.get(key)) is None else value for key in ("mean", "ci95")
    )
    return {**score, "mean": mean, "ci95": 0.0 if math.isnan(interval) else interval}


if __name__ == "__main__":
    if "--write-readme" in sys.argv[1:]:
        readme = ROOT / "README.md"
        readme.write_text(
            with_all(readme.read_text(encoding="utf-8"), read_records()), encoding="utf-8"
        )
    else:
        print(readme_block(read_records()))
