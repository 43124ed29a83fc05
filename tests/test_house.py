"""The house: who may use whom, what an import costs, and that shapes are checked while tests run."""

import ast
import resource
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import jaxtyping
import pytest
import torch

import weightloom
from weightloom.losses import mse_per_task

SOURCE = Path(weightloom.__file__).parent
ROOMS = [
    *(
        "errors",
        "limits",
        "texts",
        "losses",
        "platforms",
        "progress",
        "files",
        "datasets",
        "params",
        "networks",
        "replica",
        "forms",
        "tasks",
        "conditions",
    ),
    *(
        "hypernets",
        "base",
        "adapt",
        "runs",
        "report",
        "training",
        "adversarial",
        "measures",
        "learners",
        "serving",
        "diagnostics",
        "testing",
        "apps",
        "option_help",
        "commands",
    ),
    "cli",
]
"""A room uses the rooms before it."""

FILES = sorted(SOURCE.rglob("*.py"))


def room_of(path):
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path):
    """Modules that a file imports, anywhere in it, and what it takes from them."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def used_rooms(path):
    """Rooms that a file imports, anywhere in it."""
    for module in imported(path):
        first, *rest = module.split(".")
        room = weightloom._public_names().get(rest[0], rest[0]) if rest else ""
        if first == "weightloom" and room in ROOMS:
            yield room


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_room_uses_only_rooms_before_it(path):
    room = room_of(path)
    if room in ("__init__", "__main__"):
        return
    allowed = ROOMS[: ROOMS.index(room) + 1]
    assert not [used for used in used_rooms(path) if used not in allowed]


def test_no_file_imports_itself_by_way_of_others():
    """A circle would make what a file defines hang on which file is imported first."""
    names = {
        ".".join(("weightloom", *path.relative_to(SOURCE).with_suffix("").parts)): path
        for path in FILES
    }
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    uses = {}
    for name, path in names.items():
        found = [
            node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)
        ]
        targets = {f"{node.module}.{alias.name}" for node in found for alias in node.names}
        uses[name] = {
            its if its in names else its.rpartition(".")[0] for its in targets
        } & names.keys() - {name}
    while free := [name for name, its in uses.items() if not its & uses.keys()]:
        for name in free:
            del uses[name]
    assert not uses


def test_only_the_command_uses_apps():
    assert {room_of(path) for path in FILES if "apps" in used_rooms(path)} == {
        "apps",
        "commands",
        "cli",
    }


def test_what_is_not_installed_with_the_library_is_not_imported_by_it():
    own = {"benchmarks", "tests", "docs", "examples"}
    assert not [
        (path, module) for path in FILES for module in imported(path) if module.split(".")[0] in own
    ]


def test_every_file_belongs_to_a_room():
    assert {room_of(path) for path in FILES} == {*ROOMS, "__init__", "__main__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_importing_a_file_only_defines_names(path):
    """It imports, defines, or names a value: it opens no file, draws no number and sets no option."""
    defines = (
        ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
    )
    for node in ast.parse(path.read_text()).body:
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        guarded = isinstance(node, ast.If) and ast.unparse(node.test) in (
            "TYPE_CHECKING",
            "__name__ == '__main__'",
        )
        registers = ast.unparse(node).startswith(
            ("register_pytree_node(", "add_safe_globals(")
        )  # a kind of value
        assert isinstance(node, defines) or text or guarded or registers, f"{path}:{node.lineno}"
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            called = [call.func for call in ast.walk(node.value) if isinstance(call, ast.Call)]
            names = [
                function.attr if isinstance(function, ast.Attribute) else function.id
                for function in called
            ]
            does = {
                "open",
                "read_text",
                "read_bytes",
                "rand",
                "randn",
                "manual_seed",
                "Generator",
                "getenv",
                "run",
            }
            assert not does.intersection(names), f"{path}:{node.lineno}"


def test_the_command_starts_without_torch():
    code = "import sys, weightloom.cli; print(sorted({'torch', 'numpy', 'plotly', 'sklearn'} & {*sys.modules}))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_help_takes_little_work():
    """Counted in modules loaded, and in processor time beside that of Python alone: the machine may be busy."""

    def processor_s(*words):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, ran.stdout

    counted = "import sys, weightloom.cli; print(len(sys.modules))"
    assert int(processor_s("-c", counted)[1]) < 400
    times = [
        [processor_s(*words)[0] for _ in range(3)]
        for words in (("-m", "weightloom", "--help"), ("-c", "pass"))
    ]
    assert processor_s("-m", "weightloom", "--help")[1].startswith(
        "weightloom: networks that generate"
    )
    assert min(times[0]) < 15 * min(times[1])


def test_lists_are_shown_without_torch():
    code = (
        "import sys; from weightloom.cli import main; main(['list']); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "False"


FIRST_STEP = """
import sys
from weightloom.cli import main
from weightloom.runs.progress import TrainingProgress
HEAVY = {
    "lightning_fabric", "torchmetrics", "sklearn", "scipy", "pandas", "matplotlib", "plotly", "PIL", "transformers",
    "keras", "gymnasium", "sympy", "torch._dynamo", "torch._inductor",
}
def after_a_step(self, step, loss):
    print(step, sorted(HEAVY & {*sys.modules}))
    raise SystemExit
TrainingProgress.step = after_a_step
main(["fewshot", "--data", "sinusoid", "--quiet"])
"""


def test_the_first_step_of_a_run_is_taken_before_anything_heavy_is_imported(tmp_path):
    """Fabric, metrics, pictures and torch's compiler each take longer to import than torch itself, or than the step."""
    ran = subprocess.run(
        [sys.executable, "-c", FIRST_STEP], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert ran.stdout.strip() == "1 []"


def test_every_public_name_is_there_and_comes_from_its_room():
    names = weightloom._public_names()
    assert (
        names["LowRank"] == "forms"
        and names["MLPHyperNetwork"] == "hypernets"
        and names["mlp"] == "networks"
    )
    assert list(weightloom.__all__) == list(names) and dir(weightloom) == sorted(names)
    for name, room in names.items():
        assert getattr(weightloom, name) is getattr(import_module(f"weightloom.{room}"), name)


@pytest.mark.slow
def test_a_type_checker_sees_the_public_names_with_their_types(tmp_path):
    mypy = pytest.importorskip("mypy.api")
    (tmp_path / "user.py").write_text(
        "import weightloom\nreveal_type(weightloom.LowRank(4).rank)\nweightloom.LowRnk\n"
    )
    known, _, _ = mypy.run(
        [str(tmp_path / "user.py"), "--follow-imports=silent", f"--cache-dir={tmp_path}"]
    )
    assert 'int"' in known and 'has no attribute "LowRnk"' in known


def test_all_names_come_with_a_star():
    names = {}
    exec("from weightloom import *", names)
    assert names.keys() >= {"LowRank", "mlp"} and names["mlp"] is weightloom.mlp


def test_an_unknown_name_is_refused_as_by_any_module():
    with pytest.raises(AttributeError, match="module 'weightloom' has no attribute 'hyper'"):
        weightloom.hyper  # noqa: B018


def test_shapes_are_checked_while_tests_run():
    with pytest.raises(jaxtyping.TypeCheckError):
        mse_per_task(torch.zeros(2, 3, 1), torch.zeros(2, 4, 1))


def test_shapes_are_not_checked_for_users(unchecked):
    with pytest.raises(RuntimeError, match="must match the size"):
        mse_per_task(torch.zeros(2, 3, 1), torch.zeros(2, 4, 1))
