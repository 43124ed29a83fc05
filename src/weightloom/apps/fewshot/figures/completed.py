"""Rows of pictures for completed images: truth, observed pixels, completion."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weightloom.report.pictures import data_uri
from weightloom.report.run import Run
from weightloom.report.section import Pictures

UNSEEN = (0.16, 0.3, 0.55)
"""Red, green and blue of an unobserved pixel, from 0 to 1."""


def completed_images(run: Run, prefix: str = "") -> list[Pictures]:
    """Return a row per completed image: the truth, then observation and completion by pixel count.

    Args:
        run: The run.
        prefix: Prefix of the tensors' names: ``"worst_"`` for the worst tasks.
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


def observed(
    image: Float[Tensor, "height width"], seen: Bool[Tensor, "height width"]
) -> Float[Tensor, "3 height width"]:
    """Return an image with the observed pixels in grey and the others in the colour `UNSEEN`."""
    return torch.stack([torch.where(seen, image, torch.tensor(level)) for level in UNSEEN])
