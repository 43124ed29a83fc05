"""The static hypernetwork: one generator writes kernels from a learned embedding per block."""

from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.errors import ConfigError, ShapeError
from weightloom.hypernets.held import HoldsBase
from weightloom.hypernets.hypernet import HyperNetwork, Rows, check_condition
from weightloom.hypernets.saving import Saves
from weightloom.hypernets.writer import LARGEST_HEAD, check_head, check_sizes
from weightloom.params import Params, ParamSpec, Selector, Shape


class StaticHyperNetwork(Saves, HoldsBase, HyperNetwork):
    """Hypernetwork that generates kernels from few parameters: a learned embedding per block.

    A kernel (out, in, *window) consists of blocks (block, block, *window). Block j has a learned
    embedding zʲ, and a generator of two linear layers, shared by all blocks of all kernels, writes
    it input channel by input channel:

        aᵢʲ = Wᵢ zʲ + Bᵢ,    Kᵢʲ = W_out aᵢʲ + B_out,    i = 1 … block.

    The base's own values of generated kernels only set the scale of the initial kernels. The base
    that is passed is not changed; in ``hyper.base``, its twin
    (`weightloom.hypernets.held.HoldsBase`), these values require no gradient, so an optimiser over
    ``hyper.parameters()`` does not train them. The base's other parameters are shared by the tasks
    and trained.

    With ``condition_dim=0`` this trains one network with fewer parameters than the base. With a
    condition, the generator reads zʲ + Pʲ condition instead of zʲ. Each block has its own Pʲ,
    since the generator is linear and a common shift would change all blocks equally; Pʲ starts at
    zero.

    Args:
        base: The base network.
        condition_dim: Width of a condition, 0 for none.
        block: Output and input channels of a block. Default: the largest size from 16 down to 4
            whose blocks cover at least half as many numbers as those of the best size.
        embedding_dim: Width of a block's embedding.
        hidden: Width of the generator's hidden layer.
        window: Window of the generated kernels; ``()`` for linear layers. Default: the window with
            the most numbers in the base.
        generate: Selectors of the generated parameters. Default: all real parameters of this window
            whose numbers of channels are multiples of ``block``.
        largest_head: Largest number of elements in the layer that reads the condition; a larger one
            raises an error before its memory is allocated.

    Raises:
        ConfigError: If no parameter can consist of such blocks, a selected one cannot, a size is
            below 1, or the layer that reads the condition would be too large.

    Example:
        >>> base = nn.Sequential(nn.Conv2d(1, 16, 3), *(nn.Conv2d(16, 16, 3) for _ in range(6)))
        >>> hyper = StaticHyperNetwork(base, embedding_dim=4)
        >>> {name: tuple(value.shape) for name, value in hyper(tasks=5).items()}["1.weight"]
        (5, 16, 16, 3, 3)
        >>> [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (hyper, hyper.base)]
        [4008, 256]
        >>> hyper.spec.size
        13824

    Source:
        Ha, Dai and Le, "HyperNetworks" (2017), section 3.1; kernels of several blocks as in its
        residual networks. The condition is ours, and so is the initialisation: blocks have the
        variance of the base's own values, whereas the paper gives all generator weights one scale.
    """

    def __init__(
        self,
        base: nn.Module,
        condition_dim: int = 0,
        block: int | None = None,
        embedding_dim: int = 16,
        hidden: int = 16,
        window: tuple[int, ...] | None = None,
        generate: Selector | list[Selector] | None = None,
        largest_head: int = LARGEST_HEAD,
    ) -> None:
        super().__init__()
        window = _usual_window(base) if window is None else tuple(window)
        block = _usual_block(base, window) if block is None else block
        check_sizes(block=block, embedding_dim=embedding_dim, hidden=hidden)
        self.condition_dim, self.block, self.window = condition_dim, block, window
        self.spec = _writable(base, generate, block, window)
        grids = [(shape[0] // block, shape[1] // block) for shape in self.spec.shapes.values()]
        self._counts = [rows * columns for rows, columns in grids]
        total = sum(self._counts) * embedding_dim
        check_head(
            condition_dim * total,
            largest_head,
            f"{condition_dim:,} inputs for each of {total:,} numbers in embeddings of blocks",
            f"Make larger blocks or smaller embeddings, as in `block={2 * block}` or "
            "`embedding_dim=1`",
        )
        self.hold(base, unused=self.spec.shapes)
        self.options = {
            "condition_dim": condition_dim,
            "block": block,
            "embedding_dim": embedding_dim,
        }
        self.options |= {"hidden": hidden, "window": list(window), "largest_head": largest_head}
        self.options |= {"generate": {"selectors": list(self.spec.shapes)}}
        spreads = torch.stack(
            [base.get_parameter(name).detach().square().mean().sqrt() for name in self.spec.shapes]
        )
        typical = spreads.square().mean().sqrt() or spreads.new_ones(())
        each = (spreads / typical).cpu().repeat_interleave(torch.tensor(self._counts))
        self.embeddings = nn.Parameter(torch.randn(len(each), embedding_dim) * each[:, None])
        self.first = nn.Parameter(torch.randn(block, hidden, embedding_dim) / embedding_dim**0.5)
        self.first_bias = nn.Parameter(torch.zeros(block, hidden))
        self.last = nn.Linear(hidden, block * prod(window))
        nn.init.normal_(self.last.weight, std=typical.item() / hidden**0.5)
        nn.init.zeros_(self.last.bias)
        self.read = (
            nn.Linear(condition_dim, self.embeddings.numel(), bias=False) if condition_dim else None
        )
        if self.read is not None:
            nn.init.zeros_(self.read.weight)
        self._owners = {
            name: self.base.get_submodule(name.rpartition(".")[0]) for name in self.spec.shapes
        }

    def forward(
        self, condition: Float[Tensor, "tasks condition_dim"] | None = None, tasks: int = 1
    ) -> Params:
        """Generate kernels for each task.

        Args:
            condition: Description of each task, (tasks, condition_dim); None if
                ``self.condition_dim`` is 0.
            tasks: Number of tasks that get the same kernels, if there is no condition.

        Returns:
            The generated kernels by name, each (tasks, *shape).

        Raises:
            ShapeError: If the condition is missing, not expected, or of another shape.
        """
        self.check_base()
        if condition is None and self.read is not None:
            raise ShapeError(
                f"`condition=None` was given. This hypernetwork reads (tasks, "
                f"{self.condition_dim}). "
                "Pass a condition, or build it with `condition_dim=0`."
            )
        embeddings = self.embeddings[None]
        if condition is not None:
            if self.read is None:
                raise ShapeError(
                    f"`condition` has shape {tuple(condition.shape)}. This hypernetwork was built "
                    "with `condition_dim=0`, so it reads none. Pass `tasks=` instead, or build it "
                    f"with `condition_dim={condition.shape[-1] if condition.ndim else 1}`."
                )
            check_condition(condition, self.condition_dim, self.first)
            embeddings = embeddings + self.read(condition).unflatten(1, self.embeddings.shape)
        inner = torch.einsum("ihe,tje->tjih", self.first, embeddings) + self.first_bias
        rows = self.last(inner).split(self._counts, dim=1)  # of (tasks, blocks, in, out * window)
        its = {
            name: self._kernel(row, shape).to(self._dtype(name))  # autocast gives half precision
            for (name, shape), row in zip(self.spec.shapes.items(), rows, strict=True)
        }
        params = Params(its)
        return (
            params
            if condition is not None
            else params.map(lambda value: value.expand(tasks, *value.shape[1:]))
        )

    def written_by(self) -> dict[str, list[Rows]]:
        """Embeddings of each kernel's blocks, and the rows that read the condition, by name."""
        written: dict[str, list[Rows]] = {
            name: [(own, slice(None))] for name, own in self.base.named_parameters()
        }
        first, width = 0, self.embeddings.shape[1]
        for name, blocks in zip(self.spec.shapes, self._counts, strict=True):
            written[name].append((self.embeddings, slice(first, first + blocks)))
            if self.read is not None:
                written[name].append(
                    (self.read.weight, slice(first * width, (first + blocks) * width))
                )
            first += blocks
        return written

    def _dtype(self, name: str) -> torch.dtype:
        own = self._owners[name]._parameters[name.rpartition(".")[2]]
        assert own is not None
        return own.dtype

    def _kernel(self, blocks: Tensor, shape: Shape) -> Tensor:
        """Arrange the blocks of one kernel, row by row."""
        grid = blocks.unflatten(1, (shape[0] // self.block, -1)).unflatten(
            -1, (self.block, prod(self.window))
        )
        return grid.permute(0, 1, 4, 2, 3, 5).reshape(len(blocks), *shape)


def _usual_window(base: nn.Module) -> tuple[int, ...]:
    """Window whose kernels hold the most numbers."""
    numbers: dict[tuple[int, ...], int] = {}
    for parameter in base.parameters():
        if parameter.ndim >= 2:
            window = tuple(parameter.shape[2:])
            numbers[window] = numbers.get(window, 0) + parameter.numel()
    return max(numbers, key=lambda window: numbers[window], default=())


def _usual_block(base: nn.Module, window: tuple[int, ...]) -> int:
    """Largest block, from 16 channels down to 4, that covers half of the best size's numbers."""
    sides = [p.shape[:2] for p in base.parameters() if p.ndim >= 2 and tuple(p.shape[2:]) == window]
    covered = {block: _covered(sides, block) for block in range(16, 3, -1)}
    best = max(covered.values())
    return next((block for block, numbers in covered.items() if best and 2 * numbers >= best), 16)


def _covered(sides: Sequence[Sequence[int]], block: int) -> int:
    """Numbers of all matrices that consist of square blocks of a size."""
    return sum(
        rows * columns for rows, columns in sides if rows % block == 0 and columns % block == 0
    )


def _writable(
    base: nn.Module, generate: Selector | list[Selector] | None, block: int, window: tuple[int, ...]
) -> ParamSpec:
    """Spec of the generated parameters; refuse those that cannot consist of blocks."""
    named = dict(base.named_parameters())
    fitting = [name for name, parameter in named.items() if _fits(parameter, block, window)]
    kind = f"of window {window} whose first two axes are multiples of {block}"
    if generate is None and not fitting:
        shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
        raise ConfigError(
            f"{type(base).__name__} has no parameter {kind}. Blocks can write no other. "
            f"Its parameters are {shapes}: pass another `block` or `window`, as in `window=()` for "
            "linear layers."
        )
    spec = ParamSpec.of(base, fitting if generate is None else generate)
    for name, shape in spec.shapes.items():
        if name not in fitting:
            raise ConfigError(
                f"`{name}` has shape {shape} and is {named[name].dtype}. Blocks can write only a "
                f"parameter {kind}, of real numbers. "
                f"Leave it out of `generate` (parameters that fit: {fitting or 'none'}), or pass "
                "another `block` or `window`."
            )
    return spec


def _fits(parameter: nn.Parameter, block: int, window: tuple[int, ...]) -> bool:
    """True if a real parameter consists of blocks (block, block, *window)."""
    shape = tuple(parameter.shape)
    if len(shape) < 2 or shape[2:] != window or not parameter.is_floating_point():
        return False
    return shape[0] % block == 0 and shape[1] % block == 0
