"""What survives: every dtype there and back, nothing damaged or foreign read, nothing lost when the disk is full."""

import errno
import hashlib
import json
import os
import pickle
import resource

import pytest
import torch
from safetensors.torch import save_file

from weightloom.errors import CheckpointError
from weightloom.files import load_tensors, save_tensors

FACTS = {"step": 7, "text": 'ünïcode "quoted" \\', "nested": {"list": [1, 2.5, None, True]}}


def tensors():
    shared = torch.randn(6)
    return {
        "float32": torch.randn(2, 3),
        "float64": torch.randn(3, dtype=torch.float64),
        "bfloat16": torch.randn(4).bfloat16(),
        "float16": torch.randn(4).half(),
        "int64": torch.tensor([2**62, -1]),
        "uint8": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "one number": torch.tensor(3.5),
        "nothing": torch.empty(0, 3),
        "not finite": torch.tensor([torch.nan, torch.inf, -0.0]),
        "a dotted/ünïcode name": torch.zeros(1),
        "parameter": torch.nn.Parameter(torch.randn(2)),
        "whole": shared,
        "again": shared,
        "view": shared.view(2, 3),
        "slice": shared[2:4],
        "column": shared.view(2, 3)[:, 1],
        "transposed": shared.view(2, 3).T,
        "expanded": torch.ones(1).expand(4),
        "part": torch.arange(10.0)[2:5],
    }


def small(path):
    save_tensors(path, {"weight": torch.randn(3), "steps": torch.tensor(2)}, {"step": 1})
    return path


def files(folder):
    return sorted(path.name for path in folder.iterdir())


def test_tensors_of_every_kind_and_facts_come_back_bit_for_bit(tmp_path):
    kept = tensors()
    save_tensors(tmp_path / "a.safetensors", kept, FACTS)
    loaded, facts = load_tensors(tmp_path / "a.safetensors")
    assert facts == FACTS and loaded.keys() == kept.keys()
    for name, value in kept.items():
        back = loaded[name]
        assert back.dtype == value.dtype and back.shape == value.shape and not back.requires_grad
        assert (
            back.contiguous()
            .view(-1)
            .view(torch.uint8)
            .equal(value.detach().contiguous().view(-1).view(torch.uint8))
        )
    assert files(tmp_path) == ["a.safetensors"]


def test_saving_leaves_what_is_saved_alone(tmp_path):
    kept = tensors()
    before = {name: (value.data_ptr(), value.detach().clone()) for name, value in kept.items()}
    save_tensors(tmp_path / "a.safetensors", kept, {})
    for name, value in kept.items():
        assert value.data_ptr() == before[name][0] and torch.allclose(
            value, before[name][1], equal_nan=True
        )


def test_loaded_tensors_are_not_tied_to_the_file(tmp_path):
    loaded, _ = load_tensors(small(tmp_path / "a.safetensors"))
    expected = loaded["weight"].clone()
    small(tmp_path / "a.safetensors")
    loaded["steps"] += 1
    assert torch.equal(loaded["weight"], expected) and loaded["steps"] == 3


def test_no_tensors_and_no_facts_are_fine(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {}, {})
    assert load_tensors(tmp_path / "a.safetensors") == ({}, {})


