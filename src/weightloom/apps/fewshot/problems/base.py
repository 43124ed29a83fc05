"""A base network of the user's own, in the place of the one that suits the data.

In:   ``module:Class``, a number of outputs, the shape of an input.
Out:  the network, checked by a run on zeros.
"""

import torch
from torch import Tensor, nn

from weightloom.apps.fewshot.config import FewShotOptions
from weightloom.apps.registry import OWN_ERRORS, imported
from weightloom.errors import ConfigError


def own_base(config: FewShotOptions, outputs: int, event: tuple[int, ...]) -> nn.Module:
    """Build the network that ``--base`` names.

    Args:
        config: Options.
        outputs: How many numbers it answers with.
        event: Shape of an input.

    Raises:
        ConfigError: If it cannot be imported or built, or does not answer inputs of that shape with
            so many numbers.
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
    except OWN_ERRORS as error:  # networks of one's own raise what they like
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
