"""Pools of real images: found on this machine or fetched once, and checked.

In:   the name of a set.
Out:  `ClassPool`, the examples of every class; and which classes are for meta-training and which
      are held out.
Knows nothing of tasks, support or query.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from weightloom.datasets import find_file, searched_folders
from weightloom.errors import ConfigError, DataError, MissingExtraError, ShapeError, nearest
from weightloom.tasks import omniglot


class ClassPool(NamedTuple):
    """Labelled examples, class by class: images, features of sentences.

    Classes may hold unequal numbers.
    """

    examples: Tensor
    """(classes, most examples of a class, *event), images as uint8; zeros behind a class's last."""
    counts: Tensor
    """How many examples each class has, (classes,), int64."""
    names: tuple[str, ...]
    """One per class, as in ``"7"`` or ``"Greek/character03"``."""
    sentences: tuple[tuple[str, ...], ...] = ()
    """What a person reads in the place of an example, class by class; empty where examples can be
    looked at."""


def load_digits() -> ClassPool:
    """Load scikit-learn's 1,797 handwritten digits.

    10 classes of 174 to 183 images, 1x8x8, ink bright.

    Nothing is downloaded. The set's pixels 0 to 16 become 0 to 255, rounded.

    Raises:
        MissingExtraError: If scikit-learn is not installed.

    Source:
        Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI (1998), its test part.
    """
    pixels, labels = load_digit_images()
    counts = torch.bincount(labels, minlength=10)
    images = torch.zeros(10, int(counts.max()), 1, 8, 8, dtype=torch.uint8)
    for digit, count in enumerate(counts.tolist()):
        images[digit, :count, 0] = pixels[labels == digit]
    return ClassPool(images, counts, tuple(str(digit) for digit in range(10)))


def load_digit_images() -> tuple[Tensor, Tensor]:
    """Load the same digits one by one in the set's own order, writer after writer.

    (1797, 8, 8), uint8, and labels.

    Raises:
        MissingExtraError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise MissingExtraError(
            f"The digits come with scikit-learn, which cannot be imported ({error}). "
            "It is an optional part of this library, because only this set needs it. "
            "Type `pip install 'weightloom[digits]'`."
        ) from error
    found = load()
    pixels = torch.from_numpy(found.images * 255 / 16).round().to(torch.uint8)
    return pixels, torch.from_numpy(found.target)


def load_omniglot(download: bool = True) -> ClassPool:
    """Load Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings of each, 1x28x28, ink bright.

    Read from ``omniglot28.npz`` in the first of ``searched_folders("omniglot")`` that has it. Where
    none does, the authors' drawings (16 MB) are fetched, averaged from 105x105 to 28x28 in 16
    levels of grey, and kept in the cache. Class i is the authors' character number i + 1: the first
    964 are their background set, the others their evaluation set.

    Args:
        download: Whether to fetch what is not on this machine.

    Raises:
        DataError: If the set is nowhere and cannot be fetched, or the file found is damaged.

    Source:
        Lake, Salakhutdinov and Tenenbaum, "Human-level concept learning through probabilistic
        program induction", Science (2015); https://github.com/brendenlake/omniglot, MIT licence.
    """
    path = find_file("omniglot", omniglot.FILE)
    if path is None and not download:
        raise _not_found("and `download=False` forbids fetching it")
    if path is None:
        try:
            path = omniglot.fetch_omniglot(searched_folders("omniglot")[-1])
        except OSError as error:
            raise _not_found(f"and fetching it failed ({error})") from error
    arrays = omniglot.read_omniglot(path)
    images = torch.from_numpy(omniglot.unpack4(arrays["images4"]))[:, :, None]
    alphabets = arrays["alphabets"][arrays["alphabet"]].tolist()
    names = zip(alphabets, arrays["character"].tolist(), strict=True)
    counts = torch.full((len(images),), images.shape[1])
    return ClassPool(
        images, counts, tuple(f"{alphabet}/{character}" for alphabet, character in names)
    )


def digits_split(split: int) -> tuple[list[int], list[int]]:
    """Return the digits to meta-train on and the digits held out, in one of three partitions.

    Each digit is held out in exactly one of them, so that three runs judge all ten.

    Example:
        >>> digits_split(0)
        ([3, 4, 5, 6, 7, 8, 9], [0, 1, 2])
    """
    partitions = {0: [0, 1, 2], 1: [3, 4, 5], 2: [6, 7, 8, 9]}
    if split not in partitions:
        raise ConfigError(
            f"`split={split!r}`. There are three splits: they hold out the digits 0 to 2, 3 to 5, "
            "6 to 9. Pass 0, 1 or 2."
        )
    held_out = partitions[split]
    return [digit for digit in range(10) if digit not in held_out], held_out


def omniglot_split(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return 1,200 classes of Omniglot to meta-train on and the 423 others, shuffled by ``seed``.

    Example:
        >>> train, held_out = omniglot_split()
        >>> train.shape, held_out.shape
        (torch.Size([1200]), torch.Size([423]))

    Source:
        Vinyals et al., "Matching networks for one shot learning" (2016). The sizes are theirs, the
        shuffle is ours.
    """
    order = torch.randperm(1623, generator=torch.Generator().manual_seed(seed))
    return order[:1200], order[1200:]


