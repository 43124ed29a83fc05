"""Worker of the race, run in the peers' environment.

``python -m benchmarks.race.peers_worker OPTIONS OUT``.

In:   a JSON file of options; the installed peers.
Out:  a JSON file with a row per workload and contender: milliseconds and ratio to ours, or an
      error.
Independent of the installation.

Each peer is used as its own documentation shows, with a hypernetwork 16-64-P if its interface
permits one; otherwise `how` describes the hypernetwork. A peer that raises gets a row with the
error, and the race goes on.
"""

import copy
import importlib
import importlib.util
import json
import math
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.race.adapters_race import run_adapters
from benchmarks.race.config import ADAPTER_WORKLOADS, peers_for
from benchmarks.race.race import Row, attempt, race, reason
from benchmarks.race.workloads import (
    CONDITION_DIM,
    HIDDEN,
    Contender,
    Workload,
    cut,
    make_generator,
    make_workload,
    ours,
    plain_torch,
)
from weightloom.runs.record import environment


def hypnettorch(workload: Workload) -> list[Contender]:
    """Build hypnettorch: one pass generates lists of weights, the main network runs in a loop."""
    if workload.name == "mlp":
        mnets = importlib.import_module("hypnettorch.mnets.mlp")
        main = mnets.MLP(
            1, 1, [HIDDEN, HIDDEN], activation_fn=nn.ReLU(), no_weights=True, verbose=False
        )
    else:
        main = _hypnettorch_cnn(workload.base)
    hnets = importlib.import_module("hypnettorch.hnets.mlp_hnet")
    hyper = hnets.HMLP(
        main.param_shapes,
        uncond_in_size=CONDITION_DIM,
        cond_in_size=0,
        num_cond_embs=0,
        layers=(HIDDEN,),
        verbose=False,
    )

    def loop() -> Tensor:
        weights = hyper(uncond_input=workload.condition, ret_format="sequential")
        return torch.stack(
            [main(x, weights=one) for x, one in zip(workload.x, weights, strict=True)]
        )

    main_from = "its MLP" if workload.name == "mlp" else "our MainNetInterface"
    return [
        Contender(
            "hypnettorch", "documented", f"HMLP in one pass, {main_from} in a loop", hyper, loop
        )
    ]


def _hypnettorch_cnn(base: nn.Module) -> Any:
    """Build the CNN on `MainNetInterface`, which hypnettorch requires of a custom base."""
    interface = importlib.import_module("hypnettorch.mnets.mnet_interface").MainNetInterface

    def forward(
        self: Any,
        x: Tensor,
        weights: Any = None,
        distilled_params: Any = None,
        condition: Any = None,
    ) -> Any:
        for layer in (0, 2):
            x = F.max_pool2d(F.conv2d(x, weights[layer], weights[layer + 1], padding=1).relu(), 2)
        return F.linear(x.flatten(1), weights[4], weights[5])

    def initialise(self: Any) -> None:
        nn.Module.__init__(self)
        interface.__init__(self)
        self._param_shapes = [list(value.shape) for value in base.parameters()]

    def distillation_targets(self: Any) -> None:
        return None

    body = {
        "__init__": initialise,
        "forward": forward,
        "distillation_targets": distillation_targets,
    }
    return type("CNN", (nn.Module, interface), body)()


