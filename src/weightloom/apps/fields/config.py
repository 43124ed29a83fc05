"""Options of a run on fields, with their defaults and checks."""

from dataclasses import dataclass, replace
from typing import ClassVar

from weightloom.apps.fields.presets import DATA, METHODS, OURS, preset, usual_rates
from weightloom.errors import ConfigError, nearest
from weightloom.runs.options import RunOptions
from weightloom.texts import shortened

LEAST_FUNCTIONS = 2
"""Fewest functions to test on: a shuffled condition is that of another one."""


@dataclass(frozen=True, kw_only=True)
class FieldsConfig(RunOptions):
    """Options of a run on fields, as typed.

    Every field is also a command-line flag of the same name. An option left at None gets the
    default of the family from `resolved`.

    Raises:
        ConfigError: If a value is out of range, or a name is unknown.
    """

    command: ClassVar[str] = "fields"
    imports: ClassVar[tuple[str, ...]] = ("data",)
    groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "Equations": ("data", "train_functions", "test_functions", "validation"),
        "Methods": ("width",),
        "Training": ("learning_rate", "functions", "points"),
    }

    method: str = OURS
    """Method that the report is about; a name from `weightloom list fields`."""
    data: str = "burgers"
    """Family of equations: a name from `weightloom list fields`, or `module:Class`, a `FieldFamily`
    of your own."""
    train_functions: int | None = None
    """Solutions to train on. Default: 6000."""
    test_functions: int | None = None
    """Solutions behind each row of the table. Default: 200."""
    validation: bool = False
    """Judge on validation functions in place of test functions, to choose options."""
    width: int | None = None
    """Width of the hypernetwork. Default: 256."""
    learning_rate: float | None = None
    """Peak learning rate. Default: by family, and by method where a sweep chose one."""
    functions: int | None = None
    """Training functions per step. Default: 32."""
    points: int | None = None
    """Points of each function per step. Default: 96."""

    def __post_init__(self) -> None:
        """Check the options, without making data.

        Raises:
            ConfigError: If an option is out of range, or a name is unknown.
        """
        super().__post_init__()
        if self.data not in DATA and ":" not in self.data:
            raise ConfigError(
                f"`--data {shortened(self.data)}` is unknown. {nearest(self.data[:200], DATA)} It "
                "may also be a family of your own, as `module:Class`. `weightloom list fields` "
                "shows all names."
            )
        self.check_counts("train_functions", "width", "functions", "points")
        self.check_positive("learning_rate")
        if self.test_functions is not None and self.test_functions < LEAST_FUNCTIONS:
            raise ConfigError(
                f"`--test-functions {self.test_functions}` is too small. Methods are also judged "
                f"with the condition of another function. Pass {LEAST_FUNCTIONS} or more."
            )
        self._check_own()
        self.check_methods(METHODS, f"--data {self.data}", self._usual_comparators())

    def _check_own(self) -> None:
        """Raise a `ConfigError` for a method given as ``module:Class``."""
        for name in self.methods:
            if ":" in name:
                raise ConfigError(
                    f"`{shortened(name)}` is no method of fields. Methods are those of `weightloom "
                    "list fields`, and a family of your own is `--data module:Class`. Type one of "
                    f"{', '.join(METHODS)}."
                )

    def _usual_comparators(self) -> tuple[str, ...]:
        return tuple(name for name in preset(self.data)["comparators"] if name != self.method)

    def validating(self) -> "FieldsConfig":
        """Return the same options, judged on validation functions."""
        return replace(self, validation=True)

    def resolved(self) -> "FieldsOptions":
        """Return the options with all defaults filled in, those of the family."""
        known = {**preset(self.data), "comparators": self._usual_comparators()}
        return FieldsOptions(**self.filled(known, usual_rates(self.data)))


@dataclass(frozen=True, kw_only=True)
class FieldsOptions(FieldsConfig):
    """Options of a run on fields, all filled in; ``steps`` is None if ``minutes`` is given."""

    comparators: tuple[str, ...]
    train_functions: int
    test_functions: int
    width: int
    learning_rate: float
    functions: int
    points: int
    evaluate_every: int
    checkpoint_every: int

    def resolved(self) -> "FieldsOptions":
        """Return the options unchanged."""
        return self
