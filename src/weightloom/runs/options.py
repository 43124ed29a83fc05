"""Options of a run as plain values: a dictionary from JSON or YAML becomes a config, and a config a dictionary.

In:   the class of a config, a frozen dataclass, and values that somebody typed.
Out:  a config, every name and type checked.
Knows nothing of what the options mean; a config checks that itself. Torch is not imported.
"""

from collections.abc import Collection
from dataclasses import asdict, fields
from typing import Any, TypeVar

from weightloom.errors import ConfigError, nearest

Config = TypeVar("Config")


def config_from(kind: type[Config], options: dict[str, Any], several: Collection[str], command: str) -> Config:
    """Build a config from JSON or YAML values.

    Args:
        kind: Its class.
        options: Values by name.
        several: Options that take several values; one alone will do for them.
        command: Whose options they are, as in ``"fewshot"``.

    Raises:
        ConfigError: If an option is unknown or of another type.
    """
    from pydantic import TypeAdapter, ValidationError

    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # a dataclass
    for name in options:
        if name not in known:
            raise ConfigError(f"Option {name!r} is unknown. {nearest(name, known)} See `weightloom {command} --help`.")
    options = {k: [v] if k in several and isinstance(v, int | str) else v for k, v in options.items()}
    try:
        return TypeAdapter(kind).validate_python(options)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            f"Option {first['loc'][0]!r} is {first.get('input')!r}: {first['msg']}. "
            f"See `weightloom {command} --help` for what fits."
        ) from error


def plain_options(config: Any) -> dict[str, Any]:
    """Return the options of a config as plain JSON values."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}


def check_rates(rates: tuple[str, ...], running: tuple[str, ...]) -> None:
    """Raise a `ConfigError` unless every text is a method that runs, ``=`` and a number above 0."""
    for text in rates:
        name, _, rate = text.partition("=")
        if name not in running:
            raise ConfigError(f"`--rates {text}` is of a method that is not in this run. {nearest(name, running)}")
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
