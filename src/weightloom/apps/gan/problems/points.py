"""Points in the plane: 25 normal distributions on a grid, or 8 on a circle.

In:   options.
Out:  pairs of independent replicas trained in one pass; modes, quality and balance of samples.

The protocol is that of Lin et al., "PacGAN" (2018), section 4.1.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.adversarial import AdversarialPair, Penalty, StatisticsPair
from weightloom.apps.app import Shown
from weightloom.apps.gan.problems.problem import GanProblem, Recipe
from weightloom.base import per_task
from weightloom.hypernets import MLPHyperNetwork
from weightloom.hypernets.own import own_params
from weightloom.measures.modes import modes
from weightloom.networks import FourierFeatures, mlp
from weightloom.params import Params

if TYPE_CHECKING:
    from weightloom.apps.gan.config import GanOptions
    from weightloom.runs.record import Better

FREQUENCIES = 16
"""Random frequencies of the features whose statistics are a condition."""
EACH = 4
"""Samples of each generated generator in a batch."""
SEEDS = {True: 11, False: 12}
"""Seed of the noise behind samples to score, for validation and for the table."""


class Mixture(NamedTuple):
    """A mixture of equal normal distributions."""

    centres: Tensor
    """Centre of each, (modes, 2)."""
    std: float
    """Standard deviation of each along each axis."""
    scale: float
    """Unit in which players see samples, about the standard deviation of all."""
    enough: int
    """Modes at which a pair counts as stable."""


class PointMethod(NamedTuple):
    """A method: its loss, its penalty, and the players that a hypernetwork writes."""

    loss: Any = "relativistic"
    """Loss of both players."""
    penalised: tuple[str, ...] = ("real", "fake")
    """Inputs at which the discriminator's gradient is penalised; none for no penalty."""
    packing: int = 1
    """Samples that the discriminator judges together."""
    writes: tuple[str, ...] = ()
    """Players whose parameters a hypernetwork writes."""
    falls: bool = True
    """The weight of the penalty falls from ``gamma`` to ``gamma_end``."""
    wider: bool = False
    """Players as wide as gives the trained numbers of ``generated``."""


METHODS = {
    "plain": PointMethod(),
    "packed": PointMethod(packing=2),
    "generated-generator": PointMethod(writes=("generator",)),
    "generated": PointMethod(writes=("generator", "discriminator")),
    "matched": PointMethod(wider=True),
    "constant-penalty": PointMethod(falls=False),
    "r1": PointMethod("non-saturating", ("real",)),
    "non-saturating": PointMethod("non-saturating", ()),
    "packed-alone": PointMethod("non-saturating", (), packing=2),
}
"""Methods by name."""


class OwnNetworks(nn.Module):
    """One network per replica, all of one architecture, run in one pass.

    Args:
        build: Builds a network, newly initialised.
        replicas: Number of networks.
    """

    def __init__(self, build: Callable[[], nn.Module], replicas: int) -> None:
        super().__init__()
        params = own_params(build, replicas)
        self.names = list(params)
        self.values = nn.ParameterList(params.values())
        self._run = per_task(build())

    def forward(self, condition: Tensor, inputs: Tensor) -> Any:
        """Outputs, (replicas, count, *out), of inputs, (replicas, count, width)."""
        return self._run(Params(zip(self.names, self.values, strict=True)), inputs)


