"""Options of a run: those of every application, and configs from plain values and back.

In:   the class of a config, a frozen dataclass, and values as typed.
Out:  a config, with every name and type checked.
Knows nothing of the options that an application adds. Torch is not imported.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, TypeVar, get_type_hints

from weightloom.errors import ConfigError, nearest

MOST_OF_ALL = 1_000_000_000
"""Maximum of every numeric option that `MOST` does not list."""
MOST = {
    **dict.fromkeys(("threads", "devices", "nodes"), 128),
    **dict.fromkeys(("tasks", "ways", "train_ways", "shots", "queries", "rows"), 100_000),
    **dict.fromkeys(("width", "hidden", "rank"), 100_000),
    **dict.fromkeys(("blocks", "critics"), 1_000),
    **dict.fromkeys(("inner_steps", "test_tasks", "test_contexts", "batch", "minutes"), 1_000_000),
    **dict.fromkeys(("seed", "split", "seeds", "folds"), 2**32 - 1),
}
"""Maximum of numeric options, by name."""

Config = TypeVar("Config", bound="RunOptions")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of every run; an application adds its own in a subclass."""

    command: ClassVar[str] = ""
    """Name of the application on the command line."""
    rate: ClassVar[str] = "learning_rate"
    """Name of the option that holds the learning rate."""
    swept: ClassVar[tuple[str, ...]] = ("learning_rate",)
    """Options that `--sweep` may vary: those read by training only."""

    imports: ClassVar[tuple[str, ...]] = ("method", "comparators")
    """Options that accept ``module:name``, imported when a run is opened."""

    groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "Methods": ("method", "comparators", "start_from"),
        "Training": ("steps", "minutes", "rates", "seed", "evaluate_every", "checkpoint_every"),
        "Machine": ("threads", "autotune"),
    }
    """Headings of `--help`, and the options below each. An application adds its own."""

    method: str = "hypernetwork"
    """Method that the report is about; a name from `weightloom list`."""
    comparators: tuple[str, ...] | None = None
    """Methods to compare it with, on the same budget. Default: by data set or environment."""
    steps: int | None = None
    """Training steps of each trained method. Default: by data set or environment."""
    minutes: float | None = None
    """Processor time of each trained method, in minutes, instead of a number of steps; `--steps`
    is then the maximum."""
    rates: tuple[str, ...] = ()
    """Learning rate per method, overriding the common one; e.g. `cnp=0.003`."""
    evaluate_every: int | None = None
    """Steps between evaluations during training. Default: by data set or environment."""
    checkpoint_every: int | None = None
    """Steps between checkpoints. Default: 200; in reinforcement learning, a tenth of `--steps`."""
    start_from: str = ""
    """Run whose trained parameters the same methods start from here, on other tasks; `--method` is
    trained from scratch too, for comparison."""
    seed: int = 0
    """Seed of all random numbers."""
    autotune: bool = False
    """Time the engines that run many tasks at once, and keep the fastest ones in the run's
    `engines.json`."""
    threads: int = 1
    """CPU threads of each process; one is fastest for small networks."""

    def __post_init__(self) -> None:
        """Check the options that every run has."""
        self._check_sizes()
        self.check_counts("steps", "evaluate_every", "checkpoint_every", "threads")
        self.check_positive("minutes")
        self.check_seeds("seed")
        self.check_distinct("comparators", "rates")

    def _check_sizes(self) -> None:
        """Raise a `ConfigError` unless every number is finite and within `MOST`."""
        for field in fields(self):
            value = getattr(self, field.name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, float) and not math.isfinite(number):
                    raise ConfigError(
                        f"`{flag(field.name)} {number}` is not a positive number, nor any finite "
                        "one. Pass a finite number."
                    )
                check_most(field.name, number)

    def check_seeds(self, *names: str) -> None:
        """Raise a `ConfigError` unless each of the options is a number from 0 to 2³² - 1."""
        for name in names:
            if not 0 <= getattr(self, name) < 2**32:
                raise ConfigError(
                    f"`{flag(name)} {getattr(self, name)}` is out of range. A seed has 32 bits. "
                    "Pass one from 0 to 4,294,967,295."
                )

    def check_distinct(self, *names: str) -> None:
        """Raise a `ConfigError` if one of the options holds a value twice.

        Values of the form ``name=value`` are compared by name.
        """
        for name in names:
            values = [
                value.partition("=")[0] if isinstance(value, str) else value
                for value in getattr(self, name) or ()
            ]
            if twice := [value for value in values if values.count(value) > 1]:
                raise ConfigError(
                    f"`{flag(name)}` has `{twice[0]}` twice. Each has one place in the table. "
                    "Leave one of them out."
                )

    def check_counts(self, *names: str) -> None:
        """Raise a `ConfigError` unless each of the options is None or at least 1."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"`{flag(name)} {value}` is too small. It is a count. Pass 1 or more."
                )

    def check_positive(self, *names: str) -> None:
        """Raise a `ConfigError` unless each of the options is None or finite and above 0."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(
                    f"`{flag(name)} {value}` is not a positive number. Pass one, as in 0.001."
                )

    def check_not_negative(self, *names: str) -> None:
        """Raise a `ConfigError` unless each of the options is None or finite and at least 0."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"`{flag(name)} {value}` is below 0 or infinite. Pass 0 or more.")

    def check_methods(self, known: Collection[str], where: str, usual: tuple[str, ...]) -> None:
        """Check the methods of the run, and the methods that `--rates` names.

        Args:
            known: Valid names; ``module:Class`` is always valid.
            where: The option that limits the methods, as in ``"--data digits"``.
            usual: The default comparators.

        Raises:
            ConfigError: If a method is unknown, the method is a comparator too, or `--rates` names
                a method that does not run or has no positive rate.
        """
        for option, names in (("method", (self.method,)), ("comparators", self.comparators or ())):
            for name in names:
                if ":" not in name and name not in known:
                    raise ConfigError(
                        f"`--{option} {name}` does not go with `{where}`. All methods of a run "
                        f"solve the same tasks. {nearest(name, known)}"
                    )
        check_rates(
            self.rates, (self.method, *(usual if self.comparators is None else self.comparators))
        )
        if self.method in (self.comparators or ()):
            raise ConfigError(
                f"`--comparators {self.method}` is `--method` too. Each method has one row. Leave "
                "one of them out."
            )

    @property
    def methods(self) -> tuple[str, ...]:
        """All methods of the run; the first is the one that the report is about."""
        return (self.method, *(self.comparators or ()))

    def code(self) -> dict[str, str]:
        """Return every ``module:name`` among the options, with the flag of its option.

        Example:
            >>> RunOptions(method="my_methods:Mine", comparators=("cnp",)).code()
            {'my_methods:Mine': '--method'}
        """
        found: dict[str, str] = {}
        for option in self.imports:
            value = getattr(self, option)
            for name in (value,) if isinstance(value, str) else value or ():
                if ":" in name:
                    found.setdefault(name, flag(option))
        return found

    def rate_of(self, method: str) -> float:
        """Return the learning rate of a method. The options must be resolved."""
        rate: float = rates_of(self.rates).get(method, getattr(self, self.rate))
        return rate

    def filled(self, known: Mapping[str, Any], rates: Mapping[str, float]) -> dict[str, Any]:
        """Return all options by name, those at None filled in, and the usual rates of methods.

        Args:
            known: Defaults by name. With ``minutes``, ``steps`` stays as it is.
            rates: Usual learning rate of single methods. Kept are those of methods of the run whose
                rate was not typed; none if the common rate was.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        given = known if self.minutes is None else {**known, "steps": self.steps}
        absent = [name for name in given if values.get(name, name) is None]
        values |= {name: given[name] for name in absent}
        if self.rate in absent:
            values["rates"] = (*self.rates, *self._rates_of_running(rates, values["comparators"]))
        return values

    def _rates_of_running(self, rates: Mapping[str, float], others: tuple[str, ...]) -> list[str]:
        """Return the usual rates of running methods without a typed one, as in ``rates``."""
        running, typed = (self.method, *others), rates_of(self.rates)
        names = (name for name in rates if name in running and name not in typed)
        return [f"{name}={rates[name]}" for name in names]

    def resolved(self) -> "RunOptions":
        """Return the options with a value for each that was not given."""
        return self

    def validating(self) -> "RunOptions":
        """Return the options of the same run, judged on validation tasks in place of test tasks.

        Raises:
            ConfigError: If the application has no validation tasks, as here.
        """
        raise ConfigError(
            f"`{type(self).__name__}` has no validation tasks. A sweep chooses by these, never by "
            "the tasks of the table. Leave `--sweep` out, or give the config a method `validating`."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls: "type[Config]", options: dict[str, Any]) -> "Config":
        """Build a config from JSON or YAML values; see `config_from`.

        Raises:
            ConfigError: If an option is unknown, has another type, or fails a check.
        """
        return config_from(cls, options)


