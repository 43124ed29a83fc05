"""`weightloom transfer --data documents`: adapters from documents, rivals, own documents."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from weightloom.apps.transfer.config import TransferConfig
from weightloom.apps.transfer.problems.documents import facts as documents
from weightloom.apps.transfer.problems.documents.adapted import AdaptedModel
from weightloom.apps.transfer.problems.documents.adapter import (
    RIDGE,
    SIZE,
    DocumentAdapter,
    DocumentCondition,
)
from weightloom.apps.transfer.problems.documents.facts import (
    CASES,
    LAYER,
    Documents,
    DocumentWriter,
)
from weightloom.apps.transfer.problems.documents.rivals import FineTuned, InWindow, Prefix, Rival
from weightloom.base import apply_per_task
from weightloom.errors import ConfigError, DataError
from weightloom.networks.character_model import CharacterModel
from weightloom.tasks.facts import CHARACTERS, FactTasks, decode

pytestmark = pytest.mark.usefixtures("plays")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def untrained_base(**sizes):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CharacterModel(len(CHARACTERS), **sizes).eval().requires_grad_(False)


SMALL = {"width": 16, "layers": 2, "heads": 2}


@pytest.fixture(scope="module")
def generated():
    """A generator on an untrained character model, with its maps in closed form."""
    patch = pytest.MonkeyPatch()
    patch.setattr(documents, "ALIGNED", 100)
    patch.setattr(documents, "PART", 100)
    model = DocumentWriter(untrained_base(), LAYER, 384)
    model.align(0)
    yield model.eval()
    patch.undo()


@pytest.fixture
def problem(monkeypatch):
    monkeypatch.setattr(documents, "character_base", lambda **_: untrained_base(**SMALL))
    monkeypatch.setattr(documents, "MEANT", 2)
    return Documents(TransferConfig(data="documents", test_targets=4, rank=64).resolved())


def recall(logits, drawn):
    return (logits.argmax(-1) == drawn.questions[..., -3:]).all(-1).float().mean().item()


@torch.no_grad()
def test_keys_are_answered_from_their_own_document_alone(generated):
    drawn = FactTasks(windows=2, facts=2, split="test").sample(8, seeded())
    assert recall(generated.answer(drawn), drawn) > 0.5
    other = generated.adapt(drawn.pieces.roll(1, 0))
    assert recall(generated.answered(other, drawn), drawn) < 0.1
    assert recall(Rival(generated.base).answer(drawn), drawn) < 0.1


@torch.no_grad()
def test_a_document_alone_has_the_adapter_of_its_row_in_a_batch(generated):
    pieces = FactTasks(windows=2, facts=1).sample(3, seeded()).pieces
    together, alone = generated.adapt(pieces), generated.adapt(pieces[1:2])
    for name, value in alone.items():
        wanted = together[name].dense() if value.ndim == 3 else together[name]
        found = value.dense() if value.ndim == 3 else value
        torch.testing.assert_close(found[0], wanted[1], atol=1e-3, rtol=1e-3)


def test_orthogonal_states_are_answered_by_the_closed_form():
    """Keys of length 1: answers of length size / (1 + ridge / weight), with a weight of 1/2."""
    layer = nn.Linear(6, 5)
    adapter = DocumentAdapter(layer, "layer", torch.eye(5), coordinates=6)
    states = torch.linalg.qr(torch.randn(2, 6, 6, generator=seeded())).Q[:, :4]
    following = torch.eye(5)[torch.tensor([[2, 0, 1, 4], [3, 3, 0, 1]])]
    pieces = DocumentCondition(states.unflatten(1, (2, 2)), following.unflatten(1, (2, 2)))
    params = {name.removeprefix("layer."): value for name, value in adapter(pieces, layer).items()}
    change = apply_per_task(layer, params, states) - layer(states)
    wanted = SIZE / (1 + RIDGE / 0.5) * following
    torch.testing.assert_close(change, wanted, atol=1e-4, rtol=1e-4)


def test_every_parameter_of_the_generator_gets_a_gradient_and_none_of_the_base(generated):
    generated(FactTasks(windows=2, facts=2, asked=None).sample(2, seeded())).sum().backward()
    with_gradient = {name for name, its in generated.named_parameters() if its.grad is not None}
    assert with_gradient == {f"adapter.{name}" for name, _ in generated.adapter.named_parameters()}
    assert all(its.grad.abs().max() > 0 for its in generated.adapter.parameters())
    generated.zero_grad()


class Reader(CharacterModel):
    """A model that remembers the rows that it was called with."""

    def forward(self, x, reach=None):
        self.rows = x
        return super().forward(x, reach)


def test_the_ceiling_reads_each_fact_and_the_prefix_reads_the_end():
    drawn = FactTasks(windows=2, facts=4).sample(3, seeded())
    base = Reader(len(CHARACTERS))
    InWindow(base).answer(drawn)
    assert base.rows.shape == (3 * 8, 128)
    for row, question in zip(base.rows, drawn.questions.flatten(0, 1), strict=True):
        assert decode(row).count(decode(question[:-3])) == 2  # the fact, and the question
        assert decode(question) in decode(row)
    prefix = Prefix(base, numbers=96 * 384 + 96)
    prefix.answer(drawn)
    assert prefix.tokens == 64  # of two times 96 numbers in three layers
    document = drawn.pieces[0].flatten()
    assert torch.equal(base.rows[0], torch.cat([document[-64:], drawn.questions[0, 0, :-1]]))


def test_fine_tuning_lowers_the_loss_on_each_document():
    base = untrained_base(**SMALL)
    pieces = FactTasks().sample(2, seeded()).pieces
    torch.manual_seed(0)
    params = FineTuned(base, rank=2, steps=5, rate=3e-2).adapt(pieces)

    def loss(its):
        logits = apply_per_task(base, its, pieces[..., :-1]).flatten(1, 2)
        return nn.functional.cross_entropy(logits.mT, pieces[..., 1:].flatten(1), reduction="none")

    before = loss({name: value.own.expand(2, *value.own.shape) for name, value in params.items()})
    assert (loss(params).mean(1) < before.mean(1) - 0.1).all()


@torch.no_grad()
def test_outputs_are_scored_by_exact_match(problem):
    setting = problem.settings()[0]
    drawn = problem.drawn(setting.name)
    answers = drawn.questions[..., -3:]
    sure = nn.functional.one_hot(answers, len(CHARACTERS)).float().flatten(1, 2)
    assert problem.scores(setting, sure)["exact match"].tolist() == [1.0] * 4
    sure[0, 1] = sure[0, 1].roll(1)  # one digit of one of four keys
    scores = problem.scores(setting, sure)
    assert scores["exact match"].tolist() == [0.75, 1, 1, 1]
    assert scores["digit accuracy"][0].item() == pytest.approx(11 / 12)
    flat = torch.full((4, 12, len(CHARACTERS)), 1 / len(CHARACTERS))
    found = problem.scores(setting, flat)["log loss of digits"]
    torch.testing.assert_close(found, torch.full((4,), math.log(len(CHARACTERS))))


def test_every_method_answers_and_only_the_generated_one_changes_with_the_document(problem):
    setting = problem.settings()[0]
    for method in ("generated", "source", "shared", "shared-finetune", "prefix", "lora", "window"):
        model = problem.build(method)
        found = problem.outputs(model, setting)
        assert found.query.shape == (4, 12, len(CHARACTERS))
        torch.testing.assert_close(found.query.sum(-1), torch.ones(4, 12))
        assert found.support is None
        if model.reads:
            assert found.change[LAYER].shape == (4,)
            mean = problem.outputs(model, setting, "mean").query
            assert not torch.equal(problem.outputs(model, setting, "shuffled").query, found.query)
            assert not torch.equal(mean, found.query)
    assert [CASES[its.name].windows for its in problem.settings()] == [1, 2, 4, 8, 4, 8, 1, 1]


@torch.no_grad()
def test_a_document_of_ones_own_is_answered_as_by_the_generator(generated, tmp_path):
    drawn = FactTasks(windows=2, facts=1, split="test").sample(1, seeded())
    file = tmp_path / "document.txt"
    file.write_text(decode(drawn.pieces.flatten()))
    adapted = AdaptedModel(generated, str(file))
    assert adapted.about == "document of 256 characters in 2 pieces"
    wanted = [decode(its) for its in generated.answer(drawn)[0].argmax(-1)]
    prompts = [decode(its[1:-3]) for its in drawn.questions[0]]
    rows = adapted.predict_rows(prompts)
    assert [row["continuation"][:1] for row in rows] == [its[:1] for its in wanted]
    facts = adapted.save(tmp_path / "out")
    again = CharacterModel(len(facts["characters"]), window=facts["window"])
    again.load_state_dict(load_file(tmp_path / "out" / "network.safetensors"))
    x = drawn.questions[0]
    torch.testing.assert_close(again(x), adapted.base(x))
    assert json.loads((tmp_path / "out" / "network.json").read_text()) == facts


def test_documents_that_cannot_be_taken_are_refused(generated, problem):
    with pytest.raises(DataError, match=r"has 1,025 tokens. At most 8 pieces of 128 are taken"):
        AdaptedModel(generated, "a" * 1025)
    with pytest.raises(DataError, match="Character 1 of the text is 'é'"):
        AdaptedModel(generated, "sé")
    with pytest.raises(DataError, match="Pass two characters or more"):
        AdaptedModel(generated, "a")
    with pytest.raises(ConfigError, match="`--method generated`"):
        problem.adapt(problem.build("source"), "some text")


def test_ranks_above_the_width_and_single_targets_are_refused(problem):
    for options, words in [
        ({"rank": 65}, "`--rank 65` coordinates of a key. .* has 64. Pass 64 or less"),
        ({"rank": 64, "test_targets": 1}, "`--test-targets 1`. .* Pass 2 or more"),
    ]:
        config = TransferConfig(data="documents", **options).resolved()
        with pytest.raises(ConfigError, match=words):
            Documents(config)
