"""Run a base with other tensors while `torch.compile` or `torch.export` traces it.

In:   a module or a method of one, tensors by name, arguments.
Out:  its outputs.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from weightloom.base.target import Target


def run_compiled(target: Target, tensors: Mapping[str, Tensor], args: Any, kwargs: Any) -> Any:
    """Run a module or its method by `functional_call`, with ``tensors`` in place of its own.

    The module must not be None. A tied tensor is replaced under each of its names.
    """
    assert target.module is not None
    places: dict[str, Tensor] = {}
    by_value: dict[Tensor, list[str]] = {}
    for prefix, module in target.module.named_modules():  # a layer that is used twice comes once
        for leaf, value in [*module._parameters.items(), *module._buffers.items()]:
            if value is not None:
                by_value.setdefault(value, []).append(f"{prefix}.{leaf}" if prefix else leaf)
    known: dict[str, Tensor] = {}
    known.update(target.module.named_parameters(remove_duplicate=False))
    known.update(target.module.named_buffers(remove_duplicate=False))
    for name, value in tensors.items():
        for place in by_value[known[name]]:
            places[place] = value
    if target.method is not None:
        inside = {f"module.{name}": value for name, value in places.items()}
        return functional_call(
            _Method(target.module, target.method), inside, args, kwargs, tie_weights=False
        )
    return functional_call(target.module, places, args, kwargs, tie_weights=False)


class _Method(nn.Module):
    """Module whose `forward` is a method of another module."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method."""
        return getattr(self.module, self.method)(*args, **kwargs)
