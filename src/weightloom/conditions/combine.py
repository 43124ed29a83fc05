"""Several things that are known of a task become one condition; any of them may be absent."""

import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weightloom.errors import ConfigError, ShapeError, nearest

Given = Tensor | tuple[Tensor | None, ...]
"""What an encoder takes: one tensor, or several as a tuple, each with a leading tasks axis."""


class CombinedCondition(nn.Module):
    """The sum of what each part says, each projected to ``condition_dim`` and brought to one scale.

    A part that is absent says a learned vector of its own, so the sum always has the same terms.
    Each starts with a mean square of about one, as does the sum, which is divided by √parts: the
    condition's scale does not depend on how many parts there are, how many are given, or how large
    a part's numbers are.

    The vector of an absent part is learned from tasks that lack it: leave parts out while training,
    too.

    Args:
        parts: Name of each part, and its encoder: any module that gives (tasks,
            encoder.condition_dim). A number instead stands for a plain vector of that width, such
            as features of a text.
        condition_dim: Width of the condition.

    Raises:
        ConfigError: If there are no parts, a name cannot be used, or an encoder does not say how
            wide its output is.

    Example:
        >>> from weightloom.conditions import DeepSets, TaskEmbedding
        >>> parts = {"task": TaskEmbedding(10, 4), "support": DeepSets(1, 1, condition_dim=8), "text": 16}
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
        """Combine what is given.

        Args:
            present: For some of the parts that are given: True for each task that has the part.
                Rows of the others never reach the encoder, whatever they hold. A task may lack all
                parts.
            **parts: What each encoder takes, each tensor (tasks, ...). A tuple is unpacked into the
                encoder's arguments. None, or nothing, says that no task has this part. At least one
                part must be given.

        Raises:
            ConfigError: If nothing is given, a name is unknown, or dtype or device differ from the
                encoder's.
            ShapeError: If parts disagree on the number of tasks, or a part is not of its width.
        """
        _check_known("combined", parts, self.parts)
        given = {name: _as_tuple(name, value) for name, value in parts.items() if value is not None}
        _check_known("present", present or {}, given)
        tasks = _count_tasks(given, self.parts)
        masks = {name: _check_mask(name, mask, tasks) for name, mask in (present or {}).items()}
        said = [part(given.get(name), masks.get(name), tasks) for name, part in self.parts.items()]
        return torch.stack(said).sum(0) / math.sqrt(len(said))


class _Part(nn.Module):
    """One part: what it says where it is present, and the learned vector that stands for it where it is not."""

    def __init__(self, name: str, encoder: nn.Module | int, condition_dim: int) -> None:
        super().__init__()
        self.name, self.width = name, _width(name, encoder)
        self.encoder = nn.Identity() if isinstance(encoder, int) else encoder
        # The norm keeps the direction only. Without a bias the length of a plain vector would be
        # lost; with one, the small numbers that a fresh encoder gives would drown in it, and all
        # tasks would look alike.
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
            return self._say(given)
        said = self._say(tuple(value if value is None else value[present] for value in given))
        return absent.index_put((present,), said)

    def _say(self, given: tuple[Tensor | None, ...]) -> Tensor:
        code = self.encoder(*given)
        rows = next(len(value) for value in given if value is not None)
        if code.shape != (rows, self.width):
            raise ShapeError(
                f"The part `{self.name}` is {tuple(code.shape)} after its encoder. It was built as "
                f"a part of width {self.width}, for {rows} tasks. Pass or encode it as ({rows}, "
                f"{self.width}), or build it with "
                "the width that it has."
            )
        said: Tensor = self.norm(
            self.project(code).to(self.absent.dtype)
        )  # which autocast may have lowered
        return said

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
                    f"{like.dtype} on {like.device}. Numbers meet only in one dtype, on one "
                    f"device. Pass it as `.to({str(like.device)!r}, {like.dtype})`, or move the "
                    "module."
                )


def _width(name: str, encoder: nn.Module | int) -> int:
    width = encoder if isinstance(encoder, int) else getattr(encoder, "condition_dim", None)
    if not isinstance(width, int) or width < 1:
        raise ConfigError(
            f"The part `{name}`, {encoder if isinstance(encoder, int) else type(encoder).__name__}, does not say how "
            "wide it is. It is projected, so its width must be known. Pass a positive number for a "
            "plain vector, or set `self.condition_dim` in the encoder."
        )
    return width


def _check_names(parts: Mapping[str, nn.Module | int]) -> None:
    if not parts:
        raise ConfigError(
            '`parts` is empty. A condition is made of something. Pass `{"task": TaskEmbedding(...)}`.'
        )
    taken = nn.ModuleDict()
    for name in parts:
        if not name.isidentifier() or name in ("self", "present") or hasattr(taken, name):
            raise ConfigError(
                f"A part cannot be named {name!r}. Parts are passed as keywords and kept in an "
                f"`nn.ModuleDict`, which has names of its own. Take another Python name, such as "
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
        kinds = [
            f"a {one.ndim}-d tensor" if isinstance(one, Tensor) else f"a {type(one).__name__}"
            for one in values
        ]
        raise ShapeError(
            f"The part `{name}` holds {', '.join(kinds) or 'nothing'}. An encoder takes tensors "
            "with a leading tasks axis, and None for what it can do without. Pass a tensor, or "
            "several as a tuple."
        )
    return values


def _count_tasks(given: Mapping[str, tuple[Tensor | None, ...]], parts: Iterable[str]) -> int:
    """The number of tasks that all given tensors agree on."""
    if not given:
        raise ConfigError(
            "No part is given. Without one the number of tasks is not known. "
            f"Pass one of {', '.join(f'`{name}`' for name in parts)}; `present` may say that tasks "
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
                "All parts speak of the same tasks, in the same order, on axis 0. "
                f"To give every task the same, pass `{label}[:1].expand({tasks}, "
                f"*{label}.shape[1:])`."
            )
    return tasks


def _check_mask(name: str, mask: Tensor, tasks: int) -> Tensor:
    if mask.shape != (tasks,) or mask.dtype != torch.bool:
        raise ShapeError(
            f"`present[{name!r}]` is {mask.dtype} of shape {tuple(mask.shape)}. It says for each "
            f"task whether it has this part. Pass a bool tensor of shape ({tasks},)."
        )
    return mask
