"""The folder of a run: application and options are written once, before anything else; no run overwrites another.

In:   a folder, the application's name and the config of a run.
Out:  ``run.json`` and ``config.json`` in it, or the config that it holds.
Knows nothing of what is run.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from weightloom.errors import CheckpointError, ConfigError, DataError
from weightloom.runs.options import RunOptions
from weightloom.runs.schema import read_json, read_object, write_json
from weightloom.texts import kind_of

FORMAT = 1
"""Version of the layout of a run's folder, and of the files in it that have none of their own."""
RUN, CONFIG = "run.json", "config.json"

SEVERAL = ("seeds", "folds", "sweep")
"""Facts of a run of several."""

Config = TypeVar("Config", bound=RunOptions)


@dataclass(frozen=True)
class RunFile:
    """Contents of ``run.json``."""

    app: str
    """The application that made the run, as in ``"fewshot"``."""
    identity: str
    """Digest of application and options, which checkpoints and the record carry too."""
    seeds: tuple[int, ...] = ()
    """Of a run over several seeds, which lie in folders of their own."""
    folds: tuple[int, ...] = ()
    """Of a run over several folds of the data, likewise."""
    sweep: tuple[str, ...] = ()
    """Options that are tried beforehand on validation tasks."""


def identity_of(app: str, config: RunOptions) -> str:
    """Return the digest that ties a checkpoint, a config and a record to one run.

    Example:
        >>> len(identity_of("fewshot", RunOptions(seed=1)))
        16
    """
    text = json.dumps([app, config.to_dict()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_identity(path: Path, facts: Mapping[str, Any], identity: str) -> None:
    """Raise a `CheckpointError` if a checkpoint is of another run; an empty identity fits all.

    Args:
        path: The checkpoint, for the message.
        facts: Its facts.
        identity: The run that reads it.
    """
    wrote = facts.get("identity", "")
    if identity and wrote and wrote != identity:
        raise CheckpointError(
            f"`{path}` was written by another run (digest {wrote}, not {identity}). A checkpoint belongs to the "
            "options that it was trained with. Put back the run's own, or start another run."
        )


def read_run_file(run: Path) -> RunFile:
    """Read ``run.json``.

    Raises:
        DataError: If the folder holds no run, or one of another version.
    """
    return read_json(run / RUN, RunFile, FORMAT, "Every run writes it before its first step.")


def read_options(run: Path) -> dict[str, Any]:
    """Read ``config.json``, whose options `read_config` checks; its version is that of ``run.json``.

    Raises:
        DataError: If the folder holds no run, or the file is damaged.
    """
    return read_object(run / CONFIG, "Every run writes it before its first step.")


def read_config(run: Path, kind: type[Config], app: str) -> Config:
    """Read the config of a run, every option checked.

    Args:
        run: The run's folder.
        kind: Class of the config.
        app: The application that asks; a run of another one is refused by name.

    Raises:
        DataError: If the folder holds no run, or its config is not the one that the run began with.
        ConfigError: If it holds a run of another application, or an option does not fit.
    """
    about = read_run_file(run)
    if about.app != app:
        raise ConfigError(
            f"`{run}` is a run of `weightloom {about.app}`, and `weightloom {app}` was asked to read it. Each reads "
            f"its own. Type `weightloom {about.app}`, or pass a run of `weightloom {app}`."
        )
    config = kind.from_dict(read_options(run))
    if identity_of(app, config) != about.identity:
        raise DataError(
            f"`{run / 'config.json'}` was changed after the run began: it does not match the digest in `run.json`. "
            "Checkpoints and scores are of other options. Put back the config as it was, or start another run."
        )
    return config


def prepare_folder(
    run: Path,
    app: str,
    config: RunOptions,
    resume: bool,
    seeds: tuple[int, ...] = (),
    folds: tuple[int, ...] = (),
    sweep: tuple[str, ...] = (),
) -> str:
    """Make the run's folder and write its options, or check that a run can go on there.

    Args:
        run: The folder.
        app: The application's name.
        config: Resolved options.
        resume: Whether a run shall go on.
        seeds: Of a run over several seeds.
        folds: Of a run over several folds.
        sweep: Options that are tried beforehand.

    Returns:
        The run's identity.

    Raises:
        ConfigError: If the folder holds something already, or a run of another config that shall go on.
        DataError: If a run shall go on and the folder holds none.
    """
    from weightloom.files import make_folder, write_atomically

    identity = identity_of(app, config)
    if resume:
        saved, asked = read_config(run, type(config), app).to_dict(), config.to_dict()
        odd = [name for name, value in asked.items() if saved[name] != value]
        if odd:
            raise ConfigError(
                f"`--resume {run}` with another config: {odd[0]} is {saved[odd[0]]} there, {asked[odd[0]]} was asked "
                "for. A run goes on as it began, or its numbers mean nothing. "
                f"Type `weightloom {app} --resume {run}` alone, or start another run."
            )
        return identity
    if kind_of(run) == "folder" and any(run.iterdir()):
        raise ConfigError(
            f"`{run}` is not empty. A run never writes over another. "
            f"Type `weightloom {app} --resume {run}` to go on with it, or pass another `--run`."
        )
    make_folder(run)
    write_atomically(run / CONFIG, json.dumps(config.to_dict(), indent=1) + "\n")
    write_json(run / RUN, asdict(RunFile(app, identity, seeds, folds, sweep)), FORMAT)
    return identity