class WrittenNetworks(nn.Module):
    """One hypernetwork per replica, which writes that replica's network from its condition.

    With codes, a hypernetwork writes several networks, each from the condition and a code, the
    first numbers of the noise; a network makes ``EACH`` samples from the noise that remains.

    Args:
        build: Builds a network, from inputs (count, width) to outputs.
        condition_dim: Width of the condition.
        hidden: Width of the hypernetwork.
        replicas: Number of hypernetworks.
        codes: Width of the codes; 0 for one network per replica.
    """

    def __init__(
        self,
        build: Callable[[], nn.Module],
        condition_dim: int,
        hidden: int,
        replicas: int,
        codes: int = 0,
    ) -> None:
        super().__init__()
        self.codes = codes
        self.hyper = OwnNetworks(
            lambda: MLPHyperNetwork(build(), condition_dim + codes, hidden=(hidden,)), replicas
        )
        self._run = per_task(build())

    def forward(
        self,
        condition: Float[Tensor, "replicas condition_dim"],
        inputs: Float[Tensor, "replicas count width"],
    ) -> Tensor:
        """Outputs, (replicas, count, *out)."""
        replicas, count, _ = inputs.shape
        each = EACH if self.codes else count
        padded = nn.functional.pad(inputs, (0, 0, 0, -count % each))
        groups = padded.unflatten(1, (-1, each))
        codes = groups[:, :, 0, : self.codes]
        known = torch.cat([condition[:, None].expand(-1, codes.shape[1], -1), codes], dim=2)
        params = self.hyper(condition, known)
        flat = {name: its.flatten(0, 1) for name, its in params.items()}
        outputs: Tensor = self._run(flat, groups[..., self.codes :].flatten(0, 1))
        return outputs.unflatten(0, (replicas, -1)).flatten(1, 2)[:, :count]


