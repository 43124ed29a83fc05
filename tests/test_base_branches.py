"""Bases that read numbers from their rows, folded all the same: each task goes the way that it would go alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from references import copies
from weightloom import LowRank, Params, per_task
from weightloom.base.branches import Answers, TasksDifferError
from weightloom.base.watch_sizes import Followed, side
from weightloom.errors import BatchingError

TASKS, ROWS, STEPS, WIDTH = 6, 2, 5, 8


class Encoder(nn.Module):
    """One layer of attention that goes without a mask where there is nothing to mask, as pretrained encoders do."""

    def __init__(self, written: bool = False) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.positions = nn.Embedding(16, WIDTH)
        self.register_buffer("kinds", torch.zeros(1, 16, dtype=torch.long))
        self.written, self.runs = written, []  # `runs` keeps sizes alone

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, steps = mask.shape
        numbers = torch.arange(steps)
        x = x + self.positions(numbers) + self.positions(self.kinds[:, :steps].expand(batch, steps))
        q, v = self.query(x)[:, None], self.value(x)[:, None]
        if mask.bool().all():
            bias = None
        else:
            rows = torch.arange(batch)[:, None, None, None]
            bias = mask.bool()[rows, numbers[None, None, None, :]].expand(batch, -1, steps, steps)
        if not self.written:
            return F.scaled_dot_product_attention(q, v, v, attn_mask=bias)[:, 0]
        scores = q @ v.mT
        scores = scores if bias is None else scores.masked_fill(~bias, -1e9)
        return (scores.softmax(-1) @ v)[:, 0]


class Halved(nn.Module):
    """Goes two ways that differ."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, flags: Tensor) -> Tensor:
        y = self.layer(x)
        if (flags > 0).any():
            y = y / 2
        return y + x if (flags < 2).all() else y


def generated(base: nn.Module) -> Params:
    names = [
        name
        for name, _ in base.named_parameters()
        if name.endswith("weight") and "positions" not in name
    ]
    own = base.get_parameter
    return Params(
        {
            name: LowRank(2).value(
                own(name),
                {"up": torch.randn(TASKS, WIDTH, 2), "down": torch.randn(TASKS, 2, WIDTH)},
            )
            for name in names
        }
    ).to(torch.float64)


def masks(full: list[int]) -> Tensor:
    """All but the tasks that are named have rows of two lengths."""
    mask = torch.ones(TASKS, ROWS, STEPS, dtype=torch.long)
    mask[[task for task in range(TASKS) if task not in full], 0, 3:] = 0
    return mask


def expected(base: nn.Module, params: Params, *inputs: Tensor) -> Tensor:
    built = {name: value.dense().detach() for name, value in params.items()}
    return torch.stack([one(*its) for one, *its in zip(copies(base, built), *inputs, strict=True)])


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder().double()


@pytest.mark.parametrize("full", [[], [0], [2, 5], list(range(TASKS))])
@pytest.mark.parametrize("written", [False, True])
def test_a_masked_encoder_is_folded_whichever_tasks_go_without_a_mask(written, full):
    torch.manual_seed(0)
    base = Encoder(written).double()
    params, x = generated(base), torch.randn(TASKS, ROWS, STEPS, WIDTH, dtype=torch.float64)
    run = per_task(base)
    for order in (full, [], [1], full, [0, 1, 2]):  # a plan that was made for other answers
        mask = masks(order)
        torch.testing.assert_close(
            run(params, x, mask), expected(base, params, x, mask), rtol=1e-10, atol=1e-10
        )
        assert run.explain(params, x, mask).engine == "aligned"


def test_tasks_with_a_mask_that_does_nothing_are_not_run_apart(encoder, monkeypatch):
    from weightloom.base import branch_paths

    run, mask = per_task(encoder), masks([0, 3])
    params, x = generated(encoder), torch.randn(TASKS, ROWS, STEPS, WIDTH, dtype=torch.float64)
    run(params, x, mask)
    sizes = []
    folded = branch_paths.run_aligned
    monkeypatch.setattr(
        branch_paths, "run_aligned", lambda call: sizes.append(call.tasks) or folded(call)
    )
    run(params, x, mask)
    assert sizes == [TASKS]


