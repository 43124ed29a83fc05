"""A base network of the user's own, in the place of the one that suits the data.

In:   ``module:Class``, a number of outputs, the shape of an input.
Out:  the network, checked by a run on zeros; and as a trunk with a head, for methods that generate the head.
"""

from typing import Any

import torch
from torch import Tensor, nn

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.registry import imported
from weightloom.errors import ConfigError


class Split(nn.Module):
    """A network whose last layer is linear, as ``head(trunk(x))``.

    Args:
        net: The network; its head is taken out.
        head: Name of the head in it.

    Example:
        >>> split = Split(nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)), "3")
        >>> split.trunk(torch.zeros(2, 3, 4)).shape, split(torch.zeros(2, 3, 4)).shape
        (torch.Size([2, 8]), torch.Size([2, 3]))
    """

    def __init__(self, net: nn.Module, head: str) -> None:
        super().__init__()
        last: Any = net.get_submodule(head) if head else net
        trunk: Any = net if head else nn.Identity()
        if head:
            trunk.set_submodule(head, nn.Identity())
        trunk.features = last.in_features
        self.trunk, self.head = trunk, last

    def forward(self, x: Tensor) -> Tensor:
        """Answer, (batch, *event) to (batch, outputs)."""
        outputs: Tensor = self.head(self.trunk(x))
        return outputs


def own_base(config: FewShotOptions, outputs: int, event: tuple[int, ...]) -> nn.Module:
    """Build the network that ``--base`` names.

    Args:
        config: Options.
        outputs: How many numbers it answers with.
        event: Shape of an input.

    Raises:
        ConfigError: If it cannot be imported or built, or does not answer inputs of that shape with so many numbers.
    """
    name = config.base or ""
    made = imported(name, "A base network", "--base my_networks:Net")
    shape, seen = (2, *event), f"inputs (batch, {', '.join(map(str, event))})"
    try:
        net = made(outputs)
        if not isinstance(net, nn.Module):
            raise TypeError(f"it gave a {type(net).__name__}")
        net.eval()
        with torch.no_grad():
            answer = net(torch.zeros(shape))
    except Exception as error:  # networks of one's own raise what they like
        raise ConfigError(
            f"`--base {name}` failed with `--data {config.data}` ({type(error).__name__}: {error}). It is called with "
            f"the number of outputs, {outputs}, and gives a torch module that answers {seen}. Change the network."
        ) from error
    net.train()
    if not isinstance(answer, Tensor) or tuple(answer.shape) != (2, outputs):
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ConfigError(
            f"`--base {name}` answered {shape} of `--data {config.data}` with {got}. A network built for {outputs} "
            f"outputs answers {seen} with (batch, {outputs}). Use the number that it is called with."
        )
    return net


def split_base(config: FewShotOptions, outputs: int, event: tuple[int, ...]) -> nn.Module:
    """Build the network that ``--base`` names, as a trunk and a head.

    Raises:
        ConfigError: If its answer is not that of a linear layer.
    """
    net = own_base(config, outputs, event)
    name = last_linear(net)
    whole = [part for part in ("trunk", "head") if isinstance(getattr(net, part, None), nn.Module)]
    if len(whole) == 2 and hasattr(net.trunk, "features"):
        return net
    if name is not None:
        x = torch.randn(2, *event, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            before = net.eval()(x)
            split = Split(net, name)
            fits = split.head.out_features == outputs and split.trunk(x).ndim == 2
            if fits and torch.equal(split(x), before):
                return split.train()
    raise ConfigError(
        f"`--base {config.base}` does not end in a linear layer that answers with {outputs} numbers. This method "
        "generates that layer, from what the layers before it say. End the network in `nn.Linear`, or pass a method "
        "that takes any network, as `--method maml`."
    )


def last_linear(net: nn.Module) -> str | None:
    """Return the name of the linear layer that stands last, "" if it is the network itself."""
    names = [name for name, part in net.named_modules() if isinstance(part, nn.Linear)]
    return names[-1] if names else None
