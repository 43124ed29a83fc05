"""Base networks of a user's own, as ``module:Class``, instead of the data set's.

In:   ``module:Class``, a number of outputs, the shape of an input.
Out:  the network, checked by a run on zeros.
"""

import torch
from torch import Tensor, nn

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.registry import OWN_ERRORS, imported
from weightloom.errors import ConfigError


def own_base(config: FewShotOptions, outputs: int, event: tuple[int, ...]) -> nn.Module:
    """Build the network named by ``config.base``.

    Args:
        config: Options.
        outputs: Number of outputs, the argument that the class is called with.
        event: Shape of an input.

    Returns:
        The network in train mode.

    Raises:
        ConfigError: If it cannot be imported or built, or does not map inputs of that shape to
            (batch, outputs).
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
    except OWN_ERRORS as error:  # the user's code may raise any of these
        raise ConfigError(
            f"`--base {name}` failed with `--data {config.data}` ({type(error).__name__}: "
            f"{error}). It is called with the number of outputs, {outputs}, and gives a torch "
            f"module that answers {seen}. Change the network."
        ) from error
    net.train()
    if not isinstance(answer, Tensor) or tuple(answer.shape) != (2, outputs):
        got = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise ConfigError(
            f"`--base {name}` answered {shape} of `--data {config.data}` with {got}. A network "
            f"built for {outputs} outputs answers {seen} with (batch, {outputs}). Use the number "
            "that it is called with."
        )
    return net
