"""Conditions from documents: states of a frozen model at every token, and their alignment.

In:   a document as numbers of characters or tokens; a frozen base and the name of a layer.
Out:  pieces of one window; inputs of that layer at every token; maps of states of documents and of
      questions to common coordinates.
Knows nothing of hypernetworks or adapters.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightloom.errors import ConfigError, DataError, ShapeError


def split_document(
    document: Int[Tensor, " length"], window: int, most: int
) -> Int[Tensor, "windows width"]:
    """Split a document into pieces of one window; the last one overlaps the one before it.

    Args:
        document: Numbers of its characters or tokens.
        window: Tokens per piece. A shorter document is one shorter piece.
        most: Most pieces that are taken.

    Returns:
        Pieces, ``(windows, min(window, length))``.

    Raises:
        DataError: If the document is empty, or longer than ``most`` pieces; nothing is cut off.

    Example:
        >>> split_document(torch.arange(5), window=2, most=3)
        tensor([[0, 1],
                [2, 3],
                [3, 4]])
    """
    length = len(document)
    if not length:
        raise DataError("The document is empty. An adapter is made of its tokens. Pass some text.")
    if length > window * most:
        raise DataError(
            f"The document has {length:,} tokens. At most {most} pieces of {window} are taken, "
            f"{window * most:,} tokens, and nothing is cut off in silence. Pass a part of it, or "
            f"allow `most={-(-length // window)}` pieces if the answers of so many are checked."
        )
    window = min(window, length)
    starts = [min(start, length - window) for start in range(0, length, window)]
    return torch.stack([document[start : start + window] for start in starts])


def layer_inputs(base: nn.Module, layer: str, *args: Any, **kwargs: Any) -> Tensor:
    """Inputs of one layer while a base runs.

    Args:
        base: The base.
        layer: Name of one of its modules, as in ``named_modules()``.
        *args: Arguments of the base.
        **kwargs: Arguments of the base by name.

    Raises:
        ConfigError: If the base has no such layer, or did not call it.

    Example:
        >>> base = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> layer_inputs(base, "2", torch.randn(5, 3)).shape
        torch.Size([5, 4])
    """
    names = dict(base.named_modules())
    if layer not in names or not layer:
        raise ConfigError(
            f"`layer={layer!r}` is no layer of {type(base).__name__}. Its input is the state that "
            f"is read. Pass the name of a module, as in {list(names)[-1]!r}."
        )
    seen: list[Tensor] = []
    hook = names[layer].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        base(*args, **kwargs)
    finally:
        hook.remove()
    if not seen:
        raise ConfigError(
            f"`layer={layer!r}` was not called when the base ran. Its input is the state that is "
            "read. Pass a layer that its forward pass uses."
        )
    return seen[-1]


class Alignment(NamedTuple):
    """Maps to coordinates in which states of documents and of questions correlate one by one."""

    document: Tensor
    """Map of a document's state, (states, coordinates)."""
    question: Tensor
    """Map of a question's state, (states, coordinates)."""
    correlations: Tensor
    """Correlation of each coordinate, (coordinates,), from the largest."""
    document_mean: Tensor
    """Mean of the documents' states, (states,)."""
    question_mean: Tensor
    """Mean of the questions' states, (states,)."""


def align(
    document: Float[Tensor, "pairs states"],
    question: Float[Tensor, "others inputs"],
    ridge: float = 1e-3,
) -> Alignment:
    """Align pairs of states by canonical correlation, in closed form.

    In the common coordinates both sides have variance 1, no two coordinates of a side correlate,
    and each correlates with the same one of the other side only: a question's coordinates are
    expected at ``correlations`` times those of the document.

    Args:
        document: State at a place of a document.
        question: State at the place of a question that asks for it.
        ridge: Share of the mean variance that is added to every direction.

    Raises:
        ShapeError: If there are fewer than two pairs, or the sides differ in number.

    Example:
        >>> x = torch.randn(500, 3)
        >>> align(x, x @ torch.randn(3, 3), ridge=1e-6).correlations.round(decimals=2)
        tensor([1., 1., 1.])

    Source:
        Hotelling, "Relations between two sets of variates" (1936).
    """
    if len(document) != len(question) or len(document) < 2:
        raise ShapeError(
            f"{len(document)} states of documents and {len(question)} of questions. Canonical "
            "correlation needs two pairs or more. Pass equal numbers of both."
        )
    left, right = document.double(), question.double()
    left_mean, right_mean = left.mean(0), right.mean(0)
    left, right = left - left_mean, right - right_mean
    left_white, right_white = _whitening(left, ridge), _whitening(right, ridge)
    across = (left @ left_white).mT @ (right @ right_white) / len(left)
    turn, correlations, other = torch.linalg.svd(across, full_matrices=False)
    maps = left_white @ turn, right_white @ other.mT, correlations.clamp(max=1)
    return Alignment(*(its.to(document.dtype) for its in (*maps, left_mean, right_mean)))


def _whitening(centred: Tensor, ridge: float) -> Tensor:
    """Symmetric map to variance 1 without correlations, (states, states)."""
    covariance = centred.mT @ centred / len(centred)
    sizes, directions = torch.linalg.eigh(covariance)
    sizes = sizes.clamp_min(0) + ridge * sizes.mean().clamp_min(1e-30)
    return directions / sizes.sqrt() @ directions.mT
