"""JSON files of a run's folder: what does not fit is named by its place, a missing file told from a damaged one."""

from dataclasses import dataclass

import pytest
from typing_extensions import TypedDict

from weightloom.errors import DataError
from weightloom.runs.schema import json_text, read_json, read_object, write_json


@dataclass(frozen=True)
class Shelf:
    """A file of a test."""

    name: str
    books: tuple[int, ...] = ()


class Loose(TypedDict):
    """A file that may hold more."""

    name: str


def reading(tmp_path, text, schema=Shelf):
    (tmp_path / "a.json").write_text(text)
    return read_json(tmp_path / "a.json", schema, 2, "A librarian writes it.")


def test_a_value_is_written_as_it_will_be_read(tmp_path):
    text = '{\n "format": 2,\n "name": "top",\n "books": [\n  1\n ]\n}\n'
    assert json_text({"name": "top", "books": [1]}, 2) == text
    write_json(tmp_path / "a.json", {"name": "top", "books": [1]}, 2)
    assert (tmp_path / "a.json").read_bytes() == text.encode()
    assert reading(tmp_path, text) == Shelf("top", (1,))
    assert read_object(tmp_path / "a.json", "") == {"format": 2, "name": "top", "books": [1]}


def test_further_fields_of_a_dictionary_stay(tmp_path):
    assert reading(tmp_path, '{"format": 2, "name": "top", "more": [1]}', Loose) == {
        "name": "top",
        "more": [1],
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 2}', r"cannot be read \(`name`: Field required\)"),
        ('{"format": 2, "name": 3, "books": 4}', r"\(`name`: Input should be a valid string"),
        (
            '{"format": 2, "name": "top", "books": [1, "two"]}',
            r"\(`books\.1`: Input should be a valid integer",
        ),
        (
            '{"format": 3, "name": "top"}',
            r"is of format 3\. .* reads format 2\. Install the version that made it",
        ),
        ('{"name": "top"}', "is of format None"),
        ('["top"]', r"cannot be read \(it holds a list\)"),
        ('{"format": 2, ', r"cannot be read \(.*\)\. .* Put back an earlier copy"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_its_place_named(tmp_path, text, said):
    with pytest.raises(DataError, match=said):
        reading(tmp_path, text)


@pytest.mark.parametrize("name", ["missing.json", "\ud800.json"])
def test_a_missing_file_is_told_from_a_damaged_one_and_says_who_writes_it(tmp_path, name):
    with pytest.raises(
        DataError, match=r"cannot be opened .* A librarian writes it\. Pass the folder of a run"
    ):
        read_json(tmp_path / name, Shelf, 2, "A librarian writes it.")
