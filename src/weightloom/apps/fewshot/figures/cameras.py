"""Rows of pictures for runs on cameras: before the camera, sent by it, restored by each method."""

from weightloom.report.pictures import data_uri
from weightloom.report.run import Run
from weightloom.report.section import Pictures


def camera_rows(run: Run) -> list[Pictures]:
    """Return pictures before a camera, as sent, and as restored by each method, a row each.

    The rows of methods say which digit was read, and mark it as right or wrong. Empty if the run
    has no camera.
    """
    if "camera_pictures" not in run.tensors:
        return []
    facts = run.facts["cameras"]
    rows = []
    for name, pictures in zip(facts["camera_rows"], run.tensors["camera_pictures"], strict=True):
        read = facts["camera_read"].get(name)
        words = facts["camera_digits"] if read is None else read
        marks = [
            "" if read is None else " ✓" if a == b else " ✗"
            for a, b in zip(words, facts["camera_digits"], strict=True)
        ]
        titles = {"before the camera": "Before the camera", "sent": "Sent by the camera"}
        title = titles.get(name, f"Restored and read by {name}")
        captions = [
            "" if name == "sent" else f"{word}{mark}"
            for word, mark in zip(words, marks, strict=True)
        ]
        rows.append(
            Pictures(
                title,
                [(said, data_uri(p[None])) for said, p in zip(captions, pictures, strict=True)],
            )
        )
    return rows


def worst_cameras(run: Run) -> list[Pictures]:
    """Return the first pictures of the cameras with the lowest accuracy.

    Two rows per camera: before the camera, and restored. Empty if the run has no cameras.
    """
    if "worst_restored" not in run.tensors:
        return []
    tensors, rows = run.tensors, []
    for camera, score in enumerate(tensors["worst_scores"].tolist()):
        truth, read = (
            tensors["worst_truth"][camera].tolist(),
            tensors["worst_read"][camera].tolist(),
        )
        said = [f"{r} {'✓' if r == t else f'✗ is {t}'}" for r, t in zip(read, truth, strict=True)]
        for title, name, words in (
            ("before", "worst_before", map(str, truth)),
            ("restored", "worst_restored", said),
        ):
            uris = [data_uri(picture[None]) for picture in tensors[name][camera]]
            rows.append(
                Pictures(
                    f"{100 * score:.0f} % read right: {title}", [*zip(words, uris, strict=True)]
                )
            )
    return rows
