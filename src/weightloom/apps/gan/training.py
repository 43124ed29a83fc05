"""Training of a pair: the trainer's options and turns from those of a run.

In:   a pair, its problem, options.
Out:  a history; the trained pair; a few samples of each evaluation, in ``frames.safetensors``.
"""

from pathlib import Path
from typing import Any

import torch

from weightloom.adversarial import AdversarialPair, adversarial_source
from weightloom.apps.app import Training
from weightloom.apps.gan.config import GanOptions
from weightloom.apps.gan.problems.problem import GanProblem
from weightloom.errors import NonFiniteError
from weightloom.files import load_tensors, save_tensors
from weightloom.training import History, TrainOptions, train

FRAMES = "frames.safetensors"
"""File in a method's folder: samples at each evaluation, by the number of steps."""


def fit(
    model: AdversarialPair,
    problem: GanProblem,
    config: GanOptions,
    training: Training[AdversarialPair],
) -> History:
    """Train a pair in turns, from its last checkpoint if it has one.

    Args:
        model: The pair.
        problem: The real samples, and the training of the method.
        config: Options.
        training: Folder, identity and processes of the training, and the call for an early report.

    Returns:
        Losses and scores by step.

    Raises:
        NonFiniteError: If a loss or gradient is not finite, or a score is beyond all bounds.
    """
    steps = config.steps or 2
    recipe = problem.recipe(training.method, steps)
    looked: list[int] = []

    def evaluate(done: int) -> dict[str, Any]:
        model.eval()
        score = problem.validate(model)
        _keep_frame(problem, model, training.folder, done)
        model.train()
        if not looked and done < steps:
            looked.append(done)
            training.look(model)
        return {"validation_score": score, "score_name": problem.score}

    options = TrainOptions(
        steps=steps,
        outer_lr=config.rate_of(training.method),
        average=config.average,
        clip_norm=torch.inf,
        evaluate_every=config.evaluate_every,
        checkpoint_every=config.checkpoint_every,
        seed=config.seed,
    )
    source = adversarial_source(problem.draw, config.noise_dim, recipe.penalty)
    try:
        return train(
            model,
            source,
            None,
            options,
            turns=model.turns(**recipe.settings),
            evaluate=evaluate,
            **training.how(),
        )
    except NonFiniteError as error:
        kept = training.folder / "checkpoints" / "last.safetensors"
        last = f" The last good checkpoint is `{kept}`." if kept.is_file() else ""
        advice = (
            f"Type a larger penalty, as in `--gamma {4 * max(config.gamma, 0.1):g}`, or a lower "
            f"rate, as in `--learning-rate {config.rate_of(training.method) / 3:.1g}`."
        )
        raise NonFiniteError(
            f"{error}{'' if str(kept) in str(error) else last} {advice}"
        ) from error


def _keep_frame(problem: GanProblem, model: AdversarialPair, folder: Path, done: int) -> None:
    """Add a few samples to the frames in the folder of a method."""
    frame = problem.frame(model)
    if frame is None or not folder.is_dir():
        return
    path = folder / FRAMES
    frames = load_tensors(path)[0] if path.is_file() else {}
    later = [name for name in frames if int(name) > done]  # of a run that was resumed before them
    kept = {name: its for name, its in frames.items() if name not in later}
    save_tensors(path, {**kept, f"{done:09}": frame.contiguous()}, {})
