"""Reference pages that follow from the source: a new file of a room gets a page without further ado.

In:   a page with a block ```` ```{room} weightloom.forms
      ````; packages inside that have a page of their own, such as ``apps-rl.md`` for
      ``weightloom.apps.rl``, are left out.
Out:  the page with the room's public names in its place and a list of its files; a page for each
      file, in ``docs/reference/generated``.
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
    """Return the page with directives of autodoc, and links to the files, in the place of rooms."""
    return ROOM.sub(lambda found: _room(import_module(found[1])), page)


def file_pages() -> dict[str, str]:
    """Return the pages of all files of all rooms, by the names of the modules."""
    rooms = [
        import_module(name)
        for page in sorted(PAGES.glob("*.md"))
        for name in ROOM.findall(page.read_text(encoding="utf-8"))
    ]
    return {name: text for room in rooms for name, text in _files(room).items()}


def write_file_pages() -> None:
    """Write the pages of files, each only if it changed, and remove those of files that are gone."""
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
    """Directives for the names that a package gives on, and the list of its files."""
    links = [
        f"- [`{name.removeprefix('weightloom.')}`](generated/{name}.md)" for name in _files(package)
    ]
    heading = "## Files" if re_exports(package) or public_names(package) else ""
    contents = [_automodule(package.__name__, _listed(package)), heading, "\n".join(links)]
    return "\n\n".join(filter(None, contents))


def _listed(package: ModuleType) -> list[str]:
    """Options that show the names which a package defines and gives on."""
    foreign = [
        name
        for name, origin in imports(package).items()
        if not origin.startswith(f"{package.__name__}.")
    ]
    if not re_exports(package):
        return [":members:"]
    return [":members:", ":imported-members:", *_without(foreign)]


def _files(package: ModuleType) -> dict[str, str]:
    """Return a page for each file of a package, those of packages inside among them."""
    origins, pages = re_exports(package), {}
    for info in iter_modules(package.__path__):
        name = f"{package.__name__}.{info.name}"
        if info.ispkg and not _has_own_page(name):
            inside = import_module(name)
            if public_names(inside) or re_exports(inside):
                pages[name] = _page(name, _listed(inside))
            pages |= _files(inside)
        elif not info.ispkg:
            shown = [
                found
                for found, origin in origins.items()
                if origin == name and _is_code(package, found)
            ]
            same = (
                [":no-index:"] if info.name in origins else []
            )  # a link by this name leads to the package's own
            pages[name] = _page(name, [":members:", *_without(shown), *same])
    return pages


def _has_own_page(name: str) -> bool:
    return (PAGES / f"{name.removeprefix('weightloom.').replace('.', '-')}.md").exists()


def _page(name: str, options: list[str]) -> str:
    head = "---\norphan: true\n---\n\n"  # 250 pages in the list beside every page are too many
    return f"{head}# `{name.removeprefix('weightloom.')}`\n\n{_automodule(name, options)}\n"


def public_names(package: ModuleType) -> list[str]:
    """Names of classes and functions that a package's `__init__.py` defines itself."""
    return [
        name
        for name in vars(package)
        if not name.startswith("_")
        and _is_code(package, name)
        and getattr(package, name).__module__ == package.__name__
    ]


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
