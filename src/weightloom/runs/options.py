"""Options of a run: those that every application has, and the way from plain values to a config and back.

In:   the class of a config, a frozen dataclass, and values that somebody typed.
Out:  a config, every name and type checked.
Knows nothing of what an application adds. Torch is not imported.
"""

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, TypeVar, get_type_hints

from weightloom.errors import ConfigError, nearest

MOST_OF_ALL = 1_000_000_000
"""The largest number that an option takes, where `MOST` does not say."""
MOST = {
    **dict.fromkeys(("threads", "devices", "nodes"), 128),
    **dict.fromkeys(("tasks", "ways", "train_ways", "shots", "queries", "rows"), 100_000),
    **dict.fromkeys(("width", "hidden", "rank"), 100_000),
    **dict.fromkeys(("blocks", "critics"), 1_000),
    **dict.fromkeys(("inner_steps", "test_tasks", "test_contexts", "batch", "minutes"), 1_000_000),
    **dict.fromkeys(("seed", "split", "seeds", "folds"), 2**32 - 1),
}
"""The largest number that an option takes, by its name."""

Config = TypeVar("Config", bound="RunOptions")


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options of every run; an application inherits and adds its own."""

    command: ClassVar[str] = ""
    """The application's name on the command line."""
    rate: ClassVar[str] = "learning_rate"
    """The option that holds the learning rate."""
    swept: ClassVar[tuple[str, ...]] = ("learning_rate",)
    """Options that `--sweep` may try: those that training alone reads."""

    imports: ClassVar[tuple[str, ...]] = ("method", "comparators")
    """Options whose values may be ``module:name``, which is imported when a run is opened."""

    groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "Methods": ("method", "comparators", "start_from"),
        "Training": ("steps", "minutes", "rates", "seed", "evaluate_every", "checkpoint_every"),
        "Machine": ("threads", "autotune"),
    }
    """Headings of `--help`, and the options below each. An application adds its own."""

    method: str = "hypernetwork"
    """The method that the report is about: a name from `weightloom list`."""
    comparators: tuple[str, ...] | None = None
    """The methods to run beside it, with the same budget. Default: those that suit."""
    steps: int | None = None
    """Steps of training, the same for every trained method. Default: by data set or environment."""
    minutes: float | None = None
    """Processor time of each trained method instead of a number of steps; `--steps` is then the
    maximum."""
    rates: tuple[str, ...] = ()
    """Learning rate per method, overriding the common one; e.g. `cnp=0.003`."""
    evaluate_every: int | None = None
    """Steps between evaluations during training. Default: by data set or environment."""
    checkpoint_every: int | None = None
    """Steps between checkpoints. Default: 200, or a tenth of all in reinforcement learning."""
    start_from: str = ""
    """A run whose trained methods this one starts from, on other tasks; a fresh one is trained
    beside."""
    seed: int = 0
    """Everything random follows from it."""
    autotune: bool = False
    """Time the engines that run many tasks at once, and keep the quickest of each in the run's
    folder: engines.json."""
    threads: int = 1
    """CPU threads of each process; for networks as small as these one is quickest."""

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
                        f"`{flag(field.name)} {number}` is not a positive number, nor any that can "
                        "be counted with. Pass a finite one."
                    )
                check_most(field.name, number)

    def check_seeds(self, *names: str) -> None:
        """Raise a `ConfigError` unless each of some options is from 0 to 2³² - 1."""
        for name in names:
            if not 0 <= getattr(self, name) < 2**32:
                raise ConfigError(
                    f"`{flag(name)} {getattr(self, name)}` is out of range. Random numbers follow "
                    "from it. Pass one from 0 to 4,294,967,295."
                )

    def check_distinct(self, *names: str) -> None:
        """Raise a `ConfigError` where an option of several values has one twice.

        Of ``name=value`` the names count.
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
        """Raise a `ConfigError` unless each of some options is a count, or not given."""
        for name in names:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"`{flag(name)} {value}` is too small. It is a count. Pass 1 or more."
                )

    def check_positive(self, *names: str) -> None:
        """Raise a `ConfigError` unless each of some options is a finite number above 0, or not given."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(
                    f"`{flag(name)} {value}` is not a positive number. Pass one, as in 0.001."
                )

    def check_not_negative(self, *names: str) -> None:
        """Raise a `ConfigError` unless each of some options is a finite number, 0 or more, or not given."""
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ConfigError(f"`{flag(name)} {value}` is below 0 or infinite. Pass 0 or more.")

    def check_methods(self, known: Collection[str], where: str, usual: tuple[str, ...]) -> None:
        """Raise a `ConfigError` unless every method is known, appears once, and `--rates` names methods of the run.

        Args:
            known: Names that fit; ``module:Class`` always does.
            where: The option that methods have to go with, as in ``"--data digits"``.
            usual: The comparators where none were typed.
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
        """All methods of the run, the one that the report is about first."""
        return (self.method, *(self.comparators or ()))

    def code(self) -> dict[str, str]:
        """Return every ``module:name`` that the options name, and the option that does.

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
        """Return the learning rate of a method; the options must be resolved."""
        rate: float = rates_of(self.rates).get(method, getattr(self, self.rate))
        return rate

    def resolved(self) -> "RunOptions":
        """Fill in every option that was not typed."""
        return self

    def validating(self) -> "RunOptions":
        """Return the options of a run that is judged on validation tasks, never on those of the final table.

        Raises:
            ConfigError: If the application has no validation tasks.
        """
        raise ConfigError(
            f"`{type(self).__name__}` knows no validation tasks. A sweep chooses by them, never by "
            "the tasks of the table. Leave `--sweep` out, or give the config a method `validating`."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls: "type[Config]", options: dict[str, Any]) -> "Config":
        """Build a config from JSON or YAML values, every type checked.

        Raises:
            ConfigError: If an option is unknown or of another type.
        """
        return config_from(cls, options)


