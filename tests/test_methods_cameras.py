"""Methods that read through cameras: each part against an exact answer, then a run from end to end."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC

from weightloom.apps import experiment
from weightloom.apps.fewshot.app import FewShot
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.export import export_task
from weightloom.apps.fewshot.judge import judge
from weightloom.apps.fewshot.problems import problem_of
from weightloom.apps.fewshot.problems.cameras import SETTINGS, CameraProblem, uncrossed
from weightloom.base import specialise
from weightloom.errors import ConfigError
from weightloom.learners.in_context import ContextReader, InContext
from weightloom.learners.inputs import HyperInputs
from weightloom.learners.learner import Support
from weightloom.learners.machines import (
    SupportLogistic,
    SupportNearest,
    SupportSVM,
    fitted_machine,
    machine_of,
)
from weightloom.learners.matching import Matching
from weightloom.runs.record import label
from weightloom.runs.table import print_table
from weightloom.tasks import CameraTasks, load_digit_images, sample_cameras

CONFIG = FewShotConfig(
    data="cameras", steps=20, tasks=4, test_tasks=12, evaluate_every=10, checkpoint_every=10
)


@pytest.fixture(scope="module")
def problem():
    return problem_of(CONFIG.resolved())


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digit_images()
    return images.flatten(1).float() / 255, labels


def standardised_by(x, by):
    """As the methods do it, by hand."""
    spread = by.std(0, correction=0)
    scale = (spread**2 + (0.1 * spread.median()) ** 2).sqrt()
    return ((x - by.mean(0)) / scale).double().numpy()


@pytest.mark.parametrize("shown", [(0, 1, 2, 3, 4, 5, 6, 7, 8, 9), (2, 5, 7), (3, 8)])
def test_the_kernel_machine_says_what_scikit_learn_says(digits, shown):
    images, labels = digits
    known = torch.isin(labels, torch.tensor(shown)).nonzero()[:, 0]
    train, new = known[:300], known[300:600]
    reference = SVC(C=3.0, gamma=0.05).fit(images[train].double().numpy(), labels[train].numpy())
    decisions = reference.decision_function(images[new].double().numpy())
    expected = np.array(shown)[
        decisions.argmax(1) if len(shown) > 2 else (decisions > 0).astype(int)
    ]
    machine = machine_of(images[train], labels[train], 10, 3.0, 0.05)
    assert (machine(images[new]).argmax(1).numpy() == expected).all()
    if len(shown) == 10:
        np.testing.assert_allclose(machine(images[new]).numpy(), decisions, atol=1e-4)


def test_a_machine_of_one_class_names_that_class(digits):
    images, labels = digits
    sevens = images[labels == 7][:3]
    fitted = fitted_machine(sevens, torch.full((3,), 7), 10, 1.0, 0.1)
    machine = machine_of(images[labels >= 0][:50], labels[:50], 10, 1.0, 0.1)
    machine = type(machine)(3, 64, 10, 0.1)
    machine.load_state_dict(fitted)
    assert (machine(images[:20]).argmax(1) == 7).all()


@pytest.mark.parametrize(("ways", "shots"), [(10, 2), (5, 4), (2, 3), (1, 2)])
@pytest.mark.parametrize(
    ("method", "reference"),
    [
        (lambda: SupportLogistic(64, 10), lambda: LogisticRegression(C=1.0, max_iter=1000)),
        (lambda: SupportNearest(64, 10), lambda: KNeighborsClassifier(1)),
        (lambda: SupportSVM(64, 10), lambda: SVC(C=10.0, gamma=0.1 / 64)),
    ],
)
def test_what_looks_at_the_support_alone_says_what_scikit_learn_says(
    digits, method, reference, ways, shots
):
    tasks = CameraTasks(digits[0].view(-1, 8, 8), digits[1], ways, shots).sample(
        3, torch.Generator().manual_seed(0)
    )
    learner = method()
    said = learner.predict(learner.adapt(tasks.support), tasks.query_x).argmax(2)
    for task in range(3):
        x, y = tasks.support_x[task], tasks.support_y[task].numpy()
        if ways == 1:
            assert (said[task] == int(y[0])).all()
            continue
        fitted, queries = (
            reference().fit(standardised_by(x, x), y),
            standardised_by(tasks.query_x[task], x),
        )
        expected = fitted.predict(queries)
        if (
            isinstance(fitted, SVC) and ways > 2
        ):  # its ``predict`` does not look at how sure votes are
            expected = fitted.classes_[fitted.decision_function(queries).argmax(1)]
        assert (said[task].numpy() == expected).all()


def test_masked_support_is_left_out(digits):
    tasks = CameraTasks(digits[0].view(-1, 8, 8), digits[1], 10, 3, fewest_shots=1).sample(
        2, torch.Generator().manual_seed(0)
    )
    for learner in (
        SupportLogistic(64, 10),
        SupportNearest(64, 10),
        SupportSVM(64, 10),
        Matching(*digits),
    ):
        both = learner.predict(learner.adapt(tasks.support), tasks.query_x)
        for task in range(2):
            there = tasks.support_mask[task]
            alone = Support(*(field[task : task + 1, there] for field in tasks.support))
            one = learner.predict(learner.adapt(alone), tasks.query_x[task : task + 1])
            torch.testing.assert_close(one[0], both[task], rtol=1e-3, atol=1e-3)


def test_matching_finds_every_wire_of_a_camera_whose_support_is_all_of_the_training_pictures(
    digits,
):
    images, labels = digits
    learner = Matching(images, labels)
    cameras = sample_cameras(4, 64, torch.Generator().manual_seed(0))
    sent = cameras.send(images.expand(4, -1, -1))
    support = Support(sent, labels.expand(4, -1), torch.ones(4, len(labels), dtype=torch.bool))
    weight = learner.adapt(support)["0.weight"]
    varied = images.std(0) > 0.05  # what never changes cannot be found
    found = weight.abs().argmax(2)[:, varied]
    truth = cameras.weight.abs().argmax(1)[:, varied]
    sign = cameras.weight.sum(1)[:, varied].sign()
    assert (found == truth).float().mean() > 0.97
    assert (
        weight[:, varied].gather(2, truth[..., None])[..., 0].sign() == sign
    ).float().mean() > 0.97


def test_the_true_layer_restores_and_the_loss_is_then_that_of_reading(problem):
    """Ground truth: with the camera's own inverse as first layer, what is restored is what was before the camera."""
    generator = torch.Generator().manual_seed(0)
    cameras, pictures = sample_cameras(3, 64, generator), torch.rand(3, 7, 64, generator=generator)
    inverse = torch.linalg.inv(cameras.weight.double()).float()
    params = {"0.weight": inverse, "0.bias": -(inverse @ cameras.offset[..., None])[..., 0]}
    learner = problem.learner("hypernetwork")
    torch.testing.assert_close(
        learner.restored(params, cameras.send(pictures)), pictures, rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(
        learner.predict(params, cameras.send(pictures)),
        learner.base[1:](pictures),
        rtol=1e-3,
        atol=1e-3,
    )


def test_two_cameras_that_differ_in_the_order_of_wires_get_the_same_network(problem):
    torch.manual_seed(0)
    learner = problem.learner("hypernetwork")
    tasks = problem.test_source(2).sample(2, torch.Generator().manual_seed(0))
    order = torch.randperm(64)
    sides = [side._replace(x=side.x[..., order]) for side in (tasks.support, tasks.query)]
    other = tasks._replace(support=sides[0], query=sides[1])
    torch.testing.assert_close(learner.answer(other), learner.answer(tasks), rtol=1e-3, atol=1e-4)


def test_in_context_a_query_does_not_see_the_others_and_one_task_is_its_row():
    torch.manual_seed(0)
    learner = InContext(ContextReader(6, 3, width=8, layers=2))
    support = Support(
        torch.randn(2, 5, 6), torch.randint(3, (2, 5)), torch.ones(2, 5, dtype=torch.bool)
    )
    queries = torch.randn(2, 4, 6)
    params = learner.adapt(support)
    together = learner.predict(params, queries)
    torch.testing.assert_close(learner.predict(params, queries[:, 1:2])[:, 0], together[:, 1])
    base = specialise(learner.base, {name: params[name] for name in ("support_x", "support_y")}, 1)
    values = (queries[1] - params["mean"][1]) / params["scale"][1]
    torch.testing.assert_close(base(values), together[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "method", ["hypernetwork", "hyper-free", "code-input", "in-context", "shared"]
)
def test_every_trained_part_of_every_method_gets_a_gradient(problem, method):
    torch.manual_seed(0)
    learner = problem.learner(method)
    if method == "hyper-free":
        torch.nn.init.normal_(learner.hyper.writer[-1].weight, std=0.1)  # it starts at zero
    tasks = problem.train_source(learner).sample(3, torch.Generator().manual_seed(0))
    learner(tasks).mean().backward()
    for name, parameter in learner.named_parameters():
        assert not parameter.requires_grad or (
            parameter.grad is not None and parameter.grad.any()
        ), name


def test_the_ceilings_read_pictures_without_a_camera_and_chance_is_a_tenth(problem):
    torch.manual_seed(0)
    learner = problem.learner("hypernetwork")
    reader, svm = problem.yardsticks(learner)
    assert [(row.method, row.role) for row in (reader, svm)] == [
        ("reader", "ceiling"),
        ("SVM", "ceiling"),
    ]
    machine, seen = svm.learner, svm.seen
    assert seen is uncrossed
    assert judge(machine, problem, 1, 40, 10, seen=seen).row("x", "y")["mean"] > 0.9
    assert judge(machine, problem, 1, 40, 10).row("x", "y")["mean"] < 0.2  # through the cameras
    tasks = problem.test_source(1).sample(2, torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        reader.learner.predict({}, tasks.hidden), learner.base[1:](tasks.hidden)
    )
    assert "reader" not in [row.method for row in problem.yardsticks(problem.learner("nearest"))]


def test_pictures_of_the_three_parts_are_different_and_in_the_sets_own_order(problem):
    images, labels = load_digit_images()
    for part, first, last in (
        (problem.train, 0, 1097),
        (problem.validation, 1097, 1297),
        (problem.held_out, 1297, 1797),
    ):
        assert torch.equal(part[0], images[first:last]) and torch.equal(part[1], labels[first:last])
    tuned = problem_of(FewShotConfig(data="cameras", held_out="validation").resolved())
    assert torch.equal(tuned.held_out[0], problem.validation[0])


def test_four_settings_are_judged_unless_others_are_asked_for(problem):
    assert tuple(problem.settings()) == SETTINGS
    assert [problem.setting(shots, ways) for ways, shots in SETTINGS][::3] == [
        "1 of each of 10",
        "4 of each of 5",
    ]
    asked = problem_of(FewShotConfig(data="cameras", ways=(3,), shots=(1, 6)).resolved())
    assert asked.settings() == [(3, 1), (3, 6)]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"split": 1}, "split by writers in one way"), ({"ways": (11,)}, "from 1 to 10")],
)
def test_what_cameras_do_not_have_is_refused(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        experiment.run(
            FewShot(), FewShotConfig(data="cameras", **options), tmp_path / "run", quiet=True
        )
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "cameras"
    config = FewShotConfig(**{**CONFIG.__dict__, "comparators": ("matching", "nearest")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CameraProblem, "many", 200)
        return folder, experiment.run(
            FewShot(), config, folder, command="weightloom fewshot", quiet=True
        )


def test_a_run_has_a_row_for_methods_controls_and_ceiling_in_every_setting(run):
    _, record = run
    methods = [
        "hypernetwork",
        "matching",
        "nearest",
        "hypernetwork (untrained)",
        "shuffled (control)",
        "reader (ceiling)",
        "SVM (ceiling)",
    ]
    settings = ["1 of each of 10", "2 of each of 10", "2 of each of 5", "4 of each of 5"]
    assert [(row["setting"], label(row)) for row in record["scores"]] == [
        (s, m) for s in settings for m in methods
    ]
    means = {(row["setting"], label(row)): row["mean"] for row in record["scores"]}
    assert (
        means["4 of each of 5", "nearest"] <= 0.5 + 0.1 < means["4 of each of 5", "SVM (ceiling)"]
    )
    many = record["many"]
    assert many["tasks"] == 200 and many["write_s"] > 0 and many["run_s"] < 4 * many["shared_s"]


def test_the_page_begins_with_the_camera_in_four_rows(run):
    folder, _ = run
    page = (folder / "report.html").read_text().partition("</nav>")[2]  # below the contents
    rows = [
        "Before the camera",
        "Sent by the camera",
        "Restored and read by matching",
        "Restored and read by hypernetwork",
    ]
    places = [
        page.index(row) for row in ["Through a camera with crossed wires", *rows, "The worst tasks"]
    ]
    assert places == sorted(places)
    assert page.count('alt="Before the camera: ') == 10


def test_many_settings_are_printed_side_by_side(run, capsys):
    print_table(run[1]["scores"], FewShot.unseen)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and not any("…" in line for line in lines)
    assert sum(line.strip().startswith("matching") for line in lines) == 1


def test_one_camera_is_exported_and_torch_alone_says_the_same(run, tmp_path):
    folder, _ = run
    loaded = experiment.load(FewShot(), folder, only=True)
    facts = export_task(loaded.model, loaded.problem, loaded.config, "3", tmp_path / "camera")
    assert facts["input"] == ["batch", 64] and facts["largest_difference"] < 1e-5
    assert json.loads((tmp_path / "camera" / "network.json").read_text())["task"].endswith(
        "1 of each of 10"
    )
    program = torch.export.load(tmp_path / "camera" / "network.pt2").module()
    assert program(torch.randn(7, 64)).shape == (7, 10)


@pytest.mark.slow
def test_a_minute_of_training_reads_what_no_support_set_shows():
    config = FewShotConfig(
        data="cameras", steps=1200, held_out="validation", comparators=("matching",), test_tasks=100
    )
    problem = problem_of(config.resolved())
    learner = problem.learner("hypernetwork")
    assert isinstance(learner, HyperInputs)
    from weightloom.training import TrainOptions

    learner.fit(problem.train_source(learner), TrainOptions(steps=1200, tasks=16, outer_lr=3e-3))
    assert (
        judge(learner, problem, 4, 100, 5).row("x", "y")["mean"] > 0.65
    )  # at most a half from what it was shown
    assert judge(learner, problem, 4, 100, 5, shuffled=True).row("x", "y")["mean"] < 0.2