def test_tasks_are_run_apart_where_two_ways_are_two_programs():
    torch.manual_seed(0)
    base = Halved().double()
    params, x = generated(base), torch.randn(TASKS, ROWS, WIDTH, dtype=torch.float64)
    run = per_task(base)
    for seed in range(8):
        flags = torch.randint(0, 3, (TASKS, ROWS), generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(
            run(params, x, flags), expected(base, params, x, flags), rtol=1e-10, atol=1e-10
        )
    assert run.explain(params, x, flags).engine == "aligned"


def test_gradients_reach_factors_and_inputs_along_every_way():
    torch.manual_seed(0)
    base = Halved().double()
    params, x = (
        generated(base),
        torch.randn(TASKS, ROWS, WIDTH, dtype=torch.float64, requires_grad=True),
    )
    leaf = params["layer.weight"].factors["up"].requires_grad_()
    flags = torch.tensor([[0, 0], [1, 2], [0, 2], [0, 0], [1, 1], [2, 2]])
    weights = torch.randn(TASKS, ROWS, WIDTH, dtype=torch.float64)
    gradients = [
        torch.autograd.grad(
            (per_task(base, engine=engine)(params, x, flags) * weights).sum(), (leaf, x)
        )
        for engine in ("auto", "loop")
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_mean_over_all_rows_that_is_asked_about_is_run_task_by_task():
    class Asks(Halved):
        def forward(self, x: Tensor, flags: Tensor) -> Tensor:
            y = self.layer(x)
            return y * 2 if y.mean() > 0 else y

    torch.manual_seed(0)
    base = Asks().double()
    params, x = generated(base), torch.randn(TASKS, ROWS, WIDTH, dtype=torch.float64)
    flags = torch.zeros(TASKS, ROWS, dtype=torch.long)
    run = per_task(base)
    assert run.explain(params, x, flags).engine == "loop"
    torch.testing.assert_close(
        run(params, x, flags), expected(base, params, x, flags), rtol=1e-10, atol=1e-10
    )


def test_answers_are_those_of_each_task():
    answers = Answers(2, {})
    rows = torch.tensor([[True], [True], [False], [True]])
    answers.start([rows])
    with pytest.raises(TasksDifferError) as caught:
        answers.result(Tensor.__bool__, (answers.result(torch.all, (rows,), {}),), {})
    assert caught.value.answers.tolist() == [True, False]
    assert answers.result(Tensor.__bool__, (answers.result(Tensor.any, (rows,), {}),), {}) is True


def test_a_size_that_only_makes_shapes_may_be_another_one():
    class Views(nn.Module):
        def __init__(self, compares: bool) -> None:
            super().__init__()
            self.layer, self.compares = nn.Linear(6, 3), compares

        def forward(self, x: Tensor) -> Tensor:
            if self.compares and x.size(1) > 5:
                return self.layer(x.flatten(1))
            return self.layer(x.view(x.size(0), -1))

    from weightloom.base.plan_cache import _of_base

    for compares, kept in ((False, 1), (True, 5)):
        base = Views(compares)
        params = {"layer.weight": torch.randn(3, 3, 6)}
        for batch in range(2, 7):
            per_task(base)(params, torch.randn(3, batch, 2, 3))
        assert len(_of_base[base].known) == kept


def test_sizes_are_followed_through_arithmetic():
    def one(use) -> bool:
        followed = Followed()
        use(side(12, True, followed), side(5, False, followed))
        return followed.exact

    assert not one(
        lambda batch, steps: (batch * steps, batch // 2, -steps, steps > 1, steps**2, steps**-0.5)
    )
    assert one(lambda batch, steps: batch > 1)
    assert one(lambda batch, steps: steps > 4)
    assert one(lambda batch, steps: 1 / (batch * steps))
    assert one(lambda batch, steps: {steps: 0})
    assert type(side(3, False, Followed()) * 2) is not int


def test_a_size_of_the_batch_that_becomes_a_number_is_not_folded():
    class Averages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) / x.shape[0]

    torch.manual_seed(0)
    base = Averages().double()
    params, x = generated(base), torch.randn(TASKS, ROWS, WIDTH, dtype=torch.float64)
    for batch in (ROWS, 1, 3):
        x = torch.randn(TASKS, batch, WIDTH, dtype=torch.float64)
        torch.testing.assert_close(
            per_task(base)(params, x), expected(base, params, x), rtol=1e-10, atol=1e-10
        )
    with pytest.raises(BatchingError, match="gives other numbers"):
        per_task(base, engine="aligned")(params, x)


def test_a_number_that_is_another_one_in_every_call_ends_in_the_loop():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)
            self.register_buffer("scale", torch.ones((), dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.scale.item()

    torch.manual_seed(0)
    base = Scaled().double()
    params, x = generated(base), torch.randn(TASKS, ROWS, WIDTH, dtype=torch.float64)
    run = per_task(base)
    for call in range(24):
        base.scale.fill_(call)
        torch.testing.assert_close(
            run(params, x), expected(base, params, x), rtol=1e-10, atol=1e-10
        )


def test_sizes_that_a_watched_base_keeps_and_returns_are_plain_numbers():
    import random

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> tuple[Tensor, int]:
            self.width = x.shape[1]
            random.getstate()  # so that it is watched in every run
            return self.layer(x.view(x.shape[0], -1)), x.shape[1]

    torch.manual_seed(0)
    base = Keeps().double()
    y, width = per_task(base)(generated(base), torch.randn(TASKS, ROWS, WIDTH, dtype=torch.float64))
    assert y.shape == (TASKS, ROWS, WIDTH) and type(width) is int and type(base.width) is int
