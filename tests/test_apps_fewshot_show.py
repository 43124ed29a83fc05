import random

import pytest
import torch

from weightloom.apps import experiment
from weightloom.apps.fewshot.app import FewShot
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.problems import problem_of
from weightloom.apps.fewshot.problems.classes import ClassProblem
from weightloom.apps.fewshot.problems.functions import FunctionProblem
from weightloom.apps.fewshot.problems.pools import Pools
from weightloom.apps.fewshot.show import classes
from weightloom.apps.fewshot.show.changes import changes
from weightloom.apps.fewshot.show.classes import conditions, titles
from weightloom.apps.fewshot.show.draw import SHOWN_TASKS, answered, generator, lowest, source_of
from weightloom.apps.fewshot.show.functions import observed_pixels, predicted
from weightloom.apps.fewshot.show.sweep import sweep
from weightloom.files import load_tensors
from weightloom.forms import RowScale
from weightloom.forms.factored import Factored
from weightloom.learners.centroid import NearestCentroid
from weightloom.learners.interpolation import Interpolation
from weightloom.learners.learner import Learner
from weightloom.networks import mlp
from weightloom.tasks import ClassPool, SinusoidTasks
from weightloom.tasks.functions import FunctionTasks

DIGITS = FewShotConfig(data="digits", test_tasks=16, queries=4, shots=(1, 3)).resolved()
SINUSOID = FewShotConfig(data="sinusoid", test_tasks=16, queries=8, shots=(5,)).resolved()
IMAGE_METHODS = [name for name in problem_of(DIGITS).methods() if name != "scratch"]
CURVE_METHODS = [name for name in problem_of(SINUSOID).methods() if name != "scratch"]


class Set(Learner):
    """Parameters that a test sets by hand."""

    def __init__(self, base, params=None):
        super().__init__()
        self.base, self.params = base, params

    def adapt(self, support):
        return self.params or {}

    def predict(self, params, x):
        return torch.zeros(*x.shape[:2], 1)


class Broken(Set):
    """A method of one's own that knows no conditions and fails to adapt."""

    def adapt(self, support):
        raise RuntimeError("not today")

    def condition(self, support):
        raise ValueError("no condition here")


class Shapes(FunctionProblem):
    """Images of one's own in the place of MNIST."""

    def __init__(self, images, shots):
        self.config = FewShotConfig(data="mnist-functions", shots=shots, test_tasks=8).resolved()
        self.images = images

    def test_source(self, shots, ways=None):
        return FunctionTasks(self.images, shots)

    def validation_source(self, shots):
        return FunctionTasks(self.images, shots)


class Features(ClassProblem):
    """Classes of vectors, which are no pictures."""

    def __init__(self):
        self.config = FewShotConfig(
            data="intents", ways=(3,), shots=(2,), queries=3, test_tasks=8
        ).resolved()
        middle = 3 * torch.randn(6, 1, 10)
        names = tuple(f"intent {i}" for i in range(6))
        texts = tuple(tuple(f"sentence {i} of {name}" for i in range(12)) for name in names)
        pool = ClassPool(middle + torch.randn(6, 12, 10), torch.full((6,), 12), names, texts)
        self.train = self.validation = self.held_out = pool
        self.pools, self.event = Pools(pool, pool, pool), (10,)


def showcase(folder, learners, problem, early=False):
    experiment.write_shown(FewShot(), learners, problem, problem.config, folder, "", early)
    return load_tensors(folder / "evaluation.safetensors")


@pytest.mark.parametrize("method", IMAGE_METHODS)
def test_what_every_method_of_images_changes_and_knows_can_be_shown(method):
    problem = problem_of(DIGITS)
    learner = problem.learner(method).eval()
    with torch.no_grad():
        tensors, facts = changes(
            learner, problem, False, lambda tasks: titles(problem, False, tasks)
        )
        known = conditions(learner, problem, False)
    head = facts["changes"]["maps"][0]
    assert tensors["changed_0"].shape[0] == 2 and len(facts["changes"]["rows"]) >= 2
    assert (
        head["by_class"] and head["shape"][0] == 3 and len(facts["changes"]["class_names"][0]) == 3
    )
    assert (
        known == "The method has no condition to draw."
        or torch.isfinite(known[0]["conditions"]).all()
    )


@pytest.mark.parametrize("method", CURVE_METHODS)
def test_every_method_of_curves_shows_all_its_parts(tmp_path, monkeypatch, method):
    for limit in ("SWEEP_S", "SHARE_S"):  # all points, on a busy machine too
        monkeypatch.setitem(sweep.__globals__, limit, 600.0)
    problem = problem_of(SINUSOID)
    tensors, facts = showcase(tmp_path, {method: problem.learner(method)}, problem)
    assert facts["left_out"].keys() <= {"map"}
    assert tensors["curve_predicted"].shape == (6, 3, 201) and len(tensors["worst_scores"]) == 3
    assert {row["shots"] for row in facts["sweep"]["rows"]} == {1, 2, 3, 5, 10}


