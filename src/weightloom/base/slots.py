"""Where a base keeps its parameters, found quickly, and a way to put others in their places for one run."""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Places = Sequence[tuple[str, list[tuple[int, bool, str]]]]
"""Every place of each name: number of the module, whether it is a buffer there, and the name it has there."""


_PLAIN = {bool, int, float, str, type(None)}
_TELLING = {*_PLAIN, OrderedDict}


class Slots:
    """The places of a base's parameters and buffers, as they are now.

    It is made anew for every call, in a microsecond per module, so that it is right whatever was replaced since.
    """

    def __init__(self, base: nn.Module) -> None:
        modules, names = [base], [""]
        for module in modules:  # grows while it is read
            for name, child in module._modules.items():
                if child is not None:
                    modules.append(child)
                    names.append(name)
        self.base = base
        self.modules = modules
        self.names = names

    def key(self) -> Any:
        """What must be the same for whatever was found out about the base to hold still.

        Its modules with their modes, plain attributes, which `forward` may follow, and numbers of hooks; their names;
        and which parameters are tied.
        """
        first: dict[int, int] = {}
        own, ties = [], []
        for module in self.modules:
            held = module.__dict__  # a `forward` of its own makes it longer
            seen = [v if type(v) in _PLAIN else len(v) for v in held.values() if type(v) in _TELLING]
            own.append((id(module), type(module), len(held), *seen))
            ties += [first.setdefault(id(p), len(first)) for p in held["_parameters"].values()]
        return tuple(own), tuple(ties), tuple(self.names)

    def prefixes(self) -> list[str]:
        """What stands before the names of each module's parameters."""
        prefixes = [""]
        for module, prefix in zip(self.modules, prefixes, strict=False):  # grows while it is read
            prefixes += [f"{prefix}{name}." for name, child in module._modules.items() if child is not None]
        return prefixes

    def places(self, names: Iterable[str]) -> Places:
        """Find every place of each name: a tied parameter has several."""
        holders: dict[int, list[tuple[int, bool, str]]] = {}
        of_name: dict[str, int] = {}
        for number, (module, prefix) in enumerate(zip(self.modules, self.prefixes(), strict=True)):
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
