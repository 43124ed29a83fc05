"""Sphinx configuration; `make docs` builds the documentation."""

import inspect
import re
import sys
import typing
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
typing.GENERATING_DOCUMENTATION = (
    True  # jaxtyping then prints shapes as they are written in the source
)

import _rooms  # noqa: E402
import _tables  # noqa: E402

import weightloom  # noqa: E402

project = "weightloom"
author = "The weightloom developers"
copyright = author
version = release = installed_version("weightloom")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
default_role = "py:obj"
add_module_names = False

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "weightloom"
html_static_path = ["_static"]
html_css_files = ["wide.css"]

SHAPE = re.compile(
    r"(?<![`\w])\((?:(?:tasks|batch|shots|images|classes|channels|height|count),[\w *,.]*"
    r"|(?=[^()`]*\*\w)(?![^()`]*\w\*)[\w *,./]+)\)"
)
ROOM_LINE = re.compile(r"(In|Out): +(.*)|(Knows nothing|Start at|Nothing that|Nothing is)(.*)")


def mark_up(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring as reStructuredText, in place: shapes as code, ``|`` escaped."""
    if what == "module":
        lines[:] = _room(lines)
    if what in ("attribute", "data", "property"):
        # an empty comment: napoleon takes words before a colon in the first line for a type
        lines[:0] = ["..", ""]
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            line = SHAPE.sub(r"``\g<0>``", line)
            lines[number] = line if "`" in line else line.replace("|", "\\|")


def _room(lines: list[str]) -> list[str]:
    """Give the In and Out lines of a room's docstring a paragraph each."""
    written: list[str] = []
    for line in lines:
        if found := ROOM_LINE.match(line):
            written += ["", f"**{found[1]}:** {found[2]}" if found[1] else line]
        elif written and line.startswith("   ") and written[-1].startswith(("**In:**", "**Out:**")):
            written[-1] += " " + line.strip()
        else:
            written.append(line)
    return written


def fill_results(app: Any, page: str, source: list[str]) -> None:
    """Replace the marks of a page by the tables made from the records."""
    source[0] = _rooms.expanded(_tables.with_records(source[0]))
    source[0] = source[0].replace(_tables.METHODS_MARK, _tables.methods_table())
    if page == "results":
        records = _tables.read_records()
        source[0] = source[0].replace(_tables.START, _tables.results_page(records))
        source[0] = source[0].replace("<!-- targets -->", _tables.targets_table(records))
        source[0] = source[0].replace("<!-- all -->", _all_results(records))


def _all_results(records: Any) -> str:
    """Return the table of all results, with links to the sections of the page."""
    table = _tables.results_table(records)
    return re.sub(r"\[([^]]+)\]\(benchmarks/records/[^)]+\)", r"[\1](#\1)", table)


def write_pages(app: Any, config: Any) -> None:
    """Write the reference page of every file before Sphinx collects the pages."""
    _rooms.write_file_pages()


def always_stale(
    app: Any, env: Any, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Rebuild the results page every time: Sphinx does not know that it depends on records."""
    return ["results"] if "results" in env.found_docs else []


def find_public_name(app: Any, env: Any, node: Any, contents: Any) -> Any:
    """Link a public name, with or without its room, to the file that documents it."""
    if node.get("refdomain") != "py":
        return None
    target = _documented_as(node["reftarget"])
    if target is None:
        return None
    return env.domains["py"].resolve_xref(
        env, node["refdoc"], app.builder, "obj", target, node, contents
    )


def _documented_as(path: str) -> str | None:
    """Module and name under which a class or function, or a member of it, is documented."""
    room = weightloom._public_names().get(path.partition(".")[0])
    if room is not None:
        path = f"weightloom.{room}.{path}"
    words = path.split(".")
    for count in range(len(words) - 1, 0, -1):
        module = sys.modules.get(".".join(words[:count]))
        thing = getattr(module, words[count], None)
        if isinstance(thing, type) or inspect.isfunction(thing):
            return ".".join([thing.__module__, thing.__qualname__, *words[count + 1 :]])
    return None


def setup(app: Any) -> None:
    """Connect the functions above to the events of Sphinx."""
    app.connect("config-inited", write_pages)
    app.connect("autodoc-process-docstring", mark_up, priority=400)
    app.connect("source-read", fill_results)
    app.connect("env-get-outdated", always_stale)
    app.connect("missing-reference", find_public_name)
