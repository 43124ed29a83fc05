"""A NaN from an environment stops a run before it is learned from, with episode and context named."""

from collections.abc import Sequence

import torch
from torch import Tensor

from weightloom.errors import NonFiniteError


def check_finite(
    name: str,
    reward: Tensor,
    state: Tensor,
    context: Tensor,
    parameters: Sequence[str],
    episodes: int,
) -> None:
    """Raise a `NonFiniteError` unless every reward and every number of every state is finite.

    Args:
        name: Of the environment.
        reward: (rows,).
        state: (rows, numbers).
        context: (rows, parameters).
        parameters: Names of a context's numbers.
        episodes: How many episodes were begun so far.
    """
    finite = torch.isfinite(reward) & torch.isfinite(state).all(1)
    if bool(finite.all()):
        return
    row = int((~finite).nonzero()[0])
    what = "reward" if not torch.isfinite(reward[row]) else "state"
    named = ", ".join(
        f"{key} {value:.4g}" for key, value in zip(parameters, context[row].tolist(), strict=True)
    )
    raise NonFiniteError(
        f"`{name}` gave a {what} that is not finite in row {row} of {len(reward)}, after "
        f"{episodes} episodes were begun; its context is {named}. Nothing can be learned from it, "
        "so the run was stopped. Mend the environment or narrow the range by `--vary`, then go on "
        "by `--resume`: the last checkpoint is whole."
    )
