"""Files and folders that a run writes: through links and pipes, made where they can be, nothing written over."""

import errno
import os
import stat

import pytest

from weightloom.errors import ConfigError
from weightloom.files import check_empty, make_folder, write_atomically


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["text with ünïcode\n", b"\x00\xff", ""])
def test_text_and_bytes_are_written_as_they_are(tmp_path, content):
    write_atomically(tmp_path / "a.txt", content)
    assert (tmp_path / "a.txt").read_bytes() == (
        content.encode() if isinstance(content, str) else content
    )


def test_text_that_is_no_unicode_is_written_escaped(tmp_path):
    write_atomically(tmp_path / "a.txt", "caf\udce9")
    assert (tmp_path / "a.txt").read_bytes() == rb"caf\udce9"


def test_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "a.txt", tmp_path / "b.txt"
    target.write_text("before")
    link.symlink_to(target)
    write_atomically(link, "after")
    assert link.is_symlink() and target.read_text() == "after"
    assert files(tmp_path) == ["b.txt", "there"] and files(target.parent) == ["a.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with a name")
def test_a_pipe_is_written_to_and_stays_one(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_atomically(pipe, "through")
    assert (
        os.read(reading, 99) == b"through"
        and stat.S_ISFIFO(pipe.stat().st_mode)
        and files(tmp_path) == ["pipe"]
    )
    os.close(reading)


def test_a_folder_is_made_with_those_above_it_and_once(tmp_path):
    for _ in range(2):
        make_folder(tmp_path / "a" / "b")
        assert files(tmp_path / "a") == ["b"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("taken", r"\(File exists\)"),
        ("nu\0ll", r"\(.*null.*\)"),
        ("a" * 256, r"\(File name too long\)"),
    ],
)
def test_a_folder_that_cannot_be_made_is_told_with_the_option_to_pass(tmp_path, name, said):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(ConfigError, match=f"cannot be created {said}.*Pass another one as `--run`"):
        make_folder(tmp_path / name)
    with pytest.raises(ConfigError, match="Pass another one as `--to`"):
        make_folder(tmp_path / name, "--to")


def test_what_is_empty_or_not_there_is_free_and_all_else_is_not(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("nowhere", "empty"):
        check_empty(tmp_path / name)
    with pytest.raises(ConfigError, match=r"full` is not empty\. .* as `--run`"):
        check_empty(tmp_path / "full")
    for name in ("full/a.txt", "dangling"):
        with pytest.raises(ConfigError, match=r"` exists and is not a folder\. .* as `--to`"):
            check_empty(tmp_path / name, "--to")


def test_a_folder_that_cannot_be_looked_at_is_not_free(tmp_path, monkeypatch):
    def refused(_):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "iterdir", refused)
    with pytest.raises(
        ConfigError,
        match=r"` cannot be read \(Permission denied\)\. Existing files are never overwritten\.",
    ):
        check_empty(tmp_path)
