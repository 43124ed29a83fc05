"""CAVIA: adapt a small context vector per task; all parameters are shared."""

from collections.abc import Mapping

from torch import Tensor, nn

from weightloom.adapt import descend
from weightloom.base import apply_per_task
from weightloom.errors import ConfigError
from weightloom.learners.learner import Learner, Support
from weightloom.losses import TaskLoss, loss_per_task, masked_loss
from weightloom.params import Params, ParamSpec, Selector, selectors_of


class CAVIA(Learner):
    """CAVIA: a context vector per task, adapted by gradient steps from zero, shifts the first bias.

    A layer that reads an input concatenated with the context equals one that reads the input alone
    and whose bias is shifted by a linear function of the context. Here each task has its own bias,
    and the base is not changed.

    Args:
        base: The base network.
        context_dim: Width of the context.
        loss_per_task: Outputs and targets to one loss per task, a mean over its points; used in the
            inner and outer loop.
        inner_steps: Gradient steps per task.
        inner_lr: Learning rate of the inner steps.
        first_order: Treat the gradients of the inner steps as constants.
        shifted: Parameters that the context shifts. None: the first bias.

    Raises:
        ConfigError: If ``shifted`` matches no parameter, or is None and the base has no bias.

    Example:
        >>> import torch
        >>> from weightloom.networks import mlp
        >>> cavia = CAVIA(mlp([1, 40, 40, 1]), context_dim=5)
        >>> x, y = torch.randn(7, 10, 1), torch.randn(7, 10, 1)
        >>> support = Support(x, y, torch.ones(7, 10, dtype=torch.bool))
        >>> {name: tuple(value.shape) for name, value in cavia.adapt(support).items()}
        {'0.bias': (7, 40)}

    Source:
        Zintgraf et al., "Fast context adaptation via meta-learning" (2019), section 3.
    """

    inner_loop = True

    def __init__(
        self,
        base: nn.Module,
        context_dim: int = 5,
        loss_per_task: TaskLoss = loss_per_task,
        inner_steps: int = 1,
        inner_lr: float = 1.0,
        first_order: bool = False,
        shifted: Selector | None = None,
    ) -> None:
        super().__init__()
        self.base, self.loss_per_task = base, loss_per_task
        self.inner_steps, self.inner_lr, self.first_order = inner_steps, inner_lr, first_order
        self.spec = ParamSpec.of(
            base, selectors_of(_first_bias(base) if shifted is None else shifted)
        )
        self.read = nn.Linear(context_dim, self.spec.size, bias=False)

    def condition(self, support: Support) -> Tensor:
        """Adapt the context of each task, (tasks, context_dim)."""

        def loss(context: Tensor) -> Tensor:
            outputs = self.predict(self.shift(context), support.x)
            return masked_loss(self.loss_per_task, outputs, support.y, support.mask)

        start = self.read.weight.new_zeros(len(support.x), self.read.in_features)
        return descend(start, loss, self.inner_steps, self.inner_lr, first_order=self.first_order)

    def shift(self, context: Tensor) -> Params:
        """Shifted parameters for a context, (tasks, context_dim)."""
        own = dict(self.base.named_parameters())
        return Params(
            {name: own[name] + change for name, change in self.spec.cut(self.read(context)).items()}
        )

    def adapt(self, support: Support) -> Params:
        """Adapt the context, and shift parameters by it."""
        return self.shift(self.condition(support))

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Run the base with each task's shifted parameters; all others are shared."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs


def _first_bias(base: nn.Module) -> str:
    """Name of the first bias in `named_parameters`."""
    for name, _ in base.named_parameters():
        if name.rpartition(".")[2] == "bias":
            return name
    raise ConfigError(
        f"{type(base).__name__} has no bias. The context is read by shifting parameters, by "
        "default the first bias. Pass `shifted` with a glob over the names in "
        "`base.named_parameters()`."
    )
