"""Pools of real images, read from this machine or downloaded once, and the splits of their classes.

In:   the name of a data set.
Out:  `ClassPool`, the examples of every class; and the classes for meta-training and held out.
Independent of tasks, support and query.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weightloom.datasets import find_file, searched_folders
from weightloom.errors import ConfigError, DataError, MissingExtraError, ShapeError, nearest
from weightloom.tasks import omniglot


class ClassPool(NamedTuple):
    """Labelled examples by class: images, or features of sentences.

    Classes may have different numbers of examples.
    """

    examples: Tensor
    """Examples, (classes, examples of the largest class, *event), images as uint8; smaller classes
    are padded with zeros."""
    counts: Tensor
    """Number of examples per class, (classes,), int64."""
    names: tuple[str, ...]
    """Name of each class, e.g. ``"7"`` or ``"Greek/character03"``."""
    sentences: tuple[tuple[str, ...], ...] = ()
    """Text of each example, by class, to be displayed; empty for images."""
    descriptions: tuple[str, ...] = ()
    """Sentence about each class, read in place of its name; empty: the names are read."""
    named: Tensor | None = None
    """One more example of each class, made of its name or description, (classes, *event), for
    `ClassTasks.named`; None if names are not encoded. `with_names` adds it."""

    def pick(self, classes: Sequence[int]) -> "ClassPool":
        """Select some classes, by their numbers.

        Example:
            >>> pool = ClassPool(torch.rand(3, 5, 8), torch.full((3,), 5), ("a", "b", "c"))
            >>> pool.pick([2, 0]).names
            ('c', 'a')
        """
        index = torch.as_tensor(classes, dtype=torch.int64)

        def some(of_classes: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(of_classes[number] for number in classes) if of_classes else ()

        return ClassPool(
            self.examples[index],
            self.counts[index],
            some(self.names),
            some(self.sentences),
            some(self.descriptions),
            None if self.named is None else self.named[index],
        )


def load_digits() -> ClassPool:
    """Load scikit-learn's 1,797 handwritten digits: 10 classes of 174 to 183 images, 1x8x8.

    Ink is bright. Pixels are scaled from 0 to 16 to 0 to 255, and rounded. The images come with
    scikit-learn, so none are downloaded.

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
    """Load scikit-learn's digits in their original order, writer by writer.

    Returns:
        Images, (1797, 8, 8), uint8, and labels, (1797,), int64.

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
    """Load Omniglot: 1,623 handwritten characters of 50 alphabets, 20 drawings each, 1x28x28.

    Ink is bright. The file ``omniglot28.npz`` is read from the first folder of
    ``searched_folders("omniglot")`` that contains it. If none does, the authors' drawings (16 MB)
    are downloaded, averaged from 105x105 to 28x28 in 16 levels of grey, and kept in the user's
    cache. Class i is the authors' character number i + 1: the first 964 are their background set,
    the others their evaluation set.

    Args:
        download: Allow the download.

    Raises:
        DataError: If the file is not found and cannot be downloaded, or it is damaged.

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
    """Return the digits to meta-train on and the held-out digits, in one of three partitions.

    Each digit is held out in exactly one partition, so three runs test all ten.

    Args:
        split: Number of the partition, 0 to 2.

    Raises:
        ConfigError: If ``split`` is outside this range.

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
    """Return 1,200 classes of Omniglot to meta-train on and the 423 others, drawn at random.

    Args:
        seed: Seed of the shuffle.

    Example:
        >>> train, held_out = omniglot_split()
        >>> train.shape, held_out.shape
        (torch.Size([1200]), torch.Size([423]))

    Source:
        Vinyals et al., "Matching networks for one shot learning" (2016), for the sizes; the shuffle
        is another.
    """
    order = torch.randperm(1623, generator=torch.Generator().manual_seed(seed))
    return order[:1200], order[1200:]


def lake_split(pool: ClassPool, alphabets: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    """Return the classes of Omniglot's background set to meta-train on, and its evaluation set.

    The two sets share no alphabet. With `class_groups` and
    ``ClassTasks(ways=20, shots=1, queries=1, same_drawer=True)`` tasks are those of the authors: 20
    characters of one alphabet, drawn once by one person and once by another.

    Args:
        pool: Pool returned by `load_omniglot`.
        alphabets: Alphabets of the background set. None: all 30, 964 classes. ``omniglot.SMALL1``
            is the authors' first "minimal" set of five.

    Returns:
        Class numbers to meta-train on, and the 659 class numbers of the evaluation set.

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
    """Group classes by the part of their name before the slash: alphabets, speakers.

    A rotation is part of the group: a rotated alphabet is another alphabet.

    Args:
        names: Names of the classes of a pool, e.g. ``"Greek/character03"`` or
            ``"Greek/character03@90"``.

    Returns:
        Group of each class, (classes,), int64, for ``ClassTasks.groups``; and the names of the
        groups, in order of first occurrence.

    Example:
        >>> class_groups(["Greek/character01", "Latin/character01", "Greek/character02"])
        (tensor([0, 1, 0]), ('Greek', 'Latin'))
    """
    of_class = [name.split("/")[0] + "".join(name.partition("@")[1:]) for name in names]
    known = {group: number for number, group in enumerate(dict.fromkeys(of_class))}
    return torch.tensor([known[group] for group in of_class], dtype=torch.int64), tuple(known)


def rotated(pool: ClassPool, quarter_turns: Sequence[int]) -> ClassPool:
    """Append rotated copies of every class to a pool, as new classes.

    Args:
        pool: Pool of square images.
        quarter_turns: Rotations in quarter turns counter-clockwise: different numbers from 1 to 3.
            Class ``a`` rotated once is named ``a@90``.

    Raises:
        ConfigError: If a number is outside 1 to 3, or repeated, as one class would get two labels.
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
        "The drawings do not come with this library: they are downloaded once, 16 MB, from the "
        f"authors' home. Set `WEIGHTLOOM_DATA` to a folder that holds `omniglot/{omniglot.FILE}`, "
        "or connect to the network and run again."
    )