def config_from(kind: type[Config], options: dict[str, Any]) -> Config:
    """Build a config from JSON or YAML values.

    One value alone will do where an option takes several.

    Raises:
        ConfigError: If an option is unknown or of another type.
    """
    from pydantic import TypeAdapter, ValidationError

    known, hints = [field.name for field in fields(kind)], get_type_hints(kind)
    for name in options:
        if name not in known:
            raise ConfigError(
                f"Option {name!r} is unknown. {nearest(str(name), known)} See `weightloom "
                f"{kind.command} --help`."
            )
        value = options[name]
        truths = [
            its for its in (value if isinstance(value, list) else [value]) if isinstance(its, bool)
        ]
        if truths and "bool" not in str(hints[name]):
            raise ConfigError(
                f"Option {name!r} is {value!r}, which is no number and no text. In YAML `yes` and "
                f"`no` are truth values. See `weightloom {kind.command} --help` for what fits."
            )
    several = {name for name in options if "tuple[" in str(hints[name])}
    options = {
        k: [v] if k in several and isinstance(v, int | float | str) else v
        for k, v in options.items()
    }
    try:
        return TypeAdapter(kind).validate_python(options)
    except ValidationError as error:
        first = error.errors()[0]
        raised = first.get("ctx", {}).get("error")
        if isinstance(raised, ConfigError):  # a check of ours, which says more
            raise raised from error
        place = first["loc"][0] if first["loc"] else "?"
        raise ConfigError(
            f"Option {place!r} is {repr(first.get('input'))[:80]}: {first['msg']}. "
            f"See `weightloom {kind.command} --help` for what fits."
        ) from error


def with_option(config: Config, name: str, text: str) -> Config:
    """Return a config with one option read from text, as a sweep or a file has it.

    Raises:
        ConfigError: If the option is unknown, or the text is not of its type.
    """
    known = [field.name for field in fields(config)]
    if name not in known:
        raise ConfigError(f"Option {name!r} is unknown. {nearest(name, known)}")
    checked = config_from(type(config), {**config.to_dict(), name: text})
    return replace(config, **{name: getattr(checked, name)})


def check_most(name: str, value: Any) -> None:
    """Raise a `ConfigError` if a number is above the most that its option takes.

    Args:
        name: The option.
        value: Its value; what is no number is passed over.
    """
    most = MOST.get(name, MOST_OF_ALL)
    if isinstance(value, int | float) and abs(value) > most:
        raise ConfigError(
            f"`{flag(name)} {value:,}` is more than any machine could do with. It is at most "
            f"{most:,}. Pass fewer."
        )


def flag(name: str) -> str:
    """Write an option as it is typed.

    Example:
        >>> flag("clip_norm")
        '--clip-norm'
    """
    return f"--{name.replace('_', '-')}"


def check_rates(rates: tuple[str, ...], running: tuple[str, ...]) -> None:
    """Raise a `ConfigError` unless every text is a method that runs, ``=`` and a number above 0."""
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
    """Return the learning rates that were typed, by method.

    Example:
        >>> rates_of(("concat=0.001",))
        {'concat': 0.001}
    """
    return {name: float(rate) for name, _, rate in (text.partition("=") for text in rates)}


def is_positive(text: str) -> bool:
    """Say whether a text is a finite number above 0."""
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False
