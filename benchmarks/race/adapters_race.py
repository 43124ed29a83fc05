"""Race on the workloads with a transformer and an adapter per row.

In:   the name of a workload, options; peft if it is installed.
Out:  a row for each rival.
Batches and rivals are built by `adapters`.
"""

from functools import partial
from typing import Any

from benchmarks.race.adapters import Rival, difference, make_batch, peft, rivals
from benchmarks.race.config import peers_for
from benchmarks.race.race import Row, attempt, race, reason

BUILD = {"torch": rivals, "peft": peft}


def run_adapters(name: str, options: dict[str, Any]) -> list[Row]:
    """Race all rivals of one workload; a failed rival gets a row with ``error``.

    The outputs of a rival with ``same`` are first compared with ours; its row holds the
    ``difference``.

    Args:
        name: One of `ADAPTER_WORKLOADS`.
        options: Fields of `PeersConfig`; ``customers`` runs a fifth of the rounds.
    """
    many = name == "customers"
    if many:
        options = options | {
            "rounds": -(-options["rounds"] // 5),
            "warmup": min(options["warmup"], 1),
        }
    try:
        batch = make_batch(name, options["customers" if many else "tasks"])
    except ImportError as error:
        return [_row(name, "one shared net", "plain torch") | {"error": reason(error)}]
    rows: list[Row] = []
    for group in ("torch", *peers_for(name, options["peers"])):
        try:
            found = BUILD[group](batch)
        except Exception as error:
            rows.append(_row(name, group, "documented") | {"error": reason(error)})
            continue
        for rival in found:
            row = _row(name, rival.name, rival.way) | {"how": rival.how, "tasks": rival.rows}
            rows.append(attempt(row, partial(_measured, rival, options)))
    return rows


def _row(workload: str, contender: str, way: str) -> Row:
    return {"workload": workload, "contender": contender, "way": way}


def _measured(rival: Rival, options: dict[str, Any]) -> Row:
    facts = {"difference": difference(rival)} if rival.same else {}
    return facts | race(rival.step, rival.ours, options)
