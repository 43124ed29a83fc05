"""The aligned engine's short cut for plain MLPs, the base networks that are run most: batched products, nothing else.

A small layer takes microseconds, and so does every call between two of them. Where the base is a `torch.nn.Sequential`
of linear layers and functions of single numbers, and nobody hooked into it, the layers are run on (tasks, batch,
features) directly: the same products as `weightloom.base.aligned` would come to.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks

from weightloom.base.slots import Places, Slots
from weightloom.forms.calls import shared_linear
from weightloom.forms.factored import Factored
from weightloom.params import Params

Layer = tuple[str | None, str | None]
"""Names of a layer's generated weight and bias; None for what is not generated."""

BY_NUMBER = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh, nn.Identity, nn.LeakyReLU, nn.LogSigmoid),
    *(nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh, nn.Tanhshrink),
)


def layers_of(slots: Slots, places: Places, inputs: Sequence[Tensor]) -> list[Layer] | None:
    """Say which layers of the base are generated, None if it is no plain MLP or its input is not (tasks, batch, in)."""
    children = slots.modules[1:]
    plain = type(slots.base) is nn.Sequential and all(type(m) is nn.Linear or type(m) in BY_NUMBER for m in children)
    if not plain or len(inputs) != 1 or inputs[0].ndim != 3 or len(children) != len(slots.base._modules):
        return None
    at = {(number, leaf): name for name, its in places for number, _, leaf in its}
    return [(at.get((number, "weight")), at.get((number, "bias"))) for number in range(1, len(slots.modules))]


def is_hooked(slots: Slots) -> bool:
    """Whether somebody watches or changes what the modules do."""
    everywhere = (
        *(global_hooks._global_forward_hooks, global_hooks._global_forward_pre_hooks),
        *(global_hooks._global_backward_hooks, global_hooks._global_backward_pre_hooks),
    )
    for m in slots.modules:
        if m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks:
            return True
        if "forward" in m.__dict__:
            return True
    return any(everywhere)


def run_products(slots: Slots, layers: Sequence[Layer], params: Params, x: Tensor) -> Tensor:
    """Run a plain MLP for all tasks: (tasks, batch, in) -> (tasks, batch, out)."""
    for module, (weight_name, bias_name) in zip(slots.modules[1:], layers, strict=True):
        if type(module) is not nn.Linear:
            x = module.forward(x)
            continue
        weight = module.weight if weight_name is None else params[weight_name]
        bias = module.bias if bias_name is None else params[bias_name][:, None]
        x = _linear(x, weight, bias, shared=weight_name is None)
    return x


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, shared: bool) -> Tensor:
    if shared:
        return shared_linear(x, weight, bias)
    if isinstance(weight, Factored):
        y = weight.form.linear(x, weight.own, weight.parts, bias)
        if isinstance(y, Tensor):
            return y
        weight = weight.dense()
    return x @ weight.mT if bias is None else torch.baddbmm(bias, x, weight.mT)
