"""A fault at every write: ``python faults.py CASE FOLDER FAULT …``. Used by test_faults.py; needs ``fork``.

The operations on files that a run does below its folder are numbered: open, write, fsync, truncate,
mkdir, rename, remove, lock. A fault is ``kill:NUMBER``, where the process ends in the middle of
that operation, or ``NAME:NUMBER``, where the operation fails with that error, as in ``ENOSPC:7``.
After each the run is gone on with, and its end held against that of a run without faults. Prints
one JSON object.
"""

import builtins
import errno
import fcntl
import io
import json
import os
import select
import shutil
import signal
import socket
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path

import torch

from weightloom.apps import experiment, several
from weightloom.apps.fewshot.app import FewShot
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.rl.app import RL
from weightloom.apps.rl.config import RLConfig
from weightloom.errors import WeightloomError
from weightloom.files import load_tensors
from weightloom.runs.folder import is_begun
from weightloom.runs.metrics import read_rows

LONGEST_S = 120
"""How long a run may take before it is taken to hang."""
KILLED = 9
SINUSOID = FewShotConfig(
    data="sinusoid",
    steps=6,
    comparators=("cnp",),
    tasks=2,
    test_tasks=2,
    shots=(5,),
    checkpoint_every=2,
    evaluate_every=3,
)
LQR = RLConfig(
    env="lqr",
    steps=60,
    comparators=(),
    test_contexts=2,
    evaluate_every=30,
    rows=4,
    width=16,
    hidden=16,
    blocks=1,
    rank=2,
    batch=16,
    rollout=32,
    warm_up=20,
)
CASES = {
    "fewshot": (FewShot, SINUSOID, 1),
    "rl": (RL, LQR, 1),
    "ppo": (RL, replace(LQR, algorithm="ppo", steps=64), 1),
    "two": (FewShot, replace(SINUSOID, comparators=(), steps=4, devices=2, accelerator="cpu"), 2),
    "seeds": (FewShot, replace(SINUSOID, comparators=(), steps=4), 1),
}


def run(case, folder, bare):
    """Start a run in a folder, or go on with the one that is there."""
    app, config, _ = CASES[case]
    going = is_begun(folder)
    if case == "seeds":
        several.run_several(
            app(), config, folder, several.Several(seeds=(0, 1)), resume=going, quiet=True
        )
    else:
        experiment.run(app(), config, folder, resume=going, quiet=True, bare=bare)


