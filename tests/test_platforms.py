"""Other systems: what POSIX has and others lack is taken away, and put in its place what they have."""

import errno
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from weightloom import platforms

LACKING = """
import signal, sys
sys.modules |= {"resource": None, "fcntl": None}
for name in ("SIGALRM", "setitimer", "SIGKILL", "SIGHUP"):
    delattr(signal, name)
import warnings
from pathlib import Path
from weightloom.diagnostics import condition_use
from weightloom.apps import experiment
from weightloom.apps.fewshot.app import FewShot
from weightloom.apps.fewshot.config import FewShotConfig
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    config = FewShotConfig(data="sinusoid", steps=2, tasks=2, test_tasks=2, shots=(5,), comparators=())
    record = experiment.run(FewShot(), config, Path(sys.argv[1]) / "run", quiet=True, bare=True)
print(record["cost"]["peak_memory_bytes"], any("cannot lock files" in str(each.message) for each in said))
"""


def test_a_run_needs_no_part_that_only_posix_has(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", LACKING, str(tmp_path)], capture_output=True, text=True
    )
    assert ran.stdout.split() == ["None", "True"], ran.stderr
    assert (tmp_path / "run" / "record.json").is_file()


def windows(monkeypatch, taken):
    """Locks as Windows has them: by bytes of a file, in a module of its own."""

    def locking(descriptor, mode, count):
        place = os.fstat(descriptor).st_ino, os.lseek(descriptor, 0, os.SEEK_CUR)
        if place in taken:
            raise PermissionError(errno.EACCES, "Permission denied")
        taken.append(place)

    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=locking, LK_NBLCK=2))


@pytest.mark.parametrize("system", ["posix", "windows"])
def test_a_lock_is_taken_once_and_readers_do_not_meet_it(system, tmp_path, monkeypatch):
    taken = []
    if system == "windows":
        windows(monkeypatch, taken)
    path = tmp_path / "file"
    path.write_text("contents")
    with path.open("r+") as one, path.open("r+") as two:
        assert platforms.lock(one.fileno()) and not platforms.lock(two.fileno())
        assert two.read() == path.read_text() == "contents"
    assert all(
        place > 10**9 for _, place in taken
    )  # Windows lets nobody read the byte that is locked
    if system == "posix":
        with path.open("r+") as three:
            assert platforms.lock(three.fileno())


@pytest.mark.parametrize(
    ("code", "warned"), [(errno.EIO, False), (errno.ENOLCK, True), (errno.ENOTSUP, True)]
)
def test_a_lock_that_fails_is_told_and_a_system_without_locks_warned_of(
    code, warned, tmp_path, monkeypatch
):
    def flock(descriptor, mode):
        raise OSError(code, os.strerror(code))

    monkeypatch.setitem(sys.modules, "fcntl", SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4))
    with (tmp_path / "file").open("w") as file:
        if warned:
            with pytest.warns(UserWarning, match="cannot lock files here"):
                assert platforms.lock(file.fileno())
        else:
            with pytest.raises(OSError, match=r"(?i)input/output"):
                platforms.lock(file.fileno())


def test_a_rename_on_windows_waits_for_whoever_reads_the_old_file(tmp_path, monkeypatch):
    source, target, tries = tmp_path / "new", tmp_path / "old", []
    source.write_text("new")
    target.write_text("old")
    move = os.replace

    def replace(*paths):
        tries.append(paths)
        if len(tries) < 3:
            raise PermissionError(errno.EACCES, "used by another process")
        move(*paths)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PermissionError):
        platforms.move(
            source, target
        )  # on POSIX nobody stands in the way: it is no matter of waiting
    monkeypatch.setattr(sys, "platform", "win32")
    platforms.move(source, target)
    assert target.read_text() == "new" and not source.exists() and len(tries) == 3


def test_memory_is_none_where_the_system_does_not_say(monkeypatch):
    assert platforms.peak_memory_bytes() > 10**6
    monkeypatch.setitem(sys.modules, "resource", None)
    assert platforms.peak_memory_bytes() is None


def test_an_alarm_rings_in_time_and_never_where_there_is_none(monkeypatch):
    def ring(*_):
        raise TimeoutError

    with pytest.raises(TimeoutError), platforms.alarm(0.01, ring):
        time.sleep(10)
    with platforms.alarm(0.1, ring):
        pass
    time.sleep(0.15)  # it is off
    monkeypatch.delattr(signal, "setitimer")
    with platforms.alarm(0.001, ring):
        time.sleep(0.01)


def test_ctrl_c_and_sigterm_end_a_run_where_there_are_both(monkeypatch):
    assert set(platforms.ending_signals()) == {signal.SIGINT, signal.SIGTERM}
    monkeypatch.setattr(signal, "Signals", [signal.SIGINT, signal.SIGABRT])
    assert platforms.ending_signals() == (signal.SIGINT,)