def test_points_that_are_no_pictures_are_shown_by_what_they_say():
    problem = Features()
    tensors, facts = classes.predicted(problem.learner("protonet").eval(), problem, False)
    pool, tasks = problem.held_out, source_of(problem, 2, False).sample(SHOWN_TASKS, generator())
    assert (
        torch.equal(tasks.support_y, tensors["support_y"])
        and len(facts["query_texts"]) == SHOWN_TASKS
    )
    for points, texts in (
        (tasks.support_x, facts["support_texts"]),
        (tasks.query_x, facts["query_texts"]),
    ):
        for x, text in zip(points[0], texts[0], strict=True):
            number, name = int(text.split()[1]), text.partition(" of ")[2]
            assert torch.equal(pool.examples[pool.names.index(name), number], x)


def test_a_relative_change_is_the_one_that_was_set():
    problem, base = problem_of(SINUSOID), mlp([1, 4, 1])
    own = dict(base.named_parameters())
    weight, gain = own["0.weight"].detach(), torch.tensor([[0.25] * 4, [-0.5] * 4])
    torch.nn.init.zeros_(own["2.bias"])
    params = {
        "0.weight": torch.stack([1.5 * weight, weight]),
        "2.weight": Factored(RowScale(axis=1), own["2.weight"].detach(), {"gain": gain}),
        "2.bias": torch.tensor([[3.0], [1.0]]),
    }
    _, facts = changes(Set(base, params), problem, False, lambda tasks: ["one", "two"])
    rows = {row["name"]: row for row in facts["changes"]["rows"]}
    assert rows["0.weight"]["relative"] == pytest.approx([0.5, 0.0], abs=1e-6)
    assert rows["0.weight"]["apart"] == pytest.approx(0.5, abs=1e-6)
    assert rows["2.weight"]["relative"] == pytest.approx([0.25, 0.5], abs=1e-6)
    assert rows["2.weight"]["apart"] == pytest.approx(0.75, abs=1e-6)
    assert rows["2.bias"]["relative"] is None  # an own value of zero is none to be held against
    assert rows["2.bias"]["apart"] == pytest.approx(2 / 5**0.5)


def test_the_worst_tasks_are_those_that_sorting_all_of_them_gives():
    problem, source = problem_of(SINUSOID), SinusoidTasks(5, 8)
    tasks, outputs, scores, looked = lowest(Set(mlp([1, 4, 1])), problem, source, better=-1)
    drawer = generator()
    targets = torch.cat([source.sample(count, drawer).query_y for count in (5, 10, 1)])
    expected = targets.square().mean((1, 2)).sort(descending=True).values[:3]  # it predicts zero
    assert looked == 16
    torch.testing.assert_close(scores, expected)
    torch.testing.assert_close(tasks.query_y.square().mean((1, 2)), expected)
    assert not outputs.any()


def test_a_sweep_scores_as_a_loop_over_tasks_does_and_leaves_out_what_the_data_lack():
    problem = problem_of(DIGITS)
    _, facts = sweep({"centroid": NearestCentroid(64)}, problem, early=False)
    rows = {(row["ways"], row["shots"]): row for row in facts["sweep"]["rows"]}
    assert set(rows) == {
        (ways, shots) for ways in (2, 3) for shots in (1, 2, 3, 5, 10)
    }  # three classes are held out
    drawer, right = generator(), []
    for count in (5, 10, 1):
        tasks = problem.test_source(5, 3).sample(count, drawer)
        for task in range(count):
            x, labels = tasks.support_x[task].flatten(1), tasks.support_y[task]
            centres = torch.stack([x[labels == label].mean(0) for label in range(3)])
            kept = torch.cat(
                [(tasks.query_y[task] == label).nonzero()[:3, 0] for label in range(3)]
            )
            nearest = torch.cdist(tasks.query_x[task][kept].flatten(1), centres).argmin(1)
            right.append((nearest == tasks.query_y[task][kept]).double().mean())
    assert rows[3, 5]["tasks"] == 16
    assert rows[3, 5]["mean"] == pytest.approx(torch.stack(right).mean().item(), abs=1e-6)


def test_a_method_of_fixed_ways_is_swept_at_these_alone():
    problem = problem_of(DIGITS)
    learner = problem.learner("anil").eval()
    assert learner.ways == 3
    assert {
        row["ways"] for row in sweep({"anil": learner}, problem, early=False)[1]["sweep"]["rows"]
    } == {3}


def test_parts_grow_and_end_with_the_time():
    learner = Set(mlp([1, 4, 1]))
    drawn = [len(tasks.query_y) for tasks, _ in answered(learner, SinusoidTasks(5, 8), 100, 60.0)]
    assert drawn == [5, 10, 20, 40, 25]
    assert [
        len(tasks.query_y) for tasks, _ in answered(learner, SinusoidTasks(5, 8), 100, 0.0)
    ] == [5]


