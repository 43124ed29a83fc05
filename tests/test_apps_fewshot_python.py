"""Few-shot learning from Python and on tasks of one's own: train, adapt, predict, save, compare."""

import json
import sys
import wave

import numpy as np
import pytest
import torch
from torch import nn

from weightloom import SinusoidTasks, Tasks, TaskSource, mlp
from weightloom.apps import fewshot
from weightloom.apps.app import Adapted
from weightloom.apps.fewshot.app import FewShot
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.inputs import Numbers, Pictures, Sentences, Sounds, Targets, inputs_of
from weightloom.apps.fewshot.judge import draw_test_tasks
from weightloom.apps.fewshot.problems import problem_of
from weightloom.apps.fewshot.problems.own import OwnTasks
from weightloom.cli import main
from weightloom.errors import ConfigError, DataError
from weightloom.learners.maml import MAML
from weightloom.learners.polynomial import RidgePolynomial
from weightloom.tasks.folder import load_folder
from weightloom.tasks.spoken import spectrograms

FEW = {"steps": 2, "tasks": 2, "evaluate_every": 1000, "quiet": True}


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return fewshot.train("digits", **FEW)


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """Six kinds of birds, which differ by their tint."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    root, rng = tmp_path_factory.mktemp("birds"), np.random.default_rng(0)
    for kind in range(6):
        (root / f"kind{kind}").mkdir()
        for number in range(5):
            tint = np.array([40 * kind, 200 - 30 * kind, 90]) + rng.integers(
                0, 9, (36 + number, 50, 3)
            )
            image.fromarray(tint.astype(np.uint8)).save(root / f"kind{kind}" / f"{number}.png")
    return root


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's own, found from where it is typed."""
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("mine", None)


MINE = '''
import torch
from torch import nn
from weightloom import Tasks, TaskSource


class Lines(TaskSource):
    def sample(self, tasks, generator):
        x = torch.randn(tasks, 15, 1, generator=generator)
        slope = torch.randn(tasks, 1, 1, generator=generator)
        y, mask = slope * x, torch.ones(tasks, 5, dtype=torch.bool)
        return Tasks.of(x[:, :5], y[:, :5], x[:, 5:], y[:, 5:], support_mask=mask)


class Blobs(TaskSource):
    """Labels in turn: 0, 1, 2, 0, 1, 2, ..."""

    def __init__(self, ways=3, shots=2, queries=4, part="train"):
        self.ways, self.counts = ways, (shots, queries)
        self.far = {"train": 0.0, "validation": 100.0, "test": 200.0}[part]

    def sample(self, tasks, generator):
        centres = 3 * torch.randn(tasks, self.ways, 6, generator=generator) + self.far
        sides = []
        for count in self.counts:
            y = torch.arange(self.ways).repeat(count).expand(tasks, -1)
            x = centres.gather(1, y[..., None].expand(-1, -1, 6))
            sides += [x + torch.randn(x.shape, generator=generator), y]
        x, y, query_x, query_y = sides
        return Tasks.of(x, y, query_x, query_y)


class Told(Blobs):
    """Tasks of nine training classes that have numbers."""

    def sample(self, tasks, generator):
        drawn = super().sample(tasks, generator)
        classes = torch.rand(tasks, 9, generator=generator).argsort(1)[:, : self.ways]
        return drawn._replace(classes=classes)


class Mistold(Blobs):
    def sample(self, tasks, generator):
        return super().sample(tasks, generator)._replace(classes=torch.zeros(tasks, 2))


class Broken(Lines):
    def sample(self, tasks, generator):
        drawn = super().sample(tasks, generator)
        return drawn._replace(support=drawn.support._replace(y=drawn.support_y[:, :4]))


def net(outputs):
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, outputs))


def small(outputs):
    return nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, outputs))


def no_head(outputs):
    return nn.Sequential(nn.Linear(6, outputs), nn.Tanh())


def fixed(outputs):
    return nn.Linear(6, 4)
'''


