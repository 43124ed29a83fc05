"""Combine several descriptions of a task into one condition; each task may lack some of them."""

import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weightloom.errors import ConfigError, ShapeError, nearest

Given = Tensor | tuple[Tensor | None, ...]
"""Input of an encoder: one tensor, or several as a tuple, each with a leading tasks axis."""


class CombinedCondition(nn.Module):
    """Sum of several encoded parts, each projected to ``condition_dim`` and normalised.

    Every term starts with a mean square of about one. The sum is divided by √parts, so the scale of
    the condition does not depend on the number of parts, on the number given, or on the magnitude
    of a part's values.

    A learned vector stands for each absent part. It is learned from tasks that lack the part: leave
    parts out in training, too.

    Args:
        parts: Encoder of each part by name: any module with output (tasks, condition_dim) and an
            attribute ``condition_dim``. A number instead is the width of a plain vector, such as
            features of a text.
        condition_dim: Width of the condition.

    Raises:
        ConfigError: If ``parts`` is empty, a name cannot be used, or the width of an encoder's
            output is unknown.

    Example:
        >>> from weightloom.conditions import DeepSets, TaskEmbedding
        >>> parts = {"task": TaskEmbedding(10, 4), "support": DeepSets(1, 1, 8), "text": 16}
        >>> combined = CombinedCondition(parts, condition_dim=32)
        >>> support = torch.randn(5, 20, 1), torch.randn(5, 20, 1)
        >>> combined(task=torch.arange(5), support=support).shape  # no text
        torch.Size([5, 32])
    """

    def __init__(self, parts: Mapping[str, nn.Module | int], condition_dim: int) -> None:
        super().__init__()
        _check_names(parts)
        self.condition_dim = condition_dim
        self.parts = nn.ModuleDict(
            {name: _Part(name, encoder, condition_dim) for name, encoder in parts.items()}
        )

    def forward(
        self, *, present: Mapping[str, Bool[Tensor, " tasks"]] | None = None, **parts: Given | None
    ) -> Float[Tensor, "tasks condition_dim"]:
        """Encode and sum the given parts.

        Args:
            present: For any of the given parts: True for each task that has the part. Rows of the
                other tasks never reach the encoder. A task may lack all parts.
            **parts: Input of each encoder, each tensor (tasks, ...). A tuple is unpacked into the
                encoder's arguments. None, or a part left out, means that no task has it. At least
                one part must be given.

        Raises:
            ConfigError: If no part is given, a name is unknown, or dtype or device differ from the
                encoder's.
            ShapeError: If parts disagree on the number of tasks, or the width of a part is wrong.
        """
        _check_known("combined", parts, self.parts)
        given = {name: _as_tuple(name, value) for name, value in parts.items() if value is not None}
        _check_known("present", present or {}, given)
        tasks = _count_tasks(given, self.parts)
        masks = {name: _check_mask(name, mask, tasks) for name, mask in (present or {}).items()}
        terms = [part(given.get(name), masks.get(name), tasks) for name, part in self.parts.items()]
        return torch.stack(terms).sum(0) / math.sqrt(len(terms))


class _Part(nn.Module):
    """Term of the sum: the encoded part of tasks that have it, a learned vector for the others."""

    def __init__(self, name: str, encoder: nn.Module | int, condition_dim: int) -> None:
        super().__init__()
        self.name, self.width = name, _width(name, encoder)
        self.encoder = nn.Identity() if isinstance(encoder, int) else encoder
        # The norm keeps only the direction. A plain vector needs the bias, or its length is lost.
        # An untrained encoder must not have it: its small outputs would vanish beside the bias, and
        # all tasks would look alike.
        self.project = nn.Linear(self.width, condition_dim, bias=isinstance(encoder, int))
        self.norm = nn.RMSNorm(condition_dim, eps=1e-5)
        self.absent = nn.Parameter(torch.randn(condition_dim))

    def forward(
        self, given: tuple[Tensor | None, ...] | None, present: Tensor | None, tasks: int
    ) -> Tensor:
        absent = self.absent.expand(tasks, -1)
        if given is None or (present is not None and not present.any()):
            return absent
        self._check_kind(given)
        if present is None:
            return self._encoded(given)
        rows = self._encoded(tuple(value if value is None else value[present] for value in given))
        return absent.index_put((present,), rows)

    def _encoded(self, given: tuple[Tensor | None, ...]) -> Tensor:
        code = self.encoder(*given)
        rows = next(len(value) for value in given if value is not None)
        if code.shape != (rows, self.width):
            raise ShapeError(
                f"The part `{self.name}` is {tuple(code.shape)} after its encoder. It was built as "
                f"a part of width {self.width}, for {rows} tasks. Pass or encode it as ({rows}, "
                f"{self.width}), or build it with the width that it has."
            )
        projected = self.project(code).to(self.absent.dtype)  # autocast may have lowered the dtype
        normalised: Tensor = self.norm(projected)
        return normalised

    def _check_kind(self, given: tuple[Tensor | None, ...]) -> None:
        own = [*self.encoder.parameters(), *self.encoder.buffers(), self.absent]
        like = next(value for value in own if value.is_floating_point())
        for value in given:
            if value is None:
                continue
            differs = value.is_floating_point() and value.dtype != like.dtype
            if value.device != like.device or (
                differs and not torch.is_autocast_enabled(like.device.type)
            ):
                raise ConfigError(
                    f"The part `{self.name}` is {value.dtype} on {value.device} but its encoder is "
                    f"{like.dtype} on {like.device}. Both need one dtype and one device. Pass it "
                    f"as `.to({str(like.device)!r}, {like.dtype})`, or move the module."
                )


