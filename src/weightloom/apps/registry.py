"""The applications by name: those of this library, and those that other packages bring.

In:   a name, or ``module:Class``.
Out:  an `App`.
Knows nothing of their insides; torch is not imported.
"""

import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from weightloom.apps.app import App
from weightloom.errors import ConfigError, MissingExtraError, WeightloomError, nearest
from weightloom.runs.options import RunOptions

APPS = {
    "fewshot": "weightloom.apps.fewshot.app:FewShot",
    "rl": "weightloom.apps.rl.app:RL",
}
"""Applications of this library; a package of your own adds one by the entry point group
``weightloom.apps``."""
GROUP = "weightloom.apps"


def app_names() -> list[str]:
    """Return the names of all applications, those of other packages last."""
    return list(_known())


def _known() -> dict[str, str]:
    from importlib.metadata import entry_points  # takes longer than all else here

    return {
        **APPS,
        **{
            point.name: point.value for point in entry_points(group=GROUP) if point.name not in APPS
        },
    }


OWN_ERRORS = (Exception, SystemExit)
"""What code of a user's own may raise, a module that exits included."""


def find_app(name: str) -> App[Any, Any, Any]:
    """Return an application.

    Args:
        name: As in `weightloom NAME`, or ``module:Class`` of one that is found from the working
            directory.

    Raises:
        ConfigError: If there is none.
    """
    known = APPS if name in APPS or ":" in name else _known()
    if name not in known and ":" not in name:
        raise ConfigError(f"There is no application `{name}`. {nearest(name, known)}")
    found = imported(known.get(name, name), "An application", "my_package.app:MyApp")
    try:
        app = found() if isinstance(found, type) else found
    except OWN_ERRORS as error:
        raise ConfigError(
            f"`{name}` cannot be made ({type(error).__name__}: {error}). An application takes no "
            "arguments. Change it."
        ) from error
    if not isinstance(app, App):
        raise ConfigError(
            f"`{name}` gave a {type(app).__name__}. An application is a `weightloom.apps.app.App`. "
            "Inherit from it."
        )
    return app


def all_apps() -> Iterator[App[Any, Any, Any]]:
    """Go through all applications."""
    return (find_app(name) for name in app_names())


def imported(path: str, kind: str, example: str) -> Any:
    """Import ``module:name``, also from the working directory.

    Args:
        path: As in ``"my_methods:MyLearner"``.
        kind: What it is, for the message, as in ``"A method"``.
        example: How it is typed.

    Raises:
        ConfigError: If it cannot be imported.
    """
    module, _, name = path.partition(":")
    if not (module and name):
        raise ConfigError(
            f"`{path}` is no `module:name`. {kind} of your own is a module and a name in it, found "
            f"from where you run. Type it as in `{example}`."
        )
    if (
        "" not in sys.path and str(Path.cwd()) not in sys.path
    ):  # an installed command looks only where it is installed
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(import_module(module), name)
    except OWN_ERRORS as error:
        raise ConfigError(
            f"`{path}` cannot be imported ({_in_words(error)}). {kind} of your own is a module and "
            f"a name in it, found from where you run. Type it as in `{example}`."
        ) from error
    if not callable(found) and not isinstance(found, App):
        raise ConfigError(
            f"`{path}` is a {type(found).__name__}. {kind} of your own is a class or a function, "
            f"which is called. Type the name of one, as in `{example}`."
        )
    return found


def called(path: str, kind: str, example: str, *arguments: Any) -> Any:
    """Import ``module:Class`` and call it.

    Args:
        path: As in ``"my_methods:MyLearner"``.
        kind: What it is, for the message, as in ``"A method"``.
        example: How it is typed.
        *arguments: What it is called with.

    Raises:
        ConfigError: If it cannot be imported or called.
    """
    made = imported(path, kind, example)
    try:
        return made(*arguments)
    except WeightloomError:
        raise
    except OWN_ERRORS as error:
        typed = ", ".join(f"a {type(one).__name__}" for one in arguments)
        raise ConfigError(
            f"`{path}` could not be called ({_in_words(error)}). {kind} of your own is a class or "
            f"a function that is called with {typed or 'nothing'}. Type it as in `{example}`."
        ) from error


def _in_words(error: BaseException) -> str:
    named = isinstance(error, ImportError | AttributeError)
    return str(error) if named else f"{type(error).__name__}: {error}"


def check_trusted(config: RunOptions, where: Path, typed: Sequence[str] = ()) -> None:
    """Raise unless every ``module:name`` that options from a file name was typed.

    Importing it runs it.

    Args:
        config: The options.
        where: The run, or the file, that they were read from; for the message.
        typed: Words of the command line.

    Raises:
        ConfigError: With what would be imported, and what to type.
    """
    values = {word.partition("=")[2] if word.startswith("--") else word for word in typed}
    unasked = {name: option for name, option in config.code().items() if name not in values}
    if unasked:
        named = ", ".join(f"`{option} {name}`" for name, option in unasked.items())
        raise ConfigError(
            f"`{where}` names code: {named}. To go on would import that module, from the folder "
            "that you are in or from what is installed, and a module that is imported can do "
            "whatever you can. Type `--trust` (in Python: `trust=True`) if you know who wrote "
            "these options and that module."
        )


def need_extra(app: App[Any, Any, Any]) -> None:
    """Raise unless all that the optional extra of an application installs is there.

    Raises:
        MissingExtraError: With the command that installs it.
    """
    missing = [module for module in app.needs if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"`{missing[0]}` is not installed. `weightloom {app.name}` needs it, and an "
            "installation without extras "
            f'leaves it out. Type `pip install "weightloom[{app.extra or app.name}]"`.'
        )
