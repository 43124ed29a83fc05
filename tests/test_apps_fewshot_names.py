"""Names of classes as one more support example, from the pool to the command line and one's own dict."""

import gzip
import json
import re

import pytest
import torch

from weightloom.apps import fewshot
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.judge import draw_test_tasks
from weightloom.apps.fewshot.problems import problem_of
from weightloom.apps.fewshot.show import classes
from weightloom.cli import main
from weightloom.errors import ConfigError, DataError
from weightloom.tasks import text

SUBJECTS = ("card", "transfer", "refund", "phone", "visa", "flight")
SMALL = {"ways": (3,), "shots": (1,), "queries": 2, "train_ways": 3, "test_tasks": 8}
FEW = {"steps": 2, "tasks": 2, "evaluate_every": 1000, **SMALL}


def of_words(texts):
    """Encode a text as the number of times that each of 384 buckets of words occurs, of unit length."""
    features = torch.zeros(len(texts), 384)
    for row, words in zip(features, texts, strict=True):
        for word in re.findall(r"\w+", words.lower()):
            row[sum(map(ord, word)) % 384] += 1
    return torch.nn.functional.normalize(features, dim=1)


def table(label, domain):
    """Five sentences of each intent, in which its subject is one word of several."""
    rows = [f"split,{'domain,' if domain else ''}{label},text"]
    for number, subject in enumerate(SUBJECTS):
        for turn in range(5):
            said = f"my {subject} is {'abcde'[turn]} {number * turn} please"
            rows.append(f"train,{f'd{number % 2},' if domain else ''}lost_{subject},{said}")
    return "\n".join(rows)