def test_a_task_given_by_hand_is_answered_as_the_same_task_in_judging(digits):
    tasks = draw_test_tasks(digits.problem, shots=5, tasks=1)
    support = (tasks.support_x[0], [f"class {label}" for label in tasks.support_y[0].tolist()])
    adapted = digits.adapt(support)
    with torch.no_grad():
        expected = digits.learner.eval().answer(tasks)[0].softmax(1).double()
    sure = adapted.predict_proba(tasks.query_x[0])
    torch.testing.assert_close(torch.from_numpy(sure), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sure.sum(1), 1)
    assert adapted.classes == ("class 0", "class 1", "class 2")
    assert adapted.predict(tasks.query_x[0]) == [
        adapted.classes[column] for column in sure.argmax(1)
    ]
    assert isinstance(adapted, Adapted)


def test_whole_numbers_are_scaled_as_in_training_and_a_class_may_have_any_number_of_examples(
    digits,
):
    pool = digits.problem.held_out
    given = {
        name: pool.examples[row, : 2 + row].numpy() for row, name in enumerate(pool.names)
    }  # uint8, 0 to 255
    adapted = digits.adapt({name: given[name] for name in ("2", "0")})
    assert adapted.classes == ("2", "0")
    fractions = {
        name: [each / 255 for each in given[name].astype(np.float32)] for name in ("2", "0")
    }
    again = digits.adapt(fractions)
    np.testing.assert_allclose(
        adapted.predict_proba(given["1"]), again.predict_proba(given["1"]), atol=1e-6
    )


def test_a_picture_file_is_read_as_in_training(birds):
    trained = load_folder(birds, fewest=1).pool
    encoded = Pictures(3, 32).encode(
        [str(birds / "kind2" / f"{number}.png") for number in range(5)]
    )
    assert torch.equal(encoded, trained.examples[2, :5].float() / 255)


def test_a_folder_is_learned_from_and_the_saved_network_answers_without_the_run_and_without_this_library(
    birds, tmp_path
):
    image = pytest.importorskip("PIL.Image")
    learner = fewshot.train(
        birds,
        ways=2,
        train_ways=2,
        shots=1,
        queries=2,
        backbone="none",
        run=tmp_path / "run",
        **FEW,
    )
    adapted = learner.adapt({"jay": [birds / "kind0" / "0.png"], "magpie": birds / "kind4"})
    new = [str(birds / "kind4" / "1.png"), str(birds / "kind0" / "2.png")]
    assert adapted.predict(new) == ["magpie", "jay"]  # by their tint
    facts = adapted.save(tmp_path / "net")
    assert facts == json.loads((tmp_path / "net" / "network.json").read_text())
    assert facts["classes"] == ["jay", "magpie"]
    assert (
        "largest square in the middle, scale to 32x32 pixels (bicubic)"
        in facts["inputs"]["in_words"]
    )

    loaded = fewshot.load_adapted(tmp_path / "net")
    np.testing.assert_allclose(loaded.predict_proba(new), adapted.predict_proba(new), atol=1e-5)
    loaded.save(tmp_path / "copy")
    assert fewshot.load_adapted(tmp_path / "copy").predict(new[0]) == ["magpie"]
    again = fewshot.load(tmp_path / "run").adapt(
        {"jay": [birds / "kind0" / "0.png"], "magpie": birds / "kind4"}
    )
    np.testing.assert_allclose(again.predict_proba(new), adapted.predict_proba(new), atol=1e-5)

    opened = image.open(new[0]).convert("RGB")  # by hand, as the words say: 50 wide, 37 high
    square = opened.crop((6, 0, 6 + 37, 37)).resize((32, 32), image.Resampling.BICUBIC)
    x = torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)[None].float() / 255
    logits = torch.export.load(tmp_path / "net" / "network.pt2").module()(x)
    np.testing.assert_allclose(logits.softmax(1).numpy(), adapted.predict_proba(new[:1]), atol=1e-5)

    with pytest.raises(ConfigError, match="holds a network already"):
        adapted.save(tmp_path / "net")
    with pytest.raises(DataError, match="holds no adapted network"):
        fewshot.load_adapted(tmp_path / "run")


