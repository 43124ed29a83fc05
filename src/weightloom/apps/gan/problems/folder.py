"""A folder of one's own: pictures or WAV files, in a sub-folder per class.

In:   options with a folder as data.
Out:  the problem that reads its kind of files.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from weightloom.apps.gan.presets import holds_sounds
from weightloom.errors import DataError

if TYPE_CHECKING:
    from weightloom.apps.gan.config import GanOptions
    from weightloom.apps.gan.problems.problem import GanProblem


def folder_problem(config: "GanOptions") -> "GanProblem":
    """Open a folder: as sounds if a class holds a WAV file, else as pictures.

    Raises:
        DataError: If the folder does not exist, or holds no class.
    """
    root = Path(config.data).expanduser()
    if not root.is_dir():
        raise DataError(
            f"`--data {config.data}` is no folder. It needs a sub-folder of pictures or WAV files "
            "for each class. `weightloom list gan` shows the data that need none."
        )
    if holds_sounds(root):
        from weightloom.apps.gan.problems.sounds import OwnSounds

        return OwnSounds(config)
    from weightloom.apps.gan.problems.pictures import OwnPictures

    return OwnPictures(config)
