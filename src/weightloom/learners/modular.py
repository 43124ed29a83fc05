"""Modular hypernetworks: the condition is a code, inferred by gradient steps on the support set."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightloom.adapt import descend
from weightloom.base import apply_per_task
from weightloom.hypernets import HyperNetwork, MLPHyperNetwork
from weightloom.hypernets.held import HoldsBase
from weightloom.hypernets.hypernet import check_condition
from weightloom.learners.learner import Learner, Support
from weightloom.losses import TaskLoss, loss_per_task, masked_loss
from weightloom.params import Params, ParamSpec


class LayerwiseHyperNetwork(HoldsBase, HyperNetwork):
    """Hypernetwork with one code and one generator per layer of the base.

    Without ``hidden`` a generator is linear: a layer's parameters are its own values plus a mixture
    of templates, with the code, scaled to unit mean square, as coefficients. With ``hidden``, an
    MLP maps the code to the coefficients. Generated parameters start with the variance of the
    layer's own values (hyperfan-in).

    Args:
        base: The base network. All parameters of all its layers are generated.
        code_dim: Width of the code of one layer.
        hidden: Widths of the hidden layers of each generator.

    Example:
        >>> from weightloom.networks import mlp
        >>> hyper = LayerwiseHyperNetwork(mlp([16, 32, 8]), code_dim=4)
        >>> hyper.condition_dim, hyper(torch.randn(5, 8))["2.weight"].shape
        (8, torch.Size([5, 8, 32]))

    Source:
        Schug et al., "Discovering modular solutions that generalize compositionally" (2024),
        appendix D, where hidden layers of one shape share a generator.
    """

    def __init__(self, base: nn.Module, code_dim: int, hidden: Sequence[int] = ()) -> None:
        super().__init__()
        self.hold(base, unused=[name for name, _ in base.named_parameters()])
        owners = {
            name: layer
            for name, layer in base.named_modules()
            if list(layer.parameters(recurse=False))
        }
        self.names = list(owners)
        """Names of the generated layers, in the order of their codes in a condition."""
        self.condition_dim, self.spec = code_dim * len(owners), ParamSpec.of(base)
        self.bodies = LayerwiseMLP(len(owners), code_dim, hidden)
        last = hidden[-1] if hidden else code_dim
        self.writers = nn.ModuleList(
            MLPHyperNetwork(layer, last, hidden=(), init="hyperfan-in") for layer in owners.values()
        )

    def forward(self, condition: Float[Tensor, "tasks condition_dim"]) -> Params:
        """Generate parameters for each task.

        Raises:
            ShapeError: If the condition is not ``(tasks, condition_dim)``.
        """
        check_condition(condition, self.condition_dim, next(self.writers.parameters()))
        mixtures = self.bodies(condition.unflatten(1, (len(self.names), -1)))
        params = Params()
        for name, writer, mixture in zip(self.names, self.writers, mixtures.unbind(1), strict=True):
            prefix = f"{name}." if name else ""
            params |= {f"{prefix}{leaf}": value for leaf, value in writer(mixture).items()}
        return params


class LayerwiseMLP(nn.Module):
    """Several MLPs of the same widths, one per layer of a base, run as batched matrix products.

    Each starts with a layer norm, and has a layer norm and an ELU after every linear layer. Without
    hidden layers it is the identity.

    Args:
        layers: Number of MLPs.
        code_dim: Width of the input of each.
        hidden: Widths of their layers.
    """

    def __init__(self, layers: int, code_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.scales, self.shifts = nn.ParameterList(), nn.ParameterList()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for width in (code_dim, *hidden) if hidden else ():
            self.scales.append(nn.Parameter(torch.ones(layers, width)))
            self.shifts.append(nn.Parameter(torch.zeros(layers, width)))
        for width, units in pairwise((code_dim, *hidden)):
            bound = width**-0.5  # as nn.Linear
            self.weights.append(
                nn.Parameter(torch.empty(layers, width, units).uniform_(-bound, bound))
            )
            self.biases.append(nn.Parameter(torch.empty(layers, 1, units).uniform_(-bound, bound)))

    def forward(
        self, codes: Float[Tensor, "tasks layers code_dim"]
    ) -> Float[Tensor, "tasks layers units"]:
        """Outputs of each MLP for its code."""
        for depth, (scale, shift) in enumerate(zip(self.scales, self.shifts, strict=True)):
            if depth:
                bias, weight = self.biases[depth - 1], self.weights[depth - 1]
                codes = torch.baddbmm(bias, codes.transpose(0, 1), weight).transpose(0, 1)
            codes = nn.functional.layer_norm(codes, codes.shape[-1:]) * scale + shift
            if depth:
                codes = nn.functional.elu(codes)
        return codes


class ModularHyperNetwork(Learner):
    """Infer the condition of a hypernetwork by gradient steps on the support set.

    Training differentiates through the steps.

    Args:
        base: The base network that ``hyper`` generates for.
        hyper: Any hypernetwork that reads a vector per task.
        loss_per_task: Outputs and targets to one loss per task, a mean over its points; used in the
            inner and outer loop.
        inner_steps: Gradient steps from a learned initial code, which is the same for all tasks.
        inner_lr: Learning rate of the inner steps.
        first_order: Treat the gradients of the inner steps as constants.
        momentum: Decay rates of Adam's moments. None: plain gradient descent.
        weight_decay: Decoupled decay of the code per step, multiplied by ``inner_lr``.

    Example:
        >>> from weightloom.networks import mlp
        >>> base = mlp([16, 32, 8])
        >>> hyper = LayerwiseHyperNetwork(base, code_dim=4, hidden=(32,))
        >>> learner = ModularHyperNetwork(base, hyper)
        >>> x, y = torch.randn(5, 9, 16), torch.randn(5, 9, 8)
        >>> support = Support(x, y, torch.ones(5, 9, dtype=torch.bool))
        >>> learner.condition(support).shape
        torch.Size([5, 8])

    Source:
        Schug et al., "Discovering modular solutions that generalize compositionally" (2024),
        algorithm 1.
    """

    inner_loop = True

    def __init__(
        self,
        base: nn.Module,
        hyper: HyperNetwork,
        loss_per_task: TaskLoss = loss_per_task,
        inner_steps: int = 10,
        inner_lr: float = 0.3,
        first_order: bool = False,
        momentum: tuple[float, float] | None = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.base, self.hyper, self.loss_per_task = (
            getattr(hyper, "base", base),
            hyper,
            loss_per_task,
        )
        self.inner_steps, self.inner_lr, self.first_order = inner_steps, inner_lr, first_order
        self.momentum, self.weight_decay = momentum, weight_decay
        self.start = nn.Parameter(torch.randn(hyper.condition_dim))

    def condition(self, support: Support) -> Tensor:
        """Infer the code of each task, (tasks, condition_dim)."""

        def loss(code: Tensor) -> Tensor:
            outputs = self.predict(self.hyper(code), support.x)
            return masked_loss(self.loss_per_task, outputs, support.y, support.mask)

        return descend(
            self.start.expand(len(support.x), -1),
            loss,
            self.inner_steps,
            self.inner_lr,
            first_order=self.first_order,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )

    def adapt(self, support: Support) -> Params:
        """Generate parameters from the code."""
        params: Params = self.hyper(self.condition(support))
        return params

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Run the base with each task's parameters."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs
