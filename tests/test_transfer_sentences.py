"""Transfer to classes of sentences: a small BERT with random weights stands in for MiniLM."""

import copy
import csv
import gzip
import zlib
from itertools import count

import pytest
import torch
from safetensors.torch import load_file
from torch.func import functional_call
from torch.nn.functional import normalize

from weightloom.apps.app import Training
from weightloom.apps.experiment import run
from weightloom.apps.transfer.app import Transfer
from weightloom.apps.transfer.config import TransferConfig
from weightloom.apps.transfer.problems.sentences import heads as sentence_heads
from weightloom.apps.transfer.problems.sentences import intents as sentences
from weightloom.apps.transfer.problems.sentences import methods as sentence_methods
from weightloom.apps.transfer.problems.sentences import states as sentence_states
from weightloom.apps.transfer.problems.sentences.heads import (
    SCALE,
    fitted_head,
    left_out_loss,
    mean_head,
    mixed_head,
)
from weightloom.apps.transfer.problems.sentences.methods import (
    FineTune,
    GeneratedAdapter,
    GeneratedStep,
    LowRankFineTune,
    Method,
    SharedAdapter,
    SharedFineTune,
)
from weightloom.apps.transfer.problems.sentences.states import States, Tail
from weightloom.apps.transfer.problems.sentences.tasks import Texts, numbered, pool_of
from weightloom.errors import ConfigError, DataError
from weightloom.runs.record import label
from weightloom.training import History, OneProcess

transformers = pytest.importorskip("transformers")

WORDS = ["card", "lost", "rate", "time", "play", "song", "cook", "rice", "fly", "seat", "bill"]


def tokenise(texts, truncation):
    assert not truncation
    rows = [[1, *(2 + zlib.crc32(word.encode()) % 60 for word in its.split())] for its in texts]
    return {"input_ids": rows}


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=300,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
    )
    return transformers.BertModel(config, add_pooling_layer=False).eval().requires_grad_(False)


@pytest.fixture(autouse=True)
def small_model(bert, monkeypatch):
    for module in (sentence_states, sentences):
        monkeypatch.setattr(module, "sentence_model", lambda: (tokenise, bert))
    monkeypatch.setattr(sentence_methods, "processor_knows_bf16", lambda: False)
    monkeypatch.setattr(sentence_heads, "PENALTIES", (0.3,))  # fewer mixtures, for speed
    monkeypatch.setattr(sentence_heads, "SHARES", (0.0, 0.5))
    sentences.loaded.cache_clear()
    yield
    sentences.loaded.cache_clear()


def made_texts(classes, examples=16, domains=4):
    texts = [
        f"{WORDS[c % 11]} {WORDS[(c + e) % 11]} {WORDS[(3 * c + e // 3) % 11]} {c} {e}"
        for c in range(classes)
        for e in range(examples)
    ]
    labels = torch.arange(classes).repeat_interleave(examples)
    names = [f"{WORDS[c % 11]} {c}" for c in range(classes)]
    return Texts(texts, labels, names, torch.arange(classes) % domains)


@pytest.fixture
def drawn(bert):
    texts = made_texts(6)
    states = States([*texts.texts, *texts.names], 1)
    episode = pool_of(texts, 0).draw(4, 3, 2, torch.Generator().manual_seed(0), tasks=2)
    return states, Tail(bert, 1), episode


@pytest.fixture
def data(tmp_path, monkeypatch):
    def write(folder, rows):
        (tmp_path / folder).mkdir()
        with gzip.open(tmp_path / folder / f"{folder}.csv.gz", "wt") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(rows)

    known, asked = made_texts(12), made_texts(5)
    write(
        "clinc150",
        [
            {"split": "train", "domain": f"d{c % 4}", "intent": f"i_{c:02}", "text": text}
            for text, c in zip(known.texts, known.labels.tolist(), strict=True)
        ],
    )
    write(
        "banking77",
        [
            {"split": "train", "category": f"b_{c}", "text": f"{text} bank"}
            for text, c in zip(asked.texts, asked.labels.tolist(), strict=True)
        ],
    )
    messages = [("ham" if n % 2 else "spam", f"{WORDS[n % 11]} {n}") for n in range(240)]
    write("sms_spam", [{"label": label, "text": text} for label, text in messages])
    monkeypatch.setenv("WEIGHTLOOM_DATA", str(tmp_path))
    return tmp_path


