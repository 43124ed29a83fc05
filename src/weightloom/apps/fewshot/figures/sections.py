"""The sections of a few-shot report.

Each with a sentence that explains it, or one that says why it is empty.
"""

from weightloom.apps.fewshot.figures.cameras import camera_rows, worst_cameras
from weightloom.apps.fewshot.figures.completed import completed_images
from weightloom.apps.fewshot.figures.curves import curve_rows, scatter, worst_scatter
from weightloom.apps.fewshot.figures.strips import task_strips, worst_strips
from weightloom.apps.fewshot.figures.sweep import sweep_figures
from weightloom.report.run import Run
from weightloom.report.section import Section, with_shared

NO_PROBABILITIES = "This does not apply: only a classification gives probabilities that can be held against how often they are right."


def sections(run: Run) -> list[Section]:
    """Return all sections that a few-shot run has something for, or a reason to have nothing."""
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
        "picture of every digit: none is chosen. The pictures are real, the fault is made: every "
        "wire is put in another place, half of them are negated, and each has its own gain and "
        "offset."
    )
    return Section(
        "Through a camera with crossed wires", explanation, pictures=camera_rows(run), leads=True
    )


def _predicted(run: Run) -> Section:
    strips, curves, pictures = task_strips(run), curve_rows(run), completed_images(run)
    explanation = ""
    if strips:
        explanation = (
            "In each task the model sees the support set with its class names, once, and then "
            "names each query: green with ✓ is right, red with ✗ is wrong, and the percentage is "
            "how sure it was."
        )
    elif curves:
        explanation = (
            "From panel to panel the model is given more points of the same new task: the blue "
            "line should settle on the grey truth."
        )
    elif pictures:
        explanation = (
            "The model is given the pixels that are not blue, and answers at every position; at "
            "last between the pixels too, so that the image can be drawn finer than any it was "
            "shown."
        )
    return Section("What it predicted", explanation, scatter(run), [], strips, curves, pictures)


def _worst(run: Run) -> Section:
    count, shown = run.facts.get("worst_of", 0), len(run.tensors.get("worst_scores", ()))
    explanation = (
        f"Of {count} tasks drawn for this section alone, these are the ones it did worst on."
        if shown < count
        else f"All tasks drawn for this section alone, {count} in number, the worst first."
    )
    curves, pictures = (
        curve_rows(run, "worst_"),
        completed_images(run, "worst_") or worst_cameras(run),
    )
    return Section(
        "The worst tasks", explanation, worst_scatter(run), [], worst_strips(run), curves, pictures
    )


def _sweep(run: Run) -> Section:
    figures, sweep = sweep_figures(run), run.facts.get("sweep") or {"rows": []}
    tasks = [row["tasks"] for row in sweep["rows"]] or [0]
    many = f"{max(tasks)}" if min(tasks) == max(tasks) else f"{min(tasks)} to {max(tasks)}"
    one = max(tasks) == 1
    kind = "validation tasks" if sweep.get("early") else "tasks drawn for this section alone"
    if one:
        kind = kind.replace("tasks", "task")
    points = (
        f"each point is {'the score of' if one else 'a mean over'} {many} {kind}"
        f"{'' if one else ', each band its 95 % interval'}. Scores that took too long are left out."
    )
    explanation = (
        "How the score grows with the number of examples, and with fewer or more classes to tell "
        f"apart: {points}"
    )
    if _is_regression(run):
        explanation = (
            f"How the error falls with the number of examples, lower being better: {points}"
        )
    return Section("Score against shots and ways", explanation, figures)
