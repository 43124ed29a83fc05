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
        ("RecomputeError", RuntimeError),
        ("MissingExtraError", ImportError),
    ],
)
def test_every_error_is_of_the_family_and_a_builtin(name, builtin):
    assert issubclass(getattr(errors, name), WeightloomError) and issubclass(
        getattr(errors, name), builtin
    )


def test_no_error_is_left_out_above():
    ours = [
        e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, WeightloomError)
    ]
    assert len(ours) == 9


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


def test_of_many_names_the_nearest_are_listed():
    names = [f"encoder.layer.{number}.weight" for number in range(100)]
    sentence = nearest("hed.*", ["head.bias", *names])
    assert sentence.startswith("Nearest of 101: `head.bias`, ") and sentence.count("`") == 40