@pytest.fixture
def intents(tmp_path, monkeypatch):
    """Two small sets of intents, and an encoder that counts words."""
    for name, label, domain in (("clinc150", "intent", True), ("banking77", "category", False)):
        (tmp_path / "data" / name).mkdir(parents=True)
        path = tmp_path / "data" / name / f"{name}.csv.gz"
        path.write_bytes(gzip.compress(table(label, domain).encode()))
    monkeypatch.setenv("WEIGHTLOOM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(text, "_encoded", of_words)
    return tmp_path


def given(names="support"):
    return problem_of(FewShotConfig("intents", names=names, **SMALL).resolved())


def test_every_part_of_a_problem_draws_names_and_the_same_examples_without_them(intents):
    named, plain = given(), given("none")
    for source, other, pool in (
        (named.train_source(), plain.train_source(), named.train),
        (named.validation_source(1), plain.validation_source(1), named.validation),
        (named.test_source(1), plain.test_source(1), named.held_out),
    ):
        tasks, without = (
            its.sample(4, torch.Generator().manual_seed(0)) for its in (source, other)
        )
        support, queries = tasks.support_x.unflatten(1, (3, 2)), tasks.query_x
        assert torch.equal(support[:, :, 0], without.support_x) and tasks.support_mask.all()
        assert torch.equal(queries, without.query_x) and without.support_x.shape[1] == 3
        words = [[name.replace("_", " ") for name in row] for row in tasks.names(pool.names)]
        expected = torch.stack([of_words(row) for row in words])
        torch.testing.assert_close(support[:, :, 1], expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("method", ["centroid", "protonet", "probe", "hypernetwork"])
def test_every_method_reads_names_alike_and_is_better_with_them(intents, method):
    """A sentence shares one word of seven with its class, a name one of two."""
    scores = []
    for problem in (given(), given("none")):
        torch.manual_seed(0)
        learner, tasks = problem.learner(method).eval(), draw_test_tasks(problem, 1, 40)
        with torch.no_grad():
            right = learner.answer(tasks).argmax(2) == tasks.query_y
        scores.append(right.float().mean())
    assert scores[0] > scores[1]


def test_a_dict_adapts_as_if_the_names_were_written_into_it(intents):
    learner = fewshot.train("intents", **FEW, quiet=True)
    support = {"lost_card": ["my card is gone"], "stolen phone": ["where is it"]}
    by_hand = {
        "lost_card": [*support["lost_card"], "lost card"],
        "stolen phone": [*support["stolen phone"], "stolen phone"],
    }
    asked = ["phone", "my card"]
    adapted, expected = learner.adapt(support), learner.adapt(by_hand, names=False)
    torch.testing.assert_close(adapted.predict_proba(asked), expected.predict_proba(asked))
    assert adapted.predict(asked) == ["stolen phone", "lost_card"]
    assert adapted.about == (
        "2 examples of 2 classes: lost_card, stolen phone, and the name of each as one more"
    )
    adapted.save(intents / "network")
    again = fewshot.load_adapted(intents / "network")
    torch.testing.assert_close(again.predict_proba(asked), adapted.predict_proba(asked))


def test_a_description_is_read_in_place_of_a_name(intents):
    learner = fewshot.train("intents", **FEW, method="protonet", quiet=True)
    support = {0: ["what is it"], "b": ["where is it"]}
    described = learner.adapt(support, names={0: "a lost card", "b": "a flight"})
    by_hand = {0: ["what is it", "a lost card"], "b": ["where is it", "a flight"]}
    asked = ["card", "flight"]
    expected = learner.adapt(by_hand, names=False)
    torch.testing.assert_close(described.predict_proba(asked), expected.predict_proba(asked))
    assert described.predict(asked) == [0, "b"]


@pytest.mark.parametrize("support", [{0: ["a"], 1: ["b"]}, {"lost card": ["a"], "B": ["b"]}])
def test_numbers_and_letters_are_no_names(intents, support):
    learner = fewshot.train("intents", **FEW, method="protonet", quiet=True)
    adapted, without = learner.adapt(support), learner.adapt(support, names=False)
    assert (adapted.predict_proba(["a card"]) == without.predict_proba(["a card"])).all()
    assert "name" not in adapted.about


def test_a_run_without_names_adapts_without_them_unless_asked(intents):
    learner = fewshot.train("intents", **FEW, method="protonet", names="none", quiet=True)
    support = {"lost card": ["it"], "flight": ["that"]}
    assert "name" not in learner.adapt(support).about
    assert "name" in learner.adapt(support, names=True).about


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        ({"car": "a machine"}, ConfigError, "describes 'car', which is no class.*`card`"),
        ({"card": " "}, DataError, "the name of `card`` is ' '.*takes texts"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(intents, names, error, words):
    learner = fewshot.train("intents", **FEW, method="protonet", quiet=True)
    with pytest.raises(error, match=words):
        learner.adapt({"card": ["it"], "flight": ["that"]}, names=names)


def test_names_without_an_encoder_are_refused():
    pytest.importorskip("sklearn")
    with pytest.raises(ConfigError, match=r"`--names` with `--data digits` has no effect"):
        FewShotConfig("digits", names="support")
    learner = fewshot.train("digits", method="centroid", quiet=True)
    picture = torch.zeros(1, 8, 8)
    support = {"zero": [picture], "one": [picture + 1]}
    assert "name" not in learner.adapt(support).about
    with pytest.raises(ConfigError, match=r"`names=True` but an example is a picture"):
        learner.adapt(support, names=True)


@pytest.mark.parametrize("names", ["support", "none"])
def test_the_command_keeps_the_option_says_it_and_exports(intents, names):
    run = intents / "run"
    words = "fewshot --data intents --ways 3 --shots 2 --queries 2 --train-ways 3 --test-tasks 4"
    words += " --method protonet --comparators centroid"
    main([*words.split(), "--names", names, "--steps", "2", "--run", str(run)])
    record = json.loads((run / "record.json").read_text())
    assert record["config"]["names"] == names
    assert ("reads the name of each class" in record["notes"]) is (names == "support")
    main(["export", str(run), "--task", "1", "--out", str(intents / "one")])
    known = json.loads((intents / "one" / "network.json").read_text())["classes"]
    assert all(name.startswith("lost_") for name in known)


def test_the_report_shows_names_among_the_support_sentences(intents):
    problem = given()
    _, facts = classes.predicted(problem.learner("protonet").eval(), problem, False)
    for names, texts in zip(facts["class_names"], facts["support_texts"], strict=True):
        assert texts[1::2] == [f"the name: {name}" for name in names]
        assert all(said.startswith("my ") for said in texts[::2])


def test_tasks_of_names_are_shared_by_processes_as_one_draws_them(intents):
    source = given().train_source()
    both = source.sample(4, torch.Generator().manual_seed(3))
    half = source.sample(4, torch.Generator().manual_seed(3), share=slice(1, None, 2))
    assert torch.equal(both.take(slice(1, None, 2)).support_x, half.support_x)
    assert draw_test_tasks(given(), 1, 2).support_x.shape == (2, 6, 384)
