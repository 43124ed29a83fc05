"""Check of rewards and states: a NaN from an environment stops a run before the next update."""

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
        name: Name of the environment.
        reward: Rewards, (rows,).
        state: States, (rows, numbers).
        context: Contexts, (rows, parameters).
        parameters: Names of the context parameters.
        episodes: Number of episodes begun so far.

    Raises:
        NonFiniteError: If a number is NaN or infinite; the message names row and context.
    """
    finite = torch.isfinite(reward) & torch.isfinite(state).all(1)
    if bool(finite.all()):
        return
    row = int((~finite).nonzero()[0])
    kind = "reward" if not torch.isfinite(reward[row]) else "state"
    named = ", ".join(
        f"{key} {value:.4g}" for key, value in zip(parameters, context[row].tolist(), strict=True)
    )
    raise NonFiniteError(
        f"`{name}` gave a {kind} that is not finite in row {row} of {len(reward)}, after "
        f"{episodes} episodes were begun; its context is {named}. The run was stopped before an "
        "update with it. Mend the environment or narrow the range by `--vary`, then continue by "
        "`--resume`: the last checkpoint is intact."
    )
