"""What one few-shot run is: every option once, with its default and its check."""

from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

from weightloom.apps.fewshot.methods import FAMILIES, FITS
from weightloom.apps.fewshot.presets import COMMON, PRESETS, data_kind
from weightloom.errors import ConfigError
from weightloom.runs.options import RunOptions

MOST_EXAMPLES = 100_000_000
"""Examples of one step of training."""
BLOCK_STEPS = 20
"""Steps of a turn, where none were asked for."""


@dataclass(frozen=True)
class FewShotConfig(RunOptions):
    """One few-shot run. Every field is also a command-line flag of the same name."""

    command: ClassVar[str] = "fewshot"
    rate: ClassVar[str] = "outer_lr"
    imports: ClassVar[tuple[str, ...]] = (*RunOptions.imports, "data", "base")
    swept: ClassVar[tuple[str, ...]] = ("outer_lr", "clip_norm", "weight_decay", "average")

    groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "Data and tasks": (
            *("data", "ways", "shots", "queries", "uneven_shots", "train_ways"),
            *("split", "held_out", "tasks", "test_tasks"),
        ),
        "Methods": ("base", "normalisation", "inner_steps", "inner_lr"),
        "Training": ("outer_lr", "clip_norm", "weight_decay", "average", "mode", "block_steps"),
        "Machine": ("accelerator", "devices", "nodes", "precision"),
    }

    data: str = "cameras"
    """Data: a name from `weightloom list`, a folder of pictures, a .csv file with a column `task`,
    or a `TaskSource` of your own as `module:Class`."""
    base: str | None = None
    """A network of your own as `module:Class`, called with a number of outputs. Default: what suits
    the data."""
    ways: tuple[int, ...] | None = None
    """Classes per task, a block of the table for each. None: what suits the data."""
    shots: tuple[int, ...] | None = None
    """Support points per class (per task in a regression), a block of the table for each. None:
    suits the data."""
    uneven_shots: bool = False
    """Judge on tasks whose classes have unequal shots, from 1 to each of `--shots`."""
    queries: int | None = None
    """Query points per class (per task of curves, pictures or cameras). None: what suits the
    data."""
    train_ways: int | None = None
    """Classes per task in meta-training. None: what suits the data."""
    split: int = 0
    """Which classes are held out. Digits 0, 1, 2: {0,1,2}, {3,4,5}, {6,7,8,9}; elsewhere a fold or
    a seed."""
    held_out: Literal["test", "validation"] = "test"
    """Judge on test, or tune on validation: classes taken from those of meta-training."""
    normalisation: Literal["group", "batch", "transductive"] | None = None
    """How images are normalised: each by itself; by running statistics; or by those of each task's
    images together. None: what suits the data, never the last."""
    mode: Literal["joint", "alternating", "bilevel"] = "joint"
    """Train all at once; base and hypernetwork in turn; or through gradient steps on the support
    set."""
    block_steps: int = BLOCK_STEPS
    """Steps of each turn, with `--mode alternating`."""
    inner_steps: int | None = None
    """Gradient steps on the support set, where a method takes them. None: what suits the method."""
    inner_lr: float | None = None
    """Length of these steps. None: what suits the method."""
    tasks: int | None = None
    """Tasks per step, over all processes. None: what suits the data."""
    outer_lr: float | None = None
    """Peak learning rate. None: what suits the data."""
    clip_norm: float | None = None
    """Largest norm of the gradient. None: what suits the data."""
    weight_decay: float | None = None
    """Decay of matrices and kernels. None: what suits the data."""
    average: float | None = None
    """Decay per step of the running average of the parameters that is judged; 0: none. None: what
    suits the data."""
    test_tasks: int | None = None
    """Tasks the table is computed from, better 600 or more. None: what suits the data."""
    devices: int = 1
    """Processes, or accelerators, on each machine that share the tasks of a step."""
    nodes: int = 1
    """Machines; start the same command on each by `torchrun`."""
    precision: Literal["32-true", "bf16-mixed"] | None = None
    """Arithmetic of meta-training; judging is always in 32 bits. None: what suits the data and the
    processor."""
    accelerator: Literal["cpu", "auto", "cuda", "mps"] = "cpu"
    """Where to compute. Runs repeat bit for bit on the CPU only."""

    def __post_init__(self) -> None:
        """Check what can be checked without the data."""
        super().__post_init__()
        kind = self.kind
        self.check_counts(
            "queries",
            "train_ways",
            "tasks",
            "test_tasks",
            "devices",
            "nodes",
            "inner_steps",
            "block_steps",
        )
        self.check_seeds("split")
        if self.base == "":
            raise ConfigError(
                "`--base` is empty. It is a network of your own, as in `--base my_networks:Net`."
            )
        curves = FAMILIES["curves"]
        if (kind == "sinusoid" and self.split) or (
            kind in curves and self.normalisation not in (None, "group")
        ):
            option = "--split" if kind == "sinusoid" and self.split else "--normalisation"
            raise ConfigError(
                f"`{option}` with `--data {self.data}` changes nothing there. Leave it out."
            )
        self.check_distinct("ways", "shots")
        if PRESETS[kind]["ways"] == (1,):
            for option, asked in (
                ("ways", self.ways or (1,)),
                ("train-ways", (self.train_ways or 1,)),
            ):
                if asked != (1,):
                    raise ConfigError(
                        f"`--{option} {' '.join(map(str, asked))}` with `--data {self.data}`, a "
                        f"regression. It has no classes to count. Leave `--{option}` out; "
                        "`--shots` are the points of a task."
                    )
        if self.mode != "alternating" and self.block_steps != BLOCK_STEPS:
            raise ConfigError(
                f"`--block-steps {self.block_steps}` with `--mode {self.mode}`, which has no "
                "turns. Type `--mode alternating`, or leave it out."
            )
        if any(ways < 1 for ways in self.ways or (1,)) or self.ways == ():
            raise ConfigError(
                f"`--ways {self.ways}` is too small. It counts classes. Type `--ways 5`, or "
                "`--ways 5 20`."
            )
        for shots in self.shots or ():
            if shots < 1:
                raise ConfigError(
                    f"`--shots {shots}` leaves nothing to adapt on. A method learns a task from "
                    "its support set. Pass 1 or more, as in `--shots 1 5`."
                )
        if self.shots == ():
            raise ConfigError(
                "`--shots` is empty. A method learns a task from its support set. Type `--shots 1 "
                "5`."
            )
        largest_ways, largest_shots = max(self.ways or [1]), max(self.shots or [1])
        examples: int = (self.tasks or 1) * largest_ways * (largest_shots + (self.queries or 1))
        if examples > MOST_EXAMPLES:
            raise ConfigError(
                f"`--tasks`, `--ways`, `--shots` and `--queries` ask for {examples:,} examples a "
                f"step. They are held in memory together, at most {MOST_EXAMPLES:,}. Pass a "
                "smaller number of one of them."
            )
        self.check_positive("outer_lr", "clip_norm", "inner_lr")
        self.check_not_negative("weight_decay", "average")
        if self.average is not None and self.average >= 1:
            raise ConfigError(
                f"`--average {self.average}` never moves. It is a decay below 1. Type `--average "
                "0.99`."
            )
        self.check_methods(FITS[kind], f"--data {self.data}", PRESETS[kind]["comparators"])

    @property
    def kind(self) -> str:
        """Key of the data in `FITS`."""
        return data_kind(self.data)

    def code(self) -> dict[str, str]:
        """Leave out the path of a folder or a table, which may hold a colon too."""
        return {
            name: option
            for name, option in super().code().items()
            if option != "--data" or self.kind == "own"
        }

    def validating(self) -> "FewShotConfig":
        """Return the options of a run that is judged on validation tasks."""
        return replace(self, held_out="validation")

    def resolved(self) -> "FewShotOptions":
        """Fill in what was left to the data."""
        defaults = {**COMMON, **PRESETS[self.kind]}
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        if self.minutes is not None:
            missing.pop("steps", None)
        if "comparators" in missing:
            missing["comparators"] = tuple(
                name for name in missing["comparators"] if name != self.method
            )
        if (
            missing.get("precision") == "bf16-mixed"
            and self.accelerator == "cpu"
            and not processor_knows_bf16()
        ):
            missing["precision"] = (
                "32-true"  # half precision that is emulated takes longer than single
            )
        return FewShotOptions(
            **{**{field.name: getattr(self, field.name) for field in fields(self)}, **missing}
        )


@dataclass(frozen=True, kw_only=True)
class FewShotOptions(FewShotConfig):
    """The same, every option filled in; ``steps`` may be None where ``minutes`` is given."""

    comparators: tuple[str, ...]
    ways: tuple[int, ...]
    shots: tuple[int, ...]
    queries: int
    normalisation: Literal["group", "batch", "transductive"]
    tasks: int
    outer_lr: float
    clip_norm: float
    weight_decay: float
    average: float
    evaluate_every: int
    checkpoint_every: int
    test_tasks: int
    precision: Literal["32-true", "bf16-mixed"]

    def resolved(self) -> "FewShotOptions":
        """Return them as they are."""
        return self


def processor_knows_bf16() -> bool:
    """Whether the processor has instructions for bf16; where torch cannot say, that it has."""
    import torch

    if not hasattr(torch.cpu, "get_capabilities"):
        return True
    return any(
        known is True for name, known in torch.cpu.get_capabilities().items() if "bf16" in name
    )
