"""The folder of a run: its options are written first, and one process at a time writes there.

In:   a folder, the application's name and the config of a run.
Out:  ``run.json`` and ``config.json`` in the folder, or the config read from it.
Knows nothing of any application.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from weightloom import texts
from weightloom.errors import CheckpointError, ConfigError, DataError
from weightloom.platforms import lock
from weightloom.runs.options import RunOptions
from weightloom.runs.schema import json_text, read_json, read_object

FORMAT = 1
"""Version of the layout of a run's folder, and of its files without a version number."""
RUN, CONFIG = "run.json", "config.json"
TEMPORARY_FILE = re.compile(r"\..+\.[0-9]+\.tmp")
"""Names of unfinished files; see `weightloom.files.write_atomically`."""

SEVERAL = ("seeds", "folds", "sweep")
"""Fields of `RunFile` that a run over several seeds, folds or options has."""

Config = TypeVar("Config", bound=RunOptions)


@dataclass(frozen=True)
class RunFile:
    """Contents of ``run.json``."""

    app: str
    """The application that made the run, as in ``"fewshot"``."""
    identity: str
    """Digest of application and options; checkpoints and the record hold it too."""
    seeds: tuple[int, ...] = ()
    """Seeds of a run over several; each has a folder in this one."""
    folds: tuple[int, ...] = ()
    """Folds of a run over several folds of the data; each has a folder in this one."""
    sweep: tuple[str, ...] = ()
    """Options tried on validation tasks before the run."""


