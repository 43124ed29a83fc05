"""`weightloom fields` on solutions known in closed form, its symmetries, rows and exports."""

import json
import math

import pytest
import torch

from weightloom.apps.experiment import judge_again, load, run
from weightloom.apps.fields.app import FieldsApp
from weightloom.apps.fields.config import FieldsConfig
from weightloom.apps.fields.judge import error_at, fewest_steps
from weightloom.apps.fields.methods import (
    ConcatField,
    GeneratedField,
    Surrogate,
    build_net,
    count,
    equal_widths,
)
from weightloom.apps.fields.presets import usual_rates
from weightloom.apps.fields.problem import FieldProblem, family_of, predict_grid
from weightloom.apps.fields.symmetry import canonical
from weightloom.apps.fields.trained import AdaptedField, plain_network, read_inputs, train
from weightloom.apps.fields.trained import load as load_field
from weightloom.errors import ConfigError, DataError, ShapeError
from weightloom.tasks.fields import (
    AdvectionDiffusionFields,
    BurgersFields,
    FieldFamily,
    field_family,
    relative_error,
    rolled,
)

SMALL = {
    "train_functions": 24,
    "test_functions": 3,
    "functions": 8,
    "points": 16,
    "width": 16,
    "steps": 12,
    "evaluate_every": 6,
}
NAMES = ("burgers", "burgers-mild", "advection-diffusion")


def drawn(name, count=6):
    return field_family(name).draw(count, torch.Generator().manual_seed(1))


def exact(family, inputs):
    return family.solve(inputs, points=64, steps=96, times=3)


class Solver(torch.nn.Module):
    """The exact network of representatives with speed 1, asked on the grid of 64 positions."""

    def __init__(self, family, inputs):
        super().__init__()
        known = canonical(family, inputs)
        self.values = exact(family, inputs) / known.scale[:, None, None]
        self.known = known

    def forward(self, condition, at):
        torch.testing.assert_close(condition, self.known.condition)
        return self.values.flatten(1)


@pytest.mark.parametrize("name", NAMES)
def test_the_condition_is_the_same_for_turned_equations(name):
    family, inputs = field_family(name), drawn(name)
    turned = rolled(inputs, torch.linspace(-3, 3, len(inputs), dtype=torch.float64))
    torch.testing.assert_close(
        canonical(family, turned).condition, canonical(family, inputs).condition
    )


def mirrored(inputs):
    speed, viscosity, a, b = inputs.split([1, 1, 4, 4], 1)
    return torch.cat([speed, viscosity, -a, b], 1)


@pytest.mark.parametrize("name", ["burgers", "burgers-mild"])
def test_mirror_images_and_scaled_speeds_of_burgers_are_one_equation(name):
    family, inputs = field_family(name), drawn(name)
    first = canonical(family, inputs)
    slower = inputs.clone()
    slower[:, 0] /= 2
    slower[:, 2:] *= 2
    for other in (mirrored(inputs), slower):
        torch.testing.assert_close(canonical(family, other).condition, first.condition)
    solutions = exact(family, inputs)
    torch.testing.assert_close(exact(family, slower), 2 * solutions)  # the solver agrees
    image = -solutions.roll(-1, -1).flip(-1)
    torch.testing.assert_close(exact(family, mirrored(inputs)), image)


def test_sizes_and_signs_of_a_linear_equation_are_one_equation():
    family, inputs = field_family("advection-diffusion"), drawn("advection-diffusion")
    scaled = inputs.clone()
    scaled[:, 2:] *= -3
    first, second = canonical(family, inputs), canonical(family, scaled)
    torch.testing.assert_close(second.condition, first.condition)
    torch.testing.assert_close(second.scale.abs(), 3 * first.scale.abs())


@pytest.mark.parametrize("name", NAMES)
def test_the_way_back_leads_to_the_solution(name):
    """Two equations with one representative: u(x) = scale v(sign (x - shift)), for each."""
    family, inputs = field_family(name), drawn(name)
    turn = 2 * math.pi * 5 / 64  # five points of the grid
    other = rolled(inputs, torch.full((len(inputs),), turn, dtype=torch.float64))
    one, two = canonical(family, inputs), canonical(family, other)
    at = torch.rand(len(inputs), 9, 2, dtype=torch.float64)
    moved = at + torch.tensor([turn, 0.0], dtype=torch.float64)
    gap = two.inward(moved) - one.inward(at)
    turns = gap / (2 * math.pi)
    torch.testing.assert_close(turns, turns.round(), rtol=0, atol=1e-6)
    torch.testing.assert_close(two.scale, one.scale)


