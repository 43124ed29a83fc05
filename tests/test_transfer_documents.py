"""Documents of facts: the tasks, the character model, states and their alignment."""

import numpy as np
import pytest
import torch
from torch import nn

from weightloom.conditions.documents import align, layer_inputs, split_document
from weightloom.errors import ConfigError, DataError, ShapeError
from weightloom.networks.character_model import CharacterModel, near
from weightloom.tasks.facts import (
    CHARACTERS,
    LENGTH,
    QUESTION,
    WORDINGS,
    FactTasks,
    decode,
    encode,
    name_of,
    names_of,
    recall_rows,
)

pytestmark = pytest.mark.usefixtures("plays")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_every_question_is_answered_at_its_place_in_the_document():
    drawn = FactTasks(windows=3, facts=4, split="test").sample(5, seeded())
    assert drawn.pieces.shape == (5, 3, 128)
    assert drawn.questions.shape == (5, 12, QUESTION)
    for pieces, questions, places in zip(*drawn, strict=True):
        document = decode(pieces.flatten())
        for number, (question, place) in enumerate(zip(questions, places, strict=True)):
            text = decode(question)
            assert document[place - 21 : place + 3] == text
            assert document.count(text[:-3]) == 1  # one fact per name
            assert place // 128 == number // 4  # the window of the fact


def test_reworded_questions_ask_for_the_same_keys():
    plain = FactTasks(split="test").sample(3, seeded())
    for wording, asked in enumerate(WORDINGS):
        reworded = FactTasks(split="test", asked=wording).sample(3, seeded())
        assert torch.equal(reworded.pieces, plain.pieces)
        assert torch.equal(reworded.questions[..., -3:], plain.questions[..., -3:])
        assert decode(reworded.questions[0, 0]).startswith(asked.split("{}")[0])


def test_no_name_and_no_play_is_in_two_splits():
    splits = [set(names_of(split)) for split in ("train", "validation", "test")]
    assert sum(map(len, splits)) == len(set.union(*splits)) == 145_800
    some = range(0, 145_800, 41)
    assert len({name_of(number) for number in some}) == len(some)


def test_rows_of_recall_mark_digits_that_were_stated_before():
    rows, known = recall_rows(40, seeded(), window=128)
    assert rows.shape == known.shape == (40, 129)
    assert 0.1 < (~known.any(1)).float().mean() < 0.5  # plays alone
    for row, its in zip(rows, known, strict=True):
        text = decode(row)
        for place in its.nonzero()[::3, 0].tolist():
            key = text[place : place + 3]
            assert its[place : place + 3].all()
            assert key.isdigit()
            assert text[:place].count(key + ".") >= 1
    assert not any(WORDINGS[-1].split("{}")[0] in decode(row) for row in rows)


def test_facts_that_do_not_fit_and_unknown_characters_are_refused():
    with pytest.raises(ConfigError, match=r"`facts=6` in a window of 128 .* Pass 1 to 5"):
        FactTasks(facts=6)
    with pytest.raises(DataError, match="Character 3 of the text is 'é'"):
        encode("café")
    assert decode(encode(CHARACTERS)) == CHARACTERS
    assert all(len(its.format("bolin")) == LENGTH - 4 for its in WORDINGS)


def test_the_character_model_reads_no_later_character_and_none_out_of_reach():
    torch.manual_seed(0)
    model = CharacterModel(10, width=16, layers=1, heads=2, window=12).double()
    x = torch.randint(10, (1, 12))
    changed = x.clone()
    changed[0, 5] = (x[0, 5] + 1) % 10
    differs = (model(x) != model(changed)).any(-1)[0]
    assert differs.tolist() == [False] * 5 + [True] * 7
    differs = (model(x, reach=3) != model(changed, reach=3)).any(-1)[0]
    assert differs.tolist() == [False] * 5 + [True] * 3 + [False] * 4
    torch.testing.assert_close(model(x, reach=12), model(x))


def test_rotary_positions_depend_on_distances_alone():
    """A row inside a longer one, out of reach of its beginning, has the same logits."""
    torch.manual_seed(0)
    model = CharacterModel(10, width=16, layers=1, heads=2, window=30).double()
    x = torch.randint(10, (1, 25))
    torch.testing.assert_close(model(x, reach=4)[:, 10:], model(x[:, 7:], reach=4)[:, 3:])
    assert near(3, 2, torch.device("cpu")).tolist() == [[1, 0, 0], [1, 1, 0], [0, 1, 1]]


def test_the_character_model_refuses_long_rows_and_odd_heads():
    with pytest.raises(ShapeError, match="`x` holds 9 characters in a row"):
        CharacterModel(10, width=16, heads=2, window=8)(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(ConfigError, match="Pass a multiple of 8 as `width`"):
        CharacterModel(10, width=20, heads=4)


def test_a_document_that_is_too_long_is_an_error_and_nothing_is_cut():
    with pytest.raises(DataError, match=r"has 9 tokens. At most 2 pieces of 4 .* `most=3`"):
        split_document(torch.arange(9), window=4, most=2)
    with pytest.raises(DataError, match="The document is empty"):
        split_document(torch.arange(0), window=4, most=2)
    pieces = split_document(torch.arange(9), window=4, most=3)  # the advice
    assert pieces.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [5, 6, 7, 8]]
    assert split_document(torch.arange(3), window=4, most=2).tolist() == [[0, 1, 2]]


def test_inputs_of_a_layer_are_those_that_it_was_called_with():
    base = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    assert torch.equal(layer_inputs(base, "2", x), base[1](base[0](x)))
    assert not base[2]._forward_pre_hooks
    with pytest.raises(ConfigError, match="`layer='3'` is no layer of Sequential"):
        layer_inputs(base, "3", x)


def test_alignment_finds_the_planted_correlations():
    """Two views of shared coordinates under noise: correlations 1 / (1 + variance of noise)."""
    chance = seeded()
    shared = torch.randn(40_000, 3, generator=chance, dtype=torch.float64)
    noise = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    views = [
        shared + noise.sqrt() * torch.randn(40_000, 3, generator=chance, dtype=torch.float64)
        for _ in range(2)
    ]
    mixes = [torch.randn(3, 3, generator=chance, dtype=torch.float64) for _ in range(2)]
    found = align(views[0] @ mixes[0] + 5, views[1] @ mixes[1], ridge=1e-9)
    torch.testing.assert_close(found.correlations, 1 / (1 + noise), atol=0.02, rtol=0)
    left = (views[0] @ mixes[0] + 5 - found.document_mean) @ found.document
    right = (views[1] @ mixes[1] - found.question_mean) @ found.question
    torch.testing.assert_close(left.mT @ left / 40_000, torch.eye(3).double(), atol=1e-6, rtol=0)
    wanted = torch.diag(found.correlations)
    torch.testing.assert_close(left.mT @ right / 40_000, wanted, atol=1e-6, rtol=0)
    across = np.corrcoef(left.numpy().T, right.numpy().T)[:3, 3:]
    np.testing.assert_allclose(across, wanted.numpy(), atol=1e-6)


def test_alignment_refuses_sides_of_different_number():
    with pytest.raises(ShapeError, match="3 states of documents and 2 of questions"):
        align(torch.randn(3, 2), torch.randn(2, 2))
