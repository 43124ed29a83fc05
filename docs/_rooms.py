"""Reference pages that follow from the source: a new file of a room is on its page without further ado.

In:   a page with a block ```` ```{room} weightloom.forms
      ````; packages inside that have a page of their own, such as ``apps-rl.md`` for
      ``weightloom.apps.rl``, are left out.
Out:  the page with the room's public names in its place, then a section for each file with all else
      that is in it.
"""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

ROOM = re.compile(r"^```\{room\} (\S+)\n```$", re.MULTILINE)
PAGES = Path(__file__).parent / "reference"


def expanded(page: str) -> str:
    """Return the page with directives of autodoc in the place of rooms."""
    return ROOM.sub(lambda found: "\n\n".join(_package(import_module(found[1]), "##")), page)


def _package(package: ModuleType, marks: str) -> list[str]:
    """Directives for a package, then a heading and directives for each file, and each package inside."""
    origins = re_exports(package)
    foreign = [
        name
        for name, origin in imports(package).items()
        if not origin.startswith(f"{package.__name__}.")
    ]
    listed = [":members:", ":imported-members:", *_without(foreign)] if origins else [":members:"]
    written = [_automodule(package.__name__, listed)]
    for info in iter_modules(package.__path__):
        name = f"{package.__name__}.{info.name}"
        heading = f"{marks} `{info.name}`"
        own_page = PAGES / f"{name.removeprefix('weightloom.').replace('.', '-')}.md"
        if info.ispkg and not own_page.exists():
            written += [heading, *_package(import_module(name), marks + "#")]
        elif not info.ispkg:
            shown = [
                found
                for found, origin in origins.items()
                if origin == name and _is_code(package, found)
            ]
            same = (
                [":no-index:"] if info.name in origins else []
            )  # a link by this name leads to the package's own
            written += [heading, _automodule(name, [":members:", *_without(shown), *same])]
    return written


def re_exports(package: ModuleType) -> dict[str, str]:
    """Modules by the names that a package's `__init__.py` takes from them to give on."""
    return {name: origin for (name, given), origin in _taken(package).items() if given == name}


def imports(package: ModuleType) -> dict[str, str]:
    """Modules by all names that a package's `__init__.py` takes from them."""
    return {given or name: origin for (name, given), origin in _taken(package).items()}


def _taken(package: ModuleType) -> dict[tuple[str, str | None], str]:
    body = ast.parse(inspect.getsource(package)).body
    taken = [node for node in body if isinstance(node, ast.ImportFrom) and node.module]
    return {(alias.name, alias.asname): str(node.module) for node in taken for alias in node.names}


def _is_code(package: ModuleType, name: str) -> bool:
    """True if autodoc shows it on the package; values are shown only where they are defined."""
    thing = getattr(package, name)
    return inspect.isclass(thing) or inspect.isfunction(thing)


def _without(names: list[str]) -> list[str]:
    return [f":exclude-members: {', '.join(names)}"] if names else []


def _automodule(name: str, options: list[str]) -> str:
    lines = [f".. automodule:: {name}", *(f"   {option}" for option in options)]
    return "\n".join(["```{eval-rst}", *lines, "```"])