@pytest.mark.parametrize("name", NAMES)
def test_the_initial_state_is_that_of_the_condition(name):
    """At t = 0 the condition alone gives the values: v(y, 0) from it, u(x, 0) through the way back."""
    family, inputs = field_family(name), drawn(name)
    known = canonical(family, inputs)
    speeds = [] if isinstance(family, BurgersFields) else [torch.zeros(len(inputs), 1)]
    state = known.condition[:, len(speeds) + 1 :]
    sizes = 1 / torch.arange(1, 5, dtype=torch.float64)
    sizes = sizes / sizes.square().sum().sqrt()
    a = torch.cat([torch.zeros(len(inputs), 1), state[:, :3]], 1) * sizes
    b = state[:, 3:] * sizes
    x = torch.linspace(0, 6, 7, dtype=torch.float64)
    at = torch.stack([x, torch.zeros(7)], -1).expand(len(inputs), 7, 2)
    angle = known.inward(at)[..., :1] * torch.arange(1, 5)
    v = (angle.cos() * a[:, None] + angle.sin() * b[:, None]).sum(-1)
    torch.testing.assert_close(known.outward(v), family.initial(inputs, x), rtol=0, atol=1e-6)


def test_an_exact_network_has_no_error():
    family, inputs = field_family("burgers"), drawn("burgers")
    model = Surrogate(family, Solver(family, inputs))
    x = torch.arange(64, dtype=torch.float64) * 2 * math.pi / 64
    t = torch.linspace(0, 1, 3, dtype=torch.float64)
    found = predict_grid(model, inputs, x, t)
    torch.testing.assert_close(found, exact(family, inputs))


def test_errors_of_known_predictions():
    values = torch.randn(3, 4, 5)
    torch.testing.assert_close(relative_error(1.5 * values, values), torch.full((3,), 0.5))


def test_an_equal_network_has_no_more_parameters_and_one_unit_more_would():
    widths = equal_widths(8, 64)
    goal = count(build_net("generated", 8, 64))
    assert count(ConcatField(8, widths)) <= goal < count(ConcatField(8, [w + 1 for w in widths]))


@pytest.mark.parametrize(
    "method", ["generated", "generated-film", "generated-lowrank", "deeponet", "concat"]
)
def test_every_method_predicts_each_function_alone_as_in_a_batch(method):
    net = build_net(method, 8, 16)
    with torch.no_grad():
        for its in net.parameters():
            its.add_(0.05 * torch.randn_like(its))
        condition, at = torch.randn(3, 8), torch.rand(3, 5, 2)
        together = net(condition, at)
        assert together.shape == (3, 5)
        torch.testing.assert_close(net(condition[1:2], at[1:2])[0], together[1])
        assert (net(condition.roll(1, 0), at) - together).abs().max() > 1e-3


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    config = FieldsConfig(comparators=("concat", "nearest"), **SMALL)
    folder = tmp_path_factory.mktemp("fields") / "run"
    return folder, run(FieldsApp(), config, folder, quiet=True)


def rows_of(record, setting, role="method"):
    return {
        its["method"]: its
        for its in record["scores"]
        if its["setting"] == setting and its.get("role", "method") == role
    }


def test_a_run_judges_every_method_in_both_settings(finished):
    _, record = finished
    for setting in ("in range", "beyond"):
        rows = rows_of(record, setting)
        assert list(rows) == ["generated", "concat", "nearest"]
        for row in rows.values():
            assert row["mean"] == pytest.approx(sum(row["per_context"]) / 3)
        controls = rows_of(record, setting, "control")
        assert set(controls) == {
            f"{method}, {name} condition"
            for method in ("generated", "concat")
            for name in ("shuffled", "mean")
        }
        assert rows_of(record, setting, "ceiling")["grid"]["mean"] < 0.01
        gap = rows["concat"]["ours_ahead"]["mean"]
        assert gap == pytest.approx(rows["generated"]["mean"] - rows["concat"]["mean"], abs=1e-6)