class Points(GanProblem):
    """A grid of 25 or a ring of 8 normal distributions, imitated by independent pairs.

    A name is a pair: `replicas` pairs of each method are trained in one batched pass, each with
    parameters, samples and noise of its own.
    """

    score: ClassVar[str] = "modes"
    better: ClassVar["Better"] = "higher"

    def __init__(self, config: "GanOptions") -> None:
        self.config = config
        self.mixture = ring() if config.data == "ring" else grid()
        self.names = [f"pair {number + 1}" for number in range(config.replicas)]
        self.protocol = (
            f"{len(self.mixture.centres)} normal distributions in the plane, standard deviation "
            f"{self.mixture.std:g}. {config.samples:,} samples of each pair; high quality: within "
            "3 standard deviations of a centre; modes: centres with such a sample; reverse_kl: of "
            "the modes of these samples from the uniform distribution. Training samples are drawn "
            "without end, so a second set of noise takes the place of test data. Interval: over "
            f"{config.replicas} independent pairs."
        )

    def conditions(self) -> Tensor:
        """Return conditions without a number: replicas differ in their parameters only."""
        return torch.zeros(self.config.replicas, 0)

    def draw(self, step: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw real samples of each replica, in units of the mixture's scale."""
        return self.conditions(), self._real(self.config.batch, generator) / self.mixture.scale

    def _real(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw from the mixture, (replicas, count, 2)."""
        centres, std = self.mixture.centres, self.mixture.std
        shape = (self.config.replicas, count)
        drawn = centres[torch.randint(len(centres), shape, generator=generator)]
        return drawn + std * torch.randn(drawn.shape, generator=generator)

    def build(self, method: str) -> AdversarialPair:
        """Build the pairs of a method, one per replica, from torch's current seed."""
        known, width = METHODS[method], self.config.width
        if known.wider:
            width = self._wider()
        return self._pair(known, width)

    def _pair(self, known: PointMethod, width: int) -> AdversarialPair:
        noise_dim, replicas = self.config.noise_dim, self.config.replicas
        both = len(known.writes) > 1
        condition_dim = 8 * FREQUENCIES if both else 0
        codes = noise_dim // 2 if "generator" in known.writes else 0
        sizes = {
            "generator": [noise_dim - codes, width, width, width, 2],
            "discriminator": [2 * known.packing, width, width, width, 1],
        }
        players: dict[str, nn.Module] = {}
        for name, widths in sizes.items():
            build = _builder(widths)
            players[name] = (
                WrittenNetworks(
                    build, condition_dim, width // 4, replicas, codes if name == "generator" else 0
                )
                if name in known.writes
                else OwnNetworks(build, replicas)
            )
        options: dict[str, Any] = {
            "noise_dim": noise_dim,
            "loss": known.loss,
            "packing": known.packing,
            "penalised": known.penalised,
        }
        if not both:
            return AdversarialPair(players["generator"], players["discriminator"], **options)
        return StatisticsPair(
            players["generator"],
            players["discriminator"],
            tasks=replicas,
            width=2 * FREQUENCIES,
            features=FourierFeatures(2, FREQUENCIES),
            **options,
        )

    def _wider(self) -> int:
        """Width of plain players with about as many trained numbers as ``generated``."""
        wanted = _count(self._pair(METHODS["generated"], self.config.width))
        width = self.config.width
        while _plain_count(self.config.noise_dim, width) * self.config.replicas < wanted:
            width += 1
        return width

    def recipe(self, method: str, steps: int) -> Recipe:
        """Return the training of a method, with its penalty falling or constant."""
        if METHODS[method].falls:
            return super().recipe(method, steps)
        return Recipe(Penalty(self.config.gamma, every=self.config.penalty_every))

    def samples(self, model: AdversarialPair, setting: str, shuffled: bool = False) -> Tensor:
        """Draw samples of each pair to score, (replicas, samples, 2)."""
        seed = SEEDS[self.config.validation]
        generator = torch.Generator().manual_seed(seed)
        made = model.sample(self.conditions(), self.config.samples, generator)
        return made * self.mixture.scale

    def validate(self, model: AdversarialPair) -> float:
        """Return the modes per pair, by the noise of validation."""
        generator = torch.Generator().manual_seed(SEEDS[True])
        made = model.sample(self.conditions(), self.config.samples, generator)
        return self.scores("samples", made * self.mixture.scale)["modes"].mean().item()

    def scores(self, setting: str, samples: Tensor) -> dict[str, Tensor]:
        """Return modes, high quality and reverse divergence of each pair."""
        counted, good, reverse_kl = modes(samples, self.mixture.centres, self.mixture.std)
        enough = self.mixture.enough
        return {
            "modes": counted.float(),
            "high_quality": good.float(),
            "reverse_kl": reverse_kl.float(),
            f"pairs with {enough} modes": (counted >= enough).float(),
        }

    def draw_samples(
        self,
        model: AdversarialPair,
        number: int,
        count: int,
        generator: torch.Generator | None = None,
        size: Sequence[int] | None = None,
    ) -> Tensor:
        """Draw samples of one pair, (count, 2), in the units of the mixture."""
        if size is not None:
            return super().draw_samples(model, number, count, generator, size)
        return model.sample(self.conditions(), count, generator)[number] * self.mixture.scale

    def ceilings(self, setting: str) -> Mapping[str, Tensor]:
        """Return real samples, as many as are drawn of each pair."""
        return {"real samples": self._real(self.config.samples, torch.Generator().manual_seed(13))}

    def frame(self, model: AdversarialPair) -> Tensor:
        """Return samples of the first pair, (500, 2)."""
        return self.draw_samples(model, 0, 500, torch.Generator().manual_seed(SEEDS[True]))

    def show(self, models: Mapping[str, nn.Module]) -> Shown:
        """Return the centres, and samples of the first pair of each method."""
        drawn = {
            f"points/{name}": self.frame(model)
            for name, model in models.items()
            if isinstance(model, AdversarialPair)
        }
        return drawn | {"centres": self.mixture.centres}, {}

    def facts(self) -> dict[str, Any]:
        """Return the number of pairs among whose parameters those of a method are counted."""
        return {"pairs": self.config.replicas}


def grid() -> Mixture:
    """Return 25 distributions of standard deviation .05, 2 apart."""
    axis = torch.arange(-4.0, 5.0, 2.0)
    return Mixture(torch.cartesian_prod(axis, axis), 0.05, 8**0.5, 24)


def ring() -> Mixture:
    """Return 8 distributions of standard deviation .01 on a circle of radius 1."""
    angle = torch.arange(8) * torch.pi / 4
    return Mixture(torch.stack([angle.cos(), angle.sin()], dim=1), 0.01, 0.5**0.5, 8)


def _builder(widths: list[int]) -> Callable[[], nn.Module]:
    """Return a function that builds a player of these widths."""
    return lambda: mlp(widths, nn.LeakyReLU)


def _count(module: nn.Module) -> int:
    return sum(its.numel() for its in module.parameters() if its.requires_grad)


def _plain_count(noise_dim: int, width: int) -> int:
    """Count the numbers of a generator and a discriminator of three hidden layers."""
    hidden = 2 * (width + 1) * width
    return (noise_dim + 1) * width + 2 * hidden + (width + 1) * 2 + 3 * width + width + 1
