"""Where a base keeps its parameters, found quickly, and a way to put others in their places for one run."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Places = list[tuple[str, list[tuple[int, bool, str]]]]
"""Every place of each name: number of the module, whether it is a buffer there, and the name it has there."""


_PLAIN = {bool, int, float, str, type(None)}


class Slots:
    """The places of a base's parameters and buffers, as they are now.

    It is made anew for every call, in a microsecond per module, so that it is right whatever was replaced since.
    """

    def __init__(self, base: nn.Module) -> None:
        modules, prefixes = [base], [""]
        for module, prefix in zip(modules, prefixes, strict=False):  # both grow while they are read
            for name, child in module._modules.items():
                if child is not None:
                    modules.append(child)
                    prefixes.append(f"{prefix}{name}.")
        self.base = base
        self.modules = modules
        self.prefixes = prefixes

    def key(self) -> Any:
        """What must be the same for whatever was found out about the base to hold still.

        Its modules with their modes and plain attributes, which `forward` may follow, and which parameters are tied.
        """
        first: dict[int, int] = {}
        ties = [first.setdefault(id(p), len(first)) for m in self.modules for p in m._parameters.values()]
        own = [(id(m), type(m), *[v for v in m.__dict__.values() if type(v) in _PLAIN]) for m in self.modules]
        return tuple(own), tuple(ties), tuple(self.prefixes)

    def places(self, names: Iterable[str]) -> Places:
        """Find every place of each name: a tied parameter has several."""
        holders: dict[int, list[tuple[int, bool, str]]] = {}
        of_name: dict[str, int] = {}
        for number, (module, prefix) in enumerate(zip(self.modules, self.prefixes, strict=True)):
            for is_buffer, held in ((False, module._parameters), (True, module._buffers)):
                for leaf, value in held.items():
                    if value is not None:
                        of_name[prefix + leaf] = id(value)
                        places = holders.setdefault(id(value), [])
                        if (number, is_buffer, leaf) not in places:
                            places.append((number, is_buffer, leaf))
        return [(name, holders[of_name[name]]) for name in names]

    @contextmanager
    def filled(self, places: Places, tensors: Mapping[str, Tensor]) -> Iterator[None]:
        """Put ``tensors`` in their places while the block runs; afterwards, whatever happens, all is as it was."""
        kept: list[tuple[dict[str, Any], str, Any]] = []
        try:
            for name, its in places:
                for number, is_buffer, leaf in its:
                    module = self.modules[number]
                    held: dict[str, Any] = module._buffers if is_buffer else module._parameters
                    kept.append((held, leaf, held[leaf]))
                    held[leaf] = tensors[name]
            yield
        finally:
            for held, leaf, old in reversed(kept):
                held[leaf] = old
