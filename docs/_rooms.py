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
    """Directive for the text of a package, and lists of its public names and of its files."""
    names = [
        f"- {{py:obj}}`{name} <{_path(package, name)}>`: {_summary(getattr(package, name))}"
        for name in re_exports(package)
        if _is_code(package, name)
    ]
    links = [
        f"- [`{name.removeprefix('weightloom.')}`](generated/{name}.md)" for name in _files(package)
    ]
    parts = [_automodule(package.__name__, [":members:"])]
    parts += ["## Public names", "\n".join(names)] if names else []
    parts += ["## Files" if names or public_names(package) else "", "\n".join(links)]
    return "\n\n".join(filter(None, parts))


def _path(package: ModuleType, name: str) -> str:
    thing = getattr(package, name)
    return f"{thing.__module__}.{thing.__qualname__}"


def _summary(thing: object) -> str:
    """First line of a docstring, in Markdown, without links."""
    first = (inspect.getdoc(thing) or "").partition("\n")[0]
    return first.replace("``", "`").replace("*", "\\*")


def _files(package: ModuleType) -> dict[str, str]:
    """Return a page for each file of a package, those of packages inside among them."""
    pages = {}
    for info in iter_modules(package.__path__):
        name = f"{package.__name__}.{info.name}"
        if info.ispkg and not _has_own_page(name):
            inside = import_module(name)
            if public_names(inside):
                pages[name] = _page(name)
            pages |= _files(inside)
        elif not info.ispkg:
            pages[name] = _page(name)
    return pages


def _has_own_page(name: str) -> bool:
    return (PAGES / f"{name.removeprefix('weightloom.').replace('.', '-')}.md").exists()


def _page(name: str) -> str:
    head = "---\norphan: true\n---\n\n"  # keeps 250 pages out of the navigation
    return f"{head}# `{name.removeprefix('weightloom.')}`\n\n{_automodule(name, [':members:'])}\n"


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


def _taken(package: ModuleType) -> dict[tuple[str, str | None], str]:
    body = ast.parse(inspect.getsource(package)).body
    taken = [node for node in body if isinstance(node, ast.ImportFrom) and node.module]
    return {(alias.name, alias.asname): str(node.module) for node in taken for alias in node.names}


def _is_code(package: ModuleType, name: str) -> bool:
    """Return True for classes and functions: autodoc shows values only in the module of origin."""
    thing = getattr(package, name)
    return inspect.isclass(thing) or inspect.isfunction(thing)


def _automodule(name: str, options: list[str]) -> str:
    lines = [f".. automodule:: {name}", *(f"   {option}" for option in options)]
    return "\n".join(["```{eval-rst}", *lines, "```"])
