"""Files written atomically: checkpoints of tensors and JSON facts, and folders for runs.

In:   named tensors and JSON facts.
Out:  one ``safetensors`` file, written under a temporary name and then moved, so that a crash
      leaves the previous file intact.

Loading cannot execute code. The file contains a SHA-256 digest of its contents, checked on reading.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from weightloom.errors import CheckpointError, ConfigError
from weightloom.platforms import move
from weightloom.texts import kind_of, shortened

FORMAT = "weightloom-1"
TEMPORARY = ".tmp"
"""Suffix of a file during writing: ``.NAME.PROCESS.tmp``."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and facts to ``path`` atomically.

    Args:
        path: File to write, in a folder that exists.
        tensors: Tensors by name. Their dtype is kept, their device is not: they are loaded on the
            CPU. Tensors that share memory are written separately.
        facts: Values that JSON can represent, by name.

    Raises:
        CheckpointError: If the disk is full or the folder is not writable. The previous file at
            ``path`` is kept.
    """
    flat: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in tensors.items():
        tensor = value.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        flat[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    text = json.dumps(facts, sort_keys=True)
    header = {"format": FORMAT, "facts": text, "digest": _digest(flat, text)}
    write_atomically(path, to_bytes(flat, header))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and facts that `save_tensors` wrote.

    Returns:
        The tensors by name, on the CPU, and the facts.

    Raises:
        CheckpointError: If the file is missing, truncated, of another format, or modified since it
            was written.
    """
    if not path.is_file():
        raise CheckpointError(
            f"There is no file `{path}`. A checkpoint is a `.safetensors` file that a run wrote. "
            "Pass the run's folder, as in `--resume runs/digits-001`."
        )
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"`{path}` cannot be read as a checkpoint ({error}). It is truncated, or it is another "
            "kind of file; nothing in it was executed. Use an earlier checkpoint, or start the run "
            "again."
        ) from error
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"`{path}` is a safetensors file of another origin (format {header.get('format')!r}). "
            f"This library reads format {FORMAT!r}. Pass a file that a run of this library wrote."
        )
    if header.get("digest") != _digest(tensors, header.get("facts", "")):
        raise CheckpointError(
            f"`{path}` was changed after it was written: its contents do not match the digest kept "
            "inside. It cannot be trusted. Use an earlier checkpoint, or start the run again."
        )
    try:
        facts = json.loads(header["facts"])
        if not isinstance(facts, dict):
            raise ValueError(f"they are a {type(facts).__name__}")
    except (ValueError, KeyError, RecursionError) as error:
        raise CheckpointError(
            f"`{path}` holds facts that cannot be read ({type(error).__name__}: {error}). They are "
            "one JSON object. Use an earlier checkpoint, or start the run again."
        ) from error
    return tensors, facts


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name, then move it to ``path``.

    A symbolic link at ``path`` is followed and kept. A character device or a pipe is written to
    directly.

    Args:
        path: File to write, in a folder that exists.
        content: Bytes, or text that is encoded as UTF-8.

    Raises:
        CheckpointError: If writing fails. The temporary file is removed; the previous file at
            ``path`` is kept.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    through = kind_of(path) == "other" and not path.is_block_device()
    if kind_of(path) == "file":
        path = path.resolve()  # or the move would replace a link by a file
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        if through:
            path.write_bytes(data)
            return
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        move(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise not_written(path, error, len(data)) from error


def not_written(path: Path, error: OSError, size: int = 0) -> CheckpointError:
    """Return the error for a file or folder that could not be written.

    Args:
        path: The file or folder.
        error: The system's error.
        size: Bytes that were to be written.
    """
    kept = "The previous content is still whole. " if path.exists() else ""
    return CheckpointError(
        f"`{path}` could not be written ({error.strerror or error}). {kept}"
        f"It needs {size / 1e6:.1f} MB in a folder that is writable. "
        "Free some space, or choose another folder with `--run FOLDER`."
    )


def make_folder(path: Path, option: str = "--run") -> None:
    """Create a folder and its parents, unless it exists.

    Args:
        path: The folder.
        option: Command-line option that names the folder, for the message.

    Raises:
        ConfigError: If the folder cannot be created, or ``path`` is a file.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The folder `{shortened(path)}` cannot be created "
            f"({getattr(error, 'strerror', None) or error}). It needs an unused name of at most "
            f"255 letters, in a folder that is writable. Pass another one as `{option}`."
        ) from error


def check_empty(path: Path, option: str = "--run") -> None:
    """Raise a `ConfigError` unless ``path`` is free or an empty folder.

    Args:
        path: Folder that is about to be written.
        option: Command-line option that names the folder, for the message.

    Raises:
        ConfigError: If ``path`` is a file or a folder with contents, or cannot be read.
    """
    try:
        if not os.path.lexists(path) or (path.is_dir() and not any(path.iterdir())):
            return
        found = "is not empty" if path.is_dir() else "exists and is not a folder"
    except OSError as error:
        found = f"cannot be read ({error.strerror})"
    raise ConfigError(
        f"`{shortened(path)}` {found}. Existing files are never overwritten. "
        f"Pass another folder as `{option}`."
    )


def _digest(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
