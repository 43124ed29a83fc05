"""Evaluated tasks as pictures: image tensors in, strips of PNG data URIs and the words beside them out."""

import struct
import zlib
from base64 import b64encode
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from weightloom.errors import ShapeError
from weightloom.report.run import Run

WRONG_SHOWN = 30
"""Wrongly named queries of one of the worst tasks that are shown at most."""
UNSEEN = (0.16, 0.3, 0.55)
"""Red, green and blue of a pixel that was not observed."""
SUPPORT_SHOWN = 5
"""Support images of a class that a strip shows at most."""
QUERIES_SHOWN = 15
"""Query images of a task that a strip shows about at most, the same number of each class."""
COLOUR_TYPES = {1: 0, 3: 2}
"""Channels, and the number that the PNG format has for them."""


class Query(NamedTuple):
    """One query point and what was said of it."""

    uri: str
    """Empty where it is no picture."""
    truth: str
    predicted: str
    confidence: str
    right: bool
    text: str = ""
    """What it says, where it is no picture."""


class Strip(NamedTuple):
    """One task: what it was adapted on, by class, and what was then predicted."""

    title: str
    support: list[tuple[str, list[str]]]
    """Each class by its name, and its images as data URIs; two classes may go by the same name."""
    sentences: list[tuple[str, list[str]]]
    """The same, with what its examples say where they are no pictures."""
    queries: list[Query]
    score: str
    """How many of all queries were right, and which of them are shown, in words."""


class Pictures(NamedTuple):
    """Pictures in a row, with a word below each."""

    title: str
    images: list[tuple[str, str]]
    """Words, and the image as a data URI."""


def task_strips(run: Run) -> list[Strip]:
    """Return one strip per evaluated task; none if the run holds no classification tasks."""
    names = run.facts.get("class_names") or []
    if "predicted" not in run.tensors:
        return []
    return [_strip(run.tensors, task, names[task], _texts(run, task)) for task in range(len(names))]


def worst_strips(run: Run) -> list[Strip]:
    """Return one strip per task of lowest accuracy, with those queries that went wrong."""
    names = run.facts.get("worst_class_names") or []
    tensors = {name.removeprefix("worst_"): value for name, value in run.tensors.items() if name.startswith("worst_")}
    strips = []
    for task in range(len(names)):
        wrong = (tensors["query_y"][task] != tensors["predicted"][task]).nonzero()[:, 0].tolist()
        texts = _texts(run, task, "worst_")
        strip = _strip(tensors, task, names[task], texts)
        some = "" if len(wrong) <= WRONG_SHOWN else "some of "
        score = strip.score.partition(";")[0] + (f"; {some}the others shown" if wrong else "")
        queries = [_query(tensors, task, place, names[task], texts["query"]) for place in wrong[:WRONG_SHOWN]]
        strips.append(strip._replace(queries=queries, score=score))
    return strips


def completed_images(run: Run, prefix: str = "") -> list[Pictures]:
    """Return a row per completed image: the truth, then what was observed and completed for each number of pixels.

    Args:
        run: The run.
        prefix: Of the tensors' names: ``"worst_"`` for the worst tasks.
    """
    tensors, names = run.tensors, run.facts.get(f"{prefix}titles") or []
    if f"{prefix}image_truth" not in tensors:
        return []
    rows = []
    for task, truth in enumerate(tensors[f"{prefix}image_truth"]):
        images = [("truth", data_uri(truth[None]))]
        for count in run.facts[f"{prefix}image_shots"]:
            seen = tensors[f"{prefix}image_observed_{count}"][task]
            completed = tensors[f"{prefix}image_completed_{count}"][task]
            error = float((completed - truth).square().mean())
            images.append((f"{int(seen.sum())} pixels", data_uri(observed(truth, seen))))
            images.append((f"completed, error {error:.2g}", data_uri(completed[None])))
        if f"{prefix}image_fine" in tensors:
            fine = tensors[f"{prefix}image_fine"][task]
            images.append((f"{len(fine) // len(truth)} times finer", data_uri(fine[None])))
        rows.append(Pictures(f"Task {task + 1}{f': {names[task]}' if names else ''}", images))
    return rows


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
            "" if read is None else " ✓" if a == b else " ✗" for a, b in zip(words, facts["camera_digits"], strict=True)
        ]
        titles = {"before the camera": "Before the camera", "sent": "What the camera sends"}
        title = titles.get(name, f"What {name} makes of it, and reads")
        captions = ["" if name == "sent" else f"{word}{mark}" for word, mark in zip(words, marks, strict=True)]
        rows.append(Pictures(title, [(said, data_uri(p[None])) for said, p in zip(captions, pictures, strict=True)]))
    return rows


def worst_cameras(run: Run) -> list[Pictures]:
    """Return what was made of the first pictures of the cameras read worst, and what they were, a row each."""
    if "worst_restored" not in run.tensors:
        return []
    tensors, rows = run.tensors, []
    for camera, score in enumerate(tensors["worst_scores"].tolist()):
        truth, read = tensors["worst_truth"][camera].tolist(), tensors["worst_read"][camera].tolist()
        said = [f"{r} {'✓' if r == t else f'✗ is {t}'}" for r, t in zip(read, truth, strict=True)]
        for title, name, words in (("before", "worst_before", map(str, truth)), ("restored", "worst_restored", said)):
            uris = [data_uri(picture[None]) for picture in tensors[name][camera]]
            rows.append(Pictures(f"{100 * score:.0f} % read right: {title}", [*zip(words, uris, strict=True)]))
    return rows


def observed(
    image: Float[Tensor, "height width"], seen: Bool[Tensor, "height width"]
) -> Float[Tensor, "3 height width"]:
    """Return the observed pixels in grey, and the others in one colour."""
    return torch.stack([torch.where(seen, image, torch.tensor(level)) for level in UNSEEN])


def encode_png(pixels: UInt8[Tensor, "channels height width"]) -> bytes:
    """Encode an image as a PNG file, without an imaging library.

    Args:
        pixels: One channel (grey) or three (red, green, blue).

    Raises:
        ShapeError: If there is another number of channels.

    Example:
        >>> encode_png(torch.zeros(1, 8, 8, dtype=torch.uint8))[1:4]
        b'PNG'

    Source:
        W3C, "Portable Network Graphics" (third edition), sections 5 and 11; every row has filter 0.
    """
    channels, height, width = pixels.shape
    if channels not in COLOUR_TYPES:
        raise ShapeError(
            f"`pixels` has {channels} channels. A PNG image here is grey, of 1 channel, or coloured, of 3. "
            "To look at other channels, pass their mean, `pixels.float().mean(0, keepdim=True).byte()`."
        )
    rows = pixels.permute(1, 2, 0).reshape(height, width * channels)
    filtered = torch.cat([rows.new_zeros(height, 1), rows], dim=1)
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[channels], 0, 0, 0)
    data = zlib.compress(filtered.cpu().contiguous().numpy().tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def data_uri(image: Float[Tensor, "channels height width"]) -> str:
    """Return an image with values in [0, 1] as an address that holds the picture itself.

    What lies outside [0, 1] is clipped; channels other than one or three are shown as their mean.
    """
    shown = image if len(image) in COLOUR_TYPES else image.mean(0, keepdim=True)
    pixels = (shown.nan_to_num().clamp(0, 1) * 255).round().to(torch.uint8)
    return "data:image/png;base64," + b64encode(encode_png(pixels)).decode()


def first_of_each_class(labels: Int[Tensor, " batch"], count: int) -> dict[int, list[int]]:
    """Return the places of the first ``count`` examples of each class, classes in order.

    Example:
        >>> first_of_each_class(torch.tensor([1, 0, 1, 1]), count=2)
        {0: [1], 1: [0, 2]}
    """
    places: dict[int, list[int]] = {label: [] for label in sorted(set(labels.tolist()))}
    for place, label in enumerate(labels.tolist()):
        if len(places[label]) < count:
            places[label].append(place)
    return places


def _texts(run: Run, task: int, prefix: str = "") -> dict[str, list[str]]:
    """What the points of a task say, support and query; empty where they are pictures."""
    facts = {side: run.facts.get(f"{prefix}{side}_texts") for side in ("support", "query")}
    return {side: texts[task] if texts else [] for side, texts in facts.items()}


def _strip(tensors: dict[str, Tensor], task: int, names: list[str], texts: dict[str, list[str]]) -> Strip:
    labels = tensors["support_y"][task]
    truth, predicted = tensors["query_y"][task], tensors["predicted"][task]
    there = tensors["support_mask"][task] if "support_mask" in tensors else torch.ones_like(labels, dtype=torch.bool)
    images = tensors["support_x"][task][there] if "support_x" in tensors else None
    support = first_of_each_class(labels[there], SUPPORT_SHOWN)
    each = max(1, QUERIES_SHOWN // len(names))
    queries = first_of_each_class(truth, each)
    said = (
        [text for text, here in zip(texts["support"], there.tolist(), strict=True) if here]
        if any(texts.values())
        else []
    )
    what = "images" if images is not None else "sentences" if said else "points"
    score = f"{int((truth == predicted).sum())} of {len(truth)} query {what} right"
    all_shown = sum(len(places) for places in queries.values()) == len(truth)
    return Strip(
        f"Task {task + 1}",
        [
            (names[label], [] if images is None else [data_uri(images[place]) for place in places])
            for label, places in support.items()
        ],
        [(names[label], [said[place] for place in places]) for label, places in support.items()] if said else [],
        [_query(tensors, task, place, names, texts["query"]) for places in queries.values() for place in places],
        score if all_shown else f"{score}; the first {f'{each} ' if each > 1 else ''}of each class shown",
    )


def _query(tensors: dict[str, Tensor], task: int, place: int, names: list[str], texts: list[str]) -> Query:
    truth, predicted = int(tensors["query_y"][task, place]), int(tensors["predicted"][task, place])
    return Query(
        data_uri(tensors["query_x"][task, place]) if "query_x" in tensors else "",
        names[truth],
        names[predicted],
        f"{100 * float(tensors['confidence'][task, place]):.0f} %",
        truth == predicted,
        texts[place] if texts else "",
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