class Faults:
    """Numbers the operations of this process on files below a folder, and spoils one of them."""

    def __init__(self, folder, kind="", number=-1):
        self.folder, self.kind, self.number, self.done = str(folder), kind, number, []

    def meet(self, name, target, half=None):
        """Count an operation; spoil it if it is its turn, after a half of it was done."""
        place = self.inside(target)
        if place is None:
            return
        self.done.append(f"{name} {place}")
        if len(self.done) - 1 != self.number:
            return
        if half:
            half()
        if self.kind == "kill":
            os._exit(KILLED)
        code = getattr(errno, self.kind)
        raise OSError(code, os.strerror(code), place)

    def inside(self, target):
        """Return the path of a file, or of an open one, below the folder; None for all others."""
        path = (
            Path(f"/proc/self/fd/{target}").readlink()
            if isinstance(target, int)
            else Path(target).absolute()
        )
        return (
            os.path.relpath(path, self.folder) if f"{path}/".startswith(f"{self.folder}/") else None
        )

    def install(self):
        """Stand before every function of Python that changes files."""
        faults, plain = self, builtins.open

        class Counted(io.FileIO):
            def write(self, data):
                data = bytes(data)
                faults.meet(
                    "write",
                    self.fileno(),
                    lambda: super(Counted, self).write(data[: len(data) // 2]),
                )
                return super().write(data)

            def truncate(self, size=None):
                faults.meet("truncate", self.fileno())
                return super().truncate(size)

        def opened(
            file,
            mode="r",
            buffering=-1,
            encoding=None,
            errors=None,
            newline=None,
            closefd=True,
            opener=None,
        ):
            if not set(mode) & set("wax+") or isinstance(file, int) or faults.inside(file) is None:
                return plain(file, mode, buffering, encoding, errors, newline, closefd, opener)
            faults.meet("open", file)
            raw = Counted(file, mode.replace("b", "").replace("t", ""), closefd, opener)
            buffered = io.BufferedWriter(raw)
            return (
                buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)
            )

        builtins.open = io.open = opened

        def stand_before(module, name, place=0, only=lambda *words: True, half=None):
            real = getattr(module, name)

            def counted(*words, **more):
                if only(*words):
                    faults.meet(name, words[place], partial(half, real, *words) if half else None)
                return real(*words, **more)

            setattr(module, name, counted)

        def half_written(write, file, data):
            write(file, data[: len(data) // 2])

        stand_before(
            os, "open", only=lambda path, flags, *_: flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
        )
        stand_before(os, "write", half=half_written)
        for name in ("fsync", "ftruncate", "mkdir", "unlink", "remove", "rmdir"):
            stand_before(os, name)
        for name in ("rename", "replace"):
            stand_before(os, name, place=1)
        stand_before(fcntl, "flock")


def in_child(work):
    """Do work in a child; it ends with 0, 2 and a sentence, or 1 and an error of another kind."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    os.close(reading)
    code, said = 0, ""
    try:
        said = work() or ""
    except WeightloomError as error:
        code, said = 2, str(error)
    except BaseException as error:
        code, said = 1, f"{type(error).__name__}: {error}"
    with os.fdopen(writing, "w") as pipe:
        pipe.write(json.dumps(said))
    os._exit(code)


def end_of(child, reading):
    """Wait for a child; one that hangs is killed and said to have code -1."""
    said, end_s = b"", time.monotonic() + LONGEST_S
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, end_s - time.monotonic()))[0] and (
            part := pipe.read(1 << 16)
        ):
            said += part
    if late := time.monotonic() > end_s:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return (-1 if late else os.waitstatus_to_exitcode(status)), json.loads(said or '""')


def attempt(case, folder, bare, kind="", number=-1):
    """Run in children, a fault in the first; return the code of the first and what it said."""
    processes = CASES[case][2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def work(rank):
        warnings.simplefilter("ignore")
        if processes > 1:
            os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            sys.stderr = io.StringIO()
        faults = Faults(folder, kind, number)
        if rank == 0:
            faults.install()
        try:
            run(case, folder, bare)
        finally:
            if processes > 1 and torch.distributed.is_initialized() and not kind:
                torch.distributed.destroy_process_group()
        return [faults.done, [*sys.modules]]

    ends = [
        end_of(*child) for child in [in_child(partial(work, rank)) for rank in range(processes)]
    ]
    return (-1, ends) if any(code == -1 for code, _ in ends) else ends[0]


def contents(folder):
    """Return all that a run must repeat bit for bit, and the names of its files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        found[name] = ""
        if path.name == "last.safetensors":
            tensors, facts = load_tensors(path)
            shown = {
                key: (str(value.dtype), value.numpy().tobytes().hex())
                for key, value in tensors.items()
            }
            found[name] = [
                shown,
                {key: value for key, value in facts.items() if key != "wall_time_s"},
            ]
        elif path.name == "metrics.jsonl":
            rows = read_rows(path.parent)
            found[name] = [
                {key: value for key, value in row.items() if key != "wall_time_s"} for row in rows
            ]
        elif path.name == "record.json":
            rows = json.loads(path.read_text())["scores"]
            found[name] = [
                {key: value for key, value in row.items() if key != "adapt_time_s"} for row in rows
            ]
        elif path.name in ("run.json", "config.json"):
            found[name] = path.read_text()
    return found


def fault(case, folder, bare, expected, text):
    """Spoil one operation, go on, and say what is wrong, if anything."""
    kind, number = text.split(":")
    shutil.rmtree(folder, ignore_errors=True)
    code, said = attempt(case, folder, bare, kind, int(number))
    if code != KILLED if kind == "kill" else code not in (0, 2):
        return f"{text}: ended with {code}: {said}"
    if code == 2 and not 2 <= said.count(". ") + said.endswith((".", "`")) <= 6:
        return f"{text}: said no sentence: {said}"
    code, said = attempt(case, folder, bare)
    if code != 0:
        return f"{text}: does not go on ({code}): {said}"
    found = contents(folder)
    odd = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    return f"{text}: ends otherwise in {odd}" if odd else ""


def main(case, place, *faults):
    """Print operations, and what went wrong at which fault; ``every:7`` is two at every seventh operation."""
    torch.set_num_threads(1)
    bare = "bare" in faults
    place = Path(place).resolve()
    place.mkdir(
        parents=True, exist_ok=True
    )  # or the first run alone would make it, by one operation more
    code, said = attempt(case, place / "whole", bare)
    assert code == 0, said
    (done, modules), expected = said, contents(place / "whole")
    for name in modules:  # every child is then born with what it will use
        with suppress(Exception):
            import_module(name)
    errors = ("ENOSPC", "EACCES", "EIO")
    chosen = [each for each in faults if ":" in each and not each.startswith("every")]
    for stride in (int(each.partition(":")[2]) for each in faults if each.startswith("every")):
        chosen += [
            f"{kind}:{n}" for n in range(0, len(done), stride) for kind in ("kill", errors[n % 3])
        ]
    wrong = [why for each in chosen if (why := fault(case, place / "spoilt", bare, expected, each))]
    print(
        json.dumps(
            {"operations": done, "files": list(expected), "faults": len(chosen), "wrong": wrong}
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
