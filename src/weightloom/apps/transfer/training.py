"""Training of transfer methods: the trainer's options from those of a run."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from weightloom.apps.app import Training
from weightloom.apps.transfer.config import TransferOptions
from weightloom.training import History, TrainOptions, train
from weightloom.training.sources import Draw
from weightloom.training.turns import Turn


def fit(
    model: nn.Module,
    draw: Draw,
    config: TransferOptions,
    training: Training[nn.Module],
    *,
    score: Callable[[], float] | None = None,
    score_name: str = "",
    turns: Sequence[Turn] = (),
    **options: Any,
) -> History:
    """Train one method, from its last checkpoint if it has one.

    Args:
        model: The method; its ``forward`` takes a batch and returns one loss per task, (tasks,).
        draw: Function of a step's number and a generator seeded for it, to a batch.
        config: Options.
        training: Folder, identity and processes of the training, and the call for an early report.
        score: Score on validation targets, called every ``config.evaluate_every`` steps.
        score_name: Its name, as in "accuracy".
        turns: Players that move in turn. Default: the whole model.
        **options: Further options of `weightloom.training.TrainOptions`, such as ``average``.

    Returns:
        Losses and evaluations by step.

    Raises:
        NonFiniteError: If a loss or gradient is not finite.
    """
    assert config.steps
    looked: list[int] = []

    def evaluate(done: int) -> dict[str, Any]:
        if not looked and done < (config.steps or 0):
            looked.append(done)
            training.look(model)
        if score is None:
            return {}
        model.eval()
        found = score()
        model.train()
        return {"validation_score": found, "score_name": score_name}

    settings = TrainOptions(
        steps=config.steps,
        tasks=config.tasks,
        outer_lr=config.rate_of(training.method),
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
        seed=config.seed,
        **options,
    )
    return train(
        model,
        draw,
        None,
        settings,
        turns=turns,
        evaluate=evaluate if score else None,
        **training.how(),
    )
