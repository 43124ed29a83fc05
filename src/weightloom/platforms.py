"""Differences between machines: file locks, renames, peak memory, signals, half precision.

In:   an open file, paths.
Out:  a lock, a moved file, bytes, signals; a warning or None if the system lacks the feature.

Independent of runs. Only this file tests for the operating system or the processor, or imports
modules that exist on some systems alone. Torch is imported only to ask for the processor.
"""

import errno
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

FAR = 1 << 30
"""Offset of the byte that is locked on Windows, far behind the contents, which stay readable."""
PATIENCE_S = 1.0
"""Time limit of a rename on Windows while another process has the old file open, in seconds."""


def _part(name: str) -> Any:
    """Import a module, or return None if this system lacks it."""
    try:
        return import_module(name)
    except ImportError:
        return None


def lock(descriptor: int) -> bool:
    """Lock an open file, without waiting, until it is closed or the process ends.

    Uses ``flock`` on POSIX and ``msvcrt.locking`` on Windows. Warns if the system or the file
    system has no locks, and counts the file as locked.

    Args:
        descriptor: File descriptor.

    Returns:
        False if another process, or another opening of the file, has the lock.

    Raises:
        OSError: If locking fails for another reason.
    """
    posix, windows = _part("fcntl"), _part("msvcrt")
    try:
        if posix:
            posix.flock(descriptor, posix.LOCK_EX | posix.LOCK_NB)
        elif windows:
            os.lseek(descriptor, FAR, os.SEEK_SET)
            windows.locking(descriptor, windows.LK_NBLCK, 1)
        else:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    except OSError as error:
        taken = (errno.EWOULDBLOCK, errno.EAGAIN) if posix else (errno.EACCES, errno.EDEADLK)
        if error.errno in taken:
            return False
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        warnings.warn(
            f"This system cannot lock files here ({error.strerror}), so a second process could "
            "write to the same folder. Start each run once.",
            stacklevel=2,
        )
    finally:
        if windows and not posix:
            os.lseek(descriptor, 0, os.SEEK_SET)
    return True


def move(source: Path, target: Path) -> None:
    """Move a file atomically, replacing the target if it exists.

    On Windows it waits up to `PATIENCE_S` for other processes to close the target.

    Raises:
        OSError: If moving fails.
    """
    end_s = time.monotonic() + PATIENCE_S
    while True:
        try:
            source.replace(target)
            return
        except PermissionError:
            if sys.platform != "win32" or time.monotonic() > end_s:
                raise
        time.sleep(0.01)


def peak_memory_bytes() -> int | None:
    """Return the peak resident memory of this process in bytes; None on Windows."""
    resource = _part("resource")
    if resource is None:
        return None
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def processor_knows_bf16() -> bool:
    """Return True if the processor has bf16 instructions, or torch cannot tell.

    Without them bfloat16 is emulated, and slower than float32: the one check for the precision of
    trainings and of every frozen encoder.
    """
    import torch

    if not hasattr(torch.cpu, "get_capabilities"):
        return True
    return any(
        known is True for name, known in torch.cpu.get_capabilities().items() if "bf16" in name
    )


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a process to end: SIGINT (Ctrl-C) and SIGTERM."""
    return tuple(its for its in signal.Signals if its.name in ("SIGINT", "SIGTERM"))


@contextmanager
def alarm(seconds: float | int, ring: Callable[..., None]) -> Iterator[None]:
    """Call ``ring`` as a signal handler if the block runs longer than ``seconds``.

    Has no effect on a system without ``setitimer``, such as Windows. The previous timer and handler
    are restored afterwards.

    Args:
        seconds: Time limit.
        ring: Signal handler; it may raise, to end the block.
    """
    if not hasattr(signal, "setitimer"):
        yield
        return
    handler = signal.signal(signal.SIGALRM, ring)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