def hyperlight(workload: Workload) -> list[Contender]:
    """Build hyperlight: one pass generates, the base runs in a loop, or undocumented under vmap."""
    hl = importlib.import_module("hyperlight")
    base = copy.deepcopy(workload.base)
    main = hl.hypernetize(base, parameters=list(base.parameters()))
    hyper = hl.HyperNet(
        input_shapes={"h": (CONDITION_DIM,)},
        output_shapes=main.external_shapes(),
        hidden_sizes=[HIDDEN],
        encoding=None,
    )

    def run_one(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        with main.using_externals(weights):
            outputs: Tensor = main(x)
        return outputs

    def loop() -> Tensor:
        weights = hyper(h=workload.condition)
        rows = (
            {name: value[task] for name, value in weights.items()}
            for task in range(len(workload.x))
        )
        return torch.stack([run_one(row, x) for row, x in zip(rows, workload.x, strict=True)])

    def all_at_once() -> Tensor:
        outputs: Tensor = torch.func.vmap(run_one)(hyper(h=workload.condition), workload.x)
        return outputs

    return [
        Contender(
            "hyperlight",
            "documented",
            "HyperNet in one pass, using_externals in a loop",
            hyper,
            loop,
        ),
        Contender(
            "hyperlight, vmap", "undocumented", "vmap around using_externals", hyper, all_at_once
        ),
    ]


def hyper_nn(workload: Workload) -> list[Contender]:
    """Build hyper-nn with `generate_params` overridden, as in its README: a loop, and its vmap."""
    library = importlib.import_module("hypernn.torch")
    base = copy.deepcopy(workload.base)
    generator = make_generator(sum(p.numel() for p in base.parameters()))

    def generate_params(self: Any, condition: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return self.generator(condition).view(-1), {}

    hyper = type("Conditioned", (library.TorchHyperNetwork,), {"generate_params": generate_params})(
        base
    )
    hyper.generator = generator

    def loop() -> Tensor:
        pairs = zip(workload.condition, workload.x, strict=True)
        return torch.stack(
            [hyper(x, generate_params_kwargs={"condition": condition}) for condition, x in pairs]
        )

    def forward(generated_params: Tensor, x: Tensor) -> Tensor:
        outputs: Tensor = hyper.forward(x, generated_params=generated_params)
        return outputs

    def recipe() -> Tensor:
        vmap = importlib.import_module("functorch").vmap
        params, _ = vmap(hyper.generate_params)(workload.condition)
        outputs: Tensor = vmap(forward)(params, workload.x)
        return outputs

    own = "generate_params overridden with 16-64-P"
    return [
        Contender("hyper-nn", "documented", f"{own}, called in a loop", hyper, loop),
        Contender(
            "hyper-nn, README's vmap", "recipe", f"{own}, under functorch.vmap", hyper, recipe
        ),
    ]


def torchhyper(workload: Workload) -> list[Contender]:
    """Build torchhyper from the file of its class: the package needs diffusers, undeclared.

    Raises:
        ModuleNotFoundError: If torchhyper is not installed.
    """
    found = importlib.util.find_spec("torchhyper")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'torchhyper'")
    path = Path(found.submodule_search_locations[0]) / "model" / "hypernetwork_architectures.py"
    spec = importlib.util.spec_from_file_location("torchhyper_alone", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    base = copy.deepcopy(workload.base).requires_grad_(False)
    hyper = module.HyperNetwork(CONDITION_DIM, [HIDDEN], base)

    def loop() -> Tensor:
        pairs = zip(workload.condition, workload.x, strict=True)
        return torch.stack(
            [functional_call(base, hyper(condition[None]), (x,)) for condition, x in pairs]
        )

    how = "HyperNetwork (a head per tensor) and functional_call in a loop; its file loaded alone"
    return [Contender("torchhyper", "documented", how, hyper, loop)]


def polyweave(workload: Workload) -> list[Contender]:
    """Build polyweave's ConvFilterTeacher with a TargetSpec of the whole base.

    It takes one prototype at a time, by design.
    """
    library = importlib.import_module("polyweave.targets")
    base = copy.deepcopy(workload.base).requires_grad_(False)
    shapes = {name: value.shape for name, value in base.named_parameters()}
    size = sum(math.prod(shape) for shape in shapes.values())

    def refuse(self: Any, *arguments: Any) -> None:
        raise NotImplementedError("not needed in a step")

    body = {
        "num_params": property(lambda self: size),
        "unpack": lambda self, flat: cut(self._check_flat(flat), shapes),
        **dict.fromkeys(("pack", "install", "extract"), refuse),
    }
    spec = type("WholeBase", (library.TargetSpec,), body)()
    hyper = importlib.import_module("polyweave.hypernets").ConvFilterTeacher(
        spec, proto_channels=1, width=HIDDEN
    )

    def loop() -> Tensor:
        prototypes = workload.condition.view(-1, 1, 1, 4, 4)
        pairs = zip(prototypes, workload.x, strict=True)
        return torch.stack(
            [functional_call(base, hyper(prototype), (x,)) for prototype, x in pairs]
        )

    how = (
        "own TargetSpec in a loop; the hypernetwork is its own, two 3x3 convolutions and a head "
        "64-P on 1x4x4"
    )
    return [Contender("polyweave", "documented", how, hyper, loop)]


BUILD: dict[str, Callable[[Workload], list[Contender]]] = {
    "hypnettorch": hypnettorch,
    "hyperlight": hyperlight,
    "hyper-nn": hyper_nn,
    "torchhyper": torchhyper,
    "polyweave": polyweave,
}


def check(contender: Contender, workload: Workload) -> None:
    """Check that a contender does the whole step.

    Raises:
        RuntimeError: If outputs are not finite or have another shape, or no finite gradient reaches
            the hypernetwork.
    """
    outputs = contender.outputs()
    expected = (*workload.x.shape[:2], *workload.base(workload.x[0]).shape[1:])
    if tuple(outputs.shape) != expected or not outputs.isfinite().all():
        raise RuntimeError(
            f"outputs are not finite numbers of shape {expected} but {tuple(outputs.shape)}"
        )
    contender.step(workload)
    gradients = [p.grad for p in contender.module.parameters() if p.grad is not None]
    if not gradients or not all(gradient.isfinite().all() for gradient in gradients):
        raise RuntimeError("no finite gradient reaches the hypernetwork")


def run_workload(name: str, options: dict[str, Any]) -> list[Row]:
    """Race all contenders of one workload; a failed one gets a row with ``error``.

    Args:
        name: One of `WORKLOADS`.
        options: Fields of `PeersConfig`.
    """
    if name in ADAPTER_WORKLOADS:
        return run_adapters(name, options)
    workload = make_workload(name, options["tasks"])
    mine = ours(workload)
    check(mine, workload)
    rows: list[Row] = []
    for group in ("torch", *peers_for(name, options["peers"])):
        try:
            contenders = plain_torch(workload) if group == "torch" else BUILD[group](workload)
        except Exception as error:
            rows.append(
                {"workload": name, "contender": group, "way": "documented", "error": reason(error)}
            )
            continue
        for contender in contenders:

            def measure(contender: Contender = contender) -> Row:
                check(contender, workload)
                return race(
                    partial(contender.step, workload), partial(mine.step, workload), options
                )

            row: Row = {
                "workload": name,
                "contender": contender.name,
                "way": contender.way,
                "how": contender.how,
            }
            rows.append(attempt(row, measure))
    return rows


def main(options_file: Path, out: Path) -> None:
    """Read options, race, write rows, versions and cost."""
    warnings.simplefilter("ignore")
    options = json.loads(options_file.read_text())
    torch.set_num_threads(options["threads"])
    rows = [row for name in options["workloads"] for row in run_workload(name, options)]
    used = ("torch", *options["peers"], *(["transformers"] if "peft" in options["peers"] else []))
    versions = {name: version(name) for name in used}
    out.write_text(json.dumps({"rows": rows, "versions": versions, "cost": environment()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