@pytest.mark.parametrize(
    ("support", "error", "words"),
    [
        ({"a": ["nowhere.png"], "b": []}, DataError, "class `b` is empty"),
        (
            {"a": ["nowhere.png"], "b": ["x.png"]},
            DataError,
            "`nowhere.png` cannot be read as a picture .it is not",
        ),
        (
            {"a": ["notes.png"], "b": ["notes.png"]},
            DataError,
            "`notes.png` cannot be read as a picture",
        ),
        ({"a": [np.zeros((3, 8, 8), "uint8")], "b": []}, DataError, "class `b` is empty"),
        (
            ([np.zeros((3, 8, 8), "uint8")] * 2, [0, 1]),
            DataError,
            "This model takes pictures of 1 channels",
        ),
        (([np.full((1, 8, 8), np.nan)] * 2, [0, 1]), DataError, "NaN"),
        (([np.full((1, 8, 8), 2.0)] * 2, [0, 1]), DataError, "numbers from 2 to 2"),
        (([np.zeros((1, 9, 9))] * 2, [0, 1]), DataError, "This model takes"),
        ((np.zeros((2, 1, 8, 8)), [0, 0]), DataError, "1 classes"),
        ((np.zeros((2, 1, 8, 8)), [0]), DataError, "2 inputs and 1 targets"),
        (3, DataError, "cannot be a int"),
        ("nowhere", DataError, "`nowhere` cannot be read .No such file"),
    ],
)
def test_a_support_set_that_does_not_fit_is_refused(
    digits, tmp_path, monkeypatch, support, error, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.png").write_text("not a picture")
    with pytest.raises(error, match=words):
        digits.adapt(support)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"support_x": np.zeros((2, 1, 9, 9)), "support_y": np.zeros(2)}, "This model takes"),
        ({"support_x": np.full((2, 1, 8, 8), np.nan), "support_y": np.zeros(2)}, "NaN"),
        ({"wrong": np.zeros(2)}, "support_x"),
        ({"support_x": np.array([{}], dtype=object), "support_y": np.zeros(1)}, "without pickles"),
    ],
)
def test_arrays_in_a_file_that_do_not_fit_are_refused(digits, tmp_path, arrays, words):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DataError, match=words):
        digits.adapt(tmp_path / "bad.npz")


def test_arrays_in_a_file_are_a_support_set(digits, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "mine.npz", support_x=rng.random((4, 1, 8, 8)), support_y=np.array([7, 7, 1, 1])
    )
    adapted = digits.adapt(tmp_path / "mine.npz")
    assert adapted.classes == (7, 1) and adapted.save(tmp_path / "net")["output"] == ["batch", 2]


def test_a_method_whose_head_has_fixed_rows_says_so():
    pytest.importorskip("sklearn")
    maml = fewshot.train("digits", method="maml", **FEW)
    with pytest.raises(ConfigError, match="has 2 classes, but the head of this method has 3 rows"):
        maml.adapt((np.zeros((2, 1, 8, 8)), ["a", "b"]))


def test_a_method_that_is_more_than_a_network_predicts_but_is_not_saved(tmp_path):
    pytest.importorskip("sklearn")
    probe = fewshot.train("digits", method="probe", **FEW)
    tasks = draw_test_tasks(probe.problem, shots=5, tasks=1)
    adapted = probe.adapt((tasks.support_x[0], tasks.support_y[0]))
    torch.manual_seed(0)
    with torch.no_grad():
        expected = probe.learner.eval().answer(tasks)[0].argmax(1).tolist()
    assert adapted.predict(tasks.query_x[0]) == expected
    with pytest.raises(ConfigError, match="LinearProbe predicts with more than a network"):
        adapted.save(tmp_path / "net")
    assert not (tmp_path / "net").exists()


def table(path, unit=1.0, zero=0.0):
    rng = np.random.default_rng(0)
    lines = ["task,age,dose,y"]
    for task in range(10):
        slope = rng.normal()
        for age, dose in rng.normal(size=(8, 2)):
            lines.append(f"p{task},{30 + 5 * age},{dose},{zero + unit * (slope * age + dose)}")
    path.write_text("\n".join(lines))