def config_from(kind: type[Config], options: dict[str, Any]) -> Config:
    """Build a config from JSON or YAML values.

    Args:
        kind: Class of the config.
        options: Values by name. An option of several values accepts a single one too.

    Raises:
        ConfigError: If an option is unknown, has another type, or fails a check of the class.
    """
    from pydantic import TypeAdapter, ValidationError

    hints = get_type_hints(kind)
    for name, value in options.items():
        _check_option(kind, hints, name, value)
    given = {name: _as_several(value, hints[name]) for name, value in options.items()}
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        raised = first.get("ctx", {}).get("error")
        if isinstance(raised, ConfigError):  # from a check of the class: its message says more
            raise raised from error
        place = first["loc"][0] if first["loc"] else "?"
        raise ConfigError(
            f"Option {place!r} is {repr(first.get('input'))[:80]}: {first['msg']}. "
            f"See `weightloom {kind.command} --help` for its values."
        ) from error


def _check_option(kind: type[RunOptions], hints: dict[str, Any], name: str, value: Any) -> None:
    """Raise a `ConfigError` if an option is unknown, or a truth value where it takes none."""
    known = [field.name for field in fields(kind)]
    if name not in known:
        raise ConfigError(
            f"Option {name!r} is unknown. {nearest(str(name), known)} See `weightloom "
            f"{kind.command} --help`."
        )
    values = value if isinstance(value, list) else [value]
    if any(isinstance(its, bool) for its in values) and "bool" not in str(hints[name]):
        raise ConfigError(
            f"Option {name!r} is {value!r}, which is no number and no text. In YAML `yes` and "
            f"`no` are truth values. See `weightloom {kind.command} --help` for its values."
        )


