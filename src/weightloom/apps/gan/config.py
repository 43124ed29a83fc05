"""Options of an adversarial run, with their defaults and checks."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from weightloom.apps.gan.presets import DATA, OURS, methods_of, preset, usual_rates
from weightloom.errors import ConfigError, nearest
from weightloom.runs.options import RunOptions
from weightloom.texts import shortened


@dataclass(frozen=True, kw_only=True)
class GanConfig(RunOptions):
    """Options of an adversarial run, as typed.

    Every field is also a command-line flag of the same name. An option left at None gets the
    default of the data from `resolved`.

    Raises:
        ConfigError: If a value is out of range, or a method does not go with the data.
    """

    command: ClassVar[str] = "gan"
    imports: ClassVar[tuple[str, ...]] = ("data",)
    groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "Data": ("data", "size", "samples", "validation"),
        "Players": ("noise_dim", "width", "replicas"),
        "Training": (
            "learning_rate",
            "batch",
            "gamma",
            "gamma_end",
            "penalty_every",
            "average",
        ),
    }

    method: str = OURS
    """Method that the report is about; a name from `weightloom list gan`."""
    data: str = "digits"
    """Samples to imitate: a name from `weightloom list gan`; a folder with a sub-folder of pictures
    or of WAV files per class; or `module:Class`, a `GanProblem` of your own."""
    size: int | None = None
    """Height and width of pictures from a folder, in pixels. Default: 28."""
    samples: int | None = None
    """Samples of each condition behind a row of the table. Default: by data."""
    validation: bool = False
    """Judge against validation data in place of test data, to choose options."""
    noise_dim: int | None = None
    """Width of the generator's noise. Default: by data."""
    width: int | None = None
    """Width of the players and of the hypernetwork. Default: by data."""
    replicas: int | None = None
    """Independent pairs of each method, trained in one batched pass. Default: by data."""
    learning_rate: float | None = None
    """Peak learning rate of both players. Default: by data, and by method where a sweep chose
    one."""
    batch: int | None = None
    """Real samples per step. Default: by data."""
    gamma: float | None = None
    """Weight of the gradient penalty at the start. Default: by data."""
    gamma_end: float | None = None
    """Weight of the gradient penalty after 80 % of the run, reached along a geometric series.
    Default: by data, or `--gamma` if that is given."""
    penalty_every: int | None = None
    """Turns of the discriminator from one gradient penalty to the next. Default: by data."""
    average: float | None = None
    """Decay per step of the running average of all parameters. Default: by data."""

    def __post_init__(self) -> None:
        """Check the options, without loading data.

        Raises:
            ConfigError: If an option is out of range, or does not go with the data.
        """
        super().__post_init__()
        if self.data not in DATA and ":" not in self.data and not self.is_folder:
            raise ConfigError(
                f"`--data {shortened(self.data)}` is unknown. {nearest(self.data[:200], DATA)} It "
                "may also be a folder with a sub-folder of pictures or WAV files per class, or a "
                "problem of your own, as `module:Class`. `weightloom list gan` shows all names."
            )
        counts = ("samples", "noise_dim", "width", "replicas", "batch", "penalty_every", "size")
        self.check_counts(*counts)
        self.check_positive("learning_rate", "gamma_end")
        self.check_not_negative("gamma")
        self._check_weights()
        known = methods_of(self.data) if self.data in DATA or self.is_folder else self.methods
        self.check_methods(known, f"--data {self.data}", self._usual_comparators())

    def _check_weights(self) -> None:
        """Check the course of the gradient penalty and the decay of the average."""
        gamma, end, average = self.gamma, self.gamma_end, self.average
        if gamma is not None and end is not None and end > gamma:
            raise ConfigError(
                f"`--gamma-end {end}` is above `--gamma {gamma}`. The gradient penalty falls from "
                f"the second to the first. Type `--gamma {end} --gamma-end {gamma}`, or one number "
                "for both."
            )
        if average is not None and not 0 <= average < 1:
            raise ConfigError(
                f"`--average {average}` is no decay. It is the share of the running average kept "
                "per step, from 0, for no average, to below 1. Type for instance `--average 0.999`."
            )

    @property
    def is_folder(self) -> bool:
        """True if the data are a folder of one's own."""
        if self.data in DATA:
            return False
        try:
            return "/" in self.data or Path(self.data).expanduser().is_dir()
        except (OSError, ValueError, RuntimeError):  # too long, a null byte, no home
            return False

    def _usual_comparators(self) -> tuple[str, ...]:
        names = preset(self.data).get("comparators", methods_of(self.data))
        return tuple(name for name in names if name != self.method)

    def validating(self) -> "GanConfig":
        """Return the same options, judged against validation data."""
        return replace(self, validation=True)

    def resolved(self) -> "GanOptions":
        """Return the options with all defaults filled in, those of the data."""
        known = {**preset(self.data), "comparators": self._usual_comparators()}
        if self.gamma is not None:
            known["gamma_end"] = self.gamma
        return GanOptions(**self.filled(known, usual_rates(self.data)))


@dataclass(frozen=True, kw_only=True)
class GanOptions(GanConfig):
    """Options of an adversarial run, all filled in; ``steps`` is None if ``minutes`` is given."""

    comparators: tuple[str, ...]
    size: int
    samples: int
    noise_dim: int
    width: int
    replicas: int
    learning_rate: float
    batch: int
    gamma: float
    gamma_end: float
    penalty_every: int
    average: float
    evaluate_every: int
    checkpoint_every: int

    def resolved(self) -> "GanOptions":
        """Return the options unchanged."""
        return self
