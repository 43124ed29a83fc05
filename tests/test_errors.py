"""What goes wrong on purpose is ours to catch, and a builtin error too."""

import pytest

from weightloom import errors
from weightloom.errors import WeightloomError, nearest


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ShapeError", ValueError),
        ("ConfigError", ValueError),
        ("DataError", ValueError),
        ("CheckpointError", RuntimeError),
        ("NonFiniteError", ArithmeticError),
        ("BatchingError", RuntimeError),
        ("MissingExtraError", ImportError),
    ],
)
def test_every_error_is_of_the_family_and_a_builtin(name, builtin):
    assert issubclass(getattr(errors, name), WeightloomError) and issubclass(getattr(errors, name), builtin)


def test_no_error_is_left_out_above():
    ours = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, WeightloomError)]
    assert len(ours) == 8


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("wieght", "Did you mean `weight`?"),
        ("bias", "Did you mean `bias`?"),
        ("zzz", "Known: `weight`, `bias`."),
        ("", "Known: `weight`, `bias`."),
    ],
)
def test_the_nearest_known_word_is_offered_or_all_of_them(word, sentence):
    assert nearest(word, iter(["weight", "bias"])) == sentence


def test_nothing_known_is_said():
    assert nearest("weight", []) == "Known: none."
