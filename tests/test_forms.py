"""What every form promises, held by the public check, and what each form says of itself."""

import pytest
import torch
from torch import nn

from cases import FORMS, TASKS
from weightloom.errors import ConfigError
from weightloom.forms import Chunked, FiLM, Full, LowRank, RowScale, Template
from weightloom.testing import check_form

every_form = pytest.mark.parametrize("form", FORMS)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def factors_of(form, shape):
    return {name: draw(TASKS, *its) for name, its in form.factor_shapes(shape).items()}


@every_form
def test_every_form_passes_the_public_check_which_leaves_the_random_state_alone(form):
    state = torch.get_rng_state()
    check_form(form)
    assert torch.equal(torch.get_rng_state(), state)


@every_form
def test_a_form_is_a_value_that_prints_as_it_is_made(form):
    names = {kind.__name__: kind for kind in (Chunked, FiLM, Full, LowRank, RowScale, Template)}
    again = eval(repr(form), names)
    assert again == form and hash(again) == hash(form) and form != object()


def test_full_adds_a_change_to_every_number():
    own, factors = draw(2, 3), factors_of(Full(), (2, 3))
    dense = Full().dense(own, factors)
    for task in range(TASKS):
        pairs = zip(own.flatten().tolist(), factors["change"][task].flatten().tolist(), strict=True)
        assert dense[task].flatten().tolist() == [a + b for a, b in pairs]


@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 2, 2)], ids=str)
def test_a_low_rank_change_is_a_sum_of_as_many_outer_products(shape):
    own, factors = draw(*shape), factors_of(LowRank(2), shape)
    dense = LowRank(2).dense(own, factors)
    for task in range(TASKS):
        up, down = factors["up"][task], factors["down"][task]
        change = sum(torch.outer(up[:, r], down[r]) for r in range(2))
        close(dense[task], own + change.reshape(shape))
        assert torch.linalg.matrix_rank(change) == 2


def test_low_rank_starts_with_a_change_of_zero_that_has_a_gradient():
    form, own = LowRank(2), draw(4, 5)
    up = torch.zeros(1, 4, 2).double().requires_grad_()
    dense = form.dense(own, {"up": up, "down": form.starts((4, 5))["down"].double()[None]})
    assert torch.equal(dense[0], own)
    (dense * draw(1, 4, 5)).sum().backward()
    assert up.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        (nn.Linear(5, 4), 0),
        (nn.Conv2d(3, 4, 3), 0),
        (nn.ConvTranspose2d(3, 4, 3), 1),
        (nn.Embedding(7, 4), 1),
    ],
    ids=["linear", "conv", "transposed", "embedding"],
)
def test_row_scale_multiplies_every_output_of_a_layer_by_its_gain(layer, axis):
    form = RowScale().fit(tuple(layer.weight.shape), layer)
    assert form == RowScale(axis)
    gain, own = draw(TASKS, 4), layer.weight.detach().double()
    dense = form.dense(own, {"gain": gain})
    for task in range(TASKS):
        for row in range(4):
            close(dense[task].select(axis, row), own.select(axis, row) * (1 + gain[task, row]))


def test_film_gives_a_linear_layer_a_gain_and_a_shift():
    layer = nn.Linear(5, 4)
    assert FiLM().fit((4, 5), layer) == RowScale() and FiLM().fit((4,), layer) == Full()
    assert FiLM().factor_shapes((4, 5)) == {"gain": (4,)}
    own, gain = draw(4, 5), draw(TASKS, 4)
    assert torch.equal(FiLM().dense(own, {"gain": gain}), RowScale().dense(own, {"gain": gain}))


def test_a_template_with_one_weight_of_one_is_added_whole():
    form, own = Template(3), draw(4, 5)
    templates = form.shared((4, 5))["templates"].double()
    close(
        form.dense(own, {"mixture": torch.eye(3).double(), "templates": templates}), own + templates
    )


def test_chunks_are_written_by_one_network_from_the_code_and_their_embedding():
    form, own = Chunked(4), draw(3, 5)
    shared = {name: value + draw(*value.shape) for name, value in form.shared((3, 5)).items()}
    code = draw(TASKS, 8)
    dense = form.dense(own, {"code": code, **shared})
    for task in range(TASKS):
        written = []
        for embedding in shared["embeddings"]:
            hidden = torch.relu(
                shared["inner"] @ torch.cat([code[task], embedding]) + shared["inner_bias"]
            )
            written.append(shared["outer"] @ hidden)
        close(dense[task], own + torch.cat(written)[:15].view(3, 5))


def test_a_number_that_is_too_small_is_refused_and_the_advice_works():
    for make, word in ((LowRank, "rank"), (Template, "count"), (Chunked, "size")):
        with pytest.raises(ConfigError, match=f"`{word}=0` is below 1.*Pass 1 or more"):
            make(0)
        assert getattr(make(1), word) == 1


def test_forms_say_which_parameters_they_do_not_fit():
    layer = nn.Linear(2, 2)
    assert LowRank(2).fit((2, 9), layer) is None and LowRank(2).fit((3, 9), layer) == LowRank(2)
    assert LowRank(1).fit((9,), layer) is None and RowScale().fit((9,), layer) is None
    assert Template(2).fit((), layer) is None and Chunked(2).fit((), layer) is None
    assert Full().fit((), layer) == Full()
