"""Encoder, hypernetwork and base network as one few-shot method."""

from collections.abc import Mapping

from torch import Tensor, nn

from weightloom.base import apply_per_task
from weightloom.errors import ConfigError, ShapeError
from weightloom.learners.learner import Learner, Support
from weightloom.params import Params, parameters_by_name


class GeneratedLearner(Learner):
    """Few-shot method of an encoder, a hypernetwork and a base network.

    ``params = hyper(encoder(support_x, support_y, support_mask))``, then
    ``apply_per_task(base, params, query_x)``.

    Args:
        base: The base network; any module. If ``hyper`` holds a copy that shares its parameters, as
            with ``freeze``, the copy is run.
        encoder: ``(support_x, support_y, support_mask)`` to a condition, (tasks, condition_dim),
            such as `DeepSets`. None if conditions are known: ``adapt`` then takes the condition, or
            a support set with the condition as ``x``.
        hyper: A condition to parameters of ``base``, such as `MLPHyperNetwork`.

    Raises:
        ConfigError: If ``hyper`` was built over another base.
        ShapeError: If the widths of the encoder's and the hypernetwork's condition differ.

    Example:
        >>> import torch
        >>> from weightloom import DeepSets, MLPHyperNetwork, mlp
        >>> base = mlp([1, 8, 1])
        >>> hyper = MLPHyperNetwork(base, condition_dim=4)
        >>> learner = GeneratedLearner(base, DeepSets(1, 1, condition_dim=4), hyper)
        >>> x, y, mask = torch.randn(5, 10, 1), torch.randn(5, 10, 1), torch.ones(5, 10).bool()
        >>> learner.predict(learner.adapt(Support(x, y, mask)), torch.randn(5, 7, 1)).shape
        torch.Size([5, 7, 1])
    """

    def __init__(self, base: nn.Module, encoder: nn.Module | None, hyper: nn.Module) -> None:
        super().__init__()
        held = getattr(hyper, "base", None)
        if isinstance(held, nn.Module):
            _check_same_base(base, held)
        _check_widths(encoder, hyper)
        self.base = held if isinstance(held, nn.Module) else base
        self.encoder = encoder
        self.hyper = hyper

    def condition(self, support: Support | Tensor) -> Tensor:
        """Encode the support set, (tasks, condition_dim); without an encoder, return the condition.

        Raises:
            ConfigError: If a tensor is passed instead of a support set, but an encoder is set.
            ShapeError: If the encoder does not return a condition for each task.
        """
        if self.encoder is None:
            return support if isinstance(support, Tensor) else support.x
        if isinstance(support, Tensor):
            raise ConfigError(
                f"`support` is a tensor of shape {tuple(support.shape)}. The encoder, "
                f"{type(self.encoder).__name__}, reads inputs, targets and a mask. Pass "
                "`Support(x, y, mask)`, or build the learner with `encoder=None` if that is the "
                "condition."
            )
        condition: Tensor = self.encoder(support.x, support.y, support.mask)
        if not condition.ndim or condition.shape[0] != support.x.shape[0]:
            raise ShapeError(
                f"The encoder, {type(self.encoder).__name__}, returned a condition of shape "
                f"{tuple(condition.shape)} for {support.x.shape[0]} tasks. Each task has one "
                "condition, on axis 0. Return (tasks, condition_dim)."
            )
        return condition

    def adapt(self, support: Support | Tensor) -> Params:
        """Generate the parameters of each task from its support set, or from a known condition."""
        params: Params = self.hyper(self.condition(support))
        return params

    def predict(self, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Run the base with each task's parameters."""
        outputs: Tensor = apply_per_task(self.base, params, x)
        return outputs


def _check_same_base(base: nn.Module, held: nn.Module) -> None:
    """Raise a `ConfigError` unless ``held`` is the base, or shares all of its parameters."""
    if held is base:
        return
    own, its = parameters_by_name(base), parameters_by_name(held)
    odd = next((name for name in {**own, **its} if not _share(own.get(name), its.get(name))), None)
    if odd is not None:
        raise ConfigError(
            f"`hyper` was built over another base: its `{odd}` is not that of `base`. Parameters "
            "generated for one network do not fit another, and the values that tasks share would "
            "be trained apart. Pass the same module to both."
        )


def _share(own: Tensor | None, its: Tensor | None) -> bool:
    return own is not None and its is not None and own.data_ptr() == its.data_ptr()


def _check_widths(encoder: nn.Module | None, hyper: nn.Module) -> None:
    """Raise a `ShapeError` if both have a ``condition_dim``, and they differ."""
    written, read = getattr(encoder, "condition_dim", None), getattr(hyper, "condition_dim", None)
    if isinstance(written, int) and isinstance(read, int) and written != read:
        raise ShapeError(
            f"The encoder writes conditions of width {written}, and the hypernetwork reads {read}. "
            f"The output of the first is the input of the second. Build the hypernetwork with "
            f"`condition_dim={written}`, or the encoder with `condition_dim={read}`."
        )