def problem(**options):
    return sentences.SentenceProblem(TransferConfig(**{"data": "intents", **options}).resolved())


# States and features


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_lower_states_and_last_layers_give_the_features_of_the_whole_model(bert, layers):
    texts = ["card lost", "play a song", "fly", "cook rice for two people now"]
    states, there = States(texts, layers).read(torch.arange(4))
    for number, ids in enumerate(tokenise(texts, False)["input_ids"]):
        whole = bert(input_ids=torch.tensor([ids])).last_hidden_state[0].mean(0)
        found = Tail(bert, layers)(states, there)[number]
        torch.testing.assert_close(found, normalize(whole, dim=0), atol=3e-3, rtol=0)


def test_a_text_longer_than_the_model_reads_is_refused_and_not_cut():
    States(["word " * 255])
    with pytest.raises(DataError, match=r"Text 1, .* has 257 tokens.*up to 256.*not cut.*split"):
        States(["card", "word " * 256])


def test_more_last_layers_than_the_model_has_are_refused(bert):
    with pytest.raises(ConfigError, match=r"4 last layers.*has 3.*Pass 1 to 3"):
        Tail(bert, 4)


def test_a_label_of_no_class_is_refused_with_the_nearest_name():
    with pytest.raises(DataError, match=r"Text 1 has the label 'spm'.*no class.*spam"):
        numbered(["ham", "spm"], ["ham", "spam"])


# Tasks


def test_a_task_has_examples_and_names_of_its_classes(drawn):
    _, _, episode = drawn
    assert (episode.ways, episode.shots) == (4, 3)
    names, classes = episode.support[:, -4:] - 96, episode.support[:, :-4] // 16
    assert torch.equal(classes, names.repeat_interleave(3, 1))
    assert torch.equal(episode.query // 16, names.gather(1, episode.query_y))
    assert not set(episode.support[0].tolist()) & set(episode.query[0].tolist())


def test_fewer_shots_are_the_first_examples_of_each_class(drawn):
    _, _, episode = drawn
    fewer = episode.with_shots(1)
    assert torch.equal(fewer.support, episode.support[:, [0, 3, 6, 9, 12, 13, 14, 15]])
    assert fewer.shots == 1
    assert torch.equal(episode.with_shots(0).support, episode.support[:, -4:])


# Heads


def test_the_head_of_means_ranks_classes_by_distance():
    torch.manual_seed(0)
    features, labels = torch.randn(2, 12, 5), torch.arange(12).expand(2, -1) % 3
    query = torch.randn(2, 7, 5)
    means = torch.stack([features[:, c::3].mean(1) for c in range(3)], 1)
    wanted = -torch.cdist(query, means).square()
    found = mean_head(features, labels)(query)
    found, wanted = found - found[..., :1], wanted - wanted[..., :1]
    scale = (found * wanted).sum((1, 2), True) / wanted.square().sum((1, 2), True)
    torch.testing.assert_close(found, scale * wanted, atol=1e-4, rtol=1e-4)  # one scale a task
    alone = mean_head(features[:, :3], labels[:, :3])(query)
    wanted = -SCALE * torch.cdist(query, features[:, :3]).square()
    torch.testing.assert_close(alone.log_softmax(2), wanted.log_softmax(2), atol=1e-3, rtol=1e-3)


def test_the_mixture_is_not_worse_on_left_out_texts_than_the_means():
    torch.manual_seed(0)
    labels = torch.arange(24).expand(3, -1) % 4
    features = torch.randn(4, 5)[labels] + 0.8 * torch.randn(3, 24, 5)
    losses = [
        torch.nn.functional.cross_entropy(head.left_out.flatten(0, 1), labels.flatten())
        for head in (mixed_head(features, labels), mean_head(features, labels))
    ]
    assert losses[0] < losses[1] - 1e-3


def test_a_fitted_layer_leaves_out_what_it_judges():
    torch.manual_seed(0)
    labels = torch.arange(20)[None] % 2
    features = normalize(torch.randn(1, 20, 64), dim=2)  # nothing tells the classes apart
    head = fitted_head(features, labels)
    assert (head(features).argmax(2) == labels).float().mean() > 0.9
    assert (head.left_out.argmax(2) == labels).float().mean() < 0.8
    apart = normalize(torch.eye(2)[labels] + 0.1 * torch.randn(1, 20, 2), dim=2)
    assert (fitted_head(apart, labels).left_out.argmax(2) == labels).all()


def test_the_left_out_loss_does_not_see_a_text_that_is_alone():
    features, labels = torch.eye(3)[None], torch.tensor([[0, 1, 2]])
    assert left_out_loss(features, labels).item() == 0
    apart = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0, 1]]])
    pairs = torch.tensor([[0, 0, 1, 1]])
    # the distance to the own class is 0, to the other √2
    wanted = torch.log1p(torch.tensor(-SCALE * 2).exp())
    torch.testing.assert_close(left_out_loss(apart, pairs), wanted[None])


