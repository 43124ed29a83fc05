"""Match camera wires to pixels by class statistics, then classify the restored images.

A comparator that knows how cameras are simulated, without a hypernetwork.
"""

import torch
from torch import Tensor, nn

from weightloom.conditions import input_statistics
from weightloom.hypernets import standardised
from weightloom.hypernets.equivariant import assignment
from weightloom.learners.inputs import RestoringLearner
from weightloom.learners.learner import Support
from weightloom.learners.machines import machine_of
from weightloom.params import Params
from weightloom.tasks import TaskSource

ROUNDS = 30
"""Rounds of Sinkhorn's normalisation."""
TAUGHT_TASKS, TAUGHT_SEED = 400, 1 << 39
"""Number of training cameras for a machine fitted to restored images, and the seed to draw them."""


class Matching(RestoringLearner):
    """Assign every wire to a pixel and a sign by its class means, then classify with an SVM.

    Mean and variance of every training pixel in each class are known. Wires and pixels are
    standardised over the classes in the support set. Each pixel and sign is scored by the Gaussian
    log-likelihood of the wire's class means, with the pixel's variance over the shots. Sinkhorn's
    normalisation turns the scores into a soft assignment, which restores images. A support vector
    machine classifies them, fitted to training images or, with ``taught``, to restored images of
    training cameras.

    Args:
        images: Training images, (images, pixels), in 0 to 1.
        labels: Their classes, (images,).
        sharpness: Factor of the scores.
        noise: Added to the variance of a standardised class mean.
        penalty: C of the machine.
        gamma: Coefficient of its kernel, on pixels in 0 to 1.
        taught: Cameras whose restored images the machine is fitted to; None: the training images.

    Source:
        Sinkhorn and Knopp, "Concerning nonnegative matrices and doubly stochastic matrices" (1967).
    """

    trained = False

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        sharpness: float = 4.0,
        noise: float = 0.03,
        penalty: float = 1.0,
        gamma: float = 0.2,
        taught: list[TaskSource] | None = None,
    ) -> None:
        pixels = images.shape[1]
        super().__init__(
            nn.Sequential(nn.Linear(pixels, pixels).requires_grad_(False), nn.Identity())
        )
        self.sharpness, self.noise = sharpness, noise
        classes = int(labels.max()) + 1
        of_class = [images[labels == label] for label in range(classes)]
        self.class_mean = torch.stack([part.mean(0) for part in of_class])
        self.class_variance = torch.stack([part.var(0) for part in of_class])
        if taught:
            generator = torch.Generator().manual_seed(TAUGHT_SEED)
            drawn = [source.sample(TAUGHT_TASKS // len(taught), generator) for source in taught]
            restored = [
                self.restored(self.adapt(tasks.support), tasks.query_x).flatten(0, 1)
                for tasks in drawn
            ]
            images, labels = (
                torch.cat(restored),
                torch.cat([tasks.query_y.flatten() for tasks in drawn]),
            )
        self.base[1] = machine_of(images, labels, classes, penalty, gamma)

    def adapt(self, support: Support) -> Params:
        """First layer of each camera, from its assignment of wires to pixels."""
        classes = len(self.class_mean)
        known = input_statistics(support.x, support.y, support.mask, classes=classes)
        wire, shown = known.tokens[..., :classes], known.tokens[:, 0, classes : 2 * classes]
        member = (
            torch.nn.functional.one_hot(support.y.clamp(min=0), classes) * support.mask[..., None]
        )
        shots = member.sum(1).to(wire.dtype)
        share_of_class = shots / shots.sum(1, keepdim=True).clamp(min=1)
        weight = share_of_class[..., None]  # (tasks, classes, 1)
        mean = (weight * self.class_mean).sum(1)
        variance = (
            weight * (self.class_variance + (self.class_mean - mean[:, None]).square())
        ).sum(1)
        spread = (variance + 1e-4).sqrt()
        pixel = (self.class_mean - mean[:, None]) / spread[:, None]  # (tasks, classes, pixels)
        noise = (
            self.class_variance / spread[:, None].square() / shots[..., None].clamp(min=1)
            + self.noise
        )
        scores = []
        for sign in (1.0, -1.0):
            # (tasks, wires, classes, pixels)
            miss = (sign * wire[..., None] - pixel[:, None]).square() / noise[:, None]
            scores.append(-0.5 * ((miss + noise[:, None].log()) * shown[:, None, :, None]).sum(2))
        share = assignment(self.sharpness * torch.cat(scores, dim=2), ROUNDS)
        params = {"0.weight": spread[..., None] * share, "0.bias": mean}
        return standardised(params, "0", known.mean, known.scale)
