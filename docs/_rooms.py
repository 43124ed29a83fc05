"""Reference pages generated from the source, one per file of a room.

In:   a page with a block ```` ```{room} weightloom.forms
      ````. Subpackages that have a written page, such as ``apps-rl.md`` for
      ``weightloom.apps.rl``, are left out.
Out:  the page with the room's public names and a list of its files instead of the block; a page for
      each file, in ``docs/reference/generated``.
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
GENERATED = PAGES / "generated"


def expanded(page: str) -> str:
    """Return the page with every ``{room}`` block replaced by autodoc directives and file links."""
    return ROOM.sub(lambda found: _room(import_module(found[1])), page)


def file_pages() -> dict[str, str]:
    """Return the pages of all files of all rooms, by module name."""
    rooms = [
        import_module(name)
        for page in sorted(PAGES.glob("*.md"))
        for name in ROOM.findall(page.read_text(encoding="utf-8"))
    ]
    return {name: text for room in rooms for name, text in _files(room).items()}


def write_file_pages() -> None:
    """Write the pages that changed, and remove those of deleted files."""
    pages = file_pages()
    GENERATED.mkdir(exist_ok=True)
    for old in GENERATED.glob("*.md"):
        if old.stem not in pages:
            old.unlink()
    for name, text in pages.items():
        place = GENERATED / f"{name}.md"
        if not place.exists() or place.read_text(encoding="utf-8") != text:
            place.write_text(text, encoding="utf-8")


def _room(package: ModuleType) -> str:
    """Return the directive for a package's names, and the list of its files."""
    links = [
        f"- [`{name.removeprefix('weightloom.')}`](generated/{name}.md)" for name in _files(package)
    ]
    heading = "## Files" if re_exports(package) or public_names(package) else ""
    contents = [_automodule(package.__name__, _listed(package)), heading, "\n".join(links)]
    return "\n\n".join(filter(None, contents))


def _listed(package: ModuleType) -> list[str]:
    """Return autodoc options that show the names a package defines and re-exports."""
    foreign = [
        name
        for name, origin in imports(package).items()
        if not origin.startswith(f"{package.__name__}.")
    ]
    if not re_exports(package):
        return [":members:"]
    return [":members:", ":imported-members:", *_without(foreign)]


def _files(package: ModuleType) -> dict[str, str]:
    """Return a page for each file of a package and of its subpackages, by module name."""
    origins, pages = re_exports(package), {}
    for info in iter_modules(package.__path__):
        name = f"{package.__name__}.{info.name}"
        if info.ispkg and not _has_own_page(name):
            inside = import_module(name)
            if public_names(inside) or re_exports(inside):
                pages[name] = _page(name, _listed(inside))
            pages |= _files(inside)
        elif not info.ispkg:
            # a link by this name leads to the object that the package re-exports
            same = [":no-index:"] if info.name in origins else []
            pages[name] = _page(name, [":members:", *_without(_shown(package, name)), *same])
    return pages


def _shown(package: ModuleType, module: str) -> list[str]:
    """Return the names of a module that the package's page shows."""
    origins = re_exports(package).items()
    return [name for name, origin in origins if origin == module and _is_code(package, name)]


def _has_own_page(name: str) -> bool:
    return (PAGES / f"{name.removeprefix('weightloom.').replace('.', '-')}.md").exists()


def _page(name: str, options: list[str]) -> str:
    head = "---\norphan: true\n---\n\n"  # keeps 250 pages out of the navigation
    return f"{head}# `{name.removeprefix('weightloom.')}`\n\n{_automodule(name, options)}\n"


def public_names(package: ModuleType) -> list[str]:
    """Return the names of classes and functions defined in a package's `__init__.py`."""
    return [
        name
        for name in vars(package)
        if not name.startswith("_")
        and _is_code(package, name)
        and getattr(package, name).__module__ == package.__name__
    ]


def re_exports(package: ModuleType) -> dict[str, str]:
    """Return the modules of a package's re-exports, by name."""
    return {name: origin for (name, given), origin in _taken(package).items() if given == name}


def imports(package: ModuleType) -> dict[str, str]:
    """Return the modules of all names that a package's `__init__.py` imports, by name."""
    return {given or name: origin for (name, given), origin in _taken(package).items()}


def _taken(package: ModuleType) -> dict[tuple[str, str | None], str]:
    body = ast.parse(inspect.getsource(package)).body
    taken = [node for node in body if isinstance(node, ast.ImportFrom) and node.module]
    return {(alias.name, alias.asname): str(node.module) for node in taken for alias in node.names}


def _is_code(package: ModuleType, name: str) -> bool:
    """Return True for classes and functions: autodoc shows values only in the module of origin."""
    thing = getattr(package, name)
    return inspect.isclass(thing) or inspect.isfunction(thing)


def _without(names: list[str]) -> list[str]:
    return [f":exclude-members: {', '.join(names)}"] if names else []


def _automodule(name: str, options: list[str]) -> str:
    lines = [f".. automodule:: {name}", *(f"   {option}" for option in options)]
    return "\n".join(["```{eval-rst}", *lines, "```"])
