"""Fast path of the aligned engine for a plain `torch.nn.Sequential`, the most common base.

A small layer takes microseconds, and so does each Python call between two layers. If the base is a
`torch.nn.Sequential` of the layer classes listed here, without hooks, its layers are run directly:
linear layers as batched matrix products, and small convolutions with tasks as groups of channels.
`weightloom.base.aligned` computes the same with more calls.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from weightloom.forms.calls import shared_linear
from weightloom.forms.factored import Factored, built
from weightloom.replica.replica import Places
from weightloom.replica.scan import Scan

Tensors = Mapping[str, Tensor]
Layer = tuple[str | None, str | None]
"""Names of a layer's generated weight and bias; None for one that is not generated."""

BY_NUMBER = (
    *(
        nn.CELU,
        nn.ELU,
        nn.GELU,
        nn.Hardsigmoid,
        nn.Hardswish,
        nn.Hardtanh,
        nn.Identity,
        nn.LeakyReLU,
        nn.LogSigmoid,
    ),
    *(
        nn.Mish,
        nn.ReLU,
        nn.ReLU6,
        nn.SELU,
        nn.SiLU,
        nn.Sigmoid,
        nn.Softplus,
        nn.Softsign,
        nn.Tanh,
        nn.Tanhshrink,
    ),
)
BY_CHANNEL = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
CONVOLUTIONS: dict[type[nn.Module], Any] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}
"""Layers that convolve, and their functions."""


def layers_of(
    scan: Scan, places: Places, params: Tensors, inputs: Sequence[Tensor], batch_major: bool
) -> list[Layer] | None:
    """Find the generated weight and bias of each layer of a plain sequence.

    Args:
        scan: The base.
        places: Places of the generated parameters in the base.
        params: Generated parameters.
        inputs: Inputs of the base; the fast path takes exactly one, of shape (tasks, batch, in) or
            (tasks, batch, channels, *space).
        batch_major: True if small kernels are generated, for which tasks as groups of channels are
            fast; needed for inputs of any shape but (tasks, batch, in).

    Returns:
        One `Layer` per child of the base; None if the base or the input does not allow the fast
        path.
    """
    if not _is_plain(scan) or len(inputs) != 1:
        return None
    flat = inputs[0].ndim == 3
    if not (flat or batch_major):
        return None
    layers = _generated(scan, places)
    for module, (weight, _) in zip(scan.modules[1:], layers, strict=True):
        factored = weight is not None and isinstance(params[weight], Factored)
        if not flat and _flattens(module):
            flat = True
        elif not _is_known(module, flat, factored):
            return None
    return layers


def _generated(scan: Scan, places: Places) -> list[Layer]:
    at = {(number, leaf): name for name, its in places for number, _, leaf in its}
    numbers = range(1, len(scan.modules))
    return [(at.get((number, "weight")), at.get((number, "bias"))) for number in numbers]


def _is_plain(scan: Scan) -> bool:
    """True for a sequence of distinct layers without children, none of which has a hook."""
    base = scan.base
    if type(base) is not nn.Sequential or len(scan.modules) - 1 != len(base._modules):
        return False
    return not any(map(_is_hooked, scan.modules))


def _flattens(module: nn.Module) -> bool:
    """True for a layer that leaves the axes (batch, features)."""
    return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)


def _is_known(module: nn.Module, flat: bool, factored: bool) -> bool:
    """True if the fast path can run a layer, on flat or spatial inputs, with a factored weight."""
    if type(module) in BY_NUMBER:
        return True
    return type(module) is nn.Linear if flat else not factored and _is_spatial(module)


def _is_spatial(module: nn.Module) -> bool:
    """True for a layer that runs with tasks as groups of channels."""
    if type(module) in CONVOLUTIONS:
        return bool(module.padding_mode == "zeros")
    return type(module) is nn.GroupNorm or (
        type(module) in BY_CHANNEL and not getattr(module, "return_indices", False)
    )


def _is_hooked(m: nn.Module) -> bool:
    """True if a module has hooks, or a `forward` set on the instance."""
    hooks = m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
    return bool(hooks) or "forward" in m.__dict__


def is_hooked_everywhere() -> bool:
    """True if torch's global module hooks, which run for every module, are in use."""
    everywhere = (
        *(global_hooks._global_forward_hooks, global_hooks._global_forward_pre_hooks),
        *(global_hooks._global_backward_hooks, global_hooks._global_backward_pre_hooks),
    )
    return any(everywhere)


def run_sequential(
    modules: Sequence[nn.Module], layers: Sequence[Layer], params: Tensors, x: Tensor
) -> Tensor:
    """Run a plain sequence for all tasks: (tasks, batch, *event) -> (tasks, batch, *out).

    Args:
        modules: The sequence, then its layers.
        layers: Generated weight and bias of each layer, from `layers_of`.
        params: Generated parameters, by name.
        x: Input, (tasks, batch, *event).
    """
    tasks, batch = x.shape[:2]
    wide = x.ndim > 3
    if wide:
        x = x.transpose(0, 1).flatten(1, 2)  # (batch, tasks * channels, *space)
    for module, (weight, bias) in zip(modules[1:], layers, strict=True):
        if type(module) is nn.Linear:
            x = _linear(x, module, params, weight, bias)
        elif type(module) in CONVOLUTIONS:
            x = _convolve(x, module, params, weight, bias, tasks)
        elif type(module) is nn.GroupNorm:
            scale, shift = (
                _wide(module.weight, params, weight, tasks),
                _wide(module.bias, params, bias, tasks),
            )
            x = F.group_norm(x, tasks * module.num_groups, scale, shift, module.eps)
        elif type(module) is nn.Flatten:
            x, wide = x.reshape(batch, tasks, -1).transpose(0, 1), False
        else:
            x = module.forward(x)
    return x.unflatten(1, (tasks, -1)).transpose(0, 1) if wide else x


def _linear(
    x: Tensor, module: Any, params: Tensors, weight_name: str | None, bias_name: str | None
) -> Tensor:
    bias = module.bias if bias_name is None else built(params[bias_name])[:, None]
    if weight_name is None:
        return shared_linear(x, module.weight, bias)
    weight = params[weight_name]
    if isinstance(weight, Factored):
        y = weight.form.linear(x, weight.own, weight.parts, bias)
        if isinstance(y, Tensor):
            return y
        weight = weight.dense()
    return x @ weight.mT if bias is None else torch.baddbmm(bias, x, weight.mT)


def _convolve(
    x: Tensor, module: Any, params: Tensors, weight: str | None, bias: str | None, tasks: int
) -> Tensor:
    kernel, shift = (
        _wide(module.weight, params, weight, tasks),
        _wide(module.bias, params, bias, tasks),
    )
    options = (module.stride, module.padding, module.dilation, tasks * module.groups)
    y: Tensor = CONVOLUTIONS[type(module)](x, kernel, shift, *options)
    return y


def _wide(own: Tensor | None, params: Tensors, name: str | None, tasks: int) -> Tensor | None:
    """Values of all tasks concatenated along axis 0, for tasks as groups of channels.

    Generated values (tasks, channels, *rest) -> (tasks * channels, *rest); shared ones are
    repeated.
    """
    if name is not None:
        return built(params[name]).flatten(0, 1)
    return own if own is None else own.repeat(tasks, *[1] * (own.ndim - 1))
