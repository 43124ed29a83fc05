"""Plain English in docstrings, messages, pages and help; short functions.

A docstring says the thing itself. The word "what" stands for a noun that was not found, and a first
line that begins with "How" or "Whether" cannot be looked up.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = sorted((ROOT / "src").rglob("*.py"))
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("docs/[a-z]*/*.md")),
]
WHATS, VAGUE = 1.0, 3.0
"""Bars, per 1,000 words."""
VAGUE_WORDS = re.compile(
    r"\b(what (?:is|was|it|they|a|suits|has|can|does)|whatever|whoever|something|nothing|beside"
    r"|apart|there (?:is|are))\b",
    re.IGNORECASE,
)
QUESTION = re.compile(r"(What|Where|Whether|Which|Who|Whoever|When|How|Of )\b")
FENCED = re.compile(r"^(`{3,}).*?^\1$", re.MULTILINE | re.DOTALL)
DECISIONS = (
    *(ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.Assert),
    *(ast.comprehension, ast.match_case),
)


def docstrings(path):
    """Docstrings of a module, its classes and functions, and the texts under fields."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            value = getattr(statement, "value", None) if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield statement.lineno, re.sub(r">>>.*|\.\.\..*", "", value.value)


def rates(texts):
    """The word "what", and vague words, per 1,000 words."""
    text = "\n".join(texts)
    thousands = max(len(re.findall(r"[A-Za-z']+", text)), 1) / 1000
    return (
        len(re.findall(r"\bwhat\b", text, re.IGNORECASE)) / thousands,
        len(VAGUE_WORDS.findall(text)) / thousands,
    )


def test_docstrings_say_the_thing_itself():
    whats, vague = rates([text for path in SOURCE for _, text in docstrings(path)])
    assert whats < WHATS
    assert vague < VAGUE


def test_no_docstring_begins_with_a_question():
    begun = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCE
        for line, text in docstrings(path)
        if QUESTION.match(text.strip())
    ]
    assert not begun


def test_messages_say_the_thing_itself():
    texts = [
        node.value
        for path in SOURCE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value
    ]
    assert rates(texts)[0] < WHATS


def test_pages_say_the_thing_itself():
    texts = [FENCED.sub("", page.read_text(encoding="utf-8")) for page in PAGES]
    whats, vague = rates(texts)
    assert whats < WHATS
    assert vague < VAGUE


def decisions(function):
    """One, and one more for each decision; comprehensions and nested functions count."""
    count = 1
    for node in ast.walk(function):
        count += isinstance(node, DECISIONS) and node is not function
        count += len(node.ifs) if isinstance(node, ast.comprehension) else 0
        count += len(node.values) - 1 if isinstance(node, ast.BoolOp) else 0
    return count


def test_functions_take_few_decisions():
    functions = [
        (f"{path.relative_to(ROOT)}: {node.name}", decisions(node))
        for path in SOURCE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    over = [(name, count) for name, count in functions if count > 10]
    assert len(over) <= 15, over
    assert max(count for _, count in functions) <= 20, over


def test_few_types_are_ignored():
    assert sum(path.read_text(encoding="utf-8").count("type: ignore") for path in SOURCE) <= 8


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Return what it is, and nothing else.", (1000 / 7, 2000 / 7)),
        ("PPO clip range.", (0, 0)),
    ],
)
def test_the_measure_counts(text, expected):
    assert rates([text]) == pytest.approx(expected)


def test_decisions_are_counted():
    tree = ast.parse("def f(x):\n if x and x > 1:\n  return [y for y in x if y]\n return 0")
    assert decisions(tree.body[0]) == 1 + 1 + 1 + 1 + 1  # if, and, comprehension, its if
