"""Applications by name: those of this library and those of installed packages.

In:   a name, or ``module:Class``.
Out:  an `App`.
Knows nothing of a single application; torch is not imported.
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
    "transfer": "weightloom.apps.transfer.app:Transfer",
    "gan": "weightloom.apps.gan.app:Gan",
    "fields": "weightloom.apps.fields.app:FieldsApp",
}
"""``module:Class`` of each application of this library, by name."""
GROUP = "weightloom.apps"
"""Entry point group in which another package registers its application."""


def app_names() -> list[str]:
    """Return the names of all applications, those of other packages last."""
    return list(_known())


def _known() -> dict[str, str]:
    from importlib.metadata import entry_points  # slow to import

    return {
        **APPS,
        **{
            point.name: point.value for point in entry_points(group=GROUP) if point.name not in APPS
        },
    }


OWN_ERRORS = (Exception, SystemExit)
"""Exceptions to expect from a user's own code: a module may also exit."""


def find_app(name: str) -> App[Any, Any, Any]:
    """Return an instance of an application.

    Args:
        name: Name as in `weightloom NAME`, or ``module:Class``, importable from the working
            directory.

    Raises:
        ConfigError: If the name is unknown, or the class cannot be imported or instantiated.
    """
    known = APPS if name in APPS or ":" in name else _known()
    if name not in known and ":" not in name:
        raise ConfigError(f"There is no application `{name}`. {nearest(name, known)}")
    found = imported(known.get(name, name), "An application", "my_package.app:MyApp")
    try:
        app = found() if isinstance(found, type) else found
    except OWN_ERRORS as error:
        raise ConfigError(
            f"`{name}` cannot be created ({type(error).__name__}: {error}). An application takes "
            "no arguments. Change its `__init__`."
        ) from error
    if not isinstance(app, App):
        raise ConfigError(
            f"`{name}` gave a {type(app).__name__}. An application is a `weightloom.apps.app.App`. "
            "Inherit from it."
        )
    return app


def all_apps() -> Iterator[App[Any, Any, Any]]:
    """Yield an instance of every application."""
    return (find_app(name) for name in app_names())


def imported(path: str, kind: str, example: str) -> Any:
    """Import ``module:name``, with the working directory on the import path.

    Args:
        path: Module and name, e.g. ``"my_methods:MyLearner"``.
        kind: Noun for the message, e.g. ``"A method"``.
        example: Valid value for the message.

    Returns:
        A callable or an `App`.

    Raises:
        ConfigError: If the import fails, or the result is neither callable nor an `App`.
    """
    module, _, name = path.partition(":")
    if not (module and name):
        raise ConfigError(
            f"`{path}` is no `module:name`. {kind} of your own is a module and a name in it, found "
            f"from where you run. Type it as in `{example}`."
        )
    # an installed command's import path lacks the working directory
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
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
    """Import ``module:Class``, call it and return the result.

    Args:
        path: Module and name, e.g. ``"my_methods:MyLearner"``.
        kind: Noun for the message, e.g. ``"A method"``.
        example: Valid value for the message.
        *arguments: Positional arguments of the call.

    Raises:
        ConfigError: If the import or the call fails.
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
            f"a function that is called with {typed or 'no argument'}. Type it as in `{example}`."
        ) from error


def _in_words(error: BaseException) -> str:
    named = isinstance(error, ImportError | AttributeError)
    return str(error) if named else f"{type(error).__name__}: {error}"


def check_trusted(config: RunOptions, where: Path, typed: Sequence[str] = ()) -> None:
    """Raise unless every ``module:name`` in options read from a file was also typed.

    Importing a module runs its code.

    Args:
        config: Options, read from a file.
        where: Run folder or file that they were read from, for the message.
        typed: Words of the command line.

    Raises:
        ConfigError: If a ``module:name`` was not typed; the message names it and the flag.
    """
    values = {word.partition("=")[2] if word.startswith("--") else word for word in typed}
    unasked = {name: option for name, option in config.code().items() if name not in values}
    if unasked:
        named = ", ".join(f"`{option} {name}`" for name, option in unasked.items())
        raise ConfigError(
            f"`{where}` names code: {named}. To go on would import that module, from the folder "
            "that you are in or from an installed package, and an imported module can do "
            "everything that you can do. Type `--trust` (in Python: `trust=True`) if you know who "
            "wrote these options and that module."
        )


def need_extra(app: App[Any, Any, Any]) -> None:
    """Raise unless every module of an application's optional extra is installed.

    Raises:
        MissingExtraError: If a module is missing; the message holds the command to install it.
    """
    missing = [module for module in app.needs if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            f"`{missing[0]}` is not installed. `weightloom {app.name}` needs it, and an "
            "installation without extras "
            f'leaves it out. Type `pip install "weightloom[{app.extra or app.name}]"`.'
        )
