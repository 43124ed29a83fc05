"""Files of data sets: a name in, the folders that are searched and the file that is found.

In:   the folder and the file name of a set.
Out:  a path.
Knows nothing of what is in the files, nor of torch, so that ``weightloom list`` starts at once.
"""

import os
from pathlib import Path

from weightloom.errors import DataError

FILES = {
    "omniglot": ("omniglot", "omniglot28.npz"),
    "omniglot-alphabets": ("omniglot", "omniglot28.npz"),
    "cifar-fs": ("cifar_fs", "cifar_fs_100.npz"),
    "spoken-digits": ("free_spoken_digits", "fsdd_mulaw8.npz"),
    "intents": ("clinc150", "clinc150.csv.gz"),
    "growth-curves": ("growth_curves", "growth_curves.csv.gz"),
    "mnist-functions": ("mnist", "mnist_20k_10k.npz"),
}
"""Folder and file of each set that does not come with a dependency."""


def searched_folders(data: str) -> list[Path]:
    """Return the folders where a set is looked for, first to last.

    The folder named by ``WEIGHTLOOM_DATA``, where it is set; then the user's cache, where downloads
    go too: ``$XDG_CACHE_HOME/weightloom`` or ``~/.cache/weightloom``. Each holds one folder per
    set.

    Args:
        data: The set's folder, as in ``"omniglot"``.
    """
    named = os.environ.get("WEIGHTLOOM_DATA")
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    cache = (
        cache if cache.is_absolute() else Path.home() / ".cache"
    )  # as the XDG specification has it
    return ([Path(named).expanduser() / data] if named else []) + [cache / "weightloom" / data]


def find_file(data: str, file: str) -> Path | None:
    """Return the first file of that name in the searched folders, or None.

    Args:
        data: The set's folder, as in ``"omniglot"``.
        file: A file in it, as in ``"omniglot28.npz"``.
    """
    paths = (folder / file for folder in searched_folders(data))
    return next((path for path in paths if path.is_file()), None)


def needed_file(data: str, file: str, what: str, about: str) -> Path:
    """Return a file of a set that is not fetched.

    Args:
        data: The set's folder.
        file: A file in it.
        what: The set's name, as in ``"MNIST's file"``.
        about: A sentence on what the file is and why it is not fetched.

    Raises:
        DataError: If it is in none of the searched folders.
    """
    path = find_file(data, file)
    if path is None:
        folders = " nor in ".join(f"`{folder}`" for folder in searched_folders(data))
        raise DataError(
            f"{what} `{file}` is not in {folders}. {about} "
            f"Set `WEIGHTLOOM_DATA` to a folder that holds `{data}/{file}`."
        )
    return path
