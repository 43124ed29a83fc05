"""Write the pictures of CIFAR-FS into a folder, as a user's own photographs would lie there.

    python benchmarks/cifar_folder.py runs/photographs

Each class is a folder of 100 pictures of 64x64 pixels, enlarged from 32x32, in `train`, `val` or
`test` by the authors' split.
"""

import argparse
from pathlib import Path

from PIL import Image

from weightloom.tasks.cifar_fs import load_cifar_fs

PARTS = {"train": "train", "validation": "val", "test": "test"}
SIZE = 64


def write(folder: Path) -> None:
    """Write the folder; pictures that are there are written again."""
    pool, split = load_cifar_fs()
    for part, classes in split.items():
        for number in classes:
            place = folder / PARTS[part] / pool.names[number]
            place.mkdir(parents=True, exist_ok=True)
            pictures = pool.examples[number, : int(pool.counts[number])].permute(0, 2, 3, 1)
            for index, pixels in enumerate(pictures.numpy()):
                large = Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
                large.save(place / f"{index:03}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