# Methods


@pytest.mark.parametrize("kind", [Method, SharedAdapter, SharedFineTune, GeneratedAdapter])
def test_every_method_but_the_gradient_starts_as_the_source(drawn, kind):
    states, tail, episode = drawn
    model = kind(states, tail)
    found = model.features(episode.query, model.adapt(episode))
    for task in range(2):
        wanted = tail(*states.read(episode.query[task]))
        torch.testing.assert_close(found[task], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [SharedAdapter, SharedFineTune, GeneratedAdapter, GeneratedStep])
def test_training_moves_every_method_to_a_lower_loss(drawn, kind):
    states, tail, episode = drawn
    torch.manual_seed(0)
    model = kind(states, tail)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    losses = []
    for _ in range(12):
        loss = model(episode).mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.9 * losses[0]


def test_the_untrained_gradient_is_one_scaled_step_of_the_left_out_loss(drawn):
    states, tail, episode = drawn
    model = GeneratedStep(states, tail, size=1e-2)
    found = model.adapt(episode)
    for task in range(2):
        own = {name: its.clone().requires_grad_() for name, its in tail.named_parameters()}
        features = functional_call(tail, own, states.read(episode.support[task]))
        loss = left_out_loss(features[None], episode.support_y[task][None])
        for name, gradient in zip(own, torch.autograd.grad(loss, [*own.values()]), strict=True):
            if gradient.square().mean().sqrt() < 1e-7:  # no loss depends on a bias of keys
                continue
            wanted = own[name] - 1e-2 * gradient / gradient.square().mean().sqrt()
            torch.testing.assert_close(found[name][task], wanted, atol=1e-4, rtol=1e-3)


def test_factors_scale_rows_and_columns_of_the_gradient(drawn):
    states, tail, episode = drawn
    model = GeneratedStep(states, tail)
    name = "layer.0.output.dense.weight"
    place = [n for n, _ in tail.named_parameters()].index(name)
    before = model.adapt(episode)[name] - tail.get_parameter(name)
    with torch.no_grad():
        model.rows[place][3] = 0.1
        model.columns[place][5] = -0.1
    after = model.adapt(episode)[name] - tail.get_parameter(name)
    wanted = before.clone()
    wanted[:, 3] *= 2
    wanted[:, :, 5] *= 0
    torch.testing.assert_close(after, wanted, atol=1e-6, rtol=1e-4)


def test_names_alone_leave_the_shared_weights(drawn):
    states, tail, episode = drawn
    names = episode.with_shots(0)
    for name, its in GeneratedStep(states, tail).adapt(names).items():
        torch.testing.assert_close(its[0], tail.get_parameter(name))
    assert FineTune(states, tail).fitted(names, None, 5) is None