def test_a_regression_answers_in_the_unit_of_the_table_and_reads_columns_by_name(tmp_path):
    """Another unit and zero of the target change the answers in the same way."""
    table(tmp_path / "one.csv")
    table(tmp_path / "other.csv", unit=1000.0, zero=5.0)
    points = [(31.0, 1.0, 2.0), (28.0, 0.0, 1.0), (35.0, -1.0, 0.5)]
    answers = []
    for name, unit, zero in (("one", 1.0, 0.0), ("other", 1000.0, 5.0)):
        learner = fewshot.train(tmp_path / f"{name}.csv", method="ridge", quiet=True)
        rows = [f"{dose},{zero + unit * y},{age}" for age, dose, y in points]
        (tmp_path / "mine.csv").write_text("\n".join(["dose,y,age", *rows]))
        adapted = learner.adapt(tmp_path / "mine.csv")
        answers.append(adapted.predict([[30.0, 0.5], [33.0, -0.5]]))
        assert adapted.predict_rows(["30.0,0.5"])[0] == pytest.approx(
            {"age": 30.0, "dose": 0.5, "y": answers[-1][0]}
        )
        saved = adapted.save(tmp_path / name)
        assert saved["answers"] == "Multiply by `std`, then add `mean`."
        again = fewshot.load_adapted(tmp_path / name).predict([[30.0, 0.5], [33.0, -0.5]])
        np.testing.assert_allclose(again, answers[-1], rtol=1e-5)
    np.testing.assert_allclose(answers[1], 1000 * answers[0] + 5, rtol=1e-3)
    with pytest.raises(ConfigError, match="Call `predict`"):
        adapted.predict_proba([[30.0, 0.5]])
    with pytest.raises(DataError, match="has 1 numbers"):
        adapted.predict([[30.0]])
    (tmp_path / "bad.csv").write_text("age,dose,y\n1,2,3\n1,nan,3\n")
    with pytest.raises(DataError, match=r"line 3 of .*bad.csv` holds 'nan'"):
        learner.adapt(tmp_path / "bad.csv")


def test_targets_that_are_counted_from_their_own_mean_come_back_to_it():
    targets = Targets(("y",), centred=True).of_task([4.0, 6.0])
    assert targets.encode([4.0, 6.0]).tolist() == [[-1.0], [1.0]]
    assert targets.decode(torch.tensor([[0.5]])).tolist() == [[5.5]]


@pytest.mark.parametrize(
    "inputs", [Pictures(1, 28), Sounds(), Sentences(), Numbers(("a", "b"), (0.0, 1.0), (1.0, 2.0))]
)
def test_preprocessing_is_the_same_again_after_json(inputs):
    assert inputs_of(json.loads(json.dumps(inputs.facts()))) == inputs


def test_a_sound_may_be_a_file_or_its_samples(tmp_path):
    samples = (8000 * np.sin(np.arange(4000) / 3)).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(samples.tobytes())
    signal = torch.from_numpy(samples / 32768).float()
    encoded = Sounds().encode([tmp_path / "a.wav", signal])
    assert torch.equal(encoded[0], encoded[1])
    assert torch.equal(encoded[0], spectrograms(signal[None])[0].float() / 255)
    with pytest.raises(DataError, match="Divide samples of 16 bits"):
        Sounds().encode([samples])
    with pytest.raises(DataError, match="holds 1 samples, not all from -1 to 1"):
        Sounds().encode([3.0])


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(DataError, match=r"has the shape \(1, 0, 8\)"):
        Pictures(1, 8).encode([np.zeros((1, 0, 8), np.uint8)])


def test_texts_that_are_none_are_refused():
    with pytest.raises(DataError, match="takes texts"):
        Sentences().encode(["  "])


def test_digits_are_digits_for_every_camera():
    pytest.importorskip("sklearn")
    learner = fewshot.train("cameras", method="shared", **FEW)
    rows = np.random.default_rng(0).normal(size=(6, 64))
    adapted = learner.adapt({"7": rows[:3], 2: rows[3:]})
    assert adapted.classes == tuple("0123456789") and adapted.predict_proba(rows).shape == (6, 10)
    with pytest.raises(DataError, match="`jay` is no digit"):
        learner.adapt({"jay": rows[:3], "2": rows[3:]})


