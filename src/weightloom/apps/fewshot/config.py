"""What one few-shot run is: every option once, with its default and its check."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from weightloom.apps.fewshot.methods import FITS
from weightloom.apps.fewshot.presets import COMMON, PRESETS, data_kind
from weightloom.errors import ConfigError, nearest
from weightloom.runs.options import check_rates, config_from, plain_options, rates_of


@dataclass(frozen=True)
class FewShotConfig:
    """One few-shot run. Every field is also a command-line flag of the same name."""

    data: str = "cameras"
    """What to learn: a name from `weightloom list`, a folder of pictures, or a .csv file with a column `task`."""
    method: str = "hypernetwork"
    """The method that the report is about: a name from `weightloom list`, or your own as `module:Class`."""
    comparators: tuple[str, ...] | None = None
    """The methods to run beside it, named likewise. None: those that suit the data."""
    ways: tuple[int, ...] | None = None
    """Classes per task, a block of the table for each. None: what suits the data."""
    shots: tuple[int, ...] | None = None
    """Support points per class (per task in a regression), a block of the table for each. None: suits the data."""
    uneven_shots: bool = False
    """Judge on tasks whose classes have unequal shots, from 1 to each of `--shots`."""
    queries: int | None = None
    """Query points per class (per task of curves, pictures or cameras). None: what suits the data."""
    train_ways: int | None = None
    """Classes per task in meta-training. None: what suits the data."""
    split: int = 0
    """Which classes are held out. Digits 0, 1, 2: {0,1,2}, {3,4,5}, {6,7,8,9}; elsewhere a fold or a seed."""
    held_out: Literal["test", "validation"] = "test"
    """Judge on test, or tune on validation: classes taken from those of meta-training."""
    normalisation: Literal["group", "batch", "transductive"] | None = None
    """How images are normalised: each by itself; by running statistics; or by those of each task's images together.
    None: what suits the data, never the last."""
    mode: Literal["joint", "alternating", "bilevel"] = "joint"
    """Train all at once; base and hypernetwork in turn; or through gradient steps on the support set."""
    block_steps: int = 20
    """Steps of each turn, with `--mode alternating`."""
    inner_steps: int | None = None
    """Gradient steps on the support set, where a method takes them. None: what suits the method."""
    inner_lr: float | None = None
    """Length of these steps. None: what suits the method."""
    steps: int | None = None
    """Optimiser steps of meta-training, the same for every trained method. None: what suits the data."""
    minutes: float | None = None
    """Give every trained method this long instead of a number of steps; `--steps` is then the most there can be."""
    tasks: int | None = None
    """Tasks per step, over all processes. None: what suits the data."""
    outer_lr: float | None = None
    """Peak learning rate. None: what suits the data."""
    rates: tuple[str, ...] = ()
    """Peak learning rates of methods that another one suits, as in `cnp=0.003`."""
    clip_norm: float | None = None
    """Largest norm of the gradient. None: what suits the data."""
    weight_decay: float | None = None
    """Decay of matrices and kernels. None: what suits the data."""
    average: float | None = None
    """Decay per step of the running average of the parameters that is judged; 0: none. None: what suits the data."""
    evaluate_every: int | None = None
    """Steps between evaluations during training. None: digits 50, others 500."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    test_tasks: int | None = None
    """Tasks the table is computed from, better 600 or more. None: what suits the data."""
    seed: int = 0
    """Everything random follows from it."""
    autotune: bool = False
    """Time the engines that run many tasks at once, and keep the quickest of each in the run's folder: engines.json."""
    threads: int = 1
    """CPU threads of each process; for networks as small as these one is quickest."""
    devices: int = 1
    """Processes, or accelerators, on each machine that share the tasks of a step."""
    nodes: int = 1
    """Machines; start the same command on each by `torchrun`."""
    precision: Literal["32-true", "bf16-mixed"] | None = None
    """Arithmetic of meta-training; judging is always in 32 bits. None: what suits the data and the processor."""
    accelerator: Literal["cpu", "auto", "cuda", "mps"] = "cpu"
    """Where to compute. Runs repeat bit for bit on the CPU only."""

    def __post_init__(self) -> None:
        """Check what can be checked without the data."""
        kind = data_kind(self.data)
        for name in (
            "queries",
            "train_ways",
            "steps",
            "tasks",
            "test_tasks",
            "threads",
            "devices",
            "nodes",
            "inner_steps",
            "block_steps",
            "evaluate_every",
            "checkpoint_every",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"`--{name.replace('_', '-')} {value}` is too small. It is a count. Pass 1 or more.")
        if any(ways < 1 for ways in self.ways or (1,)) or self.ways == ():
            raise ConfigError(
                f"`--ways {self.ways}` is too small. It counts classes. Type `--ways 5`, or `--ways 5 20`."
            )
        for shots in self.shots or ():
            if shots < 1:
                raise ConfigError(
                    f"`--shots {shots}` leaves nothing to adapt on. A method learns a task from its support set. "
                    "Pass 1 or more, as in `--shots 1 5`."
                )
        if self.shots == ():
            raise ConfigError("`--shots` is empty. A method learns a task from its support set. Type `--shots 1 5`.")
        for name in ("outer_lr", "clip_norm", "inner_lr", "minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(
                    f"`--{name.replace('_', '-')} {value}` is not a positive number. Pass one, as in 0.001."
                )
        for flag, names in (("method", (self.method,)), ("comparators", self.comparators or ())):
            for name in names:
                if ":" not in name and name not in FITS[kind]:
                    raise ConfigError(
                        f"`--{flag} {name}` does not go with `--data {self.data}`. A method must solve the same tasks. "
                        f"{nearest(name, FITS[kind])}"
                    )
        running = (self.method, *(PRESETS[kind]["comparators"] if self.comparators is None else self.comparators))
        check_rates(self.rates, running)
        if self.method in (self.comparators or ()):
            raise ConfigError(
                f"`--comparators {self.method}` is `--method` too. Each method has one row. Leave one of them out."
            )

    @property
    def kind(self) -> str:
        """Key of the data in `FITS`."""
        return data_kind(self.data)

    @property
    def methods(self) -> tuple[str, ...]:
        """All methods of the run, the one that the report is about first."""
        return (self.method, *(self.comparators or ()))

    def rate_of(self, method: str) -> float:
        """Return the peak learning rate of a method; the options must be resolved."""
        assert self.outer_lr
        return rates_of(self.rates).get(method, self.outer_lr)

    def resolved(self) -> "FewShotConfig":
        """Fill in what was left to the data."""
        defaults = {**COMMON, **PRESETS[self.kind]}
        missing = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        if self.minutes is not None:
            missing.pop("steps", None)
        if "comparators" in missing:
            missing["comparators"] = tuple(name for name in missing["comparators"] if name != self.method)
        if missing.get("precision") == "bf16-mixed" and self.accelerator == "cpu" and not processor_knows_bf16():
            missing["precision"] = "32-true"  # half precision that is emulated takes longer than single
        return replace(self, **missing)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain JSON values."""
        return plain_options(self)

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> "FewShotConfig":
        """Build a config from JSON or YAML values, every type checked.

        Raises:
            ConfigError: If an option is unknown or of another type.
        """
        return config_from(cls, options, ("ways", "shots", "comparators", "rates"), "fewshot")


def processor_knows_bf16() -> bool:
    """Whether the processor has instructions for bf16; where torch cannot say, that it has."""
    import torch

    if not hasattr(torch.cpu, "get_capabilities"):
        return True
    return any(known is True for name, known in torch.cpu.get_capabilities().items() if "bf16" in name)
