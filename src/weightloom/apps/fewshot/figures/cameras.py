"""Cameras: a run in, pictures before a camera, what it sends, and what each method makes of that out."""

from weightloom.report.pictures import data_uri
from weightloom.report.run import Run
from weightloom.report.section import Pictures


def camera_rows(run: Run) -> list[Pictures]:
    """Return pictures before a camera, what it sends, and what each method makes of that, a row each."""
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
        titles = {"before the camera": "Before the camera", "sent": "What the camera sends"}
        title = titles.get(name, f"What {name} makes of it, and reads")
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
    """Return what was made of the first pictures of the cameras read worst, and what they were, a row each."""
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