def test_the_command_adapts_a_run_prints_answers_and_writes(birds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = [
        "--ways",
        "2",
        "--train-ways",
        "2",
        "--shots",
        "1",
        "--queries",
        "2",
        "--steps",
        "2",
        "--test-tasks",
        "2",
    ]
    small += ["--backbone", "none", "--comparators", "--quiet"]
    main(["fewshot", "--data", str(birds), *small, "--run", "run"])
    new = str(birds / "kind1" / "3.png")
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "300")
    main(["adapt", "run", str(birds), "--predict", new, str(birds / "kind5"), "--out", "net"])
    said = capsys.readouterr().out
    assert "30 examples of 6 classes: kind0" in said and "written: net" in said
    rows = [line.split() for line in said.splitlines() if ".png" in line]
    assert (
        len(rows) == 6
        and rows[0][:2] == [new, "kind1"]
        and {row[1] for row in rows[1:]} == {"kind5"}
    )
    assert fewshot.load_adapted(tmp_path / "net").predict(new) == ["kind1"]


def test_a_table_of_labelled_paths_is_a_support_set(birds, tmp_path):
    learner = fewshot.train(
        birds,
        ways=2,
        train_ways=2,
        shots=1,
        queries=2,
        method="centroid",
        backbone="none",
        quiet=True,
    )
    rows = [
        {"path": str(birds / f"kind{kind}" / "0.png"), "label": f"bird {kind}"} for kind in (0, 5)
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert learner.adapt(tmp_path / "mine.jsonl").predict(birds / "kind5") == ["bird 5"] * 5
    (tmp_path / "bad.jsonl").write_text('{"file": "a.png", "label": "b"}')
    with pytest.raises(DataError, match=r"line 1 of .* has no column `path` but `file`"):
        learner.adapt(tmp_path / "bad.jsonl")


def test_an_unknown_option_is_refused():
    with pytest.raises(ConfigError, match=r"step.*unknown"):
        fewshot.train("sinusoid", step=3)


def test_a_source_of_ones_own_is_learned_judged_and_adapted(mine):
    main(
        [
            "fewshot",
            "--data",
            "mine:Lines",
            "--run",
            "run",
            "--steps",
            "4",
            "--test-tasks",
            "6",
            "--quiet",
            "--comparators",
        ]
    )
    record = json.loads((mine / "run" / "record.json").read_text())
    assert {(row["method"], row["setting"]) for row in record["scores"]} >= {
        ("hypernetwork", "5-shot")
    }
    assert "`mine:Lines` has no argument `part`" in record["notes"]
    ridge = fewshot.train("mine:Lines", method="ridge", quiet=True)
    x = torch.linspace(-2, 2, 40)
    assert ridge.adapt((x, 3 * x)).predict([1.0]) == pytest.approx(
        [3.0], rel=0.05
    )  # forty points, little shrinking


def test_a_source_that_takes_part_and_ways_is_asked_for_them(mine):
    learner = fewshot.train(
        "mine:Blobs", method="centroid", ways=(4, 2), shots=(3,), queries=2, quiet=True
    )
    generator = torch.Generator().manual_seed(0)
    tasks = learner.problem.test_source(3, 4).sample(2, generator)
    assert (
        tasks.support_x.shape == (2, 12, 6) and tasks.support_x.mean() > 150
    )  # the part to be judged on is far away
    assert learner.problem.train_source().sample(2, generator).support_x.mean() < 50
    assert learner.problem.settings() == [(4, 3), (2, 3)]


def test_parts_without_a_name_are_other_tasks_of_the_same_source():
    source, first = SinusoidTasks(5), torch.Generator().manual_seed(0)
    drawn = [
        OwnTasks(source, "mine", salt).sample(3, torch.Generator().manual_seed(0)).support_y
        for salt in range(3)
    ]
    assert torch.equal(drawn[0], source.sample(3, first).support_y)
    assert not any(torch.equal(drawn[a], drawn[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


class Odd(TaskSource):
    """Queries of a class that no support example has."""

    def sample(self, tasks, generator):
        y = torch.tensor([0, 0, 1]).expand(tasks, -1)
        x = torch.randn(tasks, 3, 2, generator=generator)
        return Tasks.of(x, y, x, y + 1)


class Queryless(TaskSource):
    def sample(self, tasks, generator):
        y = torch.tensor([0, 0, 1]).expand(tasks, -1)
        x = torch.randn(tasks, 3, 2, generator=generator)
        return Tasks.of(x, y, x[:, :0], y[:, :0])


def test_sources_that_do_not_fit_are_refused_with_their_shapes(mine):
    with pytest.raises(
        DataError, match=r"`mine:Broken` drew tasks whose shapes do not fit: .*\(2, 4, 1\)"
    ):
        problem_of(FewShotConfig("mine:Broken").resolved())
    with pytest.raises(DataError, match="from 0 to 1 in support, up to 2 in query"):
        OwnTasks(Odd(), "odd").sample(2, torch.Generator())
    with pytest.raises(DataError, match="tasks have examples in support and in query"):
        OwnTasks(Queryless(), "queryless").sample(2, torch.Generator())
    with pytest.raises(ConfigError, match="`mine:small` could not be called"):
        problem_of(FewShotConfig("mine:small").resolved())
    with pytest.raises(ConfigError, match="`mine:Nothing` cannot be imported"):
        problem_of(FewShotConfig("mine:Nothing").resolved())
    with pytest.raises(ConfigError, match="Leave `--split` out"):
        problem_of(FewShotConfig("mine:Lines", split=1).resolved())


@pytest.mark.parametrize(
    "method", ["hypernetwork", "maml", "anil", "protonet", "hyper-lowrank", "scratch"]
)
def test_a_base_of_ones_own_is_what_every_method_adapts(mine, method):
    learner = fewshot.train("mine:Blobs", base="mine:net", method=method, ways=3, **FEW)
    adapted = learner.adapt((np.random.default_rng(0).normal(size=(6, 6)), ["a", "b", "c"] * 2))
    values = adapted.save(mine / "net")["parameters"].values()
    assert sorted(map(tuple, values)) == sorted(
        [(16, 6), (16,), (3, 16), (3,)]
    )  # nothing but the network that was given


@pytest.mark.parametrize(
    ("data", "base", "method", "words"),
    [
        (
            "mine:Blobs",
            "mine:fixed",
            "maml",
            r"`--base mine:fixed` answered \(2, 6\) of `--data mine:Blobs` with \(2, 4\)",
        ),
        ("mine:Blobs", "mine:small", "maml", "`--base mine:small` failed with `--data mine:Blobs`"),
        ("mine:Blobs", "mine:no_head", "anil", "does not end in a linear layer"),
        (
            "mine:Blobs",
            "mine:net",
            "film",
            "`film` does not go with `--data mine:Blobs --base mine:net`",
        ),
        ("cameras", "mine:net", "hypernetwork", "Leave `--base` out"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(mine, data, base, method, words):
    with pytest.raises(ConfigError, match=words):
        fewshot.train(data, base=base, method=method, quiet=True)


def test_a_base_of_ones_own_goes_with_data_of_the_library(mine):
    learner = fewshot.train("sinusoid", base="mine:small", method="hypernetwork", **FEW)
    assert [tuple(p.shape) for p in learner.learner.base.parameters()] == [
        (16, 1),
        (16,),
        (1, 16),
        (1,),
    ]


@pytest.mark.parametrize("base", ["mine:net", "mine:no_head", None])
def test_features_of_unit_length_go_with_any_base_and_source(mine, base):
    learner = fewshot.train("mine:Blobs", base=base, method="protonet-unit", ways=3, **FEW)
    x, y = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32), ["a", "b", "c"] * 2
    features = learner.learner.features(torch.from_numpy(x)[None])
    torch.testing.assert_close(features.square().mean(2), torch.ones(1, 6))
    learner.adapt((x, y)).save(mine / "net")
    expected = learner.adapt((x, y)).predict_proba(x)
    assert np.allclose(fewshot.load_adapted(mine / "net").predict_proba(x), expected, atol=1e-5)


def test_a_probe_learns_the_classes_that_a_source_of_ones_own_tells(mine):
    problem = fewshot.train("mine:Told", method="probe", ways=3, **FEW).problem
    assert 9 <= problem.train_classes() == 18
    drawn = problem.test_source(2).sample(2, torch.Generator().manual_seed(0))
    assert drawn.classes.tolist() == [[0, 1, 2]] * 2  # the report has names for no more
    with pytest.raises(ConfigError, match=r"`mine:Blobs` does not say.*Set `classes`"):
        fewshot.train("mine:Blobs", method="probe", ways=3, quiet=True)
    with pytest.raises(DataError, match=r"`mine:Mistold` drew `Tasks.classes` of shape \(2, 2\)"):
        fewshot.train("mine:Mistold", method="maml", ways=3, quiet=True)


def test_learners_are_compared_on_the_same_tasks_and_are_left_as_they_were(tmp_path):
    given = MAML(mlp([1, 8, 1]), inner_steps=2)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    learners = {"one": given, "twin": given, "line": RidgePolynomial(1, 1, degree=1)}
    options = {"steps": 4, "tasks": 2, "test_tasks": 8, "outer_lr": 0.05}
    compared = fewshot.compare(learners, SinusoidTasks(5), SinusoidTasks(5), **options)
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())
    rows = {(row["method"], row.get("role", "method")): row for row in compared.rows}
    assert set(rows) == {
        *((name, "method") for name in learners),
        *((name, "untrained") for name in ("one", "twin")),
        ("shuffled", "control"),
    }
    assert (
        rows["one", "method"]["mean"]
        == rows["twin", "method"]["mean"]
        != rows["one", "untrained"]["mean"]
    )
    assert all(
        row["ci95"] > 0 and row["tasks"] == 8 and row["setting"] == "5-shot"
        for row in compared.rows
    )
    trained = compared.learners["one"].state_dict()
    assert any(not torch.equal(before[name], value) for name, value in trained.items())
    assert "one (untrained)" in str(compared) and "8 tasks never seen" in str(compared)
    page = compared.report(tmp_path / "report")
    assert "<html" in page.read_text()[:500].lower()
    record = json.loads((tmp_path / "report" / "record.json").read_text())
    assert [row["mean"] for row in record["scores"]] == [row["mean"] for row in compared.rows]


def test_a_comparison_that_is_kept_is_a_run(tmp_path):
    learners = {"line": RidgePolynomial(1, 1, degree=1)}
    fewshot.compare(
        learners, SinusoidTasks(5), SinusoidTasks(5), run=tmp_path / "run", test_tasks=4
    )
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        "run.json",
        "config.json",
        "record.json",
        "report.html",
    }
    main(["report", str(tmp_path / "run"), "--app", "weightloom.apps.fewshot.comparison:Compared"])
    with pytest.raises(ConfigError, match="not empty"):
        fewshot.compare(
            learners, SinusoidTasks(5), SinusoidTasks(5), run=tmp_path / "run", test_tasks=4
        )


def test_what_cannot_be_compared_is_refused(unchecked):
    with pytest.raises(ConfigError, match="no learners"):
        fewshot.compare({}, SinusoidTasks(5), SinusoidTasks(5))
    with pytest.raises(ConfigError, match="`net` is a Linear"):
        fewshot.compare({"net": nn.Linear(1, 1)}, SinusoidTasks(5), SinusoidTasks(5))


def test_adapting_is_a_part_of_the_application(digits):
    adapted = FewShot().adapt
    with pytest.raises(DataError, match=r"nowhere\.npz"):
        adapted(digits.learner, digits.problem, digits.config, "nowhere.npz")


def test_importing_the_names_costs_no_torch():
    import subprocess

    code = "import sys; from weightloom.apps import fewshot; print('torch' in sys.modules, fewshot.__all__)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("False")
    with pytest.raises(AttributeError, match="no attribute 'fit'"):
        fewshot.fit  # noqa: B018
