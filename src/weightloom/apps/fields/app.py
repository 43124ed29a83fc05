"""The application `weightloom fields`, an `App`; its parts are imported when they are used."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightloom.apps.app import Adapted, App, Contender, Listed, Shown, Training
from weightloom.apps.fields.config import FieldsConfig, FieldsOptions
from weightloom.apps.fields.presets import ABOUT, DATA, FAMILIES

if TYPE_CHECKING:
    from weightloom.apps.fields.problem import FieldProblem
    from weightloom.report.run import Run
    from weightloom.report.section import Section
    from weightloom.runs.record import Row
    from weightloom.training import History


class FieldsApp(App[FieldsOptions, "FieldProblem", Any]):
    """Learn the solutions of a family of differential equations as generated networks."""

    name = "fields"
    about = "Networks generated from an equation's coefficients and start, beside neural operators."
    config = FieldsConfig
    judged_by = ("test_functions", "validation")
    unseen = "functions never seen in training"
    adapts_to = "the inputs of an equation, a JSON file"

    def label(self, config: FieldsConfig) -> str:
        """Return the name of the family."""
        return config.data.split(":")[-1]

    def open(self, config: FieldsOptions) -> "FieldProblem":
        """Find the family of equations; solutions are computed when they are first used.

        Raises:
            ConfigError: If a family of one's own cannot be called, or is none.
        """
        from weightloom.apps.fields.problem import FieldProblem

        return FieldProblem(config)

    def build(self, method: str, problem: "FieldProblem", config: FieldsOptions) -> Any:
        """Build the model of a method, newly initialised."""
        from weightloom.apps.fields.training import build

        return build(method, problem, config)

    def is_trained(self, model: Any) -> bool:
        """Return False for methods that train nothing."""
        return bool(model.trained)

    def train(
        self, model: Any, problem: "FieldProblem", config: FieldsOptions, training: Training[Any]
    ) -> "History":
        """Train a model on points of the training solutions, from its last checkpoint if any."""
        from weightloom.apps.fields.training import fit

        return fit(model, problem, config, training)

    def trial_steps(self, config: FieldsOptions) -> tuple[int, int]:
        """Return two lengths of training: steps are short, and timed over more of them."""
        return 10, 60

    def judge(
        self,
        contenders: Sequence[Contender[Any]],
        problem: "FieldProblem",
        config: FieldsOptions,
        folder: Path,
    ) -> "list[Row]":
        """Judge every contender on the test functions, with controls and the grid's own error."""
        from weightloom.apps.fields.judge import curves_of, judge_fields

        problem.curves = curves_of(folder, config)
        return judge_fields(contenders, problem, problem.curves)

    def measure(
        self, models: Mapping[str, Any], problem: "FieldProblem", config: FieldsOptions
    ) -> dict[str, Any]:
        """Return the parameters of every method, and its validation error during training."""
        from weightloom.apps.fields.methods import count

        parameters = {name: count(its) for name, its in models.items() if its.trained}
        return {"facts": {"parameters": parameters, "curves": problem.curves}}

    def lines(self, record: Mapping[str, Any]) -> list[str]:
        """Return a sentence on the number of parameters of each method."""
        found = (record.get("facts") or {}).get("parameters") or {}
        counts = ", ".join(f"{name} {number:,}" for name, number in found.items())
        return [f"Parameters: {counts}."] if counts else []

    def show(
        self,
        models: Mapping[str, Any],
        problem: "FieldProblem",
        config: FieldsOptions,
        early: bool,
    ) -> Shown:
        """Return solutions and predictions to draw, those of validation functions if early."""
        from weightloom.apps.fields.figures import shown

        return shown(models, problem, early)

    def sections(self, run: "Run") -> "list[Section]":
        """Return the sections of the report."""
        from weightloom.apps.fields.figures import sections

        return sections(run)

    def notes(self, config: FieldsOptions) -> str:
        """Return the protocol of the table."""
        return (
            "The score is |predicted - true| / |true| over 33 times and 64 positions, a mean over "
            "functions. Symmetries of the equations are taken out for every trained method alike. "
            "`validation error at equal steps` is read off each method's curve where the method "
            "with the fewest steps ended; the others were then in the middle of their schedule. "
            "Row `grid`: solutions against a finer grid."
        )

    def adapt(
        self, model: Any, problem: "FieldProblem", config: FieldsOptions, support: str
    ) -> Adapted:
        """Write the network of one equation, whose inputs a JSON file holds."""
        from weightloom.apps.fields.trained import AdaptedField, read_inputs

        return AdaptedField(model, read_inputs(support), support)

    def export(
        self,
        model: Any,
        problem: "FieldProblem",
        config: FieldsOptions,
        task: str,
        folder: Path,
    ) -> dict[str, Any]:
        """Write the network of one test function."""
        from weightloom.apps.fields.trained import AdaptedField, inputs_of_task

        return AdaptedField(model, *inputs_of_task(problem, task)).save(folder)

    def listed(self) -> list[Listed]:
        """Return the tables of `weightloom list`: families and methods."""
        return [
            Listed(
                "weightloom fields --data …",
                ("data", "equation"),
                [(name, FAMILIES[name].about) for name in DATA],
            ),
            Listed(
                "weightloom fields --method …",
                ("method", "description"),
                [(its.name, its.about) for its in ABOUT],
            ),
        ]
