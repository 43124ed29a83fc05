"""Options of a transfer run, with their defaults and checks."""

from dataclasses import dataclass, replace
from typing import ClassVar

from weightloom.apps.transfer.presets import DATA, methods_of, preset, usual_rates
from weightloom.errors import ConfigError, nearest
from weightloom.runs.options import RunOptions
from weightloom.texts import shortened


@dataclass(frozen=True, kw_only=True)
class TransferConfig(RunOptions):
    """Options of a transfer run, as typed.

    Every field is also a command-line flag of the same name. An option left at None gets the
    default of the problem from `resolved`.

    Raises:
        ConfigError: If a value is out of range, or a method does not go with the problem.
    """

    command: ClassVar[str] = "transfer"
    imports: ClassVar[tuple[str, ...]] = ("data",)
    groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "Source and targets": ("data", "split", "test_targets", "validation", "check"),
        "Methods": ("rank", "width"),
        "Training": ("learning_rate", "tasks"),
    }

    method: str = "generated"
    """Method that the report is about; a name from `weightloom list transfer`."""
    data: str = "domains"
    """Source model and targets: a name from `weightloom list transfer`, or `module:Class`, a
    `TransferProblem` of your own."""
    split: int = 0
    """Fold, or seed of the split, that decides which targets are held out."""
    test_targets: int | None = None
    """Test targets behind each row of the table, where they are drawn. Default: by problem."""
    validation: bool = False
    """Judge on validation targets in place of test targets, to choose options."""
    check: bool = True
    """Add a row `checked`: all methods blended for each target by their own loss on its labelled
    examples, each from a model that was adapted without that example."""
    rank: int | None = None
    """Rank of a generated or trained low-rank change. Default: by problem."""
    width: int | None = None
    """Width of the hypernetwork. Default: by problem."""
    learning_rate: float | None = None
    """Peak learning rate. Default: by problem, and by method where a sweep chose one."""
    tasks: int | None = None
    """Training targets per step. Default: by problem."""

    def __post_init__(self) -> None:
        """Check the options, without loading a model or data.

        Raises:
            ConfigError: If an option is out of range, or does not go with the problem.
        """
        super().__post_init__()
        if self.data not in DATA and ":" not in self.data:
            raise ConfigError(
                f"`--data {shortened(self.data)}` is unknown. {nearest(self.data[:200], DATA)} It "
                "may also be a problem of your own, as `module:Class`. `weightloom list transfer` "
                "shows all names."
            )
        self.check_counts("test_targets", "rank", "width", "tasks")
        self.check_seeds("split")
        self.check_positive("learning_rate")
        known = methods_of(self.data) if self.data in DATA else self.methods
        usual = self._usual_comparators()
        self.check_methods(known, f"--data {self.data}", usual)

    def _usual_comparators(self) -> tuple[str, ...]:
        found = preset(self.data)
        names = found.get("comparators", methods_of(self.data))
        return tuple(name for name in names if name != self.method)

    def validating(self) -> "TransferConfig":
        """Return the same options, judged on validation targets."""
        return replace(self, validation=True)

    def resolved(self) -> "TransferOptions":
        """Return the options with all defaults filled in, those of the problem."""
        known = {**preset(self.data), "comparators": self._usual_comparators()}
        return TransferOptions(**self.filled(known, usual_rates(self.data)))


@dataclass(frozen=True, kw_only=True)
class TransferOptions(TransferConfig):
    """Options of a transfer run, all filled in; ``steps`` is None if ``minutes`` is given."""

    comparators: tuple[str, ...]
    test_targets: int
    rank: int
    width: int
    learning_rate: float
    tasks: int
    evaluate_every: int
    checkpoint_every: int

    def resolved(self) -> "TransferOptions":
        """Return the options unchanged."""
        return self