def _width(name: str, encoder: nn.Module | int) -> int:
    width = encoder if isinstance(encoder, int) else getattr(encoder, "condition_dim", None)
    if not isinstance(width, int) or width < 1:
        kind = encoder if isinstance(encoder, int) else type(encoder).__name__
        raise ConfigError(
            f"The part `{name}`, {kind}, does not say how wide it is. It is projected, so its "
            "width must be known. Pass a positive number for a plain vector, or set "
            "`self.condition_dim` in the encoder."
        )
    return width


def _check_names(parts: Mapping[str, nn.Module | int]) -> None:
    if not parts:
        raise ConfigError(
            "`parts` is empty. A condition has one part or more. Pass "
            '`{"task": TaskEmbedding(...)}`.'
        )
    taken = nn.ModuleDict()
    for name in parts:
        if not name.isidentifier() or name in ("self", "present") or hasattr(taken, name):
            raise ConfigError(
                f"A part cannot be named {name!r}. Parts are passed as keywords and kept in an "
                f"`nn.ModuleDict`, which reserves some names. Take another Python name, such as "
                f"`the_{name.replace('.', '_')}`."
            )


def _check_known(
    where: str, names: Mapping[str, object], known: Mapping[str, object] | nn.ModuleDict
) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(
                f"`{where}` was given the name {name!r}. It knows the parts that "
                f"{'are given in this call' if where == 'present' else 'it was built with'}. "
                f"{nearest(name, known)}"
            )


def _as_tuple(name: str, value: Given) -> tuple[Tensor | None, ...]:
    values = value if isinstance(value, tuple) else (value,)
    tensors = [one for one in values if one is not None]
    if not tensors or not all(isinstance(one, Tensor) and one.ndim for one in tensors):
        kinds = ", ".join(map(_kind, values)) or "an empty tuple"
        raise ShapeError(
            f"The part `{name}` holds {kinds}. An encoder takes tensors with a leading tasks axis, "
            "and None for optional ones. Pass a tensor, or several as a tuple."
        )
    return values


def _kind(value: object) -> str:
    """Dimensions of a tensor, or the type of another value, for a message."""
    return f"a {value.ndim}-d tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _count_tasks(given: Mapping[str, tuple[Tensor | None, ...]], parts: Iterable[str]) -> int:
    """Number of tasks in all given tensors, which must agree on it."""
    if not given:
        raise ConfigError(
            "No part is given. Without one the number of tasks is not known. "
            f"Pass one of {', '.join(f'`{name}`' for name in parts)}, with `present` if some tasks "
            "lack it."
        )
    labelled = {
        name if len(values) == 1 else f"{name}[{position}]": value
        for name, values in given.items()
        for position, value in enumerate(values)
        if value is not None
    }
    first, tasks = next((label, len(value)) for label, value in labelled.items())
    for label, value in labelled.items():
        if len(value) != tasks:
            raise ShapeError(
                f"`{label}` holds {len(value)} tasks but `{first}` holds {tasks}. "
                "All parts hold the same tasks, in the same order, on axis 0. "
                f"To give every task the same, pass `{label}[:1].expand({tasks}, "
                f"*{label}.shape[1:])`."
            )
    return tasks


def _check_mask(name: str, mask: Tensor, tasks: int) -> Tensor:
    if mask.shape != (tasks,) or mask.dtype != torch.bool:
        raise ShapeError(
            f"`present[{name!r}]` is {mask.dtype} of shape {tuple(mask.shape)}. It is True for "
            f"each task that has this part. Pass a bool tensor of shape ({tasks},)."
        )
    return mask
