"""The aligned engine's short cut for plain sequences of layers, the base networks that are run most.

A small layer takes microseconds, and so does every call between two of them. Where the base is a
`torch.nn.Sequential` of kinds that are known here, and nobody hooked into it, its layers are run as
one would by hand: linear layers as batched products, and small convolutions with tasks as groups of
channels. `weightloom.base.aligned` would come to the same, by a longer way.
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
"""Names of a layer's generated weight and bias; None for what is not generated."""

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


def layers_of(
    scan: Scan, places: Places, params: Tensors, inputs: Sequence[Tensor], batch_major: bool
) -> list[Layer] | None:
    """Say which layers of the base are generated, None if it is no plain sequence.

    Args:
        scan: The base.
        places: Where the generated ones are.
        params: What is generated.
        inputs: What the base is called with: one (tasks, batch, in), or (tasks, batch, channels,
            *space).
        batch_major: Whether small kernels are generated, so that tasks as groups of channels are
            quick.
    """
    children = scan.modules[1:]
    if (
        type(scan.base) is not nn.Sequential
        or len(inputs) != 1
        or len(children) != len(scan.base._modules)
    ):
        return None
    if (inputs[0].ndim != 3 and not batch_major) or any(map(_is_hooked, scan.modules)):
        return None
    at = {(number, leaf): name for name, its in places for number, _, leaf in its}
    layers = [
        (at.get((number, "weight")), at.get((number, "bias")))
        for number in range(1, len(scan.modules))
    ]
    flat = inputs[0].ndim == 3
    for module, (weight, _) in zip(children, layers, strict=True):
        built = weight is None or not isinstance(params[weight], Factored)
        if (
            not flat
            and type(module) is nn.Flatten
            and (module.start_dim, module.end_dim) == (1, -1)
        ):
            flat = True
        elif type(module) not in BY_NUMBER and not (
            _is_flat(module) if flat else built and _is_spatial(module)
        ):
            return None
    return layers


def _is_flat(module: nn.Module) -> bool:
    return type(module) is nn.Linear


def _is_spatial(module: nn.Module) -> bool:
    if type(module) in CONVOLUTIONS:
        return bool(module.padding_mode == "zeros")
    return type(module) is nn.GroupNorm or (
        type(module) in BY_CHANNEL and not getattr(module, "return_indices", False)
    )


def _is_hooked(m: nn.Module) -> bool:
    """Whether somebody watches or changes what the module does."""
    hooks = m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
    return bool(hooks) or "forward" in m.__dict__


def is_hooked_everywhere() -> bool:
    """Whether somebody watches or changes what all modules do."""
    everywhere = (
        *(global_hooks._global_forward_hooks, global_hooks._global_forward_pre_hooks),
        *(global_hooks._global_backward_hooks, global_hooks._global_backward_pre_hooks),
    )
    return any(everywhere)


def run_sequential(
    modules: Sequence[nn.Module], layers: Sequence[Layer], params: Tensors, x: Tensor
) -> Tensor:
    """Run a plain sequence for all tasks: (tasks, batch, *event) -> (tasks, batch, *out)."""
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
    """Values of all tasks one behind the other, for tasks that are groups of channels."""
    if name is not None:
        return built(params[name]).flatten(0, 1)
    return own if own is None else own.repeat(tasks, *[1] * (own.ndim - 1))
