"""Limits of what is read from a user's own files, so that no file decides on time or memory by itself.

In:   nothing; one limit is read from the environment.
Out:  numbers.
Knows nothing of any format.
"""

import math
import os

from weightloom.errors import ConfigError

MOST_TEXT_BYTES = 16_000_000
"""Bytes of a file of text, JSON or YAML."""
MOST_LEVELS = 50
"""Levels of objects and lists within each other."""
MOST_YAML_VALUES = 10_000
"""Values in a YAML file, which is written by hand; JSON has no such limit."""
MOST_FILE_BYTES = 2_000_000_000
"""A table, a ``.jsonl`` or an ``.npz``, unpacked."""
MOST_MEMORY_BYTES = 2_000_000_000
"""Pictures of a folder, as they are held in memory."""
MOST_UNPACKED = 100
"""What is compressed may be so many times its size on disk."""
FREE_BYTES = 4_000_000
"""What is compressed may be so large in any case."""
MOST_COLUMNS = 10_000
"""Columns of a table."""
MOST_NAME = 200
"""Letters in the name of a column."""
MOST_LINE = 1_000_000
"""Letters of a line or row of a table or a ``.jsonl``."""
MOST_BLANK_LINES = 100_000
"""Lines of a table or a ``.jsonl`` that hold nothing."""
MOST_TABLE_TASKS = 1_000_000
"""Tasks of a table."""
MOST_ARRAYS = 1_000
"""Arrays in an ``.npz``."""
MOST_SHOWN = 10_000
"""Examples in a support set of a task of one's own."""
MOST_ASKED = 100_000
"""Inputs that an adapted network answers together."""
MOST_SOUND_BYTES = 100_000_000
"""A ``.wav`` file, 100 minutes."""
MEGAPIXELS = 50
"""A picture; a million pixels each."""
MEGAPIXELS_VARIABLE = "WEIGHTLOOM_MAX_MEGAPIXELS"
"""Allows larger pictures, as in ``WEIGHTLOOM_MAX_MEGAPIXELS=200``."""


def most_pixels() -> int:
    """Return how many pixels a picture may have: `MEGAPIXELS`, or what the environment allows.

    Raises:
        ConfigError: If the variable holds no positive number.
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
