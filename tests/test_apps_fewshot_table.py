"""The printed table: every score can be told from the next."""

import pytest

from weightloom.runs.table import print_table


def rows(name, *scores):
    known = {
        "setting": "10-shot",
        "name": name,
        "better": "lower" if name == "mse" else "higher",
        "tasks": 2000,
        "also": {},
        "adapt_time_s": 0.001,
    }
    return [
        known | {"method": f"method{i}", "mean": mean, "ci95": ci95}
        for i, (mean, ci95) in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("name", "score", "printed"),
    [
        ("mse", (0.00836, 0.0012), "0.0084 ± 0.0012"),
        ("mse", (1.234e-9, 3.21e-11), "1.2e-09 ± 3.2e-11"),
        ("mse", (0.00002, 0.000004), "0.000020 ± 0.000004"),
        ("mse", (0.00002, 0.1), "0.0000 ± 0.1000"),
        ("accuracy", (0.9123, 0.0061), "0.912 ± 0.006"),
        ("mse", (float("nan"), float("nan")), "failed"),
    ],
)
def test_a_score_has_the_digits_of_its_column_unless_nothing_would_be_left_of_it(
    capsys, name, score, printed
):
    print_table(rows(name, (1.5, 0.5), score), "tasks")
    line = next(line for line in capsys.readouterr().out.splitlines() if "method1" in line)
    assert printed in line
