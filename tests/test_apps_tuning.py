"""Sweeps of few-shot learning and reinforcement learning: what is chosen by is never drawn from what is judged on."""

import pytest
import torch

from weightloom.apps import several
from weightloom.apps.fewshot.app import FewShot
from weightloom.apps.fewshot.config import FewShotConfig
from weightloom.apps.fewshot.judge import draw_test_tasks
from weightloom.apps.fewshot.problems import problem_of
from weightloom.apps.several import Several, run_several
from weightloom.tasks import ClassTasks, SinusoidTasks

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture
def drawn(monkeypatch):
    """What a method of a class returned while a sweep went on, by a watch that is set up in the test."""
    seen, sweeping, original = [], [], several._Study._sweep

    def watched(*given):
        sweeping.append(True)
        chosen = original(*given)
        sweeping.clear()
        return chosen

    def watch(kind, of):
        sample = kind.sample

        def sampled(self, *given, **how):
            got = sample(self, *given, **how)
            seen.extend(of(self, got) if sweeping else ())
            return got

        monkeypatch.setattr(kind, "sample", sampled)
        return seen

    monkeypatch.setattr(several._Study, "_sweep", watched)
    return watch


def rows_of(values):
    return {tuple(row) for row in values.flatten(1).tolist()}


def fewshot(folder, data, **options):
    config = FewShotConfig(
        data, steps=4, tasks=2, shots=(2,), test_tasks=30, comparators=(), **options
    )
    run_several(FewShot(), config, folder, Several(sweep=("outer-lr=0.001,0.01",)), quiet=True)
    return problem_of(config.resolved())


def test_no_sinusoid_of_the_table_is_tuned_on(tmp_path, drawn):
    """All sinusoids come from one family: nothing but their seed keeps them apart."""
    seen = drawn(SinusoidTasks, lambda source, tasks: rows_of(tasks.hidden))
    problem = fewshot(tmp_path / "run", "sinusoid")
    tuned_on = set(seen)
    assert len(tuned_on) > 2 * 30
    for shots in (2, 10):
        assert not tuned_on & rows_of(draw_test_tasks(problem, shots, 30).hidden)


def test_no_class_of_the_table_is_tuned_on(tmp_path, drawn):
    pytest.importorskip("sklearn")
    seen = drawn(ClassTasks, lambda source, tasks: [source.examples])
    problem = fewshot(tmp_path / "run", "digits", queries=3)
    pictures = {row for pool in seen for row in rows_of(pool.flatten(0, 1))}
    judged = rows_of(problem.held_out.examples.flatten(0, 1)) - {
        (0,) * 64
    }  # what fills up classes of fewer pictures
    assert len(pictures) > 1000 and len(judged) > 400 and not pictures & judged


def test_no_context_of_the_table_is_tuned_on(tmp_path, monkeypatch):
    pytest.importorskip("sb3_contrib")
    from weightloom.apps.rl import judge
    from weightloom.apps.rl.app import RL
    from weightloom.apps.rl.config import RLConfig
    from weightloom.apps.rl.envs.lqr import LQR

    drawn, settings = {}, judge.settings

    def watched(world, contexts, validation=False):
        found = settings(world, contexts, validation)
        drawn.setdefault(validation, []).extend(
            torch.cat([one.contexts, one.others]) for one in found
        )
        return found

    monkeypatch.setattr(judge, "settings", watched)
    monkeypatch.setattr(LQR, "max_steps", 10)
    small = {
        "rows": 4,
        "width": 8,
        "hidden": 8,
        "blocks": 0,
        "rank": 2,
        "batch": 8,
        "warm_up": 8,
        "updates": 0.25,
    }
    config = RLConfig(env="lqr", steps=40, test_contexts=6, comparators=(), **small)
    run_several(
        RL(), config, tmp_path / "run", Several(sweep=("learning-rate=0.001,0.01",)), quiet=True
    )
    tuned_on, judged = (rows_of(torch.cat(drawn[validation])) for validation in (True, False))
    assert (
        len(drawn[True]) == 2
        and len(tuned_on) == 2 * 6
        and len(judged) == 4 * 6
        and not tuned_on & judged
    )
