"""Limits on files that a user provides, so that no file can exhaust time or memory.

In:   one limit from the environment; the others are constants.
Out:  numbers.

Independent of every file format.
"""

import math
import os

from weightloom.errors import ConfigError

MOST_TEXT_BYTES = 16_000_000
"""Bytes of a text, JSON or YAML file."""
MOST_LEVELS = 50
"""Nesting depth of objects and lists in JSON and YAML."""
MOST_YAML_VALUES = 10_000
"""Values in a YAML file, which is written by hand; JSON has no such limit."""
MOST_FILE_BYTES = 2_000_000_000
"""Bytes of a table, a ``.jsonl`` or an ``.npz``, uncompressed."""
MOST_MEMORY_BYTES = 2_000_000_000
"""Bytes in memory of all pictures in a folder."""
MOST_UNPACKED = 100
"""Compression ratio: uncompressed bytes per byte on disk, beyond `FREE_BYTES`."""
FREE_BYTES = 4_000_000
"""Uncompressed bytes that are allowed at any compression ratio."""
MOST_COLUMNS = 10_000
"""Columns of a table."""
MOST_NAME = 200
"""Letters in the name of a column."""
MOST_LINE = 1_000_000
"""Letters in a line or row of a table or a ``.jsonl``."""
MOST_BLANK_LINES = 100_000
"""Blank lines in a table or a ``.jsonl``."""
MOST_TABLE_TASKS = 1_000_000
"""Tasks in a table."""
MOST_ARRAYS = 1_000
"""Arrays in an ``.npz``."""
MOST_SHOWN = 10_000
"""Examples in the support set that a user provides for a task."""
MOST_ASKED = 100_000
"""Inputs that an adapted network answers in one request."""
MOST_SOUND_BYTES = 100_000_000
"""Bytes of a ``.wav`` file: 100 minutes."""
MEGAPIXELS = 50
"""Default for the size of a picture, in millions of pixels."""
MEGAPIXELS_VARIABLE = "WEIGHTLOOM_MAX_MEGAPIXELS"
"""Environment variable that replaces `MEGAPIXELS`, e.g. ``WEIGHTLOOM_MAX_MEGAPIXELS=200``."""


def most_pixels() -> int:
    """Return the maximum number of pixels of a picture.

    It is `MEGAPIXELS`, or the value of the environment variable `MEGAPIXELS_VARIABLE`, times a
    million.

    Raises:
        ConfigError: If the variable is not a number above 0 and below a million.
    """
    typed = os.environ.get(MEGAPIXELS_VARIABLE, "")
    try:
        allowed = float(typed) if typed else float(MEGAPIXELS)
    except ValueError:
        allowed = math.nan
    if not 0 < allowed < 1_000_000:
        raise ConfigError(
            f"`{MEGAPIXELS_VARIABLE}={typed}`. It is the size in megapixels up to which pictures "
            f"are read, a number above 0 and below a million. Type `{MEGAPIXELS_VARIABLE}=200`, or "
            f"leave it out for {MEGAPIXELS}."
        )
    return int(allowed * 1e6)
