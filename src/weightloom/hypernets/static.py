"""The static hypernetwork: a learned embedding for each block of each kernel, and one generator for all of them."""

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
    """Generate kernels of ``base`` from few parameters.

    Each block of a kernel is g(z), z being all that it owns.

    A kernel (out, in, *window) is made of blocks (block, block, *window). Block j has a learned
    embedding zʲ, and a generator of two linear layers, shared by all blocks of all kernels, writes
    it input channel by input channel:

        aᵢʲ = Wᵢ zʲ + Bᵢ,    Kᵢʲ = W_out aᵢʲ + B_out,    i = 1 … block.

    The base's own values of generated kernels are not used. They only say how large the generated
    ones start. The base that was passed is left as it is; in ``hyper.base``, its twin
    (`weightloom.hypernets.held.HoldsBase`), they want no gradient, so no optimiser of
    ``hyper.parameters()`` trains them. All other parameters of the base are shared by the tasks,
    and trained.

    With ``condition_dim=0`` there is no condition, and one network with fewer parameters than the
    base is trained. With a condition, zʲ + Pʲ condition is what the generator reads. Pʲ differs
    from block to block, since the generator is linear and a common shift would change all blocks
    alike; it starts at zero.

    Args:
        base: The base network.
        condition_dim: Width of a condition, 0 for none.
        block: Output and input channels of a block. None takes the largest from 16 down to 4 that
            writes at least half of what any would.
        embedding_dim: Width of a block's embedding.
        hidden: Width d of the hidden layer.
        window: Window of the generated kernels; ``()`` for linear layers. None takes that of most
            numbers.
        generate: Which parameters are generated. None takes every one that can be written: those of
            this window whose channels are multiples of ``block``.
        largest_head: As many numbers as the layer that reads the condition may hold: a larger one
            is an error, not gigabytes.

    Raises:
        ConfigError: If nothing can be written, a selected parameter cannot, a size is below 1, or
            the layer that reads the condition would be too large.

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
        Ha, Dai and Le, "HyperNetworks" (2017), section 3.1, where kernels of several blocks are
        those of its residual networks. The condition is ours, and so is the start: blocks have the
        variance of the base's own values, where the paper draws all generator weights of one size.
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
        each = torch.cat(
            [(s / typical).expand(n) for s, n in zip(spreads, self._counts, strict=True)]
        )
        self.embeddings = nn.Parameter(torch.randn(len(each), embedding_dim) * each.cpu()[:, None])
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
            condition: (tasks, condition_dim). None where ``condition_dim`` is 0.
            tasks: How many tasks get the same kernels, where there is no condition.

        Raises:
            ShapeError: If the condition is not what this hypernetwork was built for.
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
            name: self._kernel(row, shape).to(self._dtype(name))  # whole under autocast
            for (name, shape), row in zip(self.spec.shapes.items(), rows, strict=True)
        }
        params = Params(its)
        return (
            params
            if condition is not None
            else params.map(lambda value: value.expand(tasks, *value.shape[1:]))
        )

    def written_by(self) -> dict[str, list[Rows]]:
        """Name by name, the embeddings of its blocks, and the rows that read the condition for them."""
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
        """Lay the blocks of one kernel out, row by row."""
        grid = blocks.unflatten(1, (shape[0] // self.block, -1)).unflatten(
            -1, (self.block, prod(self.window))
        )
        return grid.permute(0, 1, 4, 2, 3, 5).reshape(len(blocks), *shape)


def _usual_window(base: nn.Module) -> tuple[int, ...]:
    """The window of the kernels that hold the most numbers."""
    numbers: dict[tuple[int, ...], int] = {}
    for parameter in base.parameters():
        if parameter.ndim >= 2:
            window = tuple(parameter.shape[2:])
            numbers[window] = numbers.get(window, 0) + parameter.numel()
    return max(numbers, key=lambda window: numbers[window], default=())


def _usual_block(base: nn.Module, window: tuple[int, ...]) -> int:
    """The largest block up to 16 channels that makes up as many numbers as any."""
    sides = [p.shape[:2] for p in base.parameters() if p.ndim >= 2 and tuple(p.shape[2:]) == window]
    written = {
        block: sum(
            rows * columns for rows, columns in sides if rows % block == 0 and columns % block == 0
        )
        for block in range(16, 3, -1)
    }
    enough = [
        block
        for block, numbers in written.items()
        if numbers and 2 * numbers >= max(written.values())
    ]
    return enough[0] if enough else 16


def _writable(
    base: nn.Module, generate: Selector | list[Selector] | None, block: int, window: tuple[int, ...]
) -> ParamSpec:
    """Which parameters are generated; refuse those that blocks cannot make up."""

    def fits(shape: Shape) -> bool:
        return (
            len(shape) >= 2
            and shape[2:] == window
            and shape[0] % block == 0
            and shape[1] % block == 0
        )

    named = dict(base.named_parameters())
    shapes = {name: tuple(parameter.shape) for name, parameter in named.items()}
    fitting = [
        name for name, shape in shapes.items() if fits(shape) and named[name].is_floating_point()
    ]
    what = f"of window {window} whose first two axes are multiples of {block}"
    if generate is None and not fitting:
        raise ConfigError(
            f"{type(base).__name__} has no parameter {what}. Only such can be written in blocks. "
            f"Its parameters are {shapes}: pass another `block` or `window`, as in `window=()` for "
            "linear layers."
        )
    spec = ParamSpec.of(base, fitting if generate is None else generate)
    for name, shape in spec.shapes.items():
        if name not in fitting:
            raise ConfigError(
                f"`{name}` has shape {shape} and is {named[name].dtype}. Blocks can write only a "
                f"parameter {what}, of real numbers. "
                f"Leave it out of `generate`: {fitting or 'none'} would do, or pass another "
                "`block` or `window`."
            )
    return spec