def identity_of(app: str, config: RunOptions) -> str:
    """Return the digest of a run, which its checkpoints, config and record share.

    Example:
        >>> len(identity_of("fewshot", RunOptions(seed=1)))
        16
    """
    text = json.dumps([app, config.to_dict()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_run_file(run: Path) -> RunFile:
    """Read ``run.json``.

    Raises:
        DataError: If the folder holds no run, or a run of another version.
    """
    return read_json(run / RUN, RunFile, FORMAT, "Every run writes it before its first step.")


def read_options(run: Path) -> dict[str, Any]:
    """Read the options in ``config.json``, unchecked; `read_config` checks them too.

    Raises:
        DataError: If the folder holds no run, or the file is damaged.
    """
    return read_object(run / CONFIG, "Every run writes it before its first step.")


def read_config(run: Path, kind: type[Config], app: str) -> Config:
    """Read the config of a run and check every option.

    Args:
        run: The run's folder.
        kind: Class of the config.
        app: Name of the application that reads it.

    Raises:
        DataError: If the folder holds no run, or its config was changed after the run began.
        ConfigError: If the run is of another application, or an option does not fit.
    """
    about = read_run_file(run)
    if about.app != app:
        raise ConfigError(
            f"`{run}` is a run of `weightloom {about.app}`, and `weightloom {app}` was asked to "
            f"read it. Each reads its own runs. Type `weightloom {about.app}`, or pass a run of "
            f"`weightloom {app}`."
        )
    config = kind.from_dict(read_options(run))
    if identity_of(app, config) != about.identity:
        raise DataError(
            f"`{run / 'config.json'}` was changed after the run began: it does not match the "
            "digest in `run.json`. Its checkpoints and scores are those of other options. Put back "
            "the original config, or start another run."
        )
    return config


def is_begun(run: Path) -> bool:
    """Return True if a folder holds a run.

    A run killed while its first files were written does not count.
    """
    try:
        return isinstance(texts.read_json(run / RUN), dict)
    except texts.TextError:
        return False


@contextmanager
def held_folder(
    run: Path,
    app: str,
    config: RunOptions,
    resume: bool,
    seeds: tuple[int, ...] = (),
    folds: tuple[int, ...] = (),
    sweep: tuple[str, ...] = (),
) -> Iterator[str]:
    """Lock the folder of a run; make it and write the options, or check them on a resume.

    The lock is on ``run.json`` and ends with the process. A folder whose run was killed before its
    options were written counts as empty. Temporary files of killed processes are removed.

    Args:
        run: The folder.
        app: The application's name.
        config: Resolved options.
        resume: Resume the run in the folder.
        seeds: Seeds, if the run is over several.
        folds: Folds, if the run is over several.
        sweep: Options tried on validation tasks before the run.

    Yields:
        The run's identity.

    Raises:
        ConfigError: If a new run's folder is not empty, a resumed run has another config, or
            another process holds the folder.
        DataError: If a run is to be resumed and the folder holds none.
        CheckpointError: If the folder cannot be written to.
    """
    from weightloom.files import make_folder

    identity = identity_of(app, config)
    if resume:
        _check_resumed(run, app, config)
    else:
        make_folder(run)
        _check_free(run, app)
    with _locked(run, app) as file:
        _remove_temporary(run)
        if not resume:
            _check_free(run, app)  # another process may have been quicker
            _write_start(run, file, config, RunFile(app, identity, seeds, folds, sweep))
        yield identity


def _check_resumed(run: Path, app: str, config: RunOptions) -> None:
    if (run / RUN).is_file() and not is_begun(run) and _holds_start_alone(run):
        raise DataError(
            f"`{run}` holds no run: it was killed while its options were written, before any "
            f"training. Type `weightloom {app} --run {run}` with the options again."
        )
    saved, asked = read_config(run, type(config), app).to_dict(), config.to_dict()
    odd = [name for name, value in asked.items() if saved[name] != value]
    if odd:
        raise ConfigError(
            f"`--resume {run}` with another config: {odd[0]} is {saved[odd[0]]} there, "
            f"{asked[odd[0]]} was asked for. A run goes on with the options that it began with. "
            f"Type `weightloom {app} --resume {run}` alone, or start another run."
        )


def _check_free(run: Path, app: str) -> None:
    if any(run.iterdir()) and (is_begun(run) or not _holds_start_alone(run)):
        raise ConfigError(
            f"`{run}` is not empty. A run never writes over another. "
            f"Type `weightloom {app} --resume {run}` to go on with it, or pass another `--run`."
        )


def _holds_start_alone(run: Path) -> bool:
    """Return True if a folder holds the first files of a run, and only these."""
    names = {path.name for path in run.iterdir() if not TEMPORARY_FILE.fullmatch(path.name)}
    return RUN in names and names <= {RUN, CONFIG}


@contextmanager
def _locked(run: Path, app: str) -> Iterator[int]:
    """Open and lock ``run.json``; make it empty if it is missing."""
    path = run / RUN
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise _not_held(path, error) from error
    try:
        try:
            taken = lock(file)
        except OSError as error:
            raise _not_held(path, error) from error
        if not taken:
            raise ConfigError(
                f"`{run}` is in use: another process is training there. Two would overwrite each "
                f"other's rows and checkpoints. Wait for it, then type `weightloom {app} "
                f"--resume {run}`, or pass another `--run`."
            )
        yield file
    finally:
        os.close(file)


def _not_held(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"`{path}` cannot be opened and locked ({error.strerror or error}). A run holds its folder "
        "as long as it writes there. Pass a folder that can be written to, as in `--run FOLDER`."
    )


def _write_start(run: Path, file: int, config: RunOptions, about: RunFile) -> None:
    """Write ``config.json``, then ``run.json`` in place, because the lock is on that file.

    The folder holds a run once ``run.json`` is complete.
    """
    from weightloom.files import not_written, write_atomically

    write_atomically(run / CONFIG, json.dumps(config.to_dict(), indent=1) + "\n")
    text = json_text(asdict(about), FORMAT).encode()
    try:
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        while text:
            text = text[os.write(file, text) :]
        os.fsync(file)
    except OSError as error:
        with suppress(OSError):
            os.ftruncate(file, 0)
        raise not_written(run / RUN, error) from error


def _remove_temporary(run: Path) -> None:
    """Remove temporary files of killed processes, except in the folders of other runs."""
    for folder, below, names in os.walk(run):
        below[:] = [name for name in below if not (Path(folder) / name / RUN).exists()]
        for name in names:
            if TEMPORARY_FILE.fullmatch(name):
                with suppress(OSError):
                    (Path(folder) / name).unlink()
