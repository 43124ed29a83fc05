"""The folder of a run: its options are written once, before anything else, and no run writes over another.

In:   a folder and the config of a run.
Out:  ``config.json`` in it, or the config that it holds.
Knows nothing of what is run.
"""

import json
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from weightloom.files import write_atomically
from weightloom.errors import ConfigError, DataError


@runtime_checkable
class RunConfig(Protocol):
    """What the config of every app can do."""

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON values."""
        ...

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> Any:
        """Build a config from JSON values, every type checked."""
        ...


Config = TypeVar("Config", bound=RunConfig)


def read_config(run: Path, kind: type[Config]) -> Config:
    """Read the config of a run, every option checked.

    Raises:
        DataError: If the folder holds no run.
        ConfigError: If it holds a run of another command.
    """
    try:
        options: dict[str, Any] = json.loads((run / "config.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(
            f"`{run}` holds no run that can be read ({error}). A run's folder holds `config.json`. "
            "Pass such a folder, as in `runs/digits-001`."
        ) from error
    return kind.from_dict(options)


def prepare_folder(run: Path, config: RunConfig, resume: bool, command: str) -> None:
    """Make the run's folder and write its config, or check that a run can go on there.

    Args:
        run: The folder.
        config: Resolved options.
        resume: Whether a run shall go on.
        command: What runs, as in ``"fewshot"``.

    Raises:
        ConfigError: If the folder holds something already, or a run of another config that shall go on.
        DataError: If a run shall go on and the folder holds none.
    """
    if resume:
        saved, asked = read_config(run, type(config)).to_dict(), config.to_dict()
        odd = [name for name, value in asked.items() if saved[name] != value]
        if odd:
            raise ConfigError(
                f"`--resume {run}` with another config: {odd[0]} is {saved[odd[0]]} there, {asked[odd[0]]} was asked "
                "for. A run goes on as it began, or its numbers mean nothing. "
                f"Type `weightloom {command} --resume {run}` alone, or start another run."
            )
        return
    if run.exists() and any(run.iterdir()):
        raise ConfigError(
            f"`{run}` is not empty. A run never writes over another. "
            f"Type `weightloom {command} --resume {run}` to go on with it, or pass another `--run`."
        )
    run.mkdir(parents=True, exist_ok=True)
    write_atomically(run / "config.json", json.dumps(config.to_dict(), indent=1) + "\n")
