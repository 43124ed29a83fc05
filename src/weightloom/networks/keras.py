"""Keras models as base networks: a Keras 3 model on torch in, a plain module out.

In:   a Keras 3 model on the torch backend, built.
Out:  `KerasBase`, a module whose parameters are the model's trainable variables.
Knows nothing of tasks, nor of where its parameters came from. Loads Keras only when a `KerasBase`
is made or run.

Keras reads its variables from the model itself, so `torch.func.functional_call` on a raw Keras
model runs without an error and without the parameters it was given. Base networks are refused by
`is_keras` for that reason.
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
    """Whether this is a Keras model or layer. It is answered without importing Keras.

    Example:
        >>> is_keras(nn.Linear(3, 2))
        False
    """
    return any(kind.__module__.partition(".")[0] == "keras" for kind in type(module).__mro__)


class KerasBase(nn.Module):
    """A Keras model as a base network.

    It runs with what stands in the slots of this module, and with nothing else.

    Trainable variables become parameters, the others (moving statistics, seeds, frozen weights)
    become buffers. All of them are copies: training this module leaves the Keras model as it is,
    until `write_back`. A copy of this module keeps the same Keras model, which it uses as code
    only.

    A name is the variable's path in Keras without the model's own name, as in ``"dense/kernel"``; a
    second variable of one path ends in ``_1``. Keras counts the layers that have no name through a
    whole process: name the layers whose ``state_dict`` is to be loaded elsewhere.

    In eval mode nothing is written. In train mode moving statistics and seeds are written after
    each run, as `nn.BatchNorm1d` does it; ``torch.func.vmap`` and ``torch.func.grad`` do not allow
    that where it depends on the parameters. Penalties and other losses that Keras layers add on
    their way are left out. Keras on torch multiplies matrices in float32, also where the model is
    float64, so two ways to one result agree to six digits or so.

    Args:
        model: A Keras 3 model or layer on the torch backend, built.

    Raises:
        MissingExtraError: If Keras is not installed, or does not find its backend.
        ConfigError: If Keras runs on another backend, or ``model`` is not of Keras, or not built.

    Example:
        >>> import keras  # doctest: +SKIP
        >>> model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="head")])  # doctest: +SKIP
        >>> list(dict(KerasBase(model).named_parameters()))  # doctest: +SKIP
        ['head/kernel', 'head/bias']

    Source:
        https://github.com/keras-team/keras/issues/20279, on ``functional_call``.
    """

    keras_model: Any
    """The Keras model. Its own variables take no part."""
    own_statistics = True
    """Its buffers are running statistics, as those of torch's norms."""
    random_buffers = "seed_generator"
    """Part of the names of buffers that are the state of random numbers, which every run moves
    on."""
    not_walked = ("keras_model",)
    """It holds no reference to a module or a parameter of ours, and is large."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        _check(model)
        object.__setattr__(
            self, "keras_model", model
        )  # not a sub-module: its own variables are no parameters
        variables = _variables(model)
        self._names = _names(model.name, [variable.path for variable in variables])
        for name, variable in zip(self._names, variables, strict=True):
            value = variable.value.detach().clone()
            if variable.trainable:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Run the Keras model.

        Args:
            *inputs: What the model takes. A functional model of several inputs may be given them
                behind each other.
            **options: Passed on to the model. ``training`` is ``self.training`` unless it is given.

        Returns:
            What the model returns.

        Raises:
            ShapeError: If a slot holds a value of another shape than the Keras variable.
            ConfigError: If a slot holds a value that Keras would round, or the model was rebuilt.
            BatchingError: If state changes in a way that cannot be written under ``vmap`` or
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
        with (
            keras.device(str(device)),
            keras.StatelessScope(mapping) as scope,
        ):  # Keras moves tensors to its own device
            before = [scope.get_current_value(variable) for _, variable, _ in slots]
            outputs = self.keras_model(*inputs, **{"training": self.training, **options})
        for (name, variable, _), old in zip(slots, before, strict=True):
            new = scope.get_current_value(variable)
            if new is not old and self.training:
                self._write(name, new)
        return outputs

    @torch.no_grad()
    def write_back(self) -> None:
        """Put the values of this module into the Keras model, which can then be saved as Keras saves.

        ``specialise(base, params, task).write_back()`` leaves the parameters of one task in it.
        """
        for _, variable, slot in self._slots():
            variable.assign(slot)

    def _slots(self) -> list[tuple[str, Any, Tensor]]:
        """Name, Keras variable and what stands in its slot at present, for each variable."""
        variables = _variables(self.keras_model)
        if len(variables) != len(self._names):
            raise ConfigError(
                f"The Keras model `{self.keras_model.name}` holds {len(variables)} variables now "
                f"and held {len(self._names)} when `KerasBase` was made. Each variable needs its "
                "slot. Make a new `KerasBase`."
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
        ) as error:  # of a value that differs from task to task, or belongs to `torch.func.grad`
            raise BatchingError(
                f"`{name}` of the Keras model is state that changes in train mode, and cannot be "
                f"written here ({str(error).splitlines()[0]}). One value cannot serve all tasks at "
                "once. Use a layer without such "
                'state, as LayerNormalization or GroupNormalization, call `base.eval()`, or pass `engine="loop"`.'
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
            "looks for the backend "
            'that `KERAS_BACKEND` names. Type `pip install "weightloom[keras]"` and `export KERAS_BACKEND=torch`.'
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
            "A module of torch is a base network as it is: pass it without `KerasBase`."
        )
    if not model.built:
        raise ConfigError(
            f"The Keras model `{model.name}` is not built. It has no variables before it knows the "
            "shape of its inputs. Call it once on some data, or begin it with `keras.Input(shape)`."
        )


def _check_slot(name: str, variable: Any, slot: Tensor) -> None:
    """Say before Keras does what does not fit, and what Keras would round without a word."""
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
            f"its own type, and on torch it multiplies matrices in float32 whatever that is. Bring "
            f"the parameters to {own}, of the base by `base.to({own})`, and of the hypernetwork "
            "alike."
        )


def _variables(model: Any) -> list[Any]:
    """All variables but those of metrics, which come and go with ``compile``."""
    of_metrics = {id(variable) for variable in model.metrics_variables}
    return [variable for variable in model.variables if id(variable) not in of_metrics]


def _names(model: str, paths: Sequence[str]) -> list[str]:
    """Paths without what changes from one build to the next, each once."""
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