def test_a_run_records_parameters_and_curves(finished):
    folder, record = finished
    facts = record["facts"]
    assert facts["parameters"]["generated"] == count(build_net("generated", 8, 16))
    assert [point[0] for point in facts["curves"]["concat"]] == [6, 12]
    seconds = [point[1] for point in facts["curves"]["generated"]]
    assert 0 < seconds[0] < seconds[1]
    last = facts["curves"]["generated"][-1][2]
    also = rows_of(record, "in range")["generated"]["also"]
    assert also["validation error at equal steps"]["mean"] == pytest.approx(last)
    page = (folder / "report.html").read_text()
    for words in (
        "Error against processor time",
        "Solutions, predictions and their difference",
        "Finer than the training grid",
        "Error against the viscosity",
    ):
        assert words in page
    assert "No figure could be drawn" not in page


def test_a_trained_run_is_read_again(finished):
    folder, record = finished
    _, rows = judge_again(FieldsApp(), folder, {"test_functions": 2})
    again = next(its for its in rows if its["method"] == "generated")
    first = rows_of(record, "in range")["generated"]["per_context"]
    assert len(again["per_context"]) == 2
    assert len(first) == 3
    field = load_field(folder)
    assert field.predict(drawn("burgers").float(), torch.rand(5), torch.rand(3)).shape == (6, 3, 5)
    with pytest.raises(ShapeError, match=r"Pass \(fields, 10\)"):
        field.predict(torch.rand(3, 4), torch.rand(5), torch.rand(3))


def test_the_plain_network_of_one_equation_is_the_surrogate(finished, tmp_path):
    folder, _ = finished
    loaded = load(FieldsApp(), folder, only=True)
    inputs, at = drawn("burgers", 1)[0].float(), torch.rand(7, 2)
    net = plain_network(loaded.model.eval(), inputs)
    with torch.no_grad():
        torch.testing.assert_close(net(at)[:, 0], loaded.model.predict(inputs[None], at[None])[0])
    facts = FieldsApp().export(loaded.model, loaded.problem, loaded.config, "1", tmp_path / "net")
    assert facts["largest_difference"] < 1e-5
    assert facts["task"] == "test function 1, in range, of burgers"
    with pytest.raises(ConfigError, match="numbered from 0 to 2"):
        FieldsApp().export(loaded.model, loaded.problem, loaded.config, "3", tmp_path / "other")
    with pytest.raises(ConfigError, match="holds a network already"):
        AdaptedField(loaded.model, inputs, "mine").save(tmp_path / "net")


def test_inputs_are_read_from_a_file(finished, tmp_path):
    folder, _ = finished
    path = tmp_path / "inputs.json"
    found = {"speed": 1, "viscosity": 0.1, "cosines": [0, 0, 0, 0], "sines": [1, 0, 0, 0]}
    path.write_text(json.dumps(found))
    torch.testing.assert_close(
        read_inputs(str(path)), torch.tensor([1, math.log(0.1), 0, 0, 0, 0, 1, 0, 0, 0])
    )
    loaded = load(FieldsApp(), folder, only=True)
    adapted = FieldsApp().adapt(loaded.model, loaded.problem, loaded.config, str(path))
    (row,) = adapted.predict_rows(["1.5,0.5"])
    assert set(row) == {"x", "t", "u"}
    with pytest.raises(ConfigError, match=r"Type for instance `1\.57,0\.5`"):
        adapted.predict_rows(["here"])
    for bad in ("{}", json.dumps(found | {"viscosity": 0}), json.dumps(found | {"sines": [1]})):
        path.write_text(bad)
        with pytest.raises(DataError, match="Write"):
            read_inputs(str(path))
    with pytest.raises(DataError, match="inputs of an equation"):
        read_inputs(str(tmp_path / "none.json"))


def test_methods_without_a_network_per_equation_say_so():
    model = Surrogate(field_family("burgers"), build_net("concat", 8, 16))
    with pytest.raises(ConfigError, match="Train `--method generated`"):
        plain_network(model, drawn("burgers", 1)[0])


def test_a_family_of_ones_own():
    family = family_of("tests.test_fields_app:Slow")
    assert family.speed == (0.1, 0.2)
    field = train(
        "tests.test_fields_app:Slow", quiet=True, **{**SMALL, "steps": 2, "comparators": ()}
    )
    assert isinstance(field.model.net, GeneratedField)
    assert field.network(family.draw(1, torch.Generator())[0])(torch.rand(3, 2)).shape == (3, 1)
    with pytest.raises(ConfigError, match=r"Inherit from `weightloom\.tasks\.fields"):
        family_of("tests.test_fields_app:NoFamily")


