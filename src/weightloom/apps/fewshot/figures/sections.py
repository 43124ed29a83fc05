"""Sections of a few-shot report, each with an explanation, or the reason why it is empty."""

from weightloom.apps.fewshot.figures.cameras import camera_rows, worst_cameras
from weightloom.apps.fewshot.figures.completed import completed_images
from weightloom.apps.fewshot.figures.curves import curve_rows, scatter, worst_scatter
from weightloom.apps.fewshot.figures.strips import task_strips, worst_strips
from weightloom.apps.fewshot.figures.sweep import sweep_figures
from weightloom.report.run import Run
from weightloom.report.section import Section, with_shared

NO_PROBABILITIES = (
    "This does not apply: only a classification gives probabilities that can be compared with "
    "accuracy."
)
"""Message of the section on calibration in a regression."""


def sections(run: Run) -> list[Section]:
    """Return the sections of a few-shot run, including those with only a reason for being empty."""
    made = {
        "cameras": _cameras(run),
        "predicted": _predicted(run),
        "worst": _worst(run),
        "sweep": _sweep(run),
    }
    return with_shared(run, made, {"calibration": NO_PROBABILITIES} if _is_regression(run) else {})


def _is_regression(run: Run) -> bool:
    return run.facts.get("kind") == "regression"


def _cameras(run: Run) -> Section:
    setting = (run.facts.get("cameras") or {}).get("camera_setting", "")
    explanation = (
        f"The first camera that was drawn, shown {setting} digits beforehand, and the first "
        "picture of every digit, without selection. The pictures are real, the fault is simulated: "
        "wires are permuted, half of them negated, and each has its own gain and offset."
    )
    return Section(
        "Through a camera with crossed wires", explanation, pictures=camera_rows(run), leads=True
    )


def _predicted(run: Run) -> Section:
    strips, curves, pictures = task_strips(run), curve_rows(run), completed_images(run)
    explanation = ""
    if strips:
        explanation = (
            "In each task the model sees the support set with its class names once, and then "
            "names each query: green with ✓ is right, red with ✗ is wrong, and the percentage is "
            "the predicted probability."
        )
    elif curves:
        explanation = (
            "From panel to panel the model is given more points of the same new task: the blue "
            "line should approach the grey truth."
        )
    elif pictures:
        explanation = (
            "The model is given the pixels that are not blue, and predicts every position; in the "
            "last image also between the pixels, so that it is finer than any training image."
        )
    return Section("Predictions", explanation, scatter(run), [], strips, curves, pictures)


def _worst(run: Run) -> Section:
    count, shown = run.facts.get("worst_of", 0), len(run.tensors.get("worst_scores", ()))
    explanation = (
        f"Of {count} tasks drawn for this section alone, these have the worst scores."
        if shown < count
        else f"All tasks drawn for this section alone, {count} in number, the worst first."
    )
    pictures = completed_images(run, "worst_") or worst_cameras(run)
    return Section(
        "The worst tasks",
        explanation,
        worst_scatter(run),
        strips=worst_strips(run),
        curves=curve_rows(run, "worst_"),
        pictures=pictures,
    )


def _sweep(run: Run) -> Section:
    figures, sweep = sweep_figures(run), run.facts.get("sweep") or {"rows": []}
    tasks = [row["tasks"] for row in sweep["rows"]] or [0]
    many = f"{max(tasks)}" if min(tasks) == max(tasks) else f"{min(tasks)} to {max(tasks)}"
    one = max(tasks) == 1
    kind = "validation tasks" if sweep.get("early") else "tasks drawn for this section alone"
    if one:
        kind = kind.replace("tasks", "task")
    axes = (
        "The error by the number of examples; lower is better."
        if _is_regression(run)
        else "The score by the number of examples, and by the number of classes."
    )
    band = "" if one else ", each band its 95 % interval"
    explanation = (
        f"{axes} Each point is {'of' if one else 'a mean over'} {many} {kind}{band}. Points that "
        "took too long to score are left out."
    )
    return Section("Score against shots and ways", explanation, figures)
