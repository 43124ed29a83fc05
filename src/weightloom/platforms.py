"""Where operating systems differ: locks, renames, memory, signals.

In:   an open file, paths.
Out:  a lock, a moved file, bytes, signals; from a part that a system lacks, an answer that says so.
Knows nothing of runs. No other file asks which system this is, or imports a module that some
systems lack.
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
"""Offset of the byte that is locked on Windows, where nobody can read what is locked: far behind
the contents."""
PATIENCE_S = 1.0
"""How long a rename waits on Windows for those who have the old file open."""


def _part(name: str) -> Any:
    """Import a module that some systems lack, or return None."""
    try:
        return import_module(name)
    except ImportError:
        return None


def lock(descriptor: int) -> bool:
    """Lock an open file until it is closed, at the latest when the process ends.

    Return False if another has the lock.

    ``flock`` on POSIX, ``msvcrt.locking`` on Windows. A system or a file system without locks is
    warned of.

    Raises:
        OSError: If the file cannot be locked for another reason.
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
            f"This system cannot lock files here ({error.strerror}). Nothing keeps a second "
            "process from writing to the same folder. Start each run once.",
            stacklevel=2,
        )
    finally:
        if windows and not posix:
            os.lseek(descriptor, 0, os.SEEK_SET)
    return True


def move(source: Path, target: Path) -> None:
    """Move a file to where another may be, at once or not at all.

    On Windows whoever reads that one is waited for.

    Raises:
        OSError: If it cannot be moved.
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
    """Return the most memory that this process ever held, None where the system does not say."""
    resource = _part("resource")
    if resource is None:
        return None
    peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return the signals that ask a process to end: Ctrl-C, and SIGTERM where there is one."""
    return tuple(its for its in signal.Signals if its.name in ("SIGINT", "SIGTERM"))


@contextmanager
def alarm(seconds: float | int, ring: Callable[..., None]) -> Iterator[None]:
    """Call ``ring`` in the main thread if a block takes longer.

    Never on a system without alarms.
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