class Slow(FieldFamily):
    """Decay alone, at the rate of the viscosity: a family without symmetries but turning."""

    def __init__(self):
        super().__init__(speed=(0.1, 0.2))

    def spectrum(self, inputs, points, steps, times):
        """Advection-diffusion without the flow."""
        still = torch.cat([0 * inputs[:, :1], inputs[:, 1:]], 1)
        return AdvectionDiffusionFields().spectrum(still, points, steps, times)


class NoFamily:
    """Something else."""


def test_curves_are_read_at_equal_steps():
    curves = {
        "one": [[10.0, 1.0, 0.5], [20.0, 2.0, 0.3]],
        "two": [[10.0, 3.0, 0.4], [15.0, 5.0, 0.2]],
    }
    assert fewest_steps(curves) == 15
    assert error_at(curves["one"], 15) == pytest.approx(0.4)
    assert error_at(curves["two"], 99) == 0.2
    assert error_at(curves["one"], 1) == 0.5
    assert fewest_steps({}) == 0


def test_runs_of_one_seed_train_on_the_same_functions_and_share_the_test():
    one, two, other = (
        FieldProblem(FieldsConfig(seed=seed, **SMALL).resolved()) for seed in (0, 0, 1)
    )
    assert torch.equal(one.train.values, two.train.values)
    assert not torch.equal(one.train.values, other.train.values)
    assert torch.equal(one.validation.inputs, other.validation.inputs)
    batch = one.draw(0, torch.Generator().manual_seed(0))
    again = two.draw(0, torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(batch, again, strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": "burger"}, "Did you mean"),
        ({"test_functions": 1}, "Pass 2 or more"),
        ({"points": 0}, "Pass 1 or more"),
        ({"method": "mine:Net"}, "no method of fields"),
        ({"method": "concate"}, "does not go with"),
        ({"learning_rate": -1.0}, "positive number"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        FieldsConfig(**options)


def test_swept_rates_are_used_unless_one_is_typed():
    usual = FieldsConfig(comparators=("concat",)).resolved()
    assert usual.rate_of("concat") == usual_rates("burgers")["concat"]
    typed = FieldsConfig(comparators=("concat",), learning_rate=0.1).resolved()
    assert typed.rate_of("concat") == 0.1
    assert FieldsConfig(minutes=1.0).resolved().steps is None


def test_lists_name_every_family_and_method():
    families, methods = FieldsApp().listed()
    assert [row[0] for row in families.rows] == list(NAMES)
    assert "deeponet" in [row[0] for row in methods.rows]


def test_a_deeponet_reads_shared_points_as_each_functions_own():
    net, condition, at = build_net("deeponet", 8, 16), torch.randn(3, 8), torch.rand(1, 5, 2)
    torch.testing.assert_close(net(condition, at), net(condition, at.expand(3, 5, 2)))


def test_shared_points_are_values_of_the_representatives(monkeypatch):
    """At t = 0 the values are those of the condition; the power is that of all draws."""
    problem = FieldProblem(FieldsConfig(**SMALL).resolved())
    monkeypatch.setattr("weightloom.apps.fields.problem.SHARED_POINTS", 33 * 64)
    batch = problem.draw_shared(0, torch.Generator().manual_seed(0))
    assert batch.at.shape == (1, 33 * 64, 2)
    assert len(batch.condition) == 2 * SMALL["functions"]
    torch.testing.assert_close(batch.values.square().mean(1), batch.power, rtol=1e-4, atol=0)
    start = batch.at[0, :, 1] == 0
    assert int(start.sum()) == 64
    sizes = 1 / torch.arange(1, 5)
    sizes = sizes / sizes.square().sum().sqrt()
    angle = batch.at[0, start, :1] * torch.arange(1, 5)
    a, b = batch.condition[:, 1:4] * sizes[1:], batch.condition[:, 4:] * sizes
    expected = a @ angle.cos()[:, 1:].T + b @ angle.sin().T
    torch.testing.assert_close(batch.values[:, start], expected, rtol=0, atol=1e-5)
