"""Processes that share the tasks of a step: together they draw what one draws, and each does only its own part."""

import pytest
import torch

from references import tensors_of
from weightloom.apps.fewshot.problems.problem import MixedTasks
from weightloom.tasks import (
    CameraTasks,
    ClassTasks,
    Colour,
    Crop,
    CutOut,
    Flip,
    FunctionTasks,
    HyperteacherTasks,
    InTurn,
    Jitter,
    PointPool,
    PointTasks,
    SinusoidTasks,
    Zoom,
    draw_share,
)

EVERYTHING = InTurn((Jitter(1.0), Flip(), Crop(2), Zoom(0.7), Colour(0.4), CutOut(3)))


def classes(augment=None, **how):
    generator = torch.Generator().manual_seed(0)
    pool = torch.rand(6, 12, 3, 8, 8, generator=generator)
    counts = torch.tensor([12, 11, 10, 12, 9, 12])
    return ClassTasks(pool, counts, ways=3, shots=2, queries=4, augment=augment, **how)


def cameras(augment=None, **how):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(90, 6, 6, generator=generator)
    return CameraTasks(
        images, torch.arange(90) % 5, ways=4, shots=2, queries=9, augment=augment, **how
    )


def functions(**how):
    images = (255 * torch.rand(20, 6, 5, generator=torch.Generator().manual_seed(0))).to(
        torch.uint8
    )
    return FunctionTasks(images, shots=7, **how)


def points():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(72, 1, generator=generator), torch.rand(72, 1, generator=generator)
    return PointTasks(
        PointPool(x, y, torch.full((9,), 8), tuple("abcdefghi"), torch.arange(9) % 2), 3, 4, 1
    )


def by_hand(images, generator):
    """A change that knows nothing of shares."""
    return images * torch.rand(len(images), 1, 1, 1, generator=generator)


SHARING = {
    "sinusoid": SinusoidTasks(shots=5, queries=6, ragged=0.5),
    "classes": classes(),
    "classes, augmented": classes(EVERYTHING, fewest_shots=1),
    "classes, one drawer": classes(Jitter(1.0), same_drawer=True),
    "classes, groups": classes(groups=torch.tensor([0, 0, 0, 1, 1, 1])),
    "cameras": cameras(Jitter(0.5), crosstalk=0.2, fewest_shots=1),
    "functions": functions(),
    "functions, masked": functions(queries=9, fewest_shots=2),
    "functions, together": functions(queries=9, fewest_shots=2, together=True),
    "hyperteacher": HyperteacherTasks(modules=2, active=1, shots=5, queries=6),
    "mixed": MixedTasks([SinusoidTasks(shots=5, queries=6), SinusoidTasks(shots=3, queries=8)]),
}
WHOLE = {
    "points": points(),
    "classes, changed by a function": classes(by_hand),
    "classes, changed in turn by one that shares and a function": classes(
        InTurn((Flip(), by_hand))
    ),
    "cameras, changed by a function": cameras(lambda images, generator: by_hand(images, generator)),
}
SOURCES = SHARING | WHOLE


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", SOURCES)
def test_the_shares_of_all_processes_are_what_one_process_draws(name, world):
    source = SOURCES[name]
    drawn = source.sample(12, torch.Generator().manual_seed(5))
    for rank in range(world):
        generator = torch.Generator().manual_seed(5)
        share = draw_share(source, slice(rank, None, world))(12, generator)
        whole = drawn.take(slice(rank, None, world))
        torch.testing.assert_close(tensors_of(share), tensors_of(whole), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SOURCES)
def test_whatever_its_share_a_process_draws_as_many_random_numbers(name):
    """So that what is drawn next is the same too."""
    source, after = SOURCES[name], []
    for share in (slice(None), slice(0, None, 3), slice(2, None, 3)):
        generator = torch.Generator().manual_seed(5)
        draw_share(source, share)(12, generator)
        after.append(torch.rand(4, generator=generator))
    assert torch.equal(after[0], after[1]) and torch.equal(after[0], after[2])


def test_images_of_the_others_are_not_changed(monkeypatch):
    changed = []
    jitter = Jitter.__call__
    monkeypatch.setattr(
        Jitter, "__call__", lambda *how: (changed.append(len(how[1])), jitter(*how))[1]
    )
    for source, images in ((classes(Jitter(1.0)), 18), (cameras(Jitter(1.0)), 17)):
        draw_share(source, slice(1, None, 4))(12, torch.Generator().manual_seed(0))
        assert changed.pop() == 3 * images and not changed


def test_a_source_whose_own_sample_takes_no_share_is_asked_for_all():
    class Shifted(SinusoidTasks):
        def sample(self, tasks, generator):
            drawn = super().sample(tasks, generator)
            return drawn._replace(query=drawn.query._replace(y=drawn.query_y + 1))

    share = draw_share(Shifted(), slice(1, None, 2))(4, torch.Generator().manual_seed(0))
    whole = SinusoidTasks().sample(4, torch.Generator().manual_seed(0))
    assert torch.equal(share.query_y, whole.query_y[1::2] + 1)
