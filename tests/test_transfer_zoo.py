"""The zoo of small sources: turns and labels by hand, symmetries of the generator, the check."""

import pytest
import torch

from weightloom.apps.experiment import run
from weightloom.apps.transfer.app import Transfer
from weightloom.apps.transfer.config import TransferConfig
from weightloom.apps.transfer.problems.problem import Setting
from weightloom.apps.transfer.problems.zoo import data as zoo_data
from weightloom.apps.transfer.problems.zoo import networks as zoo
from weightloom.apps.transfer.recipe import Start
from weightloom.base import apply_per_task
from weightloom.errors import DataError, ShapeError
from weightloom.learners.learner import Support

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def small():
    """Few sources, trained briefly, and four targets."""
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"train": 6, "validation": 4, "test": 4}
        patch.setattr(zoo_data, "SOURCE_STEPS", 25)
        patch.setattr(zoo, "SOURCES", sizes)
        patch.setattr(zoo, "TRAINED", 6)
        patch.setattr(zoo, "TRAINED_STEPS", 3)
        patch.setattr(zoo, "VALIDATED", 4)
        yield zoo.ZooProblem(
            TransferConfig(data="zoo", test_targets=4, steps=2, tasks=4).resolved()
        )


@pytest.fixture
def generated(small):
    """A generator whose change is not zero."""
    torch.manual_seed(0)
    model = small.build("generated")
    torch.nn.init.normal_(model.core.weight, std=0.1)
    return model


def test_turns_are_those_of_the_picture():
    matrices, picture = zoo_data.turn_matrices(), torch.rand(8, 8)
    quarter = zoo_data.TURNS // 4
    turned = [(picture.flatten() @ matrices[n * quarter]).view(8, 8) for n in range(4)]
    for count, found in enumerate(turned):
        by_hand = torch.rot90(picture, -count), torch.rot90(picture, count)
        assert any(torch.allclose(found, its, atol=1e-5) for its in by_hand)
    assert torch.allclose(turned[0], picture, atol=1e-6)
    assert not torch.allclose(turned[1], turned[3], atol=0.1)


def test_renamed_sources_answer_the_renamed_labels(small):
    sources, x = small.zoos["train"], torch.rand(6, 5, 64)
    names = zoo_data.draw_labels(6, torch.Generator().manual_seed(0))
    renamed, base = sources.relabelled(names), small.build("source").base
    before, after = (apply_per_task(base, its.networks, x) for its in (sources, renamed))
    for source in range(6):
        for label in range(10):
            new = names[source, label]
            torch.testing.assert_close(after[source, :, new], before[source, :, label])
            assert torch.equal(renamed.means[source, new], sources.means[source, label])
        digit = 3
        old = sources.tasks.labels[source, digit]
        assert renamed.tasks.labels[source, digit] == names[source, old]


def test_each_family_changes_its_part_of_the_task(small):
    tasks = zoo_data.plain_tasks(400, torch.Generator().manual_seed(0))
    family = torch.arange(400) % 4
    changed = zoo_data.change_tasks(tasks, family, torch.Generator().manual_seed(1))
    for number, name in enumerate(zoo_data.FAMILIES):
        rows = family == number
        same = [
            bool((getattr(changed, part)[rows] == getattr(tasks, part)[rows]).all())
            for part in ("turn", "labels", "crossed")
        ]
        expected = {
            "relabelled": [True, False, True],
            "rotated": [False, True, True],
            "both": [False, False, True],
            "crossed": [True, True, False],
        }
        assert same == expected[name]


def test_targets_show_digits_that_no_source_has_seen(small):
    rows = {
        part: {number for its in small.digits.places[part] for number in its.tolist()}
        for part in zoo_data.PARTS
    }
    assert sum(map(len, rows.values())) == len(set.union(*rows.values())) == 1797
    support, query = small.targets.known.x, small.targets.query.x
    assert not (support[:, :, None] == query[:, None]).all(3).any()  # no picture twice


def test_the_order_of_hidden_neurons_does_not_change_the_predictions(small, generated):
    source, targets = small.targets.source, small.targets
    order = torch.randperm(32)
    moved = source | {
        "0.weight": source["0.weight"][:, order],
        "0.bias": source["0.bias"][:, order],
        "2.weight": source["2.weight"][:, :, order],
    }
    known, x = targets.shots(2), targets.query.x
    plain, permuted = (generated.predict(its, known, x, 0) for its in (source, moved))
    torch.testing.assert_close(permuted, plain, rtol=1e-3, atol=1e-5)
    unadapted = small.build("source").predict(source, known, x, 0)
    assert (plain - unadapted).abs().max() > 0.1


def test_renaming_a_targets_labels_renames_the_predictions(small, generated):
    targets, known = small.targets, small.targets.shots(2)
    names = torch.randperm(10)
    renamed = known._replace(y=names[known.y])
    before, after = (
        generated.predict(targets.source, its, targets.query.x, 0) for its in (known, renamed)
    )
    torch.testing.assert_close(after[:, :, names], before, rtol=1e-3, atol=1e-5)


def test_an_untrained_generator_leaves_the_inputs_as_they_are(small):
    change = small.build("generated").start(small.targets.source, small.targets.shots(1)).change
    assert torch.equal(change["input.weight"].dense(), torch.eye(64).expand(4, -1, -1))


