"""`per_task`: called as the base is, with parameters first; whose an argument is, it is told or it asks."""

import re

import pytest
import torch
from torch import nn

from cases import BASES
from references import copies
from weightloom import LowRank, MLPHyperNetwork
from weightloom.base import Shared, apply_per_task, choose_engine, per_task
from weightloom.errors import BatchingError, ConfigError, ShapeError
from weightloom.forms import Factored

TASKS, ROWS = 3, 4
ENGINES = ["auto", "vmap", "aligned", "loop"]
every_engine = pytest.mark.parametrize("engine", ENGINES)
QUICK = [
    "linear",
    "mlp_two_globs",
    "layer_norm",
    "conv2d_with_group_norm",
    "tied",
    "attention_train",
    "embedding",
]


def close(actual, expected, tolerance=1e-10):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def random_params(net, tasks=TASKS):
    return {
        name: torch.randn(tasks, *value.shape).double() for name, value in net.named_parameters()
    }


def stacked(net, params, run):
    """What a copy for each task gives: ``run`` takes the copy and the number of its task."""
    return torch.stack([run(one, task) for task, one in enumerate(copies(net, params))]).detach()


class Attend(nn.Module):
    """Attention over steps, with a mask (steps, steps); its names are those of a language model."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Linear(4, 4).double(), nn.Linear(4, 4).double()

    def forward(self, x, attention_mask=None, bias=None, scale=1.0):
        scores = scale * self.query(x) @ self.key(x).mT
        scores = scores if bias is None else scores + bias
        scores = scores if attention_mask is None else scores.masked_fill(~attention_mask, -1e9)
        return scores.softmax(-1) @ x

    def scores(self, x, shift=0.0):
        return self.query(x) + shift


def causal(steps):
    return torch.ones(steps, steps).tril().bool()


@pytest.mark.parametrize("base", [case for case in BASES if case.id in QUICK])
@every_engine
def test_it_equals_apply_per_task(base, engine):
    if engine == "aligned" and base.event == (3, 4):
        pytest.skip("attention that the aligned engine does not know")
    net, params, inputs = base.net(), base.params(), base.x()
    found = per_task(net, engine=engine, chunk_size=2)(params, *inputs)
    assert torch.equal(found, apply_per_task(net, params, *inputs, engine=engine, chunk_size=2))


@every_engine
def test_a_tensor_by_name_is_asked_about_and_both_advices_work_as_they_are_typed(engine):
    net, x = Attend(), torch.randn(TASKS, ROWS, 5, 4).double()
    params, mask = random_params(net), causal(5)
    with pytest.raises(
        ConfigError, match=r"`attention_mask` of Attend holds tensors and was passed by name"
    ) as caught:
        per_task(net, engine=engine)(params, x, attention_mask=mask)
    each, one = re.findall(r"`(per_task\(.*?\))`", str(caught.value))
    expected = stacked(net, params, lambda copy, task: copy(x[task], attention_mask=mask))
    scope = {
        "per_task": lambda *args, **kwargs: per_task(*args, engine=engine, **kwargs),
        "net": net,
    }
    close(eval(one, scope)(params, x, attention_mask=mask), expected)
    of_each = mask.expand(TASKS, ROWS, 5, 5)
    close(eval(each, scope)(params, x, attention_mask=of_each), expected)


def test_all_tensors_by_name_are_asked_about_at_once_and_what_is_no_tensor_is_not():
    net, x = Attend(), torch.randn(TASKS, ROWS, 5, 4).double()
    params, bias = random_params(net), torch.randn(5, 5).double()
    with pytest.raises(
        ConfigError, match=r"`attention_mask`, `bias` of Attend hold tensors and were passed"
    ) as caught:
        per_task(net)(params, x, attention_mask=causal(5), bias=bias)
    advice = re.findall(r"`(per_task\(.*?\))`", str(caught.value))[1]
    found = eval(advice, {"per_task": per_task, "net": net})(
        params, x, attention_mask=causal(5), bias=bias
    )
    close(found, stacked(net, params, lambda copy, task: copy(x[task], causal(5), bias)))
    close(
        per_task(net)(params, x, scale=2.0),
        stacked(net, params, lambda copy, task: copy(x[task], scale=2.0)),
    )


@every_engine
@pytest.mark.parametrize("steps", [TASKS, TASKS + 2, ROWS])
def test_a_mask_that_all_share_is_never_cut_however_many_tasks_there_are(engine, steps):
    net, x, mask = Attend(), torch.randn(TASKS, ROWS, steps, 4).double(), causal(steps)
    params = random_params(net)
    expected = stacked(net, params, lambda copy, task: copy(x[task], mask))
    for run in (
        lambda: per_task(net, engine=engine)(params, x, Shared(mask)),
        lambda: per_task(net, engine=engine)(params, x, attention_mask=Shared(mask)),
        lambda: per_task(net, engine=engine, shared={"attention_mask"})(params, x, mask),
        lambda: per_task(net, engine=engine, shared=["attention_mask"])(
            params, x, attention_mask=mask
        ),
        lambda: per_task(net, engine=engine, shared=[1])(params, x, mask),
        lambda: apply_per_task(net, params, x, mask, shared={1}, engine=engine),
        lambda: apply_per_task(
            net, params, x, kwargs={"attention_mask": mask}, shared={"attention_mask"}
        ),
    ):
        close(run(), expected)


def test_gradients_reach_what_all_tasks_share_as_a_sum_over_them():
    net, x, bias = (
        Attend(),
        torch.randn(TASKS, ROWS, 5, 4).double(),
        torch.randn(5, 5).double().requires_grad_(),
    )
    params = random_params(net)
    expected = torch.autograd.grad(
        sum(one(x[task], bias=bias).square().sum() for task, one in enumerate(copies(net, params))),
        bias,
    )
    for engine in ENGINES:
        y = per_task(net, engine=engine, shared={"bias"})(params, x, bias=bias)
        close(torch.autograd.grad(y.square().sum(), bias), expected)


def test_unknown_names_in_shared_are_answered_with_the_nearest(unchecked):
    net = Attend()
    with pytest.raises(
        ConfigError,
        match=r"`shared` names 'attention_msk', which Attend does not.*`attention_mask`",
    ):
        per_task(net, shared={"attention_msk"})
    with pytest.raises(
        ConfigError, match=r"`shared='bias'` is a single text.*Pass `shared=\{'bias'\}`"
    ):
        per_task(net, shared="bias")
    with pytest.raises(
        ConfigError, match=r"`shared` names 'bias', which Attend\.scores does not take.*`shift`|`x`"
    ):
        per_task(net.scores, shared={"bias"})


def test_a_base_without_inputs_runs_as_often_as_there_are_parameters():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.level = nn.Parameter(torch.zeros(2).double())

        def forward(self):
            return self.level.exp()

    net, params = Constant(), {"level": torch.randn(TASKS, 2).double()}
    for engine in ("auto", "loop"):
        close(per_task(net, engine=engine)(params), params["level"].exp())
    with pytest.raises(ShapeError, match="the number of tasks is unknown"):
        per_task(net)({})


@every_engine
def test_numbers_flags_and_texts_go_to_every_task_as_they_are(engine):
    class Scaled(nn.Linear):
        def forward(self, x, scale, negative=False, name=None):
            return super().forward(x) * scale * (-1 if negative else 1) + len(name or "")

    net, x = Scaled(3, 2).double(), torch.randn(TASKS, ROWS, 3).double()
    params = random_params(net)
    run = per_task(net, engine=engine)
    for args, kwargs in (
        ((2,), {}),
        ((0.5,), {"negative": True}),
        ((3, True, "abc"), {}),
        ((2.5,), {"name": "xy"}),
    ):
        expected = stacked(net, params, lambda copy, task, a=args, k=kwargs: copy(x[task], *a, **k))
        close(run(params, x, *args, **kwargs), expected)


@pytest.mark.parametrize("engine", ["auto", "vmap", "loop"])
def test_a_scalar_tensor_is_refused_and_both_advices_work(engine):
    class Times(nn.Linear):
        def forward(self, x, factor):
            return super().forward(x) * factor

    net, x, factor = (
        Times(3, 2).double(),
        torch.randn(1, ROWS, 3).double(),
        torch.tensor(3.0).double(),
    )
    params, run = random_params(net, 1), per_task(net, engine=engine)
    with pytest.raises(ShapeError, match=r"`inputs\[1\]` is a scalar") as caught:
        run(params, x, factor)
    for advice in re.findall(r"`(.*?)`", str(caught.value))[1:]:
        its = eval(advice, {"inputs": [x, factor], "Shared": Shared})
        close(run(params, x, its), 3 * (x @ params["weight"].mT + params["bias"][:, None]))


@every_engine
def test_a_method_runs_as_forward_does(engine):
    net, x = Attend(), torch.randn(TASKS, ROWS, 4).double()
    params = random_params(net)
    run = per_task(net.scores, engine=engine, shared={"shift"})
    assert "Attend.scores" in repr(run)
    expected = stacked(net, params, lambda copy, task: copy.scores(x[task], 2.0))
    close(run(params, x, shift=torch.tensor(2.0).double()), expected)
    close(run(params, x, 2.0), expected)


@pytest.mark.parametrize("engine", ["auto", "vmap", "loop"])
def test_a_plain_function_takes_one_task_s_parameters(engine):
    def base(params, x, *, shift=0.0):
        return torch.tanh(x @ params["weight"].mT) + shift

    params, x = {"weight": torch.randn(TASKS, 2, 3).double()}, torch.randn(TASKS, ROWS, 3).double()
    expected = torch.stack(
        [torch.tanh(x[task] @ params["weight"][task].T) + 1.0 for task in range(TASKS)]
    )
    close(per_task(base, engine=engine)(params, x, shift=1.0), expected)
    shift = torch.ones(2).double()
    close(per_task(base, engine=engine, shared={"shift"})(params, x, shift=shift), expected)
    with pytest.raises(ConfigError, match=r"`shift` of base holds tensors"):
        per_task(base, engine=engine)(params, x, shift=shift)


@pytest.mark.parametrize("base", [3, nn.Linear, "net"])
def test_what_cannot_be_run_is_refused(base, unchecked):
    with pytest.raises(ConfigError, match=r"Pass `net`, `net\.encode`, or `lambda params, x: …`"):
        per_task(base)


@every_engine
def test_a_compiled_base_runs_by_the_names_of_the_network_and_with_the_prefix(engine):
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    compiled = torch.compile(net, backend="eager")
    params, x = random_params(net), torch.randn(TASKS, ROWS, 4).double()
    prefixed = {f"_orig_mod.{name}": value for name, value in params.items()}
    assert prefixed.keys() == dict(compiled.named_parameters()).keys()
    expected = stacked(net, params, lambda copy, task: copy(x[task]))
    for its in (params, prefixed):
        close(per_task(compiled, engine=engine)(its, x), expected)
    hyper = MLPHyperNetwork(compiled, condition_dim=5).double()
    nn.init.normal_(hyper.head.weight, std=0.1)
    its = hyper(torch.randn(TASKS, 5).double())
    plain = {name.removeprefix("_orig_mod."): value.detach() for name, value in its.items()}
    close(
        per_task(compiled, engine=engine)(its, x),
        stacked(net, plain, lambda copy, task: copy(x[task])),
    )


@every_engine
def test_a_network_compiled_in_place_runs_as_it_was(engine):
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    params, x = random_params(net), torch.randn(TASKS, ROWS, 4).double()
    expected = stacked(net, params, lambda copy, task: copy(x[task]))
    net.compile(backend="eager")
    close(per_task(net, engine=engine)(params, x), expected)
    assert net._compiled_call_impl is not None


def test_it_explains_a_call_as_it_would_be_run_and_runs_nothing_else():
    net, x = Attend(), torch.randn(TASKS, ROWS, 5, 4).double()
    params, mask = random_params(net), causal(5)
    run = per_task(net, shared={"attention_mask"})
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    assert (
        str(run.explain(params, x, attention_mask=mask))
        == "loop: hooks see one task after the other"
    )
    assert not calls
    net._forward_hooks.clear()
    assert str(run.explain(params, x)) == str(choose_engine(net, params, x))
    assert per_task(net.query).explain(random_params(net.query), x).engine == "aligned"
    assert str(per_task(net, engine="vmap").explain(params, x)) == "vmap: as asked for"
    with pytest.raises(ConfigError, match="passed by name"):
        per_task(net).explain(params, x, attention_mask=mask)


def row_by_row(net, params, task_of_row, run):
    """Each row by a copy of its task, as a batch of one."""
    nets = copies(net, params)
    return torch.cat(
        [run(nets[int(task)], slice(row, row + 1)) for row, task in enumerate(task_of_row)]
    )


ORDERS = {
    "unequal": [0, 0, 0, 1, 2, 2],
    "any order": [2, 0, 1, 2, 0, 2, 2],
    "a task without rows": [2, 0, 2],
    "one row": [1],
    "of one task": [1, 1, 1],
}


@pytest.mark.parametrize("order", ORDERS)
@every_engine
def test_rows_of_several_tasks_equal_a_loop_over_rows(order, engine):
    net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2)).double()
    task_of_row = torch.tensor(ORDERS[order])
    params, x = random_params(net), torch.randn(len(task_of_row), 4).double().requires_grad_()
    params = {name: value.requires_grad_() for name, value in params.items()}
    found = per_task(net, engine=engine).by_row(params, task_of_row, x)
    nets = copies(net, params)
    expected = torch.cat(
        [nets[int(task)](x[row : row + 1]) for row, task in enumerate(task_of_row)]
    )
    close(found, expected)
    weights = torch.randn_like(found)
    ours = torch.autograd.grad((found * weights).sum(), [x, *params.values()])
    (expected * weights).sum().backward()
    close(ours[0], x.grad)
    for name, gradient in zip(params, ours[1:], strict=True):
        for task, one in enumerate(nets):
            its = one.get_parameter(name).grad
            close(gradient[task], torch.zeros_like(gradient[task]) if its is None else its)


@pytest.mark.parametrize("order", ORDERS)
@every_engine
def test_rows_with_factored_parameters_equal_rows_with_built_ones(order, engine):
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    hyper = MLPHyperNetwork(net, condition_dim=5, form=LowRank(2)).double()
    nn.init.normal_(hyper.head.weight, std=0.3)
    task_of_row = torch.tensor(ORDERS[order])
    params, x = hyper(torch.randn(TASKS, 5).double()), torch.randn(len(task_of_row), 4).double()
    assert any(isinstance(value, Factored) for value in params.values())
    dense = {n: (v.dense() if isinstance(v, Factored) else v).detach() for n, v in params.items()}
    found = per_task(net, engine=engine).by_row(params, task_of_row, x)
    close(found.detach(), row_by_row(net, dense, task_of_row, lambda one, at: one(x[at])).detach())
    found.square().sum().backward()
    assert hyper.head.weight.grad.abs().sum() > 0


def test_rows_never_see_each_other():
    class Centred(nn.Linear):
        def forward(self, x):
            return super().forward(x - 0.5 * x.mean(0))

    net, task_of_row = Centred(4, 2).double(), torch.tensor([1, 1, 0, 1])
    params, x = random_params(net), torch.randn(4, 4).double()
    expected = row_by_row(net, params, task_of_row, lambda one, at: one(x[at]))
    for engine in ("auto", "vmap", "loop"):
        close(per_task(net, engine=engine).by_row(params, task_of_row, x), expected.detach())


def test_rows_of_nested_and_shared_arguments_and_outputs():
    class Nested(nn.Linear):
        def forward(self, pair, options, shift=None):
            y = super().forward(pair["a"] * pair["b"][0]) * options["scale"]
            return {"y": y if shift is None else y + shift, "both": (y, [y + 1])}

    net, task_of_row = Nested(4, 2).double(), torch.tensor([2, 0, 2, 1])
    params, a, b, shift = (
        random_params(net),
        *(torch.randn(4, 4).double() for _ in "ab"),
        torch.randn(2).double(),
    )
    for engine in ENGINES:
        run = per_task(net, engine=engine, shared={"shift"})
        found = run.by_row(params, task_of_row, {"a": a, "b": [b]}, {"scale": 2.0}, shift=shift)
        for of, of_one in (
            (found["y"], lambda out: out["y"]),
            (found["both"][0], lambda out: out["both"][0]),
            (found["both"][1][0], lambda out: out["both"][1][0]),
        ):
            expected = row_by_row(
                net,
                params,
                task_of_row,
                lambda one, at, pick=of_one: pick(
                    one({"a": a[at], "b": [b[at]]}, {"scale": 2.0}, shift)
                ),
            )
            close(of, expected.detach())


def test_rows_that_do_not_fit_are_refused_and_the_advice_works():
    net, x = nn.Linear(4, 2).double(), torch.randn(3, 4).double()
    params, run = random_params(net), per_task(net)
    for wrong in ([0, 3, 1], [0, -1, 1]):
        with pytest.raises(ConfigError, match=r"`params` holds 3 tasks.*Pass numbers from 0 to 2"):
            run.by_row(params, torch.tensor(wrong), x)
    with pytest.raises(ShapeError, match=r"`task_of_row` is empty.*Leave out the call"):
        run.by_row(params, torch.tensor([], dtype=torch.long), x[:0])
    with pytest.raises(
        ShapeError, match=r"shape \(3, 4\) was passed for 2 rows.*Pass as many rows, or wrap it"
    ):
        run.by_row(params, torch.tensor([0, 1]), x)
    with pytest.raises(ConfigError, match="tasks"):
        run.by_row({}, torch.tensor([0, 1, 2]), x)
    assert run.by_row(params, torch.tensor([0, 1, 2]), x).shape == (3, 2)
    total = per_task(lambda params, x: (x @ params["weight"].mT).sum())
    with pytest.raises(
        BatchingError,
        match=r"returns a tensor of shape \(\) for one row.*Return a row for each row",
    ):
        total.by_row(params, torch.tensor([0, 1, 2]), x)