def _as_several(value: Any, hint: Any) -> Any:
    """Wrap a single value of an option that takes several."""
    return [value] if "tuple[" in str(hint) and isinstance(value, int | float | str) else value


def with_option(config: Config, name: str, text: str) -> Config:
    """Return a config with one option replaced by a value read from text.

    Raises:
        ConfigError: If the option is unknown, or the text is not of its type.
    """
    known = [field.name for field in fields(config)]
    if name not in known:
        raise ConfigError(f"Option {name!r} is unknown. {nearest(name, known)}")
    checked = config_from(type(config), {**config.to_dict(), name: text})
    return replace(config, **{name: getattr(checked, name)})


def check_most(name: str, value: Any) -> None:
    """Raise a `ConfigError` if a number is above the maximum of its option.

    Args:
        name: Name of the option.
        value: Its value; values that are no numbers are ignored.
    """
    most = MOST.get(name, MOST_OF_ALL)
    if isinstance(value, int | float) and abs(value) > most:
        raise ConfigError(
            f"`{flag(name)} {value:,}` is more than any machine could do with. The maximum is "
            f"{most:,}. Pass fewer."
        )


def flag(name: str) -> str:
    """Return the command-line flag of an option.

    Example:
        >>> flag("clip_norm")
        '--clip-norm'
    """
    return f"--{name.replace('_', '-')}"


def check_rates(rates: tuple[str, ...], running: tuple[str, ...]) -> None:
    """Raise a `ConfigError` unless all texts are ``METHOD=RATE``, of methods of the run."""
    for text in rates:
        name, _, rate = text.partition("=")
        if name not in running:
            raise ConfigError(
                f"`--rates {text}` is of a method that is not in this run. {nearest(name, running)}"
            )
        if not is_positive(rate):
            raise ConfigError(
                f"`--rates {text}` has no learning rate. It is a method and a number above 0. "
                f"Type `--rates {name}=0.001`."
            )


def rates_of(rates: tuple[str, ...]) -> dict[str, float]:
    """Return learning rates by method.

    Example:
        >>> rates_of(("concat=0.001",))
        {'concat': 0.001}
    """
    return {name: float(rate) for name, _, rate in (text.partition("=") for text in rates)}


def is_positive(text: str) -> bool:
    """Return True if a text is a finite number above 0."""
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False