@pytest.mark.parametrize("config", [DIGITS, SINUSOID], ids=["digits", "sinusoid"])
def test_an_early_look_takes_validation_tasks_only_and_no_random_number(
    tmp_path, monkeypatch, config
):
    problem = problem_of(config)
    learner = problem.learner("hypernetwork")
    monkeypatch.setattr(
        type(problem), "test_source", lambda *_: pytest.fail("a test task was drawn")
    )
    before = torch.get_rng_state()
    _, facts = showcase(tmp_path, {"hypernetwork": learner}, problem, early=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert facts["left_out"] == {} and facts["early"]
    assert {row["shots"] for row in facts["sweep"]["rows"]} == set(config.shots)


def test_a_method_that_fails_leaves_sentences_and_no_error(tmp_path):
    learner = Broken(mlp([1, 4, 1]))
    tensors, facts = showcase(tmp_path, {"mine": learner}, problem_of(SINUSOID))
    assert not tensors and facts["left_out"].keys() == {
        "predicted",
        "worst",
        "map",
        "changes",
        "sweep",
    }
    assert facts["left_out"]["changes"] == "It could not be drawn (RuntimeError: not today)."
    assert facts["left_out"]["map"] == "It could not be drawn (ValueError: no condition here)."


def test_classes_of_vectors_are_shown_without_pictures(tmp_path):
    tensors, facts = showcase(tmp_path, {"protonet": (p := Features()).learner("protonet")}, p)
    assert facts["left_out"] == {} and "support_x" not in tensors and "worst_query_x" not in tensors
    assert tensors["predicted"].shape == (6, 9)
    assert {name for names in facts["class_names"] for name in names} <= {
        f"intent {i}" for i in range(6)
    }


def test_completed_images_hold_what_was_observed_and_are_finer_between_the_pixels():
    ramp = (torch.arange(6.0)[:, None] + 0.1 * torch.arange(8.0)).expand(8, 6, 8)
    problem = Shapes(ramp, (5, 20))

    class Plane(Interpolation):
        """Knows that the image rises by 3 from the middle to the bottom, and by 0.4 to the right."""

        def predict(self, params, x):
            return 2.85 + 3 * x[..., 1:] + 0.4 * x[..., :1]

    tensors, facts = predicted(Plane(), problem, False)
    assert facts["image_shots"] == [5, 20] and tensors["image_fine"].shape == (5, 24, 32)
    assert tensors["image_observed_20"].sum((1, 2)).tolist() == [20] * 5
    torch.testing.assert_close(tensors["image_completed_5"], ramp[:5])
    blocks = (
        tensors["image_fine"].unfold(1, 4, 4).unfold(2, 4, 4).mean((3, 4))
    )  # 4 by 4 positions in each pixel
    torch.testing.assert_close(blocks, ramp[:5])


def test_observed_pixels_are_found_again_at_their_places():
    images = torch.rand(4, 5, 7)
    tasks = FunctionTasks(images, shots=9).sample(4, generator())
    seen = observed_pixels(tasks, 5, 7)
    chosen = images[tasks.hidden[:, 0]]
    for task in range(4):
        assert (
            chosen[task][seen[task]].sort().values.tolist()
            == tasks.support_y[task, :, 0].sort().values.tolist()
        )
    hidden = tasks._replace(
        support=tasks.support._replace(mask=torch.zeros_like(tasks.support_mask))
    )
    assert not observed_pixels(hidden, 5, 7).any()


def test_completions_of_images_show_all_their_parts(tmp_path):
    _, facts = showcase(
        tmp_path, {"interpolation": Interpolation()}, Shapes(torch.rand(8, 6, 8), (5, 20))
    )
    assert facts["left_out"] == {"map": "The method has no condition to draw."}
    assert {row["shots"] for row in facts["sweep"]["rows"]} == {
        5,
        10,
        20,
        40,
    }  # an image has 48 pixels


def test_tasks_of_several_inputs_are_shown_as_predictions_against_truth(tmp_path):
    rng = random.Random(0)
    lines = ["task,a,b,y"]
    for task in range(40):
        slope = rng.gauss(0, 1)
        lines += [
            f"shop{task},{a},{b},{slope * a + b}"
            for a, b in ((rng.random(), rng.random()) for _ in range(12))
        ]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    config = FewShotConfig(
        data=str(tmp_path / "table.csv"), shots=(4,), queries=5, test_tasks=8
    ).resolved()
    problem = problem_of(config)
    ridge = problem.learner("ridge")
    tensors, facts = showcase(tmp_path, {"ridge": ridge}, problem)
    assert facts["left_out"] == {"map": "The method has no condition to draw."}
    tasks = problem.test_source(4).sample(60, generator())
    expected = ridge.predict(ridge.adapt(tasks.support), tasks.query_x).flatten().sort().values
    torch.testing.assert_close(tensors["scatter_predicted"].sort().values, expected)
    assert tensors["worst_true"].shape == (3, 5) and all(
        name.startswith("shop") for name in facts["worst_titles"]
    )
