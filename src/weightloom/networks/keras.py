"""Keras models as base networks: a Keras 3 model on torch in, a plain module out.

In:   a built Keras 3 model on the torch backend.
Out:  `KerasBase`, a module whose parameters are the model's trainable variables.
Knows nothing of tasks, nor of the origin of its parameters. Imports Keras only when a `KerasBase`
is created or run.

Keras reads its variables from the model itself, so `torch.func.functional_call` on a raw Keras
model runs without an error and ignores the parameters passed to it. Raw Keras models are therefore
refused as bases, by `is_keras`.
"""

import copy
import re
from collections.abc import Sequence
from importlib import import_module
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from weightloom.errors import BatchingError, ConfigError, MissingExtraError, ShapeError


def is_keras(module: object) -> bool:
    """Test for a Keras model or layer, without importing Keras.

    Example:
        >>> is_keras(nn.Linear(3, 2))
        False
    """
    return any(kind.__module__.partition(".")[0] == "keras" for kind in type(module).__mro__)


class KerasBase(nn.Module):
    """Keras model as a base network: it runs with the parameters and buffers of this module.

    Trainable variables become parameters; the others (moving statistics, seeds, frozen weights)
    become buffers. All of them are copies: training this module does not change the Keras model
    until `write_back`. A copy of this module shares the Keras model, which serves as code only.

    A name is the variable's path in Keras without the model's own name, as in ``"dense/kernel"``; a
    second variable with the same path ends in ``_1``. Keras numbers unnamed layers over the whole
    process: name the layers if the ``state_dict`` is to be loaded in another process.

    Eval mode changes no buffer. Train mode updates moving statistics and seeds after each call, as
    `nn.BatchNorm1d` does; ``torch.func.vmap`` and ``torch.func.grad`` do not allow that if the
    update depends on the parameters. Penalties and other losses added by Keras layers are ignored.
    Keras on torch multiplies matrices in float32 even in a float64 model, so equal computations
    agree to about six digits.

    Args:
        model: A built Keras 3 model or layer on the torch backend.

    Raises:
        MissingExtraError: If Keras is not installed, or does not find its backend.
        ConfigError: If Keras runs on another backend, or ``model`` is not of Keras, or not built.

    Example:
        >>> import keras  # doctest: +SKIP
        >>> head = keras.layers.Dense(2, name="head")  # doctest: +SKIP
        >>> model = keras.Sequential([keras.Input((3,)), head])  # doctest: +SKIP
        >>> list(dict(KerasBase(model).named_parameters()))  # doctest: +SKIP
        ['head/kernel', 'head/bias']

    Source:
        https://github.com/keras-team/keras/issues/20279, on ``functional_call``.
    """

    keras_model: Any
    """The Keras model; the values of its own variables are not used."""
    own_statistics = True
    """Its buffers are running statistics, like those of torch's norms."""
    random_buffers = "seed_generator"
    """Substring in the names of buffers that hold random state, which every call advances."""
    not_walked = ("keras_model",)
    """Attributes skipped in a search for torch modules and parameters: Keras holds none of ours."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        _check(model)
        # Not a sub-module, whose own variables would become parameters.
        object.__setattr__(self, "keras_model", model)
        variables = _variables(model)
        self._names = _names(model.name, [variable.path for variable in variables])
        for name, variable in zip(self._names, variables, strict=True):
            value = variable.value.detach().clone()
            if variable.trainable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Run the Keras model with the parameters and buffers of this module.

        Args:
            *inputs: Inputs of the model. A functional model of several inputs also accepts them as
                separate arguments.
            **options: Options of the model. Default of ``training``: ``self.training``.

        Returns:
            The outputs of the model.

        Raises:
            ShapeError: If a parameter or buffer has another shape than its Keras variable.
            ConfigError: If Keras would round a value, or the model was rebuilt.
            BatchingError: If an update of a buffer is not possible under ``vmap`` or
                ``torch.func.grad``.
        """
        keras, slots = _load_keras(), self._slots()
        fed = getattr(self.keras_model, "inputs", None)
        if isinstance(fed, list) and len(fed) == len(inputs) > 1:
            inputs = (list(inputs),)
        device = next(
            tensor.device for tensor in chain((slot for _, _, slot in slots), tree_leaves(inputs))
        )
        mapping = [(variable, slot) for _, variable, slot in slots]
        # Without `keras.device`, Keras would move tensors to its default device.
        with keras.device(str(device)), keras.StatelessScope(mapping) as scope:
            before = [scope.get_current_value(variable) for _, variable, _ in slots]
            outputs = self.keras_model(*inputs, **{"training": self.training, **options})
        for (name, variable, _), old in zip(slots, before, strict=True):
            new = scope.get_current_value(variable)
            if new is not old and self.training:
                self._write(name, new)
        return outputs

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy parameters and buffers into the Keras model, for instance to save it with Keras.

        ``specialise(base, params, task).write_back()`` copies the parameters of one task.
        """
        for _, variable, slot in self._slots():
            variable.assign(slot)

    def _slots(self) -> list[tuple[str, Any, Tensor]]:
        """Name, Keras variable, and current parameter or buffer, for each variable."""
        variables = _variables(self.keras_model)
        if len(variables) != len(self._names):
            raise ConfigError(
                f"The Keras model `{self.keras_model.name}` holds {len(variables)} variables now "
                f"and held {len(self._names)} when `KerasBase` was made. Each variable needs a "
                "parameter or buffer. Make a new `KerasBase`."
            )
        slots = [
            (name, variable, getattr(self, name))
            for name, variable in zip(self._names, variables, strict=True)
        ]
        for name, variable, slot in slots:
            _check_slot(name, variable, slot)
        return slots

    def _write(self, name: str, value: Tensor) -> None:
        try:
            getattr(self, name).copy_(value.detach())
        except (
            RuntimeError
        ) as error:  # the value differs between tasks, or is tracked by torch.func
            raise BatchingError(
                f"`{name}` of the Keras model is state that changes in train mode, and cannot be "
                f"written here ({str(error).splitlines()[0]}). One value cannot serve all tasks at "
                "once. Use a layer without such state, as LayerNormalization or "
                'GroupNormalization, call `base.eval()`, or pass `engine="loop"`.'
            ) from error

    def __deepcopy__(self, memo: dict[int, Any]) -> "KerasBase":
        memo[id(self.keras_model)] = self.keras_model
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def extra_repr(self) -> str:
        """Name the Keras model, as in ``print(base)``."""
        return f"{type(self.keras_model).__name__} {self.keras_model.name!r}"


def _load_keras() -> Any:
    try:
        return import_module("keras")
    except ImportError as error:
        raise MissingExtraError(
            f"Keras cannot be imported ({error}). It is an optional part of this library, and it "
            "looks for the backend that `KERAS_BACKEND` names. Type "
            '`pip install "weightloom[keras]"` and `export KERAS_BACKEND=torch`.'
        ) from error


def _check(model: Any) -> None:
    keras = _load_keras()
    backend = keras.backend.backend()
    if backend != "torch":
        raise ConfigError(
            f"Keras runs on the {backend!r} backend. Only on torch are its variables tensors that "
            "torch can follow. Set the environment variable `KERAS_BACKEND=torch` before Keras is "
            "imported."
        )
    if not isinstance(model, keras.layers.Layer):
        raise ConfigError(
            f"`model` is a {type(model).__name__}. `KerasBase` takes a Keras model or layer. "
            "A torch module is a base network already: pass it without `KerasBase`."
        )
    if not model.built:
        raise ConfigError(
            f"The Keras model `{model.name}` is not built. It has no variables before it knows the "
            "shape of its inputs. Call it once on some data, or begin it with `keras.Input(shape)`."
        )


def _check_slot(name: str, variable: Any, slot: Tensor) -> None:
    """Refuse a value of a wrong shape, or one that Keras would silently round."""
    if tuple(variable.shape) != tuple(slot.shape):
        raise ShapeError(
            f"`{name}` has shape {tuple(slot.shape)}; the Keras variable has shape "
            f"{tuple(variable.shape)}. "
            "Keras runs a variable only in the shape that it was built with. "
            f"Build the Keras model so that `{name}` has shape {tuple(slot.shape)}."
        )
    own = variable.value.dtype
    if torch.promote_types(own, slot.dtype) != own:
        raise ConfigError(
            f"`{name}` is {slot.dtype} and the Keras variable is {own}. Keras would round it to "
            f"{own}, and on torch it multiplies matrices in float32 in any case. Convert the "
            f"parameters to {own}: of the base by `base.to({own})`, and of the hypernetwork alike."
        )


def _variables(model: Any) -> list[Any]:
    """Variables of a model, except those of metrics, which ``compile`` adds and removes."""
    of_metrics = {id(variable) for variable in model.metrics_variables}
    return [variable for variable in model.variables if id(variable) not in of_metrics]


def _names(model: str, paths: Sequence[str]) -> list[str]:
    """Unique names from variable paths, without the parts that differ between builds."""
    short = [
        re.sub(r"(^|/)seed_generator_\d+/", r"\1seed_generator/", path.removeprefix(f"{model}/"))
        for path in paths
    ]
    names: list[str] = []
    for name in short:
        number, numbered = 0, name
        while numbered in names:
            number += 1
            numbered = f"{name}_{number}"
        names.append(numbered)
    return names
