"""Options of a few-shot run: each one's type, default and check."""

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

from weightloom.apps.fewshot.methods import FAMILIES, FITS, twins
from weightloom.apps.fewshot.presets import (
    COMMON,
    PRESETS,
    PRETRAINED,
    RATES,
    backbone_for,
    data_kind,
)
from weightloom.errors import ConfigError
from weightloom.platforms import processor_knows_bf16
from weightloom.runs.options import RunOptions, rates_of

MOST_EXAMPLES = 100_000_000
"""Maximum number of examples in one training step."""
MOST_SIZE = 1024
"""Maximum height and width of pictures, in pixels."""
BLOCK_STEPS = 20
"""Default number of steps in a turn of alternating training."""
COUNTS = (
    *("queries", "train_ways", "tasks", "test_tasks"),
    *("devices", "nodes", "inner_steps", "block_steps", "backbone_steps"),
)
"""Options that are counts, at least 1."""


@dataclass(frozen=True)
class FewShotConfig(RunOptions):
    """Options of one few-shot run; every field is also a command-line flag of the same name."""

    command: ClassVar[str] = "fewshot"
    rate: ClassVar[str] = "outer_lr"
    imports: ClassVar[tuple[str, ...]] = (*RunOptions.imports, "data", "base")
    swept: ClassVar[tuple[str, ...]] = ("outer_lr", "clip_norm", "weight_decay", "average")

    groups: ClassVar[dict[str, tuple[str, ...]]] = {
        "Data and tasks": (
            *("data", "ways", "shots", "queries", "uneven_shots", "names", "train_ways"),
            *("split", "held_out", "tasks", "test_tasks"),
        ),
        "Methods": (
            *("base", "backbone", "backbone_steps", "views", "size"),
            *("normalisation", "inner_steps", "inner_lr"),
        ),
        "Training": ("outer_lr", "clip_norm", "weight_decay", "average", "mode", "block_steps"),
        "Machine": ("accelerator", "devices", "nodes", "precision"),
    }

    data: str = "cameras"
    """Data set: a name from `weightloom list`, a folder of pictures, a .csv file with a column
    `task`, or a `TaskSource` of your own as `module:Class`."""
    base: str | None = None
    """Base network of your own as `module:Class`, called with the number of outputs. Default: the
    data set's own: an MLP, a convolutional or a residual network."""
    ways: tuple[int, ...] | None = None
    """Classes per task, a block of the table for each value. Default: by data set, as listed by
    `weightloom list`; 5 for your own data, 1 in a regression."""
    shots: tuple[int, ...] | None = None
    """Support points per class (per task in a regression), a block of the table for each value.
    Default: by data set, as listed by `weightloom list`; 1 and 5 for a folder, 5 for a table or a
    source of your own."""
    uneven_shots: bool = False
    """Judge on tasks whose classes have unequal shots, from 1 to each of `--shots`."""
    names: Literal["support", "none"] | None = None
    """Names of classes: `support` reads each as one more support example, for texts; `none` reads
    none. Default: `support` for intents, else `none`."""
    queries: int | None = None
    """Query points per class (per task of curves, `mnist-functions` or cameras). Default: by data
    set, from 1 to 784; 50 for cameras, 5 for a folder or a table, 10 for a source of your own."""
    train_ways: int | None = None
    """Classes per task in meta-training. Default: by data set, from 3 to 60; those of `--ways` for
    cameras, 5 for a folder or a source of your own."""
    split: int = 0
    """Fold, or seed of the split, that decides which classes are held out. Digits 0, 1 and 2 hold
    out {0,1,2}, {3,4,5} and {6,7,8,9}."""
    held_out: Literal["test", "validation"] = "test"
    """Tasks of the table: `test`, or `validation` to choose options without seeing test tasks."""
    backbone: str | None = None
    """Frozen picture network whose features every method reads: `none`, where each method trains a
    trunk of its own; `trained`, convolutions that are trained first to tell all training classes
    apart; `efficientnet-lite0`, pretrained on photographs; `timm:NAME`, a pretrained model of the
    package `timm`, if you have it. Default: `efficientnet-lite0` for a folder of pictures in colour
    if its package is installed, else `none`."""
    backbone_steps: int | None = None
    """Training steps of `--backbone trained`, each on 64 pictures; the result is kept in the user's
    cache for other runs with the same data and seed. Default: 15000."""
    views: int | None = None
    """Views of each picture whose features are averaged, with a backbone: 1, the picture; 2, its
    mirror image too; 3, its enlarged middle too. Default: 2 for `trained`, else 3."""
    size: int | None = None
    """Height and width, in pixels, that pictures of a folder are loaded at, and that a pretrained
    backbone reads. Default: 144 for `efficientnet-lite0`, the model's own for `timm:NAME`, else
    32."""
    normalisation: Literal["group", "batch", "transductive"] | None = None
    """Normalisation of images: `group` within each image, `batch` by running statistics,
    `transductive` by the statistics of all images of a task. Default: `batch` for omniglot,
    cifar-fs, spoken-digits and folders, else `group`."""
    mode: Literal["joint", "alternating", "bilevel"] = "joint"
    """Training mode: `joint` updates all parameters in each step, `alternating` the base network
    and the hypernetwork in turn, `bilevel` all through gradient steps on the support set."""
    block_steps: int = BLOCK_STEPS
    """Steps of each turn of `--mode alternating`."""
    inner_steps: int | None = None
    """Gradient steps on the support set, in methods that take them. Default: 5, but 3 for
    hyper-maml, 3 for maml and maml-first-order on sinusoids, and 1 for the steps that `--mode
    bilevel` adds."""
    inner_lr: float | None = None
    """Size of these steps. Default: by method and data, from 0.001 (hyper-maml on curves) to 1
    (cavia); 0.01 for the steps that `--mode bilevel` adds."""
    tasks: int | None = None
    """Tasks per training step, over all processes. Default: by data set, from 1 to 64; 16 for
    cameras, 4 for a folder, 32 for a table, 8 for a source of your own."""
    outer_lr: float | None = None
    """Peak learning rate. Default: 0.001, but 0.006 for cameras, 0.0002 for digits, and 0.002 for
    omniglot, cifar-fs, spoken-digits and folders."""
    clip_norm: float | None = None
    """Maximum norm of the gradient. Default: 1, but 5 for omniglot, cifar-fs, spoken-digits,
    intents and folders."""
    weight_decay: float | None = None
    """Weight decay of matrices and kernels. Default: 0, but 0.05 for cifar-fs, and 0.0001 for
    omniglot, spoken-digits and folders; 0 with a pretrained backbone."""
    average: float | None = None
    """Decay per step of the running average of the parameters, which is judged; 0 for none.
    Default: 0, but 0.99 for growth-curves, 0.98 for intents, and 0.998 for omniglot, cifar-fs,
    spoken-digits and folders; 0 with a pretrained backbone."""
    test_tasks: int | None = None
    """Tasks behind each row of the table; 600 or more give narrow intervals. Default: by data set,
    from 200 (cameras) to 2000 (sinusoid); 600 for your own data."""
    devices: int = 1
    """Processes, or accelerators, per machine; they share the tasks of a step."""
    nodes: int = 1
    """Machines; start the same command on each by `torchrun`."""
    precision: Literal["32-true", "bf16-mixed"] | None = None
    """Arithmetic of meta-training; judging is always in 32 bits. Default: `bf16-mixed` for
    omniglot, cifar-fs, spoken-digits, mnist-functions and folders, unless the CPU computes and has
    no bf16 instructions, or a pretrained backbone reads the pictures; else `32-true`."""
    accelerator: Literal["cpu", "auto", "cuda", "mps"] = "cpu"
    """Device to train on. Runs repeat bit for bit on the CPU only."""

    def __post_init__(self) -> None:
        """Check the options, without loading the data.

        Raises:
            ConfigError: If an option is out of range, or does not go with the data or another one.
        """
        super().__post_init__()
        kind = self.kind
        self.check_counts(*COUNTS)
        self.check_seeds("split")
        self._check_base()
        self._check_backbone()
        self._check_used()
        self.check_distinct("ways", "shots")
        self._check_regression()
        self._check_turns()
        self._check_ways_and_shots()
        self._check_memory()
        self.check_positive("outer_lr", "clip_norm", "inner_lr")
        self.check_not_negative("weight_decay", "average")
        self._check_average()
        self.check_methods(FITS[kind], f"--data {self.data}", PRESETS[kind]["comparators"])
        self._check_twins()

    def _check_twins(self) -> None:
        """Raise a `ConfigError` if two methods are one under two names."""
        if both := twins(self.methods, self.kind):
            raise ConfigError(
                f"`{both[0]}` and `{both[1]}` are one method with `--data {self.data}`, and each "
                f"method has one row. Leave `{both[1]}` out."
            )

    def _check_base(self) -> None:
        if self.base == "":
            raise ConfigError(
                "`--base` is empty. It is a network of your own, as in `--base my_networks:Net`."
            )

    def _check_backbone(self) -> None:
        """Raise a `ConfigError` for a backbone, views or size that the data do not use."""
        if self.backbone not in (None, "none") and (
            self.base or self.kind not in FAMILIES["images"]
        ):
            raise ConfigError(
                f"`--backbone {self.backbone}` with "
                f"`{f'--base {self.base}' if self.base else f'--data {self.data}'}`. A backbone "
                "reads pictures in place of the network of each method. Leave one of them out."
            )
        if self.views is not None and self.views not in (1, 2, 3):
            raise ConfigError(
                f"`--views {self.views}`. They are the picture, its mirror image and its enlarged "
                "middle. Type 1, 2 or 3."
            )
        sized = self.kind == "folder" or self.is_pretrained
        if self.size is not None and not (
            1 <= self.size <= MOST_SIZE and (sized or self.size == COMMON["size"])
        ):
            raise ConfigError(
                f"`--size {self.size}` with `--data {self.data}`. It is the height and width of "
                f"pictures of a folder, or of those that a pretrained backbone reads, from 1 to "
                f"{MOST_SIZE} pixels. Type `--size 144`, or leave it out."
            )

    def _check_used(self) -> None:
        """Raise a `ConfigError` for an option that the data do not use."""
        unused = {
            "--split": self.kind == "sinusoid" and self.split,
            "--normalisation": self.kind in FAMILIES["curves"]
            and self.normalisation not in (None, "group"),
            "--names": self.names == "support" and self.kind not in FAMILIES["sentences"],
        }
        for option, typed in unused.items():
            if typed:
                raise ConfigError(
                    f"`{option}` with `--data {self.data}` has no effect. Leave it out."
                )

    def _check_regression(self) -> None:
        """Raise a `ConfigError` for a number of classes where tasks have none."""
        if PRESETS[self.kind]["ways"] != (1,):
            return
        for option, asked in (("ways", self.ways or (1,)), ("train-ways", (self.train_ways or 1,))):
            if asked != (1,):
                raise ConfigError(
                    f"`--{option} {' '.join(map(str, asked))}` with `--data {self.data}`, a "
                    f"regression. It has no classes to count. Leave `--{option}` out; "
                    "`--shots` are the points of a task."
                )

    def _check_turns(self) -> None:
        if self.mode != "alternating" and self.block_steps != BLOCK_STEPS:
            raise ConfigError(
                f"`--block-steps {self.block_steps}` with `--mode {self.mode}`, which has no "
                "turns. Type `--mode alternating`, or leave it out."
            )

    def _check_ways_and_shots(self) -> None:
        if self.ways is not None and min(self.ways, default=0) < 1:
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

    def _check_memory(self) -> None:
        """Raise a `ConfigError` if one step would hold more than `MOST_EXAMPLES` examples."""
        largest_ways, largest_shots = max(self.ways or [1]), max(self.shots or [1])
        examples: int = (self.tasks or 1) * largest_ways * (largest_shots + (self.queries or 1))
        if examples > MOST_EXAMPLES:
            raise ConfigError(
                f"`--tasks`, `--ways`, `--shots` and `--queries` ask for {examples:,} examples a "
                f"step. They are held in memory together, at most {MOST_EXAMPLES:,}. Pass a "
                "smaller number of one of them."
            )

    def _check_average(self) -> None:
        if self.average is not None and self.average >= 1:
            raise ConfigError(
                f"`--average {self.average}` never moves. It is a decay below 1. Type `--average "
                "0.99`."
            )

    @property
    def kind(self) -> str:
        """Key of the data in `FITS`."""
        return data_kind(self.data)

    @property
    def is_pretrained(self) -> bool:
        """True with a backbone that was trained on other pictures."""
        return self.backbone not in (None, "none", "trained")

    def code(self) -> dict[str, str]:
        """Return every imported ``module:name`` with its option.

        The path of a folder or a table is left out, though it may contain a colon.
        """
        return {
            name: option
            for name, option in super().code().items()
            if option != "--data" or self.kind == "own"
        }

    def validating(self) -> "FewShotConfig":
        """Return the same options, judged on validation tasks."""
        return replace(self, held_out="validation")

    def resolved(self) -> "FewShotOptions":
        """Return the options with all defaults filled in: those of the data set, then `COMMON`."""
        if self.backbone is None:
            backbone = "none" if self.base else backbone_for(self.data)
            return replace(self, backbone=backbone).resolved()
        defaults = self._defaults(self.backbone)
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        if "comparators" in missing:
            missing["comparators"] = tuple(
                name for name in missing["comparators"] if name not in self._not_compared()
            )
        if missing.get("precision") == "bf16-mixed" and not self._has_bf16():
            missing["precision"] = "32-true"  # emulated half precision is slower than single
        typed = {field.name: getattr(self, field.name) for field in fields(self)}
        running = (self.method, *(missing.get("comparators") or self.comparators or ()))
        missing["rates"] = self.rates + self._usual_rates(running)
        return FewShotOptions(**{**typed, **missing})

    def _defaults(self, backbone: str) -> dict[str, Any]:
        """Return the defaults of the data set and of a backbone."""
        defaults = {**COMMON, **PRESETS[self.kind]}
        if self.is_pretrained:
            defaults |= PRETRAINED
        if backbone.startswith("timm:"):
            defaults.pop("size")
        if backbone == "trained":
            defaults["views"] = 2
        if self.minutes is not None:
            defaults.pop("steps", None)
        return defaults

    def _usual_rates(self, running: tuple[str, ...]) -> tuple[str, ...]:
        """Rates of the data set for single methods, unless a rate is typed or a base is given."""
        if self.outer_lr is not None or self.base:
            return ()
        known = rates_of(self.rates)
        return tuple(
            f"{name}={rate}"
            for name, rate in RATES.get(self.kind, {}).items()
            if name in running and name not in known
        )

    def _not_compared(self) -> tuple[str, ...]:
        """Usual comparators that are left out: the method itself; `probe` with the user's base.

        Probes need to know the width of the features, which a base need not tell.
        """
        return (self.method, "probe") if self.base else (self.method,)

    def _has_bf16(self) -> bool:
        return self.accelerator != "cpu" or processor_knows_bf16()


@dataclass(frozen=True, kw_only=True)
class FewShotOptions(FewShotConfig):
    """Options of a few-shot run, all filled in; ``steps`` is None if ``minutes`` is given."""

    comparators: tuple[str, ...]
    ways: tuple[int, ...]
    shots: tuple[int, ...]
    names: Literal["support", "none"]
    queries: int
    backbone: str
    backbone_steps: int
    views: int
    size: int | None
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
        """Return the options unchanged."""
        return self
