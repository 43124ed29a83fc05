"""Paths of data set files: the folders that are searched, and the file that is found in them.

In:   the folder and the file name of a data set.
Out:  a path.

Reads no file and does not import torch, so that ``weightloom list`` starts at once.
"""

import os
from collections.abc import Iterable
from importlib.util import find_spec
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
"""Folder and file name of each data set that no dependency contains."""


def searched_folders(data: str) -> list[Path]:
    """Return the folders that are searched for a data set, in order.

    The first is in ``WEIGHTLOOM_DATA``, if that is set. The last is in the user's cache, which also
    receives downloads: ``$XDG_CACHE_HOME/weightloom`` or ``~/.cache/weightloom``. Each contains one
    folder per data set. The folders need not exist.

    Args:
        data: Folder of the data set, e.g. ``"omniglot"``.
    """
    named = os.environ.get("WEIGHTLOOM_DATA")
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification ignores a relative path.
    cache = cache if cache.is_absolute() else Path.home() / ".cache"
    return ([Path(named).expanduser() / data] if named else []) + [cache / "weightloom" / data]


def find_file(data: str, file: str) -> Path | None:
    """Return the first file of that name in the searched folders, or None.

    Args:
        data: Folder of the data set, e.g. ``"omniglot"``.
        file: File name in that folder, e.g. ``"omniglot28.npz"``.
    """
    paths = (folder / file for folder in searched_folders(data))
    return next((path for path in paths if path.is_file()), None)


def lacking(needs: Iterable[str]) -> list[str]:
    """Return the modules and files that are not on this machine.

    Args:
        needs: Names of modules, as in ``"sklearn"``, and of files in folders of data sets, as in
            ``"mnist/mnist_20k_10k.npz"``.

    Example:
        >>> lacking(["torch", "no_such_module", "nowhere/none.npz"])
        ['no_such_module', 'nowhere/none.npz']
    """
    absent = []
    for need in needs:
        folder, _, file = need.partition("/")
        found = find_file(folder, file) if file else find_spec(need)
        if found is None:
            absent.append(need)
    return absent


def needed_file(data: str, file: str, title: str, about: str) -> Path:
    """Return the path of a required file that the library does not download.

    Args:
        data: Folder of the data set.
        file: File name in that folder.
        title: Subject of the error message, e.g. ``"MNIST's file"``.
        about: Second sentence of the error message: the file's contents, and why it is not
            downloaded.

    Raises:
        DataError: If none of the searched folders contains the file.
    """
    path = find_file(data, file)
    if path is None:
        folders = " nor in ".join(f"`{folder}`" for folder in searched_folders(data))
        raise DataError(
            f"{title} `{file}` is not in {folders}. {about} "
            f"Set `WEIGHTLOOM_DATA` to a folder that holds `{data}/{file}`."
        )
    return path
