"""What one few-shot run is: every option once, with its default and its check."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from weightloom.errors import ConfigError, nearest

DATA = ("digits", "omniglot", "sinusoid")

PRESETS: dict[str, dict[str, Any]] = {
    "digits": {
        "ways": 3,
        "train_ways": 3,
        "shots": (1, 5),
        "queries": 10,
        "steps": 300,
        "tasks": 16,
        "outer_lr": 2e-4,
        "evaluate_every": 50,
        "test_tasks": 600,
        "comparators": ("protonet", "centroid", "scratch"),
    },
    "omniglot": {
        "ways": 5,
        "train_ways": 15,
        "shots": (1,),
        "queries": 5,
        "steps": 5000,
        "tasks": 8,
        "outer_lr": 2e-3,
        "evaluate_every": 500,
        "test_tasks": 1000,
        "comparators": ("protonet", "centroid", "scratch"),
    },
    "sinusoid": {
        "ways": 1,
        "train_ways": 1,
        "shots": (10, 5),
        "queries": 50,
        "steps": 4000,
        "tasks": 32,
        "outer_lr": 1e-3,
        "evaluate_every": 500,
        "test_tasks": 2000,
        "comparators": ("scratch",),
    },
}
"""What suits each data set; tuned on validation tasks, the comparators with the same care."""


@dataclass(frozen=True)
class FewShotConfig:
    """One few-shot run. Every field is also a command-line flag of the same name."""

    data: str = "digits"
    """What to learn: digits (ships with scikit-learn), omniglot, or sinusoid (regression)."""
    ways: int | None = None
    """Classes per task. None: digits 3, omniglot 5."""
    shots: tuple[int, ...] | None = None
    """Support points per class (per task for the sinusoid), a block of the table for each. None: suits the data."""
    queries: int | None = None
    """Query points per class (per task for the sinusoid). None: what suits the data."""
    train_ways: int | None = None
    """Classes per task in meta-training. None: digits 3, omniglot 15."""
    split: int = 0
    """Which classes are held out. Digits 0, 1, 2: {0,1,2}, {3,4,5}, {6,7,8,9}; omniglot: the seed of the shuffle."""
    held_out: Literal["test", "validation"] = "test"
    """Judge on test, or tune on validation: classes taken from those of meta-training."""
    steps: int | None = None
    """Optimiser steps of meta-training, the same for every trained method. None: what suits the data."""
    tasks: int | None = None
    """Tasks per step. None: what suits the data."""
    outer_lr: float | None = None
    """Peak learning rate. None: what suits the data."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    evaluate_every: int | None = None
    """Steps between evaluations during training. None: digits 50, others 500."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    test_tasks: int | None = None
    """Tasks the table is computed from, better 600 or more. None: digits 600, omniglot 1000, sinusoid 2000."""
    comparators: tuple[str, ...] | None = None
    """Which to run beside the hypernetwork. None: all that fit the data: protonet, centroid, scratch."""
    seed: int = 0
    """Everything random follows from it."""
    threads: int = 1
    """CPU threads of each process; for networks as small as these one is quickest."""
    devices: int = 1
    """Processes, or accelerators, that share the tasks of a step."""
    accelerator: Literal["cpu", "auto", "cuda", "mps"] = "cpu"
    """Where to compute. Runs repeat bit for bit on the CPU only."""

    def __post_init__(self) -> None:
        """Check what can be checked without the data."""
        if self.data not in DATA:
            raise ConfigError(
                f"`--data {self.data}` is unknown. {nearest(self.data, DATA)} `weightloom list` shows what is there."
            )
        for name in (
            "ways",
            "queries",
            "train_ways",
            "steps",
            "tasks",
            "test_tasks",
            "threads",
            "devices",
            "evaluate_every",
            "checkpoint_every",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"`--{name.replace('_', '-')} {value}` is too small. It is a count. Pass 1 or more.")
        for shots in self.shots or ():
            if shots < 1:
                raise ConfigError(
                    f"`--shots {shots}` leaves nothing to adapt on. A method learns a task from its support set. "
                    "Pass 1 or more, as in `--shots 1 5`."
                )
        if self.shots == ():
            raise ConfigError("`--shots` is empty. A method learns a task from its support set. Type `--shots 1 5`.")
        for name in ("outer_lr", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(
                    f"`--{name.replace('_', '-')} {value}` is not a positive number. Pass one, as in 0.001."
                )
        known = PRESETS[self.data]["comparators"]
        for name in self.comparators or ():
            if name not in known:
                raise ConfigError(
                    f"`--comparators {name}` does not go with `--data {self.data}`. A comparator must solve the same "
                    f"tasks. {nearest(name, known)}"
                )

    def resolved(self) -> "FewShotConfig":
        """Fill in what was left to the data."""
        missing = {name: value for name, value in PRESETS[self.data].items() if getattr(self, name) is None}
        return replace(self, **missing)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> "FewShotConfig":
        """Build a config from JSON or YAML values, every type checked.

        Raises:
            ConfigError: If an option is unknown or of another type.
        """
        from pydantic import TypeAdapter, ValidationError

        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigError(
                    f"Option {name!r} is unknown. {nearest(name, known)} See `weightloom fewshot --help`."
                )
        try:
            return TypeAdapter(cls).validate_python(options)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(
                f"Option {'.'.join(map(str, first['loc']))!r} is {first.get('input')!r}: {first['msg']}. "
                "See `weightloom fewshot --help` for what fits."
            ) from error