def test_trained_changes_fit_their_renamed_sources(small):
    """The change of a renamed target, in its renamed source, answers as before, by new names."""
    batch = small.draw_trained(0, torch.Generator().manual_seed(3))
    sources, _, changes = small.trained_changes
    start = Start(batch.source, batch.trained)
    base, x = small.build("source").base, torch.rand(1, 5, 64).expand(4, -1, -1)
    found = apply_per_task(base, start.params, x)
    whole = Start(sources.networks, changes).params
    expected = apply_per_task(base, whole, x[:1].expand(zoo.TRAINED, -1, -1))
    for row in found:
        same = [
            torch.allclose(row.sort(1).values, its.sort(1).values, atol=1e-4) for its in expected
        ]
        assert any(same)


def test_nearest_source_of_a_sources_own_data_is_that_source(small):
    means = small.zoos["train"].means
    labels = torch.arange(10).expand(6, -1)
    support = Support(means, labels, torch.ones(6, 10, dtype=torch.bool))
    found = small.build("nearest-source").start(small.targets.source, support).source
    torch.testing.assert_close(dict(found), dict(small.zoos["train"].networks))


def test_matching_by_hand_undoes_a_turn_and_new_labels(small):
    model, targets = small.build("matched"), small.targets
    source = targets.source.take([0])
    x = torch.rand(1, 40, 64)
    quarter = zoo_data.TURNS // 4
    back = x @ small.digits.turns[quarter]
    answers = apply_per_task(model.base, source, back)
    names = torch.randperm(10)
    y = names[answers.argmax(2)]
    found = model.predict(source, Support(x, y, y >= 0), x, 0)
    assert (found.argmax(2) == y).float().mean() > 0.9


def test_neighbours_name_an_example_by_itself(small):
    known = small.targets.shots(2)
    found = small.build("neighbours").predict(small.targets.source, known, known.x, 0)
    assert torch.equal(found.argmax(2), known.y)
    torch.testing.assert_close(found.sum(2), torch.ones(4, 20))


@pytest.mark.parametrize("method", ["neighbours", "matched", "generated", "last-layer"])
def test_the_check_judges_each_example_without_it(small, method):
    """Another label of an example changes the outputs for others, never that for itself."""
    model, setting = small.build(method), Setting("2-shot", 2, 1)
    known, targets = small.targets.shots(2), small.targets
    wrong = known.y.clone()
    wrong[:, 3] = known.y[:, 4]
    one, two = (small._held_out(model, known._replace(y=its), setting) for its in (known.y, wrong))
    torch.testing.assert_close(one[:, 3], two[:, 3])
    other_fold = slice(10, 20)
    assert not torch.allclose(one[:, other_fold], two[:, other_fold], atol=1e-4)
    assert len(targets.source["0.weight"]) == len(one)


def test_controls_read_the_condition_of_another_target(small, generated):
    setting = small.settings()[1]
    own, shuffled, mean = (
        small.outputs(generated, setting, condition).query
        for condition in ("own", "shuffled", "mean")
    )
    assert (own - shuffled).abs().max() > 0.01 and (own - mean).abs().max() > 0.01
    rolled = small.targets.shots(2)
    rolled = Support(*(its.roll(5, 0) for its in rolled))
    read = generated.read(small.targets.source.map(lambda its: its.roll(5, 0)), rolled)
    by_hand = generated.predict(small.targets.source, rolled, small.targets.query.x, 0, read)
    torch.testing.assert_close(shuffled, by_hand)


def test_sources_and_targets_that_do_not_fit_are_refused(small, generated):
    source, known = small.targets.source, small.targets.shots(1)
    with pytest.raises(ShapeError, match=r"reads 64 inputs .* target has 32 inputs"):
        generated.read(source, known._replace(x=known.x[:, :, :32]))
    with pytest.raises(ShapeError, match=r"label 10, and its source knows 10 labels, from 0 to 9"):
        generated.read(source, known._replace(y=known.y + 1))
    empty = known._replace(mask=torch.zeros_like(known.mask))
    with pytest.raises(DataError, match=r"Targets \[0, 1, 2, 3\] of 4 have no labelled example"):
        generated.adapt(source, empty, 0)


def test_a_run_trains_judges_checks_and_ranks(small, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "SHOTS", (1, 2))
    monkeypatch.setattr(zoo, "STEPS", (1,))
    monkeypatch.setattr(zoo, "STEPS_SHOTS", 2)
    monkeypatch.setattr(zoo, "train_zoo", lambda digits, count, seed: small.zoos["train"])
    methods = "source generated-reconstruction shared shared-finetune maml finetune lora"
    config = TransferConfig(
        data="zoo", comparators=tuple(methods.split()), steps=2, tasks=4, test_targets=4
    )
    record = run(Transfer(), config, tmp_path / "run", quiet=True)
    rows = {
        (row["method"], row["setting"]): row
        for row in record["scores"]
        if row.get("role") != "untrained"
    }
    titles = {"1-shot", "2-shot", "2-shot, 1 step"}
    assert {title for _, title in rows} == titles
    for title in titles:
        assert ("generated, shuffled condition", title) in rows
        assert (("checked", title) in rows) == (title != "1-shot")
    assert rows["finetune", "2-shot"]["per_context"] == rows["source", "2-shot"]["per_context"]
    facts = record["facts"]
    assert set(facts["rank_correlation"]) == {"leep", "logme", "closeness"}
    assert all(-1 <= tau <= 1 for tau in facts["rank_correlation"].values())
    by_family = facts["by_family"]["2-shot"]["source"]
    mean = sum(its["accuracy"] for its in by_family.values()) / 4
    per_target = rows["source", "2-shot"]["per_context"]
    assert mean == pytest.approx(sum(per_target) / 4, abs=1e-6)