def test_a_task_alone_is_adapted_as_in_a_batch(drawn):
    states, tail, episode = drawn
    for kind in (GeneratedStep, GeneratedAdapter):
        torch.manual_seed(0)
        model = kind(states, tail)
        if kind is GeneratedAdapter:
            torch.nn.init.normal_(model.hyper.generator.up.weight)
        both = model(episode)
        alone = [model(type(episode)(*(part[[task]] for part in episode)))[0] for task in (0, 1)]
        torch.testing.assert_close(both, torch.stack(alone), atol=1e-4, rtol=1e-4)


def test_fitting_a_low_rank_change_equals_peft(drawn):
    peft = pytest.importorskip("peft")
    states, tail, episode = drawn
    episode = type(episode)(*(part[:1] for part in episode))
    ours = LowRankFineTune(states, tail, rank=2)
    names = [name.removesuffix(".weight") for name in ours.names]
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=names, lora_dropout=0.0)
    theirs = peft.inject_adapter_in_model(config, Method(states, tail).tail)
    with torch.no_grad():
        for name, down in zip(names, ours.downs, strict=True):
            theirs.get_submodule(name).lora_A["default"].weight.copy_(down)
    optimiser = torch.optim.Adam([p for p in theirs.parameters() if p.requires_grad], ours.inner_lr)
    for _ in range(3):
        features = theirs(*states.read(episode.support[0]))
        loss = left_out_loss(features[None], episode.support_y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        found = ours.fitted(episode, None, 3)
        for name in names:
            layer = theirs.get_submodule(name)
            wanted = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            change = found[f"{name}.weight"].dense()[0] - tail.get_parameter(f"{name}.weight")
            torch.testing.assert_close(change, wanted, atol=1e-5, rtol=1e-2)


# The problem


@pytest.mark.parametrize(("name", "ways"), [("intents", 5), ("spam", 2)])
def test_every_method_gives_probabilities_and_a_left_out_support(data, monkeypatch, name, ways):
    monkeypatch.setattr(FineTune, "steps", 1)
    monkeypatch.setattr(LowRankFineTune, "steps", 1)
    opened = problem(data=name, test_targets=2)
    names, five = opened.settings()[0], opened.settings()[2]
    methods = opened.config.methods if name == "intents" else ("source", "generated")
    for method in methods:
        model = opened.build(method)
        found = opened.outputs(model, five)
        assert found.query.shape == (2, ways * opened.queries, ways)
        torch.testing.assert_close(found.query.sum(2), torch.ones(found.query.shape[:2]))
        if model.fits and model.steps:
            assert found.support is None
        else:
            assert found.support.shape == (2, ways * 5, ways)
            assert opened.support_loss(five, found.support).shape == (2, 5 * ways)
    assert opened.outputs(opened.build("source"), names).support is None


def test_bfloat16_changes_no_feature_by_more_than_its_rounding(drawn, monkeypatch):
    states, tail, episode = drawn
    exact = Method(states, tail).features(episode.query)
    monkeypatch.setattr(sentence_methods, "processor_knows_bf16", lambda: True)
    rounded = Method(states, tail).features(episode.query)
    assert 0 < (rounded - exact).abs().max() < 0.03


def test_right_answers_score_1(data):
    opened = problem(test_targets=2)
    labels = torch.cat([its.query_y for its in opened.targets])
    right = torch.nn.functional.one_hot(labels, 5).float()
    scores = opened.scores(opened.settings()[0], right)
    assert scores["accuracy"].tolist() == [1, 1]
    assert scores["log_loss"].abs().max() < 1e-5
    even = opened.scores(opened.settings()[0], torch.full_like(right, 0.2))
    torch.testing.assert_close(even["log_loss"], torch.full((2,), 5.0).log())


def test_no_example_is_judged_by_a_model_that_was_adapted_to_it(data, monkeypatch):
    opened = problem(test_targets=1)
    model, seen = opened.build("generated"), []
    condition = GeneratedStep.condition

    def spied(self, episode):
        seen.append(set(episode.support[0].tolist()))
        return condition(self, episode)

    monkeypatch.setattr(GeneratedStep, "condition", spied)
    opened.outputs(model, opened.settings()[2])
    everything, *parts = seen
    names = set(opened.targets[0].support[0, -5:].tolist())
    left_out = [everything - part for part in parts]
    assert set.union(*left_out) == everything - names
    assert sum(map(len, left_out)) == len(everything - names)


def test_controls_read_the_conditions_of_training_tasks(data):
    opened = problem(test_targets=2)
    model = opened.build("generated")
    setting = opened.settings()[2]
    mean = opened.outputs(model, setting, "mean")
    change = next(iter(mean.change.values()))
    torch.testing.assert_close(change[0], change[1])  # one change for everybody
    shuffled = opened.outputs(model, setting, "shuffled").query
    assert (shuffled - opened.outputs(model, setting).query).abs().max() > 1e-4


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "own.csv"
    rows = [f"lost_card,card lost {n}" for n in range(3)] + ["music,play song 1", "flight,"]
    path.write_text("\n".join(["label,text", *rows]))
    return path


@pytest.mark.parametrize("method", ["generated", "shared", "lora", "source"])
def test_the_saved_layers_classify_as_the_adapted_method_does(data, table, bert, method):
    adapted = problem(test_targets=1).adapt(problem(test_targets=1).build(method), str(table))
    assert adapted.about == "Adapted to 3 classes of sentences by their names and 4 examples."
    assert adapted.classes == ["flight", "lost_card", "music"]
    texts = ["card lost now", "a song to play"]
    facts = adapted.save(table.parent / "out")
    assert facts["classes"] == adapted.classes
    saved = load_file(table.parent / "out" / "sentences.safetensors")
    head = [saved.pop("head.weight"), saved.pop("head.bias")]
    plain = copy.deepcopy(bert)
    missing, unexpected = plain.load_state_dict(saved, strict=False)
    assert not unexpected
    assert not any("layer.2." in name for name in missing) or method == "lora"
    for text, found in zip(texts, adapted.predict_proba(texts), strict=True):
        ids = torch.tensor(tokenise([text], False)["input_ids"])
        feature = normalize(plain(input_ids=ids).last_hidden_state[0].mean(0), dim=0)
        wanted = (head[0] @ feature + head[1]).softmax(0)
        torch.testing.assert_close(found, wanted, atol=2e-2, rtol=0)
    rows = adapted.predict_rows(texts)
    assert [row["text"] for row in rows] == texts


def test_a_table_of_one_class_is_refused(data, table):
    table.write_text("label,text\nonly,card\n")
    opened = problem(test_targets=1)
    with pytest.raises(DataError, match=r"labels \['only'\].*two or more.*another class"):
        opened.adapt(opened.build("source"), str(table))


def test_validation_trains_on_none_of_the_judged_classes(data):
    opened = problem(validation=True, test_targets=1)
    judged = set(opened.target_pool.named.tolist())
    assert len(judged) == 6
    assert not judged & set(opened.train_pool.named.tolist())


def test_training_tasks_hold_every_number_of_examples(data, monkeypatch):
    opened, seen, scores = problem(test_targets=1), [], []

    def fit(model, draw, config, training, **options):
        numbers = count()
        generator = torch.Generator().manual_seed(0)
        seen.extend(draw(next(numbers), generator).shots for _ in range(60))
        scores.append(options["score"]())
        return History([])

    monkeypatch.setattr(sentences, "fit", fit)
    training = Training("shared", data, "", OneProcess(), True, print)
    opened.train(opened.build("shared"), opened.config, training)
    assert set(seen) == {0, 1, 2, 3, 4, 5}
    assert 0 <= scores[0] <= 1


def test_a_run_judges_every_setting_and_checks_where_there_are_examples(data, tmp_path):
    config = TransferConfig(data="intents", comparators=("source",), steps=2, test_targets=2)
    record = run(Transfer(), config, tmp_path / "out", quiet=True, bare=True)
    found = {(label(row), row["setting"]) for row in record["scores"]}
    for setting in ("names alone", "1-shot", "5-shot"):
        assert {("generated", setting), ("source", setting)} <= found
    assert {setting for name, setting in found if name == "checked"} == {"5-shot"}
