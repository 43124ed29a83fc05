"""Growth curves: the numbers of the published sets, and a scale that no judged task has a part in."""

import gzip
import os
from pathlib import Path

import pytest
import torch

from weightloom.errors import ConfigError, DataError
from weightloom.tasks.growth import (
    FAMILIES,
    growth_split,
    load_growth_curves,
    of_families,
    scaled_pool,
)
from weightloom.tasks.points import PointTasks

REAL = (
    Path(os.environ.get("WEIGHTLOOM_DATA") or "/nowhere").expanduser()
    / "growth_curves"
    / "growth_curves.csv.gz"
)
needs_curves = pytest.mark.skipif(
    not REAL.is_file(), reason="needs WEIGHTLOOM_DATA with growth_curves"
)


def test_each_family_is_tested_once_validated_once_and_never_trained_on_then():
    splits = [growth_split(fold) for fold in range(5)]
    assert sorted(family for _, _, test in splits for family in test) == list(range(13))
    assert sorted(family for _, validation, _ in splits for family in validation) == list(range(13))
    assert all(
        sorted(train + validation + test) == list(range(13)) for train, validation, test in splits
    )


@pytest.mark.parametrize("fold", [-1, 5])
def test_an_unknown_fold_is_refused(fold):
    with pytest.raises(ConfigError, match=rf"`fold={fold}`.*Pass a number from 0 to 4"):
        growth_split(fold)


def test_the_first_four_tasks_of_a_family_set_its_scale_and_are_left_out():
    """Four tasks y = 10 t + 3 x at x = 2, 4, 6: middle 4, half range 2, deviation within a task 3 * sqrt(8 / 3)."""
    task = {str(t): [(x, 10 * t + 3 * x) for x in (2.0, 4.0, 6.0)] for t in range(4)}
    pool = scaled_pool({"rat_weight": {**task, "judged": [(4.0, 100.0), (8.0, 0.0)]}})
    assert pool.names == ("rat_weight/judged",)
    assert pool.groups.tolist() == [FAMILIES.index("rat_weight")]
    assert pool.x[:, 0].tolist() == [0, 2]
    assert pool.y[:, 0].tolist() == pytest.approx([100 / (3 * (8 / 3) ** 0.5), 0])


@needs_curves
def test_what_is_on_file_has_the_numbers_of_the_published_sets():
    """R: Oxboys has 26 boys of 9, ChickWeight 50 chicks (one with too few points), sleepstudy 18 people of 10."""
    pool = load_growth_curves()
    assert len(pool.names) == 1294 - 4 * 13
    for family, tasks, points in [
        ("boys_height", 26, 9),
        ("sleep_reaction", 18, 10),
        ("theophylline", 12, 11),
    ]:
        its = pool.groups == FAMILIES.index(family)
        assert int(its.sum()) == tasks - 4 and set(pool.counts[its].tolist()) == {points}
    assert int((pool.groups == FAMILIES.index("chick_weight")).sum()) == 49 - 4


@needs_curves
def test_every_family_is_of_about_one_size():
    pool = load_growth_curves()
    for family in range(13):
        tasks = PointTasks(of_families(pool, [family]), 3, centred=True).sample(
            500, torch.Generator().manual_seed(0)
        )
        assert 0.3 < tasks.query_y.square().mean() < 4, FAMILIES[family]
        assert tasks.query_x.abs().max() < 2, FAMILIES[family]


def test_a_file_that_is_missing_or_damaged_is_told_with_what_helps(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("WEIGHTLOOM_DATA", str(tmp_path))
    with pytest.raises(
        DataError, match=r"Set `WEIGHTLOOM_DATA` to a folder that holds `growth_curves/"
    ):
        load_growth_curves()
    path = tmp_path / "growth_curves" / "growth_curves.csv.gz"
    path.parent.mkdir()
    whole = gzip.compress(b"family,task,x,y\n" + b"rat_weight,1,2,3\n" * 50)
    for content in (
        b"",
        b"family",
        whole,
        whole[:-9],
        gzip.compress(b"family,task\nrat_weight,1\n"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read as the growth curves"):
            load_growth_curves()
