"""Engines that are chosen by the clock."""

import json

import pytest
import torch
from torch import nn

from weightloom import Params, autotuned, mlp, per_task
from weightloom.base import Tuning
from weightloom.base.plan import Plan
from weightloom.errors import ConfigError

TASKS = 5


def generated(base: nn.Module) -> Params:
    return Params(
        {name: torch.randn(TASKS, *value.shape) for name, value in base.named_parameters()}
    )


@pytest.fixture
def base() -> nn.Module:
    torch.manual_seed(0)
    return mlp([3, 8, 2])


def test_the_quickest_way_is_chosen_once_and_kept():
    tuning, runs = Tuning(), []

    def work(name: str, size: int):
        def run() -> None:
            runs.append(name)
            torch.randn(size, size) @ torch.randn(size, size)

        return run

    ways = {"slow": work("slow", 400), "quick": work("quick", 4)}
    assert tuning.way("a call", ways) == "quick"
    many = len(runs)
    assert many > 4 and tuning.way("a call", ways) == "quick" and len(runs) == many
    assert (
        tuning.way("a call", {"other": ways["slow"]}) == "other"
    )  # what was chosen is no way any more


def test_what_was_counted_stays_where_others_are_hardly_quicker(monkeypatch):
    from weightloom.base import tuning

    for second, best in ((0.99, "counted"), (0.5, "other")):
        monkeypatch.setattr(
            tuning, "_timed", lambda ways, second=second: {"counted": 1.0, "other": second}
        )
        assert Tuning().way("a call", {"counted": lambda: None, "other": lambda: None}) == best


def test_a_later_run_takes_the_engines_of_the_file_without_timing(base, tmp_path, monkeypatch):
    params, x = generated(base), torch.randn(TASKS, 4, 3)
    expected = per_task(base)(params, x)
    with autotuned(tmp_path / "engines.json") as tuning:
        torch.testing.assert_close(per_task(base)(params, x), expected)
    (kind,) = tuning.chosen
    kept = json.loads((tmp_path / "engines.json").read_text())
    assert kept == tuning.chosen and sorted(kept[kind]["ms"]) == ["aligned", "loop", "vmap"]
    kept[kind]["way"] = "loop"
    (tmp_path / "engines.json").write_text(json.dumps(kept))

    from weightloom.base import tuning as module

    monkeypatch.setattr(module, "_timed", lambda ways: pytest.fail("timed again"))
    with autotuned(tmp_path / "engines.json"):
        assert per_task(base).explain(params, x).engine == "loop"
        assert torch.equal(per_task(base)(params, x), per_task(base, engine="loop")(params, x))
    assert per_task(base).explain(params, x).engine == "aligned"


def test_timing_leaves_the_base_its_random_numbers_and_gradients_alone(base):
    base = nn.Sequential(*base, nn.Dropout(0.5))
    params = Params(
        {
            name: torch.randn(TASKS, *value.shape, requires_grad=True)
            for name, value in base.named_parameters()
        }
    )
    x = torch.randn(TASKS, 4, 3)
    torch.manual_seed(1)
    per_task(base, engine="vmap")(params, x)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    run = per_task(base, autotune=True)
    run(params, x)
    bias = params.pop("0.bias")  # the base's own now, which is trained with the others
    per_task(base, autotune=True)(params, x)
    assert bias.grad is None
    torch.manual_seed(1)
    per_task(base, engine="vmap")(params, x)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    per_task(base, autotune=True)(params, x)
    assert torch.equal(torch.get_rng_state(), after)
    assert all(value.grad is None for value in params.values())
    assert all(value.grad is None for value in base.parameters())


def test_only_ways_that_give_the_same_are_timed():
    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            y = self.layer(x)
            return y - y.mean(0)

    base, x = Mixes(), torch.randn(TASKS, 4, 3)
    with autotuned() as tuning:
        per_task(base)(generated(base), x)
    (found,) = tuning.chosen.values()
    assert sorted(found["ms"]) == ["loop", "vmap"]
    assert Plan.__dataclass_fields__["is_free"].default is False


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "engines.json").write_text("[1]")
    with pytest.raises(ConfigError, match="holds no engines"):
        Tuning(tmp_path / "engines.json")


def test_a_run_keeps_its_engines(tmp_path):
    from weightloom.apps import experiment
    from weightloom.apps.fewshot.app import FewShot
    from weightloom.apps.fewshot.config import FewShotConfig

    config = FewShotConfig(
        data="sinusoid",
        steps=3,
        tasks=4,
        test_tasks=10,
        comparators=(),
        evaluate_every=3,
        autotune=True,
    )
    experiment.run(FewShot(), config, tmp_path / "run", quiet=True)
    kept = json.loads((tmp_path / "run" / "engines.json").read_text())
    assert kept and all(its["way"] in its["ms"] for its in kept.values())