def lake_split(pool: ClassPool, alphabets: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    """Return the classes of Omniglot's background set to meta-train on and the 659 of its evaluation set.

    The two share no alphabet. With `class_groups` and
    ``ClassTasks(ways=20, shots=1, queries=1, same_drawer=True)`` a task is as the authors': 20
    characters of one alphabet, drawn once by one person and once by another.

    Args:
        pool: What `load_omniglot` returned.
        alphabets: Which alphabets of the background set; None: all 30, 964 classes.
            ``omniglot.SMALL1`` is the authors' first "minimal" set of five.

    Raises:
        ConfigError: If an alphabet is not in the background set.

    Source:
        Lake, Salakhutdinov and Tenenbaum, "The Omniglot challenge: a 3-year progress report"
        (2019).
    """
    groups, known = class_groups(pool.names[: omniglot.BACKGROUND])
    for alphabet in alphabets or ():
        if alphabet not in known:
            raise ConfigError(
                f"`alphabets` names `{alphabet}`, which is none of the {len(known)} of the "
                f"background set. They are named as in `pool.names`. {nearest(alphabet, known)}"
            )
    wanted = torch.tensor([alphabets is None or name in alphabets for name in known])
    return wanted[groups].nonzero()[:, 0], torch.arange(len(groups), len(pool.names))


def class_groups(names: Sequence[str]) -> tuple[Tensor, tuple[str, ...]]:
    """Number the groups that classes are of by their names.

    The alphabets of Omniglot, the speakers of spoken digits.

    A group is what stands before the slash, and the rotation: an alphabet turned is another
    alphabet.

    Args:
        names: Of a pool, as in ``"Greek/character03"`` or ``"Greek/character03@90"``.

    Returns:
        The group of each class, (classes,), int64, for ``ClassTasks.groups``; and the names of the
        groups.

    Example:
        >>> class_groups(["Greek/character01", "Latin/character01", "Greek/character02"])
        (tensor([0, 1, 0]), ('Greek', 'Latin'))
    """
    of_class = [name.split("/")[0] + "".join(name.partition("@")[1:]) for name in names]
    known = {group: number for number, group in enumerate(dict.fromkeys(of_class))}
    return torch.tensor([known[group] for group in of_class], dtype=torch.int64), tuple(known)


def rotated(pool: ClassPool, quarter_turns: Sequence[int]) -> ClassPool:
    """Return the pool with every class once more per rotation, as new classes behind the old.

    Args:
        pool: Square images.
        quarter_turns: Different numbers from 1 to 3, counter-clockwise. Class ``a`` turned once is
            ``a@90``.

    Raises:
        ConfigError: If a number is none of these or stands there twice: one class would get two
            labels.
        ShapeError: If the images are not square.

    Source:
        Santoro et al., "Meta-learning with memory-augmented neural networks" (2016).
    """
    turns = list(quarter_turns)
    if len(set(turns)) < len(turns) or not set(turns) <= {1, 2, 3}:
        raise ConfigError(
            f"`quarter_turns={quarter_turns}`. Whole turns, or the same turn twice, would make two "
            "classes that look the same. Pass different numbers from 1 to 3, as in "
            "`quarter_turns=(1, 2, 3)`."
        )
    height, width = pool.examples.shape[-2:]
    if height != width:
        raise ShapeError(
            f"`pool.examples` are {height} pixels high and {width} wide. Turned, they would not "
            "fit beside the others. Pad them to squares with `torch.nn.functional.pad` first."
        )
    images = [pool.examples] + [torch.rot90(pool.examples, turn, (-2, -1)) for turn in turns]
    names = list(pool.names) + [f"{name}@{90 * turn}" for turn in turns for name in pool.names]
    return ClassPool(torch.cat(images), pool.counts.repeat(1 + len(turns)), tuple(names))


def _not_found(why: str) -> DataError:
    folders = " nor in ".join(f"`{folder}`" for folder in searched_folders("omniglot"))
    return DataError(
        f"Omniglot's file `{omniglot.FILE}` is not in {folders}, {why}. "
        "The drawings do not come with this library: they are fetched once, 16 MB, from the "
        f"authors' home. Set `WEIGHTLOOM_DATA` to a folder that holds `omniglot/{omniglot.FILE}`, "
        "or connect to the network and run again."
    )