def test_a_file_cut_off_anywhere_is_refused(tmp_path):
    whole = small(tmp_path / "a.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="It is truncated, or it is another kind of file"):
            load_tensors(cut)


def test_a_bit_flipped_anywhere_is_noticed(tmp_path):
    whole = small(tmp_path / "a.safetensors").read_bytes()
    broken = tmp_path / "broken.safetensors"
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        broken.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            load_tensors(broken)


@pytest.mark.parametrize("place", [-1, -9])
def test_a_changed_number_is_named_as_such(tmp_path, place):
    path = small(tmp_path / "a.safetensors")
    changed = bytearray(path.read_bytes())
    changed[place] ^= 1
    path.write_bytes(changed)
    with pytest.raises(
        CheckpointError, match=r"was changed after it was written.*Use an earlier checkpoint"
    ):
        load_tensors(path)


@pytest.mark.parametrize(
    "metadata", [None, {"format": "pt"}, {"format": "weightloom-0", "facts": "{}"}]
)
def test_a_file_of_another_origin_is_named(tmp_path, metadata):
    save_file({"weight": torch.zeros(2)}, tmp_path / "a.safetensors", metadata)
    with pytest.raises(
        CheckpointError, match=r"of another origin \(format .*reads format 'weightloom-1'"
    ):
        load_tensors(tmp_path / "a.safetensors")


class Trap:
    """Unpickled, it would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    "write",
    [lambda trap, path: path.write_bytes(pickle.dumps(trap)), torch.save],
    ids=["pickle", "torch"],
)
def test_a_pickle_is_refused_and_nothing_in_it_runs(tmp_path, write):
    sprung, path = tmp_path / "sprung", tmp_path / "a.safetensors"
    write(Trap(sprung), path)
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        load_tensors(path)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # the trap works


def test_a_missing_file_says_what_to_pass(tmp_path):
    for path in (tmp_path / "a.safetensors", tmp_path):
        with pytest.raises(
            CheckpointError, match=r"There is no file `.*Pass the run's folder, as in `--resume"
        ):
            load_tensors(path)


def no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("there_before", [True, False])
def test_a_full_disk_leaves_the_old_file_whole_and_nothing_else(
    tmp_path, monkeypatch, call, there_before
):
    path = tmp_path / "a.safetensors"
    before = small(path).read_bytes() if there_before else None
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space) if call == "fsync" else patch.setattr(
            type(path), "replace", no_space
        )
        with pytest.raises(
            CheckpointError, match=r"could not be written \(No space left on device\)"
        ) as caught:
            save_tensors(path, {"weight": torch.zeros(9)}, {})
    assert ("The previous content is still whole" in str(caught.value)) is there_before
    assert files(tmp_path) == (["a.safetensors"] if there_before else [])
    assert not there_before or path.read_bytes() == before
    save_tensors(path, {"weight": torch.zeros(9)}, {})
    assert load_tensors(path)[0]["weight"].shape == (9,)


def test_a_disk_that_takes_only_some_of_the_bytes_leaves_the_old_file_whole(tmp_path):
    """No file of this process may grow beyond 5,000 bytes for a moment: a real error, half way through writing."""
    path = tmp_path / "a.safetensors"
    before = small(path).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
    try:
        with pytest.raises(
            CheckpointError,
            match=r"It needs 0\.0 MB in a folder that is writable\. Free some space",
        ):
            save_tensors(path, {"weight": torch.zeros(5000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before and files(tmp_path) == ["a.safetensors"]


def test_a_folder_that_is_not_there_is_named_and_the_advice_works(tmp_path):
    path = tmp_path / "nowhere" / "a.safetensors"
    with pytest.raises(
        CheckpointError, match=r"could not be written \(No such file.*choose another folder"
    ):
        small(path)
    path.parent.mkdir()
    assert load_tensors(small(path))[1] == {"step": 1}


def test_a_folder_in_the_place_of_the_file_is_left_alone(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(CheckpointError, match="could not be written"):
        small(tmp_path / "a.safetensors")
    assert files(tmp_path) == ["a.safetensors"] and files(tmp_path / "a.safetensors") == []


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path, monkeypatch):
    path, seen, fsync = small(tmp_path / "a.safetensors"), [], os.fsync
    before, beside = path.read_bytes(), tmp_path / f".a.safetensors.{os.getpid()}.tmp"
    monkeypatch.setattr(
        os,
        "fsync",
        lambda number: (seen.append((path.read_bytes(), beside.read_bytes())), fsync(number)),
    )
    save_tensors(path, {"weight": torch.zeros(9)}, {})
    assert seen == [(before, path.read_bytes())] and path.read_bytes() != before


def test_facts_that_json_cannot_hold_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_tensors(tmp_path / "a.safetensors", {}, {"path": tmp_path})
    assert files(tmp_path) == [] and json.dumps(FACTS)


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "Input/output error"), ValueError("Input/output error")]
)
def test_a_disk_that_fails_while_it_is_read_is_told(tmp_path, monkeypatch, error):
    def fails(*_, **__):
        raise error

    path = small(tmp_path / "a.safetensors")
    monkeypatch.setattr("weightloom.files.safe_open", fails)
    with pytest.raises(
        CheckpointError, match=r"cannot be read as a checkpoint \(.*Input/output error\)"
    ):
        load_tensors(path)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (None, "KeyError"),
        ("[1]", "they are a list"),
        ("{", "JSONDecodeError"),
        ("[" * 100_000, "RecursionError"),
    ],
    ids=["none", "list", "half", "deep"],
)
def test_facts_that_are_no_object_are_refused_though_the_digest_fits(tmp_path, facts, said):
    digest = hashlib.sha256((facts or "").encode()).hexdigest()
    header = {"format": "weightloom-1", "digest": digest} | (
        {} if facts is None else {"facts": facts}
    )
    save_file({}, tmp_path / "a.safetensors", header)
    with pytest.raises(CheckpointError, match=f"holds facts that cannot be read.*{said}"):
        load_tensors(tmp_path / "a.safetensors")
